"""HTTP that no well-meaning client sends, on raw sockets against the shared server."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Iterator

import pytest

from serving.servers import find_server
from tests.faults.kill_replica import replicas
from tests.serving.live import LIMITS, Live, exchange, live, read_response
from tests.serving.tiny_bundle import picture

__all__ = ["live"]

PICTURE = picture("red")


def _head(*lines: str, path: str = "/predict") -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: a", *lines, "", ""]).encode()


def _classify(*lines: str, content_type: str = "image/png") -> bytes:
    """An honest request for the picture, and further header lines."""
    return _head(f"Content-Type: {content_type}", f"Content-Length: {len(PICTURE)}", *lines) + PICTURE


@contextlib.contextmanager
def _connections(live: Live, count: int) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(live.connect()) for _ in range(count)]


def _ask(live: Live, request: bytes) -> tuple[int, dict[str, str], str]:
    """Status, headers and error code of one answer: every error is JSON of rayml's shape."""
    with live.connect() as connection:
        status, headers, body = exchange(connection, request)
    value = json.loads(body)
    assert headers["content-type"] == "application/json"
    code = "" if status == 200 else value["error"]["code"]
    return status, headers, code


def _is_alive(live: Live) -> bool:
    return _ask(live, _classify())[0] == 200


def test_both_lengths_are_refused(live: Live) -> None:
    body = b"5\r\nhello\r\n0\r\n\r\n"
    request = _head("Content-Type: image/png", f"Content-Length: {len(body)}", "Transfer-Encoding: chunked") + body
    assert _ask(live, request)[0] == 400
    request = _head("Content-Type: image/png", "Transfer-Encoding: chunked", "Content-Length: 5") + body
    assert _ask(live, request)[0] == 400


@pytest.mark.parametrize("path", ["/healthz", "/v1/models/clothing", "/v2/health/ready"])
@pytest.mark.parametrize(
    ("header", "body"), [("Content-Length: 5", b"hello"), ("Transfer-Encoding: chunked", b"5\r\nhello\r\n0\r\n\r\n")]
)
def test_a_question_with_a_body_is_refused(live: Live, path: str, header: str, body: bytes) -> None:
    with live.connect() as connection:
        status, headers, said = exchange(
            connection, f"GET {path} HTTP/1.1\r\nHost: a\r\n{header}\r\n\r\n".encode() + body
        )
    error = json.loads(said)["error"]
    assert (status, headers["content-type"]) == (400, "application/json")
    assert (error if path.startswith("/v") else error["message"]) == "GET and HEAD must be without a body."
    with live.connect() as connection:
        assert exchange(connection, b"GET /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")[0] == 200


def test_http_2_without_tls_is_not_spoken(live: Live) -> None:
    """A body has no header there that would say so, and a GET's would be held by a replica, counted nowhere."""
    with live.connect() as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))  # RFC 9113, 3.4
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 4")
    assert _is_alive(live)


@pytest.mark.parametrize("path", ["/predict", "/v1/models/clothing:predict", "/v2/models/clothing/infer"])
def test_a_wrong_method_is_the_first_thing_to_be_said_of_a_get_with_a_body(live: Live, path: str) -> None:
    with live.connect() as connection:
        status, headers, _ = exchange(
            connection, f"GET {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello".encode()
        )
    assert (status, headers["allow"]) == (405, "POST")


@pytest.mark.parametrize(
    "request_bytes",
    [
        _head("Content-Length: 5", "Content-Length: 6") + b"hello",
        _head("Content-Length: -1") + b"hello",
        _head("Content-Length: 5x") + b"hello",
        _head("Content-Length: 99999999999999999999999") + b"hello",
        _head("Transfer-Encoding: chunked", "Content-Length : 5") + b"hello",
        _head("Bad Header: x") + b"hello",
        _head("Transfer-Encoding: chunked") + b"not a length\r\n",
        b"\x16\x03\x01\x02\x00\x01\r\n\r\n",
        b"GARBAGE\r\n\r\n",
    ],
)
def test_what_is_not_http_is_refused_by_the_proxy(live: Live, request_bytes: bytes) -> None:
    # HAProxy's parser has no other words than its own page: there is no request yet that a rule could answer.
    with live.connect() as connection:
        status, _, body = exchange(connection, request_bytes)
    assert status == 400
    assert b"bad request" in body.lower()
    assert _is_alive(live)


