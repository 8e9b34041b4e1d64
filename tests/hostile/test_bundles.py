"""Bundles as a stranger would offer them: every one is refused with a `BundleError` that names the file.

`reseal` writes a `bundle.json` that fits the changed files, as somebody who means harm would.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from rayml import bundle as bundle_module
from rayml.bundle import Bundle
from rayml.bundle_writer import write_bundle
from rayml.errors import BundleError
from tests.rayml import small

FILES = ("model.onnx", "head.npz", "MODEL_CARD.md", "golden/index.json", "golden/logits.npy", "golden/003.png")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "bundle", small.contents())
    return tmp_path / "bundle"


def refused(folder: Path, words: str) -> None:
    with pytest.raises(BundleError, match=words):
        Bundle.open(folder)


def change_json(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((folder / "bundle.json").read_bytes())
    change(content)
    (folder / "bundle.json").write_text(json.dumps(content))


def reseal(folder: Path) -> None:
    files = {name: data for name, data in small.files_of(folder).items() if name != "bundle.json"}
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    change_json(folder, lambda content: content.update(files=digests))


def replace(folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)
    reseal(folder)


def test_resealing_alone_changes_nothing(folder: Path) -> None:
    reseal(folder)
    Bundle.open(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    refused(folder, f"{name} is not there")


@pytest.mark.parametrize("name", FILES)
def test_a_changed_file(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    refused(folder, f"{name} must have sha256")


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file(folder: Path, name: str) -> None:
    os.truncate(folder / name, (folder / name).stat().st_size - 1)
    refused(folder, f"{name} must have sha256")


@pytest.mark.parametrize("name", ["model.onnx", "head.npz", "golden/index.json", "golden/logits.npy"])
def test_a_truncated_file_resealed(folder: Path, name: str) -> None:
    replace(folder, name, (folder / name).read_bytes()[:-9])
    refused(folder, name)


@pytest.mark.parametrize("name", ["extra.txt", "golden/006.png", ".hidden", "golden/.DS_Store", "model.keras"])
def test_an_added_file(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"x")
    refused(folder, f"{name} is there, and bundle.json does not name it")


@pytest.mark.parametrize("name", ["extra.txt", "model.keras", "golden/a.pkl"])
def test_an_added_file_resealed(folder: Path, name: str) -> None:
    replace(folder, name, b"x")
    refused(folder, f"must name files of format 1 only. Received: '{name}'")


def test_an_added_folder(folder: Path) -> None:
    (folder / "more").mkdir()
    refused(folder, "more is no plain file")


def test_too_many_files(folder: Path) -> None:
    for i in range(300):
        (folder / "golden" / f"x{i}.png").touch()
    refused(folder, "at most 272 files")


@pytest.mark.parametrize("name", ["model.onnx", "bundle.json", "golden/003.png"])
def test_a_symbolic_link_for_a_file(folder: Path, name: str) -> None:
    (folder / name).rename(folder.parent / "outside")
    (folder / name).symlink_to(folder.parent / "outside")
    refused(folder, f"{name} is a symbolic link")


def test_a_symbolic_link_for_the_golden_folder(folder: Path) -> None:
    (folder / "golden").rename(folder.parent / "outside")
    (folder / "golden").symlink_to(folder.parent / "outside")
    refused(folder, "golden is a symbolic link")


def test_a_pipe_for_a_file_is_not_waited_for(folder: Path) -> None:
    (folder / "head.npz").unlink()
    os.mkfifo(folder / "head.npz")
    refused(folder, r"head\.npz is no plain file")


@pytest.mark.parametrize(
    "path",
    ["../outside", "/etc/passwd", "golden/../../outside", "C:\\x", "golden\\000.png", "./model.onnx", "", "a\0b"],
)
def test_a_path_that_leaves_the_folder(folder: Path, path: str) -> None:
    (folder.parent / "outside").write_bytes(b"x")
    change_json(folder, lambda content: content["files"].update({path: hashlib.sha256(b"x").hexdigest()}))
    refused(folder, r"bundle\.json")


def _npz(**arrays: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in arrays.items():
            # Without the time of day: the bytes are the tests' names, which two workers have to agree on.
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), data)
    return buffer.getvalue()


def _npy(array: np.ndarray, shape: str | None = None) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    data = buffer.getvalue()
    if shape is None:
        return data
    old = str(array.shape).encode()
    head, tail = data.split(old, 1)
    pad = len(shape) - len(old)
    return head + shape.encode() + tail.replace(b" " * pad + b"\n", b"\n", 1)


TERABYTE = "(1048576, 262144)"


def _head_npz(**changes: bytes) -> bytes:
    arrays = {name: _npy(array) for name, array in small.head().arrays().items()}
    return _npz(**{**arrays, **changes})


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (_head_npz(inner_kernel=_npy(np.zeros((8, 5), np.float32), TERABYTE)), "1099511627776 bytes that it claims"),
        (_head_npz(inner_bias=_npy(np.full(5, np.nan, np.float32))), "not finite"),
        (_head_npz(inner_bias=_npy(np.full(5, np.inf, np.float32))), "not finite"),
        (_head_npz(inner_bias=_npy(np.zeros(5))), "Received: <f8"),
        (_head_npz(inner_bias=_npy(np.array([{}] * 5, object))), "head"),
        (_head_npz(more=_npy(np.zeros(5, np.float32))), "must hold inner_kernel"),
        (_head_npz(inner_bias=_npy(np.zeros(6, np.float32))), "inner_bias must be"),
        (_head_npz(inner_bias=b"\x93NUMPY"), "inner_bias"),
        (b"PK\x03\x04", "must be an .npz file"),
        (pickle.dumps({"a": 1}), "must be an .npz file"),
        (small.head(classes=4).to_npz(), "3 classes"),
        (small.head(seed=9).to_npz(), r"model\.onnx must end in the head of head\.npz"),
    ],
)
def test_a_head_that_is_none(folder: Path, data: bytes, words: str) -> None:
    replace(folder, "head.npz", data)
    refused(folder, words)


def test_a_head_that_inflates(folder: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in small.head().arrays():
            archive.writestr(f"{name}.npy", _npy(np.zeros((1 << 20,), np.float32)))
    replace(folder, "head.npz", buffer.getvalue())
    refused(folder, r"head\.npz must be stored uncompressed")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (_npy(np.zeros((6, 3), np.float32), TERABYTE), "1099511627776 bytes that it claims"),
        (_npy(np.full((6, 3), np.nan, np.float32)), "finite numbers"),
        (_npy(np.zeros((5, 3), np.float32)), r"\(6, 3\). Received: \(5, 3\)"),
        (_npy(np.zeros((6, 4), np.float32)), r"\(6, 3\). Received: \(6, 4\)"),
        (_npy(np.zeros((6, 3))), "float32 in C order"),
        (_npy(np.zeros((0, 3), np.float32), f"(0, {10**30})"), "the shape of an array"),
        (_npy(np.array([{}], object)), "float32"),
        (b"no array", "must be a .npy file"),
        (b"", "must be a .npy file"),
    ],
)
def test_golden_logits_that_are_none(folder: Path, data: bytes, words: str) -> None:
    replace(folder, "golden/logits.npy", data)
    refused(folder, f"golden/logits.npy .*{words}")


def test_golden_labels_that_are_not_the_logits(folder: Path) -> None:
    logits = np.load(folder / "golden/logits.npy")
    replace(folder, "golden/logits.npy", _npy(np.ascontiguousarray(logits[::-1])))
    refused(folder, r"golden/index\.json: labels")


@pytest.mark.parametrize(
    "index",
    [
        b"[]",
        b"{}",
        b'{"classes": [], "pictures": []}',
        b'{"classes": ["dress", "hat", "shoes"], "pictures": [{"file": "../../x.png", "label": "hat"}]}',
        b'{"classes": ["dress", "hat", "shoes"], "pictures": [{"file": "000.png"}]}',
        b'{"classes": ["dress", "hat", "shoes"], "pictures": 5}',
        b"\xff\xfe",
    ],
)
def test_a_golden_index_that_is_none(folder: Path, index: bytes) -> None:
    replace(folder, "golden/index.json", index)
    refused(folder, r"golden/index\.json")


def test_a_terabyte_in_the_graph(folder: Path) -> None:
    model = onnx.load_model_from_string((folder / "model.onnx").read_bytes())
    next(t for t in model.graph.initializer if t.name == "kernel").dims[:] = [1 << 20, 1 << 18, 1, 1]
    replace(folder, "model.onnx", model.SerializeToString())
    refused(folder, r"model\.onnx: 'kernel' must hold the 274877906944 values that it claims")


def test_weights_that_are_not_numbers_in_the_graph(folder: Path) -> None:
    model = onnx.load_model_from_string((folder / "model.onnx").read_bytes())
    tensor = next(t for t in model.graph.initializer if t.name == "bias")
    tensor.raw_data = np.full(8, np.nan, np.float32).tobytes()
    replace(folder, "model.onnx", model.SerializeToString())
    refused(folder, r"model\.onnx: weights must be finite numbers")


def test_a_graph_larger_than_allowed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bundle_module._MAX_BYTES, "model.onnx", 1000)
    refused(folder, r"model\.onnx must have at most 1000 bytes")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("format", 2, "format 1 was expected. Received: 2"),
        ("format", "1", "which format"),
        ("format", True, "which format"),
        ("requires", {"rayml": ">=9.0", "opset": 17}, "requires rayml >=9.0"),
        ("requires", {"rayml": "anything", "opset": 17}, "requires.rayml"),
        ("requires", {"rayml": ">=0.1", "opset": 18}, "opset"),
        ("classes", ["dress", "hat"], "classes"),
        ("classes", ["dress", "hat", "shoes", "skirt"], "classes"),
        ("classes", ["hat", "dress", "shoes"], "classes must be those .* in that order"),
        ("classes", ["dress", "hat", 3], "classes"),
        ("classes", ["dress", "hat", ["shoes"]], "classes"),
        ("classes", "dress", "classes"),
        ("image_size", 224, "image size"),
        ("image_size", -1, "image_size"),
        ("temperature", -1, "temperature"),
        ("temperature", "hot", "temperature"),
        *(("temperature", value, "a number from 1e-6 to 1e6") for value in (0, 1e-310, 9e-7, 1.1e6)),
        ("head", {"size_inner": 50, "dropout": 0}, "50 inner units"),
        ("head", {"size_inner": 5}, "head must have the keys"),
        ("head", None, "head must have the keys"),
        ("training", [], "training must have the keys"),
        ("files", {}, "must name model.onnx"),
        ("files", [], "files must be"),
        ("metrics", 0.9, "metrics must be"),
        ("metrics", {"accuracy": 10**400}, "metrics must be"),
        ("metrics", {"per_class": [{"n": -(2**63)}]}, "metrics must be"),
        ("metrics", {"a": json.loads("[" * 450 + "]" * 450)}, "nested at most 32 deep"),
        ("name", "a/b", "name"),
        ("name", 7, "name"),
        ("version", 1.0, "version"),
        ("created", 0, "created"),
        ("more", 1, "must have the keys"),
    ],
)
def test_a_bundle_json_that_says_otherwise(folder: Path, key: str, value: object, words: str) -> None:
    change_json(folder, lambda content: content.update({key: value}))
    refused(folder, r"bundle\.json|head\.npz|model\.onnx|golden/")
    refused(folder, words)


@pytest.mark.parametrize("key", ["format", "classes", "files", "requires", "temperature"])
def test_a_bundle_json_without_a_key(folder: Path, key: str) -> None:
    change_json(folder, lambda content: content.pop(key))
    refused(folder, r"bundle\.json")


def _text(content: dict[str, Any], old: str, new: str) -> bytes:
    return json.dumps(content).replace(old, new, 1).encode()


@pytest.mark.parametrize(
    "change",
    [
        lambda content: _text(content, '"version": 1', '"version": 1, "version": 2'),
        lambda content: _text(content, '"temperature": 1.5', '"temperature": NaN'),
        lambda content: _text(content, '"temperature": 1.5', '"temperature": Infinity'),
        lambda content: _text(content, '"temperature": 1.5', '"temperature": 1e400'),
        lambda content: _text(content, '"version": 1', '"version": ' + "9" * 100_000),
        lambda content: _text(content, '"version": 1', '"version": ' + "[" * 100_000 + "]" * 100_000),
        lambda content: json.dumps(content).encode("utf-16"),
        lambda content: json.dumps(content).encode()[:-2],
        lambda content: json.dumps(content).encode() + b" " * (1 << 24),
        lambda content: b"",
        lambda content: b"[]",
        lambda content: b'"bundle"',
    ],
)
def test_a_bundle_json_that_is_not_strict_json(folder: Path, change: Callable[[dict[str, Any]], bytes]) -> None:
    content = json.loads((folder / "bundle.json").read_bytes())
    (folder / "bundle.json").write_bytes(change(content))
    refused(folder, r"bundle\.json")


@pytest.mark.parametrize("name", ["model.keras", "model.h5", "model.pkl", "bundle.zip"])
def test_another_kind_of_file_is_refused_unread(tmp_path: Path, name: str) -> None:
    class Harm:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path(tmp_path / "harm").touch, ())

    (tmp_path / name).write_bytes(pickle.dumps(Harm()))
    with pytest.raises(BundleError, match=f"Received: the file .*{name}") as caught:
        Bundle.open(tmp_path / name)
    assert "RUN/best" in caught.value.hint
    assert not (tmp_path / "harm").exists()


def test_a_folder_that_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").touch()
    with pytest.raises(BundleError, match=r"with bundle\.json in it") as caught:
        Bundle.open(tmp_path)
    assert "RUN/best" in caught.value.hint


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    refused(tmp_path / "nothing", "does not exist")


def test_a_link_that_leads_to_itself(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    refused(tmp_path / "loop", "expected a bundle's folder")


@pytest.mark.parametrize("name", ["bundle.json", "model.onnx", "head.npz", "golden/logits.npy", "golden/index.json"])
def test_flipped_bits_give_a_bundle_or_a_bundle_error(folder: Path, name: str) -> None:
    """200 random flips with the digests put right again: no other exception, no crash, and some are seen."""
    whole = (folder / name).read_bytes()
    random, refusals = np.random.default_rng(1), 0
    record = (folder / "bundle.json").read_bytes()
    for _ in range(200):
        data = bytearray(whole)
        data[random.integers(len(data))] ^= 1 << random.integers(8)
        (folder / "bundle.json").write_bytes(record)
        if name == "bundle.json":
            (folder / name).write_bytes(data)
        else:
            replace(folder, name, bytes(data))
        try:
            Bundle.open(folder)
        except BundleError:
            refusals += 1
    assert refusals > 20
