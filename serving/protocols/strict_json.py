"""JSON from strangers: RFC 8259 and no more, with nesting, members and digits bounded before a parser builds anything.

What Python's parser allows beyond the standard is refused: NaN, Infinity, a number out of range, a member twice.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import math
import re
from typing import Any, NoReturn

from rayml.errors import InputError

# A number with more digits than a 64-bit one has no place in a request; parsing it takes quadratic time.
_MAX_INT_DIGITS = 20
_MAX_FLOAT_CHARACTERS = 40
MAX_DEPTH = 16
_COUNTED_BYTES = 1 << 20
_FEW_BYTES = 64 << 10  # Whatever else the parser has.
_STRING = re.compile(rb'"[^"]*"?')
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_AS_ONE_KIND = bytes.maketrans(b"{}", b"[]")


def memory_bytes(body: bytes, max_values: int, max_strings: int | None = None) -> int:
    """The most memory that a body takes beside itself while it is parsed, and what base64 it holds is decoded.

    A value takes up to 72 bytes as a Python object: a list of one its 56, its place and what it grows by. Text is there
    twice, whole and in its strings, and once more where it is decoded; in Python a string with one character beyond
    the Basic Multilingual Plane takes four bytes for each.

    Arguments:
        body: the whole body.
        max_values, max_strings: as in `parse_object`.

    Returns:
        Bytes; 0 for a small body, which nobody counts, and for one that is refused before anything is made of it.
    """
    if len(body) < _COUNTED_BYTES or _excess(body, max_values, max_strings) is not None:
        return 0
    text = 3 if body.isascii() and rb"\u" not in body else 8
    return text * len(body) + 72 * _values(body) + _FEW_BYTES


def parse_object(body: bytes, expected: str, max_values: int, max_strings: int | None = None) -> dict[str, Any]:
    """The JSON object that `body` is.

    Arguments:
        body: the whole body.
        expected: what it should have been, for the message.
        max_values: the most members and elements altogether.
        max_strings: the most strings, names of members among them, and the most objects; by default a name and a
            string for each value. They take far more time and memory than numbers do.

    Raises:
        InputError: 400, code `bad_json`, or `empty_body`.
    """
    if not body:
        raise InputError(f"The body must be {expected}. Received: an empty body", code="empty_body")
    if (excess := _excess(body, max_values, max_strings)) is not None:
        raise bad_json(expected, excess)
    _check_depth(body, expected)

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise bad_json(expected, "a member twice")
        return found

    def constant(name: str) -> NoReturn:
        raise bad_json(expected, f"{name}, which JSON does not have")

    def real(text: str) -> float:
        value = float(text) if len(text) <= _MAX_FLOAT_CHARACTERS else math.inf
        if not math.isfinite(value):
            raise bad_json(expected, "a number out of range")
        return value

    def whole(text: str) -> int:
        if len(text) > _MAX_INT_DIGITS:
            raise bad_json(expected, "a number out of range")
        return int(text)

    try:
        value = json.loads(
            body.decode("utf-8"), object_pairs_hook=members, parse_constant=constant, parse_float=real, parse_int=whole
        )
    except UnicodeDecodeError:
        raise bad_json(expected, "it is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise bad_json(expected, f"a syntax error at character {error.pos}") from None
    if not isinstance(value, dict):
        raise bad_json(expected, f"a JSON {'array' if isinstance(value, list) else 'value that is no object'}")
    return value


def only_members(value: dict[str, Any], allowed: tuple[str, ...], expected: str) -> None:
    """Refuse an object with other members.

    Raises:
        InputError: 400, code `bad_json`.
    """
    other = sorted(repr(name[:40]) for name in value if name not in allowed)
    if other:
        raise bad_json(expected, f"members {', '.join(other[:5])}")


def bad_json(expected: str, received: str) -> InputError:
    """The 400 for a body that is not what it should be."""
    return InputError(f"The body must be {expected}. Received: {received}", code="bad_json")


def from_base64(text: str, name: str) -> bytes:
    """The bytes that `text` encodes (RFC 4648, section 4: with padding, no line breaks).

    Raises:
        InputError: 400, code `bad_base64`.
    """
    data = None
    with contextlib.suppress(binascii.Error, ValueError):
        data = base64.b64decode(text, validate=True)
    if data is None or (text and not data):  # Python 3.10 takes padding alone for nothing.
        message = f"{name} must be base64 (RFC 4648, with padding, no line breaks)."
        raise InputError(message, code="bad_base64")
    return data


def _values(body: bytes) -> int:
    return body.count(b",") + body.count(b"[") + body.count(b"{")


def _excess(body: bytes, max_values: int, max_strings: int | None) -> str | None:
    """What a body has too much of, or None."""
    most = 2 * max_values if max_strings is None else max_strings
    if _values(body) > max_values:
        return f"more than {max_values} values"
    if body.count(b'"') > 2 * most or body.count(b"{") > most:
        return f"more than {most} strings or objects"
    return None


def _check_depth(body: bytes, expected: str) -> None:
    # Without escaped quotes a string ends at the next quote, which is found in linear time whatever a stranger sends.
    plain = body.replace(rb"\\", b"").replace(rb"\"", b"")
    brackets = _STRING.sub(b"", plain).translate(_AS_ONE_KIND, _NO_BRACKETS)
    # Each round takes away the innermost pairs, at the speed of a search.
    for _ in range(MAX_DEPTH):
        if not brackets:
            return
        brackets = brackets.replace(b"[]", b"")
    if brackets:
        raise bad_json(expected, f"brackets that do not match, or nested more than {MAX_DEPTH} deep")
