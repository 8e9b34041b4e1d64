"""Memory shared out among threads."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from serving.memory import MemoryBudget, NoRoom


def _fits(budget: MemoryBudget, wanted: int) -> bool:
    try:
        with budget.hold(wanted):
            return True
    except NoRoom:
        return False


def test_what_fits_is_held_at_once_and_comes_back() -> None:
    budget = MemoryBudget(100)
    with budget.hold(60):
        assert _fits(budget, 40) and not _fits(budget, 41)
        with budget.hold(40):
            assert _fits(budget, 0) and not _fits(budget, 1)
    with pytest.raises(ValueError, match="torn"), budget.hold(100):
        raise ValueError("torn")
    assert _fits(budget, 100)


def test_more_than_there_is_runs_alone() -> None:
    budget = MemoryBudget(100)
    with budget.hold(1), pytest.raises(NoRoom) as caught, budget.hold(1_000):
        pass
    assert caught.value.wanted == 100
    with budget.hold(1_000):
        assert not _fits(budget, 1)
    assert _fits(budget, 100)


def test_who_waits_goes_on_when_there_is_room_and_never_all_at_once() -> None:
    budget = MemoryBudget(100)
    lock = threading.Lock()
    held = [0]
    most = [0]

    def take(wanted: int) -> None:
        with budget.hold(wanted):
            with lock:
                held[0] += wanted
                most[0] = max(most[0], held[0])
            time.sleep(0.002)
            with lock:
                held[0] -= wanted

    async def one(wanted: int) -> None:
        while True:
            try:
                return await asyncio.to_thread(take, wanted)
            except NoRoom as short:
                await budget.room(short.wanted)

    async def crowd() -> None:
        await asyncio.wait_for(asyncio.gather(*map(one, [60, 30, 50, 10] * 10)), 30)

    asyncio.run(crowd())
    assert 60 <= most[0] <= 100
    assert _fits(budget, 100)


def test_one_that_is_woken_and_takes_nothing_keeps_nobody_waiting() -> None:
    budget = MemoryBudget(100)

    async def two() -> None:
        with budget.hold(100):
            waiting = [asyncio.create_task(budget.room(60)) for _ in range(2)]
            await asyncio.sleep(0.01)
        await asyncio.wait_for(asyncio.gather(*waiting), 10)

    asyncio.run(two())


def test_who_gives_up_is_woken_no_more_and_a_small_part_does_not_wait_for_a_large_one() -> None:
    budget = MemoryBudget(100)

    async def crowd() -> None:
        with budget.hold(50):
            patient, impatient = (asyncio.create_task(budget.room(wanted)) for wanted in (100, 90))
            await asyncio.sleep(0.01)
            impatient.cancel()
            await asyncio.wait_for(budget.room(50), 1)  # There is room for this one.
            assert not patient.done()
        await asyncio.wait_for(patient, 1)
        assert impatient.cancelled() and budget._waiting == []

    asyncio.run(crowd())
