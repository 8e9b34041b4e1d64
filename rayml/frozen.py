"""A backbone frozen to disk: its ONNX graph, and pictures with the features that Keras itself gave for them.

Made once for each (architecture, weights, image size, precision) and kept in the cache; the feature pass, the search
and the bundle all use these very bytes. The pictures become a bundle's golden images. In int8 (`rayml.quantize`) the
features are those that the graph itself gave, once they were found to be near Keras' own.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rayml.backbones import ONNX_OPSET, BackboneSpec, file_sha256
from rayml.durable import sync_folder, write_durably
from rayml.engines.base import import_package
from rayml.errors import RaymlError, UsageError, first_line
from rayml.images import preprocessing_id, stack_pixels
from rayml.storage import open_store

if TYPE_CHECKING:
    import keras

FREEZE_VERSION = 3  # Raise when the graph that the same spec gives changes, or what lies beside it.
GOLDEN_PICTURE_SIZE_PX = 160  # Not a size that any backbone looks at, so that resizing is part of what they check.
GOLDEN_SEED = 7  # The default sample and the training of tiny draw with far larger seeds.
_GRAPH, _RECORD = "backbone.onnx", "backbone.json"
_GOLDEN, _FEATURES = "golden", "features.npy"
# How far features may be from those they should be, as `difference` has it. Float32 engines differ by about 1e-5, and a
# wrong graph by far more. In int8 the backbones that were tried are 0.02 to 0.14 from Keras, engines 0.02 to 0.12 from
# each other; a processor that adds products of 8 bits in 16 (AVX2, AVX-512 without VNNI) is 0.35 and more from both.
TOLERANCES = {"float32": 1e-3, "int8": 0.25}


def default_cache() -> Path:
    """Where frozen backbones and features are kept: $RAYML_CACHE, else $XDG_CACHE_HOME/rayml, else ~/.cache/rayml.

    Raises:
        UsageError: none of the variables is set, and this user has no home folder.
    """
    if path := os.environ.get("RAYML_CACHE"):
        return Path(path)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rayml"
    except RuntimeError:  # As in a container that runs under a number which /etc/passwd does not have.
        raise UsageError(
            "the cache needs a folder. Received: a user without a home folder", "Set RAYML_CACHE to a folder."
        ) from None


@dataclass(frozen=True)
class FrozenBackbone:
    """What lies in a frozen backbone's folder.

    Arguments:
        folder: holds `backbone.onnx`, `backbone.json`, `golden/*.png`, `golden/features.npy`.
        name, image_size_px: as in `BackboneSpec`.
        weights_sha256: see `rayml.backbones.weights_sha256`.
        graph_sha256: of `backbone.onnx`.
        golden_sha256: of the files in `golden/`, as `_golden_sha256` has it.
        features: D, the length of a feature vector.
        precision: as in `BackboneSpec`.
    """

    folder: Path
    name: str
    image_size_px: int
    weights_sha256: str
    graph_sha256: str
    golden_sha256: str
    features: int
    precision: str = "float32"

    @property
    def preprocessing(self) -> str:
        """What happens to an encoded picture before the graph, as `rayml.images` names it."""
        return preprocessing_id(self.image_size_px)

    def graph(self) -> bytes:
        """The ONNX file's bytes: `images` uint8 (N, H, W, 3) -> `features` float32 (N, D)."""
        return (self.folder / _GRAPH).read_bytes()

    def golden(self) -> tuple[dict[str, bytes], NDArray[np.float32]]:
        """G pictures by file name, in its order, as PNG bytes, and the features that belong to them, float32 (G, D)."""
        pictures = {path.name: path.read_bytes() for path in sorted((self.folder / _GOLDEN).glob("*.png"))}
        return pictures, np.load(self.folder / _GOLDEN / _FEATURES, allow_pickle=False)


def frozen_folder(spec: BackboneSpec, cache: Path) -> Path:
    """Where the cache keeps a backbone: named by everything that decides its graph. Reads the weights file once.

    Raises:
        MissingPackage: int8 needs ONNX Runtime, which is not installed.
    """
    identity = {
        "freeze": FREEZE_VERSION,
        "backbone": spec.name,
        "weights": file_sha256(spec.weights_file) if spec.weights_file else spec.weights,
        "image_size": spec.image_size_px,
        "opset": ONNX_OPSET,
        **{package: version(package) for package in ("keras", "tf2onnx", "rayml")},
    }
    name = f"{spec.name}-{spec.image_size_px}"
    if spec.precision != "float32":
        identity |= {"precision": spec.precision, "onnxruntime": import_package("onnxruntime").__version__}
        name += f"-{spec.precision}"
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return cache / "backbones" / f"{name}-{key[:16]}"


