"""How callers share lanes, with lanes that say what they were asked to do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from rayml.engines.turns import Lane, Turns


class Doubling(Lane):
    """Gives twice a picture's only value, when it is let; `groups` says which values were computed together."""

    def __init__(self, size: int, together: int = 10**9) -> None:
        self.size, self._most = size, together
        self._values = np.zeros(size, np.float32)
        self._running: NDArray[np.float32] = self._values[:0]
        self.groups: list[list[float]] = []
        self.started: list[float] = []
        self.drained = 0
        self.let = threading.Semaphore(10**9)
        self.fails: BaseException | None = None

    def start(self, place: int, picture: NDArray[np.uint8]) -> None:
        self._values[place] = picture[0, 0]
        self.started.append(float(picture[0, 0]))

    def wait(self, place: int) -> None:
        self.let.acquire()
        if self.fails is not None:
            fails, self.fails = self.fails, None
            raise fails

    def start_together(self, first: int, count: int) -> int:
        self._running = self._values[first : first + min(count, self._most)]
        self.groups.append(self._running.tolist())
        return len(self._running)

    def wait_together(self) -> NDArray[np.float32]:
        return 2 * self._running[:, np.newaxis]

    def drain(self) -> None:
        self.drained += 1


def _pictures(*values: int) -> NDArray[np.uint8]:
    return np.array(values, np.uint8)[:, np.newaxis]


def _run(turns: Turns, *values: int) -> list[float]:
    result = np.full((len(values), 1), np.nan, np.float32)
    turns.run(_pictures(*values), result)
    return [float(value) for value in result[:, 0]]


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def _waiting(turns: Turns, pool: ThreadPoolExecutor, *calls: tuple[int, ...]) -> list[Future[list[float]]]:
    """The calls, begun in this order while no lane is free."""
    begun = []
    for values in calls:
        count = len(turns._waiting)
        begun.append(pool.submit(_run, turns, *values))
        _until(lambda count=count: len(turns._waiting) == count + 1)  # type: ignore[misc]
    return begun


def _busy(turns: Turns, lane: Doubling, pool: ThreadPoolExecutor) -> Future[list[float]]:
    """A call with the picture 1 that keeps the lane until `lane.let` is released."""
    lane.let = threading.Semaphore(0)
    first = pool.submit(_run, turns, 1)
    _until(lambda: lane.started == [1])
    return first


def test_who_comes_alone_waits_for_nobody() -> None:
    lane = Doubling(4)
    assert [_run(Turns([lane]), value) for value in (3, 5)] == [[6], [10]]
    assert lane.groups == [[3], [5]]


def test_those_who_wait_go_together_in_their_order_until_the_group_is_full() -> None:
    lane = Doubling(3)
    turns = Turns([lane])
    with ThreadPoolExecutor(8) as pool:
        first = _busy(turns, lane, pool)
        others = _waiting(turns, pool, (2,), (3,), (4,), (5,))
        lane.let.release(100)
        assert [each.result(10) for each in (first, *others)] == [[2], [4], [6], [8], [10]]
    assert lane.groups == [[1, 2, 3], [4, 5]]


def test_a_group_that_a_lane_computes_in_parts() -> None:
    lane = Doubling(4, together=2)
    turns = Turns([lane])
    with ThreadPoolExecutor(8) as pool:
        first = _busy(turns, lane, pool)
        others = _waiting(turns, pool, (2,), (3,))
        lane.let.release(100)
        assert [each.result(10) for each in (first, *others)] == [[2], [4], [6]]
    assert lane.groups == [[1, 2], [3]]


def test_many_pictures_fill_the_lanes_that_are_free() -> None:
    lanes = [Doubling(2), Doubling(2), Doubling(2)]
    assert _run(Turns(lanes), *range(1, 8)) == [2, 4, 6, 8, 10, 12, 14]
    assert sorted(len(lane.groups) for lane in lanes) == [1, 1, 2]
    lanes = [Doubling(2), Doubling(2), Doubling(2)]
    assert _run(Turns(lanes), 1, 2, 3) == [2, 4, 6]
    assert sorted(len(lane.started) for lane in lanes) == [0, 1, 2]


def test_a_call_of_many_is_taken_along_by_nobody() -> None:
    lane = Doubling(4)
    turns = Turns([lane])
    with ThreadPoolExecutor(8) as pool:
        first = _busy(turns, lane, pool)
        others = _waiting(turns, pool, (2, 3), (4,))
        lane.let.release(100)
        assert [each.result(10) for each in (first, *others)] == [[2], [4, 6], [8]]
    assert lane.groups == [[1], [2, 3], [4]]


