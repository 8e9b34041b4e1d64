"""Pictures by URL for the event loop: side by side, on threads of their own, so many at once and no more."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from rayml.errors import InputError
from serving.admission import overloaded
from serving.fetch import Fetcher, too_slow
from serving.limits import RequestLimits
from serving.metrics import Metrics


class Fetches:
    """Fetches pictures for requests. To be used from one event loop.

    Arguments:
        fetcher: gets one of them.
        limits: how many at once, and how long they may take.
        metrics: where they are counted.
    """

    def __init__(self, fetcher: Fetcher, limits: RequestLimits, metrics: Metrics) -> None:
        self._fetcher = fetcher
        self._limits = limits
        self._metrics = metrics
        self._pool = ThreadPoolExecutor(limits.max_fetches, thread_name_prefix="rayml-fetch")
        self._running = 0

    async def all_of(self, urls: Sequence[str], deadline: float, hold_bytes: Callable[[int], None]) -> list[bytes]:
        """What the URLs of a request lead to.

        Arguments:
            urls: as the client sent them.
            deadline: of the request, as `time.monotonic` tells it.
            hold_bytes: keeps room for what is here, or raises.

        Raises:
            InputError: 400 for more URLs than a request may name, 503 while too many are being fetched, 504 when one
                is not there in time, and as `Fetcher.fetch`.
        """
        most = self._limits.max_fetches
        if len(urls) > most:
            raise InputError(f"A request must name at most {most} URLs. Received: {len(urls)}", code="too_many_urls")
        if self._running + len(urls) > most:
            raise overloaded()
        until = min(deadline, time.monotonic() + self._limits.fetch_deadline_s)

        async def one(fetch: asyncio.Future[bytes]) -> bytes:
            # Shielded: a fetch that has begun goes on until its thread is free, whoever still waits for it.
            data = await asyncio.shield(fetch)
            hold_bytes(len(data))
            return data

        fetches = [asyncio.ensure_future(one(self._begin(url, until))) for url in urls]
        try:  # A thread that looks up a name knows no deadline.
            return await asyncio.wait_for(asyncio.gather(*fetches), self._limits.fetch_deadline_s)
        except asyncio.TimeoutError:
            raise too_slow() from None
        finally:
            for each in fetches:  # When one has failed, nobody waits for the others.
                each.cancel()

    def _begin(self, url: str, until: float) -> asyncio.Future[bytes]:
        """Begin to fetch; the place is free when the thread is, not when the client stops waiting."""
        began = time.perf_counter()
        self._running += 1
        future = asyncio.get_running_loop().run_in_executor(self._pool, self._fetcher.fetch, url, until)

        def release(done: asyncio.Future[bytes]) -> None:
            self._running -= 1
            self._metrics.fetched(time.perf_counter() - began)
            if not done.cancelled():
                done.exception()  # Looked at, also where nobody waits for it any more.

        future.add_done_callback(release)
        return future
