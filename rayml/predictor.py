"""From encoded pictures to answers: a bundle, the one preprocessing and an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rayml import images
from rayml.bundle import Bundle
from rayml.engines import load_engine
from rayml.errors import BundleError, InputError, UsageError
from rayml.metrics import softmax

AUTO = "auto"

# How far an engine's logits may lie from the training path's, as a share of the largest golden logit (at least of 1).
# Float32 engines add the same numbers in another order: 2e-6 (ImageNet's MobileNetV2 on 38 photos, Keras against
# OpenVINO and ONNX Runtime). In bfloat16 the same photos miss by 2e-2 to 2e-1; other pixels or another head by more.
GOLDEN_TOLERANCE = 1e-3
# Who asks for bfloat16 accepts other logits, up to a twentieth of the largest, but no other label; a bundle whose
# golden pictures miss by more stays in float32. The golden answers of a bundle in int8 are its own graph's: the engine
# that gave them gives them again, another differs as two roundings do, by 0.06 of the largest logit (ImageNet's
# MobileNetV2, OpenVINO and ONNX Runtime), which may decide between classes that are nearer to each other than that.
# A processor whose 8-bit products overflow (AVX2) misses by 0.2 and more.
GOLDEN_TOLERANCES = {"float32": GOLDEN_TOLERANCE, "bfloat16": 5e-2, "int8": 0.15}
_INSTEAD = {
    "float32": "do not serve this bundle here; try another engine, or tune again with this rayml",
    "bfloat16": "serve this bundle in float32",
    "int8": "serve this bundle on a processor with VNNI or AMX, or tune again without --precision int8",
}


@dataclass(frozen=True)
class Prediction:
    """The answer for one picture.

    Arguments:
        label: the class with the highest logit, the first of equal ones.
        confidence: its probability, 0..1.
        probabilities: softmax(logits / temperature) by class, in the bundle's order.
        logits: as the graph gave them, in the bundle's order.
    """

    label: str
    confidence: float
    probabilities: dict[str, float]
    logits: tuple[float, ...]


class Predictor:
    """A bundle ready to answer. Every method is thread-safe.

    Arguments:
        bundle: a verified bundle, or the folder of one.
        engine: "auto", "openvino" or "onnxruntime".
        threads, streams: as in `engines.load_engine`.
        limits: how large a picture may be.
        precision: "auto", which is what the bundle was made in, or float32, bfloat16 or int8. Only a bundle in float32
            can be computed in bfloat16; `check_golden` says whether it will do.
        grouped: as in `engines.load_engine`.

    Raises:
        BundleError: not a bundle, made with another preprocessing or for another precision, or refused by the engine.
        UsageError: an engine that is unknown or not installed, or an unknown precision.
    """

    def __init__(
        self,
        bundle: Bundle | str | Path,
        engine: str = "auto",
        threads: int | None = None,
        *,
        streams: int | None = None,
        limits: images.ImageLimits = images.DEFAULT_LIMITS,
        precision: str = AUTO,
        grouped: bool = False,
    ) -> None:
        if isinstance(bundle, Bundle):
            self.bundle, model = bundle, bundle.read_model()
        else:
            self.bundle, model = Bundle.open_with_model(bundle)
        record = self.bundle.record
        mine = images.preprocessing_id(record.image_size_px)
        if record.preprocessing != mine:
            raise BundleError(
                f"bundle.json: preprocessing must be {mine!r}, as this rayml does it. "
                f"Received: {record.preprocessing!r}",
                "use the rayml that made the bundle, or tune again with this one",
            )
        self.limits = limits
        self.precision = _precision(self.bundle, precision)
        # The layers that are integers are so in the graph; what an engine is told is for the others.
        floats = "bfloat16" if self.precision == "bfloat16" else "float32"
        self.engine = load_engine(model, engine, threads, streams, floats, grouped)

    def predict(self, encoded: Sequence[bytes]) -> list[Prediction]:
        """Answer for encoded pictures (JPEG, PNG, WebP).

        Raises:
            InputError: one of them cannot be read.
        """
        if not encoded:
            return []
        return self.answers(self.predict_pixels(np.stack([self.decode(data) for data in encoded])))

    def decode(self, data: bytes) -> NDArray[np.uint8]:
        """One encoded picture as the uint8 (H, W, 3) pixels that the graph takes.

        Raises:
            InputError: it cannot be read.
        """
        return images.load_pixels(data, self.bundle.record.image_size_px, self.limits)

    def predict_pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The logits of pictures that are decoded and resized already: uint8 (N, H, W, 3) -> float32 (N, C).

        Raises:
            InputError: another type or shape.
        """
        try:
            return self.engine(pixels)
        except ValueError as error:
            raise InputError(str(error), status=400, code="wrong_pixels") from None

    def answers(self, logits: NDArray[np.float32]) -> list[Prediction]:
        """Logits (N, C) in words."""
        record = self.bundle.record
        probabilities = softmax(np.asarray(logits, np.float64) / record.temperature)
        found = []
        for row, shares in zip(logits, probabilities.tolist(), strict=True):
            best = int(row.argmax())
            by_class = dict(zip(record.classes, shares, strict=True))
            found.append(Prediction(record.classes[best], shares[best], by_class, tuple(row.tolist())))
        return found

    def check_golden(self) -> float:
        """Make sure that this machine's decoder and engine give what the training path gave.

        Returns:
            The largest difference of a logit, as a share of the largest golden logit (at least of 1).

        Raises:
            BundleError: it is above the precision's tolerance, or a picture falls into a class that `golden_labels`
                does not allow.
        """
        golden = self.bundle.golden
        try:
            pixels = images.stack_pixels(golden.pictures, self.bundle.record.image_size_px)
        except InputError as error:
            raise BundleError(f"golden pictures must be readable. Received: {error.message}") from None
        logits = self.engine(pixels)
        scale = max(1.0, float(np.abs(golden.logits).max()))
        differences = np.abs(logits - golden.logits).max(axis=1) / scale  # (G,), NaN where the engine gave NaN
        tolerance = GOLDEN_TOLERANCES[self.precision]
        far = ~(differences <= tolerance)
        mistaken = ~golden_labels(self.bundle)[np.arange(len(logits)), logits.argmax(axis=1)]
        wrong = far | mistaken
        if wrong.any():
            worst = int(np.argmax(np.where(wrong, np.nan_to_num(differences, nan=np.inf), -1.0)))
            label = "" if far[worst] else ", with another label"
            raise BundleError(
                f"{self.engine.name} in {self.precision} must reproduce the golden logits within {tolerance:g} "
                "of their size, and every label. "
                f"Received: {int(wrong.sum())} of {len(wrong)} pictures differ, picture {worst} "
                f"by {differences[worst]:.2g}{label}",
                _INSTEAD[self.precision],
            )
        return float(differences.max())


