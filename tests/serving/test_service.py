"""The service without Ray and without a network: keys, URLs, metrics, log, and one deadline for everything."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import time
import tracemalloc
import weakref
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from rayml.bundle import Bundle
from rayml.errors import InputError
from serving.call import Call, ClientGone
from serving.fetch import Fetcher
from serving.keys import ApiKeys
from serving.limits import RequestLimits
from serving.log import RequestLog
from serving.metrics import Metrics
from serving.models import Models
from serving.protocols.base import Answer
from serving.served_model import ServedModel
from serving.service import REQUEST_ID_HEADER, Service
from serving.sources import BundleSource
from tests.serving.tiny_bundle import CLASSES, picture, write_tiny_bundle

RED = picture("red")
URL = "https://images.example.com/red.png"


class _Origin(Fetcher):
    """A fetcher whose origin is a function."""

    def __init__(self, answer: Callable[[], bytes]) -> None:
        super().__init__(["images.example.com"], 100_000)
        self._answer = answer

    def fetch(self, url: str, deadline: float) -> bytes:
        """What the function gives."""
        assert url == URL
        return self._answer()


class _Lines(RequestLog):
    """Keeps what is written."""

    def __init__(self, every_request: bool = False) -> None:
        super().__init__(None, every_request)
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def write(self, level: str, fields: dict[str, Any]) -> None:
        """Keep it."""
        self.lines.append((level, fields))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    """A model that takes next to no time."""
    bundle = Bundle.open(write_tiny_bundle(tmp_path_factory.mktemp("service") / "bundle"))
    return ServedModel("primaries", 3, bundle, "auto", 2, RequestLimits())


def _service(
    model: ServedModel,
    origin: Callable[[], bytes] = lambda: RED,
    keys: ApiKeys | None = None,
    log: RequestLog | None = None,
    **limits: Any,
) -> Service:
    bounds = RequestLimits(**limits)
    models = Models(BundleSource.read(model.bundle.path), "auto", 1, RequestLimits())
    models._live = model  # The one that a test may change.
    return Service(models, 2, bounds, _Origin(origin), keys, Metrics(None), log or _Lines())


def _call(path: str, body: object = None, method: str = "POST", **headers: str) -> Call:
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    headers.setdefault("content-type", "image/png" if isinstance(body, bytes) else "application/json")

    async def pieces() -> AsyncIterator[bytes]:
        yield data

    return Call(method, path, b"", headers, pieces)


def _ask(service: Service, *calls: Call) -> list[Answer]:
    async def ask() -> list[Answer]:
        return await asyncio.gather(*(service.answer(call) for call in calls))

    return asyncio.run(ask())


def _code(answer: Answer) -> str:
    return str(json.loads(answer.body)["error"]["code"])


def test_probabilities_are_softened_and_logits_are_not_in_every_protocol(
    model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    temperature = 2.5
    record = model._predictor.bundle.record
    changed = type(record)(**{**vars(record), "temperature": temperature})
    monkeypatch.setattr(model._predictor, "bundle", _with_record(model._predictor.bundle, changed))
    raw = model.predict_pixels(model.pixels(RED)[None])[0].tolist()
    import numpy as np

    exponents = np.exp(np.asarray(raw) / temperature)
    expected = (exponents / exponents.sum()).tolist()
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [_base64(RED)]}
    own, batch, lesson, rows, infer = (
        json.loads(answer.body)
        for answer in _ask(
            _service(model),
            _call("/predict", RED),
            _call("/predict/batch", {"images": [_base64(RED)]}),
            _call("/lesson", {"url": URL}),
            _call("/v1/models/primaries:predict", {"instances": [{"b64": _base64(RED)}]}),
            _call("/v2/models/primaries/infer", {"inputs": [tensor]}),
        )
    )
    assert list(own["probabilities"].values()) == pytest.approx(expected)
    assert list(batch["predictions"][0]["probabilities"].values()) == pytest.approx(expected)
    assert list(lesson.values()) == pytest.approx(raw) and list(lesson) == list(CLASSES)
    assert rows["predictions"][0]["probabilities"] == pytest.approx(expected)
    assert rows["predictions"][0]["logits"] == pytest.approx(raw)
    outputs = {output["name"]: output["data"] for output in infer["outputs"]}
    assert outputs["probabilities"] == pytest.approx(expected)
    assert outputs["logits"] == pytest.approx(raw)
    assert outputs["label"] == ["red"] == [rows["predictions"][0]["label"]] == [own["label"]]


def _with_record(bundle: Any, record: Any) -> Any:
    from dataclasses import replace

    return replace(bundle, record=record)


def _base64(data: bytes) -> str:
    import base64

    return base64.b64encode(data).decode()


# --- keys


def test_without_its_key_a_request_is_401_before_its_body_is_read(model: ServedModel, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("alpha\nbeta\n")
    service = _service(model, keys=ApiKeys(path))

    async def unread() -> AsyncIterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    for target in ("/predict", "/v1/models/primaries:predict", "/v2/models/primaries/infer", "/lesson"):
        call = Call("POST", target, b"", {"content-type": "application/json"}, unread)
        (answer,) = _ask(service, call)
        assert (answer.status, answer.headers["www-authenticate"]) == (401, 'Bearer realm="rayml"')
    (known,) = _ask(service, _call("/predict", RED, authorization="Bearer beta"))
    assert known.status == 200
    pages = ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/docs", "/openapi.json")
    assert {a.status for a in _ask(service, *(_call(page, method="GET") for page in pages))} == {200}
    closed = ("/metrics", "/v2", "/v2/models/primaries", "/v1/models/primaries")
    assert {a.status for a in _ask(service, *(_call(page, method="GET") for page in closed))} == {401}


# --- URLs


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/predict", {"url": URL}),
        ("/predict/batch", {"images": [{"url": URL}, _base64(RED)]}),
        ("/lesson", {"url": URL}),
        ("/v1/models/primaries:predict", {"instances": [{"url": URL}]}),
    ],
)
def test_urls_in_every_protocol(model: ServedModel, path: str, body: object) -> None:
    (answer,) = _ask(_service(model), _call(path, body))
    assert answer.status == 200
    assert b"red" in answer.body


def test_what_a_url_leads_to_is_a_picture_or_refused(model: ServedModel) -> None:
    for content, status, code in (
        (b"", 400, "empty_image"),
        (b"<!doctype html><title>no picture</title>", 415, "unsupported_image"),
    ):
        (answer,) = _ask(_service(model, lambda content=content: content), _call("/predict", {"url": URL}))
        assert (answer.status, _code(answer)) == (status, code)


def test_errors_of_an_origin_are_told_in_each_protocols_words(model: ServedModel) -> None:
    def refuse() -> bytes:
        raise InputError("No.", status=422, code="url_refused")

    own, rows = _ask(
        _service(model, refuse),
        _call("/predict", {"url": URL}),
        _call("/v1/models/primaries:predict", {"instances": [{"url": URL}]}),
    )
    assert (own.status, json.loads(own.body)) == (422, {"error": {"code": "url_refused", "message": "No."}})
    assert (rows.status, json.loads(rows.body)) == (422, {"error": "No."})


def test_slow_origins_take_no_place_from_others(model: ServedModel) -> None:
    go = threading.Event()

    def slow() -> bytes:
        assert go.wait(30)
        return RED

    service = _service(model, slow, max_fetches=2, max_in_flight=4)

    async def crowd() -> None:
        waiting = [asyncio.create_task(service.answer(_call("/lesson", {"url": URL}))) for _ in range(2)]
        await asyncio.sleep(0.1)
        refused = await service.answer(_call("/lesson", {"url": URL}))
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        assert (await service.answer(_call("/predict", RED))).status == 200
        go.set()
        assert [(await task).status for task in waiting] == [200, 200]
        assert (await service.answer(_call("/lesson", {"url": URL}))).status == 200

    asyncio.run(crowd())


def test_a_fetch_that_nobody_waits_for_keeps_its_place_until_its_thread_is_free(model: ServedModel) -> None:
    go = threading.Event()

    def slow() -> bytes:
        assert go.wait(30)
        return RED

    service = _service(model, slow, max_fetches=1, deadline_s=0.2)

    async def crowd() -> None:
        late = await service.answer(_call("/lesson", {"url": URL}))
        assert (late.status, _code(late)) == (504, "deadline")
        assert (await service.answer(_call("/lesson", {"url": URL}))).status == 503
        go.set()
        for _ in range(100):
            if (await service.answer(_call("/lesson", {"url": URL}))).status == 200:
                return
            await asyncio.sleep(0.05)
        raise AssertionError("the place did not come back")

    asyncio.run(crowd())


def test_fetching_has_a_deadline_of_its_own_within_the_request_s(model: ServedModel) -> None:
    for limits, seconds in (({"fetch_deadline_s": 3.0}, 3.0), ({"deadline_s": 2.0, "fetch_deadline_s": 60.0}, 2.0)):
        service = _service(model, **limits)
        told: list[float] = []

        def fetch(url: str, deadline: float, told: list[float] = told) -> bytes:
            told.append(deadline - time.monotonic())
            return RED

        service._fetches._fetcher.fetch = fetch  # type: ignore[method-assign]
        (answer,) = _ask(service, _call("/predict", {"url": URL}))
        assert answer.status == 200 and seconds - 1 < told[0] <= seconds


def test_an_origin_whose_name_is_never_looked_up_is_too_slow(model: ServedModel) -> None:
    go = threading.Event()
    service = _service(model, lambda: RED if go.wait(30) else b"", fetch_deadline_s=0.2)
    crowd = (_call("/lesson", {"url": URL}), _call("/predict/batch", {"images": [{"url": URL}, _base64(RED)]}))

    async def ask() -> list[Answer]:
        answers = await asyncio.gather(*map(service.answer, crowd))
        go.set()
        return answers

    assert [(answer.status, _code(answer)) for answer in asyncio.run(ask())] == [(504, "url_too_slow")] * 2


def test_a_request_names_no_more_urls_than_are_fetched_at_once(model: ServedModel) -> None:
    (answer,) = _ask(_service(model, max_fetches=2), _call("/predict/batch", {"images": [{"url": URL}] * 3}))
    assert (answer.status, _code(answer)) == (400, "too_many_urls")


# --- what is counted and written down


def test_what_is_fetched_takes_room_as_bodies_do_and_gives_it_back(model: ServedModel) -> None:
    call = {"images": [{"url": URL}, {"url": URL}]}
    body_bytes = len(json.dumps(call))
    service = _service(model, max_buffered_bytes=body_bytes + 2 * len(RED) - 1)
    (answer,) = _ask(service, _call("/predict/batch", call))
    assert (answer.status, _code(answer), service._admission.buffered_bytes) == (503, "overloaded", 0)
    for _ in range(3):
        (answer,) = _ask(service, _call("/predict/batch", {"images": [{"url": URL}]}))
        assert (answer.status, service._admission.buffered_bytes) == (200, 0)


def test_a_body_that_trickles_gives_way_when_all_places_are_taken(
    model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.admission._TRICKLE_GRACE_S", 0.2)
    service = _service(model, max_in_flight=2)

    def call(first: bytes) -> Call:
        async def pieces() -> AsyncIterator[bytes]:
            yield first
            await asyncio.Event().wait()

        return Call("POST", "/predict", b"", {"content-type": "image/png"}, pieces)

    async def ask() -> tuple[Answer, Answer, Answer]:
        trickle, upload = (asyncio.create_task(service.answer(call(first))) for first in (b"x", bytes(1_000_000)))
        await asyncio.sleep(0.05)
        early = await service.answer(_call("/predict", RED))
        await asyncio.sleep(0.3)
        late = await service.answer(_call("/predict", RED))
        assert not upload.done()  # It is fast enough.
        upload.cancel()
        await asyncio.gather(upload, return_exceptions=True)
        room = service._admission
        assert (room.in_flight, room.buffered_bytes, room.readers) == (0, 0, set())
        return early, late, await trickle

    early, late, trickle = asyncio.run(ask())
    assert (early.status, _code(early)) == (503, "overloaded")
    assert late.status == 200
    assert (trickle.status, _code(trickle), trickle.headers["connection"]) == (408, "slow_body", "close")


def test_an_answer_before_the_body_waits_a_moment_for_the_rest(
    model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.call._DRAIN_S", 0.1)

    async def never() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.Event().wait()

    async def gone() -> AsyncIterator[bytes]:
        yield b"x"
        raise ClientGone

    async def whole() -> AsyncIterator[bytes]:
        yield b"x"

    for body, length, closed in ((never, "9", True), (gone, "9", True), (whole, "9", False), (never, "0", False)):
        (answer,) = _ask(_service(model), Call("POST", "/nope", b"", {"content-length": length}, body))
        assert (answer.status, answer.headers.get("connection") == "close") == (404, closed)


def test_only_one_unfinished_body_is_waited_for_at_a_time(model: ServedModel) -> None:
    async def never() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.Event().wait()

    service = _service(model)
    call = Call("POST", "/nope", b"", {"content-length": "9"}, never)

    async def ask() -> None:
        for _ in range(2):  # The second time the place has come back.
            first = asyncio.create_task(service.answer(call))
            await asyncio.sleep(0)
            others = await asyncio.wait_for(asyncio.gather(service.answer(call), service.answer(call)), 0.5)
            assert not first.done()
            assert {answer.headers["connection"] for answer in (*others, await first)} == {"close"}

    asyncio.run(ask())


def test_requests_are_counted_by_route_and_not_by_what_strangers_send(model: ServedModel) -> None:
    service = _service(model)
    _ask(
        service,
        _call("/predict", RED),
        _call("/v1/models/primaries/versions/3:predict", {"instances": [{"b64": _base64(RED)}]}),
        _call("/v1/models/other:predict", {"instances": []}),
        *(_call(f"/stranger/{n}", method="GET") for n in range(5)),
        *(_call("/predict", b"x", method=f"M{n}") for n in range(5)),
    )
    page = _ask(service, _call("/metrics", method="GET"))[0].body.decode()
    lines = [line for line in page.splitlines() if line.startswith("rayml_requests_total")]
    assert sorted(lines) == [
        'rayml_requests_total{route="/predict",status="200"} 1.0',
        'rayml_requests_total{route="/predict",status="405"} 5.0',
        'rayml_requests_total{route="/v1/models/{name}:predict",status="200"} 1.0',
        'rayml_requests_total{route="/v1/models/{name}:predict",status="404"} 1.0',
        'rayml_requests_total{route="none",status="404"} 5.0',
    ]
    assert 'rayml_predictions_total{class="red",model="primaries",version="3"} 2.0' in page


def test_only_the_picture_that_was_sent_counts_where_the_model_looked(
    model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = _Lines(every_request=True)
    service = _service(model, log=log)
    shown: list[object] = []
    monkeypatch.setattr(service._models, "answered", lambda _model, source, *_: shown.append(source))
    (answer,) = _ask(service, _call("/explain", RED))
    assert answer.status == 200 and len(json.loads(answer.body)["grid"]) == 7
    page = _ask(service, _call("/metrics", method="GET"))[0].body.decode()
    assert 'rayml_predictions_total{class="red",model="primaries",version="3"} 1.0' in page
    assert 'rayml_confidence_count{model="primaries",version="3"} 1.0' in page
    assert "rayml_batch_size_sum 1.0" in page and "rayml_decode_seconds_count 1.0" in page
    assert shown == [RED] and log.lines[0][1]["pictures"] == 1


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [(b"no picture, only text", 415, "unsupported_image"), (RED[:60], 400, "unreadable_image")],
)
def test_an_explanation_of_no_picture(model: ServedModel, body: bytes, status: int, code: str) -> None:
    (answer,) = _ask(_service(model), _call("/explain", body))
    assert (answer.status, _code(answer)) == (status, code)


def test_failures_are_logged_with_the_id_that_the_client_has_and_others_only_when_asked(
    model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet, talkative = _Lines(), _Lines(every_request=True)
    for log in (quiet, talkative):
        _ask(_service(model, log=log), _call("/predict", RED, **{"x-request-id": "forged"}))
    assert not quiet.lines
    ((level, fields),) = talkative.lines
    assert level == "info" and fields["route"] == "/predict" and fields["pictures"] == 1
    assert fields["request_id"] != "forged"

    def broken(_: bytes) -> None:
        raise RuntimeError("/secret/path")

    monkeypatch.setattr(model, "pixels", broken)
    (answer,) = _ask(_service(model, log=quiet), _call("/predict", RED))
    ((level, fields),) = quiet.lines
    assert (level, fields["status"], fields["code"]) == ("error", 500, "internal")
    assert fields["request_id"] == answer.headers[REQUEST_ID_HEADER]
    assert "/secret/path" in fields["trace"] and b"secret" not in answer.body


def test_refusals_for_want_of_a_place_share_a_line_a_second(
    model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = _Lines()
    service = _service(model, log=log, max_buffered_bytes=1)
    for _ in range(5):
        assert [answer.status for answer in _ask(service, _call("/predict", RED))] == [503]
    assert [(level, fields["code"], fields["refused"]) for level, fields in log.lines] == [("error", "overloaded", 1)]
    monkeypatch.setattr("serving.service._REFUSED_EVERY_S", 0.0)
    _ask(service, _call("/predict", RED))
    assert [fields["refused"] for _, fields in log.lines] == [1, 5]


def test_nothing_is_begun_for_a_batch_that_has_failed(model: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    service, begun = _service(model), []

    def pixels(source: bytes) -> Any:
        begun.append(source)
        time.sleep(0.05)
        raise InputError("no picture")

    monkeypatch.setattr(model, "pixels", pixels)

    async def ask() -> None:
        answer = await service.answer(_call("/predict/batch", {"images": [_base64(RED)] * 64}))
        assert answer.status == 400
        await asyncio.sleep(0.6)  # Eight threads would have been through all 64.
        assert len(begun) < 32

    asyncio.run(ask())


# --- places for batches


@pytest.mark.parametrize(("code", "status"), [(None, 200), ("url_unavailable", 422)])
def test_batches_have_a_room_of_their_own_that_empties_again(model: ServedModel, code: str | None, status: int) -> None:
    go = threading.Event()

    def slow() -> bytes:
        assert go.wait(30)
        if code is not None:
            raise InputError("No.", status=status, code=code)
        return RED

    service = _service(model, slow, max_batched=50)
    three, sixty = (
        _call("/predict/batch", {"images": [item] * n}) for item, n in (({"url": URL}, 3), (_base64(RED), 60))
    )
    explain, single = _call("/explain", RED), _call("/predict", RED)

    async def crowd() -> None:
        held = asyncio.create_task(service.answer(three))
        while not service._admission.batched:
            await asyncio.sleep(0.01)
        for call in (sixty, explain):
            refused = await service.answer(call)
            assert (refused.status, _code(refused), refused.headers["retry-after"]) == (503, "overloaded", "1")
        assert (await service.answer(single)).status == 200
        go.set()
        assert (await held).status == status
        for call in (sixty, explain):  # Where there is no other, one above the limit gets in too.
            assert (await service.answer(call)).status == 200
        assert service._admission.batched == 0

    asyncio.run(crowd())


def test_a_late_batch_gives_its_room_back(model: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    monkeypatch.setattr(model, "pixels", lambda _: go.wait(30))
    service = _service(model, deadline_s=0.2)
    (answer,) = _ask(service, _call("/predict/batch", {"images": [_base64(RED)] * 8}))
    go.set()
    assert (answer.status, _code(answer), service._admission.batched) == (504, "deadline", 0)


# --- memory for decoding


@pytest.mark.parametrize("path", ["/predict", "/explain"])
@pytest.mark.parametrize(("max_decode_bytes", "most"), [(1, 1), (10 * 2**20, 4)])
def test_pictures_are_decoded_side_by_side_as_far_as_memory_goes(
    model: ServedModel, monkeypatch: pytest.MonkeyPatch, path: str, max_decode_bytes: int, most: int
) -> None:
    real, lock, decoding, seen = model.pixels, threading.Lock(), [0], [0]
    together = threading.Barrier(most)

    def slow_decode(data: bytes) -> Any:
        with lock:
            decoding[0] += 1
            seen[0] = max(seen[0], decoding[0])
        together.wait(30)
        time.sleep(0.02)  # For others to come in between.
        with lock:
            decoding[0] -= 1
        return real(data)

    service = _service(model, max_decode_bytes=max_decode_bytes)
    monkeypatch.setattr(model, "pixels", slow_decode)
    answers = _ask(service, *[_call(path, RED)] * 4)
    assert [answer.status for answer in answers] == [200] * 4
    assert seen == [most]


def _memory_held(service: Service, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes that the service holds from now on, each time that it does."""
    held: list[int] = []
    real = service._memory.hold

    def hold(size: int) -> Any:
        held.append(size)
        return real(size)

    monkeypatch.setattr(service._memory, "hold", hold)
    return held


