"""This process's descendants: found, adopted, awaited and, where they stay, ended.

Ray starts its daemons in their own process groups and HAProxy is a grandchild of theirs, so the only way to leave
nothing behind is to know the whole tree. Linux only, as Ray Serve's HAProxy is.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_POLL_S = 0.05


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends (prctl(2), PR_SET_CHILD_SUBREAPER)."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants(root: int) -> set[int]:
    """The process ids of all living descendants of `root`, itself excluded."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # The command's name may hold spaces and brackets: the fields begin after the last bracket.
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                if state != "Z":
                    parents[int(entry.name)] = int(parent)
    found: set[int] = set()
    waiting = [root]
    while waiting:
        parent_id = waiting.pop()
        children = [pid for pid, parent in parents.items() if parent == parent_id and pid not in found]
        found.update(children)
        waiting.extend(children)
    return found


def end_descendants(grace_s: float) -> None:
    """Wait for all descendants of this process to end, and kill those that have not.

    Arguments:
        grace_s: seconds to wait before killing.
    """
    deadline = time.monotonic() + grace_s
    while living := _reap(descendants(os.getpid())):
        if time.monotonic() > deadline:
            for pid in living:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(_POLL_S)
    _reap(set())


def _reap(living: set[int]) -> set[int]:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0] > 0:
            pass
    return living
