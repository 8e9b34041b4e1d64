"""Backbones without their trained weights whose features still say something about a picture.

Fresh from Keras, the values of a deep network fade on their way (MobileNetV2's features are 1e-11): every engine would
agree about them and no head would learn from them. He's initialisation (He et al. 2015, section 2.2) keeps their size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayml.backbones import BackboneSpec, backbone_spec, build_base
from rayml.sample import CLASSES, draw


def enliven(base: Any, seed: int = 3) -> None:
    """Give every convolution weights of He's size, in place."""
    random = np.random.default_rng(seed)
    for kernel in (weight for weight in base.weights if len(weight.shape) == 4):
        fan_in = kernel.shape[0] * kernel.shape[1] * (1 if "depthwise" in kernel.path else kernel.shape[2])
        kernel.assign(random.normal(scale=(2 / fan_in) ** 0.5, size=kernel.shape))


def lively_spec(name: str, image_size_px: int, folder: Path) -> BackboneSpec:
    """The backbone with such weights, from a weights file written into the folder."""
    import keras

    base = build_base(backbone_spec(name, "none", image_size_px))
    enliven(base)
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
