"""The service: one Ray Serve deployment that takes HTTP requests and answers them with a bundle's model.

Decoding and inference run in the deployment itself, on a pool of `threads` threads, each picture alone: a second
deployment behind an ingress costs a hop for each request (51 against 103 requests/s were measured), and with one
inference stream a thread there is nothing that batching would gain on a CPU. Use it from a Serve config file as

    applications: [{name: rayml, import_path: "serving.app:build", args: {bundle: /models/clothing}}]

or through `serving.run`, which also starts Ray and the proxy in front.
"""

# No `from __future__ import annotations` here: Serve reads the annotation of `build`'s argument to validate it, and
# hands over an unchecked dict where it finds a string.

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from rayml.engines.base import give_back_memory
from rayml.errors import InputError
from rayml.predictor import Prediction
from serving import routes
from serving.config import ServeSettings
from serving.limits import RequestLimits
from serving.models import Models, ServedModel
from serving.protocols.base import Address, Answer, Work, too_large
from serving.routes import Protocol, Route, Target

if TYPE_CHECKING:
    from ray.serve import Application

APP_NAME = "rayml"
# Ray's own admission comes after ours, which answers in JSON and before the body is read: Ray lets more requests in
# than we hold, so that health questions and refusals pass while all places are taken.
_RAY_HEADROOM = 64

_log = logging.getLogger("ray.serve")
_T = TypeVar("_T")


class Classifier:
    """Answers HTTP requests with one bundle's model; ready once it has reproduced the bundle's golden pictures.

    Arguments:
        bundle: the bundle's folder, on the replica's machine.
        engine: one of `serving.config.ENGINES`.
        threads: pictures decoded and classified at once, at least 1.
        limits: the fields of a `RequestLimits`.

    Raises:
        BundleError: the bundle is damaged, or its model does not give here what it gave when it was trained.
    """

    def __init__(self, bundle: str, engine: str, threads: int, limits: dict[str, Any]) -> None:
        self._limits = RequestLimits(**limits)
        self._models = Models([ServedModel(Path(bundle), engine, threads, self._limits)])
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="rayml")
        self._in_flight = 0
        self._buffered_bytes = 0
        # Every thread runs the whole path once, so that no client waits for the first use of anything.
        live = self._models.live
        for prediction in self._pool.map(live.predict, [live.sample] * threads):
            _log.debug("Warmed up with %s.", prediction.label)
        give_back_memory()

    async def __call__(self, request: Request) -> Response:
        """Answer one HTTP request."""
        scope = request.scope
        route, target = routes.find(scope["path"], scope["query_string"])
        try:
            answer = await self._answer(route, target, request)
        except InputError as error:
            answer = self._refusal(route, error)
        except ClientDisconnect:
            answer = _failure(route, "client_closed_request", "The client went away.", 499)
        except Exception:
            _log.exception("A request failed.")
            answer = _failure(route, "internal", "The server failed to answer this request.", 500)
        return Response(answer.body, answer.status, dict(answer.headers), answer.content_type)

    def _refusal(self, route: Route, error: InputError) -> Answer:
        headers = {}
        if error.status == 503:
            headers["retry-after"] = str(self._limits.retry_after_s)
        elif error.status == 405:
            headers["allow"] = ", ".join(route.methods)
        elif error.status in (408, 413, 415):
            # The rest of a refused body may still be on its way: do not wait for it on this connection.
            headers["connection"] = "close"
        return Answer(route.error(error), error.status, headers)

    async def _answer(self, route: Route, target: Target, request: Request) -> Answer:
        routes.check_method(route, request.method)
        if route.page is not None:
            return route.page(self._models, target)
        assert route.protocol is not None
        if self._in_flight >= self._limits.max_in_flight:
            raise _overloaded()
        held = _Held()
        self._in_flight += 1
        try:
            work = self._classify(route.protocol, target, request, held)
            return await asyncio.wait_for(work, self._limits.deadline_s)
        except asyncio.TimeoutError:
            if held.reading:
                message = f"The body must arrive within {self._limits.deadline_s:g} seconds."
                raise InputError(message, status=408, code="slow_body") from None
            raise self._too_late() from None
        finally:
            self._in_flight -= 1
            self._buffered_bytes -= held.bytes

    async def _classify(self, protocol: Protocol, target: Target, request: Request, held: "_Held") -> Answer:
        """Read, understand and answer a request for predictions."""
        deadline = time.monotonic() + self._limits.deadline_s
        model = self._models.find(target.name, target.version)
        headers, limits = request.headers, self._limits
        max_bytes = protocol.max_bytes(headers, limits)
        check_declared_length(headers.get("content-length"), max_bytes)
        body = await self._read(request, max_bytes, held)

        def begin() -> Work | Answer:
            work = protocol.parse(headers, body, limits, model.facts)
            first = work.sources[0]
            if len(work.sources) > 1 or isinstance(first, Address):
                return work
            return work.render([model.predict(first)])  # The common case, in one visit to the pool.

        begun = await self._in_pool(begin, deadline)
        if isinstance(begun, Answer):
            return begun
        work = begun
        if any(isinstance(source, Address) for source in work.sources):
            raise InputError("URLs are not fetched here.", status=422, code="url_refused")
        jobs = [asyncio.ensure_future(self._predict(model, source, deadline)) for source in work.sources]
        try:
            predictions = await asyncio.gather(*jobs)
        finally:
            for job in jobs:  # What has not begun when one has failed, or nobody waits any more, never does.
                job.cancel()
        return await self._in_pool(lambda: work.render(predictions), deadline)

    async def _predict(self, model: ServedModel, source: Any, deadline: float) -> Prediction:
        return await self._in_pool(lambda: model.predict(source), deadline)

    async def _in_pool(self, job: Callable[[], _T], deadline: float) -> _T:
        """Run the job on one of the threads; one that is cancelled or late by then never begins."""

        def unless_late() -> _T:
            if time.monotonic() > deadline:
                raise self._too_late()
            return job()

        return await asyncio.get_running_loop().run_in_executor(self._pool, unless_late)

    async def _read(self, request: Request, max_bytes: int, held: "_Held") -> bytes:
        """The body, or a refusal as soon as it is more than `max_bytes` or than the replica has room for."""
        body = bytearray()
        async for chunk in request.stream():
            if len(body) + len(chunk) > max_bytes:
                raise too_large(max_bytes)
            if self._buffered_bytes + len(chunk) > self._limits.max_buffered_bytes:
                raise _overloaded()
            held.bytes += len(chunk)
            self._buffered_bytes += len(chunk)
            body += chunk
        held.reading = False
        return bytes(body)

    def _too_late(self) -> InputError:
        message = f"There was no answer within {self._limits.deadline_s:g} seconds."
        return InputError(message, status=504, code="deadline")