@pytest.mark.parametrize(
    ("line", "status", "code"),
    [
        ("FOO /predict", 405, "method_not_allowed"),
        ("get /healthz", 405, "method_not_allowed"),  # Methods are case-sensitive (RFC 9110, section 9.1).
        ("CONNECT a:80", 405, "method_not_allowed"),
        ("FOO /v2/models/primaries/infer", 405, None),
        ("OPTIONS *", 400, "bad_request"),
        ("GET foo:/bar", 400, "bad_request"),
    ],
)
def test_a_method_or_target_that_no_server_knows_is_refused_in_json(
    live: Live, line: str, status: int, code: str | None
) -> None:
    with live.connect() as connection:
        found, headers, body = exchange(connection, f"{line} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    error = json.loads(body)["error"]
    assert (found, headers["content-type"]) == (status, "application/json")
    assert isinstance(error, str) if code is None else error["code"] == code
    assert (headers.get("allow") == "GET, HEAD, POST") == (status == 405) and "retry-after" not in headers
    assert _is_alive(live)


def test_a_declared_length_is_refused_before_the_body_is_read(live: Live) -> None:
    request = _head("Content-Type: image/png", "Content-Length: 1000000000000")
    assert _ask(live, request)[::2] == (413, "body_too_large")  # Not one byte of the body was sent.
    just_above = LIMITS.max_image_bytes + 1  # Within what the proxy lets pass: the replica refuses it.
    request = _head("Content-Type: image/png", f"Content-Length: {just_above}")
    assert _ask(live, request)[::2] == (413, "body_too_large")


def test_an_endless_chunked_body_is_refused_while_it_arrives(live: Live) -> None:
    chunk = b"4000\r\n" + bytes(0x4000) + b"\r\n"
    with live.connect() as connection:
        connection.sendall(_head("Content-Type: image/png", "Transfer-Encoding: chunked"))
        # A little more than the limit, and never an end.
        for _ in range(LIMITS.max_image_bytes // 0x4000 + 1):
            connection.sendall(chunk)
        status, _, body = read_response(connection)
    assert (status, json.loads(body)["error"]["code"]) == (413, "body_too_large")


def test_many_one_byte_chunks(live: Live) -> None:
    request = _head("Content-Type: image/png", "Transfer-Encoding: chunked") + b"1\r\nx\r\n" * 90_000 + b"0\r\n\r\n"
    assert _ask(live, request)[::2] == (415, "unsupported_image")


@pytest.mark.parametrize(
    ("headers", "body", "status", "code"),
    [
        (["Content-Length: 0"], b"", 415, "unsupported_media_type"),
        (["Content-Length: 0", "Content-Type: image/png"], b"", 400, "empty_body"),
        (["Transfer-Encoding: chunked", "Content-Type: image/png"], b"0\r\n\r\n", 400, "empty_body"),
        (["Content-Length: 1", "Content-Type: image/png"], b"x", 400, "unreadable_image"),
        (["Content-Length: 5", "Content-Type: text/html"], b"hello", 415, "unsupported_media_type"),
        (["Content-Length: 5", "Content-Type:"], b"hello", 415, "unsupported_media_type"),
        (
            ["Content-Length: 5", "Content-Type: image/png", "Content-Encoding: gzip"],
            b"hello",
            415,
            "unsupported_encoding",
        ),
    ],
)
def test_empty_bodies_and_wrong_types(live: Live, headers: list[str], body: bytes, status: int, code: str) -> None:
    assert _ask(live, _head(*headers) + body)[::2] == (status, code)


def test_a_lying_type_changes_nothing(live: Live) -> None:
    # PICTURE is a PNG: the bytes decide, never the header.
    for content_type in ("image/jpeg", "IMAGE/WEBP", "application/octet-stream"):
        request = _classify(content_type=content_type)
        assert _ask(live, request)[0] == 200


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 60_000 + b"]" * 60_000,
        b'{"image":1e400}',
        b'{"image":NaN}',
        b'{"image":"eA==","image":"eA=="}',
        b'{"image":' + b"9" * 100_000 + b"}",
        b"[]",
        b"{" + b'"a":1,' * 15_000 + b'"b":2}',
    ],
)
def test_json_bombs(live: Live, body: bytes) -> None:
    request = _head("Content-Type: application/json", f"Content-Length: {len(body)}") + body
    assert _ask(live, request)[::2] == (400, "bad_json")


