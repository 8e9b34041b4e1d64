"""How many cores this process may keep busy: not the machine's, in a container or under `taskset`."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_ROOT = Path("/")


def usable_cores() -> int:
    """The cores of this process's cpuset, and no more than its CPU quota, rounded up; at least 1.

    More threads than a quota allows would use it up early in each period, and all of them would wait for the next one.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([allowed, *_quotas()])


def _quotas() -> Iterator[int]:
    """The quotas, in cores, of this process's control group and of those above it (cgroups(7), version 1 or 2).

    Inside a container the kernel may name the group as the host sees it, and the container sees it elsewhere: what is
    not there has no quota, and the container's own stands in the topmost folder.
    """
    for line in _read(_ROOT / "proc/self/cgroup").splitlines():
        _, controllers, name = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = _ROOT / "sys/fs/cgroup" / ("cpu" if controllers else "")
        group = PurePosixPath(name.lstrip("/"))
        for folder in (base / group, *(base / above for above in group.parents)):
            if controllers:
                words = [_read(folder / "cpu.cfs_quota_us").strip(), _read(folder / "cpu.cfs_period_us").strip()]
            else:
                words = _read(folder / "cpu.max").split()
            if len(words) == 2 and all(word.isdigit() and int(word) for word in words):  # Neither "max" nor -1.
                yield math.ceil(int(words[0]) / int(words[1]))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
