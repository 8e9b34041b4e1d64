"""URLs from strangers: what is refused unasked, and origins that misbehave."""

from __future__ import annotations

import time

import pytest

from rayml.errors import UsageError
from serving.addresses import check_host_pattern, is_public
from serving.fetch import Fetcher
from tests.hostile.origin import PUBLIC, origin, refused, response, sends

PICTURE = bytes(range(256)) * 10


# --- what is refused before anything is asked


def test_nothing_is_fetched_unless_hosts_are_allowed() -> None:
    with origin(sends(response(PICTURE)), allowed=()) as there:
        refused(there.fetch)
        assert not there.lookups and not there.dialled


@pytest.mark.parametrize(
    "url",
    [
        "",
        "images.example.com/a.png",
        "//images.example.com/a.png",
        "ftp://images.example.com/a.png",
        "file:///etc/passwd",
        "gopher://images.example.com/",
        "data:image/png;base64,eA==",
        "javascript:alert(1)",
        "http:images.example.com",
        "http://",
        "http:///a.png",
        "http://user@images.example.com/",
        "http://user:secret@images.example.com/",
        "http://@images.example.com/",
        "http://images.example.com@127.0.0.1/",
        "http://images.example.com\\@127.0.0.1/",
        "http:\\\\images.example.com/",
        "http://images.example.com/a b",
        "http://images.example.com/\r\nHost: evil",
        "http://images.example.com/\x00",
        "http://images.example.com/\x7f",
        "http://images.example.com/é",
        " http://images.example.com/",
        "http://images.example.com:22/",
        "http://images.example.com:8080/",
        "https://images.example.com:8443/",
        "http://images.example.com:0/",
        "http://images.example.com:99999/",
        "http://images.example.com:x/",
        "http://images.example.com./",
        "http://images.example.com/" + "a" * (2049 - len("http://images.example.com/")),
        "http://other.example.com/",
        "http://images.example.com.evil.org/",
        "http://evil-images.example.com/",
        "http://[images.example.com]/",
        "http://%69mages.example.com/",
    ],
)
def test_urls_that_are_refused_unasked(url: str) -> None:
    with origin(sends(response(PICTURE))) as there:
        refused(lambda: there.fetch(url))
        assert not there.lookups and not there.dialled


HOSTS = [
    "127.0.0.1",
    "127.1",
    "0",
    "0.0.0.0",
    "0x7f.1",
    "0x7f000001",
    "2130706433",
    "017700000001",
    "0177.0.0.1",
    "127.0.0.1.",
    "１２７.０.０.１",  # noqa: RUF001
    "127。0。0。1",
    "localhost",
    "localhost.",
    "LOCALHOST",
    "a.localhost",
    "[::1]",
    "[::]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[64:ff9b::a9fe:a9fe]",
    "[2002:a9fe:a9fe::]",
    "[2001:0:a9fe:a9fe::]",
    "[fe80::1%25eth0]",
    "[fe80::1]",
    "[fd00::1]",
    "[ff02::1]",
    "169.254.169.254",
    "100.64.0.1",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.0.1",
    "192.0.0.192",
    "198.18.0.1",
    "192.0.2.1",
    "192.88.99.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "metadata",
    "metadata.google.internal",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
    "printer.local",
    "router.home.arpa",
    "printer.test",
]


@pytest.mark.parametrize("host", HOSTS)
def test_hosts_that_are_not_public_are_refused_even_where_all_are_allowed(host: str) -> None:
    with origin(sends(response(PICTURE)), allowed=("*",)) as there:
        refused(lambda: there.fetch(f"http://{host}/a.png"))
        assert not there.lookups and not there.dialled


@pytest.mark.parametrize("host", HOSTS)
def test_production_refuses_them_too(host: str) -> None:
    fetcher = Fetcher(("*",), 1000)
    refused(lambda: fetcher.fetch(f"http://{host}/", time.monotonic() + 5))


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        [PUBLIC, "127.0.0.1"],
        ["10.0.0.1", PUBLIC],
        [PUBLIC, "::1"],
        ["fe80::1%eth0"],
        ["::ffff:10.0.0.1"],
        ["64:ff9b::a00:1"],
        [],
        ["nonsense"],
    ],
)
def test_names_with_an_address_that_is_not_public(addresses: list[str]) -> None:
    with origin(sends(response(PICTURE)), addresses=lambda _host: addresses) as there:
        refused(there.fetch)
        assert not there.dialled


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946"])
def test_public_addresses(address: str) -> None:
    assert is_public(address)


# --- allowed hosts


@pytest.mark.parametrize(
    ("pattern", "url", "fetched"),
    [
        ("*", "http://any.example.org/", True),
        ("*.example.com", "http://a.example.com/", True),
        ("*.example.com", "http://a.b.example.com/", True),
        ("*.example.com", "http://example.com/", False),
        ("*.example.com", "http://evilexample.com/", False),
        ("Images.Example.COM", "http://IMAGES.example.com/", True),
        ("93.184.216.34", "http://93.184.216.34/", True),
        ("images.example.com", "http://images.example.com:443/", True),
    ],
)
def test_patterns(pattern: str, url: str, fetched: bool) -> None:
    with origin(sends(response(PICTURE)), allowed=(pattern,)) as there:
        if fetched:
            assert there.fetch(url) == PICTURE
        else:
            refused(lambda: there.fetch(url))


@pytest.mark.parametrize(
    "pattern", ["", "localhost", "127.0.0.1", "10.0.0.1", "http://a.com", "a.com/b", "*.*", "a b.c"]
)
def test_hosts_that_cannot_be_allowed(pattern: str) -> None:
    with pytest.raises(UsageError, match="must be a public host"):
        check_host_pattern(pattern)
