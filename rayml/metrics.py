"""What a classifier's answers are worth: loss, accuracy, confusion, calibration error.

Letters in comments: N pictures, C classes, B bins.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

_Z95 = 1.959963984540054  # The normal distribution's 97.5 % point.


class ClassScore(TypedDict):
    """How one class fared: `precision` and `recall` in 0..1, `n` its number of pictures."""

    precision: float
    recall: float
    n: int


def _log_softmax(logits: ArrayLike) -> NDArray[np.float64]:
    """(..., C) -> (..., C), in float64; the row's maximum is taken away first, so that `exp` never overflows."""
    values = np.asarray(logits, np.float64)
    shifted = values - values.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def softmax(logits: ArrayLike) -> NDArray[np.float32]:
    """Probabilities of logits, along the last axis.

    Arguments:
        logits: (..., C), finite, of any size: +-1e30 is as good as +-1.

    Returns:
        float32 (..., C), each in 0..1; a row sums to 1 within float32 rounding.
    """
    return np.exp(_log_softmax(logits)).astype(np.float32)


def cross_entropy(logits: ArrayLike, labels: ArrayLike) -> float:
    """Mean negative log-likelihood of the true classes, in nats: Keras' sparse categorical cross-entropy from logits.

    Arguments:
        logits: (N, C), N >= 1.
        labels: (N,), the true classes' positions 0..C-1.

    Raises:
        ValueError: the shapes do not belong together, or a label is not one of the classes.
    """
    values, truth = _checked(logits, labels)
    return float(-_log_softmax(values)[np.arange(len(truth)), truth].mean())


def accuracy(scores: ArrayLike, labels: ArrayLike) -> float:
    """The share of pictures whose highest score is the true class's; the first of equal scores counts.

    Arguments:
        scores: (N, C) logits or probabilities, N >= 1.
        labels: (N,), the true classes' positions 0..C-1.

    Raises:
        ValueError: as in `cross_entropy`.
    """
    values, truth = _checked(scores, labels)
    return float((values.argmax(axis=-1) == truth).mean())


def confusion(labels: ArrayLike, predicted: ArrayLike, classes: int) -> NDArray[np.int64]:
    """How often each true class was taken for each class.

    Arguments:
        labels: (N,), the true classes' positions 0..classes-1.
        predicted: (N,), the predicted classes' positions.
        classes: C, at least 1.

    Returns:
        int64 (C, C): row true class, column predicted class.

    Raises:
        ValueError: the lengths differ, or a position is not one of the classes.
    """
    truth, guesses = _answered(labels, predicted, classes)
    return np.bincount(truth * classes + guesses, minlength=classes * classes).reshape(classes, classes)


def frequent_mistakes(labels: ArrayLike, predicted: ArrayLike, classes: Sequence[str], most: int) -> list[list[Any]]:
    """What is left to say of a confusion matrix that is too large to be kept.

    Arguments:
        labels, predicted: as in `confusion`.
        classes: the C names in the order of the positions.
        most: how many to list.

    Returns:
        [true class, answer, pictures] of the most frequent mistakes, as plain values, the most frequent first.

    Raises:
        ValueError: as in `confusion`.
    """
    truth, guesses = _answered(labels, predicted, len(classes))
    wrong = truth != guesses
    counts = Counter(zip(truth[wrong].tolist(), guesses[wrong].tolist(), strict=True))
    ranked = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))[:most]
    return [[classes[true], classes[answer], count] for (true, answer), count in ranked]


def per_class(labels: ArrayLike, predicted: ArrayLike, classes: Sequence[str]) -> dict[str, ClassScore]:
    """Precision and recall of each class.

    A class that was never predicted has precision 0, one without pictures recall 0 (`n` says so): scikit-learn's
    `zero_division=0`, so that the table holds numbers only and can be written as strict JSON.

    Arguments:
        labels, predicted: as in `confusion`.
        classes: the C names in the order of the positions.

    Raises:
        ValueError: as in `confusion`.
    """
    truth, guesses = _answered(labels, predicted, len(classes))
    counted = (np.bincount(found, minlength=len(classes)) for found in (truth[truth == guesses], truth, guesses))
    hits, seen, guessed = counted
    return {
        name: ClassScore(
            precision=float(hits[i] / guessed[i]) if guessed[i] else 0.0,
            recall=float(hits[i] / seen[i]) if seen[i] else 0.0,
            n=int(seen[i]),
        )
        for i, name in enumerate(classes)
    }


