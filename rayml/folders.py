"""Folders of class folders on disk: what lies in them, read without trust.

Links are followed, two levels deep and no deeper, so that a link that leads back cannot make the reading go round;
devices and pipes are never opened. Used by `rayml.data` and `rayml.check`.
"""

from __future__ import annotations

import errno
import hashlib
import stat
import unicodedata
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from rayml.bundle_json import MAX_NAME_CHARACTERS
from rayml.errors import DataError
from rayml.pool import few_at_a_time
from rayml.progress import Progress

# What ext4 puts into the root of a new volume, for root alone.
LOST_AND_FOUND = "lost+found"
PHOTO_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})

_READ_BYTES = 2**20  # Hashing in pieces of 1 MiB keeps memory flat for files of any size.
_READERS = 8  # Files at once.
_SHOWN_NAMES = 8  # Enough names in a message to see what is wrong.
_LEADS_NOWHERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})

Kind = Literal["folder", "file", "nothing", "device"]


class FolderReader:
    """Reads class folders below one root, and remembers what it left aside.

    Arguments:
        root: what all names in the results are relative to.
        progress: where to show reading that takes long; nowhere when left out.
    """

    def __init__(self, root: Path, progress: Progress | None = None) -> None:
        self.root = root
        self._progress = progress or Progress(quiet=True)
        self._ignored: set[str] = set()

    @property
    def ignored(self) -> tuple[str, ...]:
        """The names of what is not used, sorted, folders with a "/" at their end."""
        return tuple(sorted(self._ignored))

    def ignore(self, paths: Iterable[Path]) -> None:
        """Note that these are not used."""
        self._ignored.update(self._relative(path) + "/" * (kind(path) == "folder") for path in paths)

    def class_photos(self, folder: Path) -> dict[str, list[tuple[str, str]]]:
        """The photos in each class folder of `folder`: {class: [(relative path, sha256)]}, sorted.

        Raises:
            DataError: a folder or photo cannot be read, or a class has a name that cannot be shown.
        """
        found: dict[str, list[Path]] = {}
        for class_folder in entries(folder):
            if kind(class_folder) != "folder":
                self.ignore([class_folder])
                continue
            paths = entries(class_folder)
            found[_label(class_folder)] = photos = [path for path in paths if is_photo(path)]
            self.ignore(set(paths) - set(photos))
        digests = iter(self._digests(folder, [path for photos in found.values() for path in photos]))
        return {label: [(self._relative(path), next(digests)) for path in photos] for label, photos in found.items()}

    def _digests(self, folder: Path, paths: Sequence[Path]) -> list[str]:
        """The sha256 of each, several files at a time: a disk of the network makes each of them wait."""
        found: list[str] = []
        bar = self._progress.bar(f"reading {printable(folder.name)}", len(paths), "photos", lasting=False)
        with ThreadPoolExecutor(_READERS) as pool, bar as advance:
            for digest in few_at_a_time(pool, sha256_of, paths):
                found.append(digest)
                advance()
        return found

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def kind(path: Path) -> Kind:
    """What a path leads to, links followed.

    Raises:
        DataError: the folder that it lies in does not let it be seen.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if error.errno in _LEADS_NOWHERE:
            return "nothing"
        raise _unreadable(path, error) from None
    if stat.S_ISDIR(mode):
        return "folder"
    return "file" if stat.S_ISREG(mode) else "device"


def entries(folder: Path) -> list[Path]:
    """What lies in a folder, sorted by name; hidden files and folders (.DS_Store, __MACOSX, lost+found) are left out.

    Raises:
        DataError: the folder cannot be read.
    """
    try:
        found = sorted(folder.iterdir(), key=lambda entry: entry.name)
    except OSError as error:
        raise _unreadable(folder, error) from None
    return [entry for entry in found if not _is_hidden(entry)]


def hidden(folder: Path) -> list[Path]:
    """What `entries` leaves out, sorted by name.

    Raises:
        DataError: the folder cannot be read.
    """
    try:
        return sorted((entry for entry in folder.iterdir() if _is_hidden(entry)), key=lambda entry: entry.name)
    except OSError as error:
        raise _unreadable(folder, error) from None


def shown(names: Iterable[str]) -> str:
    """Names for a message: sorted, and only the first few of many."""
    found = sorted(names)
    rest = len(found) - _SHOWN_NAMES
    return (", ".join(found[:_SHOWN_NAMES]) or "nothing") + (f" and {rest} more" if rest > 0 else "")


def told_apart(names: Iterable[str], others: Iterable[str]) -> list[str]:
    """Names for a message that names others beside them: as escapes where one of those is written in the same way.

    An "e" with an accent is one character or two: macOS and Linux may name one class in two ways that nobody can see.
    """
    written: dict[str, set[str]] = {}
    for other in others:
        written.setdefault(normalized(other), set()).add(other)
    return [f"{name!a}" if written.get(normalized(name), set()) - {name} else name for name in names]


def normalized(name: str) -> str:
    """The name as it is to the eye: Unicode's compatibility form NFKC."""
    return unicodedata.normalize("NFKC", name)


def printable(text: str) -> str:
    """Text of unknown origin, such as a file's name, without anything that a terminal would obey."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(".") or path.name in ("__MACOSX", LOST_AND_FOUND)


def is_photo(path: Path) -> bool:
    """Whether it is named like a photo and is a file, or a link that should lead to one."""
    return path.suffix.lower() in PHOTO_SUFFIXES and kind(path) in ("file", "nothing")


def has_shown_name(folder: Path) -> bool:
    """Whether a class folder's name can be written into a bundle and an HTTP answer."""
    # Neither line breaks nor bytes that are not UTF-8.
    return len(folder.name) <= MAX_NAME_CHARACTERS and folder.name.isprintable()


def _label(folder: Path) -> str:
    if not has_shown_name(folder):
        raise DataError(
            f"{folder.parent}: expected a class name of at most {MAX_NAME_CHARACTERS} printable characters. "
            f"Received: {folder.name!a}",
            "Rename the folder.",
        )
    return folder.name


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hexadecimal digits.

    Raises:
        DataError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_READ_BYTES):
                digest.update(block)
    except OSError as error:
        raise _unreadable(path, error) from None
    return digest.hexdigest()


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(
        f"{path}: expected something readable. Received: {error.strerror}",
        "Allow reading it, or move it away.",
    )
