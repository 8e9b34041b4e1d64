"""One file over HTTP on loopback, as well or as badly as a test asks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Served:
    """What is served and how; what was asked.

    Arguments:
        data: the file.
        etag: its ETag, or "" for none.
        ranges: whether parts of it can be asked for.
        cuts: after how many bytes each of the next answers breaks off.
        statuses: what the next answers are instead.
        length: whether Content-Length is sent, or what instead.
        location: where each request is sent on to, or "".
        asked: the headers of each request.
    """

    data: bytes
    etag: str = '"one"'
    ranges: bool = True
    cuts: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    length: bool | str = True
    location: str = ""
    asked: list[dict[str, str]] = field(default_factory=list)
    url: str = ""


@contextmanager
def serving(served: Served) -> Iterator[Served]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            served.asked.append(headers)
            if served.location:
                self.send_response(302)
                self.send_header("location", served.location)
                self.end_headers()
                return
            if served.statuses:
                self.send_response(served.statuses.pop(0))
                self.send_header("content-length", "0")
                self.end_headers()
                return
            start = 0
            if served.ranges and "range" in headers and headers.get("if-range") == served.etag:
                start = int(headers["range"].removeprefix("bytes=").removesuffix("-"))
            if start >= len(served.data) > 0:
                self.send_response(416)
                self.send_header("content-length", "0")
                self.end_headers()
                return
            part = served.data[start:]
            self.send_response(206 if start else 200)
            if start:
                self.send_header("content-range", f"bytes {start}-{len(served.data) - 1}/{len(served.data)}")
            if served.etag:
                self.send_header("etag", served.etag)
            if served.length:
                self.send_header("content-length", str(len(part)) if served.length is True else served.length)
            self.end_headers()
            with suppress(ConnectionError):  # The client has seen enough.
                self.wfile.write(part[: served.cuts.pop(0)] if served.cuts else part)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_port}/photos.zip"
    try:
        yield served
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
