"""How good a bundle is on labelled photos."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from rayml.data import EVALUATION, UnreadablePictures, scan_labelled
from rayml.errors import InputError
from rayml.images import read_picture
from rayml.metrics import (
    accuracy,
    confusion,
    cross_entropy,
    expected_calibration_error,
    frequent_mistakes,
    per_class,
    softmax,
)
from rayml.predictor import Predictor
from rayml.progress import Progress

BATCH = 32  # Pictures decoded side by side before the engine sees them.
MAX_MATRIX_CLASSES = 40  # A larger confusion matrix cannot be read, and grows with the square of the classes.
MOST_MISTAKES = 12  # Of the most frequent, in its place.


def scores(logits: ArrayLike, labels: ArrayLike, classes: Sequence[str], temperature: float) -> dict[str, Any]:
    """The figures of a classifier on N labelled pictures, as plain values.

    Arguments:
        logits: (N, C).
        labels: (N,), 0 to C - 1.
        classes: the C names.
        temperature: what the logits are divided by before they become probabilities.

    Returns:
        `accuracy`, `loss` (cross-entropy of the plain logits, what training reports), `n`, `per_class` {class:
        {precision, recall, n}}, `confusion` (rows are true classes) or, of more than `MAX_MATRIX_CLASSES` classes,
        `mistaken` (see `rayml.metrics.frequent_mistakes`), `ece` of the calibrated probabilities and
        `ece_uncalibrated`.
    """
    plain = np.asarray(logits)
    predicted = plain.argmax(axis=1)
    if len(classes) <= MAX_MATRIX_CLASSES:
        confused: dict[str, Any] = {"confusion": confusion(labels, predicted, len(classes)).tolist()}
    else:
        confused = {"mistaken": frequent_mistakes(labels, predicted, classes, MOST_MISTAKES)}
    return {
        "accuracy": accuracy(plain, labels),
        "loss": cross_entropy(plain, labels),
        "n": len(plain),
        "per_class": per_class(labels, predicted, classes),
        **confused,
        "ece": expected_calibration_error(softmax(plain / temperature), labels),
        "ece_uncalibrated": expected_calibration_error(softmax(plain), labels),
    }


def evaluate(predictor: Predictor, folder: Path, progress: Progress) -> dict[str, Any]:
    """Score a bundle on a folder of class folders, through the very path that serves.

    Returns:
        What `scores` gives, `confusion` of any number of classes, and `images_per_s`, reading and decoding included.

    Raises:
        DataError: no such folder, or a class that the bundle does not know.
        UnreadablePictures: there are some.
    """
    record = predictor.bundle.record
    manifest = scan_labelled(folder, record.classes, progress)
    photos = manifest.split(EVALUATION)
    labels = [record.classes.index(photo.label) for photo in photos]
    unreadable: dict[str, str] = {}
    logits = []
    start = time.monotonic()

    def pixels(path: str) -> np.ndarray[Any, np.dtype[np.uint8]] | None:
        try:
            return predictor.decode(read_picture(manifest.root / path, predictor.limits.max_bytes))
        except InputError as error:
            unreadable[path] = error.message
        except OSError as error:
            unreadable[path] = f"{error.strerror}"
        return None

    with ThreadPoolExecutor() as pool, progress.bar("evaluation", len(photos), "photos") as advance:
        for at in range(0, len(photos), BATCH):
            batch = list(pool.map(pixels, [photo.path for photo in photos[at : at + BATCH]]))
            good = [picture for picture in batch if picture is not None]
            if len(good) == len(batch):
                logits.append(predictor.predict_pixels(np.stack(good)))
            advance(len(batch))
    if unreadable:
        raise UnreadablePictures(
            dict(sorted(unreadable.items())),
            len(photos),
            "Mend or remove them: an accuracy over the rest would not be this folder's.",
        )
    seconds = time.monotonic() - start
    answered = np.concatenate(logits)
    figures = scores(answered, labels, record.classes, record.temperature)
    figures["confusion"] = confusion(labels, answered.argmax(axis=1), len(record.classes)).tolist()
    return {**figures, "images_per_s": round(len(photos) / seconds, 1)}
