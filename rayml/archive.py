"""Zip files from elsewhere, unpacked without trust: all names and sizes are checked before anything is written.

Refused are names that leave the folder (`..`, absolute, drive letters, back-slashes), links and devices, names that
differ in case alone or come twice, long names, encrypted entries, entries that share bytes, too many of them and too
large ones.
"""

from __future__ import annotations

import os
import re
import stat
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rayml.errors import DataError, RaymlError

_END_OF_DIRECTORY = b"PK\5\6"
_END_BYTES = 22 + 65_535  # APPNOTE 4.3.16: the record and the longest comment behind it.
_LOCAL_HEADER_BYTES = 30
_DIRECTORY_BYTES_OF_AN_ENTRY = 512  # Header, name and extra field of most; only bounds what is read of the directory.
_READ_BYTES = 2**20
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_HINT = "Do not use this file; download it again from a source that you trust."


@dataclass(frozen=True)
class ArchiveLimits:
    """How much an archive may hold; all of it is checked before anything is unpacked.

    Arguments:
        max_entries: files and folders.
        max_bytes: of all files together, unpacked.
        max_name: characters of an entry's whole name.
    """

    max_entries: int = 1_000_000
    max_bytes: int = 2**40
    max_name: int = 255


DEFAULT_LIMITS = ArchiveLimits()


def unpack(
    archive: Path,
    target: Path,
    wanted: Callable[[str], str | None],
    limits: ArchiveLimits = DEFAULT_LIMITS,
    advance: Callable[[int], None] = lambda count: None,
) -> int:
    """Unpack a zip file into an empty folder.

    Arguments:
        archive: the file.
        target: an empty folder.
        wanted: an entry's name to the name that it gets below `target`, or None to leave it out.
        limits: what is refused.
        advance: told of each file that is done with.

    Returns:
        How many files were written.

    Raises:
        DataError: not a zip file, damaged, or one of the things this module refuses.
        RaymlError: the disk is full or cannot be written to, or the archive not be read.
    """
    try:
        _check_directory(archive, limits)
        with zipfile.ZipFile(archive) as opened:
            files = _checked(opened, limits)
            written = 0
            for info in files:
                name = wanted(info.filename)
                if name is not None:
                    _write(opened, info, target / name)
                    written += 1
                advance(1)
            return written
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, zipfile.zlib.error) as error:  # type: ignore[attr-defined]
        raise _refused(archive, f"a damaged one ({error})") from None
    except OSError as error:
        raise _unreadable(archive, error) from None


def _check_directory(archive: Path, limits: ArchiveLimits) -> None:
    """Bound what `zipfile` reads at once: it takes the whole directory into memory."""
    with archive.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(-min(file.tell(), _END_BYTES), os.SEEK_END)
        tail = file.read()
    at = tail.rfind(_END_OF_DIRECTORY)
    if at < 0 or len(tail) - at < 22:
        raise _refused(archive, "another kind of file, or one that is cut short")
    directory_bytes = int.from_bytes(tail[at + 12 : at + 16], "little")
    if directory_bytes > limits.max_entries * _DIRECTORY_BYTES_OF_AN_ENTRY:
        raise _refused(archive, f"a directory of {directory_bytes} bytes, or in the format for 4 GiB and more")


def _checked(opened: zipfile.ZipFile, limits: ArchiveLimits) -> list[zipfile.ZipInfo]:
    """The files in an archive, once all its entries have passed."""
    path = Path(str(opened.filename))
    infos = opened.infolist()
    if len(infos) > limits.max_entries:
        raise _refused(path, f"{len(infos)} entries; at most {limits.max_entries} are unpacked")
    total = sum(info.file_size for info in infos)
    if total > limits.max_bytes:
        raise _refused(path, f"{total} bytes when unpacked; at most {limits.max_bytes} are")
    seen: set[str] = set()
    for info in infos:
        fault = _fault(info, limits)
        folded = info.filename.rstrip("/").casefold()
        if fault is None and folded in seen:
            fault = "a name that comes twice, or differs from another in case alone"
        if fault:
            raise _refused(path, f"an entry {info.filename[:80]!a}: {fault}")
        seen.add(folded)
    files = [info for info in infos if not info.is_dir()]
    parents = {"/".join(parts[:end]) for parts in (name.split("/") for name in seen) for end in range(1, len(parts))}
    if shadowed := parents & {info.filename.casefold() for info in files}:
        raise _refused(path, f"an entry {min(shadowed)[:80]!a}: a file and a folder of one name")
    _check_overlaps(path, infos, opened.start_dir)
    return files


def _fault(info: zipfile.ZipInfo, limits: ArchiveLimits) -> str | None:
    name = info.filename
    mode = info.external_attr >> 16
    parts = name.rstrip("/").split("/")
    if len(name) > limits.max_name:
        return "a name of more than " + str(limits.max_name) + " characters"
    if name != info.orig_filename or not name.isprintable():
        return "a name that is not plain text"
    if name.startswith("/") or "\\" in name or re.match("[A-Za-z]:", name) or {"", ".", ".."} & set(parts):
        return "a name that leads out of the folder"
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "a link or a device"
    if info.flag_bits & 0x1:
        return "encrypted"
    if info.compress_type not in _METHODS:
        return f"compressed by method {info.compress_type}"
    if info.header_offset < 0:
        return "a place before the archive's first byte"
    return None


def _check_overlaps(path: Path, infos: Iterable[zipfile.ZipInfo], directory_at: int) -> None:
    """Bytes belong to one entry: otherwise a few of them unpack to as much as one likes (Fifield 2019, WOOT)."""
    ordered = sorted(infos, key=lambda info: info.header_offset)
    ends = [*(info.header_offset for info in ordered[1:]), directory_at]
    for info, end in zip(ordered, ends, strict=True):
        if info.header_offset + _LOCAL_HEADER_BYTES + info.compress_size > end:
            raise _refused(path, f"an entry {info.filename[:80]!a}: its bytes are another's too")


def _write(opened: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            # No more than `file_size` bytes come out of it, and their CRC is checked at the end; fewer would pass.
            for block in _blocks(opened, info):
                file.write(block)
            if file.tell() != info.file_size:
                raise zipfile.BadZipFile(f"{file.tell()} bytes for {info.file_size}")
    except OSError as error:
        raise RaymlError(
            f"{path} cannot be written ({error.strerror})", "Free some space, or name another folder."
        ) from None


def _blocks(opened: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[bytes]:
    """A file's content, in pieces."""
    try:
        with opened.open(info) as source:
            while block := source.read(_READ_BYTES):
                yield block
    except OSError as error:
        raise _unreadable(Path(str(opened.filename)), error) from None


def _unreadable(archive: Path, error: OSError) -> RaymlError:
    return RaymlError(f"{archive} cannot be read ({error.strerror})", "Copy it to another disk, or download it again.")


def _refused(archive: Path, received: str) -> DataError:
    return DataError(f"{archive.name}: expected a sound zip file. Received: {received}", _HINT)
