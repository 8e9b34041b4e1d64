"""Memory that a process holds and does not need, given back to the system. Linux; elsewhere nothing happens."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import re
import sys
from pathlib import Path

# The first line of an area in /proc/self/smaps, proc(5): addresses, rights, offset, device, inode, path.
_AREA = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ \d+ *(.*)")


def give_back_freed() -> None:
    """Return to the system what was freed: after a model was read, glibc keeps 80 to 190 MB of it (measured)."""
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):  # another C library than glibc
            ctypes.CDLL(None).malloc_trim(0)


def give_back_file(file: Path) -> None:
    """Let go of the memory behind a mapped file; whoever reads there again gets it from the file (madvise(2))."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(f" {file}"):
            start, end = (int(address, 16) for address in line.split(maxsplit=1)[0].split("-"))
            _let_go(start, end)


def give_back_code() -> None:
    """Let go of the code and constants of all libraries, most of which only a start needs: 70 MB of a serving process.

    What is needed again comes back from the system's cache of files, or from the file. Areas that can be written to,
    or were, stay. So does one that was not there a moment ago: a library that another thread is loading now is mapped
    as a whole first, and parts of it are written to next.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            for start, end in sorted(_unwritten_areas() & _unwritten_areas()):
                _let_go(start, end)


def _unwritten_areas() -> set[tuple[int, int]]:
    """Start and end of where files are mapped that cannot be written to there, and no page differs from its file."""
    found: set[tuple[int, int]] = set()
    area = (0, 0)
    for line in Path("/proc/self/smaps").read_text(errors="replace").splitlines():
        if first := _AREA.match(line):
            start, end, rights, path = first.groups()
            area = (int(start, 16), int(end, 16))
            if rights in ("r-xp", "r--p") and path.startswith("/"):
                found.add(area)
        elif line.startswith(("Anonymous:", "Swap:")) and int(line.split()[1]) > 0:
            found.discard(area)
    return found


def _let_go(start: int, end: int) -> None:
    ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)
