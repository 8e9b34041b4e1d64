"""Backbones without their trained weights whose features still say something about a picture.

Fresh from Keras, the values of a deep network fade on their way (MobileNetV2's features are 1e-11): every engine would
agree about them and no head would learn from them. With batch normalisation set to the statistics of drawings, each
layer's values keep their size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayml.backbones import BackboneSpec, backbone_spec, build_base, preprocess_input
from rayml.clothing import CLASSES
from rayml.sample import draw


def enliven(base: Any, name: str) -> None:
    """Set the moving averages of every batch normalisation to those of drawings, in place."""
    import keras

    pixels, _ = drawings(16, base.input_shape[1], first_seed=1000)
    base.trainable = True  # A frozen one would not look at the batch.
    for layer in base.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    base(preprocess_input(name, pixels.astype(np.float32)), training=True)


def lively_spec(name: str, image_size_px: int, folder: Path) -> BackboneSpec:
    """The backbone with such weights, from a weights file written into the folder."""
    import keras

    base = build_base(backbone_spec(name, "none", image_size_px))
    enliven(base, name)
    path = folder / f"{name}.weights.h5"
    base.save_weights(path)
    keras.backend.clear_session()
    return backbone_spec(name, str(path), image_size_px)


def drawings(count: int, image_size_px: int, first_seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Drawn pictures of all classes in turn: uint8 (count, H, W, 3), and their labels, int32 (count,)."""
    labels = np.arange(count, dtype=np.int32) % len(CLASSES)
    pixels = [
        np.asarray(draw(CLASSES[label], first_seed + number, size_px=image_size_px))
        for number, label in enumerate(labels)
    ]
    return np.stack(pixels), labels
