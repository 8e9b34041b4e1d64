"""API keys from a file: several at a time, so that one can be replaced while clients still use the other."""

from __future__ import annotations

import hashlib
import hmac
import logging
import time
from collections.abc import Mapping
from pathlib import Path

from rayml.errors import InputError, UsageError

_CHECK_EVERY_S = 1.0
_MAX_KEY = 512
KEY_RULE = f"1 to {_MAX_KEY} printable ASCII characters without spaces"

_log = logging.getLogger("ray.serve")


class ApiKeys:
    """The keys in a file, one a line; empty lines and lines that begin with # are left out.

    The file is looked at again once a second. While it cannot be read or is malformed, the keys before stay; a file
    without keys closes the service.

    Arguments:
        path: the file.

    Raises:
        UsageError: it cannot be read, or holds no key.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = self._signature()
        self._digests = tuple(_digest(key) for key in read_keys(path))
        if not self._digests:
            raise UsageError(f"the file of API keys must hold a key a line. Received: none in {path}")
        self._checked = time.monotonic()

    def check(self, headers: Mapping[str, str]) -> None:
        """Let a request pass that shows a key, as `authorization: Bearer KEY` or `x-api-key: KEY`.

        Raises:
            InputError: 401.
        """
        self._reload()
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "").strip()
        digest = _digest(given[:_MAX_KEY])
        # Equal lengths, every key looked at: the time says nothing of how much was right, or of which key.
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        if not given or not any(matches):
            raise InputError("An API key is needed: authorization: Bearer KEY.", status=401, code="unauthorized")

    def _reload(self) -> None:
        now = time.monotonic()
        if now - self._checked < _CHECK_EVERY_S:
            return
        self._checked = now
        signature = self._signature()
        if signature is None or signature == self._seen:
            return
        try:
            self._digests = tuple(_digest(key) for key in read_keys(self._path))
        except UsageError as error:
            _log.error("The API keys stay as they were: %s", error.message)
            return
        self._seen = signature

    def _signature(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return (found.st_mtime_ns, found.st_size, found.st_ino)


def read_keys(path: Path) -> list[str]:
    """The keys in a file.

    Raises:
        UsageError: it cannot be read, or a line is no key.
    """
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError as error:
        raise UsageError(f"the file of API keys must be readable. Received: {path} ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UsageError(f"API keys must be printable ASCII. Received: other bytes in {path}") from None
    keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    for number, key in enumerate(keys, 1):
        if not is_key(key):
            raise UsageError(f"an API key must be {KEY_RULE}. Received: key {number} of {path}")
    return keys


def is_key(text: str) -> bool:
    """Whether this may be an API key, as `KEY_RULE` has it."""
    return 1 <= len(text) <= _MAX_KEY and all("!" <= character <= "~" for character in text)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
