"""The sealed bundle: one folder that holds all of a classifier, the only thing that passes from training to serving.

    bundle.json            what it is, with the sha256 of every other file
    model.onnx             uint8 (N, H, W, 3) "images" -> float32 (N, C) "logits"
    head.npz               the head alone, the very numbers that the graph holds
    golden/*.png           pictures, golden/logits.npy: the logits that the training path gave for them,
    golden/index.json      in which order, and which class each one is: a server is ready when it reproduces them
    MODEL_CARD.md          for people

Nothing in it can run code: no pickle, no `.keras`, no `.h5`. Letters in comments: G golden pictures, C classes.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rayml import arrays, bundle_json, graph
from rayml.bundle_json import CARD, GOLDEN, GOLDEN_INDEX, GOLDEN_LOGITS, HEAD, MODEL, RECORD, Record, Training
from rayml.errors import BundleError
from rayml.head import HeadWeights

__all__ = ["Bundle", "Golden", "Record", "Training", "read_record"]

# More golden pictures make every start of a server slower and prove nothing more.
MAX_GOLDEN = 256
MAX_HEAD_BYTES = 1 << 30
_MAX_BYTES = {
    MODEL: graph.MAX_MODEL_BYTES,
    HEAD: MAX_HEAD_BYTES,
    CARD: 1 << 25,  # A row for each class in two tables, and its name up to four times.
    GOLDEN_INDEX: bundle_json.MAX_JSON_BYTES,
    GOLDEN_LOGITS: 1 << 24,
}
_MAX_PICTURE_BYTES = 20 << 20  # as images.ImageLimits
_MAX_ENTRIES = MAX_GOLDEN + 16
_HEAD_ARRAYS = ("inner_kernel", "inner_bias", "logits_kernel", "logits_bias")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Golden:
    """Pictures with the answers that the training path gave.

    Arguments:
        pictures: G encoded PNG files, 1 to `MAX_GOLDEN`.
        logits: float32 (G, C).
    """

    pictures: tuple[bytes, ...]
    logits: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Bundle:
    """A bundle on disk that was verified by `Bundle.open`.

    Arguments:
        path: its folder, absolute, links followed.
        digest: sha256 hex of `bundle.json`, which seals every other file.
        record: what `bundle.json` says.
        golden: pictures and the logits that must come out.
        precision: what its graph computes in, `float32` or `int8`.
    """

    path: Path
    digest: str
    record: Record
    golden: Golden = field(repr=False)
    precision: str = "float32"

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Verify every byte of a bundle; what is large, `read_model` and `read_head` read again when it is needed.

        Arguments:
            path: the bundle's folder, or a link to it.

        Raises:
            BundleError: a file is missing, added, changed or not what it has to be; the message names it.
        """
        return cls.open_with_model(path)[0]

    @classmethod
    def open_with_model(cls, path: str | Path) -> tuple[Bundle, bytes]:
        """As `open`, and the graph's bytes with it, for who needs them at once: they were read to be verified anyway.

        Arguments:
            path: the bundle's folder, or a link to it.

        Raises:
            BundleError: as `open`.
        """
        folder = Path(path)
        _refuse_other_kinds(folder)
        folder = folder.resolve()
        found = _list_files(folder)
        if RECORD not in found:
            raise BundleError(f"expected a bundle's folder with {RECORD} in it. Received: {folder}")
        data = _read(folder, RECORD, bundle_json.MAX_JSON_BYTES)
        record = Record.from_json(data)
        for name in sorted({*record.files, RECORD} ^ found):
            state = "is not there" if name in record.files else f"is there, and {RECORD} does not name it"
            raise BundleError(f"a bundle must hold what {RECORD} names. Received: {name} {state}")
        contents = {name: _sealed(folder, record, name) for name in record.files if name != MODEL}
        head = _read_head(record, contents[HEAD])
        golden = _read_golden(record, contents)
        model = _read(folder, MODEL, _MAX_BYTES[MODEL])
        with ThreadPoolExecutor(1) as other:  # Both take 0.1 s for Xception, and hashing leaves the interpreter alone.
            seal = other.submit(_check_seal, record, MODEL, model)
            try:
                info = _check_model(record, head, model)
            finally:
                seal.result()  # A broken seal is the first thing to say.
        digest = hashlib.sha256(data).hexdigest()
        _log.debug("bundle %s: digest %s, %d files as sealed", folder, digest, len(record.files))
        return cls(folder, digest, record, golden, info.precision), model

    def read_model(self) -> bytes:
        """The graph's bytes, verified again: the folder may have changed since.

        Raises:
            BundleError: it has.
        """
        return _sealed(self.path, self.record, MODEL)

    def read_head(self) -> HeadWeights:
        """The trained head, verified again.

        Raises:
            BundleError: the folder has changed.
        """
        return _read_head(self.record, _sealed(self.path, self.record, HEAD))


def read_record(path: str | Path) -> Record:
    """What a bundle says of itself; none of its files is verified.

    Arguments:
        path: the bundle's folder, or a link to it.

    Raises:
        BundleError: it is no bundle's folder, or `bundle.json` is damaged.
    """
    folder = Path(path)
    _refuse_other_kinds(folder)
    return Record.from_json(_read(folder, RECORD, bundle_json.MAX_JSON_BYTES))


def _refuse_other_kinds(path: Path) -> None:
    """A clear word to who offers a Keras file, a pickle, or any other thing that is no bundle."""
    hint = "give the folder that `rayml tune` wrote, RUN/best; Keras and pickle files can run code and are never loaded"
    if not path.exists():
        raise BundleError(f"expected a bundle's folder. Received: {path}, which does not exist")
    if not path.is_dir():
        raise BundleError(f"expected a bundle's folder. Received: the file {path}", hint)
    if not os.path.lexists(path / RECORD):
        raise BundleError(f"expected a bundle's folder with {RECORD} in it. Received: {path}", hint)


