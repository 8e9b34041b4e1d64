"""What all protocols share: an `Answer`, the pictures a request carries, and who answers them.

A protocol is a module of pure functions. `parse(headers, body, limits, model)` turns one request into `Work`: the
pictures in it and how to write down their predictions. It knows neither a server nor an engine; what is wrong with a
request leaves it as an `InputError`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayml.errors import InputError
from rayml.predictor import Prediction
from serving.limits import RequestLimits

JSON_TYPE = "application/json"
BUNDLE_HEADER = "x-rayml-bundle"
"""Of an answer: the digest of the bundle that gave it."""
# curl sends this for `-d` unless told otherwise; TensorFlow Serving reads no type at all.
_CURL_TYPE = "application/x-www-form-urlencoded"


@dataclass(frozen=True)
class Answer:
    """One HTTP response.

    Arguments:
        body: its bytes.
        status: 200 to 599.
        headers: names in lower case; `content-type` and `content-length` come of themselves.
        content_type: exactly as sent.
    """

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = JSON_TYPE


@dataclass(frozen=True)
class Address:
    """A picture that is somewhere else: its URL as it was sent, not yet checked."""

    url: str


# An encoded picture, the address of one, or its pixels as uint8 (H, W, 3) of any H and W.
Source = bytes | Address | NDArray[np.uint8]


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


@dataclass(frozen=True)
class ModelFacts:
    """What a protocol has to know of a model to read requests for it and to describe it.

    Arguments:
        identity: which model it is.
        classes: its C classes, in the order of its logits.
        image_size_px: height and width of the pixels that its graph takes.
    """

    identity: ModelIdentity
    classes: tuple[str, ...]
    image_size_px: int


@dataclass(frozen=True)
class Variants:
    """Pictures to be classified beside the one that was sent, made from it.

    Arguments:
        count: how many.
        make: makes them from its pixels, uint8 (H, W, 3) as the model takes them.
    """

    count: int
    make: Callable[[NDArray[np.uint8]], Sequence[NDArray[np.uint8]]]


@dataclass(frozen=True)
class Work:
    """One request, read: what to look at and how to say what was seen.

    Arguments:
        sources: the pictures, at least one.
        render: the predictions of all sources and then of all variants, in their order, as the answer's body and
            further headers.
        variants: only beside a single source that is an encoded picture. Nobody sent them, so they are not in what is
            counted of predictions, and no shadow is shown them.
    """

    sources: tuple[Source, ...]
    render: Callable[[Sequence[Prediction]], Answer]
    variants: Variants | None = None

    @property
    def count(self) -> int:
        """How many pictures are classified, variants included."""
        return len(self.sources) + (0 if self.variants is None else self.variants.count)


def dump(value: object) -> bytes:
    """JSON as every answer has it: compact, UTF-8, without NaN.

    Raises:
        ValueError: a number that JSON does not have, which is a bug.
    """
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


def coded_error(error: InputError) -> bytes:
    """The body of an error on rayml's own routes."""
    return error_body(error.code, error.message)


def error_body(code: str, message: str) -> bytes:
    """The JSON body of every answer of rayml's own routes that is not a success."""
    return dump({"error": {"code": code, "message": message}})


def plain_error(error: InputError) -> bytes:
    """The body of an error on the TensorFlow Serving and Open Inference routes, whose clients expect a string."""
    return dump({"error": error.message})


def media_type(headers: Mapping[str, str]) -> str:
    """The body's declared type in lower case, without parameters (RFC 9110, section 8.3.1); "" without one.

    Raises:
        InputError: 415 for a compressed body.
    """
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise InputError(
            f"The body must not be compressed. Received: content-encoding {encoding[:40]!r}",
            status=415,
            code="unsupported_encoding",
        )
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def wrong_type(expected: Sequence[str], received: str) -> InputError:
    """The 415 for another media type."""
    return InputError(
        f"content-type must be one of {', '.join(expected)}. Received: {received[:80]!r}",
        status=415,
        code="unsupported_media_type",
    )


def check_lenient_json_type(headers: Mapping[str, str], *more: str) -> None:
    """Accept JSON under the types that clients of TensorFlow Serving and Open Inference send it as, or under none.

    Raises:
        InputError: 415 for another type or a compressed body.
    """
    received = media_type(headers)
    if received not in ("", JSON_TYPE, _CURL_TYPE, *more):
        raise wrong_type((JSON_TYPE, *more), received)


def check_count(count: int, limits: RequestLimits) -> None:
    """Hold the number of pictures in a request against the limit.

    Raises:
        InputError: 400 for none or too many.
    """
    if not 1 <= count <= limits.max_instances:
        raise InputError(
            f"A request must carry 1 to {limits.max_instances} pictures. Received: {count}", code="wrong_count"
        )


def check_picture(data: bytes, limits: RequestLimits) -> bytes:
    """An encoded picture of allowed length, unread.

    Raises:
        InputError: 400 when it is empty, 413 when it is too large.
    """
    if not data:
        raise InputError("The picture must not be empty.", code="empty_image")
    if len(data) > limits.max_image_bytes:
        raise too_large(limits.max_image_bytes)
    return data


def too_large(max_bytes: int) -> InputError:
    """The 413 for a body or picture above `max_bytes`."""
    return InputError(f"The body must be at most {max_bytes} bytes.", status=413, code="body_too_large")


def kind_of(value: Any) -> str:
    """What a JSON value is, in JSON's words."""
    kinds = ((type(None), "null"), (bool, "boolean"), (dict, "object"), (list, "array"), (str, "string"))
    return next((name for kind, name in kinds if isinstance(value, kind)), "number")
