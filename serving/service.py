"""What a replica does with a request, whoever hands it over: admission, body, protocol, pictures, answer.

The order of a request for predictions: path, method, API key and a place are checked before its body is read; the body
is read within its limits; one visit to the pool of threads parses it and, for the one picture of most requests,
decodes, classifies and writes the answer. Pictures by URL are fetched by threads of their own, so that slow origins
take no place from anybody else. One deadline counts for everything.
"""

from __future__ import annotations

import asyncio
import random
import time
import traceback
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from rayml import images
from rayml.errors import InputError
from rayml.predictor import Prediction
from serving import routes
from serving.fetch import Fetcher, too_slow
from serving.keys import ApiKeys
from serving.limits import RequestLimits
from serving.log import RequestLog
from serving.memory import MemoryBudget
from serving.metrics import Metrics
from serving.models import Models, ServedModel
from serving.protocols.base import Address, Answer, Source, Variants, Work, check_picture, too_large
from serving.routes import Context, Protocol, Route, Target

REQUEST_ID_HEADER = "x-rayml-request-id"
# Told apart, not kept secret; the system's own random bytes would give the interpreter away for each request.
_ids = random.Random()
_OVERLOADED = "overloaded"
# While the engine computes on threads of its own, those of the pool that wait for it take no core: others read the next
# pictures meanwhile, and several that wait go through an engine together that gains from it. With as many as threads
# two cores were idle for a twentieth of the time under load; with six for each, reading ahead took 3 % more of it.
_POOL_PER_THREAD = 4
# A line for each refusal would cost more than the refusal, just when there is no time for it.
_REFUSED_EVERY_S = 1.0
# While all places are taken, a body that trickles loses its place to the next request: 64 clients of a byte a second
# would keep everybody else out. Below this pace no more than 0.5 MB could come before the deadline anyway.
_TRICKLE_BYTES_PER_S = 16 * 1024
_TRICKLE_GRACE_S = 2.0
# A request that is answered before its body is read has this long to bring the rest. Then its connection is closed: the
# proxy would wait for the rest for ever and count the connection as a place that is taken.
_DRAIN_S = 1.0
_S = TypeVar("_S")
_T = TypeVar("_T")


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


@dataclass(eq=False)
class _State:
    """What becomes of one request, for the log and for what it holds of the replica's room."""

    buffered_bytes: int = 0
    batched: int = 0
    work: asyncio.Future[Answer] | None = None
    reading: bool = False
    reading_since: float = 0.0
    read_whole: bool = False
    gave_way: bool = False
    pictures: int = 0
    version: str = ""
    code: str = ""
    refused: int = 0
    trace: str = field(default="", repr=False)