def test_headers_that_command_serve_have_no_effect(live: Live) -> None:
    forged = [
        "x-request-timeout-seconds: 0.000001",
        "x-request-disconnect-disabled: ?1",
        "x-request-id: ../../etc/passwd",
        "serve_multiplexed_model_id: other",
        "x-forwarded-host: evil.example",
    ]
    status, headers, _ = _ask(live, _classify(*forged))
    assert status == 200
    assert "x-request-id" not in headers


def test_a_client_cannot_switch_the_deadline_off(live: Live) -> None:
    lines = ["Content-Type: image/png", "Content-Length: 10", "x-request-timeout-seconds: 0"]
    with live.connect() as connection:
        status, _, body = exchange(connection, _head(*lines) + b"half")  # The rest never comes.
    assert (status, json.loads(body)["error"]["code"]) == (408, "slow_body")


@pytest.mark.parametrize(("path", "status"), [("/nope", 404), ("/readyz", 405), ("/v1/models/other:predict", 404)])
def test_bodies_that_never_end_keep_no_place_after_their_answer(live: Live, path: str, status: int) -> None:
    unfinished = _head("Content-Length: 1000", path=path) + b"x"
    with _connections(live, 4 * LIMITS.max_in_flight) as held:
        for connection in held:
            connection.sendall(unfinished)
            time.sleep(0.05)  # Fewer at once than there are places: each is answered at once.
            assert _is_alive(live)
        assert {read_response(connection)[0] for connection in held} == {status}
        assert _is_alive(live)  # The proxy waits for the rest of all of them.


def test_only_predictions_take_places(live: Live) -> None:
    (replica,) = replicas(find_server(live.url).pid)
    others = [b"GET /docs HTTP/1.1\r\nHost: a\r\n\r\n", _head("Content-Length: 1000", path="/readyz") + b"x"]
    with _connections(live, 2 * (LIMITS.max_in_flight + 1)) as held, live.connect() as connection:
        os.kill(replica, signal.SIGSTOP)
        try:
            for number, each in enumerate(held):
                each.sendall(others[number % 2])
            connection.sendall(_classify())
            assert not select.select([connection], [], [], 0.5)[0]  # It has a place: it is not refused at once.
        finally:
            os.kill(replica, signal.SIGCONT)
        assert read_response(connection)[0] == 200


@pytest.mark.parametrize("path", ["/%70redict", "/v1/models/primaries%3Apredict"])
def test_no_spelling_of_a_path_comes_past_the_proxys_count(live: Live, path: str) -> None:
    (replica,) = replicas(find_server(live.url).pid)
    with _connections(live, LIMITS.max_in_flight + 1) as held:
        os.kill(replica, signal.SIGSTOP)
        try:
            for connection in held:
                connection.sendall(_head("Content-Length: 2", path=path) + b"{}")
                assert not select.select([connection], [], [], 0.2)[0]
            assert _ask(live, _classify())[0] == 503
        finally:
            os.kill(replica, signal.SIGCONT)
        for connection in held:
            assert read_response(connection)[0] in (400, 415, 503)
    _until(lambda: _is_alive(live))


