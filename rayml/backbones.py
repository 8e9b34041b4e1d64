"""Frozen backbones by name: which there are, their weights, and each as one graph from pixels to features.

A backbone is a network of keras.applications without its top, or the built-in `tiny` one. Its graph holds its own
input scaling and the global average pooling, so that it is one fixed function

    uint8 (N, H, W, 3) -> float32 (N, D)

written once as ONNX: the feature pass runs it, and a bundle serves the same bytes with a head behind them.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayml.errors import UsageError, WeightsError, first_line
from rayml.storage import alone
from rayml.tiny import TINY_IMAGE_SIZE_PX, TINY_IMAGE_SIZES_PX

if TYPE_CHECKING:
    import keras

ONNX_OPSET = 17  # The newest that tf2onnx writes without warnings and both engines read.
MAX_IMAGE_SIZE_PX = 1024  # Larger squares need more memory a picture than the feature pass plans for.
PRECISIONS = ("float32", "int8")  # What a frozen backbone may compute in.
RANDOM_WEIGHTS_SEED = 1  # `--weights none` must be the same network on every machine of a cluster.


@dataclass(frozen=True)
class Architecture:
    """One entry of the table below.

    Arguments:
        builder: the function of keras.applications.
        module: its module, which holds `preprocess_input`.
        image_size_px: the side of the square used unless told otherwise; the network's native one, but Xception's
            is the lesson's 150.
        min_image_size_px: the least that the network's strides allow (`obtain_input_shape` in its module).
        max_image_size_px: the most.
    """

    builder: str
    module: str
    image_size_px: int = 224
    min_image_size_px: int = 32
    max_image_size_px: int = MAX_IMAGE_SIZE_PX


TINY = "tiny"

# keras.applications 3.15; a test holds this table against the library.
ARCHITECTURES: dict[str, Architecture] = {
    TINY: Architecture("", "", TINY_IMAGE_SIZE_PX, *TINY_IMAGE_SIZES_PX),
    "xception": Architecture("Xception", "xception", 150, 71),
    "mobilenet": Architecture("MobileNet", "mobilenet"),
    "mobilenet_v2": Architecture("MobileNetV2", "mobilenet_v2"),
    "mobilenet_v3_small": Architecture("MobileNetV3Small", "mobilenet_v3"),
    "mobilenet_v3_large": Architecture("MobileNetV3Large", "mobilenet_v3"),
    "efficientnetb0": Architecture("EfficientNetB0", "efficientnet", 224),
    "efficientnetb1": Architecture("EfficientNetB1", "efficientnet", 240),
    "efficientnetb2": Architecture("EfficientNetB2", "efficientnet", 260),
    "efficientnetb3": Architecture("EfficientNetB3", "efficientnet", 300),
    "efficientnetb4": Architecture("EfficientNetB4", "efficientnet", 380),
    "efficientnetb5": Architecture("EfficientNetB5", "efficientnet", 456),
    "efficientnetb6": Architecture("EfficientNetB6", "efficientnet", 528),
    "efficientnetb7": Architecture("EfficientNetB7", "efficientnet", 600),
    "efficientnetv2b0": Architecture("EfficientNetV2B0", "efficientnet_v2", 224),
    "efficientnetv2b1": Architecture("EfficientNetV2B1", "efficientnet_v2", 240),
    "efficientnetv2b2": Architecture("EfficientNetV2B2", "efficientnet_v2", 260),
    "efficientnetv2b3": Architecture("EfficientNetV2B3", "efficientnet_v2", 300),
    "efficientnetv2s": Architecture("EfficientNetV2S", "efficientnet_v2", 384),
    "efficientnetv2m": Architecture("EfficientNetV2M", "efficientnet_v2", 480),
    "efficientnetv2l": Architecture("EfficientNetV2L", "efficientnet_v2", 480),
    "convnext_tiny": Architecture("ConvNeXtTiny", "convnext"),
    "convnext_small": Architecture("ConvNeXtSmall", "convnext"),
    "convnext_base": Architecture("ConvNeXtBase", "convnext"),
    "convnext_large": Architecture("ConvNeXtLarge", "convnext"),
    "convnext_xlarge": Architecture("ConvNeXtXLarge", "convnext"),
    "densenet121": Architecture("DenseNet121", "densenet"),
    "densenet169": Architecture("DenseNet169", "densenet"),
    "densenet201": Architecture("DenseNet201", "densenet"),
    "inception_v3": Architecture("InceptionV3", "inception_v3", 299, 75),
    "inception_resnet_v2": Architecture("InceptionResNetV2", "inception_resnet_v2", 299, 75),
    "nasnet_mobile": Architecture("NASNetMobile", "nasnet", 224),
    "nasnet_large": Architecture("NASNetLarge", "nasnet", 331),
    "resnet50": Architecture("ResNet50", "resnet"),
    "resnet101": Architecture("ResNet101", "resnet"),
    "resnet152": Architecture("ResNet152", "resnet"),
    "resnet50_v2": Architecture("ResNet50V2", "resnet_v2"),
    "resnet101_v2": Architecture("ResNet101V2", "resnet_v2"),
    "resnet152_v2": Architecture("ResNet152V2", "resnet_v2"),
    "vgg16": Architecture("VGG16", "vgg16"),
    "vgg19": Architecture("VGG19", "vgg19"),
}


@dataclass(frozen=True)
class BackboneSpec:
    """Which frozen backbone: everything that decides what it computes.

    Arguments:
        name: a key of `ARCHITECTURES`; see `backbone_spec` for other spellings.
        weights: `imagenet`, `none` (random, seeded), `builtin` (tiny's own), or the path of a Keras weights file,
            absolute.
        image_size_px: the side of the square it looks at.
        precision: what its layers compute in, one of `PRECISIONS`.
    """

    name: str
    weights: str
    image_size_px: int
    precision: str = "float32"

    @property
    def weights_file(self) -> Path | None:
        """The weights file, if the weights are one."""
        return None if self.weights in ("imagenet", "none", "builtin") else Path(self.weights)


def backbone_spec(
    name: str = "xception",
    weights: str | None = None,
    image_size_px: int | None = None,
    precision: str = "float32",
) -> BackboneSpec:
    """Check a choice of backbone and fill in what was left out. Loads no TensorFlow.

    Arguments:
        name: as in `ARCHITECTURES`, whatever its case, underscores and hyphens ("MobileNetV2" is "mobilenet_v2").
        weights: as in `BackboneSpec`; by default `imagenet`, and `builtin` for tiny.
        image_size_px: by default the architecture's own.
        precision: as in `BackboneSpec`.

    Raises:
        UsageError: no such backbone or precision, or an image size outside its range.
        WeightsError: the weights file is not there or is of a kind that is never loaded.
    """
    plain = {_plain(key): key for key in ARCHITECTURES}
    if _plain(name) not in plain:
        near = difflib.get_close_matches(_plain(name), plain, n=3, cutoff=0.5)
        raise UsageError(
            f"--backbone must be one of {', '.join(ARCHITECTURES)}. Received: {name}",
            f"Did you mean {' or '.join(plain[key] for key in near)}?" if near else "Take a name of that list.",
        )
    if precision not in PRECISIONS:
        raise UsageError(f"--precision must be one of {', '.join(PRECISIONS)}. Received: {precision}")
    name = plain[_plain(name)]
    architecture = ARCHITECTURES[name]
    size = architecture.image_size_px if image_size_px is None else image_size_px
    smallest, largest = architecture.min_image_size_px, architecture.max_image_size_px
    if not smallest <= size <= largest:
        raise UsageError(
            f"--image-size for {name} must be {smallest} to {largest} px. Received: {size}",
            f"Leave it out for {architecture.image_size_px} px.",
        )
    if name == TINY:
        if weights not in (None, "builtin", "imagenet"):
            raise UsageError(
                f"--backbone tiny has weights of its own and takes no others. Received: --weights {weights}",
                "Leave --weights out, or choose another backbone.",
            )
        return BackboneSpec(name, "builtin", size, precision)
    if weights == "builtin":
        raise UsageError(f"Only --backbone tiny has built-in weights. Received: --backbone {name}")
    spec = BackboneSpec(name, weights or "imagenet", size, precision)
    if spec.weights_file is not None:
        _check_weights_file(spec.weights_file)
        # Trials, which work in folders of their own, have to find it as well.
        spec = replace(spec, weights=str(spec.weights_file.absolute()))
    return spec


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


def _check_weights_file(path: Path) -> None:
    hint = "Give a Keras weights file without the top: NAME.weights.h5, or the older NAME_notop.h5."
    if not path.is_file():
        raise WeightsError(f"--weights must be imagenet, none or a file that is there. Received: {path}", hint)
    if path.suffix != ".h5":
        raise WeightsError(f"--weights must be a Keras weights file, .weights.h5 or .h5. Received: {path.name}", hint)
    with path.open("rb") as file:
        if file.read(8) != b"\x89HDF\r\n\x1a\n":  # The signature of HDF5, section II.A of its format specification.
            raise WeightsError(f"--weights must be an HDF5 file. Received: {path.name}, which is none", hint)


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def weights_sha256(spec: BackboneSpec, base: keras.Model) -> str:
    """What identifies the weights: the file's sha256, or where Keras made or fetched them, the arrays' own."""
    if spec.weights_file is not None:
        return file_sha256(spec.weights_file)
    return arrays_sha256(base)


def arrays_sha256(base: keras.Model) -> str:
    """The sha256 of a network's weights by their places and shapes; Keras counts names on from network to network."""
    digest = hashlib.sha256()
    for place, variable in enumerate(base.variables):
        digest.update(f"{place} {variable.shape}\n".encode())
        digest.update(variable.numpy().tobytes())
    return digest.hexdigest()


def build_base(spec: BackboneSpec) -> keras.Model:
    """The frozen network without its top: scaled float32 (N, H, W, 3) -> float32 maps (N, h, w, D).

    Raises:
        WeightsError: the weights could not be downloaded, or do not fit the architecture.
    """
    import keras

    if spec.name == TINY:
        from rayml.tiny import build_tiny

        return build_tiny(spec.image_size_px)
    architecture = ARCHITECTURES[spec.name]
    builder = getattr(keras.applications, architecture.builder)
    arguments: dict[str, Any] = {
        "include_top": False,
        "input_shape": (spec.image_size_px, spec.image_size_px, 3),
        "weights": None,
    }
    if spec.weights == "imagenet":
        try:
            # Keras downloads into the place itself: another process would read half a file, or write over this one's.
            with alone(_keras_home(), "imagenet"):
                base = builder(**{**arguments, "weights": "imagenet"})
        except Exception as error:
            # get_file raises a bare Exception("URL fetch failure on URL: ...") for what a server answers or where there
            # is no way to it, a ValueError where another file came, and lets through a connection that breaks.
            reason = first_line(error)
            known = "URL fetch failure" in reason or "Incomplete or corrupted" in reason
            if not known and not isinstance(error, OSError):
                raise
            raise WeightsError(
                f"the ImageNet weights of {spec.name} could not be downloaded: {reason}",
                "Download that file where there is a network and pass it as --weights FILE, or try --weights none.",
            ) from None
    elif spec.weights_file is not None:
        base = builder(**arguments)
        _load_weights(base, spec.name, spec.weights_file)
    else:
        with _python_seeded(RANDOM_WEIGHTS_SEED):
            base = builder(**arguments)
    base.trainable = False
    return base


@contextmanager
def _python_seeded(seed: int) -> Iterator[None]:
    """Python's random numbers from a seed, and afterwards as if nothing had happened.

    They are the only ones that Keras' initializers draw from, for their seeds (`keras.random.make_default_seed`).
    """
    before = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before)


