"""The head: what is trained. `Dense(size_inner, relu) -> Dense(classes)` on a backbone's feature vectors.

Letters in comments: N pictures, D features, S inner units, C classes.
"""

from __future__ import annotations

import io
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from rayml.errors import BundleError, UsageError

if TYPE_CHECKING:
    import keras

Float32 = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class HeadWeights:
    """A trained head as plain arrays, all float32.

    Arguments:
        inner_kernel: (D, S).
        inner_bias: (S,).
        logits_kernel: (S, C).
        logits_bias: (C,).

    Raises:
        BundleError: the shapes do not belong together, or a value is not finite.
    """

    NAMES: ClassVar = ("inner_kernel", "inner_bias", "logits_kernel", "logits_bias")

    inner_kernel: Float32
    inner_bias: Float32
    logits_kernel: Float32
    logits_bias: Float32

    def __post_init__(self) -> None:
        for name, array in self.arrays().items():
            if array.dtype != np.float32:
                raise BundleError(f"head: {name} must be float32. Received: {array.dtype}")
        if self.inner_kernel.ndim != 2 or self.logits_kernel.ndim != 2:
            raise BundleError(
                "head: both kernels must have two dimensions. "
                f"Received: {self.inner_kernel.shape} and {self.logits_kernel.shape}"
            )
        inner, classes = self.logits_kernel.shape
        expected = {
            "inner_kernel": (self.inner_kernel.shape[0], inner),
            "inner_bias": (inner,),
            "logits_bias": (classes,),
        }
        for name, shape in expected.items():
            if self.arrays()[name].shape != shape:
                raise BundleError(f"head: {name} must be {shape}. Received: {self.arrays()[name].shape}")
        for name, array in self.arrays().items():
            if not np.isfinite(array).all():
                raise BundleError(f"head: {name} holds values that are not finite numbers")

    @property
    def features(self) -> int:
        """D, the length of the feature vectors it takes."""
        return int(self.inner_kernel.shape[0])

    @property
    def size_inner(self) -> int:
        """S, the number of inner units."""
        return int(self.logits_kernel.shape[0])

    @property
    def classes(self) -> int:
        """C, the number of logits it gives."""
        return int(self.logits_kernel.shape[1])

    def arrays(self) -> dict[str, Float32]:
        """The four arrays by name, in the order in which Keras lists them."""
        return {name: getattr(self, name) for name in self.NAMES}

    def logits(self, features: Float32) -> Float32:
        """The logits of feature vectors: float32 (N, D) -> float32 (N, C), in NumPy."""
        hidden = np.maximum(features @ self.inner_kernel + self.inner_bias, 0)  # (N, S)
        return np.asarray(hidden @ self.logits_kernel + self.logits_bias, np.float32)

    def to_npz(self) -> bytes:
        """The arrays as an uncompressed .npz file."""
        buffer = io.BytesIO()
        np.savez(buffer, **self.arrays())  # type: ignore[arg-type]
        return buffer.getvalue()

    @classmethod
    def from_npz(cls, source: Path | bytes) -> HeadWeights:
        """Read what `to_npz` wrote.

        Raises:
            BundleError: not such a file, or its arrays are not a head's.
        """
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        try:
            with np.load(file, allow_pickle=False) as arrays:
                if sorted(arrays.files) != sorted(cls.NAMES):
                    raise BundleError(f"head: expected the arrays {', '.join(cls.NAMES)}. Received: {arrays.files}")
                return cls(*(arrays[name] for name in cls.NAMES))
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
            raise BundleError(f"head: not a readable .npz file ({error})") from None


