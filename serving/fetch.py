"""Pictures by URL, from the hosts that the operator allows and from nowhere else.

A URL from a stranger is a request that this machine makes for them (server-side request forgery, OWASP): so the name is
resolved once, every address that it has must be a public one, and the connection goes to that very address, with the
name kept for Host and TLS. Redirects are checked like the first URL. No proxy, password file or cookie is used, since
nothing here reads any. One deadline covers connection, redirects and body, and `serving.fetches` waits no longer for a
name to be looked up either; one limit covers all bytes received.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

from rayml.errors import InputError
from serving.addresses import check_host_pattern, is_public, is_public_name, matches

MAX_URL = 2048
_MAX_REDIRECTS = 3
# Status line, headers and chunk sizes, beside the picture.
_ENVELOPE_BYTES = 256 * 1024
_PORTS = {"http": 80, "https": 443}
# Name and port to the addresses that the name has, and an address, port and seconds to a connection.
Resolve = Callable[[str, int], Sequence[str]]
Dial = Callable[[str, int, float], socket.socket]


@dataclass(frozen=True)
class _Target:
    """A URL that may be asked for: everything that a connection needs, already checked."""

    scheme: str
    host: str
    port: int
    request: str
    url: str


class Fetcher:
    """Fetches pictures from allowed hosts. Thread-safe.

    Arguments:
        allowed_hosts: names as the operator gave them: `images.example.com`, `*.example.com` for all below it, or `*`
            for every public host. Empty: nothing is fetched.
        max_bytes: the largest picture.
        resolve, dial: how names become addresses and addresses connections; only tests give others.

    Raises:
        UsageError: an allowed host that is none.
    """

    def __init__(
        self,
        allowed_hosts: Sequence[str],
        max_bytes: int,
        resolve: Resolve | None = None,
        dial: Dial | None = None,
    ) -> None:
        self._allowed = tuple(check_host_pattern(host) for host in allowed_hosts)
        self._max_bytes = max_bytes
        self._resolve = resolve or _resolve
        self._dial = dial or _dial
        self._tls = ssl.create_default_context() if self._allowed else None

    def fetch(self, url: str, deadline: float) -> bytes:
        """The bytes behind a URL.

        Arguments:
            url: as a stranger sent it.
            deadline: on `time.monotonic`'s clock, for everything together; looking a name up may take longer, since
                getaddrinfo(3) has none.

        Raises:
            InputError: 422 refused, or the origin does not have it; 413 too large; 504 too slow.
        """
        if not self._allowed:
            raise _refused("URLs are not fetched here; the operator can allow hosts with --allow-url-host.")
        target = self._check(url)
        try:
            for _ in range(_MAX_REDIRECTS + 1):
                found = self._get(target, deadline)
                if isinstance(found, bytes):
                    return found
                target = self._check(found, after=target)
        except TimeoutError:
            raise too_slow() from None
        except (OSError, http.client.HTTPException, ValueError):
            # What went wrong with a connection is not told: it would say what lies behind an address.
            raise _unavailable("its host did not answer as HTTP asks") from None
        raise _refused(f"A URL may lead through at most {_MAX_REDIRECTS} redirects.")

    def _check(self, url: str, after: _Target | None = None) -> _Target:
        """Everything that can be said of a URL without touching the network."""
        if after is not None:
            url = urljoin(after.url, url)
        if len(url) > MAX_URL:
            raise _refused(f"A URL must have at most {MAX_URL} characters.")
        if not all("!" <= character <= "~" for character in url) or "\\" in url:
            raise _refused("A URL must be printable ASCII without spaces and back-slashes.")
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise _refused("A URL must be well-formed.") from None
        if parts.scheme not in _PORTS:
            raise _refused("A URL must begin with http:// or https://.")
        if after is not None and after.scheme == "https" and parts.scheme != "https":
            raise _refused("A redirect must not lead from https to http.")
        if "@" in parts.netloc or not parts.hostname:
            raise _refused("A URL must have a host and no credentials.")
        if port is None:
            port = _PORTS[parts.scheme]
        if port not in _PORTS.values():
            raise _refused("A URL's port must be 80 or 443.")
        host = parts.hostname
        if ("[" in parts.netloc) != (":" in host):  # Python 3.10 takes anything in brackets.
            raise _refused("A URL must be well-formed.")
        if not is_public_name(host) or not any(matches(host, pattern) for pattern in self._allowed):
            raise _refused("A URL's host must be one that the operator allows.")
        request = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return _Target(parts.scheme, host, port, request, url)

    def _get(self, target: _Target, deadline: float) -> bytes | str:
        """The body, or where a redirect leads."""
        addresses = self._resolve(target.host, target.port)
        if not addresses or not all(is_public(address) for address in addresses):
            raise _refused("A URL's host must have public addresses alone.")
        with self._connect(addresses, target.port, deadline) as plain:
            if target.scheme == "https":
                assert self._tls is not None
                plain.settimeout(_left(deadline))
                with self._tls.wrap_socket(plain, server_hostname=target.host) as secure:
                    return self._exchange(secure, target, deadline)
            return self._exchange(plain, target, deadline)

    def _connect(self, addresses: Sequence[str], port: int, deadline: float) -> socket.socket:
        """A connection to the first address that takes one: this machine may have no IPv6, or one that leads nowhere.

        Each has its share of the time that is left.
        """
        for position, address in enumerate(addresses[:-1]):
            with contextlib.suppress(OSError):
                return self._dial(address, port, _left(deadline) / (len(addresses) - position))
        return self._dial(addresses[-1], port, _left(deadline))

    def _exchange(self, connection: socket.socket, target: _Target, deadline: float) -> bytes | str:
        host = f"[{target.host}]" if ":" in target.host else target.host
        if target.port != _PORTS[target.scheme]:
            host = f"{host}:{target.port}"
        lines = [
            f"GET {target.request} HTTP/1.1",
            f"Host: {host}",
            "User-Agent: rayml",
            "Accept: image/jpeg, image/png, image/webp",
            "Accept-Encoding: identity",
            "Connection: close",
        ]
        connection.settimeout(_left(deadline))
        connection.sendall("\r\n".join([*lines, "", ""]).encode("ascii"))
        bounded = _Bounded(connection, deadline, self._max_bytes + _ENVELOPE_BYTES)
        with http.client.HTTPResponse(bounded, method="GET") as response:  # type: ignore[arg-type]
            response.begin()
            if response.status in (301, 302, 303, 307, 308):
                location = response.getheader("location")
                if not location:
                    raise _unavailable("a redirect without an address")
                return location
            if response.status != 200:
                raise _unavailable(f"status {response.status}")
            if response.getheader("content-encoding", "identity").strip().lower() not in ("", "identity"):
                raise _unavailable("a compressed body")
            if (response.length or 0) > self._max_bytes:
                raise _too_large(self._max_bytes)
            body = response.read(self._max_bytes + 1)
            if len(body) > self._max_bytes:
                raise _too_large(self._max_bytes)
            if response.length:  # Less came than was announced.
                raise _unavailable("a body that ends too early")
            return body


class _Bounded(io.RawIOBase):
    """What a connection sends, as the file that `http.client` reads, with a total deadline and a total size.

    A socket's own timeout begins anew with each byte, which a slow origin can stretch for ever.
    """

    def __init__(self, connection: socket.socket, deadline: float, max_bytes: int) -> None:
        self._connection = connection
        self._deadline = deadline
        self._left_bytes = max_bytes

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._connection.settimeout(_left(self._deadline))
        received = self._connection.recv_into(buffer)
        self._left_bytes -= received
        if self._left_bytes < 0:
            raise InputError("The URL's host must send less.", status=413, code="body_too_large")
        return received


def _resolve(host: str, port: int) -> list[str]:
    return [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def _dial(address: str, port: int, timeout_s: float) -> socket.socket:
    # An address in its canonical form: nothing is looked up again.
    return socket.create_connection((address, port), timeout=timeout_s)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def too_slow() -> InputError:
    """The refusal of a URL whose picture is not there in time."""
    return InputError("The URL's host must answer faster.", status=504, code="url_too_slow")


def _refused(message: str) -> InputError:
    return InputError(message, status=422, code="url_refused")


def _unavailable(received: str) -> InputError:
    message = f"The URL must lead to a picture. Received: {received}"
    return InputError(message, status=422, code="url_unavailable")


def _too_large(max_bytes: int) -> InputError:
    return InputError(f"The picture must be at most {max_bytes} bytes.", status=413, code="body_too_large")
