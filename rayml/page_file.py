"""A page for people as a file that they named: there whole, or as it was before."""

from __future__ import annotations

import contextlib
import secrets
import stat
from pathlib import Path

from rayml.errors import UsageError


def check_page_file(path: Path, option: str) -> None:
    """Refuse what can be no file, before any work is done for it.

    Arguments:
        path: as given.
        option: what gave it, for the message.

    Raises:
        UsageError: a folder, a device or a pipe, or a file in a folder that is not there.
    """
    try:
        folder, homeless = not path.name or path.is_dir(), not path.parent.is_dir()
        other = path.exists() and not path.is_file()
    except OSError as error:
        raise _refused(path, option, error.strerror or str(error)) from None
    if folder:
        raise _refused(path, option, "a folder")
    if homeless:
        raise _refused(path, option, f"{path.parent} is no folder")
    if other:  # The page would take its place.
        raise _refused(path, option, "no plain file")


def write_page_file(path: Path, option: str, page: bytes, *, follow: bool = True) -> None:
    """Write the file, or replace the one that is there, whose rights the new one gets.

    Arguments:
        path, option: as in `check_page_file`.
        page: its content.
        follow: whether a link is followed, or replaced as one that somebody else may have put there.

    Raises:
        UsageError: as `check_page_file`, or it cannot be written.
    """
    check_page_file(path, option)
    try:
        target = path.resolve() if follow else path
    except (OSError, RuntimeError) as error:  # The latter: links that lead in a circle.
        raise _refused(path, option, getattr(error, "strerror", None) or str(error)) from None
    draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        there = target.is_file() and not target.is_symlink()
        draft.touch(0o600 if there else 0o666)  # People's pictures are not to be seen by others even for a moment.
        draft.write_bytes(page)
        if there:
            draft.chmod(stat.S_IMODE(target.stat().st_mode))
        draft.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise _refused(path, option, error.strerror or str(error)) from None


def _refused(path: Path, option: str, reason: str) -> UsageError:
    return UsageError(f"{option} must be a file that can be written. Received: {path} ({reason})")
