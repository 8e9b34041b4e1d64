"""An origin on loopback that answers with whatever bytes a test gives it, and a fetcher that believes it is public."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pytest

from rayml.errors import InputError
from serving.fetch import Fetcher

PUBLIC = "93.184.216.34"
Handler = Callable[[socket.socket], None]


@dataclass
class Origin:
    """What came: the requests, the look-ups of names and the addresses that were dialled."""

    fetcher: Fetcher
    requests: list[bytes] = field(default_factory=list)
    lookups: list[str] = field(default_factory=list)
    dialled: list[tuple[str, int]] = field(default_factory=list)

    def fetch(self, url: str = "http://images.example.com/a.png", seconds: float = 10.0) -> bytes:
        """Fetch with a deadline from now."""
        return self.fetcher.fetch(url, time.monotonic() + seconds)


def sends(*pieces: bytes, pause_s: float = 0.0) -> Handler:
    """A handler that sends these pieces and closes."""

    def handle(connection: socket.socket) -> None:
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(pause_s)

    return handle


def response(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    """A response with a right Content-Length, unless `headers` have one."""
    own = (
        []
        if any(h.lower().startswith(("content-length", "transfer-encoding")) for h in headers)
        else [f"Content-Length: {len(body)}"]
    )
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, *own, "", ""]).encode() + body


@contextlib.contextmanager
def origin(
    *handlers: Handler,
    allowed: Sequence[str] = ("images.example.com",),
    max_bytes: int = 10_000,
    addresses: Callable[[str], Sequence[str]] = lambda _host: [PUBLIC],
) -> Iterator[Origin]:
    """A server on loopback: the first connection meets the first handler, and so on, the last one all further ones.

    The fetcher is the real one, but for what it is told of names, and where its connections go in the end.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def resolve(host: str, _port: int) -> Sequence[str]:
            seen.lookups.append(host)
            return addresses(host)

        def dial(address: str, asked_port: int, timeout_s: float) -> socket.socket:
            seen.dialled.append((address, asked_port))
            return socket.create_connection(("127.0.0.1", port), timeout=timeout_s)

        seen = Origin(Fetcher(allowed, max_bytes, resolve, dial))

        def serve() -> None:
            for number in range(1_000):
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                handler = handlers[min(number, len(handlers) - 1)]
                threading.Thread(target=answer, args=(connection, handler), daemon=True).start()

        def answer(connection: socket.socket, handler: Handler) -> None:
            # The fetcher hangs up on an origin that sends too much.
            with connection, contextlib.suppress(OSError):
                request = b""
                while b"\r\n\r\n" not in request:
                    piece = connection.recv(65536)
                    if not piece:
                        return
                    request += piece
                seen.requests.append(request)
                handler(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield seen
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join(5)


def refused(fetch: Callable[[], object], status: int = 422, code: str = "url_refused") -> InputError:
    """The error that the call must raise."""
    with pytest.raises(InputError) as caught:
        fetch()
    assert (caught.value.status, caught.value.code) == (status, code), caught.value.message
    return caught.value
