from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tune_jobs.space import Range, parse_choice


def draws(kind: str, *numbers: float, count: int = 4000) -> Any:
    random = np.random.default_rng(1)
    return np.array([Range(kind, *numbers).draw(random) for _ in range(count)])


def test_a_range_is_drawn_evenly_from_end_to_end() -> None:
    for kind, scale in (("uniform", np.asarray), ("loguniform", np.log)):
        values = draws(kind, 0.001, 0.1)
        low, high = scale(0.001), scale(0.1)
        places = (scale(values) - low) / (high - low)
        assert 0 <= places.min() < 0.01 and 0.99 < places.max() <= 1
        shares, _ = np.histogram(places, bins=4, range=(0, 1))
        assert abs(shares / len(values) - 0.25).max() < 0.03  # four standard deviations


def test_whole_numbers_with_both_ends() -> None:
    values = draws("randint", 3, 6)
    assert sorted(set(values)) == [3, 4, 5, 6]
    assert all(isinstance(Range("randint", 3, 6).draw(np.random.default_rng(seed)), int) for seed in range(5))
    logarithmic = draws("lograndint", 1, 3)
    # log 2, log 3/2 and log 4/3 of log 4
    shares = [float((logarithmic == value).mean()) for value in (1, 2, 3)]
    np.testing.assert_allclose(shares, [0.5, 0.2925, 0.2075], atol=0.03)


def test_multiples_of_a_step() -> None:
    assert sorted(set(draws("quniform", 0.0, 0.5, 0.1))) == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert sorted(set(draws("quniform", 8, 64, 16))) == [16, 32, 48, 64]
    assert isinstance(Range("quniform", 8, 64, 16).draw(np.random.default_rng(1)), int)


@pytest.mark.parametrize(
    ("given", "whole", "choice"),
    [
        (10, True, (10,)),
        ([10, "20"], True, (10, 20)),
        ("1e-3", False, (0.001,)),
        ((0.5, 1), False, (0.5, 1.0)),
        ({"loguniform": ["1e-5", 0.1]}, False, Range("loguniform", 1e-5, 0.1)),
        ({"quniform": [8, 64, 8]}, True, Range("quniform", 8, 64, 8)),
        (Range("randint", 1, 5), True, Range("randint", 1, 5)),
    ],
)
def test_what_a_person_may_write(given: Any, whole: bool, choice: Any) -> None:
    assert parse_choice(given, whole) == choice


@pytest.mark.parametrize(
    "given", [None, [], [[1]], [1, 1], {}, {"uniform": 1}, {"uniform": [0, 1], "loguniform": [1, 2]}, [float("inf")]]
)
def test_what_is_no_choice(given: Any) -> None:
    with pytest.raises(ValueError, match=r"must be|input should|needs"):
        parse_choice(given, True)


@pytest.mark.parametrize(
    ("given", "whole"),
    [
        ({"randint": [1, 1e30]}, True),
        ({"randint": [-(2**64), 1]}, True),
        ({"quniform": [0, 0.5, 1e-300]}, False),
        ({"quniform": [0, 1e300, 1e-300]}, False),
    ],
)
def test_ranges_that_nobody_can_draw_from(given: Any, whole: bool) -> None:
    with pytest.raises(ValueError, match=r"the ends of \w+ must be less than 2\*\*63"):
        parse_choice(given, whole)


def test_the_largest_ranges_can_be_drawn_from() -> None:
    random = np.random.default_rng(1)
    assert 1 <= Range("randint", 1, 2**62).draw(random) <= 2**62
    assert 0 <= Range("quniform", 0.0, 0.5, 1e-19).draw(random) <= 0.5
    assert 1 <= Range("lograndint", 1, int(1e30)).draw(random) <= 1e30
