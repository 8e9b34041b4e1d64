from __future__ import annotations

import numpy as np
import pytest

from rayml.calibration import MAX_TEMPERATURE, MIN_TEMPERATURE, fit_temperature
from rayml.metrics import cross_entropy, softmax


def _honest(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels drawn from their very probabilities: the best temperature is 1."""
    random = np.random.default_rng(5)
    logits = random.normal(scale=2, size=(count, 4))
    shares = softmax(logits).astype(np.float64)
    labels = (random.random((count, 1)) > shares.cumsum(axis=1)).sum(axis=1).clip(0, 3)
    return logits, labels


@pytest.mark.parametrize("scale", [0.25, 1.0, 3.0, 9.0])
def test_a_known_scaling_is_found_again(scale: float) -> None:
    logits, labels = _honest(40_000)
    assert fit_temperature(logits * scale, labels) == pytest.approx(scale, rel=0.03)


def test_it_is_the_minimum() -> None:
    logits, labels = _honest(500)
    best = fit_temperature(logits * 2, labels)
    loss = cross_entropy(logits * 2 / best, labels)
    assert all(loss < cross_entropy(logits * 2 / (best * factor), labels) for factor in (0.98, 1.02))


def test_the_answer_scales_with_the_logits() -> None:
    logits, labels = _honest(500)
    assert fit_temperature(logits * 3, labels) == pytest.approx(3 * fit_temperature(logits, labels), rel=1e-4)


def test_without_an_optimum_it_is_a_bound() -> None:
    right = np.array([[0.5, 0.0], [0.0, 0.5]])
    assert fit_temperature(right, [0, 1]) == pytest.approx(MIN_TEMPERATURE)
    assert fit_temperature(right, [1, 0]) == pytest.approx(MAX_TEMPERATURE)


def test_an_optimum_outside_is_cut_to_the_bound() -> None:
    logits, labels = _honest(2_000)
    assert fit_temperature(logits * 40, labels) == pytest.approx(MAX_TEMPERATURE)
    assert fit_temperature(logits / 40, labels) == pytest.approx(MIN_TEMPERATURE)


def test_where_temperature_changes_nothing_it_is_one() -> None:
    assert fit_temperature(np.full((5, 3), 2.0), [0, 1, 2, 0, 0]) == 1.0
    assert fit_temperature(np.ones((5, 1)), [0] * 5) == 1.0


def test_refusals() -> None:
    with pytest.raises(ValueError, match="finite"):
        fit_temperature([[np.nan, 0.0]], [0])
    with pytest.raises(ValueError, match="one label"):
        fit_temperature([[1.0, 0.0]], [0, 1])
