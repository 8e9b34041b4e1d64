"""rayml's own protocol: `POST /predict` takes one picture, `POST /predict/batch` many, `POST /lesson` an address.

A body is the picture itself (`image/jpeg`, `image/png`, `image/webp`, `application/octet-stream`: its bytes decide
what it is, not its declared type), a form (`multipart/form-data`, RFC 7578) with one field `file`, or a JSON object
`{"image": "<base64>"}` or `{"url": "https://..."}`. A batch is a form with several fields `file`, or
`{"images": ["<base64>" or {"image": ...} or {"url": ...}, ...]}`. The course's clients send `{"url": ...}` to `/lesson`
and read a flat object of scores, which are logits there as in the course.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rayml.errors import InputError
from rayml.predictor import Prediction
from serving.limits import RequestLimits
from serving.protocols import base, form, strict_json
from serving.protocols.base import BUNDLE_HEADER, JSON_TYPE, Address, Answer, ModelFacts, ModelIdentity, Source, Work

RAW_TYPES = ("image/jpeg", "image/png", "image/webp", "application/octet-stream")
FORM_TYPE = "multipart/form-data"

# The JSON of one picture has one member, and base64 holds none of JSON's marks: more than a few are a bomb.
_MAX_VALUES_OF_ONE = 32
_MAX_VALUES_OF_EACH = 8  # Of many.
_ONE = 'the JSON object {"image": "<base64>"} or {"url": "<address>"}'
_MANY = 'the JSON object {"images": [<base64>, {"url": <address>}, ...]}'
_LESSON = 'the JSON object {"url": "<address>"}'


def body_type(headers: Mapping[str, str]) -> str:
    """How the body that these headers announce carries its picture: one of `RAW_TYPES`, `FORM_TYPE` or `JSON_TYPE`.

    Arguments:
        headers: the request's headers, names in lower case (or a mapping that ignores case).

    Raises:
        InputError: 415 for a missing or other content type, or a compressed body.
    """
    received = base.media_type(headers)
    if received not in (*RAW_TYPES, FORM_TYPE, JSON_TYPE):
        raise base.wrong_type((*RAW_TYPES, FORM_TYPE, JSON_TYPE), received)
    return received


def max_body_bytes(headers: Mapping[str, str], limits: RequestLimits) -> int:
    """The largest body that `/predict` reads under these headers, in bytes.

    Raises:
        InputError: 415, see `body_type`.
    """
    return limits.max_image_bytes if body_type(headers) in RAW_TYPES else limits.max_body_bytes


def memory_bytes(headers: Mapping[str, str], body: bytes, _limits: RequestLimits) -> int:
    """The most memory that `parse` and `parse_lesson` take beside `body`."""
    return _memory_bytes(headers, body, _MAX_VALUES_OF_ONE)


def parse(headers: Mapping[str, str], body: bytes, limits: RequestLimits, model: ModelFacts) -> Work:
    """The picture of a `/predict` request.

    Raises:
        InputError: 400 for an empty or malformed body, 413 for a picture above its limit, 415 as `body_type`.
    """
    kind = body_type(headers)
    if not body:
        raise InputError("The body must hold one picture. Received: an empty body", code="empty_body")
    source: Source
    if kind == JSON_TYPE:
        source = _one(strict_json.parse_object(body, _ONE, _MAX_VALUES_OF_ONE), _ONE, limits)
    elif kind == FORM_TYPE:
        source = base.check_picture(form.one_file(headers.get("content-type", ""), body), limits)
    else:
        source = body
    return Work((source,), lambda predictions: _answer(to_dict(predictions[0], model.identity), model.identity))


def max_batch_bytes(headers: Mapping[str, str], limits: RequestLimits) -> int:
    """The largest body that `/predict/batch` and `/lesson` read, in bytes.

    Raises:
        InputError: 415 for a body that is neither JSON nor a form.
    """
    received = base.media_type(headers)
    if received not in (FORM_TYPE, JSON_TYPE):
        raise base.wrong_type((FORM_TYPE, JSON_TYPE), received)
    return limits.max_body_bytes


def batch_memory_bytes(headers: Mapping[str, str], body: bytes, limits: RequestLimits) -> int:
    """The most memory that `parse_batch` takes beside `body`."""
    return _memory_bytes(headers, body, _MAX_VALUES_OF_EACH * limits.max_instances)


def parse_batch(headers: Mapping[str, str], body: bytes, limits: RequestLimits, model: ModelFacts) -> Work:
    """The pictures of a `/predict/batch` request.

    Raises:
        InputError: 400 for a malformed body, no or too many pictures, 413 for a picture above its limit, 415.
    """
    sources: tuple[Source, ...]
    if base.media_type(headers) == FORM_TYPE:
        files = form.all_files(headers.get("content-type", ""), body, limits.max_instances)
        sources = tuple(base.check_picture(data, limits) for data in files)
    else:
        value = strict_json.parse_object(body, _MANY, _MAX_VALUES_OF_EACH * limits.max_instances)
        strict_json.only_members(value, ("images",), _MANY)
        images = value.get("images")
        if not isinstance(images, list):
            raise strict_json.bad_json(_MANY, f"images is a JSON {base.kind_of(images)}")
        base.check_count(len(images), limits)
        sources = tuple(_one({"image": item} if isinstance(item, str) else item, _MANY, limits) for item in images)
    base.check_count(len(sources), limits)

    def render(predictions: Sequence[Prediction]) -> Answer:
        # The model stands once for all of them.
        items = [to_dict(prediction, None) for prediction in predictions]
        return _answer({"predictions": items, "model": model.identity.to_dict()}, model.identity)

    return Work(sources, render)


def parse_lesson(headers: Mapping[str, str], body: bytes, limits: RequestLimits, model: ModelFacts) -> Work:
    """The address in a `/lesson` request; the answer is a flat object of each class's logit.

    Raises:
        InputError: 400 for another body, 415 for one that is not JSON.
    """
    if base.media_type(headers) != JSON_TYPE:
        raise base.wrong_type((JSON_TYPE,), base.media_type(headers))
    value = strict_json.parse_object(body, _LESSON, _MAX_VALUES_OF_ONE)
    strict_json.only_members(value, ("url",), _LESSON)
    source = _one(value, _LESSON, limits)

    def render(predictions: Sequence[Prediction]) -> Answer:
        return _answer(dict(zip(model.classes, predictions[0].logits, strict=True)), model.identity)

    return Work((source,), render)


def to_dict(prediction: Prediction, model: ModelIdentity | None) -> dict[str, Any]:
    """One prediction as `/predict` answers it, or as a member of a batch without `model`."""
    answer: dict[str, Any] = {
        "label": prediction.label,
        "confidence": prediction.confidence,
        "probabilities": prediction.probabilities,
    }
    return answer if model is None else answer | {"model": model.to_dict()}


def _memory_bytes(headers: Mapping[str, str], body: bytes, max_values: int) -> int:
    kind = base.media_type(headers)
    if kind == JSON_TYPE:
        return strict_json.memory_bytes(body, max_values)
    return len(body) if kind == FORM_TYPE else 0  # The files of a form are copied out of it.


def _answer(value: dict[str, Any], model: ModelIdentity) -> Answer:
    return Answer(base.dump(value), headers={BUNDLE_HEADER: model.bundle})


def _one(value: Any, expected: str, limits: RequestLimits) -> Source:
    """The picture that `{"image": ...}` or `{"url": ...}` stands for."""
    if not isinstance(value, dict):
        raise strict_json.bad_json(expected, f"a JSON {base.kind_of(value)} for a picture")
    if len(value) != 1 or not value.keys() <= {"image", "url"}:
        raise strict_json.bad_json(expected, f"members {', '.join(sorted(repr(k[:40]) for k in value)[:5]) or 'none'}")
    ((name, text),) = value.items()
    if not isinstance(text, str):
        raise strict_json.bad_json(expected, f"{name} is a JSON {base.kind_of(text)}")
    if name == "url":
        return Address(text)
    return base.check_picture(strict_json.from_base64(text, "image"), limits)
