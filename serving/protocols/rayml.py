"""rayml's own protocol: `POST /predict` takes one picture and answers one JSON object.

A body is the picture itself (`image/jpeg`, `image/png`, `image/webp`, `application/octet-stream`: its bytes decide
what it is, not its declared type), a form (`multipart/form-data`, RFC 7578) with one field `file`, or the JSON object
`{"image": "<base64>"}`. Nothing here knows a server: headers and bytes go in, bytes or an `InputError` come out.
"""

from __future__ import annotations

import base64
import binascii
import enum
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from rayml.errors import InputError
from serving.limits import RequestLimits

JSON_TYPE = "application/json"
RAW_TYPES = ("image/jpeg", "image/png", "image/webp", "application/octet-stream")
FORM_TYPE = "multipart/form-data"
BUNDLE_HEADER = "x-rayml-bundle"

# A valid JSON body has one object with one member, and base64 holds none of these characters, so more than a few of
# them are a bomb (nesting, a million members): refused by counting bytes, before a parser builds anything.
_MAX_JSON_MARKS = 32
# A number with more digits than a 64-bit one has no place in a request; parsing it takes quadratic time.
_MAX_JSON_DIGITS = 20
_MAX_FORM_PARTS = 8


class BodyKind(enum.Enum):
    """How a body carries its picture."""

    RAW = "raw"
    JSON = "json"
    FORM = "form"


@dataclass(frozen=True)
class ModelIdentity:
    """Which model answers.

    Arguments:
        name: the model's name.
        version: its version, as the bundle has it.
        bundle: the bundle's digest.
    """

    name: str
    version: str
    bundle: str

    def to_dict(self) -> dict[str, str]:
        """The `model` member of an answer."""
        return {"name": self.name, "version": self.version, "bundle": self.bundle}


def body_kind(headers: Mapping[str, str]) -> BodyKind:
    """How the body that these headers announce carries its picture.

    Arguments:
        headers: the request's headers, names in lower case (or a mapping that ignores case).

    Raises:
        InputError: 415 for a missing or other content type, or a compressed body.
    """
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise InputError(
            f"The body must not be compressed. Received: content-encoding {encoding[:40]!r}",
            status=415,
            code="unsupported_encoding",
        )
    # Media types do not depend on case (RFC 9110, section 8.3.1).
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type in RAW_TYPES:
        return BodyKind.RAW
    if media_type == JSON_TYPE:
        return BodyKind.JSON
    if media_type == FORM_TYPE:
        return BodyKind.FORM
    raise InputError(
        f"content-type must be one of {', '.join((*RAW_TYPES, FORM_TYPE, JSON_TYPE))}. Received: {media_type[:80]!r}",
        status=415,
        code="unsupported_media_type",
    )


def max_body_bytes(kind: BodyKind, limits: RequestLimits) -> int:
    """The largest body of this kind, in bytes."""
    return limits.max_image_bytes if kind is BodyKind.RAW else limits.max_body_bytes


def check_declared_length(headers: Mapping[str, str], max_bytes: int) -> None:
    """Refuse a body by its declared length, before it is read.

    Raises:
        InputError: 413 when Content-Length is above `max_bytes`, 400 when it is not a number.
    """
    declared = headers.get("content-length")
    if declared is None:
        return
    if not (declared.isascii() and declared.isdigit()):
        raise InputError("content-length must be a whole number.", code="bad_content_length")
    # Compare digits first: a number of a million digits is too large without being read.
    if len(declared) > len(str(max_bytes)) + 20 or int(declared) > max_bytes:
        raise too_large(max_bytes)


def too_large(max_bytes: int) -> InputError:
    """The 413 for a body above `max_bytes`."""
    return InputError(f"The body must be at most {max_bytes} bytes.", status=413, code="body_too_large")


def picture(kind: BodyKind, headers: Mapping[str, str], body: bytes, limits: RequestLimits) -> bytes:
    """The encoded picture that a body carries.

    Arguments:
        kind: what `body_kind` said of the headers.
        headers: the request's headers.
        body: the whole body.
        limits: what it may cost.

    Raises:
        InputError: 400 for an empty or malformed body, 413 for a picture above its limit.
    """
    if not body:
        raise InputError("The body must hold one picture. Received: an empty body", code="empty_body")
    if kind is BodyKind.RAW:
        return body
    image = _from_json(body) if kind is BodyKind.JSON else _from_form(headers.get("content-type", ""), body)
    if not image:
        raise InputError("The picture must not be empty.", code="empty_image")
    if len(image) > limits.max_image_bytes:
        raise too_large(limits.max_image_bytes)
    return image


