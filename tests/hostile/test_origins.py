"""Origins that misbehave, once a URL to them is allowed: names, redirects, bodies, time."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from pathlib import Path

import pytest

from serving.fetch import Fetcher
from tests.hostile.origin import PUBLIC, origin, refused, response, sends

PICTURE = bytes(range(256)) * 10

# --- one look-up, that very address


def test_the_name_is_resolved_once_and_kept_for_the_host() -> None:
    answers = itertools.chain([[PUBLIC]], itertools.repeat(["127.0.0.1"]))
    with origin(sends(response(PICTURE)), addresses=lambda _host: next(answers)) as there:
        assert there.fetch("http://images.example.com/a/b.png?c=d#e") == PICTURE
        assert there.lookups == ["images.example.com"]
        assert there.dialled == [(PUBLIC, 80)]
        head = there.requests[0].decode().split("\r\n")
    assert head[0] == "GET /a/b.png?c=d HTTP/1.1"
    assert "Host: images.example.com" in head
    assert "Accept-Encoding: identity" in head


def test_tls_asks_for_the_name_and_checks_it() -> None:
    hello: list[bytes] = []

    def listen(connection: socket.socket) -> None:
        with connection:
            hello.append(connection.recv(65536))
            time.sleep(1)

    # The origin speaks no TLS: the greeting, which names the host, is all that it gets.
    def dial(_address: str, port: int, _timeout_s: float) -> socket.socket:
        assert port == 443
        ours, theirs = socket.socketpair()
        threading.Thread(target=listen, args=(theirs,), daemon=True).start()
        return ours

    fetcher = Fetcher(("images.example.com",), 1000, lambda _host, _port: [PUBLIC], dial)
    refused(lambda: fetcher.fetch("https://images.example.com/", time.monotonic() + 0.3), 504, "url_too_slow")
    assert b"images.example.com" in hello[0]
    assert fetcher._tls is not None and fetcher._tls.check_hostname and fetcher._tls.verify_mode.name == "CERT_REQUIRED"


def test_surroundings_have_no_part_in_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    (tmp_path / ".netrc").write_text("machine images.example.com login me password secret\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    cookie = response(b"", "Location: /b", "Set-Cookie: a=b", status="302 Found")
    with origin(sends(cookie), sends(response(PICTURE))) as there:
        assert there.fetch() == PICTURE
        for request in there.requests:
            assert b"authorization" not in request.lower() and b"cookie" not in request.lower()


# --- redirects


def _redirect(location: str) -> bytes:
    return response(b"", f"Location: {location}", status="302 Found")


def test_three_redirects_are_followed_and_a_fourth_is_not() -> None:
    hop = sends(_redirect("/next"))
    with origin(hop, hop, hop, sends(response(PICTURE))) as there:
        assert there.fetch() == PICTURE
    with origin(hop) as there:
        refused(there.fetch)
        assert len(there.requests) == 4


@pytest.mark.parametrize("status", ["301 Moved Permanently", "302 Found", "303 See Other", "307 T", "308 P"])
def test_every_kind_of_redirect_is_followed(status: str) -> None:
    with origin(sends(response(b"", "Location: /next", status=status)), sends(response(PICTURE))) as there:
        assert there.fetch() == PICTURE


def test_a_body_of_exactly_the_limit_is_read_and_a_byte_more_is_not() -> None:
    for handler in (sends(response(PICTURE)), sends(b"HTTP/1.1 200 OK\r\n\r\n" + PICTURE)):
        with origin(handler, max_bytes=len(PICTURE)) as there:
            assert there.fetch() == PICTURE
        with origin(handler, max_bytes=len(PICTURE) - 1) as there:
            refused(there.fetch, 413, "body_too_large")


@pytest.mark.parametrize(
    "location",
    [
        "file:///etc/passwd",
        "http://127.0.0.1/",
        "http://[::1]/",
        "http://other.example.com/",
        "//169.254.169.254/latest",
        "http://images.example.com:22/",
        "http://a@images.example.com/",
        "gopher://images.example.com/",
    ],
)
def test_redirects_are_checked_like_the_first_url(location: str) -> None:
    with origin(sends(_redirect(location)), sends(response(PICTURE))) as there:
        refused(there.fetch)
        assert len(there.requests) == 1


def test_a_redirect_resolves_anew_and_is_checked_anew() -> None:
    answers = iter([[PUBLIC], ["10.0.0.1"]])
    with origin(sends(_redirect("/b")), sends(response(PICTURE)), addresses=lambda _host: next(answers)) as there:
        refused(there.fetch)
        assert len(there.requests) == 1


def test_from_https_to_http_isrefused() -> None:
    from serving.fetch import _Target

    fetcher = Fetcher(("images.example.com",), 1000)
    first = _Target("https", "images.example.com", 443, "/", "https://images.example.com/")
    refused(lambda: fetcher._check("http://images.example.com/", after=first))
    assert fetcher._check("/b", after=first).scheme == "https"


def test_a_redirect_to_nowhere() -> None:
    with origin(sends(response(b"", status="302 Found"))) as there:
        refused(there.fetch, 422, "url_unavailable")


# --- bodies


def test_chunked_bodies_are_read() -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    with origin(sends(head, b"3\r\nabc\r\n", b"2\r\nde\r\n0\r\n\r\n")) as there:
        assert there.fetch() == b"abcde"


def test_a_body_without_a_length_ends_with_the_connection() -> None:
    with origin(sends(b"HTTP/1.0 200 OK\r\n\r\nabc")) as there:
        assert there.fetch() == b"abc"


def test_bytes_after_the_declared_length_are_ignored() -> None:
    with origin(sends(response(b"abcdef", "Content-Length: 3"))) as there:
        assert there.fetch() == b"abc"


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (response(b"x" * 10_001), 413, "body_too_large"),
        (response(b"abc", "Content-Length: 1000000000000"), 413, "body_too_large"),
        (response(b"abc", "Content-Length: 9"), 422, "url_unavailable"),
        (response(b"", "Content-Length: 9"), 422, "url_unavailable"),
        (response(b"abc", "Content-Encoding: gzip"), 422, "url_unavailable"),
        (response(b"abc", status="404 Not Found"), 422, "url_unavailable"),
        (response(b"abc", status="500 Oops"), 422, "url_unavailable"),
        (response(b"abc", status="206 Partial Content"), 422, "url_unavailable"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc", 422, "url_unavailable"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nabc", 422, "url_unavailable"),
        (b"not http at all\r\n\r\n", 422, "url_unavailable"),
        (b"", 422, "url_unavailable"),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 500 + b"\r\nabc", 422, "url_unavailable"),
        (b"HTTP/1.1 200 OK\r\nA: " + b"b" * 100_000 + b"\r\n\r\nabc", 422, "url_unavailable"),
    ],
)
def test_bodies_that_arerefused(sent: bytes, status: int, code: str) -> None:
    with origin(sends(sent)) as there:
        refused(there.fetch, status, code)


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n",
    ],
)
def test_an_endless_body_is_cut(head: bytes) -> None:
    piece = b"1000\r\n" + b"x" * 0x1000 + b"\r\n" if b"chunked" in head else b"HTTP/1.1 100 Continue\r\n\r\n" * 200
    sent: list[int] = []

    def endless(connection: socket.socket) -> None:
        connection.sendall(head)
        while True:
            connection.sendall(piece)
            sent.append(len(piece))

    with origin(endless) as there:
        refused(there.fetch, 413, "body_too_large")
    # What the two sockets may hold is some megabytes; an unbounded reader would go on until the deadline.
    assert sum(sent) < 20_000_000


@pytest.mark.parametrize("drip", [b"HTTP/1.1 200 OK\r\n\r\n", b"H", b"HTTP/1.1 200 OK\r\nA: "])
def test_a_slow_drip_ends_at_the_deadline(drip: bytes) -> None:
    began = time.monotonic()
    with origin(sends(drip, *[b"x"] * 100, pause_s=0.1)) as there:
        refused(lambda: there.fetch(seconds=0.5), 504, "url_too_slow")
    assert time.monotonic() - began < 9.0  # Each byte comes in time; all of them would take ten seconds.


def test_an_origin_that_says_nothing() -> None:
    with origin(lambda connection: time.sleep(5)) as there:
        refused(lambda: there.fetch(seconds=0.3), 504, "url_too_slow")


def test_messages_do_not_say_what_lies_behind_an_address() -> None:
    def dial(*_: object) -> socket.socket:
        raise ConnectionRefusedError(111, "Connection refused by 10.0.0.1")

    fetcher = Fetcher(("images.example.com",), 1000, lambda _host, _port: [PUBLIC], dial)
    error = refused(lambda: fetcher.fetch("http://images.example.com/", time.monotonic() + 5), 422, "url_unavailable")
    assert "10.0" not in error.message and "refused" not in error.message.lower()


def test_a_second_address_is_tried_where_the_first_leads_nowhere() -> None:
    with origin(sends(response(PICTURE)), addresses=lambda _host: ["2606:4700::1111", PUBLIC]) as there:
        real = there.fetcher._dial

        def dial(address: str, port: int, timeout_s: float) -> socket.socket:
            if ":" in address:
                time.sleep(timeout_s)
                raise TimeoutError
            return real(address, port, timeout_s)

        there.fetcher._dial = dial
        assert there.fetch(seconds=1.0) == PICTURE


def test_a_second_address_is_tried_where_the_first_takes_no_connection() -> None:
    with origin(sends(response(PICTURE)), addresses=lambda _host: ["2606:4700::1111", PUBLIC]) as there:
        real = there.fetcher._dial

        def dial(address: str, port: int, timeout_s: float) -> socket.socket:
            if ":" in address:
                raise OSError("no IPv6 here")
            return real(address, port, timeout_s)

        there.fetcher._dial = dial
        assert there.fetch() == PICTURE
