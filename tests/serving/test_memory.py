"""Memory shared out among threads."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from serving.memory import MemoryBudget

SOON_S, NEVER_S = 0.05, 30.0


def _fits(budget: MemoryBudget, wanted: int, seconds: float = 0.0) -> bool:
    try:
        with budget.hold(wanted, time.monotonic() + seconds):
            return True
    except TimeoutError:
        return False


def test_what_fits_is_held_at_once_and_comes_back() -> None:
    budget = MemoryBudget(100)
    with budget.hold(60, 0.0):
        assert _fits(budget, 40) and not _fits(budget, 41)
        with budget.hold(40, 0.0):
            assert _fits(budget, 0) and not _fits(budget, 1)
    with pytest.raises(ValueError, match="torn"), budget.hold(100, 0.0):
        raise ValueError("torn")
    assert _fits(budget, 100)


def test_more_than_there_is_runs_alone() -> None:
    budget = MemoryBudget(100)
    with budget.hold(1, 0.0):
        assert not _fits(budget, 1_000, SOON_S)
    with budget.hold(1_000, 0.0):
        assert not _fits(budget, 1)
    assert _fits(budget, 100)


def test_who_waits_goes_on_when_there_is_room_and_never_all_at_once() -> None:
    budget = MemoryBudget(100)
    lock = threading.Lock()
    held = [0]
    most = [0]

    def take(wanted: int) -> None:
        with budget.hold(wanted, time.monotonic() + NEVER_S):
            with lock:
                held[0] += wanted
                most[0] = max(most[0], held[0])
            time.sleep(0.002)
            with lock:
                held[0] -= wanted

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(take, [60, 30, 50, 10] * 10))
    assert 60 <= most[0] <= 100
    assert _fits(budget, 100)
