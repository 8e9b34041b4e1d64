"""What the requests of a replica may hold of it at once, and who is refused or gives way when all of it is taken.

A request holds a place from before its body is read until it is answered, the bytes that came for it, and room for the
pictures of a batch.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from typing import Any

from rayml.errors import InputError
from serving.limits import RequestLimits

OVERLOADED = "overloaded"
# While all places are taken, a body that trickles loses its place to the next request: 64 clients of a byte a second
# would keep everybody else out. Below this pace no more than 0.5 MB could come before the deadline anyway.
_TRICKLE_BYTES_PER_S = 16 * 1024
_TRICKLE_GRACE_S = 2.0


def overloaded() -> InputError:
    """The refusal of a request for which there is no room."""
    return InputError("All places are taken; try again.", status=503, code=OVERLOADED)


class Admission:
    """The room of one replica. To be used from one event loop.

    `in_flight`, `buffered_bytes` and `batched` say what is taken of it, `readers` whose bodies are on their way.

    Arguments:
        limits: how much there is.
    """

    def __init__(self, limits: RequestLimits) -> None:
        self.limits = limits
        self.in_flight, self.buffered_bytes, self.batched = 0, 0, 0
        self.readers: set[Place] = set()

    def place(self) -> Place:
        """A place, which is taken while its context lasts; a body that only trickles may have to give way to it.

        Raises:
            InputError: 503, there is none.
        """
        if self.in_flight >= self.limits.max_in_flight and not self._end_a_trickle():
            raise overloaded()
        return Place(self)

    def _end_a_trickle(self) -> bool:
        """Let a request whose body only trickles give way; False where there is none."""
        now = time.monotonic()
        for place in self.readers:
            seconds = now - place.reading_since
            if seconds > _TRICKLE_GRACE_S and place.buffered_bytes < _TRICKLE_BYTES_PER_S * seconds:
                place.give_way()
                return True
        return False


class Place:
    """What one request holds, until its context ends.

    `gave_way` says whether its reader was cancelled because the body only trickled.

    Arguments:
        room: where it holds it.
    """

    def __init__(self, room: Admission) -> None:
        self._room = room
        self._reader: asyncio.Task[Any] | None = None
        self._batched = 0
        self.buffered_bytes = 0
        self.reading_since = 0.0
        self.gave_way = False

    def __enter__(self) -> Place:
        self._room.in_flight += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._room.in_flight -= 1
        self._room.buffered_bytes -= self.buffered_bytes
        self._room.batched -= self._batched

    def give_way(self) -> None:
        """Cancel what reads the body; the place is free when it has ended, a moment later."""
        assert self._reader is not None
        self._room.readers.remove(self)
        self.gave_way = True
        self._reader.cancel()

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """While a body is on its way to this task, which is cancelled if it gives way."""
        self._reader, self.reading_since = asyncio.current_task(), time.monotonic()
        self._room.readers.add(self)
        try:
            yield
        finally:
            self._room.readers.discard(self)

    def hold_bytes(self, count: int) -> None:
        """Keep room for what came of a request until it is answered.

        Raises:
            InputError: 503, there is none.
        """
        if self._room.buffered_bytes + count > self._room.limits.max_buffered_bytes:
            raise overloaded()
        self.buffered_bytes += count
        self._room.buffered_bytes += count

    def hold_batch(self, count: int) -> None:
        """Keep room for a request's pictures until it is answered; a single batch always gets in.

        Raises:
            InputError: 503, there is none.
        """
        if self._room.batched and self._room.batched + count > self._room.limits.max_batched:
            raise overloaded()
        self._batched = count
        self._room.batched += count