def golden_labels(bundle: Bundle) -> NDArray[np.bool_]:
    """Which classes are right for each golden picture, (G, C): the bundle's own answer, and those in a tie with it.

    Classes are in a tie when they are nearer to each other than float32's tolerance, or int8's in a bundle in int8.
    """
    logits, tolerance = bundle.golden.logits, GOLDEN_TOLERANCES[bundle.precision]
    behind = logits.max(axis=1, keepdims=True) - logits
    near: NDArray[np.bool_] = behind <= tolerance * max(1.0, float(np.abs(logits).max()))
    return near


def _precision(bundle: Bundle, asked: str) -> str:
    """What a bundle is computed in."""
    if asked not in (AUTO, *GOLDEN_TOLERANCES):
        raise UsageError(f"precision must be one of {AUTO}, {', '.join(GOLDEN_TOLERANCES)}. Received: {asked!r}")
    if asked == AUTO or asked == bundle.precision:
        return bundle.precision
    if asked == "int8":
        raise BundleError(
            "int8 needs a bundle whose backbone is in int8. Received: one in float32",
            "rayml tune DATA --out RUN --precision int8 makes one; its head learns from what int8 gives.",
        )
    if bundle.precision == "int8":
        raise BundleError(
            f"{asked} needs a bundle in float32. Received: one in int8, whose weights are integers",
            "Leave the precision out, or tune without --precision int8.",
        )
    return asked
