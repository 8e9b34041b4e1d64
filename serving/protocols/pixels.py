"""Pixels written as numbers: nested JSON lists or flat tensor data to uint8 pictures."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayml.errors import InputError
from rayml.images import MAX_SIDE_PX
from serving.limits import RequestLimits


def picture(value: Any, name: str, limits: RequestLimits) -> NDArray[np.uint8]:
    """One picture from nested lists: H x W x 3 whole numbers from 0 to 255.

    Arguments:
        value: what JSON held there.
        name: what to call it in a message.
        limits: `max_pixels` bounds H x W.

    Raises:
        InputError: 400 for another shape or other numbers, 413 for too many pixels.
    """
    try:
        numbers = as_array(value, name)
    except ValueError:
        raise InputError(
            f"{name} must be H x W x 3 numbers. Received: lists of unequal lengths", code="wrong_shape"
        ) from None
    if numbers.ndim != 3 or numbers.shape[2] != 3 or not numbers.size:
        shape = " x ".join(map(str, numbers.shape)) or "a single value"
        raise _wrong_shape(name, shape)
    check_pixels(numbers.shape[0], numbers.shape[1], limits)
    return as_bytes(numbers, name)


def as_array(value: Any, name: str) -> NDArray[Any]:
    """JSON numbers, in lists of any depth, as an array of their shape.

    They are looked at before NumPy sees them: from one long string among many short ones it would make an array in
    which every element is that long.

    Raises:
        InputError: 400 for anything but numbers and lists.
        ValueError: the lists have unequal lengths.
    """
    shape: list[int] = []
    level, kinds = [value], {type(value)}
    while kinds == {list}:
        lengths = set(map(len, level))
        if len(lengths) > 1:
            raise ValueError("lists of unequal lengths")
        shape += lengths
        level = list(chain.from_iterable(level))
        kinds = set(map(type, level))
    if not kinds <= {list, int, float}:
        raise InputError(f"{name} must be whole numbers from 0 to 255.", code="wrong_pixels")
    if list in kinds:
        raise ValueError("numbers beside lists")
    return np.array(level).reshape(shape)


def _wrong_shape(name: str, received: str) -> InputError:
    return InputError(f"{name} must be H x W x 3 numbers. Received: {received}", code="wrong_shape")


def as_bytes(numbers: NDArray[Any], name: str) -> NDArray[np.uint8]:
    """Whole numbers from 0 to 255 as uint8, whatever type they came in.

    Raises:
        InputError: 400 for anything else.
    """
    if numbers.dtype.kind not in "iuf" or not ((numbers >= 0) & (numbers <= 255)).all():
        raise InputError(f"{name} must be whole numbers from 0 to 255.", code="wrong_pixels")
    whole = numbers.astype(np.uint8)
    if numbers.dtype.kind == "f" and not (whole == numbers).all():
        raise InputError(f"{name} must be whole numbers from 0 to 255. Received: fractions", code="wrong_pixels")
    return whole


def check_pixels(height: int, width: int, limits: RequestLimits) -> None:
    """Hold a picture's size against the limit.

    Raises:
        InputError: 413.
    """
    if height * width > limits.max_pixels:
        raise InputError(
            f"A picture must have at most {limits.max_pixels} pixels. Received: {height} x {width}",
            status=413,
            code="image_too_large",
        )
    if max(height, width) > MAX_SIDE_PX:
        raise InputError(
            f"A picture's sides must be at most {MAX_SIDE_PX} pixels. Received: {height} x {width}",
            status=413,
            code="image_too_large",
        )
