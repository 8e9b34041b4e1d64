"""rayml's own protocol, without a server."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from rayml.errors import InputError
from serving.limits import RequestLimits
from serving.protocols import rayml as protocol
from serving.protocols.rayml import BodyKind, ModelIdentity

LIMITS = RequestLimits(max_image_bytes=1000)
MODEL = ModelIdentity(name="shirts", version="3", bundle="ab" * 32)


def _picture(kind: BodyKind, body: bytes, content_type: str = "") -> bytes:
    return protocol.picture(kind, {"content-type": content_type}, body, LIMITS)


def _refused(kind: BodyKind, body: bytes, content_type: str = "") -> tuple[int, str]:
    with pytest.raises(InputError) as caught:
        _picture(kind, body, content_type)
    return caught.value.status, caught.value.code


@pytest.mark.parametrize(
    ("content_type", "kind"),
    [
        ("image/jpeg", BodyKind.RAW),
        ("image/png", BodyKind.RAW),
        ("image/webp", BodyKind.RAW),
        ("application/octet-stream", BodyKind.RAW),
        ("IMAGE/Jpeg", BodyKind.RAW),
        (" image/png ; q=1", BodyKind.RAW),
        ("application/json", BodyKind.JSON),
        ("application/json; charset=utf-8", BodyKind.JSON),
        ("multipart/form-data; boundary=x", BodyKind.FORM),
    ],
)
def test_content_types_that_carry_a_picture(content_type: str, kind: BodyKind) -> None:
    assert protocol.body_kind({"content-type": content_type}) is kind


@pytest.mark.parametrize("content_type", ["text/plain", "image/gif", "image/*", "json", "", "application/jsonx"])
def test_other_content_types_are_refused(content_type: str) -> None:
    with pytest.raises(InputError) as caught:
        protocol.body_kind({"content-type": content_type})
    assert (caught.value.status, caught.value.code) == (415, "unsupported_media_type")


def test_no_content_type_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        protocol.body_kind({})
    assert caught.value.status == 415


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "deflate", "br", "identity, gzip"])
def test_compressed_bodies_are_refused(encoding: str) -> None:
    with pytest.raises(InputError) as caught:
        protocol.body_kind({"content-type": "image/png", "content-encoding": encoding})
    assert (caught.value.status, caught.value.code) == (415, "unsupported_encoding")


def test_identity_is_no_compression() -> None:
    assert protocol.body_kind({"content-type": "image/png", "content-encoding": "Identity"}) is BodyKind.RAW


@pytest.mark.parametrize("length", ["0", "999", "1000", "0001000"])
def test_declared_lengths_within_the_limit(length: str) -> None:
    protocol.check_declared_length({"content-length": length}, 1000)


@pytest.mark.parametrize(
    ("length", "status"),
    [("1001", 413), ("9" * 19, 413), ("9" * 1_000_000, 413), ("-1", 400), ("1e3", 400), ("٣", 400)],
)
def test_declared_lengths_that_are_refused(length: str, status: int) -> None:
    with pytest.raises(InputError) as caught:
        protocol.check_declared_length({"content-length": length}, 1000)
    assert caught.value.status == status


def test_an_absent_length_is_left_to_the_reading() -> None:
    protocol.check_declared_length({}, 1000)


def test_a_raw_body_is_the_picture() -> None:
    assert _picture(BodyKind.RAW, b"\xff\xd8abc") == b"\xff\xd8abc"


@pytest.mark.parametrize("kind", list(BodyKind))
def test_an_empty_body_is_refused(kind: BodyKind) -> None:
    assert _refused(kind, b"") == (400, "empty_body")


def test_json_carries_base64() -> None:
    body = json.dumps({"image": base64.b64encode(bytes(range(256))).decode()}).encode()
    assert _picture(BodyKind.JSON, body) == bytes(range(256))


def test_a_largest_picture_fits_into_a_largest_json_body() -> None:
    body = json.dumps({"image": base64.b64encode(b"x" * 1000).decode()}).encode()
    assert len(body) <= protocol.max_body_bytes(BodyKind.JSON, LIMITS)
    assert _picture(BodyKind.JSON, body) == b"x" * 1000


@pytest.mark.parametrize(
    "body",
    [
        b"null",
        b"[]",
        b'"text"',
        b"17",
        b"true",
        b"{",
        b"{}",
        b"not json",
        b'{"image": 1}',
        b'{"image": null}',
        b'{"image": {"b64": "eA=="}}',
        b'{"picture": "eA=="}',
        b'{"image": "eA==", "more": 1}',
        b'{"image": "eA==", "image": "eQ=="}',
        b'{"image": NaN}',
        b'{"image": Infinity}',
        b'{"image": -Infinity}',
        b'{"image": 1e400}',
        b'{"image": -1e400}',
        b'{"image": ' + b"9" * 1_000_000 + b"}",
        b'{"image": 0.' + b"9" * 1_000_000 + b"}",
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b"[" * 30 + b"]" * 30,
        b'{"image": "eA=="} {"image": "eA=="}',
        b'{"image": "\xff"}',
        '{"image": "eA=="}'.encode("utf-16"),
        b"\xef\xbb\xbf" + b'{"image": "eA=="}',
        b'{"image": "eA=="',
        b'{"image": "a\nb"}',
    ],
)
def test_hostile_json_is_refused(body: bytes) -> None:
    assert _refused(BodyKind.JSON, body) == (400, "bad_json")


@pytest.mark.parametrize("text", ["eA", "e A==", "eA==\\n", "ä", "data:image/png;base64,eA==", "e-_A", "=", "eA==eA=="])
def test_bad_base64_is_refused(text: str) -> None:
    assert _refused(BodyKind.JSON, f'{{"image": "{text}"}}'.encode()) == (400, "bad_base64")


def test_an_empty_picture_in_json_is_refused() -> None:
    assert _refused(BodyKind.JSON, b'{"image": ""}') == (400, "empty_image")


def test_a_picture_above_the_limit_in_json_is_refused() -> None:
    body = json.dumps({"image": base64.b64encode(b"x" * 1001).decode()}).encode()
    assert _refused(BodyKind.JSON, body) == (413, "body_too_large")


def test_messages_repeat_little_of_what_came() -> None:
    with pytest.raises(InputError) as caught:
        _picture(BodyKind.JSON, json.dumps({"k" * 100_000: 1}).encode())
    assert len(caught.value.message) < 300


def _form(*parts: tuple[str, bytes], boundary: str = "XX") -> tuple[bytes, str]:
    body = b"".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="a.png"\r\n'
        f"Content-Type: image/png\r\n\r\n".encode()
        + content
        + b"\r\n"
        for name, content in parts
    )
    return body + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


def test_a_form_carries_bytes_unchanged() -> None:
    content = bytes(range(256)) * 3 + b"\r\n--X\r\n\n"
    assert _picture(BodyKind.FORM, *_form(("file", content))) == content


@pytest.mark.parametrize(
    "parts", [(), (("other", b"x"),), (("file", b"x"), ("file", b"y")), (("file", b"x"), ("n", b"1"))]
)
def test_forms_without_exactly_one_file_are_refused(parts: tuple[tuple[str, bytes], ...]) -> None:
    assert _refused(BodyKind.FORM, *_form(*parts)) == (400, "bad_form")


def test_a_form_with_many_fields_is_refused() -> None:
    assert _refused(BodyKind.FORM, *_form(*[("file", b"x")] * 10_000)) == (400, "bad_form")


def test_a_form_with_an_empty_file_is_refused() -> None:
    assert _refused(BodyKind.FORM, *_form(("file", b""))) == (400, "empty_image")


def test_a_form_with_a_picture_above_the_limit_is_refused() -> None:
    assert _refused(BodyKind.FORM, *_form(("file", b"x" * 1001))) == (413, "body_too_large")


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"--XX\r\n", "multipart/form-data"),
        (b"--XX\r\n", "multipart/form-data; boundary="),
        (b"--XX\r\n", "multipart/form-data; boundary=" + "x" * 71),
        (b"garbage", "multipart/form-data; boundary=XX"),
        (_form(("file", b"x"))[0][:-10], "multipart/form-data; boundary=XX"),
        (b"--XX\r\n\r\nno header\r\n--XX--\r\n", "multipart/form-data; boundary=XX"),
    ],
)
def test_malformed_forms_are_refused(body: bytes, content_type: str) -> None:
    assert _refused(BodyKind.FORM, body, content_type) == (400, "bad_form")


def test_the_answer() -> None:
    answer: dict[str, Any] = json.loads(protocol.answer("hat", 0.75, {"hat": 0.75, "shoe": 0.25}, MODEL))
    assert answer == {
        "label": "hat",
        "confidence": 0.75,
        "probabilities": {"hat": 0.75, "shoe": 0.25},
        "model": {"name": "shirts", "version": "3", "bundle": "ab" * 32},
    }


def test_an_answer_that_is_no_number_is_a_bug_and_not_sent() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        protocol.answer("hat", float("nan"), {}, MODEL)


def test_the_error_body() -> None:
    assert json.loads(protocol.error_body("bad_json", 'say "please"')) == {
        "error": {"code": "bad_json", "message": 'say "please"'}
    }
