"""The service: one Ray Serve deployment that takes HTTP requests and answers them with a bundle's model.

Decoding and inference run in the deployment itself, each picture alone: a second deployment behind an ingress costs a
hop for each request (51 against 103 requests/s were measured), and with one inference stream a thread batching gains
little on a CPU (`rayml.engines.base`). Use it from a Serve config file as

    applications:
      - name: rayml
        import_path: serving.app:build
        args: {models: /models, name: clothing}
        deployments: [{name: Classifier, user_config: {version: 3}}]

where a change of the version alone, or leaving it out, is a hot swap in the running replicas, or through `serving.run`,
which also starts Ray and the proxy in front.
"""

# No `from __future__ import annotations` here: Serve reads the annotation of `build`'s argument to validate it, and
# hands over an unchecked dict where it finds a string.

from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from rayml.errors import UsageError
from rayml.registry import Registry
from serving import one_write
from serving.call import Call, ClientGone
from serving.config import ServeSettings
from serving.fetch import Fetcher
from serving.keys import ApiKeys
from serving.limits import RequestLimits
from serving.log import RequestLog
from serving.metrics import Metrics
from serving.models import Models
from serving.protocols.base import error_body
from serving.replicas import Reporter
from serving.scheduling import in_foreground
from serving.service import Service
from serving.sources import BundleSource, RegistrySource, Source

if TYPE_CHECKING:
    from ray.serve import Application

APP_NAME = "rayml"
# Ray's own admission comes after ours, which answers in JSON and before the body is read: Ray lets more requests in
# than we hold, so that health questions and refusals pass while all places are taken.
_RAY_HEADROOM = 64
_NOT_READY = error_body("not_ready", "No replica is ready; try again.")


class Classifier:
    """Answers HTTP requests with one model; ready once what is to answer has reproduced its golden pictures.

    Which version that is, `reconfigure` says, which Serve calls a first time as the last part of the start: nothing is
    loaded before.

    Arguments:
        source: the folder of a bundle, or of models, on the replica's machine.
        engine: one of `serving.config.ENGINES`.
        threads: pictures classified at once, at least 1.
        limits: the fields of a `RequestLimits`.
        access: the fields of an `Access`.
        precision: as in `rayml.predictor.Predictor`.
        name: which model of the folder of models, where it holds several.

    Raises:
        RegistryError: the folder of models is damaged.
        UsageError: there is no such model, or a limit is out of range.
    """

    def __init__(
        self,
        source: str,
        engine: str,
        threads: int,
        limits: dict[str, Any],
        access: dict[str, Any] | None = None,
        precision: str = "auto",
        name: str | None = None,
    ) -> None:
        one_write.install()
        self._source, self._engine, self._threads, self._precision = source, engine, threads, precision
        self._bounds, self._rules = RequestLimits(**limits), Access(**(access or {}))
        self._registry = Registry(source) if Registry.is_one(Path(source)) else None
        self._name = "" if self._registry is None else self._registry.one_name(name)
        self._models: Models | None = None
        self.service: Service | None = None

    def _start(self, version: int | None) -> None:
        """Load the pinned or the live version and get ready to answer with it."""
        in_foreground()  # The event loop, which this runs on, and all threads of ours, which are started from here.
        bounds, rules = self._bounds, self._rules
        source: Source
        if self._registry is None:
            source, reporter = BundleSource.read(self._source), None
        else:
            source = RegistrySource(self._registry, self._name, version)
            reporter = Reporter(self._registry, self._name)
        self._models = Models(source, self._engine, self._threads, bounds, reporter, self._precision)
        service = Service(
            self._models,
            self._threads,
            bounds,
            Fetcher(rules.allow_url_hosts, bounds.max_image_bytes),
            None if rules.api_key_file is None else ApiKeys(Path(rules.api_key_file)),
            Metrics(None if rules.metrics_folder is None else Path(rules.metrics_folder)),
            RequestLog(None if rules.log_pipe is None else Path(rules.log_pipe), rules.access_log),
        )
        # Every thread runs the whole path once, so that no client waits for the first use of anything.
        self._models.start(service.warm_up)
        self.service = service

    def __del__(self) -> None:
        """Serve calls this when it ends a replica."""
        models: Models | None = getattr(self, "_models", None)
        if models is not None:
            models.stop()

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """What a Serve config file says under `user_config`: `{version: N}` pins a version, `{}` follows live.json.

        The first call is the end of the start, which fails where the version does not load. A replica that runs is
        back at once, since Serve sends it no requests meanwhile; the version takes over when it is ready, and one that
        does not load never does.

        Raises:
            BundleError: at the start, the bundle is damaged, or its model does not give here what it gave when it was
                trained.
            RegistryError: at the start, the folder of models is damaged.
            UsageError: a version of a bundle alone; at the start, no version is live, there is no such version, or the
                API keys or allowed hosts are wrong.
        """
        version = UserConfig(**user_config).version
        if self._registry is None and version is not None:
            raise UsageError("user_config.version needs args.models. Received: args.bundle")
        if self.service is None:
            self._start(version)
        elif self._registry is not None and self._models is not None:
            self._models.follow(RegistrySource(self._registry, self._name, version))

    async def __call__(self, request: Request) -> Response:
        """Answer one HTTP request."""
        if self.service is None:  # Serve opens the replica's port before the first `reconfigure`.
            retry_after = {"retry-after": str(self._bounds.retry_after_s)}
            return Response(_NOT_READY, 503, retry_after, "application/json")
        scope = request.scope

        whole = False

        async def body() -> AsyncIterator[bytes]:
            """What is left of the body; `Request.stream` cannot be begun a second time."""
            nonlocal whole
            while not whole:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                whole = not message.get("more_body", False)
                if piece := message.get("body"):
                    yield piece

        call = Call(request.method, scope["path"], scope["query_string"], request.headers, body)
        answer = await self.service.answer(call)
        return Response(answer.body, answer.status, dict(answer.headers), answer.content_type)


