"""A small client for rayml's own protocol, on requests.

`Client("http://127.0.0.1:8000").predict(Path("shirt.jpg"))["label"]` is all there is to it.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.exceptions import InvalidURL
from urllib3.exceptions import LocationParseError

from rayml.errors import InputError, ServerError, UsageError
from serving.keys import KEY_RULE, is_key

# A replica that was killed, is starting or is full: the next one may answer.
_RETRIED_STATUSES = (502, 503, 504)
_RETRY_PAUSE_S = 0.2
_MAX_MESSAGE = 300


class Client:
    """Sends pictures to a server.

    Arguments:
        url: the server's address, e.g. `http://127.0.0.1:8000`; the same without `http://` will do.
        timeout_s: seconds without a byte from the server before a request is given up.
        api_key: the key to show, where the server asks for one.

    Raises:
        UsageError: the address is none, or the key.
    """

    def __init__(self, url: str, timeout_s: float = 30.0, api_key: str | None = None) -> None:
        self.url = _address(url)
        self.timeout_s = timeout_s
        self._session = requests.Session()
        # Neither proxies nor passwords of the environment have a part in talking to one's own server.
        self._session.trust_env = False
        if api_key is not None:
            if not is_key(api_key):
                raise UsageError(
                    f"an API key must be {KEY_RULE}. Received: another text, of {len(api_key)} characters",
                    "RAYML_API_KEY holds one key, not a file of keys.",
                )
            self._session.headers["authorization"] = f"Bearer {api_key}"

    def predict(self, image: bytes | Path) -> dict[str, Any]:
        """The server's answer for one picture: `label`, `confidence`, `probabilities` and `model`.

        A connection that breaks and a 502, 503 or 504 are tried once more.

        Arguments:
            image: an encoded picture, or the file that holds one.

        Raises:
            InputError: the server refused the picture; status and code are its own.
            UsageError: the address has a host that can be none.
            ServerError: there is no server, or it failed twice, or its answer is not rayml's.
        """
        body = _read(image) if isinstance(image, Path) else image
        response = self._send("POST", "/predict", body)
        answer = _json_object(response)
        if response.status_code == 200:
            if not _is_prediction(answer):
                raise _not_rayml("label, confidence and probabilities", "another object")
            return answer
        error = answer.get("error")
        detail = error if isinstance(error, dict) else {}
        message = str(detail.get("message", response.reason))[:_MAX_MESSAGE]
        if 400 <= response.status_code < 500:
            code = str(detail.get("code", "bad_request"))
            raise InputError(message, status=response.status_code, code=code)
        raise ServerError(f"The server failed to answer. Received: {response.status_code}, {message}", "Try again.")

    def ready(self) -> bool:
        """Whether the server is there and its answers are right."""
        try:
            return self._send("GET", "/readyz", None).status_code == 200
        except ServerError:
            return False

    def _send(self, method: str, path: str, body: bytes | None) -> requests.Response:
        headers = {} if body is None else {"content-type": "application/octet-stream"}
        for attempt in (1, 2):
            try:
                response = self._session.request(
                    method, self.url + path, data=body, headers=headers, timeout=self.timeout_s, allow_redirects=False
                )
            except requests.exceptions.ChunkedEncodingError as error:  # It broke within the answer.
                if attempt == 2:
                    raise ServerError(
                        f"{self.url} must answer in full. Received: a connection that broke within the answer",
                        "Try again; where it goes on, look at the server's log.",
                    ) from error
            except requests.ConnectionError as error:
                if attempt == 2:
                    raise ServerError(
                        f"A server must listen on {self.url}. Received: no connection",
                        "Start one with `rayml serve BUNDLE`, or give its address with --server.",
                    ) from error
            except (InvalidURL, LocationParseError):  # Such as two dots in a row.
                raise _no_address(self.url) from None
            except requests.RequestException as error:
                raise ServerError(
                    f"{self.url} must answer within {self.timeout_s:g} s. Received: {type(error).__name__}",
                    "Check the address, or try again when the server is less busy.",
                ) from error
            else:
                if attempt == 2 or response.status_code not in _RETRIED_STATUSES:
                    return response
            time.sleep(_RETRY_PAUSE_S)
        raise AssertionError("unreachable")


def _address(url: str) -> str:
    """The address with its scheme and without a slash at its end."""
    address = (url if "://" in url else f"http://{url}").rstrip("/")
    try:
        parts = urlsplit(address)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # A port that is no number, or brackets around no address.
        good = False
    if not good:
        raise _no_address(url)
    return address


def _no_address(url: str) -> UsageError:
    return UsageError(f"a server's address must be such as http://127.0.0.1:8000. Received: {url[:_MAX_MESSAGE]}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        message = f"{path} must be a file that can be read. Received: {error.strerror}"
        raise InputError(message, code="no_such_file") from error


def _json_object(response: requests.Response) -> dict[str, Any]:
    try:
        value = json.loads(response.content)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        received = f"{response.status_code} {response.headers.get('content-type', 'without a type')}"
        raise _not_rayml("a JSON object", received)
    return value


def _is_prediction(answer: dict[str, Any]) -> bool:
    """Whether it has what `predict` promises of every answer."""
    shares = answer.get("probabilities")
    return (
        isinstance(answer.get("label"), str)
        and _is_share(answer.get("confidence"))
        and isinstance(shares, dict)
        and all(map(_is_share, shares.values()))
    )


def _is_share(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1  # NaN is not.


def _not_rayml(expected: str, received: str) -> ServerError:
    return ServerError(
        f"A rayml server answers with {expected}. Received: {received}",
        "Check that the address is that of `rayml serve`.",
    )
