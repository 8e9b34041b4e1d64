"""JSON within bounds, and that hostile JSON takes no time."""

from __future__ import annotations

import contextlib
import time
import tracemalloc
from collections.abc import Callable

import pytest

from rayml.errors import InputError
from serving.protocols.strict_json import MAX_DEPTH, from_base64, memory_bytes, parse_object


def _refused(body: bytes, max_values: int = 1000) -> str:
    with pytest.raises(InputError) as caught:
        parse_object(body, "an object", max_values)
    assert caught.value.status == 400
    return caught.value.message


def test_what_json_has() -> None:
    body = rb'{"a": [1, -2.5e3, null, true, "x\"[{\\", {"b": []}], "\u00e9": "[[[["}'
    assert parse_object(body, "an object", 100) == {"a": [1, -2500.0, None, True, 'x"[{\\', {"b": []}], "é": "[[[["}


def test_depth_is_counted_exactly() -> None:
    inner = MAX_DEPTH - 1
    assert parse_object(b'{"a":' + b"[" * inner + b"]" * inner + b"}", "an object", 100)
    assert "nested" in _refused(b'{"a":' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}")


def test_strings_and_objects_have_a_limit_of_their_own() -> None:
    def refused(body: bytes) -> bool:
        try:
            parse_object(body, "an object", 1000, max_strings=10)
        except InputError as error:
            return "more than 10 strings or objects" in error.message
        return False

    assert not refused(b'{"a":[' + b"1," * 900 + b"1]}")
    assert not refused(b'{"a":["' + b'","' * 8 + b'"]}')  # A name and nine strings.
    assert refused(b'{"a":["' + b'","' * 9 + b'"]}')
    assert not refused(b'{"a":[' + b"{}," * 9 + b"1]}")
    assert refused(b'{"a":[' + b"{}," * 10 + b"1]}")


@pytest.mark.parametrize("text", ["1,", "0.123456,", "[1],", "[],"])
def test_what_parsing_takes_is_known_beforehand(text: str) -> None:
    assert memory_bytes(b'{"a":[1]}', 10) == 0
    body = b'{"a":[' + text.encode() * (2_000_000 // len(text)) + b"1]}"
    assert _peak(lambda: parse_object(body, "an object", 2_000_000)) <= memory_bytes(body, 2_000_000)
    assert memory_bytes(body, 2_000_000) < 75 * len(body)
    assert memory_bytes(body, 1_000) == 0  # It is refused before anything is made of it.


@pytest.mark.parametrize("more", ["A", "\\u0041", "\u00e9", "\u4e00", "\U0001f600", "\\ud83d\\ude00"])
def test_what_text_takes_is_known_beforehand(more: str) -> None:
    """One character decides what all take in a Python string."""
    body = b'{"a":"' + b"A" * 4_000_000 + more.encode() + b'"}'

    def read() -> None:
        text = parse_object(body, "an object", 10)["a"]
        with contextlib.suppress(InputError):
            from_base64(text, "a")

    assert _peak(read) <= memory_bytes(body, 10) <= 8.1 * len(body)


def _peak(job: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        job()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "body",
    [
        b"{" * 3_000_000,
        b"[" * 3_000_000 + b"]" * 3_000_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b'"' * 3_000_000,
        b'{"a":"' + b"\\" * 3_000_000,
        b'{"a":"' + b'\\"' * 3_000_000,
        b'{"a":' + b"9" * 1_000_000 + b"}",
        b'{"a":[' + b"1," * 900_000 + b"1]}",
    ],
)
def test_bombs_are_refused_quickly(body: bytes) -> None:
    began = time.process_time()
    _refused(body, max_values=100_000)
    assert time.process_time() - began < 5.0  # A quadratic look at these would take hours.


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "empty body"),
        (b"[]", "array"),
        (b"7", "no object"),
        (b'{"a":1,"a":2}', "a member twice"),
        (b'{"a":NaN}', "NaN"),
        (b'{"a":-Infinity}', "Infinity"),
        (b'{"a":1e400}', "out of range"),
        (b'{"a":[1,2}', "do not match"),
        (b'{"a":"\xff"}', "UTF-8"),
        (b'{"a"}', "syntax error"),
        (b'{"a":1]', "syntax error"),
    ],
)
def test_what_json_does_not_have(body: bytes, said: str) -> None:
    assert said in _refused(body)


def test_base64_is_the_standard_alphabet_with_padding() -> None:
    assert from_base64("+/8=", "x") == b"\xfb\xff"
    for text in ("+/8", "-_8=", "+/8=\n", "é"):
        with pytest.raises(InputError, match="base64"):
            from_base64(text, "x")