@pytest.mark.parametrize("fails", [RuntimeError("no memory"), KeyboardInterrupt()])
def test_a_failure_is_its_callers_own_and_the_others_get_their_answers(fails: BaseException) -> None:
    lane = Doubling(4)
    turns = Turns([lane])
    lane.let = threading.Semaphore(0)
    raised: list[BaseException] = []

    def lead() -> None:
        try:
            _run(turns, 1)
        except BaseException as error:
            raised.append(error)

    leader = threading.Thread(target=lead)
    leader.start()
    _until(lambda: lane.started == [1])
    with ThreadPoolExecutor(8) as pool:
        others = _waiting(turns, pool, (2,), (3,))
        lane.let.release()  # The first picture is done, and the second is taken along.
        _until(lambda: lane.started == [1, 2])
        lane.fails = fails
        lane.let.release(100)
        leader.join(10)
        assert [each.result(10) for each in others] == [[4], [6]]
    assert raised == [fails]
    assert (lane.drained, lane.groups) == (1, [[2, 3]])


def test_a_failure_of_many_frees_every_lane() -> None:
    lanes = [Doubling(1), Doubling(1)]
    turns = Turns(lanes)
    lanes[0].fails = RuntimeError("no memory")
    with pytest.raises(RuntimeError, match="no memory"):
        _run(turns, 1, 2, 3)
    assert [lane.drained for lane in lanes] == [1, 1]
    assert _run(turns, 4, 5) == [8, 10]


def test_who_gives_up_waiting_keeps_no_place_and_no_lane() -> None:
    class Interrupted:
        def acquire(self) -> None:
            raise KeyboardInterrupt

    lane = Doubling(2)
    turns = Turns([lane])
    with ThreadPoolExecutor(2) as pool, pytest.MonkeyPatch.context() as patch:
        first = _busy(turns, lane, pool)
        made = iter([Interrupted()])
        patch.setattr("rayml.engines.turns._locked", lambda: next(made))
        with pytest.raises(KeyboardInterrupt):
            _run(turns, 2)
        lane.let.release(100)
        assert first.result(10) == [2]
    assert _run(turns, 3) == [6]
    assert lane.groups == [[1], [3]]


def test_who_gave_up_in_a_group_is_handed_no_lane_when_the_group_fails() -> None:
    lane = Doubling(4)
    turns = Turns([lane])
    given_up = threading.Event()

    class Interrupted:
        def acquire(self) -> None:
            assert given_up.wait(10)
            raise KeyboardInterrupt

    with ThreadPoolExecutor(4) as pool, pytest.MonkeyPatch.context() as patch:
        first = _busy(turns, lane, pool)
        patch.setattr("rayml.engines.turns._locked", Interrupted)
        other = _waiting(turns, pool, (2,))[0]
        lane.let.release()
        _until(lambda: lane.started == [1, 2])
        given_up.set()
        with pytest.raises(KeyboardInterrupt):
            other.result(10)
        patch.undo()
        lane.fails = RuntimeError("no memory")
        lane.let.release(100)
        with pytest.raises(RuntimeError):
            first.result(10)
    assert turns._free == [lane]
    assert _run(turns, 3) == [6]


def test_who_holds_all_lanes_computes_alone() -> None:
    lanes = [Doubling(2), Doubling(2)]
    turns = Turns(lanes)
    for lane in lanes:
        lane.let = threading.Semaphore(0)
    entered, others_wait = threading.Event(), threading.Event()
    result = np.zeros((3, 1), np.float32)

    def hold() -> None:
        with turns.held() as run:
            entered.set()
            assert others_wait.wait(10)  # And nobody takes them along.
            run(_pictures(7, 8, 9), result)

    with ThreadPoolExecutor(8) as pool:
        first = [pool.submit(_run, turns, value) for value in (1, 2)]
        _until(lambda: sum(len(lane.started) for lane in lanes) == 2)
        holder = pool.submit(hold)
        _until(lambda: len(turns._waiting) == 1)
        assert not entered.is_set()
        for lane in lanes:
            lane.let.release(100)
        _until(entered.is_set)
        later = _waiting(turns, pool, (3,), (4,))
        others_wait.set()
        assert [each.result(10) for each in (*first, *later)] == [[2], [4], [6], [8]]
        holder.result(10)
    assert result[:, 0].tolist() == [14, 16, 18]
    assert sorted(group for lane in lanes for group in lane.groups[:2]) == [[1], [2], [7, 9], [8]]
    assert len(turns._free) == 2


def test_many_threads_get_their_own_answers() -> None:
    lanes = [Doubling(4), Doubling(4)]
    turns = Turns(lanes)
    with ThreadPoolExecutor(16) as pool:
        calls = [
            tuple(int(v) for v in np.random.default_rng(i).integers(0, 127, 1 + (i % 5 == 0) * 6)) for i in range(800)
        ]
        assert list(pool.map(lambda call: _run(turns, *call), calls)) == [[2 * v for v in call] for call in calls]
    assert sorted(map(id, turns._free)) == sorted(map(id, lanes))