def answer(label: str, confidence: float, probabilities: Mapping[str, float], model: ModelIdentity) -> bytes:
    """The JSON answer for one picture."""
    return json.dumps(
        {
            "label": label,
            "confidence": confidence,
            "probabilities": dict(probabilities),
            "model": model.to_dict(),
        },
        allow_nan=False,
        separators=(",", ":"),
    ).encode()


def error_body(code: str, message: str) -> bytes:
    """The JSON body of every answer that is not a success."""
    return json.dumps({"error": {"code": code, "message": message}}, separators=(",", ":")).encode()


def _from_json(body: bytes) -> bytes:
    if sum(body.count(mark) for mark in (b"{", b"[", b",")) > _MAX_JSON_MARKS:
        raise _bad_json("it has more members or nesting than that")
    try:
        value = json.loads(
            body.decode("utf-8"),
            object_pairs_hook=_object_without_duplicates,
            parse_constant=_refuse_constant,
            parse_float=_finite_float,
            parse_int=_short_int,
        )
    except UnicodeDecodeError:
        raise _bad_json("it is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise _bad_json(f"a syntax error at character {error.pos}") from None
    except RecursionError:
        raise _bad_json("it is nested too deeply") from None
    if not isinstance(value, dict):
        raise _bad_json(f"a JSON {_json_kind(value)}")
    if set(value) != {"image"}:
        raise _bad_json(f"members {', '.join(sorted(repr(k[:40]) for k in value)) or 'none'}")
    encoded = value["image"]
    if not isinstance(encoded, str):
        raise _bad_json(f"image is a JSON {_json_kind(encoded)}")
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise InputError("image must be base64 (RFC 4648, with padding, no line breaks).", code="bad_base64") from None


def _bad_json(received: str) -> InputError:
    message = f'The body must be the JSON object {{"image": "<base64>"}}. Received: {received}'
    return InputError(message, code="bad_json")


def _json_kind(value: object) -> str:
    kinds = ((type(None), "null"), (bool, "boolean"), (dict, "object"), (list, "array"), (str, "string"))
    return next((name for kind, name in kinds if isinstance(value, kind)), "number")


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _bad_json("a member twice")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise _bad_json(f"{name}, which JSON does not have")


def _finite_float(text: str) -> float:
    value = float(text) if len(text) <= _MAX_JSON_DIGITS * 2 else math.inf
    if not math.isfinite(value):
        raise _bad_json("a number out of range")
    return value


def _short_int(text: str) -> int:
    if len(text) > _MAX_JSON_DIGITS:
        raise _bad_json("a number out of range")
    return int(text)


def _from_form(content_type: str, body: bytes) -> bytes:
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import MultipartParser, parse_options_header

    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not 1 <= len(boundary) <= 70:  # RFC 2046, section 5.1.1
        raise _bad_form("no boundary of 1 to 70 characters in content-type")
    parts = _FormParts()
    try:
        parser = MultipartParser(boundary, parts.callbacks())  # type: ignore[arg-type]
        parser.write(body)
        parser.finalize()
    except FormParserError:
        raise _bad_form("a malformed form") from None
    if not parts.finished:
        raise _bad_form("a form that ends before its last boundary")
    names = [name for name, _ in parts.found]
    if names != [b"file"]:
        raise _bad_form(f"fields {', '.join(repr(n.decode('utf-8', 'replace')[:40]) for n in names) or 'none'}")
    return bytes(parts.found[0][1])


def _bad_form(received: str) -> InputError:
    return InputError(f"The form must have one field named file. Received: {received}", code="bad_form")


class _FormParts:
    """Collects a form's parts from the parser's callbacks as `(name, content)`."""

    def __init__(self) -> None:
        self.found: list[tuple[bytes, bytearray]] = []
        self.finished = False
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._disposition = b""

    def callbacks(self) -> dict[str, Any]:
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._header_name.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._header_value.extend(data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": lambda data, start, end: self.found[-1][1].extend(data[start:end]),
            "on_end": self._end,
        }

    def _begin(self) -> None:
        if len(self.found) >= _MAX_FORM_PARTS:
            raise _bad_form(f"more than {_MAX_FORM_PARTS} fields")
        self._disposition = b""

    def _end_header(self) -> None:
        if bytes(self._header_name).lower() == b"content-disposition":
            self._disposition = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def _end_headers(self) -> None:
        from python_multipart.multipart import parse_options_header

        name = parse_options_header(self._disposition)[1].get(b"name", b"")
        self.found.append((name, bytearray()))

    def _end(self) -> None:
        self.finished = True
