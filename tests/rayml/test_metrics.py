from __future__ import annotations

import math

import numpy as np
import pytest

from rayml.metrics import (
    accuracy,
    confusion,
    cross_entropy,
    expected_calibration_error,
    frequent_mistakes,
    per_class,
    reliability,
    softmax,
    wilson_interval,
)


def test_softmax_of_known_odds() -> None:
    shares = softmax(np.log([[1, 2, 5], [1, 1, 2]]))
    assert shares.dtype == np.float32
    np.testing.assert_allclose(shares, [[1 / 8, 2 / 8, 5 / 8], [1 / 4, 1 / 4, 1 / 2]], rtol=1e-6)


def test_softmax_of_huge_logits_is_finite() -> None:
    np.testing.assert_array_equal(softmax([[1e30, -1e30, 0], [-1e30, -1e30, -1e30]])[0], [1, 0, 0])
    np.testing.assert_allclose(softmax([-1e30, -1e30, -1e30]), [1 / 3] * 3, rtol=1e-6)


def test_cross_entropy_is_the_mean_of_the_true_classes_surprise() -> None:
    logits = np.log([[1, 3], [4, 1]])
    assert cross_entropy(logits, [1, 1]) == pytest.approx(-(math.log(3 / 4) + math.log(1 / 5)) / 2, rel=1e-12)


def test_cross_entropy_of_a_certain_mistake_is_its_distance_not_infinity() -> None:
    assert cross_entropy([[0.0, 5000.0]], [0]) == pytest.approx(5000)


def test_accuracy_takes_the_first_of_equal_scores() -> None:
    assert accuracy([[1, 1], [0, 2], [3, 0], [0, 1]], [0, 1, 1, 0]) == 0.5
    assert accuracy([[1, 1]], [1]) == 0.0


def test_confusion_has_a_row_for_each_true_class() -> None:
    matrix = confusion([0, 0, 1, 2, 2, 2], [0, 1, 1, 0, 2, 2], 4)
    assert matrix.tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [1, 0, 2, 0], [0, 0, 0, 0]]


def test_confusion_of_nothing_is_all_zeros() -> None:
    assert confusion([], [], 2).tolist() == [[0, 0], [0, 0]]


def test_the_most_frequent_mistakes() -> None:
    found = frequent_mistakes([0, 2, 2, 1, 1, 0], [1, 0, 0, 1, 2, 0], ("hat", "shoes", "shirt"), 2)
    assert found == [["shirt", "hat", 2], ["hat", "shoes", 1]]
    assert frequent_mistakes([1], [1], ("hat", "shoes"), 2) == []
    with pytest.raises(ValueError, match="one length"):
        frequent_mistakes([1, 0], [1], ("hat", "shoes"), 2)


def test_per_class_by_hand() -> None:
    table = per_class([0, 0, 1, 1, 1], [0, 1, 1, 1, 1], ["hat", "shoes", "never"])
    assert table == {
        "hat": {"precision": 1.0, "recall": 0.5, "n": 2},
        "shoes": {"precision": 0.75, "recall": 1.0, "n": 3},
        "never": {"precision": 0.0, "recall": 0.0, "n": 0},
    }


def test_calibration_error_by_hand() -> None:
    # Bin (0.5, 0.6]: two at 0.6, one right: |1 - 1.2| / 4. Bin (0.9, 1]: two at 0.95, both right: |2 - 1.9| / 4.
    shares = [[0.6, 0.4], [0.6, 0.4], [0.05, 0.95], [0.95, 0.05]]
    assert expected_calibration_error(shares, [0, 1, 1, 0], bins=10) == pytest.approx((0.2 + 0.1) / 4)


def test_reliability_by_hand() -> None:
    shares = [[0.6, 0.4], [0.6, 0.4], [0.05, 0.95], [0.95, 0.05], [0.0, 1.0]]
    counts, confidence, right = reliability(shares, [0, 1, 1, 0, 0], bins=10)
    assert counts.tolist() == [0, 0, 0, 0, 0, 2, 0, 0, 0, 3]
    assert (confidence[5], right[5]) == (pytest.approx(0.6), 0.5)
    assert (confidence[9], right[9]) == (pytest.approx(2.9 / 3), pytest.approx(2 / 3))
    assert np.isnan(confidence[[0, 8]]).all() and np.isnan(right[[0, 8]]).all()


@pytest.mark.parametrize(("hits", "of"), [(0, 1), (1, 1), (0, 20), (7, 9), (301, 341), (341, 341)])
def test_the_interval_is_scipys(hits: int, of: int) -> None:
    from scipy.stats import binomtest

    expected = binomtest(hits, of).proportion_ci(0.95, method="wilson")
    assert wilson_interval(hits, of) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(("hits", "of"), [(0, 0), (-1, 3), (4, 3)])
def test_an_interval_of_nothing(hits: int, of: int) -> None:
    with pytest.raises(ValueError, match="hits must be 0 to of"):
        wilson_interval(hits, of)


def test_calibration_error_at_its_ends() -> None:
    assert expected_calibration_error([[1.0, 0.0]] * 3, [0, 0, 0]) == 0.0
    assert expected_calibration_error([[1.0, 0.0]] * 3, [1, 1, 1]) == 1.0


def test_calibration_error_puts_a_bins_upper_edge_inside_it() -> None:
    # 0.5 belongs to (0, 0.5], 0.51 to (0.5, 1]; in one bin the two would cancel out.
    assert expected_calibration_error([[0.5, 0.5], [0.51, 0.49]], [0, 1], bins=2) == pytest.approx((0.5 + 0.51) / 2)


@pytest.mark.parametrize(
    ("scores", "labels", "words"),
    [
        ([[1.0, 2.0]], [2], r"0\.\.1"),
        ([[1.0, 2.0]], [-1], r"0\.\.1"),
        ([[1.0, 2.0]], [0, 1], "one label for each of 1"),
        ([1.0, 2.0], [0], "pictures, classes"),
        (np.zeros((0, 2)), [], "neither of them 0"),
        ([[1.0, 2.0]], [0.5], "whole numbers"),
    ],
)
def test_what_does_not_belong_together_is_refused(scores: object, labels: object, words: str) -> None:
    for function in (cross_entropy, accuracy, expected_calibration_error):
        with pytest.raises(ValueError, match=words):
            function(scores, labels)  # type: ignore[arg-type]


def test_refusals_of_tables() -> None:
    with pytest.raises(ValueError, match="one length"):
        confusion([0, 1], [0], 2)
    with pytest.raises(ValueError, match="predicted must lie"):
        confusion([0], [2], 2)
    with pytest.raises(ValueError, match="one length"):
        per_class([0, 1], [0], ["hat", "shoes"])
    with pytest.raises(ValueError, match="bins=0"):
        expected_calibration_error([[1.0, 0.0]], [0], bins=0)
