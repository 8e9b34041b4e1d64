"""The errors rayml raises on purpose: one tree, so that a caller catches as much of it as it means.

RaymlError                what a person can act on; everything else is a bug in rayml
├── UsageError            an option or setting is wrong, or what it points to is not there
├── InputError            one picture or request cannot be answered; carries an HTTP status and a code
├── DataError             a folder of labelled photos cannot be learned from
├── WeightsError          a backbone's weights are missing or do not fit it
├── BundleError           a bundle is damaged, incomplete, unsafe or from a newer rayml
├── RegistryError         a folder of models is damaged, or cannot be written to
├── SearchError           a search ended without a winner
└── ServerError           a server could not be started, reached, or answered nonsense

Each message says what was expected and what came; `hint` says what to do about it.
"""

from __future__ import annotations

import errno
import sys

# A disk that is full or broken: the command was right, and would be again.
_DISK_FAILED = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO})


def install_hint(extra: str = "") -> str:
    """What to do where a package is not installed. `pip install rayml` would bring another project of that name.

    Arguments:
        extra: of pyproject.toml, which brings the package; "" for what every command needs.
    """
    what = f'".[{extra}]"' if extra else "."
    return f"Run `pip install {what}` in the folder of rayml's repository."


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class RaymlError(Exception):
    """An error that a person can act on.

    Arguments:
        message: one line: what was expected, then what came.
        hint: one line: what to do about it; where nothing particular helps, its kind's `remedy`.

    `exit_code` is what a command ends with: 2 for wrong usage or input, 1 for a failure, which the answer to an
    `OSError` of a full or broken disk always is.
    """

    exit_code = 1
    remedy = "`rayml -v COMMAND ...` shows where it happened."

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint or self.remedy
        answered = sys.exc_info()[1]
        if isinstance(answered, OSError) and answered.errno in _DISK_FAILED:
            self.exit_code = 1

    def __str__(self) -> str:
        return self.message


class UsageError(RaymlError):
    """An option or setting is wrong, or what it points to is not there."""

    exit_code = 2
    remedy = "`rayml COMMAND --help` says what each option takes."


class InputError(RaymlError):
    """One picture or request cannot be answered.

    Arguments:
        message: as in `RaymlError`; it must not name a path of this machine, strangers read it.
        status: the HTTP status, 400 to 504.
        code: a stable snake_case name of the fault for programs, e.g. `unreadable_image`.
        hint: as in `RaymlError`.
        retry_after_s: of a 503, seconds after which it is worth another try, where that is known.
    """

    exit_code = 2
    remedy = ""  # Of a request: its message says all that a stranger is told.

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        code: str = "bad_request",
        hint: str = "",
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, hint)
        self.status = status
        self.code = code
        self.retry_after_s = retry_after_s


class DataError(RaymlError):
    """A folder of labelled photos cannot be learned from."""

    exit_code = 2
    remedy = "`rayml data check DIR` names everything that is wrong with it."


class WeightsError(RaymlError):
    """A backbone's weights are missing or do not fit it."""

    exit_code = 2
    remedy = "Fetch the file again, or name another with --weights."


class BundleError(RaymlError):
    """A bundle is damaged, incomplete, unsafe or from a newer rayml."""

    exit_code = 2
    remedy = "Copy or build the bundle again: `rayml tune DATA --out RUN` writes RUN/best."


class RegistryError(RaymlError):
    """A folder of models is damaged, or cannot be written to."""

    exit_code = 2
    remedy = "Mend the folder; `rayml models MODELS` lists what it holds."


class SearchError(RaymlError):
    """A search ended without a winner."""


class ServerError(RaymlError):
    """A server could not be started, reached, or answered nonsense."""
