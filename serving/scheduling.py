"""Who gets the processor first in a server: whoever answers.

Ray's daemons and its threads in each process wake up some 1,500 times a second between them, whether requests come or
not. Each time the kernel lets them interrupt a thread that computes, whose data then has to come back into the caches.
Scheduled as batch work (SCHED_BATCH of sched(7)) they get as much of the processor as before, but wait for a pause.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def in_background() -> Iterator[None]:
    """Let threads and processes that this thread starts meanwhile be scheduled as batch work. Linux."""
    before = os.sched_getscheduler(0)
    _schedule(os.SCHED_BATCH)
    try:
        yield
    finally:
        _schedule(before)


def in_foreground() -> None:
    """Let this thread, and those that it starts from now on, go before batch work.

    Nothing happens in a thread that is not batch work, or elsewhere than on Linux.
    """
    if hasattr(os, "SCHED_BATCH") and os.sched_getscheduler(0) == os.SCHED_BATCH:
        _schedule(os.SCHED_OTHER)


def _schedule(policy: int) -> None:
    with contextlib.suppress(OSError):  # A container may forbid it, or a real-time policy want a priority.
        os.sched_setscheduler(0, policy, os.sched_param(0))