def load_frozen(folder: Path) -> FrozenBackbone | None:
    """Open a frozen backbone, or None if there is none, or not a whole one."""
    try:
        described = json.loads((folder / _RECORD).read_text())
        frozen = FrozenBackbone(folder=folder, **described)
        whole = file_sha256(folder / _GRAPH) == frozen.graph_sha256
        return frozen if whole and _golden_sha256(folder) == frozen.golden_sha256 else None
    except (OSError, ValueError, TypeError):
        return None


def _golden_sha256(folder: Path) -> str:
    """The sha256 of the list of golden pictures and features, a line `NAME SHA256` for each."""
    files = sorted((folder / _GOLDEN).iterdir())
    return hashlib.sha256("".join(f"{path.name} {file_sha256(path)}\n" for path in files).encode()).hexdigest()


def find_frozen(spec: BackboneSpec, cache: Path, storage: str | None = None) -> FrozenBackbone | None:
    """A backbone that this machine, or another one that shares the storage, has frozen; None if none has.

    Arguments:
        storage: as `rayml.storage.check_storage` gave it; from a bucket the files are copied into the cache.

    Raises:
        RaymlError: the storage cannot be read, or there is no room for the copy.
    """
    folder = frozen_folder(spec, cache)
    if (found := load_frozen(folder)) or storage is None:
        return found
    shared = open_store(storage, f"backbones/{folder.name}", cache)
    for name, size in shared.sizes().items():
        shared.local(name, size)
    return load_frozen(shared.folder)


