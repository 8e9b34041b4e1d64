"""What a replica does with a request, whoever hands it over: admission, body, protocol, pictures, answer.

The order of a request for predictions: path, method, API key and a place are checked before its body is read; the body
is read within its limits; one visit to the pool of threads parses it and, for the one picture of most requests,
decodes, classifies and writes the answer. Pictures by URL are fetched by threads of their own, so that slow origins
take no place from anybody else. One deadline counts for everything.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from rayml.errors import InputError
from rayml.predictor import Prediction
from serving import routes
from serving.admission import OVERLOADED, Admission, Place
from serving.call import Call, ClientGone, check_declared_length
from serving.fetch import Fetcher
from serving.fetches import Fetches
from serving.keys import ApiKeys
from serving.limits import RequestLimits
from serving.log import RequestLog
from serving.memory import MemoryBudget, NoRoom
from serving.metrics import Metrics
from serving.models import VERSION_NOT_LOADED, Models
from serving.protocols.base import Address, Answer, Source, Variants, Work, check_picture, too_large
from serving.routes import Context, Protocol, Route, Target
from serving.served_model import ServedModel

REQUEST_ID_HEADER = "x-rayml-request-id"
# Told apart, not kept secret; the system's own random bytes would give the interpreter away for each request.
_ids = random.Random()
# While the engine computes on threads of its own, those of the pool that wait for it take no core: others read the next
# pictures meanwhile, and several that wait go through an engine together that gains from it. With as many as threads
# two cores were idle for a twentieth of the time under load; with six for each, reading ahead took 3 % more of it.
_POOL_PER_THREAD = 4
# A line for each refusal would cost more than the refusal, just when there is no time for it.
_REFUSED_EVERY_S = 1.0
_FOR_THE_MOMENT = {OVERLOADED, VERSION_NOT_LOADED}
_S = TypeVar("_S")
_T = TypeVar("_T")


@dataclass(eq=False)
class _State:
    """What becomes of one request."""

    reading: bool = False
    read_whole: bool = False
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
        self._keys = keys
        self._metrics = metrics
        self._log = log
        self._context = Context(models, metrics, limits)
        self._memory = MemoryBudget(limits.max_decode_bytes)
        self._threads = threads
        self._pool = ThreadPoolExecutor(_POOL_PER_THREAD * threads, thread_name_prefix="rayml")
        self._fetches = Fetches(fetcher, limits, metrics)
        self._admission = Admission(limits)
        self._refused, self._refused_told = 0, -_REFUSED_EVERY_S
        self._draining = False

    def warm_up(self, model: ServedModel) -> None:
        """Let the model classify its sample once for each of its threads, so that a request finds all of it in use."""

        def classify(_: int) -> list[Prediction]:
            return model.answers(model.predict_pixels(model.pixels(model.sample)[np.newaxis]))

        for predictions in self._pool.map(classify, range(self._threads)):
            assert predictions

    async def answer(self, call: Call) -> Answer:
        """Answer one request; nothing is raised but a cancellation."""
        began = time.perf_counter()
        request_id = f"{_ids.getrandbits(64):016x}"
        route, target = routes.find(call.path)
        state = _State()
        try:
            answer = await self._answer(route, target, call, state)
        except InputError as error:
            answer = self._refusal(route, error, state)
            _let_go(error)
        except ClientGone as error:
            gone = InputError("The client went away.", status=499, code="client_closed_request")
            answer = self._refusal(route, gone, state)
            _let_go(error)
        except Exception as error:
            state.trace = traceback.format_exc()
            bug = InputError("The server failed to answer this request.", status=500, code="internal")
            answer = self._refusal(route, bug, state)
            _let_go(error)
        except asyncio.CancelledError as error:
            _let_go(error)
            raise
        seconds = time.perf_counter() - began
        self._metrics.request(route.name, answer.status, seconds)
        if self._log.every_request or (answer.status >= 500 and self._is_news(state)):
            self._write_log(call, route, answer.status, seconds, request_id, state)
        headers = {**answer.headers, REQUEST_ID_HEADER: request_id}
        if not state.read_whole and "connection" not in headers and call.has_body and not await self._drained(call):
            headers["connection"] = "close"
        return Answer(answer.body, answer.status, headers, answer.content_type)

    async def _drained(self, call: Call) -> bool:
        """Whether a body that nobody needs has come to its end; only one is waited for at a time.

        The proxy counts a request until its connection is closed, and has one place more than the replica: requests
        that are refused and never end, a key or not, shall keep nobody else out.
        """
        if self._draining:
            return False
        self._draining = True
        try:
            return await call.drained()
        finally:
            self._draining = False

    def _is_news(self, state: _State) -> bool:
        """Whether a failure is worth a line: of refusals for the moment, one a second, which says how many."""
        if state.code not in _FOR_THE_MOMENT:
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
            headers["retry-after"] = str(math.ceil(error.retry_after_s or self._limits.retry_after_s))
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
        target = routes.asked(route, target, call.query)
        with self._admission.place() as place, self._metrics.place():
            work = asyncio.ensure_future(self._classify(route.protocol, target, call, place, state))
            try:
                return await asyncio.wait_for(work, self._limits.deadline_s)
            except asyncio.CancelledError:
                if not place.gave_way:
                    raise
                message = "The body must arrive faster while all places are taken."
                raise InputError(message, status=408, code="slow_body") from None
            except asyncio.TimeoutError:
                if state.reading:
                    message = f"The body must arrive within {self._limits.deadline_s:g} seconds."
                    raise InputError(message, status=408, code="slow_body") from None
                raise self._too_late() from None

    async def _classify(self, protocol: Protocol, target: Target, call: Call, place: Place, state: _State) -> Answer:
        """Read, understand and answer a request for predictions."""
        deadline = time.monotonic() + self._limits.deadline_s
        self._models.loaded(target.name, target.version)  # Is there such a model at all?
        headers, limits = call.headers, self._limits
        max_bytes = protocol.max_bytes(headers, limits)
        check_declared_length(headers.get("content-length"), max_bytes)
        body = await self._read(call, max_bytes, place, state)
        # Not before: Ray's server would take the body in while a version loads, and nobody would have counted it; and a
        # slow body would keep a version in memory that had to make room meanwhile.
        model = await self._models.get(target.name, target.version)
        state.version = model.facts.identity.version

        def begin() -> Work | Answer:
            with self._memory.hold(protocol.memory_bytes(headers, body, limits)):
                work = protocol.parse(headers, body, limits, model.facts)
            state.pictures = len(work.sources)
            self._metrics.batch(len(work.sources))
            first = work.sources[0]
            if len(work.sources) > 1 or isinstance(first, Address) or work.variants is not None:
                return work
            try:
                return work.render([self._predict(model, first)[0]])  # The common case, in one visit to the pool.
            except NoRoom:
                return work

        begun = await self._in_pool(begin, deadline)
        if isinstance(begun, Answer):
            return begun
        if begun.count > 1:
            place.hold_batch(begun.count)
        pictures = await self._gather(begun.sources, deadline, place)
        if begun.variants is None:
            predictions = await self._each_in_pool(lambda picture: self._predict(model, picture)[0], pictures, deadline)
        else:
            predictions = await self._predict_variants(model, pictures[0], begun.variants, deadline)
        return await self._in_pool(lambda: begun.render(predictions), deadline)

    def _predict(self, model: ServedModel, source: bytes | NDArray[np.uint8]) -> tuple[Prediction, NDArray[np.uint8]]:
        """The prediction for a picture that somebody sent, and its pixels as the model took them."""
        pixels, decode_s = self._pixels(model, source)
        decoded = time.perf_counter()
        logits = model.predict_pixels(pixels[np.newaxis])
        inferred = time.perf_counter()
        prediction = model.answers(logits)[0]
        self._models.answered(model, source, pixels, prediction.label, inferred - decoded)
        self._metrics.predicted(model.facts.identity, decode_s, inferred - decoded, prediction)
        return prediction, pixels

    def _pixels(self, model: ServedModel, source: bytes | NDArray[np.uint8]) -> tuple[NDArray[np.uint8], float]:
        """A picture's pixels as the model takes them, and the seconds that it took."""
        with self._memory.hold(model.memory_bytes(source)):
            began = time.perf_counter()
            pixels = model.pixels(source)
            return pixels, time.perf_counter() - began

    async def _predict_variants(
        self, model: ServedModel, source: bytes | NDArray[np.uint8], variants: Variants, deadline: float
    ) -> list[Prediction]:
        """The predictions for a picture and then for its variants, which are counted nowhere."""

        def begin() -> tuple[Prediction, Sequence[NDArray[np.uint8]]]:
            prediction, pixels = self._predict(model, source)
            return prediction, variants.make(pixels)

        def vary(pixels: NDArray[np.uint8]) -> Prediction:
            return model.answers(model.predict_pixels(pixels[np.newaxis]))[0]

        prediction, made = await self._in_pool(begin, deadline)
        return [prediction, *await self._each_in_pool(vary, made, deadline)]

    async def _gather(
        self, sources: tuple[Source, ...], deadline: float, place: Place
    ) -> list[bytes | NDArray[np.uint8]]:
        """The pictures, those elsewhere fetched."""
        urls = [source.url for source in sources if isinstance(source, Address)]
        fetched = iter(await self._fetches.all_of(urls, deadline, place.hold_bytes) if urls else ())
        return [
            check_picture(next(fetched), self._limits) if isinstance(source, Address) else source for source in sources
        ]

    async def _in_pool(self, job: Callable[[], _T], deadline: float) -> _T:
        """Run the job on one of the threads, again from its beginning where there was no memory for it.

        One that is cancelled or late by then never begins.
        """
        while True:
            asked = time.perf_counter()

            def unless_late(asked: float = asked) -> _T:
                if time.monotonic() > deadline:
                    raise self._too_late()
                self._metrics.queued(time.perf_counter() - asked)
                return job()

            try:
                return await asyncio.get_running_loop().run_in_executor(self._pool, unless_late)
            except NoRoom as short:
                await self._memory.room(short.wanted)

    async def _each_in_pool(self, job: Callable[[_S], _T], items: Sequence[_S], deadline: float) -> list[_T]:
        """Run the job on the threads for each item."""
        jobs = [asyncio.ensure_future(self._in_pool(partial(job, item), deadline)) for item in items]
        try:
            return await asyncio.gather(*jobs)
        finally:
            for each in jobs:  # What has not begun when one has failed, or nobody waits any more, never does.
                each.cancel()

    async def _read(self, call: Call, max_bytes: int, place: Place, state: _State) -> bytes:
        """The body, or a refusal as soon as it is more than `max_bytes` or than the replica has room for."""
        body = bytearray()
        state.reading = True
        with place.reading():
            async for chunk in call.body():
                if len(body) + len(chunk) > max_bytes:
                    raise too_large(max_bytes)
                place.hold_bytes(len(chunk))
                body += chunk
        state.reading, state.read_whole = False, True
        return bytes(body)

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


def _let_go(error: BaseException) -> None:
    """Free what the frames hold that an error has come through: the request's body.

    A task holds its error, the error its traceback, that the frames, and one of these the task: they would stay until
    the garbage collector looks for cycles, while the body's place is another's already.
    """
    chain: list[BaseException | None] = [error]
    while chain:
        if (one := chain.pop()) is not None and (one.__traceback__ or one.__context__ or one.__cause__):
            one.__traceback__ = None
            chain += [one.__context__, one.__cause__]
            one.__context__ = one.__cause__ = None
