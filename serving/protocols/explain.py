"""`POST /explain`: where the model looked, by covering one part of the picture after another (Zeiler, Fergus 2014).

The picture is read as by `/predict`, brought to the model's size, and classified again with each of 7 x 7 places
covered by its mean colour: 50 pictures, so an answer costs what a batch of 50 costs, and is bounded like one. It asks
nothing of the model but answers, so it works for every bundle and shows what the served graph itself does.

    {"label", "confidence", "grid": 7 rows of 7 numbers, "model"}

A number is how much the log-odds of `label` fall when that place is covered; below zero, covering it makes the model
surer. The grid spans the whole picture, upright.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from rayml.errors import InputError
from rayml.predictor import Prediction
from serving.limits import RequestLimits
from serving.protocols import rayml
from serving.protocols.base import BUNDLE_HEADER, Answer, ModelFacts, Variants, Work, dump

GRID = 7
_REACH = 1.0  # Cells on each side of a place's centre that are covered: places overlap, so the map is smooth.


def parse(headers: Mapping[str, str], body: bytes, limits: RequestLimits, model: ModelFacts) -> Work:
    """The picture of an `/explain` request, whole and, as variants, with each place covered.

    Raises:
        InputError: as `serving.protocols.rayml.parse`; 422 for a URL.
    """
    (source,) = rayml.parse(headers, body, limits, model).sources
    if not isinstance(source, bytes):
        raise InputError("The picture must be in the request itself.", status=422, code="url_refused")

    def render(predictions: Sequence[Prediction]) -> Answer:
        whole = predictions[0]
        top = model.classes.index(whole.label)
        odds = [log_odds(prediction.logits, top) for prediction in predictions]
        drops = [round(odds[0] - covered, 4) for covered in odds[1:]]
        answer = {
            "label": whole.label,
            "confidence": whole.confidence,
            "grid": [drops[row * GRID : (row + 1) * GRID] for row in range(GRID)],
            "model": model.identity.to_dict(),
        }
        return Answer(dump(answer), headers={BUNDLE_HEADER: model.identity.bundle})

    return Work((source,), render, Variants(GRID**2, covered))


def covered(pixels: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """The picture with each place covered, row by row.

    Arguments:
        pixels: uint8 (H, W, 3).
    """
    mean = pixels.mean(axis=(0, 1)).round().astype(np.uint8)
    height, width = pixels.shape[:2]
    pictures = []
    for row in range(GRID):
        for column in range(GRID):
            picture = pixels.copy()
            picture[_extent(row, height), _extent(column, width)] = mean
            pictures.append(picture)
    return pictures


def _extent(place: int, length: int) -> slice:
    cell, centre = length / GRID, (place + 0.5) * length / GRID
    return slice(max(0, round(centre - _REACH * cell)), min(length, max(1, round(centre + _REACH * cell))))


def log_odds(logits: Sequence[float], index: int) -> float:
    """log(p / (1 - p)) of one class by the plain logits; of a single class 0."""
    others = np.delete(np.asarray(logits, np.float64), index)
    return float(logits[index] - np.logaddexp.reduce(others)) if others.size else 0.0
