"""`tiny`: the small frozen network for the embedded sample, so that the demo needs no download.

It has learned from drawings as `rayml.sample` makes them (of seeds that the sample never uses), and from nothing
else: it is a part of the demo, not a backbone for real photos. scripts/train_tiny.py makes its weights.

Letters in comments: N pictures, H and W pixels, h and w cells of the feature map, D features.
"""

from __future__ import annotations

from importlib import resources
from typing import Any

import numpy as np

from rayml.errors import UsageError, WeightsError

TINY_IMAGE_SIZE_PX = 64  # The smallest size at which buttons and zips of the 96 px drawings can still be seen.
TINY_IMAGE_SIZES_PX = (32, 224)
TINY_FEATURES = 160  # D
TINY_STRIDE = 16  # H / h

# (channels, stride) of the depthwise-separable blocks after the first convolution (Howard et al. 2017, MobileNets).
_STEM_CHANNELS = 24
_BLOCKS = ((48, 1), (64, 2), (96, 1), (112, 2), (144, 1), (TINY_FEATURES, 2), (TINY_FEATURES, 1))


def feature_map(images: Any, *, batch_normalization: bool = False) -> Any:
    """The network's layers applied to a Keras tensor.

    Arguments:
        images: float32 (N, H, W, 3) in 0..255, symbolic.
        batch_normalization: put a BatchNormalization named `<convolution>_bn` behind each convolution, for
            training. Without it the convolutions have a bias, into which the training script folds it.

    Returns:
        float32 (N, h, w, D), 0 or more.
    """
    from keras import layers

    def activated(x: Any, channels: int, kernel_px: int, stride: int, name: str) -> Any:
        x = layers.Conv2D(
            channels, kernel_px, strides=stride, padding="same", use_bias=not batch_normalization, name=name
        )(x)
        if batch_normalization:
            x = layers.BatchNormalization(name=f"{name}_bn")(x)
        return layers.ReLU(name=f"{name}_relu")(x)

    x = layers.Rescaling(1 / 127.5, offset=-1.0, name="scale")(images)
    x = activated(x, _STEM_CHANNELS, 3, 2, "stem")
    for number, (channels, stride) in enumerate(_BLOCKS, start=1):
        x = layers.DepthwiseConv2D(3, strides=stride, padding="same", use_bias=False, name=f"block{number}_depthwise")(
            x
        )
        x = activated(x, channels, 1, 1, f"block{number}_pointwise")
    return x


def build_tiny(image_size_px: int = TINY_IMAGE_SIZE_PX, weights: bool = True) -> Any:
    """The frozen network as a Keras functional model, without pooling, as `keras.applications` without its top.

    Arguments:
        image_size_px: H and W, 32 to 224. It has learned at `TINY_IMAGE_SIZE_PX` alone: a head on the sample is
            right for about 0.95 of the pictures there, 0.8 at 96 px and 0.65 at 150 px.
        weights: load the repository's weights; otherwise they are random.

    Returns:
        A `keras.Model` named "tiny": float32 (N, H, W, 3) in 0..255 -> float32 (N, h, w, D).

    Raises:
        UsageError: `image_size_px` is out of its range.
        WeightsError: the file of weights is missing or does not fit.
    """
    smallest, largest = TINY_IMAGE_SIZES_PX
    if not smallest <= image_size_px <= largest:
        raise UsageError(f"tiny: the image size must be {smallest} to {largest} px. Received: {image_size_px}")
    import keras

    images = keras.Input((image_size_px, image_size_px, 3), name="images")
    model = keras.Model(images, feature_map(images), name="tiny")
    if weights:
        _load(model)
    model.trainable = False
    return model


def _load(model: Any) -> None:
    """Set the weights from rayml/assets/tiny.npz: float16 arrays named `<layer>/<kernel or bias>`."""
    hint = "Reinstall rayml, or run scripts/train_tiny.py in its repository."
    try:
        with resources.files("rayml").joinpath("assets/tiny.npz").open("rb") as file:
            stored = dict(np.load(file, allow_pickle=False))
    except (OSError, ValueError) as error:
        raise WeightsError(f"tiny: rayml/assets/tiny.npz cannot be read ({error})", hint) from None
    expected = {
        f"{layer.name}/{weight.name}": tuple(weight.shape) for layer in model.layers for weight in layer.weights
    }
    received = {name: array.shape for name, array in stored.items()}
    if received != expected:
        differing = sorted(n for n in expected | received if expected.get(n) != received.get(n))
        raise WeightsError(f"tiny: rayml/assets/tiny.npz does not fit the network. Differing: {differing}", hint)
    for layer in model.layers:
        if layer.weights:
            layer.set_weights([stored[f"{layer.name}/{w.name}"].astype(np.float32) for w in layer.weights])
