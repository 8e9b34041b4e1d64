"""Memory that threads share out among themselves before they take it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class NoRoom(Exception):
    """What was asked for is not free now; `wanted` bytes have to be."""

    def __init__(self, wanted: int) -> None:
        super().__init__(f"{wanted} bytes must be free")
        self.wanted = wanted


class MemoryBudget:
    """A number of bytes, parts of which are held for a while. Thread-safe.

    Nobody waits on a thread, which others could use: `hold` takes at once or not at all, and `room` waits on an event
    loop. Whoever fits goes first, so a small part never waits behind a large one that does not fit yet.

    Arguments:
        total: bytes, at least 1.
    """

    def __init__(self, total: int) -> None:
        self._total = self._free = total
        self._lock = threading.Lock()
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []

    @contextmanager
    def hold(self, wanted: int) -> Iterator[None]:
        """Hold so many bytes; more than there are at all is all of them, so it runs alone.

        Arguments:
            wanted: bytes, at least 0.

        Raises:
            NoRoom: they are not free.
        """
        held = min(wanted, self._total)
        with self._lock:
            if self._free < held:
                raise NoRoom(held)
            self._free -= held
        try:
            yield
        finally:
            with self._lock:
                self._free += held
                # All that fit by themselves: who is late asks again, and one that is told and gone takes nobody's turn.
                for needed, room in self._waiting:
                    if needed <= self._free:
                        room.get_loop().call_soon_threadsafe(_wake, room)

    async def room(self, wanted: int) -> None:
        """Wait until so many bytes are free; they may be taken again before `hold` is called.

        Arguments:
            wanted: bytes, as `NoRoom` says.
        """
        room = asyncio.get_running_loop().create_future()
        with self._lock:
            if self._free >= wanted:
                return
            self._waiting.append((wanted, room))
        try:
            await room
        finally:
            with self._lock, suppress(ValueError):
                self._waiting.remove((wanted, room))


def _wake(room: asyncio.Future[None]) -> None:
    if not room.done():
        room.set_result(None)
