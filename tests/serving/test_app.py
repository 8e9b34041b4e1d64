"""The deployment's class without Ray: what it does when it is slow, full or asked wrongly."""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response

from rayml.bundle import Bundle
from rayml.errors import BundleError, UsageError
from rayml.registry import Registry, State
from serving.app import AppArguments, Classifier, build
from serving.limits import RequestLimits
from serving.replicas import reports
from serving.service import Service
from tests.serving.tiny_bundle import picture, write_tiny_bundle

# Ray Serve's own configuration classes, when they are imported.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Using extra keyword arguments on `Field` is deprecated:pydantic.warnings.PydanticDeprecatedSince20"
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that takes next to no time."""
    return write_tiny_bundle(tmp_path_factory.mktemp("app") / "bundle")


def _classifier(bundle: Path, **limits: Any) -> Classifier:
    classifier = Classifier(str(bundle), "auto", 1, asdict(RequestLimits(**limits)))
    asyncio.run(classifier.reconfigure({}))
    return classifier


def _service(classifier: Classifier) -> Service:
    assert classifier.service is not None
    return classifier.service


def _request(body: bytes | None, content_type: str = "image/png", path: str = "/predict") -> Request:
    """A request whose body is `body`, or never comes when it is None."""
    path, _, query = path.partition("?")
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "headers": [(b"content-type", content_type.encode()), (b"transfer-encoding", b"chunked")],
        "query_string": query.encode(),
    }

    async def receive() -> dict[str, Any]:
        if body is None:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": body, "more_body": False}

    return Request(scope, receive)


def _code(response: Response) -> str:
    return str(json.loads(bytes(response.body))["error"]["code"])


def test_what_a_config_file_says_of_access_counts(bundle: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    access = {"api_key_file": str(keys), "access_log": True, "allow_url_hosts": ["images.example.com"]}
    limits = RequestLimits(max_image_bytes=1_000)
    classifier = Classifier(str(bundle), "auto", 1, asdict(limits), access)
    asyncio.run(classifier.reconfigure({}))
    service = _service(classifier)
    assert asyncio.run(classifier(_request(picture("red")))).status_code == 401
    assert service._log.every_request
    fetcher = service._fetches._fetcher
    assert (fetcher._allowed, fetcher._max_bytes) == (("images.example.com",), 1_000)


def test_late_answers_are_504_and_the_others_right(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = _classifier(bundle, deadline_s=1.0)
    real, go, begun = _service(classifier)._models.live.pixels, threading.Event(), []

    def pixels(source: bytes) -> Any:
        begun.append(source)
        if source == picture("blue"):
            assert go.wait(30)
        return real(source)

    monkeypatch.setattr(_service(classifier)._models.live, "pixels", pixels)

    async def crowd() -> tuple[list[Response], Response, int]:
        # One more than there are threads, all of which these hold.
        late = [asyncio.create_task(classifier(_request(picture("blue")))) for _ in range(5)]
        refused = await asyncio.gather(*late)
        taken = len(begun)
        go.set()
        return refused, await classifier(_request(picture("red"))), taken

    refused, answer, taken = asyncio.run(crowd())
    assert [(response.status_code, _code(response)) for response in refused] == [(504, "deadline")] * 5
    assert (answer.status_code, json.loads(bytes(answer.body))["label"]) == (200, "red")
    assert taken == 4 and begun == [picture("blue")] * 4 + [picture("red")]  # What is late by then never begins.


def test_a_body_that_never_comes_is_408(bundle: Path) -> None:
    response = asyncio.run(_classifier(bundle, deadline_s=0.05)(_request(None)))
    assert (response.status_code, _code(response)) == (408, "slow_body")


def test_a_full_replica_answers_503_at_once_and_recovers(bundle: Path) -> None:
    classifier = _classifier(bundle, deadline_s=30.0, max_in_flight=2, retry_after_s=7)

    async def fill() -> tuple[Response, Response]:
        waiting = [asyncio.create_task(classifier(_request(None))) for _ in range(2)]
        await asyncio.sleep(0)
        refused = await classifier(_request(picture("red")))
        for task in waiting:
            task.cancel()  # What Serve does when a client goes away.
        await asyncio.gather(*waiting, return_exceptions=True)
        return refused, await classifier(_request(picture("red")))

    refused, later = asyncio.run(fill())
    assert (refused.status_code, _code(refused), refused.headers["retry-after"]) == (503, "overloaded", "7")
    assert later.status_code == 200


def test_a_bug_shows_nothing_of_itself(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = _classifier(bundle)

    def broken(*_: object) -> None:
        raise RuntimeError("/secret/path")

    monkeypatch.setattr(_service(classifier)._models.live, "pixels", broken)
    response = asyncio.run(classifier(_request(picture("red"))))
    assert (response.status_code, _code(response)) == (500, "internal")
    assert b"secret" not in bytes(response.body)


def test_bodies_have_a_room_of_their_own_that_empties_again(bundle: Path) -> None:
    body = picture("red")
    classifier = _classifier(bundle, max_buffered_bytes=len(body))
    batch = _request(json.dumps({"images": ["eA==" * len(body)]}).encode(), "application/json", "/predict/batch")
    refused = asyncio.run(classifier(batch))
    assert (refused.status_code, _code(refused)) == (503, "overloaded")
    assert "connection" not in refused.headers  # All of the body has come: the next request may follow.
    for _ in range(3):
        assert asyncio.run(classifier(_request(body))).status_code == 200


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/predict?version=3", 200, ""),
        ("/predict?version=3&model=primaries", 200, ""),
        ("/predict?version=4", 404, "unknown_version"),
        ("/predict?model=other", 404, "unknown_model"),
        ("/predict?version=", 404, "unknown_version"),
        ("/predict?version", 404, "unknown_version"),
        ("/predict?model=", 404, "unknown_model"),
        ("/predict?other", 200, ""),
        ("/predict?version=3é", 400, "bad_query"),
        ("/predict?version=4" + "&other=1" * 16, 400, "bad_query"),
        ("/predict?version=3" + "&other=1" * 15, 200, ""),
        ("/explain?version=", 404, "unknown_version"),
    ],
)
def test_a_query_names_the_model(bundle: Path, path: str, status: int, code: str) -> None:
    response = asyncio.run(_classifier(bundle)(_request(picture("red"), path=path)))
    assert response.status_code == status
    assert not code or _code(response) == code


def test_a_serve_config_file_may_build_it(bundle: Path) -> None:
    application = build(AppArguments(bundle=str(bundle), threads=1, limits={"max_in_flight": 3}))
    deployment = application._bound_deployment
    assert deployment.num_replicas == 1
    assert deployment.max_queued_requests > 0
    assert deployment._deployment_config.max_constructor_retry_count == 1
    assert deployment.user_config == {}  # Otherwise Serve would not call the first `reconfigure`, which loads.


def test_before_the_first_reconfigure_nothing_is_loaded_and_nobody_is_answered(bundle: Path) -> None:
    classifier = Classifier(str(bundle), "auto", 1, asdict(RequestLimits()))
    early = asyncio.run(classifier(_request(picture("red"))))
    assert (early.status_code, _code(early), early.headers["retry-after"]) == (503, "not_ready", "1")
    with pytest.raises(UsageError, match=r"needs args\.models"):
        asyncio.run(classifier.reconfigure({"version": 3}))
    asyncio.run(classifier.reconfigure({}))
    assert asyncio.run(classifier(_request(picture("red")))).status_code == 200


def test_a_pinned_version_starts_whatever_is_live(bundle: Path, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "models")
    with registry.writing():
        registry.add(Bundle.open(bundle))
        registry.add(Bundle.open(write_tiny_bundle(tmp_path / "foreign", golden_factor=1.5)))
        registry.write_state("primaries", State(live=2))

    def start() -> Classifier:
        return Classifier(str(registry.root), "auto", 1, asdict(RequestLimits()))

    with pytest.raises(BundleError, match="golden"):
        asyncio.run(start().reconfigure({}))
    assert reports(registry, "primaries") == []
    for state in (State(live=2), State()):
        with registry.writing():
            registry.write_state("primaries", state)
        classifier = start()
        asyncio.run(classifier.reconfigure({"version": 1}))
        assert asyncio.run(classifier(_request(picture("red")))).status_code == 200
        asyncio.run(classifier.reconfigure({}))  # The live one does not load, or there is none: it goes on.
        assert asyncio.run(classifier(_request(picture("red")))).status_code == 200
        classifier.__del__()


def test_a_first_start_may_be_tried_again(bundle: Path) -> None:
    application = build(AppArguments(bundle=str(bundle), start_attempts=10))
    assert application._bound_deployment._deployment_config.max_constructor_retry_count == 10


def test_wrong_settings_in_a_config_file() -> None:
    with pytest.raises(UsageError, match="engine must be one of"):
        build(AppArguments(bundle="b", engine="magic"))
