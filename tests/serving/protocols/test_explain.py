from __future__ import annotations

import base64
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rayml.errors import InputError
from rayml.predictor import Predictor
from serving.limits import RequestLimits
from serving.protocols import explain
from serving.protocols.base import ModelFacts, ModelIdentity
from tests.serving.tiny_bundle import CLASSES, IMAGE_SIZE_PX, picture, write_tiny_bundle

MODEL = ModelFacts(ModelIdentity("primaries", "3", "00" * 32), CLASSES, IMAGE_SIZE_PX)
LIMITS = RequestLimits()
PNG = {"content-type": "image/png"}


def with_a_red_corner() -> bytes:
    """Grey, with a red square over the upper left place and some of its neighbours."""
    image = Image.new("RGB", (70, 70), (90, 90, 90))
    image.paste((255, 0, 0), (0, 0, 10, 10))
    encoded = io.BytesIO()
    image.save(encoded, "PNG")
    return encoded.getvalue()


def test_what_was_covered_counts_for_as_much_as_it_showed(tmp_path: Path) -> None:
    predictor = Predictor(write_tiny_bundle(tmp_path / "bundle"))
    work = explain.parse(PNG, with_a_red_corner(), LIMITS, MODEL)
    assert work.variants is not None and 1 + work.variants.count == 50 <= LIMITS.max_instances
    (source,) = work.sources
    assert isinstance(source, bytes)
    whole_pixels = predictor.decode(source)
    pixels = np.stack([whole_pixels, *work.variants.make(whole_pixels)])
    assert len(pixels) == 50
    answer = work.render(predictor.answers(predictor.predict_pixels(pixels)))
    said = json.loads(answer.body)
    assert (said["label"], said["model"]) == ("red", MODEL.identity.to_dict())
    grid = np.array(said["grid"])
    assert grid.shape == (7, 7) and np.unravel_index(grid.argmax(), grid.shape) == (0, 0)
    assert grid[0, 0] > 5 * abs(grid[3:, 3:]).max()
    # The figure itself, from the definition.
    whole, first = predictor.answers(predictor.predict_pixels(pixels[:2]))
    odds = [math.log(p / (1 - p)) for p in (whole.probabilities["red"], first.probabilities["red"])]
    assert grid[0, 0] == pytest.approx(odds[0] - odds[1], abs=1e-3)


def test_each_place_is_covered_by_the_mean_and_nothing_else() -> None:
    pixels = np.arange(28 * 28 * 3, dtype=np.uint32).reshape(28, 28, 3).astype(np.uint8)
    pictures = explain.covered(pixels)
    mean = pixels.mean(axis=(0, 1)).round().astype(np.uint8)
    for place, changed in enumerate(pictures):
        row, column = divmod(place, 7)
        mask = np.zeros((28, 28), bool)
        mask[max(0, 4 * row - 2) : 4 * row + 6, max(0, 4 * column - 2) : 4 * column + 6] = True
        assert (changed[mask] == mean).all() and (changed[~mask] == pixels[~mask]).all()


@pytest.mark.parametrize("side", [1, 3, 7, 32])
def test_pictures_of_every_size(side: int) -> None:
    for changed in explain.covered(np.full((side, side, 3), 9, np.uint8)):
        assert changed.shape == (side, side, 3)


def test_log_odds() -> None:
    assert explain.log_odds((1.0, 1.0), 0) == pytest.approx(0.0)
    assert explain.log_odds((800.0, -800.0, -800.0), 0) == pytest.approx(1600 - math.log(2))
    assert explain.log_odds((5.0,), 0) == 0.0


def test_the_picture_may_be_in_json() -> None:
    body = json.dumps({"image": base64.b64encode(picture("red")).decode()}).encode()
    assert explain.parse({"content-type": "application/json"}, body, LIMITS, MODEL).sources == (picture("red"),)


@pytest.mark.parametrize(
    ("content_type", "body", "status", "code"),
    [
        ("image/png", b"", 400, "empty_body"),
        ("text/plain", b"x", 415, "unsupported_media_type"),
        ("application/json", b'{"url": "https://a.example/b.jpg"}', 422, "url_refused"),
    ],
)
def test_refusals(content_type: str, body: bytes, status: int, code: str) -> None:
    with pytest.raises(InputError) as raised:
        explain.parse({"content-type": content_type}, body, LIMITS, MODEL)
    assert (raised.value.status, raised.value.code) == (status, code)
