"""A request as the web server hands it over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass

from rayml.errors import InputError
from serving.protocols.base import too_large

# A request that is answered before its body is read has this long to bring the rest, so that its client reads the
# answer and no reset. Then its connection is closed: the proxy would wait for the rest for ever and count a request for
# predictions as a place that is taken.
_DRAIN_S = 1.0


class ClientGone(Exception):
    """The client closed the connection before its body was read."""


@dataclass(frozen=True)
class Call:
    """One request as the web server hands it over.

    Arguments:
        method: in capitals.
        path: percent-decoded.
        query: as sent, without the question mark.
        headers: names in lower case, or a mapping that ignores case.
        body: its pieces as they arrive; raises `ClientGone`.
    """

    method: str
    path: str
    query: bytes
    headers: Mapping[str, str]
    body: Callable[[], AsyncIterator[bytes]]

    @property
    def has_body(self) -> bool:
        """Whether its headers announce a body."""
        return self.headers.get("content-length", "0") != "0" or "transfer-encoding" in self.headers

    async def drained(self) -> bool:
        """Whether a body that nobody needs has come to its end, a moment later at most."""

        async def drain() -> None:
            async for _ in self.body():
                pass

        try:
            await asyncio.wait_for(drain(), _DRAIN_S)
        except (asyncio.TimeoutError, ClientGone):
            return False
        return True


def check_declared_length(declared: str | None, max_bytes: int) -> None:
    """Refuse a body by its Content-Length, before it is read.

    Raises:
        InputError: 413 when it is above `max_bytes`, 400 when it is not a number.
    """
    if declared is None:
        return
    if not (declared.isascii() and declared.isdigit()):
        raise InputError("content-length must be a whole number.", code="bad_content_length")
    # Compare digits first: a number of a million digits is too large without being read.
    if len(declared) > len(str(max_bytes)) + 20 or int(declared) > max_bytes:
        raise too_large(max_bytes)
