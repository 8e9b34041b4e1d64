"""A bundle that takes next to no time: its backbone is the mean colour, its classes are the three primaries."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from rayml.bundle import Golden, Training
from rayml.bundle_writer import BundleContents, write_bundle
from rayml.graph import attach_head
from rayml.head import HeadWeights
from rayml.images import load_pixels, preprocessing_id

CLASSES = ("blue", "green", "red")
IMAGE_SIZE_PX = 32


def picture(label: str, width_px: int = 40, height_px: int = 30) -> bytes:
    """A PNG of one colour with a little of the others: `label` is its class."""
    colour = {"red": (220, 30, 20), "green": (10, 200, 40), "blue": (15, 25, 230)}[label]
    encoded = io.BytesIO()
    Image.new("RGB", (width_px, height_px), colour).save(encoded, "PNG")
    return encoded.getvalue()


def write_tiny_bundle(
    path: Path,
    golden_factor: float = 1.0,
    *,
    temperature: float = 1.0,
    name: str = "primaries",
    wrong: bool = False,
    metrics: Mapping[str, Any] | None = None,
) -> Path:
    """Write the bundle to `path`, which must not exist, and return it.

    Arguments:
        golden_factor: other than 1, the golden logits are wrong by it, as if the model had been trained elsewhere.
        temperature: another one makes another bundle, with the same labels.
        name: the model's.
        wrong: a model that takes red for blue and blue for red.
        metrics: what it says that it scored; nothing by default.
    """
    backbone = helper.make_graph(
        [
            helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["pixels", "axes"], ["mean"], keepdims=0),
            helper.make_node("Div", ["mean", "white"], ["features"]),
        ],
        "mean_colour",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", IMAGE_SIZE_PX, IMAGE_SIZE_PX, 3])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", 3])],
        [
            numpy_helper.from_array(np.array([1, 2], np.int64), "axes"),
            numpy_helper.from_array(np.array(255.0, np.float32), "white"),
        ],
    )
    model = helper.make_model(backbone, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    head = HeadWeights(
        inner_kernel=np.eye(3, dtype=np.float32),
        inner_bias=np.zeros(3, np.float32),
        logits_kernel=4
        * np.eye(3, dtype=np.float32)[:, :: 1 if wrong else -1].copy(),  # (red, green, blue) -> (blue, green, red)
        logits_bias=np.zeros(3, np.float32),
    )
    pictures = tuple(picture(label) for label in CLASSES)
    pixels = np.stack([load_pixels(data, IMAGE_SIZE_PX) for data in pictures])
    features = pixels.astype(np.float32).mean(axis=(1, 2)) / 255.0
    contents = BundleContents(
        name=name,
        version=3,
        classes=CLASSES,
        preprocessing=preprocessing_id(IMAGE_SIZE_PX),
        image_size_px=IMAGE_SIZE_PX,
        backbone_name="mean_colour",
        weights_sha256="0" * 64,
        dropout=0.0,
        training=Training(learning_rate=0.01, epochs=1, seed=1, data_digest="0" * 64, mode="features"),
        metrics=metrics or {},
        temperature=temperature,
        model=attach_head(model.SerializeToString(), head),
        head=head,
        golden=Golden(pictures, np.float32(golden_factor) * head.logits(features)),
    )
    return write_bundle(path, contents).path
