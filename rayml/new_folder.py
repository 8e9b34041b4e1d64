"""A folder that is there whole or not at all: a hidden draft first, its content under the folder's name at the end."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rayml.errors import UsageError

PARTIAL = ".rayml-partial-"  # What a killed process leaves begins so, and can be deleted.


def behind_links(folder: Path) -> Path:
    """The folder that a path leads to, absolute; it need not be there.

    Raises:
        UsageError: its links lead in a circle, or it cannot be told where they lead.
    """
    reason = "links that lead in a circle"
    try:
        found = folder.resolve()
        if not found.is_symlink():  # As Python 3.13 leaves it, which raises nothing.
            return found
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or reason
    raise UsageError(f"expected a new or an empty folder. Received: {folder} ({reason})", "Name another folder.")


def is_new(folder: Path) -> bool:
    """Whether nothing is there, or an empty folder; what a killed process left in it does not count.

    Raises:
        OSError: it cannot be seen.
    """
    if not folder.exists():
        return True
    return folder.is_dir() and all(entry.name.startswith(PARTIAL) for entry in folder.iterdir())


@contextmanager
def drafted(folder: Path) -> Iterator[Path]:
    """A hidden folder to write into, whose content is moved to `folder` where the block ends without an error.

    A folder that is not there yet appears in one step: the draft lies beside it and is renamed (POSIX rename). An empty
    one stays the very folder, since it may be where a shell works, or where a volume is mounted: the draft lies in it,
    and its entries are moved up one after the other, or all of them back where one cannot be.

    Arguments:
        folder: `is_new`; its parent is there.

    Raises:
        OSError: it cannot be written.
        FileExistsError: what was to be moved into it is there by now.
    """
    there = folder.exists()
    with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=folder if there else folder.parent) as hidden:
        draft = Path(hidden, "draft")  # `hidden` itself is for its owner alone.
        draft.mkdir()
        yield draft
        if there:
            _move_up(draft, folder)
        else:
            draft.rename(folder)


def _move_up(draft: Path, folder: Path) -> None:
    moved: list[str] = []
    try:
        for entry in sorted(draft.iterdir()):
            target = folder / entry.name
            if target.exists() or target.is_symlink():  # What another process has put there is not written over.
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
            entry.rename(target)
            moved.append(entry.name)
    except OSError:
        for name in moved:
            (folder / name).rename(draft / name)
        raise