def expected_calibration_error(probabilities: ArrayLike, labels: ArrayLike, bins: int = 15) -> float:
    """How far confidence and accuracy lie apart, over bins of equal width (Naeini et al. 2015, AAAI).

    The mean, weighted by pictures, of |accuracy - mean confidence| in the bins (0, 1/B], (1/B, 2/B], ... of the
    winning class's probability; 15 bins as in Guo et al. 2017 (ICML, "On Calibration of Modern Neural Networks").

    Arguments:
        probabilities: (N, C), rows that sum to 1, N >= 1.
        labels: (N,), the true classes' positions 0..C-1.
        bins: B, at least 1.

    Returns:
        0 (says 0.8 and is right 8 times in 10) to 1.

    Raises:
        ValueError: as in `cross_entropy`, or `bins` below 1.
    """
    counts, confidence, right = reliability(probabilities, labels, bins)
    filled = counts > 0
    gaps = np.abs(right[filled] - confidence[filled])
    return float((counts[filled] * gaps).sum() / counts.sum())


def reliability(
    probabilities: ArrayLike, labels: ArrayLike, bins: int = 15
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Confidence against accuracy over bins of equal width (the diagram of DeGroot and Fienberg 1983).

    Arguments:
        probabilities: (N, C), rows that sum to 1, N >= 1.
        labels: (N,), the true classes' positions 0..C-1.
        bins: B, at least 1; bin b holds the pictures whose winning class has a probability in (b/B, (b+1)/B].

    Returns:
        For each bin, (B,): its pictures, their mean confidence, and the share that is right; both not a number in an
        empty bin.

    Raises:
        ValueError: as in `cross_entropy`, or `bins` below 1.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1. Received: bins={bins}")
    values, truth = _checked(probabilities, labels)
    confidence = values.max(axis=-1)
    correct = (values.argmax(axis=-1) == truth).astype(np.float64)
    bin_of = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    counts = np.bincount(bin_of, minlength=bins)
    filled = np.where(counts, counts, np.nan)
    mean_confidence = np.bincount(bin_of, weights=confidence, minlength=bins) / filled
    return counts, mean_confidence, np.bincount(bin_of, weights=correct, minlength=bins) / filled


def wilson_interval(hits: int, of: int) -> tuple[float, float]:
    """Where a share lies with 95 % confidence, given `hits` of `of` (Wilson 1927; good also for few and for extremes).

    Raises:
        ValueError: not 0 <= hits <= of, or of = 0.
    """
    if not 0 <= hits <= of or not of:
        raise ValueError(f"hits must be 0 to of, and of at least 1. Received: {hits} of {of}")
    square = _Z95**2
    middle = (hits + square / 2) / (of + square)
    reach = _Z95 / (of + square) * math.sqrt(hits * (of - hits) / of + square / 4)
    return max(0.0, middle - reach), min(1.0, middle + reach)


def _checked(scores: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Scores (N, C) in float64 and labels (N,) in int64, or a ValueError."""
    values: NDArray[np.float64] = np.asarray(scores, np.float64)
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"scores must be (pictures, classes), neither of them 0. Received: {values.shape}")
    truth = _positions(labels, values.shape[1], "labels")
    if len(truth) != len(values):
        raise ValueError(f"expected one label for each of {len(values)} pictures. Received: {len(truth)}")
    return values, truth


def _answered(labels: ArrayLike, predicted: ArrayLike, classes: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """True and predicted positions, each int64 (N,), or a ValueError."""
    truth, guesses = _positions(labels, classes, "labels"), _positions(predicted, classes, "predicted")
    if truth.shape != guesses.shape:
        raise ValueError(f"labels and predicted must have one length. Received: {truth.shape} and {guesses.shape}")
    return truth, guesses


def _positions(given: ArrayLike, classes: int, name: str) -> NDArray[np.int64]:
    """Class positions as int64 (N,), each in 0..classes-1, or a ValueError."""
    array: NDArray[Any] = np.asarray(given)
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        raise ValueError(f"{name} must be a list of whole numbers. Received: {array.dtype} {array.shape}")
    if array.size and (array.min() < 0 or array.max() >= classes):
        raise ValueError(f"{name} must lie in 0..{classes - 1}. Received: {array.min()}..{array.max()}")
    return array.astype(np.int64)
