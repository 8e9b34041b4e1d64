"""Requests as the web server hands them over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from rayml.errors import InputError
from serving.call import Call, ClientGone, check_declared_length


async def _whole() -> AsyncIterator[bytes]:
    yield b"x"


async def _never() -> AsyncIterator[bytes]:
    yield b"x"
    await asyncio.Event().wait()


async def _gone() -> AsyncIterator[bytes]:
    yield b"x"
    raise ClientGone


@pytest.mark.parametrize(("body", "came"), [(_whole, True), (_never, False), (_gone, False)])
def test_a_body_that_nobody_needs_is_waited_for_a_moment(
    body: Callable[[], AsyncIterator[bytes]], came: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.call._DRAIN_S", 0.1)
    assert asyncio.run(Call("POST", "/nope", b"", {}, body).drained()) is came


@pytest.mark.parametrize(
    ("headers", "announced"),
    [
        ({}, False),
        ({"content-length": "0"}, False),
        ({"content-length": "9"}, True),
        ({"transfer-encoding": "chunked"}, True),
    ],
)
def test_headers_announce_a_body(headers: dict[str, str], announced: bool) -> None:
    assert Call("POST", "/", b"", headers, _whole).has_body is announced


@pytest.mark.parametrize("length", ["0", "999", "1000", "0001000"])
def test_declared_lengths_within_the_limit(length: str) -> None:
    check_declared_length(length, 1000)
    check_declared_length(None, 1000)


@pytest.mark.parametrize(
    ("length", "status"),
    [("1001", 413), ("9" * 19, 413), ("9" * 1_000_000, 413), ("-1", 400), ("1e3", 400), ("٣", 400)],
)
def test_declared_lengths_that_are_refused(length: str, status: int) -> None:
    with pytest.raises(InputError) as caught:
        check_declared_length(length, 1000)
    assert caught.value.status == status