def _list_files(folder: Path) -> set[str]:
    """Every file's relative path; only plain files, and only in the folder itself and in golden/."""
    found: set[str] = set()
    for part in ("", GOLDEN):
        try:
            with os.scandir(folder / part) as entries:
                for entry in entries:
                    name = f"{part}/{entry.name}" if part else entry.name
                    mode = entry.stat(follow_symlinks=False).st_mode
                    if stat.S_ISDIR(mode) and name == GOLDEN:
                        continue
                    if not stat.S_ISREG(mode):
                        kind = "a symbolic link" if stat.S_ISLNK(mode) else "no plain file"
                        raise BundleError(f"a bundle must hold plain files only. Received: {name} is {kind}")
                    found.add(name)
                    if len(found) > _MAX_ENTRIES:
                        raise BundleError(f"a bundle must hold at most {_MAX_ENTRIES} files. Received: more")
        except (FileNotFoundError, NotADirectoryError):
            continue  # Then its files are missing, which the caller says by name.
        except OSError as error:
            raise BundleError(f"{folder / part} must be readable. Received: {error.strerror}") from None
    return found


def _read(folder: Path, name: str, max_bytes: int) -> bytes:
    """A plain file's bytes, never through a link and never more than `max_bytes`."""
    try:
        descriptor = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > max_bytes:
                raise BundleError(f"{name} must have at most {max_bytes} bytes. Received: {size}")
            return file.read(size + 1)  # One more than it has, so that a file that grows does not pass.
    except OSError as error:
        raise BundleError(f"{name} must be readable. Received: {error.strerror}") from None


def _sealed(folder: Path, record: Record, name: str) -> bytes:
    """A file's bytes, if they are the ones that bundle.json was written for."""
    data = _read(folder, name, _MAX_BYTES.get(name, _MAX_PICTURE_BYTES))
    _check_seal(record, name, data)
    return data


def _check_seal(record: Record, name: str, data: bytes) -> None:
    digest = hashlib.sha256(data).hexdigest()
    if digest != record.files[name]:
        raise BundleError(f"{name} must have sha256 {record.files[name]}. Received: {digest}")


def _read_head(record: Record, data: bytes) -> HeadWeights:
    arrays.check_npz(data, HEAD, _HEAD_ARRAYS)
    head = HeadWeights.from_npz(data)
    if (head.size_inner, head.classes) != (record.size_inner, len(record.classes)):
        raise BundleError(
            f"{HEAD} must have {record.size_inner} inner units and {len(record.classes)} classes, as {RECORD} says. "
            f"Received: {head.size_inner} and {head.classes}"
        )
    return head


def _read_golden(record: Record, contents: Mapping[str, bytes]) -> Golden:
    """The golden pictures in their order, with logits that fit the classes in number and order."""
    index = bundle_json.strict_json(contents[GOLDEN_INDEX], GOLDEN_INDEX)
    rows = index.get("pictures") if isinstance(index, dict) else None
    fits = isinstance(rows, list) and all(
        isinstance(row, dict) and set(row) == {"file", "label"} and all(isinstance(v, str) for v in row.values())
        for row in rows
    )
    if not fits or set(index) != {"classes", "pictures"} or not rows:
        raise BundleError(f"{GOLDEN_INDEX} must list classes, and pictures with file and label. Received: it does not")
    if index["classes"] != list(record.classes):
        raise BundleError(
            f"{RECORD}: classes must be those that {GOLDEN_INDEX} was written with, in that order. "
            f"Received: {list(record.classes)[:20]}"
        )
    names = [f"{GOLDEN}/{row['file']}" for row in rows]
    listed = sorted(name for name in contents if name.endswith(".png"))
    if sorted(names) != listed or len(names) > MAX_GOLDEN:
        raise BundleError(f"{GOLDEN_INDEX} must list each golden picture once. Received: {names[:5]}")
    logits = arrays.read_npy(contents[GOLDEN_LOGITS], GOLDEN_LOGITS)
    if logits.shape != (len(names), len(record.classes)) or not np.isfinite(logits).all():
        raise BundleError(
            f"{GOLDEN_LOGITS} must hold finite numbers, {(len(names), len(record.classes))}. Received: {logits.shape}"
        )
    labels = [record.classes[int(best)] for best in logits.argmax(axis=1)]
    if labels != [row["label"] for row in rows]:
        raise BundleError(f"{GOLDEN_INDEX}: labels must be the highest of {GOLDEN_LOGITS}. Received: others")
    return Golden(tuple(contents[name] for name in names), logits)


def _check_model(record: Record, head: HeadWeights, model: bytes) -> graph.GraphInfo:
    """The graph must be safe, and the one that the other files speak of."""
    try:
        info = graph.check_graph(model)
    except BundleError as error:
        raise BundleError(f"{MODEL}: {error.message}", error.hint) from None
    expected = (record.image_size_px, len(record.classes), record.opset)
    if (info.image_size_px, info.outputs, info.opset) != expected:
        raise BundleError(
            f"{MODEL} must have image size, classes and opset {expected}, as {RECORD} says. "
            f"Received: {(info.image_size_px, info.outputs, info.opset)}"
        )
    same = info.head is not None and all(
        np.array_equal(array, info.head.arrays()[name]) for name, array in head.arrays().items()
    )
    if not same:
        raise BundleError(f"{MODEL} must end in the head of {HEAD}. Received: another")
    return info
