"""A download that goes on where it broke off."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path

import requests
from requests.exceptions import InvalidURL
from urllib3.exceptions import LocationParseError

from rayml.errors import RaymlError, UsageError
from rayml.progress import Advance, Progress

TIMEOUT_S = (15.0, 60.0)  # To connect; without a byte.
TRIES = 5  # In a row without a byte gained.
_MB = 1_000_000
_BLOCK = 2**17
_DIGITS = 19  # No file's length has so many.
_GONE_ON = (408, 429, 500, 502, 503, 504)  # Worth asking again.


def download(url: str, path: Path, max_bytes: int, about_mb: int, progress: Progress, pause_s: float = 1.0) -> None:
    """Fetch a file over HTTP, going on with what an earlier call has left in `path`.

    What is there is continued only where the server says that it is still the same file (RFC 9110, If-Range);
    otherwise it is fetched anew.

    Arguments:
        url: http or https.
        path: where to; `path` with `.json` added remembers which file it is.
        max_bytes: the longest file that is taken.
        about_mb: millions of bytes that are expected where the server does not say.
        progress: told how far it is.
        pause_s: before the first repetition; doubled each time.

    Raises:
        UsageError: another kind of address, or one that leads to none.
        RaymlError: no network, no such file, too long, or a full disk; what has arrived is kept.
    """
    if not url.startswith(("https://", "http://")):
        raise UsageError(f"the address must begin with https:// or http://. Received: {url}")
    state = path.with_name(path.name + ".json")
    failures = 0
    with requests.Session() as session, progress.bar("download", about_mb, "MB") as advance:
        shown = _Shown(advance)
        while True:
            before = _size(path)
            try:
                if _attempt(session, url, path, state, max_bytes, shown):
                    state.unlink(missing_ok=True)
                    return
                reason = "the connection broke off"
            except requests.HTTPError as error:
                assert error.response is not None
                reason = f"{error.response.status_code} {error.response.reason}"
                if error.response.status_code not in _GONE_ON:
                    raise _failed(url, reason) from None
            except (InvalidURL, LocationParseError):  # Such as two dots in a row in a host.
                raise UsageError(f"{url} cannot be fetched: it is no address, or leads to none") from None
            except requests.RequestException as error:
                reason = _plain(error)
            except OSError as error:
                raise RaymlError(f"{path} cannot be written ({error.strerror})", "Free some space.") from None
            failures = 1 if _size(path) > before else failures + 1
            if failures >= TRIES:
                raise _failed(url, reason)
            time.sleep(pause_s * 2 ** (failures - 1))


def _attempt(session: requests.Session, url: str, path: Path, state: Path, max_bytes: int, shown: _Shown) -> bool:
    """One request; whether the file is whole now."""
    validator = _validator(state, url)
    have = _size(path) if validator else 0
    # As it is on the server: a range of a compressed answer would be a range of other bytes.
    headers = {"accept-encoding": "identity"}
    if have:
        headers |= {"range": f"bytes={have}-", "if-range": validator}
    with session.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as answer:
        if answer.status_code == 416:  # What is there is as long as the file or longer: begin again.
            path.unlink(missing_ok=True)
            return False
        answer.raise_for_status()
        at = have if answer.status_code == 206 and _start(answer) == have else 0
        if answer.status_code == 206 and at == 0 and have:
            path.unlink(missing_ok=True)
            return False
        length = _number(answer.headers.get("content-length", ""))
        total = None if length is None else at + length
        if total is not None and total > max_bytes:
            raise RaymlError(f"{url}: expected at most {max_bytes} bytes. Received: {total}")
        known = answer.headers.get("etag", "")
        if known.startswith('"'):  # Weak ones (W/) say nothing of the bytes.
            state.write_text(json.dumps({"url": url, "etag": known}))
        else:
            state.unlink(missing_ok=True)
        shown.at(at)
        with path.open("r+b" if at else "wb") as file:
            file.seek(at)
            file.truncate()
            for block in answer.iter_content(_BLOCK):
                at += len(block)
                if at > max_bytes:
                    raise RaymlError(f"{url}: expected at most {max_bytes} bytes. Received: more")
                file.write(block)
                shown.at(at)
    return total is None or at == total


def _validator(state: Path, url: str) -> str:
    """What the server called the file that has begun to arrive; "" where nothing can be continued."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(state.read_text())
        if known["url"] == url:
            return str(known["etag"])
    return ""


def _start(answer: requests.Response) -> int | None:
    unit, _, span = answer.headers.get("content-range", "").partition(" ")
    first = span.partition("-")[0]
    return _number(first) if unit == "bytes" else None


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < _DIGITS else None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _plain(error: requests.RequestException) -> str:
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, requests.exceptions.SSLError):
        return "its certificate is not trusted"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection broke off"
    if isinstance(error, requests.ConnectionError):
        return "no connection"
    return type(error).__name__


def _failed(url: str, reason: str) -> RaymlError:
    return RaymlError(
        f"{url} cannot be fetched: {reason}",
        "Run this again to go on; or download it elsewhere and name the file: --archive FILE.zip.",
    )


class _Shown:
    """Millions of bytes as the bar counts them; a download that begins again does not move it back."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance
        self._told = 0

    def at(self, position: int) -> None:
        if position // _MB > self._told:
            self._advance(position // _MB - self._told)
            self._told = position // _MB
