"""A page for people as a file that they named: there whole, or as it was before."""

from __future__ import annotations

import contextlib
import secrets
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


def write_page_file(path: Path, option: str, page: bytes) -> None:
    """Write the file, or replace the one that is there.

    Raises:
        UsageError: as `check_page_file`, or it cannot be written.
    """
    check_page_file(path, option)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        draft.write_bytes(page)
        draft.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise _refused(path, option, error.strerror or str(error)) from None


def _refused(path: Path, option: str, reason: str) -> UsageError:
    return UsageError(f"{option} must be a file that can be written. Received: {path} ({reason})")
