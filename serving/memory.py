"""Memory that threads share out among themselves before they take it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class MemoryBudget:
    """A number of bytes, parts of which are held for a while. Thread-safe.

    Whoever fits goes first, so a small part never waits behind a large one that does not fit yet.

    Arguments:
        total: bytes, at least 1.
    """

    def __init__(self, total: int) -> None:
        self._total = self._free = total
        self._freed = threading.Condition()

    @contextmanager
    def hold(self, wanted: int, until: float) -> Iterator[None]:
        """Wait for so many bytes and hold them; more than there are at all waits for all of them, so it runs alone.

        Arguments:
            wanted: bytes, at least 0.
            until: when to give up, by `time.monotonic`.

        Raises:
            TimeoutError: they were not free by then.
        """
        held = min(wanted, self._total)
        with self._freed:
            if not self._freed.wait_for(lambda: self._free >= held, max(0.0, until - time.monotonic())):
                raise TimeoutError
            self._free -= held
        try:
            yield
        finally:
            with self._freed:
                self._free += held
                self._freed.notify_all()
