from __future__ import annotations

import numpy as np
import pytest

from rayml.augmentation import Augmentation
from rayml.errors import UsageError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Augmentation()),
        ("flip", Augmentation(flip=True)),
        ("flip,shift=0.1, zoom=0.2,rotation=0.05", Augmentation(True, 0.1, 0.2, 0.05)),
        ("rotation=0.5", Augmentation(rotation=0.5)),
    ],
)
def test_one_line_says_it(text: str, expected: Augmentation) -> None:
    assert Augmentation.parse(text) == expected
    assert Augmentation.parse(str(expected)) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("flop", "each once. Received: flop"),
        ("flip,flip", "each once"),
        ("flip=1", "each once"),
        ("shift=0.1,shift=0.2", "each once"),
        ("shift", "augment: shift must be a number. Received: nothing"),
        ("zoom=much", "augment: zoom must be a number. Received: much"),
        ("shift=1", "augment: shift must be at least 0 and below 1. Received: 1.0"),
        ("zoom=-0.1", "augment: zoom must be at least 0"),
        ("rotation=0.6", "augment: rotation must be 0 to 0.5, a share of a full turn. Received: 0.6"),
        ("rotation=nan", "Received: nan"),
    ],
)
def test_lines_that_say_nothing(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        Augmentation.parse(text)
    assert "\n" not in caught.value.message


def test_pictures_are_changed_within_bounds() -> None:
    """A column of white moves by at most the share, a flip mirrors, and no augmentation has no layer."""
    assert Augmentation().layers() == []
    pixels = np.zeros((64, 20, 20, 3), np.float32)
    pixels[:, :, 10] = 255.0
    (shift,) = Augmentation(shift=0.2).layers()
    columns = np.asarray(shift(pixels, training=True))[:, 10, :, 0].argmax(axis=1)
    assert {*columns} <= set(range(6, 15)) and len({*columns}) > 3
    (flip,) = Augmentation(flip=True).layers()
    mirrored = np.asarray(flip(pixels, training=True))[:, 0, :, 0].argmax(axis=1)
    assert {*mirrored} == {9, 10}
    kinds = [type(layer).__name__ for layer in Augmentation(True, 0.1, 0.1, 0.1).layers()]
    assert kinds == ["RandomFlip", "RandomTranslation", "RandomZoom", "RandomRotation"]