@pytest.mark.parametrize("protocol", ["websocket", "h2c", "other/1"])
def test_an_upgrade_is_ignored(live: Live, protocol: str) -> None:
    upgrade = [
        "Connection: Upgrade",
        f"Upgrade: {protocol}",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ]
    assert _ask(live, _classify(*upgrade))[0] == 200
    for path, wanted in (("/healthz", 200), ("/predict", 405), ("/nope", 404)):
        with live.connect() as connection:
            request = "\r\n".join([f"GET {path} HTTP/1.1", "Host: a", *upgrade, "", ""]).encode()
            status, headers, _ = exchange(connection, request)
            assert (status, headers["content-type"]) == (wanted, "application/json")
            # The connection goes on as it was.
            assert exchange(connection, b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")[0] == 200


@pytest.mark.parametrize(
    "name", ["x-session-id", "X_Session-ID", "serve_multiplexed-model-id", "Serve-Multiplexed_Model_Id"]
)
def test_no_spelling_of_serves_own_headers_comes_through(live: Live, name: str) -> None:
    request = _classify(f"{name}: @").replace(b"@", b"\xff")  # Ray decodes it without a guard.
    assert _ask(live, request)[0] == 200


def test_bodies_that_trickle_keep_nobody_out_for_long(live: Live) -> None:
    trickle = _head("Content-Type: image/png", "Content-Length: 1000") + b"x"
    with _connections(live, LIMITS.max_in_flight + 4) as trickles:
        for connection in trickles:
            connection.sendall(trickle)
        for _ in range(5):  # Less than `LIMITS.deadline_s`, by which all of them would be gone.
            _trickle(trickles)
        assert _is_alive(live)


def test_full_places_are_503_with_retry_after_and_come_back(live: Live) -> None:
    unfinished = _head("Content-Type: image/png", "Content-Length: 10") + b"half"
    with _connections(live, LIMITS.max_in_flight + 1) as waiting:
        for connection in waiting:
            connection.sendall(unfinished)
        # Whichever came last is answered at once; the others would be, with 408, after the deadline.
        answered, _, _ = select.select(waiting, [], [], LIMITS.deadline_s)
        status, headers, body = read_response(answered[0])
        assert (status, headers["retry-after"]) == (503, str(LIMITS.retry_after_s))
        assert json.loads(body)["error"]["code"] == "overloaded"
        with live.connect() as connection:  # Health questions need no place.
            assert exchange(connection, b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")[0] == 200
        for connection in waiting:  # They go in mid-upload, with a reset instead of a farewell.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    _until(lambda: _is_alive(live))


def test_a_crowd_is_refused_by_the_proxy_while_the_replica_has_no_time(live: Live) -> None:
    (replica,) = replicas(find_server(live.url).pid)
    plain = _head("Content-Length: 2", path="/v1/models/primaries:predict") + b"{}"
    time.sleep(0.5)  # What tests before this one left is over.
    # The replica's places, and one more that it would refuse itself, so that its metrics tell of it.
    with _connections(live, LIMITS.max_in_flight + 1) as held:
        os.kill(replica, signal.SIGSTOP)
        try:
            for connection in held:
                connection.sendall(_classify())
                assert not select.select([connection], [], [], 0.2)[0]
            status, headers, code = _ask(live, _classify())
            assert (status, headers["retry-after"], code) == (503, str(LIMITS.retry_after_s), "overloaded")
            with live.connect() as connection:
                status, headers, body = exchange(connection, plain)
            assert (status, headers["retry-after"]) == (503, str(LIMITS.retry_after_s))
            assert isinstance(json.loads(body)["error"], str)
        finally:
            os.kill(replica, signal.SIGCONT)
        assert {read_response(connection)[0] for connection in held} <= {200, 503}
    _until(lambda: _is_alive(live))


def test_clients_gone_in_mid_prediction_leave_the_server_alive(live: Live) -> None:
    for _ in range(50):
        with live.connect() as connection:
            connection.sendall(_classify())
    _until(lambda: _is_alive(live))


def test_idle_connections_do_not_keep_others_out(live: Live) -> None:
    with _connections(live, 1_000) as idle:
        for connection in idle[::2]:
            connection.sendall(b"POST /predict HTT")
        assert _is_alive(live)


def _trickle(connections: list[socket.socket]) -> None:
    """Another byte on each that is still open, and half a second."""
    for connection in connections:
        with contextlib.suppress(OSError):
            connection.sendall(b"x")
    time.sleep(0.5)


def _until(condition: object, timeout_s: float = 20.0) -> None:
    assert callable(condition)
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the server did not come to it"
        time.sleep(0.05)
