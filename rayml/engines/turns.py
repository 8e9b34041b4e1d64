"""How callers share the lanes of an engine, and pictures that wait for one go through it together."""

from __future__ import annotations

import contextlib
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray


class Lane(ABC):
    """What computes one group of pictures at a time: each alone at first, then all of them together.

    `size` says how many pictures a group may have.
    """

    size: int

    @abstractmethod
    def start(self, place: int, picture: NDArray[np.uint8]) -> None:
        """Begin with the picture, uint8 (1, H, W, 3), at this place of the group, 0..size - 1."""

    @abstractmethod
    def wait(self, place: int) -> None:
        """Until the picture at this place has come as far as it comes alone."""

    @abstractmethod
    def start_together(self, first: int, count: int) -> int:
        """Begin with what is left for the pictures from place `first` on, as many of `count` as go together.

        Returns:
            How many these are, at least 1.
        """

    @abstractmethod
    def wait_together(self) -> NDArray[np.float32]:
        """Their results, float32 (n, K), good until the lane is used again."""

    @abstractmethod
    def drain(self) -> None:
        """Until nothing is at work any more, whatever became of it; then the lane may be used again."""


def _locked() -> threading.Lock:
    """A lock that is taken: who waits for somebody takes it again, and is let go on by its release."""
    lock = threading.Lock()
    lock.acquire()
    return lock


class _Caller:
    """One call: its pictures (N, H, W, 3) and their results (N, K), which belong to it."""

    __slots__ = ("gone", "images", "lane", "result", "woken")

    def __init__(self, images: NDArray[np.uint8], result: NDArray[np.float32]) -> None:
        self.images, self.result = images, result
        self.lane: Lane | None = None  # What it was handed while it waited.
        self.gone = False  # It was interrupted: nobody is there to use a lane.
        self.woken = _locked()


class Turns:
    """Lets callers take turns. Thread-safe, without threads of its own.

    Who finds a free lane takes it, and never waits for company. Who finds none waits, in order, and is either handed a
    lane, or a caller that has one takes its picture along: whenever it has brought one picture as far as it comes
    alone, it takes the next one that waits, until the group is full or nobody waits.

    Arguments:
        lanes: at least one.
    """

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self._lock = threading.Lock()
        self._free = list(lanes)
        self._count = len(self._free)
        self._waiting: deque[_Caller] = deque()

    def run(self, images: NDArray[np.uint8], result: NDArray[np.float32]) -> None:
        """Fill `result` (N, K) from `images` (N, H, W, 3), N >= 1."""
        caller = _Caller(images, result)
        lane = self._lane(caller)
        if lane is None:
            return  # Its picture went with somebody else's.
        if len(images) == 1:
            self._lead(caller, lane)
        else:
            self._run_many(caller, lane)

    @contextlib.contextmanager
    def held(self) -> Iterator[Callable[[NDArray[np.uint8], NDArray[np.float32]], None]]:
        """All lanes, for as long as the context lasts; other callers wait. To be used by one thread at a time.

        Yields:
            What `run` is to the others.
        """
        lanes: list[Lane] = []
        try:
            while len(lanes) < self._count:
                lane = self._lane(_Caller(np.empty(0, np.uint8), np.empty(0, np.float32)), first=True)
                assert lane is not None  # Without a picture it goes with nobody's.
                lanes.append(lane)
            yield lambda images, result: self._compute(lanes, images, result)
        finally:
            for each in lanes:
                self._hand_on(each)

    def _lane(self, caller: _Caller, first: bool = False) -> Lane | None:
        """The lane that the caller gets, when it gets one, or None when its picture went with somebody else's.

        Arguments:
            caller: who waits, where none is free.
            first: it waits before all others.
        """
        with self._lock:
            if self._free:
                return self._free.pop()
            if first:
                self._waiting.appendleft(caller)
            else:
                self._waiting.append(caller)
        try:
            caller.woken.acquire()
        except BaseException:  # Ctrl-C in a notebook
            with self._lock:
                caller.gone = True
                if caller in self._waiting:
                    self._waiting.remove(caller)
            if caller.lane is not None:
                self._hand_on(caller.lane)
            raise
        return caller.lane

    def _lead(self, caller: _Caller, lane: Lane) -> None:
        """Compute the caller's picture and those that it can take along."""
        group = [caller]
        try:
            while True:
                lane.start(len(group) - 1, group[-1].images)
                lane.wait(len(group) - 1)
                if not self._take_along(group, lane.size):
                    break
            done = 0
            while done < len(group):
                count = lane.start_together(done, len(group) - done)
                for other, row in zip(group[done : done + count], lane.wait_together(), strict=True):
                    other.result[0] = row
                done += count
        except BaseException:  # The others try again by themselves, and see for themselves what is wrong.
            try:
                lane.drain()
            finally:
                with self._lock:
                    self._waiting.extendleft(other for other in reversed(group[1:]) if not other.gone)
                self._hand_on(lane)
            raise
        self._hand_on(lane)
        for other in group[1:]:
            other.woken.release()

    def _take_along(self, group: list[_Caller], most: int) -> bool:
        """Add the picture that waits longest to the group, if there is one and it has room."""
        if len(group) == most or not self._waiting:
            return False
        with self._lock:
            if not self._waiting or len(self._waiting[0].images) != 1:
                return False
            group.append(self._waiting.popleft())
        return True

    def _run_many(self, caller: _Caller, lane: Lane) -> None:
        """Compute the caller's pictures on as many lanes as are free now and they fill."""
        lanes = [lane]
        with self._lock:
            while self._free and len(lanes) * lane.size < len(caller.images):
                lanes.append(self._free.pop())
        try:
            self._compute(lanes, caller.images, caller.result)
        finally:
            for each in lanes:
                self._hand_on(each)

    def _compute(self, lanes: list[Lane], images: NDArray[np.uint8], result: NDArray[np.float32]) -> None:
        """Fill `result` from `images` on these lanes."""
        try:
            most = lanes[0].size * len(lanes)
            for first in range(0, len(images), most):
                count = min(most, len(images) - first)
                places = [divmod(i, len(lanes))[::-1] for i in range(count)]
                for i, (which, place) in enumerate(places):
                    lanes[which].start(place, images[first + i : first + i + 1])
                for which, place in reversed(places):
                    lanes[which].wait(place)
                self._run_together(lanes, result[first : first + count])
        except BaseException:
            for each in lanes:
                each.drain()
            raise

    def _run_together(self, lanes: list[Lane], result: NDArray[np.float32]) -> None:
        """Bring pictures to their end that were dealt out to the lanes in turn; results (n, K)."""
        shares = [result[which :: len(lanes)] for which in range(len(lanes))]
        done = [0] * len(lanes)
        while running := [which for which, share in enumerate(shares) if done[which] < len(share)]:
            counts = [lanes[which].start_together(done[which], len(shares[which]) - done[which]) for which in running]
            for which, count in zip(running, counts, strict=True):
                shares[which][done[which] : done[which] + count] = lanes[which].wait_together()
                done[which] += count

    def _hand_on(self, lane: Lane) -> None:
        """Give a lane to who waits longest, or keep it for who comes next."""
        with self._lock:
            if self._waiting:
                caller = self._waiting.popleft()
                caller.lane = lane
                caller.woken.release()
            else:
                self._free.append(lane)
