"""A closed-loop load generator: each connection sends the next request when the last is answered.

    python bench/load.py REQUESTS URL --connections 8 --seconds 10

REQUESTS is a folder of files, each one whole HTTP/1.1 request; they are sent in turn over connections that stay open.
Sockets and epoll of the standard library alone, since its time is taken from the server's. Prints JSON: `answers`,
`failures` (any status but 200), `seconds`, `p50_ms`, `p99_ms`.
"""

from __future__ import annotations

import argparse
import json
import re
import selectors
import socket
import statistics
import time
from pathlib import Path
from urllib.parse import urlsplit

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_IDLE_S = 60.0


class _Connection:
    """One client: it waits for an answer at any time."""

    def __init__(self, address: tuple[str, int], selector: selectors.BaseSelector) -> None:
        self._address, self._selector = address, selector
        self._connect()

    def _connect(self) -> None:
        self._socket = socket.create_connection(self._address)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._selector.register(self._socket, selectors.EVENT_READ, self)

    def ask(self, request: bytes) -> None:
        """Send a request whole; what does not fit into the kernel's buffer is waited for."""
        self._received = bytearray()
        self.began = time.perf_counter()
        self._socket.sendall(request)

    def answer(self) -> int | None:
        """Take what has arrived; the status once the answer is whole."""
        piece = self._socket.recv(1 << 16)
        if not piece:
            raise SystemExit("A connection must stay open until it is answered. Received: its end")
        self._received += piece
        head_end = self._received.find(b"\r\n\r\n")
        if head_end < 0 or not self._is_whole(head_end):
            return None
        if _CLOSE.search(self._received, 0, head_end):
            self.close()
            self._connect()
        return int(self._received.split(b" ", 2)[1])

    def _is_whole(self, head_end: int) -> bool:
        length = _LENGTH.search(self._received, 0, head_end)
        if length is not None:
            return len(self._received) >= head_end + 4 + int(length[1])
        if _CHUNKED.search(self._received, 0, head_end):
            return self._received.endswith(b"\r\n0\r\n\r\n")
        return True

    def close(self) -> None:
        """Say goodbye."""
        self._selector.unregister(self._socket)
        self._socket.close()


def _run(url: str, requests: list[bytes], connections: int, seconds: float) -> dict[str, float]:
    parts = urlsplit(url)
    assert parts.hostname is not None and parts.port is not None
    found: list[float] = []
    failures = sent = 0
    with selectors.DefaultSelector() as selector:
        clients = [_Connection((parts.hostname, parts.port), selector) for _ in range(connections)]
        began = time.perf_counter()
        for client in clients:
            client.ask(requests[sent % len(requests)])
            sent += 1
        waiting = len(clients)
        while waiting:
            ready = selector.select(_IDLE_S)
            if not ready:
                raise SystemExit(f"An answer must come within {_IDLE_S:g} s. Received: none")
            for key, _ in ready:
                client = key.data
                status = client.answer()
                if status is None:
                    continue
                now = time.perf_counter()
                if status == 200:
                    found.append(now - client.began)
                else:
                    failures += 1
                if now - began < seconds:
                    client.ask(requests[sent % len(requests)])
                    sent += 1
                else:
                    waiting -= 1
        took = time.perf_counter() - began
        for client in clients:
            client.close()
    if not found:
        raise SystemExit("no request was answered")
    cuts = statistics.quantiles(found, n=100) if len(found) > 1 else [found[0]] * 99
    return {
        "answers": len(found),
        "failures": failures,
        "seconds": round(took, 3),
        "p50_ms": round(statistics.median(found) * 1000, 3),
        "p99_ms": round(cuts[98] * 1000, 3),
    }


def main() -> None:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("requests", type=Path)
    parser.add_argument("url")
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=10.0)
    arguments = parser.parse_args()
    requests = [path.read_bytes() for path in sorted(arguments.requests.glob("*")) if path.is_file()]
    if not requests:
        parser.error(f"REQUESTS must be a folder of files. Received: {arguments.requests}")
    print(json.dumps(_run(arguments.url, requests, arguments.connections, arguments.seconds)))


if __name__ == "__main__":
    main()
