"""The memory of a process: what it does not need goes back to the system, the rest into huge pages.

Linux; elsewhere nothing happens. All of these change how memory is held, never what is in it.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import re
import sys
from pathlib import Path

import numpy as np

# MADV_COLLAPSE of madvise(2), Linux 6.1 and newer, which Python's mmap has no name for.
_MADV_COLLAPSE = 25
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage")
# A huge page holds its whole size: where at least this share is in use, little is added.
_IN_USE = 0.9
# An area in /proc/self/maps or smaps, proc(5): addresses, rights, offset, device, inode, path.
_AREA = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ \d+ *(.*)")


def settle() -> None:
    """Give back what was freed and the libraries' code, and move what is left into huge pages.

    For a process of our own that has loaded what it needs: it concerns all of its memory.
    """
    give_back_freed()
    give_back_code()
    use_huge_pages()


def give_back_freed() -> None:
    """Return to the system what was freed: after a model was read, glibc keeps 80 to 190 MB of it (measured)."""
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):  # another C library than glibc
            ctypes.CDLL(None).malloc_trim(0)


def give_back_file(file: Path) -> None:
    """Let go of the memory behind a mapped file; whoever reads there again gets it from the file (madvise(2))."""
    end_of_line = f" {file.resolve()}"
    for line in Path("/proc/self/maps").read_text(errors="replace").splitlines():
        if line.endswith(end_of_line):
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


def use_huge_pages() -> None:
    """Move the memory of this process into huge pages, where it fills them.

    A network's weights and values span tens of thousands of pages of 4 kB, more than the processor keeps the addresses
    of, so reading them waits for addresses. The kernel's setting "madvise", which most distributions have, leaves it to
    programs to ask for huge pages. It is asked to move what is there, in a tenth to half a second; memory that comes
    later stays as it is. With the setting "never", or on a kernel older than Linux 6.1, nothing happens. To be called
    in a process of our own alone: it concerns all of its memory.

    Source: madvise(2), MADV_COLLAPSE; the kernel's documentation of transparent huge pages.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            if "[never]" not in (_HUGE_PAGES / "enabled").read_text():
                size = int((_HUGE_PAGES / "hpage_pmd_size").read_text())
                for start, end in _own_areas(size):
                    _collapse(start, end, size)


def _own_areas(size: int) -> list[tuple[int, int]]:
    """Start and end of this process's own memory that can be written to, from and to whole multiples of `size`."""
    found = []
    for area in map(_AREA.match, Path("/proc/self/maps").read_text(errors="replace").splitlines()):
        if area and area[3] in ("rw-p", "rwxp") and area[4] in ("", "[heap]"):
            start, end = -(-int(area[1], 16) // size) * size, int(area[2], 16) // size * size
            if start < end:
                found.append((start, end))
    return found


def _collapse(start: int, end: int, size: int) -> None:
    """Move what is in use of an area into huge pages."""
    system = ctypes.CDLL(None)
    present = np.empty((end - start) // mmap.PAGESIZE, np.uint8)
    if system.mincore(ctypes.c_void_p(start), ctypes.c_size_t(end - start), present.ctypes.data_as(ctypes.c_void_p)):
        return  # It has gone meanwhile.
    full = (present & 1).reshape(-1, size // mmap.PAGESIZE).mean(axis=1) >= _IN_USE
    for first, last in np.flatnonzero(np.diff(full, prepend=False, append=False)).reshape(-1, 2).tolist():
        system.madvise(ctypes.c_void_p(start + first * size), ctypes.c_size_t((last - first) * size), _MADV_COLLAPSE)


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
