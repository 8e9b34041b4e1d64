"""Which path is answered how: one table, read by the service and by the OpenAPI document.

Paths are compared as they are: `//predict` and `/predict/` are other paths, so 404. A route either shows a page made of
what the replica knows, or speaks a protocol: it reads a body, and pictures in it are classified.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl

from rayml.errors import InputError
from serving import docs_page, openapi, page
from serving.limits import RequestLimits
from serving.metrics import Metrics
from serving.models import Models
from serving.protocols import base, explain, openinference, rayml, tfserving
from serving.protocols.base import Answer, ModelFacts, Work

_GET = ("GET", "HEAD")
_POST = ("POST",)
_MAX_FIELDS = 16  # Of a query.


@dataclass(frozen=True)
class Target:
    """The model that a request names; None where it leaves the choice to the server."""

    name: str | None = None
    version: str | None = None


@dataclass(frozen=True)
class Context:
    """What a replica has that pages are made of."""

    models: Models
    metrics: Metrics
    limits: RequestLimits


Page = Callable[[Context, Target], Awaitable[Answer]]


@dataclass(frozen=True)
class Protocol:
    """How a request for predictions is read.

    Arguments:
        max_bytes: the largest body under these headers; 415 for headers that announce something else.
        memory_bytes: the most memory that `parse` takes beside the body.
        parse: headers and body to `Work`.
    """

    max_bytes: Callable[[Mapping[str, str], RequestLimits], int]
    memory_bytes: Callable[[Mapping[str, str], bytes, RequestLimits], int]
    parse: Callable[[Mapping[str, str], bytes, RequestLimits, ModelFacts], Work]


@dataclass(frozen=True)
class Route:
    """One entry of the table.

    Arguments:
        name: the path with `{name}` for what varies; what metrics are counted under.
        methods: those allowed.
        page: makes the answer, or None where `protocol` does.
        protocol: reads a body, or None.
        needs_key: whether an API key is asked for, where the server has any.
        error: how an error is written down.
    """

    name: str
    methods: tuple[str, ...]
    page: Page | None = None
    protocol: Protocol | None = None
    needs_key: bool = True
    error: Callable[[InputError], bytes] = base.coded_error


async def _live(_context: Context, _target: Target) -> Answer:
    return Answer(base.dump({"status": "live"}))


async def _ready(context: Context, _target: Target) -> Answer:
    # A replica takes requests only once it is made, which is after the golden pictures.
    identity = context.models.live.facts.identity
    body = base.dump({"status": "ready", "model": identity.to_dict()})
    return Answer(body, headers={base.BUNDLE_HEADER: identity.bundle})


async def _metrics(context: Context, _target: Target) -> Answer:
    # Not on the event loop: it reads the files of every replica that has ever counted.
    return await asyncio.to_thread(context.metrics.page)


async def _openapi(context: Context, _target: Target) -> Answer:
    return openapi.json_page(context.models.live.facts, context.limits)


async def _docs(context: Context, _target: Target) -> Answer:
    return docs_page.html_page(context.models.live.facts, context.limits)


def _static(path: str) -> Page:
    async def file(_context: Context, _target: Target) -> Answer:
        return page.static(path)

    return file


def _example(path: str) -> Page:
    async def drawing(_context: Context, _target: Target) -> Answer:
        return await asyncio.to_thread(page.example, path)

    return drawing


async def _about(context: Context, _target: Target) -> Answer:
    return page.about(context.models.live.facts, context.limits)


async def _v1_status(context: Context, target: Target) -> Answer:
    facts = (await context.models.get(target.name, target.version)).facts
    return tfserving.status(context.models.versions(facts.identity.name) if target.version is None else [facts])


async def _v1_metadata(context: Context, target: Target) -> Answer:
    return tfserving.metadata((await context.models.get(target.name, target.version)).facts)


async def _v2(_context: Context, _target: Target) -> Answer:
    return openinference.server_metadata()


async def _v2_live(_context: Context, _target: Target) -> Answer:
    return openinference.live()


async def _v2_ready(_context: Context, _target: Target) -> Answer:
    return openinference.ready()


async def _v2_model(context: Context, target: Target) -> Answer:
    facts = (await context.models.get(target.name, target.version)).facts
    return openinference.model_metadata(facts, context.models.versions(facts.identity.name))


async def _v2_model_ready(context: Context, target: Target) -> Answer:
    return openinference.model_ready((await context.models.get(target.name, target.version)).facts)


def _plain(
    name: str,
    methods: tuple[str, ...],
    page: Page | None = None,
    protocol: Protocol | None = None,
    needs_key: bool = True,
) -> Route:
    return Route(name, methods, page, protocol, needs_key, base.plain_error)


_PREDICT = Protocol(rayml.max_body_bytes, rayml.memory_bytes, rayml.parse)
_BATCH = Protocol(rayml.max_batch_bytes, rayml.batch_memory_bytes, rayml.parse_batch)
_EXPLAIN = Protocol(rayml.max_body_bytes, rayml.memory_bytes, explain.parse)
_LESSON = Protocol(rayml.max_batch_bytes, rayml.memory_bytes, rayml.parse_lesson)
_V1 = Protocol(tfserving.max_body_bytes, tfserving.memory_bytes, tfserving.parse)
_V2 = Protocol(openinference.max_body_bytes, openinference.memory_bytes, openinference.parse)

FIXED: dict[str, Route] = {
    route.name: route
    for route in (
        Route("/predict", _POST, protocol=_PREDICT),
        Route("/predict/batch", _POST, protocol=_BATCH),
        Route("/explain", _POST, protocol=_EXPLAIN),
        Route("/lesson", _POST, protocol=_LESSON),
        Route("/healthz", _GET, _live, needs_key=False),
        Route("/readyz", _GET, _ready, needs_key=False),
        Route("/metrics", _GET, _metrics),
        Route("/docs", _GET, _docs, needs_key=False),
        Route("/openapi.json", _GET, _openapi, needs_key=False),
        _plain("/v2", _GET, _v2),
        _plain("/v2/health/live", _GET, _v2_live, needs_key=False),
        _plain("/v2/health/ready", _GET, _v2_ready, needs_key=False),
    )
}
# The web page, for people: the document of the API leaves it out.
WEB: dict[str, Route] = {
    page.ABOUT: Route(page.ABOUT, _GET, _about),
    **{path: Route(path, _GET, _static(path), needs_key=False) for path in page.FILES},
    **{path: Route("/web/examples", _GET, _example(path), needs_key=False) for path in page.EXAMPLES},
}
_V1_PATH = re.compile(r"/v1/models/([^/:]+)(?:/versions/([^/:]+))?(:predict|/metadata|)")
_V1_ROUTES = {
    "": _plain("/v1/models/{name}", _GET, _v1_status),
    "/metadata": _plain("/v1/models/{name}/metadata", _GET, _v1_metadata),
    ":predict": _plain("/v1/models/{name}:predict", _POST, protocol=_V1),
}
_V2_PATH = re.compile(r"/v2/models/([^/]+?)(?:/versions/([^/]+?))?(/ready|/infer|)")
_V2_ROUTES = {
    "": _plain("/v2/models/{name}", _GET, _v2_model),
    "/ready": _plain("/v2/models/{name}/ready", _GET, _v2_model_ready),
    "/infer": _plain("/v2/models/{name}/infer", _POST, protocol=_V2),
}
# What is counted and answered where no route is: errors in the words that the clients of such paths expect.
_NOWHERE = Route("none", ())
_NOWHERE_PLAIN = _plain("none", ())


def find(path: str) -> tuple[Route, Target]:
    """The route of a path and the model that the path names; a route without methods where there is none.

    Arguments:
        path: as it was sent, percent-decoded.
    """
    route = FIXED.get(path) or WEB.get(path)
    if route is not None:
        return route, Target()
    if path.startswith("/v1/"):
        found = _V1_PATH.fullmatch(path)
        return (_V1_ROUTES[found[3]], Target(found[1], found[2])) if found else (_NOWHERE_PLAIN, Target())
    if path.startswith("/v2/"):
        found = _V2_PATH.fullmatch(path)
        return (_V2_ROUTES[found[3]], Target(found[1], found[2])) if found else (_NOWHERE_PLAIN, Target())
    return _NOWHERE, Target()


def asked(route: Route, target: Target, query: bytes) -> Target:
    """The model that a request names, by `model` and `version` in the query of rayml's own routes for predictions.

    Arguments:
        route, target: what `find` found.
        query: as it was sent; pages and other protocols have no use for it.

    Raises:
        InputError: 400, it cannot be read: whoever names a version shall not have the answer of another.
    """
    if not query or route.protocol is None or route.name not in FIXED:
        return target
    try:
        values = dict(parse_qsl(query.decode("ascii"), keep_blank_values=True, max_num_fields=_MAX_FIELDS))
    except ValueError:
        message = f"The query must be ASCII with at most {_MAX_FIELDS} fields."
        raise InputError(message, code="bad_query") from None
    return Target(values.get("model"), values.get("version"))


def check_method(route: Route, method: str) -> None:
    """Refuse what the table does not have.

    Raises:
        InputError: 404 for no route, 405 for another method.
    """
    if not route.methods:
        raise InputError("There is no such path; GET /docs shows all.", status=404, code="not_found")
    if method not in route.methods:
        raise InputError(f"The method must be {' or '.join(route.methods)}.", status=405, code="method_not_allowed")