def build_head(
    features: int, size_inner: int, classes: int, dropout: float = 0.0, seed: int | None = None
) -> keras.Model:
    """The trained part of the lesson's network, from the feature vectors on: (N, D) -> logits (N, C), float32.

    Arguments:
        features: D, at least 1.
        size_inner: S, at least 1.
        classes: C, at least 2.
        dropout: the share of inner units dropped while training, 0 <= dropout < 1; at 0 there is no such layer.
        seed: makes the start the same each time; None for Keras' own random state.
    """
    import keras

    def glorot(layer: int) -> keras.initializers.Initializer:
        return keras.initializers.GlorotUniform(seed=None if seed is None else seed * 2 + layer)

    vectors = keras.Input((features,), name="features")
    inner = keras.layers.Dense(size_inner, activation="relu", kernel_initializer=glorot(0), name="inner")(vectors)
    if dropout:
        inner = keras.layers.Dropout(dropout, seed=seed, name="dropout")(inner)
    logits = keras.layers.Dense(classes, kernel_initializer=glorot(1), name="logits")(inner)
    return keras.Model(vectors, logits, name="head")


def make_model(
    learning_rate: float = 0.01,
    size_inner: int = 100,
    dropout: float = 0.0,
    *,
    backbone: str = "xception",
    weights: str | None = "imagenet",
    image_size_px: int | None = None,
    classes: int = 10,
) -> keras.Model:
    """The lesson's classifier, compiled: frozen backbone, average pooling, `Dense(size_inner)`, `Dense(classes)`.

    Source: the transfer-learning lesson of the Machine Learning Zoomcamp course (DataTalksClub), whose function this
    is; with its defaults it is Xception at 150 px on ten classes.

    Arguments:
        learning_rate: of Adam, over 0.
        size_inner: units of the inner layer, at least 1.
        dropout: the share of inner units dropped while training, 0 <= dropout < 1.
        backbone, weights, image_size_px: see `rayml.backbones.backbone_spec`; weights None is `none`.
        classes: the number of logits, at least 2.

    Returns:
        A model from scaled float32 pictures (N, H, W, 3), see `rayml.backbones.preprocess_input`, to float32 logits
        (N, classes), compiled with `CategoricalCrossentropy(from_logits=True)` on one-hot labels and accuracy.

    Raises:
        UsageError: a value out of range.
        WeightsError: weights that are not there or do not fit.
    """
    import keras

    from rayml.backbones import backbone_spec, build_base

    check_head_settings(learning_rate=learning_rate, size_inner=size_inner, dropout=dropout)
    if classes < 2:
        raise UsageError(f"classes must be at least 2. Received: {classes}")
    spec = backbone_spec(backbone, "none" if weights is None else weights, image_size_px)
    base = build_base(spec)
    inputs = keras.Input(shape=(spec.image_size_px, spec.image_size_px, 3))
    vectors = keras.layers.GlobalAveragePooling2D()(base(inputs, training=False))
    outputs = build_head(int(vectors.shape[-1]), size_inner, classes, dropout)(vectors)
    model = keras.Model(inputs, outputs)
    model.compile(
        optimizer=keras.optimizers.Adam(learning_rate=learning_rate),
        loss=keras.losses.CategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def check_head_settings(
    *,
    learning_rate: float,
    size_inner: int,
    dropout: float,
    weight_decay: float = 0.0,
    label_smoothing: float = 0.0,
) -> None:
    """Refuse values that no head can be trained with.

    Raises:
        UsageError: names the value and its range.
    """
    if not 0 < learning_rate < math.inf:
        raise UsageError(f"learning_rate must be a number over 0. Received: {learning_rate}")
    if size_inner < 1:
        raise UsageError(f"size_inner must be at least 1. Received: {size_inner}")
    if not 0 <= dropout < 1:
        raise UsageError(f"dropout must be at least 0 and below 1. Received: {dropout}")
    if not 0 <= weight_decay < math.inf:
        raise UsageError(f"weight_decay must be a number of at least 0. Received: {weight_decay}")
    if not 0 <= label_smoothing < 1:
        raise UsageError(f"label_smoothing must be at least 0 and below 1. Received: {label_smoothing}")


def head_weights(model: keras.Model) -> HeadWeights:
    """The arrays of a model made by `build_head`."""
    inner, logits = model.get_layer("inner"), model.get_layer("logits")
    return HeadWeights(*(array.astype(np.float32) for layer in (inner, logits) for array in layer.get_weights()))