class Service:
    """Answers requests with the models that it is given. To be used from one event loop.

    Arguments:
        models: what to answer with.
        threads: pictures classified at once, at least 1.
        limits: what a request may cost.
        fetcher: gets pictures by URL.
        keys: who may ask, or None for everybody.
        metrics: what is counted.
        log: what is written down.
    """

    def __init__(
        self,
        models: Models,
        threads: int,
        limits: RequestLimits,
        fetcher: Fetcher,
        keys: ApiKeys | None,
        metrics: Metrics,
        log: RequestLog,
    ) -> None:
        self._models = models
        self._limits = limits
        self._fetcher = fetcher
        self._keys = keys
        self._metrics = metrics
        self._log = log
        self._context = Context(models, metrics, limits)
        self._memory = MemoryBudget(limits.max_decode_bytes)
        self._threads = threads
        self._pool = ThreadPoolExecutor(_POOL_PER_THREAD * threads, thread_name_prefix="rayml")
        self._fetch_pool = ThreadPoolExecutor(limits.max_fetches, thread_name_prefix="rayml-fetch")
        self._in_flight = 0
        self._readers: set[_State] = set()
        self._batched = 0
        self._fetching = 0
        self._buffered_bytes = 0
        self._refused, self._refused_told = 0, -_REFUSED_EVERY_S

    def warm_up(self, model: ServedModel) -> None:
        """Let the model classify its sample once for each of its threads, so that a request finds all of it in use."""

        def classify(_: int) -> list[Prediction]:
            return model.answers(model.predict_pixels(model.decode(model.sample)[np.newaxis]))

        for predictions in self._pool.map(classify, range(self._threads)):
            assert predictions

    async def answer(self, call: Call) -> Answer:
        """Answer one request; nothing is raised but a cancellation."""
        began = time.perf_counter()
        request_id = f"{_ids.getrandbits(64):016x}"
        route, target = routes.find(call.path, call.query)
        state = _State()
        try:
            answer = await self._answer(route, target, call, state)
        except InputError as error:
            answer = self._refusal(route, error, state)
        except ClientGone:
            gone = InputError("The client went away.", status=499, code="client_closed_request")
            answer = self._refusal(route, gone, state)
        except Exception:
            state.trace = traceback.format_exc()
            bug = InputError("The server failed to answer this request.", status=500, code="internal")
            answer = self._refusal(route, bug, state)
        seconds = time.perf_counter() - began
        self._metrics.request(route.name, answer.status, seconds)
        if self._log.every_request or (answer.status >= 500 and self._is_news(state)):
            self._write_log(call, route, answer.status, seconds, request_id, state)
        headers = {**answer.headers, REQUEST_ID_HEADER: request_id}
        if not state.read_whole and "connection" not in headers and _has_body(call) and not await _drained(call):
            headers["connection"] = "close"
        return Answer(answer.body, answer.status, headers, answer.content_type)

    def _is_news(self, state: _State) -> bool:
        """Whether a failure is worth a line: of those for want of a place, one a second, which says how many."""
        if state.code != _OVERLOADED:
            return True
        self._refused += 1
        now = time.monotonic()
        if now - self._refused_told < _REFUSED_EVERY_S:
            return False
        state.refused, self._refused, self._refused_told = self._refused, 0, now
        return True

    def _refusal(self, route: Route, error: InputError, state: _State) -> Answer:
        state.code = error.code
        headers = {}
        if error.status == 401:
            headers["www-authenticate"] = 'Bearer realm="rayml"'
        elif error.status == 405:
            headers["allow"] = ", ".join(route.methods)
        elif error.status == 503:
            headers["retry-after"] = str(self._limits.retry_after_s)
        elif error.status in (408, 413, 415):
            # The rest of a refused body may still be on its way: do not wait for it on this connection.
            headers["connection"] = "close"
        return Answer(route.error(error), error.status, headers)

    async def _answer(self, route: Route, target: Target, call: Call, state: _State) -> Answer:
        routes.check_method(route, call.method)
        if self._keys is not None and route.needs_key:
            self._keys.check(call.headers)
        if route.page is not None:
            try:
                return await asyncio.wait_for(route.page(self._context, target), self._limits.deadline_s)
            except asyncio.TimeoutError:
                raise self._too_late() from None
        assert route.protocol is not None
        if self._in_flight >= self._limits.max_in_flight and not self._end_a_trickle():
            raise _overloaded()
        self._in_flight += 1
        with self._metrics.place():
            try:
                state.work = asyncio.ensure_future(self._classify(route.protocol, target, call, state))
                return await asyncio.wait_for(state.work, self._limits.deadline_s)
            except asyncio.CancelledError:
                if not state.gave_way:
                    raise
                message = "The body must arrive faster while all places are taken."
                raise InputError(message, status=408, code="slow_body") from None
            except asyncio.TimeoutError:
                if state.reading:
                    message = f"The body must arrive within {self._limits.deadline_s:g} seconds."
                    raise InputError(message, status=408, code="slow_body") from None
                raise self._too_late() from None
            finally:
                self._in_flight -= 1
                self._buffered_bytes -= state.buffered_bytes
                self._batched -= state.batched

    def _end_a_trickle(self) -> bool:
        """Let a request whose body only trickles give way; False where there is none."""
        now = time.monotonic()
        for state in self._readers:
            seconds = now - state.reading_since
            if seconds > _TRICKLE_GRACE_S and state.buffered_bytes < _TRICKLE_BYTES_PER_S * seconds:
                assert state.work is not None
                self._readers.remove(state)  # Its place is free when its task has ended, a moment later.
                state.gave_way = True
                state.work.cancel()
                return True
        return False

    async def _classify(self, protocol: Protocol, target: Target, call: Call, state: _State) -> Answer:
        """Read, understand and answer a request for predictions."""
        deadline = time.monotonic() + self._limits.deadline_s
        model = await self._models.get(target.name, target.version)
        state.version = model.facts.identity.version
        headers, limits = call.headers, self._limits
        max_bytes = protocol.max_bytes(headers, limits)
        check_declared_length(headers.get("content-length"), max_bytes)
        body = await self._read(call, max_bytes, state)

        def begin() -> Work | Answer:
            work = protocol.parse(headers, body, limits, model.facts)
            state.pictures = len(work.sources)
            self._metrics.batch(len(work.sources))
            first = work.sources[0]
            if len(work.sources) > 1 or isinstance(first, Address) or work.variants is not None:
                return work
            return work.render([self._predict(model, first, deadline)[0]])  # The common case, in one visit to the pool.

        begun = await self._in_pool(begin, deadline)
        if isinstance(begun, Answer):
            return begun
        if begun.count > 1:
            self._hold_batch(begun.count, state)
        pictures = await self._gather(begun.sources, deadline, state)
        if begun.variants is None:
            predictions = await self._each_in_pool(
                lambda picture: self._predict(model, picture, deadline)[0], pictures, deadline
            )
        else:
            predictions = await self._predict_variants(model, pictures[0], begun.variants, deadline)
        return await self._in_pool(lambda: begun.render(predictions), deadline)

    def _hold_batch(self, count: int, state: _State) -> None:
        """Keep room for a request's pictures until it is answered, or refuse it; a single batch always gets in."""
        if self._batched and self._batched + count > self._limits.max_batched:
            raise _overloaded()
        state.batched = count
        self._batched += count

    def _predict(
        self, model: ServedModel, source: bytes | NDArray[np.uint8], deadline: float
    ) -> tuple[Prediction, NDArray[np.uint8]]:
        """The prediction for a picture that somebody sent, and its pixels as the model took them."""
        pixels, decode_s = self._pixels(model, source, deadline)
        decoded = time.perf_counter()
        logits = model.predict_pixels(pixels[np.newaxis])
        inferred = time.perf_counter()
        prediction = model.answers(logits)[0]
        self._models.answered(model, source, pixels, prediction.label, inferred - decoded)
        self._metrics.predicted(model.facts.identity, decode_s, inferred - decoded, prediction)
        return prediction, pixels

    def _pixels(
        self, model: ServedModel, source: bytes | NDArray[np.uint8], deadline: float
    ) -> tuple[NDArray[np.uint8], float]:
        """A picture's pixels as the model takes them, and the seconds that it took when there was memory for it."""
        size = model.facts.image_size_px
        wanted = images.decode_bytes(source, size, self._limits.image) if isinstance(source, bytes) else 0
        try:
            with self._memory.hold(wanted, deadline):
                began = time.perf_counter()
                pixels = model.decode(source) if isinstance(source, bytes) else images.fit_pixels(source, size)
                return pixels, time.perf_counter() - began
        except TimeoutError:
            raise self._too_late() from None

    async def _predict_variants(
        self, model: ServedModel, source: bytes | NDArray[np.uint8], variants: Variants, deadline: float
    ) -> list[Prediction]:
        """The predictions for a picture and then for its variants, which are counted nowhere."""

        def begin() -> tuple[Prediction, Sequence[NDArray[np.uint8]]]:
            prediction, pixels = self._predict(model, source, deadline)
            return prediction, variants.make(pixels)

        def vary(pixels: NDArray[np.uint8]) -> Prediction:
            return model.answers(model.predict_pixels(pixels[np.newaxis]))[0]

        prediction, made = await self._in_pool(begin, deadline)
        return [prediction, *await self._each_in_pool(vary, made, deadline)]

    async def _gather(
        self, sources: tuple[Source, ...], deadline: float, state: _State
    ) -> list[bytes | NDArray[np.uint8]]:
        """The pictures, those elsewhere fetched.

        Raises:
            InputError: 400 for more addresses than a request may name, 503 while too many are being fetched or there
                is no room for what one leads to, 504 when one is not there in time.
        """
        count = sum(isinstance(source, Address) for source in sources)
        if count > self._limits.max_fetches:
            message = f"A request must name at most {self._limits.max_fetches} URLs. Received: {count}"
            raise InputError(message, code="too_many_urls")
        if self._fetching + count > self._limits.max_fetches:
            raise _overloaded()
        until = min(deadline, time.monotonic() + self._limits.fetch_deadline_s)
        fetches = {
            i: asyncio.ensure_future(self._fetched(self._fetch(s.url, until), state))
            for i, s in enumerate(sources)
            if isinstance(s, Address)
        }
        try:  # A thread that looks up a name knows no deadline.
            contents = await asyncio.wait_for(asyncio.gather(*fetches.values()), self._limits.fetch_deadline_s)
        except asyncio.TimeoutError:
            raise too_slow() from None
        finally:
            for each in fetches.values():  # When one has failed, nobody waits for the others.
                each.cancel()
        fetched = dict(zip(fetches, contents, strict=True))
        pictures: list[bytes | NDArray[np.uint8]] = []
        for i, source in enumerate(sources):
            pictures.append(check_picture(fetched[i], self._limits) if isinstance(source, Address) else source)
        return pictures

    async def _fetched(self, fetch: asyncio.Future[bytes], state: _State) -> bytes:
        """What is fetched, counted as a body is from when it is here."""
        # Shielded: a fetch that has begun goes on until its thread is free, whoever still waits for it.
        data = await asyncio.shield(fetch)
        self._hold_bytes(len(data), state)
        return data

    def _fetch(self, url: str, until: float) -> asyncio.Future[bytes]:
        """Begin to fetch; the place is free when the thread is, not when the client stops waiting."""
        began = time.perf_counter()
        self._fetching += 1
        future = asyncio.get_running_loop().run_in_executor(self._fetch_pool, self._fetcher.fetch, url, until)

        def release(done: asyncio.Future[bytes]) -> None:
            self._fetching -= 1
            self._metrics.fetched(time.perf_counter() - began)
            if not done.cancelled():
                done.exception()  # Looked at, also where nobody waits for it any more.

        future.add_done_callback(release)
        return future

    async def _in_pool(self, job: Callable[[], _T], deadline: float) -> _T:
        """Run the job on one of the threads; one that is cancelled or late by then never begins."""
        asked = time.perf_counter()

        def unless_late() -> _T:
            if time.monotonic() > deadline:
                raise self._too_late()
            self._metrics.queued(time.perf_counter() - asked)
            return job()

        return await asyncio.get_running_loop().run_in_executor(self._pool, unless_late)

    async def _each_in_pool(self, job: Callable[[_S], _T], items: Sequence[_S], deadline: float) -> list[_T]:
        """Run the job on the threads for each item."""
        jobs = [asyncio.ensure_future(self._in_pool(partial(job, item), deadline)) for item in items]
        try:
            return await asyncio.gather(*jobs)
        finally:
            for each in jobs:  # What has not begun when one has failed, or nobody waits any more, never does.
                each.cancel()

    async def _read(self, call: Call, max_bytes: int, state: _State) -> bytes:
        """The body, or a refusal as soon as it is more than `max_bytes` or than the replica has room for."""
        body = bytearray()
        state.reading, state.reading_since = True, time.monotonic()
        self._readers.add(state)
        try:
            async for chunk in call.body():
                if len(body) + len(chunk) > max_bytes:
                    raise too_large(max_bytes)
                self._hold_bytes(len(chunk), state)
                body += chunk
        finally:
            self._readers.discard(state)
        state.reading, state.read_whole = False, True
        return bytes(body)

    def _hold_bytes(self, count: int, state: _State) -> None:
        """Keep room for what came of a request until it is answered, or refuse it."""
        if self._buffered_bytes + count > self._limits.max_buffered_bytes:
            raise _overloaded()
        state.buffered_bytes += count
        self._buffered_bytes += count

    def _too_late(self) -> InputError:
        message = f"There was no answer within {self._limits.deadline_s:g} seconds."
        return InputError(message, status=504, code="deadline")

    def _write_log(self, call: Call, route: Route, status: int, seconds: float, request_id: str, state: _State) -> None:
        fields: dict[str, object] = {
            "request_id": request_id,
            "method": call.method[:20],
            "path": call.path[:200],
            "route": route.name,
            "status": status,
            "seconds": round(seconds, 6),
        }
        details = {
            "code": state.code,
            "refused": state.refused,
            "pictures": state.pictures,
            "version": state.version,
            "trace": state.trace,
        }
        fields |= {name: value for name, value in details.items() if value}
        self._log.write("error" if status >= 500 else "info", fields)


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


def _has_body(call: Call) -> bool:
    return call.headers.get("content-length", "0") != "0" or "transfer-encoding" in call.headers


async def _drained(call: Call) -> bool:
    """Whether a body that nobody needs has come to its end, a moment later at most."""

    async def drain() -> None:
        async for _ in call.body():
            pass

    try:
        await asyncio.wait_for(drain(), _DRAIN_S)
    except (asyncio.TimeoutError, ClientGone):
        return False
    return True


def _overloaded() -> InputError:
    return InputError("All places are taken; try again.", status=503, code=_OVERLOADED)
