"""A real server (Ray, HAProxy, one replica) that the HTTP tests of all folders share: starting one takes 10 to 20 s."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from serving.config import ServeSettings
from serving.environment import free_port
from serving.limits import RequestLimits
from serving.run import running
from tests.serving.tiny_bundle import write_tiny_bundle

# Small, so that the tests reach them quickly.
LIMITS = RequestLimits(max_image_bytes=100_000, deadline_s=3.0, max_in_flight=4)


@dataclass(frozen=True)
class Live:
    """A running server: its address, its settings and the bundle that it serves."""

    url: str
    settings: ServeSettings
    bundle: Path

    def connect(self) -> socket.socket:
        """A raw connection, for requests that no HTTP library would send."""
        return socket.create_connection((self.settings.host, self.settings.port), timeout=30.0)


class _Shared:
    users = 0
    stack = ExitStack()
    live: Live | None = None


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """The shared server; started by the first test that asks, ended with the last."""
    if _Shared.live is None:
        bundle = write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")
        settings = replace(ServeSettings(limits=LIMITS), port=free_port())
        url = _Shared.stack.enter_context(running(bundle, settings))
        _Shared.live = Live(url, settings, bundle)
    _Shared.users += 1
    yield _Shared.live
    _Shared.users -= 1
    if not _Shared.users:
        _Shared.live = None
        _Shared.stack.close()


def exchange(connection: socket.socket, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send bytes as they are and read one response: status, headers (names in lower case) and body."""
    connection.sendall(request)
    return read_response(connection)


def read_response(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Read one response that has a Content-Length."""
    received = b""
    while b"\r\n\r\n" not in received:
        piece = connection.recv(65536)
        assert piece, f"closed after {received!r}"
        received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    while len(body) < int(headers.get("content-length", 0)):
        piece = connection.recv(65536)
        assert piece, "closed within the body"
        body += piece
    return int(lines[0].split()[1]), headers, body