class _Held:
    """What a request holds of the replica's room: bytes of its body, still arriving or not."""

    __slots__ = ("bytes", "reading")

    def __init__(self) -> None:
        self.bytes = 0
        self.reading = True


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


def _overloaded() -> InputError:
    return InputError("All places are taken; try again.", status=503, code="overloaded")


def _failure(route: Route, code: str, message: str, status: int) -> Answer:
    return Answer(route.error(InputError(message, status=status, code=code)), status)


class AppArguments(BaseModel):
    """What a Serve config file may say under `args`."""

    model_config = ConfigDict(extra="forbid")

    bundle: str
    engine: str = "auto"
    replicas: int | None = None
    threads: int | None = None
    limits: dict[str, Any] = Field(default_factory=dict)


def build(arguments: AppArguments) -> "Application":
    """The Serve application for one bundle.

    Arguments:
        arguments: the bundle's folder and how to run it; `replicas` and `threads` None for auto, `limits` the
            fields of a `RequestLimits`.

    Raises:
        UsageError: a setting out of range.
    """
    from ray import serve
    from ray.serve.config import BackpressureConfig

    settings = ServeSettings(
        engine=arguments.engine,
        replicas=arguments.replicas,
        threads=arguments.threads,
        limits=RequestLimits(**arguments.limits),
    )
    limits = settings.limits
    as_deployment = serve.deployment(
        name="Classifier",
        num_replicas=settings.replica_count,
        max_constructor_retry_count=1,  # A bundle that does not load will not load the next time either.
        max_ongoing_requests=limits.max_in_flight + _RAY_HEADROOM,
        max_queued_requests=_RAY_HEADROOM,
        backpressure_config=BackpressureConfig(status_code=503, retry_after_s=limits.retry_after_s),
        # The cores are shared with whatever else runs on the node; the pool's size is what bounds a replica.
        ray_actor_options={"num_cpus": 0},
        # A rollout waits this long for the requests of an old replica.
        graceful_shutdown_timeout_s=limits.deadline_s,
    )
    application: Application = as_deployment(Classifier).bind(
        arguments.bundle, settings.engine, settings.thread_count, asdict(limits)
    )
    return application