class Access(BaseModel):
    """Who may ask, what is fetched for them, and where it is written down.

    Arguments:
        api_key_file: a key a line; None lets everybody in.
        allow_url_hosts: hosts from which pictures are fetched; none means that no URL is.
        access_log: whether each request is logged, not only those that failed.
        metrics_folder: where the replicas of one machine share their counts; None: each tells its own.
        log_pipe: a named pipe for log lines; None for standard error, which Ray collects.
    """

    model_config = ConfigDict(extra="forbid")

    api_key_file: str | None = None
    allow_url_hosts: list[str] = Field(default_factory=list)
    access_log: bool = False
    metrics_folder: str | None = None
    log_pipe: str | None = None


class UserConfig(BaseModel):
    """What a Serve config file may say under `user_config`."""

    model_config = ConfigDict(extra="forbid")

    version: int | None = Field(default=None, ge=1)


class AppArguments(BaseModel):
    """What a Serve config file may say under `args`."""

    model_config = ConfigDict(extra="forbid")

    bundle: str | None = None
    models: str | None = None
    name: str | None = None
    engine: str = "auto"
    precision: str = "auto"
    replicas: int | None = None
    max_replicas: int | None = None
    threads: int | None = None
    start_attempts: int = Field(default=1, ge=1)
    limits: dict[str, Any] = Field(default_factory=dict)
    access: Access = Field(default_factory=Access)


def build(arguments: AppArguments) -> "Application":
    """The Serve application for one model.

    Arguments:
        arguments: `bundle`, a bundle's folder, or `models` with `name`, a model whose live version answers, and how
            to run it; `replicas` and `threads` None for auto, with `max_replicas` as many replicas as are busy,
            `limits` the fields of a `RequestLimits`; `start_attempts`, how many replicas may fail to start before the
            first one has, which matters where the folder is another machine's (Serve allows 3 a replica at most).

    Raises:
        UsageError: a setting out of range.
    """
    from ray import serve
    from ray.serve.config import AutoscalingConfig, BackpressureConfig

    if (arguments.bundle is None) == (arguments.models is None):
        raise UsageError(
            "args must have one of bundle and models. Received: " + ("both" if arguments.bundle else "none")
        )
    settings = ServeSettings(
        engine=arguments.engine,
        precision=arguments.precision,
        replicas=arguments.replicas,
        max_replicas=arguments.max_replicas,
        threads=arguments.threads,
        limits=RequestLimits(**arguments.limits),
    )
    limits = settings.limits
    if settings.max_replicas is None:
        count: dict[str, Any] = {"num_replicas": settings.replica_count}
    else:
        busy = 2 * settings.thread_count  # A request on each thread, and another one that waits for it.
        scaling = AutoscalingConfig(
            min_replicas=settings.replica_count, max_replicas=settings.max_replicas, target_ongoing_requests=busy
        )
        count = {"autoscaling_config": scaling}
    as_deployment = serve.deployment(
        name="Classifier",
        **count,
        # One where the folder is this machine's: a bundle that does not load will not load the next time either.
        max_constructor_retry_count=arguments.start_attempts,
        max_ongoing_requests=limits.max_in_flight + _RAY_HEADROOM,
        max_queued_requests=_RAY_HEADROOM,
        # Serve calls `reconfigure` only where this is not None: as the end of each start, and when a config file that
        # pinned a version no longer does, for what a file leaves out is taken from here.
        user_config={},
        backpressure_config=BackpressureConfig(status_code=503, retry_after_s=limits.retry_after_s),
        # The cores are shared with whatever else runs on the node; the pool's size is what bounds a replica.
        ray_actor_options={"num_cpus": 0},
        # A rollout waits this long for the requests of an old replica.
        graceful_shutdown_timeout_s=limits.deadline_s,
    )
    application: Application = as_deployment(Classifier).bind(
        arguments.bundle or arguments.models,
        settings.engine,
        settings.thread_count,
        asdict(limits),
        arguments.access.model_dump(),
        settings.precision,
        arguments.name,
    )
    return application
