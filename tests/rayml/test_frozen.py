from __future__ import annotations

import dataclasses
import json
import os
import pwd
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayml.backbones import backbone_spec, build_base, feature_model, file_sha256
from rayml.clothing import CLASSES
from rayml.engines import load_engine
from rayml.errors import RaymlError, UsageError
from rayml.frozen import (
    TOLERANCES,
    FrozenBackbone,
    default_cache,
    difference,
    find_frozen,
    freeze,
    freeze_tuned,
    frozen_folder,
    load_frozen,
    share_frozen,
)
from rayml.images import preprocessing_id, stack_pixels

SPEC = backbone_spec("tiny")


@pytest.fixture
def frozen(tmp_path: Path) -> FrozenBackbone:
    return freeze(SPEC, tmp_path)


def test_what_is_frozen(frozen: FrozenBackbone, tmp_path: Path) -> None:
    assert (frozen.name, frozen.image_size_px, frozen.features) == ("tiny", 64, 160)
    assert frozen.preprocessing == preprocessing_id(64)
    assert frozen.graph_sha256 == file_sha256(frozen.folder / "backbone.onnx")
    assert frozen.folder == frozen_folder(SPEC, tmp_path)
    assert load_frozen(frozen.folder) == frozen
    assert [path.name for path in (tmp_path / "backbones").iterdir()] == [frozen.folder.name]  # no draft is left
    (tmp_path / "any").mkdir()
    assert frozen.folder.stat().st_mode == (tmp_path / "any").stat().st_mode  # Other users of the cache can use it.


def test_golden_features_are_kerass_own(frozen: FrozenBackbone) -> None:
    pictures, features = frozen.golden()
    assert sorted(pictures) == [f"{label}.png" for label in CLASSES]
    pixels = stack_pixels(pictures.values(), 64)
    np.testing.assert_array_equal(features, np.asarray(feature_model(SPEC)(pixels, training=False)))
    by_engine = load_engine(frozen.graph(), threads=2)(pixels)
    np.testing.assert_allclose(by_engine, features, rtol=0, atol=1e-5 * np.abs(features).max())


def test_a_backbone_whose_top_was_trained_further(frozen: FrozenBackbone, tmp_path: Path) -> None:
    base = build_base(SPEC)
    place = next(i for i, v in enumerate(base.variables) if v.path == "block7_pointwise/bias")
    changed = np.asarray(base.variables[place]) + np.float32(0.5)
    tuned = freeze_tuned(SPEC, {place: changed}, tmp_path / "run" / "tuned")
    assert tuned.folder == tmp_path / "run" / "tuned"
    assert tuned.graph_sha256 != frozen.graph_sha256 and tuned.weights_sha256 != frozen.weights_sha256
    base.variables[place].assign(changed)
    pictures, features = tuned.golden()
    pixels = stack_pixels(pictures.values(), 64)
    np.testing.assert_array_equal(features, np.asarray(feature_model(SPEC, base)(pixels, training=False)))
    assert not np.allclose(features, frozen.golden()[1])
    # Nothing changed is the backbone itself, whatever it was frozen by.
    same = freeze_tuned(SPEC, {place: changed - np.float32(0.5)}, tmp_path / "same")
    assert (same.graph_sha256, same.weights_sha256) == (frozen.graph_sha256, frozen.weights_sha256)


def test_a_backbone_in_int8_is_made_from_the_one_in_float32(frozen: FrozenBackbone, tmp_path: Path) -> None:
    spec = backbone_spec("tiny", precision="int8")
    made = freeze(spec, tmp_path)
    assert made.folder == frozen_folder(spec, tmp_path) and "-int8-" in made.folder.name
    assert load_frozen(made.folder) == find_frozen(spec, tmp_path) == made
    assert (made.precision, frozen.precision) == ("int8", "float32")
    assert made.weights_sha256 == frozen.weights_sha256 and made.graph_sha256 != frozen.graph_sha256
    assert freeze(SPEC, tmp_path) == frozen  # Found there, as it was.
    pictures, features = made.golden()
    exact_pictures, exact = frozen.golden()
    assert pictures == exact_pictures
    pixels = stack_pixels(pictures.values(), 64)
    np.testing.assert_allclose(load_engine(made.graph(), threads=1)(pixels), features, rtol=0, atol=1e-5)
    assert 1e-3 < difference(features, exact, "int8") < TOLERANCES["int8"]
    # With nothing there, both are made.
    assert freeze(spec, tmp_path / "other").graph_sha256 == made.graph_sha256
    assert load_frozen(frozen_folder(SPEC, tmp_path / "other")) is not None


