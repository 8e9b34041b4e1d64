"""A classifier small enough to be worked out in NumPy, and bundles of it."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from rayml.bundle import Golden, Training
from rayml.bundle_writer import BundleContents
from rayml.graph import attach_head
from rayml.head import HeadWeights
from rayml.images import load_pixels, preprocessing_id

SIZE_PX, FEATURES, INNER = 24, 8, 5
CLASSES = ("dress", "hat", "shoes")
_RANDOM = np.random.default_rng(7)
KERNEL = _RANDOM.normal(size=(FEATURES, 3)).astype(np.float32)
BIAS = _RANDOM.normal(size=FEATURES).astype(np.float32)


def head(features: int = FEATURES, classes: int = len(CLASSES), seed: int = 1) -> HeadWeights:
    random = np.random.default_rng(seed)
    shapes = ((features, INNER), (INNER,), (INNER, classes), (classes,))
    return HeadWeights(*(random.normal(size=shape, scale=2).astype(np.float32) for shape in shapes))


def backbone(opset: int = 17) -> onnx.ModelProto:
    """uint8 -> x / 127.5 - 1 -> 1x1 convolution -> relu -> mean over the picture."""
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "scale"], ["scaled"]),
        helper.make_node("Sub", ["scaled", "one"], ["centred"]),
        helper.make_node("Transpose", ["centred"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "kernel", "bias"], ["convolved"]),
        helper.make_node("Relu", ["convolved"], ["relu"]),
        helper.make_node("ReduceMean", ["relu"], ["features"], axes=[2, 3], keepdims=0),
    ]
    weights = {
        "scale": np.float32(1 / 127.5).reshape(()),
        "one": np.float32(1).reshape(()),
        "kernel": KERNEL.reshape(FEATURES, 3, 1, 1),
        "bias": BIAS,
    }
    graph = helper.make_graph(
        nodes,
        "backbone",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", SIZE_PX, SIZE_PX, 3])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", FEATURES])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def features_of(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What `backbone` gives, in NumPy."""
    pixels = images.astype(np.float64) / 127.5 - 1
    return np.maximum(pixels @ KERNEL.T + BIAS, 0).mean(axis=(1, 2)).astype(np.float32)


def pictures(count: int, seed: int = 3, size_px: int = SIZE_PX) -> NDArray[np.uint8]:
    """uint8 (count, size, size, 3): a background and a bar of another colour, each picture its own."""
    random = np.random.default_rng(seed)
    drawn = np.empty((count, size_px, size_px, 3), np.uint8)
    for picture in drawn:
        picture[:] = random.integers(0, 256, 3)
        start, stop = np.sort(random.integers(0, size_px, 2))
        picture[start : stop + 1, start:] = random.integers(0, 256, 3)
    return drawn


def png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def contents(**changes: Any) -> BundleContents:
    weights = head()
    drawn = tuple(png(pixels) for pixels in pictures(6))
    pixels = np.stack([load_pixels(data, SIZE_PX) for data in drawn])
    training = Training(learning_rate=0.01, epochs=3, seed=1, data_digest="d" * 64, mode="features")
    per_class = {name: {"precision": 0.5, "recall": 0.25, "n": 4} for name in CLASSES}
    made = BundleContents(
        name="garments",
        classes=CLASSES,
        preprocessing=preprocessing_id(SIZE_PX),
        image_size_px=SIZE_PX,
        backbone_name="small",
        weights_sha256="a" * 64,
        dropout=0.0,
        training=training,
        metrics={"accuracy": 0.75, "loss": 0.5, "n": 12, "per_class": per_class},
        temperature=1.5,
        model=attach_head(backbone().SerializeToString(), weights),
        head=weights,
        golden=Golden(drawn, weights.logits(features_of(pixels))),
    )
    return dataclasses.replace(made, **changes)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
