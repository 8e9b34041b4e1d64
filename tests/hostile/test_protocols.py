"""The protocols over HTTP on the shared server: right answers, and every refusal in its clients' words."""

from __future__ import annotations

import base64
import json
import re
import time
from typing import Any

import pytest
import requests

from rayml.bundle import Bundle
from rayml.predictor import Predictor
from tests.serving.live import LIMITS, Live, exchange, live
from tests.serving.tiny_bundle import CLASSES, picture

__all__ = ["live"]

PICTURES = [picture(label) for label in CLASSES]
ENCODED = [base64.b64encode(data).decode() for data in PICTURES]
V1 = "/v1/models/primaries:predict"
V2 = "/v2/models/primaries/infer"
IMAGE = {"name": "image", "shape": [3], "datatype": "BYTES", "data": ENCODED}


def _post(live: Live, path: str, body: object, **headers: str) -> requests.Response:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers.setdefault("content-type", "application/json")
    return requests.post(live.url + path, data=data, headers=headers, timeout=60)


def _refused(response: requests.Response, status: int) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    plain = response.request.path_url.startswith(("/v1", "/v2"))
    message = body["error"] if plain else body["error"]["message"]
    assert set(body) == {"error"} and isinstance(message, str)
    assert plain or set(body["error"]) == {"code", "message"}
    assert not re.search(r"(?<![\w.])/\w+/\w+/|Traceback|File \"", message), message


def test_all_protocols_say_what_the_predictor_says(live: Live) -> None:
    expected = Predictor(Bundle.open(live.bundle), threads=1).predict(PICTURES)
    probabilities = [list(prediction.probabilities.values()) for prediction in expected]
    logits = [list(prediction.logits) for prediction in expected]
    rows = _post(live, V1, {"instances": [{"b64": text} for text in ENCODED]}).json()["predictions"]
    columns = _post(live, V1, {"inputs": {"image_bytes": [{"b64": text} for text in ENCODED]}}).json()["outputs"]
    infer = {output["name"]: output for output in _post(live, V2, {"inputs": [IMAGE]}).json()["outputs"]}
    batch = _post(live, "/predict/batch", {"images": ENCODED}).json()["predictions"]
    for n, label in enumerate(CLASSES):
        assert rows[n]["label"] == columns["label"][n] == batch[n]["label"] == infer["label"]["data"][n] == label
        assert rows[n]["probabilities"] == pytest.approx(probabilities[n], abs=1e-5)
        assert rows[n]["logits"] == pytest.approx(logits[n], abs=1e-4)
        assert columns["probabilities"][n] == rows[n]["probabilities"] and columns["logits"][n] == rows[n]["logits"]
        assert list(batch[n]["probabilities"].values()) == rows[n]["probabilities"]
    assert infer["logits"]["shape"] == [3, 3]
    assert infer["logits"]["data"] == [number for row in rows for number in row["logits"]]


def test_pixels_of_the_right_size_are_taken_as_they_are(live: Live) -> None:
    predictor = Predictor(Bundle.open(live.bundle), threads=1)
    pixels = predictor.decode(PICTURES[0])
    by_bytes = _post(live, V1, {"instances": [{"b64": ENCODED[0]}]}).json()
    assert _post(live, V1, {"instances": [pixels.tolist()]}).json() == by_bytes
    tensor = {"name": "pixels", "shape": [1, *pixels.shape], "datatype": "UINT8", "data": pixels.ravel().tolist()}
    answer = _post(live, V2, {"inputs": [tensor]}).json()
    assert answer["outputs"][1]["data"] == by_bytes["predictions"][0]["logits"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/models/primaries", 200),
        ("/v1/models/primaries/versions/3", 200),
        ("/v1/models/primaries/metadata", 200),
        ("/v1/models/other", 404),
        ("/v1/models/primaries/versions/99", 404),
        ("/v1/models/primaries/versions/3/other", 404),
        ("/v1/models/", 404),
        ("/v1/models/primaries:classify", 404),
        ("/v2", 200),
        ("/v2/health/live", 200),
        ("/v2/health/ready", 200),
        ("/v2/models/primaries", 200),
        ("/v2/models/primaries/ready", 200),
        ("/v2/models/primaries/versions/3/ready", 200),
        ("/v2/models/other", 404),
        ("/v2/models/primaries/versions/03/ready", 404),
        ("/v2/other", 404),
        ("/docs", 200),
        ("/openapi.json", 200),
        ("/metrics", 200),
    ],
)
def test_pages(live: Live, path: str, status: int) -> None:
    response = requests.get(live.url + path, timeout=30)
    if status == 200:
        assert response.status_code == 200
    else:
        _refused(response, status)


