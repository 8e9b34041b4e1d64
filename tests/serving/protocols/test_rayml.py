"""rayml's own protocol, without a server."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any

import pytest

from rayml.errors import InputError
from serving.limits import RequestLimits
from serving.protocols import rayml as protocol
from serving.protocols.base import Address
from tests.serving.protocols.facts import CLASSES, FACTS, IDENTITY, PREDICTIONS

LIMITS = RequestLimits(max_image_bytes=1000, max_instances=3)
RAW, JSON = "image/png", "application/json"


def _picture(content_type: str, body: bytes) -> Any:
    """The picture in a body."""
    (source,) = protocol.parse({"content-type": content_type}, body, LIMITS, FACTS).sources
    return source


def _refused(content_type: str, body: bytes) -> tuple[int, str]:
    with pytest.raises(InputError) as caught:
        _picture(content_type, body)
    return caught.value.status, caught.value.code


@pytest.mark.parametrize(
    ("content_type", "kind"),
    [
        ("image/jpeg", "raw"),
        ("image/png", "raw"),
        ("image/webp", "raw"),
        ("application/octet-stream", "raw"),
        ("IMAGE/Jpeg", "raw"),
        (" image/png ; q=1", "raw"),
        ("application/json", JSON),
        ("application/json; charset=utf-8", JSON),
        ("multipart/form-data; boundary=x", protocol.FORM_TYPE),
    ],
)
def test_content_types_that_carry_a_picture(content_type: str, kind: str) -> None:
    found = protocol.body_type({"content-type": content_type})
    assert found == kind or (kind == "raw" and found in protocol.RAW_TYPES)


@pytest.mark.parametrize("content_type", ["text/plain", "image/gif", "image/*", "json", "", "application/jsonx"])
def test_other_content_types_are_refused(content_type: str) -> None:
    with pytest.raises(InputError) as caught:
        protocol.body_type({"content-type": content_type})
    assert (caught.value.status, caught.value.code) == (415, "unsupported_media_type")


def test_no_content_type_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        protocol.body_type({})
    assert caught.value.status == 415


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "deflate", "br", "identity, gzip"])
def test_compressed_bodies_are_refused(encoding: str) -> None:
    with pytest.raises(InputError) as caught:
        protocol.body_type({"content-type": "image/png", "content-encoding": encoding})
    assert (caught.value.status, caught.value.code) == (415, "unsupported_encoding")


def test_identity_is_no_compression() -> None:
    assert protocol.body_type({"content-type": "image/png", "content-encoding": "Identity"}) == "image/png"


def test_a_raw_body_is_the_picture() -> None:
    assert _picture(RAW, b"\xff\xd8abc") == b"\xff\xd8abc"


@pytest.mark.parametrize("kind", [RAW, JSON, "multipart/form-data; boundary=X"])
def test_an_empty_body_is_refused(kind: str) -> None:
    assert _refused(kind, b"") == (400, "empty_body")


def test_json_carries_base64() -> None:
    body = json.dumps({"image": base64.b64encode(bytes(range(256))).decode()}).encode()
    assert _picture(JSON, body) == bytes(range(256))


def test_a_largest_picture_fits_into_a_largest_json_body() -> None:
    body = json.dumps({"image": base64.b64encode(b"x" * 1000).decode()}).encode()
    assert len(body) <= protocol.max_body_bytes({"content-type": JSON}, LIMITS)
    assert _picture(JSON, body) == b"x" * 1000


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
        b'{"url": 7}',
        b'{"url": "https://a/b.png", "image": "eA=="}',
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
    assert _refused(JSON, body) == (400, "bad_json")


@pytest.mark.parametrize("text", ["eA", "e A==", "eA==\\n", "ä", "data:image/png;base64,eA==", "e-_A", "=", "eA==eA=="])
def test_bad_base64_is_refused(text: str) -> None:
    assert _refused(JSON, f'{{"image": "{text}"}}'.encode()) == (400, "bad_base64")


def test_an_empty_picture_in_json_is_refused() -> None:
    assert _refused(JSON, b'{"image": ""}') == (400, "empty_image")


def test_a_picture_above_the_limit_in_json_is_refused() -> None:
    body = json.dumps({"image": base64.b64encode(b"x" * 1001).decode()}).encode()
    assert _refused(JSON, body) == (413, "body_too_large")


def test_messages_repeat_little_of_what_came() -> None:
    with pytest.raises(InputError) as caught:
        _picture(JSON, json.dumps({"k" * 100_000: 1}).encode())
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


def _form_picture(body: bytes, content_type: str) -> Any:
    return _picture(content_type, body)


def _form_refused(body: bytes, content_type: str) -> tuple[int, str]:
    return _refused(content_type, body)


def test_a_form_carries_bytes_unchanged() -> None:
    content = bytes(range(256)) * 3 + b"\r\n--X\r\n\n"
    assert _form_picture(*_form(("file", content))) == content


@pytest.mark.parametrize(
    "parts", [(), (("other", b"x"),), (("file", b"x"), ("file", b"y")), (("file", b"x"), ("n", b"1"))]
)
def test_forms_without_exactly_one_file_are_refused(parts: tuple[tuple[str, bytes], ...]) -> None:
    assert _form_refused(*_form(*parts)) == (400, "bad_form")


def test_a_form_with_many_fields_is_refused() -> None:
    assert _form_refused(*_form(*[("file", b"x")] * 10_000)) == (400, "bad_form")


def test_a_form_with_an_empty_file_is_refused() -> None:
    assert _form_refused(*_form(("file", b""))) == (400, "empty_image")


def test_a_form_with_a_picture_above_the_limit_is_refused() -> None:
    assert _form_refused(*_form(("file", b"x" * 1001))) == (413, "body_too_large")


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
    assert _form_refused(body, content_type) == (400, "bad_form")


def test_json_carries_an_address_unread() -> None:
    assert _picture(JSON, b'{"url": "file:///etc/passwd"}') == Address("file:///etc/passwd")


def test_the_answer() -> None:
    work = protocol.parse({"content-type": RAW}, b"x", LIMITS, FACTS)
    answer = work.render(PREDICTIONS[:1])
    assert (answer.status, answer.content_type) == (200, "application/json")
    assert answer.headers == {"x-rayml-bundle": IDENTITY.bundle}
    assert json.loads(answer.body) == {
        "label": "hat",
        "confidence": 0.75,
        "probabilities": {"hat": 0.75, "shoe": 0.25},
        "model": {"name": "shirts", "version": "3", "bundle": "ab" * 32},
    }


def test_an_answer_that_is_no_number_is_a_bug_and_not_sent() -> None:
    broken = replace(PREDICTIONS[0], confidence=float("nan"))
    with pytest.raises(ValueError, match="JSON compliant"):
        protocol.parse({"content-type": RAW}, b"x", LIMITS, FACTS).render([broken])


def _batch(value: object) -> tuple[Any, ...]:
    return protocol.parse_batch({"content-type": JSON}, json.dumps(value).encode(), LIMITS, FACTS).sources


def test_a_batch_in_json() -> None:
    images = ["eA==", {"image": "eQ=="}, {"url": "https://a/b"}]
    assert _batch({"images": images}) == (b"x", b"y", Address("https://a/b"))


def test_a_batch_in_a_form() -> None:
    body, content_type = _form(("file", b"x"), ("file", b"y"))
    assert protocol.parse_batch({"content-type": content_type}, body, LIMITS, FACTS).sources == (b"x", b"y")


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ({"images": []}, "wrong_count"),
        ({"images": ["eA=="] * 4}, "wrong_count"),
        ({"images": "eA=="}, "bad_json"),
        ({"images": [7]}, "bad_json"),
        ({"images": [["eA=="]]}, "bad_json"),
        ({"image": "eA=="}, "bad_json"),
        ({"images": ["?"]}, "bad_base64"),
        ({"images": [""]}, "empty_image"),
        ({"images": ["eA=="] * 10_000}, "bad_json"),
    ],
)
def test_batches_that_are_refused(value: object, code: str) -> None:
    with pytest.raises(InputError) as caught:
        _batch(value)
    assert (caught.value.status, caught.value.code) == (400, code)


def test_the_answer_to_a_batch_names_the_model_once() -> None:
    body, content_type = _form(("file", b"x"), ("file", b"y"))
    work = protocol.parse_batch({"content-type": content_type}, body, LIMITS, FACTS)
    answer = json.loads(work.render(PREDICTIONS).body)
    assert [item["label"] for item in answer["predictions"]] == ["hat", "shoe"]
    assert set(answer["predictions"][0]) == {"label", "confidence", "probabilities"}
    assert answer["model"] == IDENTITY.to_dict()


def test_the_lesson_answers_flat_logits() -> None:
    work = protocol.parse_lesson({"content-type": JSON}, b'{"url": "https://a/b.jpg"}', LIMITS, FACTS)
    assert work.sources == (Address("https://a/b.jpg"),)
    answer = json.loads(work.render(PREDICTIONS[:1]).body)
    assert answer == dict(zip(CLASSES, PREDICTIONS[0].logits, strict=True))


@pytest.mark.parametrize("body", [b'{"image": "eA=="}', b"{}", b'{"url": 1}', b'["https://a"]'])
def test_other_bodies_are_no_lesson(body: bytes) -> None:
    with pytest.raises(InputError) as caught:
        protocol.parse_lesson({"content-type": JSON}, body, LIMITS, FACTS)
    assert (caught.value.status, caught.value.code) == (400, "bad_json")