def _keras_home() -> Path:
    """Where Keras keeps what it downloads (`keras.utils.get_file`)."""
    with suppress(RuntimeError):  # A user without a home folder.
        home = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras")
        if os.access(home, os.W_OK):
            return home
    return Path("/tmp/.keras")


def _load_weights(base: keras.Model, name: str, path: Path) -> None:
    import h5py
    import numpy as np

    try:
        with warnings.catch_warnings():
            # Keras warns where layers keep their random start; such features would be worth nothing.
            warnings.filterwarnings("error", message="Skipping nested container")
            base.load_weights(path)
    except (UserWarning, ValueError, KeyError, OSError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        sizes: list[int] = []
        try:
            with h5py.File(path, "r") as file:
                file.visititems(lambda _, item: sizes.append(item.size) if isinstance(item, h5py.Dataset) else None)
        except (OSError, RuntimeError, KeyError, ValueError):  # Whatever h5py says of a damaged file.
            raise WeightsError(
                f"--weights must be a readable HDF5 file. Received: {path.name}, which is damaged ({error})",
                "Download or export it again.",
            ) from None
        expected = f"{len(base.variables)} arrays of {base.count_params():,} numbers"
        received = f"{path.name} with {len(sizes)} arrays of {sum(sizes):,} numbers"
        raise WeightsError(
            f"--weights do not fit {name} without top: expected {expected}. Received: {received}",
            "Give the weights of this very architecture, without the top (…_notop.h5), or another --backbone.",
        ) from None
    if not all(np.isfinite(variable.numpy()).all() for variable in base.variables):
        raise WeightsError(f"--weights must be finite numbers. Received: {path.name}, which holds NaN or infinity")


def preprocess_input(name: str, images: Any) -> Any:
    """The input scaling that a backbone was trained with, on float pixels 0 to 255: arrays or Keras tensors.

    Source: `preprocess_input` of the architecture's module in keras.applications; tiny scales inside its network.
    """
    import keras

    if name == TINY:
        return images
    return getattr(keras.applications, ARCHITECTURES[name].module).preprocess_input(images)


def feature_model(spec: BackboneSpec, base: keras.Model | None = None) -> keras.Model:
    """The backbone as one Keras model: uint8 (N, H, W, 3) -> float32 (N, D). The reference for every engine.

    Arguments:
        base: what `build_base(spec)` gave, if it is at hand.
    """
    import keras

    base = build_base(spec) if base is None else base
    images = keras.Input((spec.image_size_px, spec.image_size_px, 3), dtype="uint8", name="images")
    scaled = preprocess_input(spec.name, keras.ops.cast(images, "float32"))
    features = keras.layers.GlobalAveragePooling2D(name="features")(base(scaled, training=False))
    return keras.Model(images, features, name=f"{spec.name}_features")
