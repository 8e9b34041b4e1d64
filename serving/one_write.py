"""An answer's head and body leave a replica in one write.

uvicorn writes them one after the other, and uvloop sends each at once: two system calls, and the proxy is woken twice.
"""

from __future__ import annotations

import asyncio
import functools
from typing import Any


class Gathering:
    """A transport that sends together what is written to it in one turn of the event loop.

    Arguments:
        transport: of `asyncio`, for everything else.
        loop: it.
    """

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._pieces: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Send it at the end of this turn."""
        if not self._pieces:
            self._loop.call_soon(self._send)
        self._pieces.append(data)

    def close(self) -> None:
        """Send what was written, and close."""
        self._send()
        self._transport.close()

    def _send(self) -> None:
        pieces, self._pieces = self._pieces, []
        if pieces and not self._transport.is_closing():  # The client may have gone since.
            self._transport.write(b"".join(pieces))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def install() -> None:
    """Have uvicorn use it in this process, for connections to come: Ray starts uvicorn, and passes no setting on."""
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    plain = HttpToolsProtocol.connection_made
    if hasattr(plain, "__wrapped__"):
        return  # It does already.

    @functools.wraps(plain)
    def connection_made(self: HttpToolsProtocol, transport: asyncio.Transport) -> None:
        plain(self, Gathering(transport, self.loop))  # type: ignore[arg-type]

    HttpToolsProtocol.connection_made = connection_made  # type: ignore[method-assign]
