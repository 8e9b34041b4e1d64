"""The client against a small server of its own, which answers what each test tells it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from rayml.errors import InputError, ServerError, UsageError
from serving.client import Client

HALF = (200, b'{"label":')
GOOD = {"label": "hat", "confidence": 1.0, "probabilities": {"hat": 1.0}, "model": {}}


class _Scripted(ThreadingHTTPServer):
    """Answers requests with `script` in order and remembers bodies; None and, within the answer, HALF break off."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script: list[tuple[int, Any] | None] = []
        self.bodies: list[bytes] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: _Scripted

    def do_POST(self) -> None:
        self.server.bodies.append(self.rfile.read(int(self.headers.get("content-length", 0))))
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        step = self.server.script.pop(0)
        if step is None:
            self.close_connection = True
            return
        status, value = step
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-length", str(2 * len(body) if step is HALF else len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[_Scripted]:
    with _Scripted() as scripted:
        thread = threading.Thread(target=scripted.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield scripted
        scripted.shutdown()
        thread.join()


def test_bytes_and_files_are_sent_as_they_are(server: _Scripted, tmp_path: Path) -> None:
    server.script = [(200, GOOD), (200, GOOD)]
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8file")
    client = Client(server.url + "/")
    assert client.predict(b"\xff\xd8bytes") == GOOD
    assert client.predict(tmp_path / "a.jpg") == GOOD
    assert server.bodies == [b"\xff\xd8bytes", b"\xff\xd8file"]


def test_an_address_needs_no_scheme(server: _Scripted) -> None:
    server.script = [(200, GOOD)]
    assert Client(server.url.removeprefix("http://") + "/").predict(b"x") == GOOD


@pytest.mark.parametrize("url", ["", "http://", "ftp://host", "http://host:port", "host:99999", "http://[::1", ":8000"])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(UsageError, match=r"must be such as http://127\.0\.0\.1:8000\. Received: "):
        Client(url)


@pytest.mark.parametrize("key", ["", "one\ntwo", "schlüssel", "a b", "k" * 513])
def test_what_is_no_key(key: str) -> None:
    with pytest.raises(UsageError, match="an API key must be 1 to 512 printable ASCII characters without spaces"):
        Client("http://127.0.0.1:8000", api_key=key)


@pytest.mark.parametrize("first", [None, HALF, (502, b"bad"), (503, {"error": {}}), (504, b"")])
def test_one_failure_is_tried_again(server: _Scripted, first: tuple[int, Any] | None) -> None:
    server.script = [first, (200, GOOD)]
    assert Client(server.url).predict(b"x") == GOOD
    assert server.bodies == [b"x", b"x"]


def test_two_failures_are_an_error(server: _Scripted) -> None:
    busy = (503, {"error": {"code": "overloaded", "message": "All places are taken."}})
    server.script = [busy, busy]
    with pytest.raises(ServerError, match="503, All places are taken"):
        Client(server.url).predict(b"x")


def test_an_answer_that_breaks_off_twice_is_an_error(server: _Scripted) -> None:
    server.script = [HALF, HALF]
    with pytest.raises(ServerError, match="a connection that broke within the answer"):
        Client(server.url).predict(b"x")
    assert len(server.bodies) == 2


def test_a_500_is_not_tried_again(server: _Scripted) -> None:
    server.script = [(500, {"error": {"code": "internal", "message": "no"}})]
    with pytest.raises(ServerError, match="500, no"):
        Client(server.url).predict(b"x")
    assert len(server.bodies) == 1


def test_a_refusal_keeps_status_and_code(server: _Scripted) -> None:
    server.script = [(415, {"error": {"code": "unsupported_image", "message": "Not a picture."}})]
    with pytest.raises(InputError) as caught:
        Client(server.url).predict(b"x")
    assert (caught.value.status, caught.value.code, caught.value.message) == (
        415,
        "unsupported_image",
        "Not a picture.",
    )


@pytest.mark.parametrize("host", ["my..host", "a" * 64, "b\xfccher..de", "a%2e%2eb", ".host", "a b"])
def test_a_host_that_can_be_none(host: str) -> None:
    client = Client(f"http://{host}:8000")
    with pytest.raises(UsageError, match=r"must be such as http://127\.0\.0\.1:8000\. Received: "):
        client.predict(b"x")


@pytest.mark.parametrize("answer", [b"<html>", b"[1]", b"", b"[" * 100_000])
def test_another_kind_of_server(server: _Scripted, answer: bytes) -> None:
    server.script = [(200, answer)]
    with pytest.raises(ServerError, match="answers with a JSON object"):
        Client(server.url).predict(b"x")


@pytest.mark.parametrize(
    "change",
    [
        *({"label": label} for label in (None, 1, ["hat"])),
        *({"confidence": confidence} for confidence in (None, "x", True, float("nan"), float("inf"), -1, 10**400)),
        *({"probabilities": shares} for shares in (None, [1.0], {"hat": None}, {"hat": "1"}, {"hat": float("nan")})),
    ],
)
def test_an_answer_of_another_service(server: _Scripted, change: dict[str, Any]) -> None:
    left_out = {key: value for key, value in GOOD.items() if key not in change}
    server.script = [(200, GOOD | change), (200, left_out)]
    for _ in range(2):
        with pytest.raises(ServerError, match="with label, confidence and probabilities"):
            Client(server.url).predict(b"x")


def test_no_server_says_how_to_start_one() -> None:
    client = Client("http://127.0.0.1:9")
    with pytest.raises(ServerError, match="no connection") as caught:
        client.predict(b"x")
    assert "rayml serve BUNDLE" in caught.value.hint
    assert client.ready() is False


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.jpg must be a file"):
        Client("http://127.0.0.1:9").predict(tmp_path / "none.jpg")


def test_ready(server: _Scripted) -> None:
    server.script = [(200, {}), (404, {}), (503, {}), (503, {})]
    client = Client(server.url)
    assert [client.ready(), client.ready(), client.ready()] == [True, False, False]