def share_frozen(frozen: FrozenBackbone, cache: Path, storage: str) -> None:
    """Put a frozen backbone where the machines that share the storage find it, unless it is there.

    Raises:
        RaymlError: the storage is full, read-only or cannot be reached.
    """
    shared = open_store(storage, f"backbones/{frozen.folder.name}", cache)
    if _RECORD in shared.sizes():
        return
    files = sorted(path for path in frozen.folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    # The record comes last: without it nothing is there.
    for path in sorted(files, key=lambda path: path.name == _RECORD):
        shared.put(path.relative_to(frozen.folder).as_posix(), [path.read_bytes()])


def freeze(spec: BackboneSpec, cache: Path) -> FrozenBackbone:
    """Build the backbone in Keras, write its graph and golden features into the cache, and check it on an engine.

    Loads TensorFlow. Two processes may freeze the same backbone: the first to finish wins. One in int8 is made from the
    one in float32, which is frozen beside it.

    Raises:
        WeightsError: as `rayml.backbones.build_base`.
        MissingPackage: int8 needs ONNX Runtime, which is not installed.
        RaymlError: the engine does not reproduce Keras' features, int8 loses too much of them or cannot be made, or the
            cache cannot be written.
    """
    from rayml.backbones import build_base, weights_sha256

    if spec.precision == "int8":
        plain = replace(spec, precision="float32")
        exact = load_frozen(frozen_folder(plain, cache)) or freeze(plain, cache)
        return _freeze_int8(exact, frozen_folder(spec, cache))
    base = build_base(spec)
    return _freeze(spec, base, weights_sha256(spec, base), frozen_folder(spec, cache))


def freeze_tuned(spec: BackboneSpec, tuned: Mapping[int, NDArray[np.float32]], folder: Path) -> FrozenBackbone:
    """The same with a backbone whose top has been trained further.

    Arguments:
        tuned: the weights that are other than those of `spec`, by their place in the variables of `build_base(spec)`.
        folder: where it is written, as `freeze` writes into the cache.

    Raises:
        WeightsError: as `rayml.backbones.build_base`.
        RaymlError: the engine does not reproduce Keras' features, or the folder cannot be written.
        ValueError: weights of another backbone.
    """
    from rayml.backbones import arrays_sha256, build_base

    base = build_base(spec)
    for place, array in tuned.items():
        base.variables[place].assign(array)
    return _freeze(spec, base, arrays_sha256(base), folder)


def _freeze(spec: BackboneSpec, base: keras.Model, weights_sha256: str, folder: Path) -> FrozenBackbone:
    from rayml.backbones import feature_model
    from rayml.clothing import CLASSES
    from rayml.engines import load_engine
    from rayml.export import to_onnx
    from rayml.sample import draw

    model = feature_model(spec, base)
    pictures: dict[str, bytes] = {}
    for label in sorted(CLASSES):
        buffer = io.BytesIO()
        draw(label, GOLDEN_SEED, size_px=GOLDEN_PICTURE_SIZE_PX).save(buffer, "PNG")
        pictures[f"{label}.png"] = buffer.getvalue()
    pixels = stack_pixels(pictures.values(), spec.image_size_px)
    expected = np.asarray(model(pixels, training=False), np.float32)  # (G, D)
    graph = to_onnx(model)
    engine = load_engine(graph)
    far, most = difference(engine(pixels), expected), TOLERANCES["float32"]
    if not far <= most:
        raise RaymlError(
            f"{engine.name} does not reproduce the features of {spec.name}: expected a difference of at most "
            f"{most:g} of the largest feature, {np.abs(expected).max():g}. Received: {far:g}",
            "Please report this with the versions of keras, tf2onnx and the engine.",
        )
    described = {
        "name": spec.name,
        "image_size_px": spec.image_size_px,
        "weights_sha256": weights_sha256,
        "graph_sha256": hashlib.sha256(graph).hexdigest(),
        "features": int(expected.shape[1]),
    }
    return _write(folder, described, graph, pictures, expected)


def _freeze_int8(exact: FrozenBackbone, folder: Path) -> FrozenBackbone:
    """Quantize a frozen backbone, if what it says of the pictures stays nearly the same on this machine."""
    from rayml.engines import load_engine
    from rayml.quantize import calibration_pixels, to_int8

    pictures, expected = exact.golden()
    try:
        graph = to_int8(exact.graph(), calibration_pixels(exact.image_size_px))
    except RaymlError:
        raise
    except Exception as error:  # ONNX Runtime's share no base class below it.
        raise RaymlError(
            f"{exact.name} must be quantized to int8. Received: {first_line(error)}",
            "Is there room in the temporary folder (TMPDIR)? Otherwise leave --precision int8 out.",
        ) from None
    engine = load_engine(graph)
    pixels = stack_pixels(pictures.values(), exact.image_size_px)
    features = engine(pixels)  # (G, D)
    far, most = difference(features, expected, "int8"), TOLERANCES["int8"]
    if not far <= most:
        raise RaymlError(
            f"{exact.name} loses too much in int8 on this processor: expected an error of its features of at most "
            f"{most:g} of what tells pictures apart. Received: {far:.2g}, by {engine.name}",
            "Leave --precision int8 out, or use a processor with VNNI or AMX, whose 8-bit products do not overflow.",
        )
    described = {
        "name": exact.name,
        "image_size_px": exact.image_size_px,
        "weights_sha256": exact.weights_sha256,
        "graph_sha256": hashlib.sha256(graph).hexdigest(),
        "features": exact.features,
        "precision": "int8",
    }
    return _write(folder, described, graph, pictures, features)


def difference(features: NDArray[np.float32], expected: NDArray[np.float32], precision: str = "float32") -> float:
    """How far features are from what they should be, to be held against `TOLERANCES`; NaN where they hold one.

    In float32 the largest difference as a share of the largest feature. In int8, where rounding is spread over all of
    them and the largest one says little, the root mean square of the differences as a share of the features' standard
    deviation over the pictures, which is what tells these apart.

    Arguments:
        features: float32 (G, D), of G >= 2 pictures.
        expected: the same shape.
        precision: one of `rayml.backbones.PRECISIONS`.
    """
    apart = np.abs(features - expected)
    if precision == "float32":
        return float(apart.max() / max(np.abs(expected).max(), np.finfo(np.float32).tiny))
    return float(np.sqrt(np.mean(apart**2) / max(expected.var(axis=0).mean(), np.finfo(np.float32).tiny)))


def _write(
    folder: Path,
    described: Mapping[str, object],
    graph: bytes,
    pictures: Mapping[str, bytes],
    expected: NDArray[np.float32],
) -> FrozenBackbone:
    features = io.BytesIO()
    np.save(features, expected)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Not `tempfile.mkdtemp`: its folders are for their owner alone, and a cache may be for several users.
        draft = folder.with_name(f".{folder.name}-{secrets.token_hex(8)}")
        draft.mkdir()
        try:
            (draft / _GOLDEN).mkdir()
            for name, data in {**pictures, _FEATURES: features.getvalue()}.items():
                write_durably(draft / _GOLDEN / name, data)
            write_durably(draft / _GRAPH, graph)
            record = {**described, "golden_sha256": _golden_sha256(draft)}
            write_durably(draft / _RECORD, json.dumps(record, indent=1).encode())
            sync_folder(draft / _GOLDEN)
            sync_folder(draft)
            if load_frozen(folder) is None:
                shutil.rmtree(folder, ignore_errors=True)
                draft.rename(folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        raise RaymlError(
            f"{folder.parent} must be writable. Received: {error.strerror or error}",
            "Free some space, or name another folder: --cache (or RAYML_CACHE), or --out for what lies in RUN.",
        ) from None
    frozen = load_frozen(folder)
    if frozen is None:
        raise RaymlError(f"the frozen backbone could not be read back from {folder}", "Is the disk full?")
    return frozen