def test_what_int8_loses_too_much_of_is_refused(
    frozen: FrozenBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    black = np.zeros((4, 64, 64, 3), np.uint8)  # The range of values that it shows fits no other picture.
    monkeypatch.setattr("rayml.quantize.calibration_pixels", lambda _: black)
    with pytest.raises(RaymlError, match=r"tiny loses too much in int8 .* at most 0\.25 .* Received: ") as caught:
        freeze(backbone_spec("tiny", precision="int8"), tmp_path)
    assert "--precision int8" in caught.value.hint
    assert [path.name for path in (tmp_path / "backbones").iterdir()] == [frozen.folder.name]


def test_what_cannot_be_quantized_is_said(
    frozen: FrozenBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = np.zeros((4, 32, 32, 3), np.uint8)  # ONNX Runtime refuses them with an error of its own.
    monkeypatch.setattr("rayml.quantize.calibration_pixels", lambda _: small)
    with pytest.raises(RaymlError, match=r"tiny must be quantized to int8\. Received: .") as caught:
        freeze(backbone_spec("tiny", precision="int8"), tmp_path)
    assert "TMPDIR" in caught.value.hint and "\n" not in caught.value.message
    assert [path.name for path in (tmp_path / "backbones").iterdir()] == [frozen.folder.name]


def test_the_difference_of_features() -> None:
    expected = np.array([[0, 4], [2, 0]], np.float32)
    assert difference(expected, expected) == difference(expected, expected, "int8") == 0
    assert difference(expected + np.float32([[0, 1], [0, 0]]), expected) == 0.25  # Of the largest feature.
    # Variances of 1 and 4 over the pictures, and a mean square difference of 1 / 4.
    assert difference(expected + np.float32([[0, 1], [0, 0]]), expected, "int8") == pytest.approx((0.25 / 2.5) ** 0.5)
    broken = np.full_like(expected, np.nan)
    assert not difference(broken, expected) <= 1 and not difference(broken, expected, "int8") <= 1


def test_whatever_decides_the_graph_names_the_folder(tmp_path: Path) -> None:
    weights = tmp_path / "some.weights.h5"
    weights.write_bytes(b"\x89HDF\r\n\x1a\none")
    folders = [
        frozen_folder(backbone_spec(*arguments), tmp_path)
        for arguments in (
            ("tiny", None, 64),
            ("tiny", None, 65),
            ("mobilenet_v2", "none", 96),
            ("mobilenet_v2", "imagenet", 96),
            ("mobilenet_v2", str(weights), 96),
            ("tiny", None, 64, "int8"),
        )
    ]
    weights.write_bytes(b"\x89HDF\r\n\x1a\ntwo")
    folders.append(frozen_folder(backbone_spec("mobilenet_v2", str(weights), 96), tmp_path))
    assert len(set(folders)) == 7
    # Its content, not its place.
    moved = weights.rename(tmp_path / "other.weights.h5")
    assert frozen_folder(backbone_spec("mobilenet_v2", str(moved), 96), tmp_path) == folders[-1]


def change(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, Any] = {
    "graph changed": lambda folder: change(folder / "backbone.onnx"),
    "graph missing": lambda folder: (folder / "backbone.onnx").unlink(),
    "record missing": lambda folder: (folder / "backbone.json").unlink(),
    "record cut": lambda folder: (folder / "backbone.json").write_text('{"name": '),
    "record of another kind": lambda folder: (folder / "backbone.json").write_text("[]"),
    "record with other fields": lambda folder: (folder / "backbone.json").write_text('{"name": "tiny"}'),
    "record empty": lambda folder: (folder / "backbone.json").write_bytes(b""),
    "picture missing": lambda folder: (folder / "golden" / "hat.png").unlink(),
    "features missing": lambda folder: (folder / "golden" / "features.npy").unlink(),
    "features empty": lambda folder: (folder / "golden" / "features.npy").write_bytes(b""),
    "features cut": lambda folder: (folder / "golden" / "features.npy").write_bytes(b"\x93NUMPY\x01\x00v"),
    "features changed": lambda folder: change(folder / "golden" / "features.npy"),
    "features an archive": lambda folder: (folder / "golden" / "features.npy").write_bytes(b"PK\x03\x04"),
    "picture empty": lambda folder: (folder / "golden" / "hat.png").write_bytes(b""),
    "picture renamed": lambda folder: (folder / "golden" / "hat.png").rename(folder / "golden" / "head.png"),
}


def test_a_damaged_entry_counts_as_none_and_is_made_again(tmp_path: Path) -> None:
    whole = freeze(SPEC, tmp_path)
    files = {path: path.read_bytes() for path in whole.folder.rglob("*") if path.is_file()}
    for name, damage in DAMAGES.items():
        (whole.folder / "golden" / "head.png").unlink(missing_ok=True)
        for path, data in files.items():
            path.write_bytes(data)
        assert load_frozen(whole.folder) == whole
        damage(whole.folder)
        assert load_frozen(whole.folder) is None, name
    again = freeze(SPEC, tmp_path)
    assert load_frozen(whole.folder) == again
    assert again == whole
    assert {path: path.read_bytes() for path in files} == files


def test_two_processes_may_freeze_at_once(tmp_path: Path) -> None:
    """Their sets come in different orders, as on two machines; the bytes are the same."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom rayml.backbones import backbone_spec\n"
        "from rayml.frozen import freeze\nprint(freeze(backbone_spec('tiny'), Path(sys.argv[1])).graph_sha256)"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
        for seed in ("1", "2")
    ]
    said = [process.communicate(timeout=300)[0].strip().splitlines()[-1] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert said[0] == said[1]
    (folder,) = (tmp_path / "backbones").iterdir()
    kept = load_frozen(folder)
    assert kept is not None
    assert kept.graph_sha256 == said[0]


@pytest.mark.parametrize("kind", ["folder", "bucket"])
def test_machines_share_what_one_froze(
    kind: str, frozen: FrozenBackbone, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    storage = str(tmp_path / "shared") if kind == "folder" else str(request.getfixturevalue("s3"))
    elsewhere = tmp_path / "elsewhere"
    assert find_frozen(SPEC, elsewhere) is None
    assert find_frozen(SPEC, elsewhere, storage) is None
    share_frozen(frozen, tmp_path, storage)
    share_frozen(frozen, tmp_path, storage)
    found = find_frozen(SPEC, elsewhere, storage)
    assert found is not None
    assert found == dataclasses.replace(frozen, folder=found.folder)
    assert found.golden()[0] == frozen.golden()[0]
    if kind == "bucket":
        change(found.folder / "backbone.onnx")  # A copy that is damaged is none.
        assert find_frozen(SPEC, elsewhere, storage) is None
        assert freeze(SPEC, elsewhere) == found


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "backbones").write_text("a file where the folder should be")
    with pytest.raises(RaymlError, match="must be writable") as caught:
        freeze(SPEC, tmp_path)
    assert "--cache" in caught.value.hint


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAYML_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "rayml"
    monkeypatch.setenv("RAYML_CACHE", str(tmp_path / "mine"))
    assert default_cache() == tmp_path / "mine"
    monkeypatch.delenv("RAYML_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache() == Path(os.environ["HOME"]) / ".cache" / "rayml"
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)  # As /etc/passwd of a container that knows root alone.
    with pytest.raises(UsageError, match="Received: a user without a home folder") as raised:
        default_cache()
    assert "RAYML_CACHE" in raised.value.hint


def test_opening_a_frozen_backbone_loads_no_tensorflow(frozen: FrozenBackbone) -> None:
    code = (
        "import sys, json\nfrom pathlib import Path\nfrom rayml.frozen import load_frozen\n"
        "from rayml.features import FeatureBank\nfrozen = load_frozen(Path(sys.argv[1]))\n"
        "FeatureBank.of(frozen, Path(sys.argv[1]))\n"
        "print(json.dumps([frozen.features, sorted({'tensorflow', 'keras', 'onnx'} & set(sys.modules))]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(frozen.folder)], capture_output=True, text=True, check=True, timeout=60
    )
    assert json.loads(done.stdout) == [160, []]