@pytest.mark.parametrize("path", [V1, V2, "/v1/models/primaries", "/v2/health/live", "/lesson", "/predict/batch"])
def test_wrong_methods(live: Live, path: str) -> None:
    method = "DELETE"
    response = requests.request(method, live.url + path, timeout=30)
    _refused(response, 405)
    assert response.headers["allow"] in ("POST", "GET, HEAD")


BOMBS = [
    b"",
    b"[" * 60_000 + b"]" * 60_000,
    b'{"a":' * 20_000 + b"1" + b"}" * 20_000,
    b'{"instances":1e400}',
    b'{"inputs":NaN}',
    b'{"instances":[],"instances":[]}',
    b'{"inputs":' + b"9" * 100_000 + b"}",
    b"[]",
    b"null",
    b'{"instances":[' + b'{"b64":"eA=="},' * 6_000 + b'{"b64":"eA=="}]}',
    # 2.4 GB in an array in which each element takes as much as the longest.
    b'{"instances":[["%s"%s]]}' % (b"a" * 60_000, b',"b"' * 10_000),
]


@pytest.mark.parametrize("path", [V1, V2, "/predict/batch", "/lesson"])
@pytest.mark.parametrize("body", BOMBS, ids=range(len(BOMBS)))
def test_hostile_json_is_400_and_quick(live: Live, path: str, body: bytes) -> None:
    began = time.monotonic()
    _refused(_post(live, path, body), 400)
    assert time.monotonic() - began < 10.0


@pytest.mark.parametrize("path", [V1, V2, "/predict/batch", "/lesson"])
def test_types_and_compression(live: Live, path: str) -> None:
    _refused(_post(live, path, b"{}", **{"content-type": "text/html"}), 415)
    _refused(_post(live, path, b"{}", **{"content-encoding": "gzip"}), 415)


@pytest.mark.parametrize("path", [V1, V2, "/predict", "/predict/batch", "/lesson"])
def test_too_large_bodies(live: Live, path: str) -> None:
    with live.connect() as connection:
        head = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 999999999\r\n\r\n"
        status, headers, body = exchange(connection, head.encode())
    error = json.loads(body)["error"]
    assert (status, headers["content-type"]) == (413, "application/json")
    assert isinstance(error, str) == path.startswith(("/v1", "/v2"))
    large = base64.b64encode(bytes(LIMITS.max_image_bytes + 1)).decode()
    shapes: dict[str, Any] = {
        V1: {"instances": [{"b64": large}]},
        V2: {"inputs": [IMAGE | {"shape": [1], "data": [large]}]},
        "/predict": {"image": large},
        "/predict/batch": {"images": [large]},
    }
    if path in shapes:
        _refused(_post(live, path, shapes[path]), 413)


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1/", "http://169.254.169.254/latest", "file:///etc/passwd", "https://images.example.com/a.jpg"],
)
@pytest.mark.parametrize("path", ["/predict", "/predict/batch", "/lesson", V1])
def test_urls_are_refused_unless_allowed(live: Live, path: str, url: str) -> None:
    body: Any = {"url": url}
    body = {"images": [body]} if path == "/predict/batch" else {"instances": [body]} if path == V1 else body
    _refused(_post(live, path, body), 422)


def test_requests_have_ids_of_our_own(live: Live) -> None:
    first, second = (_post(live, "/predict", b"", **{"x-rayml-request-id": "forged"}) for _ in range(2))
    ids = {first.headers["x-rayml-request-id"], second.headers["x-rayml-request-id"]}
    assert len(ids) == 2 and "forged" not in ids


def test_metrics_are_counted(live: Live) -> None:
    def count() -> float:
        page = requests.get(live.url + "/metrics", timeout=30)
        assert page.headers["content-type"].startswith("text/plain")
        name = 'rayml_requests_total{route="/predict",status="200"} '
        return sum(float(line.removeprefix(name)) for line in page.text.splitlines() if line.startswith(name))

    before = count()
    assert _post(live, "/predict", PICTURES[0], **{"content-type": "image/png"}).status_code == 200
    assert count() == before + 1