def test_pixels_that_are_resized_are_held_against_the_memory_for_decoding(
    model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = _service(model)
    wanted = _memory_held(service, monkeypatch)
    size = model.facts.image_size_px
    for height in (size, 5000):
        pixels = bytes(3 * height * size)
        tensor = {
            "name": "pixels",
            "shape": [1, height, size, 3],
            "datatype": "UINT8",
            "parameters": {"binary_data_size": len(pixels)},
        }
        text = json.dumps({"inputs": [tensor]}).encode()
        length = {"inference-header-content-length": str(len(text)), "content-type": "application/octet-stream"}
        (answer,) = _ask(service, _call("/v2/models/primaries/infer", text + pixels, **length))
        assert answer.status == 200
    # Each time for parsing, too.
    assert wanted[1] == 0 and wanted[3] > 4 * 5000 * size + 16 * 5000


def test_a_refusal_says_when_it_is_worth_another_try(model: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    log = _Lines()
    service = _service(model, log=log)

    def refuse(*_: object) -> None:
        raise InputError("not now", status=503, code="version_not_loaded", retry_after_s=7.2)

    monkeypatch.setattr(service._models, "loaded", refuse)
    for _ in range(3):
        (answer,) = _ask(service, _call("/predict", RED))
        assert (answer.status, answer.headers["retry-after"]) == (503, "8")
    assert len(log.lines) == 1  # One a second, as for all that is refused for the moment.


def test_large_pictures_that_wait_for_memory_keep_no_small_one_waiting(
    model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, go = model.pixels, threading.Event()
    large = picture("red", 400, 400)

    def decode(data: bytes) -> Any:
        assert data != large or go.wait(30)
        return real(data)

    service = _service(model, max_decode_bytes=2_000_000)
    monkeypatch.setattr(model, "pixels", decode)

    async def crowd() -> None:
        waiting = [asyncio.create_task(service.answer(_call("/predict", large))) for _ in range(20)]
        await asyncio.sleep(0.2)
        small = await asyncio.wait_for(service.answer(_call("/predict", RED)), 10)
        assert small.status == 200 and not any(task.done() for task in waiting)
        go.set()
        assert {(await task).status for task in waiting} == {200}

    asyncio.run(crowd())


def test_large_bodies_are_parsed_as_far_as_memory_goes(model: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    service = _service(model)
    held = _memory_held(service, monkeypatch)
    size = model.facts.image_size_px
    for pixels in ([[[1, 2, 3]] * size] * size, [[[1, 2, 3]] * 600] * 600):
        body = json.dumps({"instances": [pixels]}).encode()
        (answer,) = _ask(service, _call("/v1/models/primaries:predict", body, **{"content-type": "application/json"}))
        assert answer.status == 200
    assert held[0] == 0 and held[2] > 72 * 3 * 600 * 600


def test_what_is_refused_at_a_glance_waits_for_no_memory(model: ServedModel) -> None:
    service = _service(model, deadline_s=2.0)
    bomb = b'{"image":[' + b"1," * 1_000_000 + b"1]}"
    kind = {"content-type": "application/json"}
    with service._memory.hold(RequestLimits().max_decode_bytes):
        for path in ("/predict", "/predict/batch", "/explain", "/lesson"):
            (answer,) = _ask(service, _call(path, bomb, **kind))
            assert (answer.status, _code(answer)) == (400, "bad_json"), path
        for path in ("/v1/models/primaries:predict", "/v2/models/primaries/infer"):
            (answer,) = _ask(service, _call(path, bomb.replace(b"1,", b'"",'), **kind))
            assert answer.status == 400, path


@pytest.mark.parametrize("why", ["picture", "json", "waited", "gone", "bug", "late"])
def test_what_is_refused_stays_in_memory_no_longer_than_its_place(
    model: ServedModel, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """Not until the garbage collector looks for cycles: a stranger's bodies would pile up that nobody counts."""
    service = _service(model, deadline_s=0.2 if why == "late" else 30.0)
    size = 3_000_000
    as_json = why in ("json", "waited")

    async def pieces() -> AsyncIterator[bytes]:
        yield b'{"image":"' + b"!" * size + b'"}' if as_json else b"GIF8" + bytes(size)
        if why == "gone":
            raise ClientGone
        if why == "late":
            await asyncio.sleep(30)

    def fail(*_: object) -> None:
        raise ValueError("a bug")

    if why == "bug":
        monkeypatch.setattr(service, "_predict", fail)
    call = Call("POST", "/predict", b"", {"content-type": "application/json" if as_json else "image/png"}, pieces)

    async def ask() -> None:
        if why == "waited":
            with service._memory.hold(RequestLimits().max_decode_bytes):
                asked = asyncio.create_task(service.answer(call))
                await asyncio.sleep(0.1)
                assert not asked.done()
            answer = await asked
        else:
            answer = await service.answer(call)
        status = {"picture": 415, "json": 400, "waited": 400, "gone": 499, "bug": 500, "late": 408}[why]
        assert answer.status == status

    asyncio.run(ask())  # Whatever is made once.
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        asyncio.run(ask())
        deadline = time.monotonic() + 10
        while tracemalloc.get_traced_memory()[0] > size / 2:  # A thread of the pool may be about to let go.
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        tracemalloc.stop()
        gc.enable()


def test_a_slow_body_keeps_no_version_in_memory(model: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    service = _service(model)
    began, go = asyncio.Event(), asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        began.set()
        await go.wait()
        yield RED

    class Version:
        """One that a request named."""

    version = Version()
    gone = weakref.ref(version)
    monkeypatch.setattr(service._models, "loaded", lambda *_: gone())

    async def ask() -> None:
        nonlocal version
        asked = asyncio.create_task(
            service.answer(Call("POST", "/predict", b"", {"content-type": "image/png"}, pieces))
        )
        await began.wait()
        del version  # Another one needs its room.
        assert gone() is None
        monkeypatch.undo()
        go.set()
        assert (await asked).status == 200

    asyncio.run(ask())


def test_waiting_for_memory_ends_at_the_deadline(model: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    real, go = model.pixels, threading.Event()

    def slow_decode(data: bytes) -> Any:
        assert go.wait(30)
        return real(data)

    service = _service(model, max_decode_bytes=1, deadline_s=0.3)
    monkeypatch.setattr(model, "pixels", slow_decode)
    answers = _ask(service, *[_call("/predict", RED)] * 4)  # As many as there are threads.
    assert {(answer.status, _code(answer)) for answer in answers} == {(504, "deadline")}
    # Three hold no thread any more, though the first one still decodes.
    assert [answer.status for answer in _ask(service, *[_call("/predict", b"no picture, only text")] * 3)] == [415] * 3
    go.set()


# --- one deadline


def test_one_deadline_counts_for_body_and_answer_together(model: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    service = _service(model, deadline_s=0.4)
    real = model.pixels
    stop = threading.Event()

    def slow_decode(data: bytes) -> Any:
        stop.wait(0.3)
        return real(data)

    async def slow_body() -> AsyncIterator[bytes]:
        await asyncio.sleep(0.3)
        yield RED

    monkeypatch.setattr(model, "pixels", slow_decode)
    (answer,) = _ask(service, Call("POST", "/predict", b"", {"content-type": "image/png"}, slow_body))
    assert (answer.status, _code(answer)) == (504, "deadline")
    stop.set()


@pytest.mark.parametrize(
    ("path", "method"),
    [
        ("/predict", "POST"),
        ("/v2/models/primaries", "GET"),
        ("/v2/models/primaries/ready", "GET"),
        ("/v1/models/primaries/metadata", "GET"),
    ],
)
def test_a_version_that_loads_for_too_long_is_504(
    model: ServedModel, monkeypatch: pytest.MonkeyPatch, path: str, method: str
) -> None:
    async def load(*_: object) -> ServedModel:
        await asyncio.sleep(30)
        return model

    service = _service(model, deadline_s=0.1)
    monkeypatch.setattr(service._models, "get", load)
    monkeypatch.setattr(service._models, "loaded", lambda *_: None)
    (answer,) = _ask(service, _call(path, RED if method == "POST" else None, method))
    assert answer.status == 504 and b"There was no answer within 0.1 seconds." in answer.body


def test_while_a_version_loads_its_requests_bodies_are_counted(
    model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = _service(model)
    held: list[int] = []

    async def load(*_: object) -> ServedModel:
        held.append(service._admission.buffered_bytes)
        return model

    monkeypatch.setattr(service._models, "get", load)
    call = _call("/predict", RED)
    (answer,) = _ask(service, Call(call.method, call.path, b"version=9", call.headers, call.body))
    assert (answer.status, held, service._admission.buffered_bytes) == (200, [len(RED)], 0)


def test_only_requests_for_predictions_have_a_use_for_a_query(model: ServedModel) -> None:
    for path in ("/healthz", "/", "/v2/models/primaries"):
        (answer,) = _ask(_service(model), Call("GET", path, "é=".encode() + b"&" * 20, {}, _call(path).body))
        assert answer.status == 200


def test_an_unknown_model_is_404_before_its_body_is_read(model: ServedModel) -> None:
    async def unread() -> AsyncIterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    for query in (b"model=other", b"version=007"):
        (answer,) = _ask(_service(model), Call("POST", "/predict", query, {"content-type": "image/png"}, unread))
        assert answer.status == 404


def test_requests_on_their_way_are_counted_until_they_end(model: ServedModel) -> None:
    service, go = _service(model), asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        await go.wait()
        yield RED

    async def in_flight() -> float:
        page = (await service.answer(_call("/metrics", method="GET"))).body.decode()
        (line,) = [line for line in page.splitlines() if line.startswith("rayml_requests_in_flight")]
        return float(line.split()[-1])

    async def watch() -> list[float]:
        asked = asyncio.create_task(
            service.answer(Call("POST", "/predict", b"", {"content-type": "image/png"}, pieces))
        )
        await asyncio.sleep(0)
        before = await in_flight()
        go.set()
        assert (await asked).status == 200
        return [before, await in_flight()]

    assert asyncio.run(watch()) == [1.0, 0.0]


def test_metrics_are_gathered_beside_the_event_loop(model: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    service, real = _service(model), Metrics.page
    threads: list[threading.Thread] = []

    def page(metrics: Metrics) -> Answer:
        threads.append(threading.current_thread())
        return real(metrics)

    monkeypatch.setattr(Metrics, "page", page)
    (answer,) = _ask(service, _call("/metrics", method="GET"))
    assert answer.status == 200 and threads and threads[0] is not threading.current_thread()
