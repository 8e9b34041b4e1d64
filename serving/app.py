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
import ctypes
import json
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from rayml.errors import InputError
from serving.config import ServeSettings
from serving.limits import RequestLimits
from serving.protocols import rayml as protocol

if TYPE_CHECKING:
    from ray.serve import Application

APP_NAME = "rayml"
_GET = ("GET", "HEAD")
# Path -> allowed methods. Paths are compared as they are: `//predict` and `/predict/` are other paths, so 404.
ROUTES: dict[str, tuple[str, ...]] = {"/predict": ("POST",), "/healthz": _GET, "/readyz": _GET}
# Ray's own admission comes after ours, which answers in JSON and before the body is read: Ray lets more requests in
# than we hold, so that health questions and refusals pass while all places are taken.
_RAY_HEADROOM = 64

_log = logging.getLogger("ray.serve")


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
        from rayml.bundle import Bundle
        from rayml.predictor import Predictor

        self._limits = RequestLimits(**limits)
        opened = Bundle.open(Path(bundle))
        record = opened.record
        self._model = protocol.ModelIdentity(record.name, str(record.version), opened.digest)
        # A stream a thread: pictures side by side, each on one thread, is what a service under load gains most from.
        self._predictor = Predictor(opened, engine, threads, streams=threads, limits=self._limits.image)
        self._predictor.check_golden()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="rayml")
        self._in_flight = 0
        self._headers = {protocol.BUNDLE_HEADER: self._model.bundle}
        # Every thread runs the whole path once, so that no client waits for the first use of anything.
        for body in self._pool.map(self._predict, opened.golden.pictures[:1] * threads):
            _log.debug("Warmed up with an answer of %d bytes.", len(body))
        _return_unused_memory()

    async def __call__(self, request: Request) -> Response:
        """Answer one HTTP request."""
        path, method = request.scope["path"], request.method
        allowed = ROUTES.get(path)
        if allowed is None:
            return _error("not_found", f"Paths are {', '.join(ROUTES)}.", 404)
        if method not in allowed:
            headers = {"allow": ", ".join(allowed)}
            return _error("method_not_allowed", f"The method must be {' or '.join(allowed)}.", 405, headers)
        if path == "/healthz":
            return _json(b'{"status":"live"}')
        if path == "/readyz":
            return self._ready()
        if self._in_flight >= self._limits.max_in_flight:
            headers = {"retry-after": str(self._limits.retry_after_s)}
            return _error("overloaded", "All places are taken; try again.", 503, headers)
        self._in_flight += 1
        try:
            return await self._answer(request)
        except InputError as error:
            # The rest of a refused body may still be on its way: do not wait for it on this connection.
            headers = {"connection": "close"} if error.status in (408, 413, 415) else {}
            return _error(error.code, error.message, error.status, headers)
        except ClientDisconnect:
            return _error("client_closed_request", "The client went away.", 499)
        except Exception:
            _log.exception("A request failed.")
            return _error("internal", "The server failed to answer this request.", 500)
        finally:
            self._in_flight -= 1

    def _ready(self) -> Response:
        # A replica takes requests only once __init__ has returned, which is after the golden pictures.
        return _json(json.dumps({"status": "ready", "model": self._model.to_dict()}).encode(), self._headers)

    async def _answer(self, request: Request) -> Response:
        kind = protocol.body_kind(request.headers)
        max_bytes = protocol.max_body_bytes(kind, self._limits)
        protocol.check_declared_length(request.headers, max_bytes)
        try:
            body = await asyncio.wait_for(_read(request, max_bytes), self._limits.deadline_s)
        except asyncio.TimeoutError:
            raise InputError(
                f"The body must arrive within {self._limits.deadline_s:g} seconds.", status=408, code="slow_body"
            ) from None
        deadline = time.monotonic() + self._limits.deadline_s
        loop = asyncio.get_running_loop()
        headers = request.headers

        def work() -> bytes:
            if time.monotonic() > deadline:  # Nobody waits for this answer any more.
                raise TimeoutError
            return self._predict(protocol.picture(kind, headers, body, self._limits))

        try:
            # Cancelled with the request (deadline, client gone); what has not begun by then never does.
            answer = await asyncio.wait_for(loop.run_in_executor(self._pool, work), self._limits.deadline_s)
        except (asyncio.TimeoutError, TimeoutError):
            raise InputError(
                f"There was no answer within {self._limits.deadline_s:g} seconds.", status=504, code="deadline"
            ) from None
        return _json(answer, self._headers)

    def _predict(self, image: bytes) -> bytes:
        prediction = self._predictor.predict([image])[0]
        return protocol.answer(prediction.label, prediction.confidence, prediction.probabilities, self._model)


def _return_unused_memory() -> None:
    """Give back what reading and compiling the graph has left: some 30 MB with MobileNetV2 (malloc_trim(3), glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


async def _read(request: Request, max_bytes: int) -> bytes:
    """The body, or a 413 as soon as more than `max_bytes` of it have come."""
    body = bytearray()
    async for chunk in request.stream():
        if len(body) + len(chunk) > max_bytes:
            raise protocol.too_large(max_bytes)
        body += chunk
    return bytes(body)


def _json(body: bytes, headers: dict[str, str] | None = None, status: int = 200) -> Response:
    return Response(body, status_code=status, headers=headers, media_type=protocol.JSON_TYPE)


def _error(code: str, message: str, status: int, headers: dict[str, str] | None = None) -> Response:
    return _json(protocol.error_body(code, message), headers, status)


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
