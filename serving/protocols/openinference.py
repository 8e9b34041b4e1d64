"""The Open Inference Protocol, version 2, over REST, with the binary tensor data extension.

Inputs, one of them a request: `image`, BYTES [N] (or [N, 1]), each an encoded picture, base64 where it stands in JSON
and as it is in binary data; or `pixels`, UINT8 [N, H, W, 3]. Outputs, all unless the request names some:
`probabilities` FP32 [N, C], `logits` FP32 [N, C], `label` BYTES [N]. Binary data follow the JSON, whose length the
header `inference-header-content-length` gives; each BYTES element there has its length before it, 4 bytes, little end
first (kserve.github.io/website, "Open Inference Protocol"; Triton, "Binary Tensor Data Extension").
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

from rayml.errors import InputError
from rayml.predictor import Prediction
from serving.limits import RequestLimits
from serving.protocols import base, pixels, strict_json
from serving.protocols.base import BUNDLE_HEADER, Answer, ModelFacts, Source, Work

HEADER_LENGTH = "inference-header-content-length"
_BINARY_TYPE = "application/octet-stream"
_EXPECTED = 'an inference request: {"inputs": [{"name", "shape", "datatype", "data"}]}'
_OUTPUTS = ("probabilities", "logits", "label")
_MAX_DIMENSION = 2**31 - 1
MAX_ID_CHARACTERS = 256
"""Of a request's `id`, which the answer repeats: what may be as long as a body would be held again until it is read."""


def server_metadata() -> Answer:
    """What `GET /v2` answers."""
    return Answer(base.dump({"name": "rayml", "version": version("rayml"), "extensions": ["binary_tensor_data"]}))


def live() -> Answer:
    """What `GET /v2/health/live` answers."""
    return Answer(base.dump({"live": True}))


def ready() -> Answer:
    """What `GET /v2/health/ready` answers."""
    return Answer(base.dump({"ready": True}))


def model_ready(model: ModelFacts) -> Answer:
    """What `GET /v2/models/NAME[/versions/V]/ready` answers."""
    return Answer(base.dump({"name": model.identity.name, "ready": True}))


def model_metadata(model: ModelFacts, versions: Sequence[ModelFacts]) -> Answer:
    """What `GET /v2/models/NAME[/versions/V]` answers."""
    count, size = len(model.classes), model.image_size_px
    value = {
        "name": model.identity.name,
        "versions": [facts.identity.version for facts in versions],
        "platform": "onnx",
        "inputs": [
            {"name": "image", "datatype": "BYTES", "shape": [-1]},
            {"name": "pixels", "datatype": "UINT8", "shape": [-1, -1, -1, 3]},
        ],
        "outputs": [
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, count]},
            {"name": "logits", "datatype": "FP32", "shape": [-1, count]},
            {"name": "label", "datatype": "BYTES", "shape": [-1]},
        ],
        "parameters": {"classes": list(model.classes), "image_size_px": size, "bundle": model.identity.bundle},
    }
    return Answer(base.dump(value))


def max_body_bytes(headers: Mapping[str, str], limits: RequestLimits) -> int:
    """The largest body, in bytes.

    Raises:
        InputError: 415 for a body that is declared as something else than JSON or binary data.
    """
    base.check_lenient_json_type(headers, _BINARY_TYPE)
    return limits.max_body_bytes


def memory_bytes(headers: Mapping[str, str], body: bytes, limits: RequestLimits) -> int:
    """The most memory that `parse` takes beside `body`.

    Raises:
        InputError: 400, the length of its JSON is not one.
    """
    text, binary = _split(headers, body)
    # The binary part is copied behind the JSON, into the tensor's part of it and into elements.
    return strict_json.memory_bytes(text, limits.max_json_values, limits.max_json_strings) + 3 * len(binary)


def parse(headers: Mapping[str, str], body: bytes, limits: RequestLimits, model: ModelFacts) -> Work:
    """The pictures of an `infer` request.

    Raises:
        InputError: 400 for a malformed body, a wrong name, shape or datatype; 413 for a picture above its limit.
    """
    text, binary = _split(headers, body)
    value = strict_json.parse_object(text, _EXPECTED, limits.max_json_values, limits.max_json_strings)
    tensor = _input(value.get("inputs"))
    data, rest = _data(tensor, binary)
    if rest:
        raise _wrong("the body must end with the last tensor's data", f"{len(rest)} bytes more")
    sources = _images(tensor, data, limits) if tensor.name == "image" else _pixels(tensor, data, limits)
    outputs = _wanted_outputs(value)
    identifier = value.get("id")
    if identifier is not None and not (isinstance(identifier, str) and len(identifier) <= MAX_ID_CHARACTERS):
        received = str(len(identifier)) if isinstance(identifier, str) else f"a JSON {base.kind_of(identifier)}"
        raise _wrong(f"id must be a string of at most {MAX_ID_CHARACTERS} characters", received)
    return Work(sources, lambda predictions: _render(predictions, outputs, identifier, model))


@dataclass(frozen=True)
class _Tensor:
    """An input as the request describes it; `data` is None where it lies in the binary part, `binary_size` long."""

    name: str
    shape: tuple[int, ...]
    data: list[Any] | None
    binary_size: int


def _split(headers: Mapping[str, str], body: bytes) -> tuple[bytes, bytes]:
    """The JSON and the binary data behind it."""
    declared = headers.get(HEADER_LENGTH)
    if declared is None:
        return body, b""
    if not (declared.isascii() and declared.isdigit() and len(declared) < 12) or int(declared) > len(body):
        raise _wrong(f"{HEADER_LENGTH} must be a number up to the body's length", declared[:20])
    return body[: int(declared)], body[int(declared) :]


def _input(inputs: Any) -> _Tensor:
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        received = f"{len(inputs)} of them" if isinstance(inputs, list) else f"a JSON {base.kind_of(inputs)}"
        raise _wrong("inputs must be a list of one tensor", received)
    tensor = inputs[0]
    name = tensor.get("name")
    if name not in ("image", "pixels"):
        raise _wrong("the input's name must be image or pixels", repr(str(name)[:40]))
    datatype = {"image": "BYTES", "pixels": "UINT8"}[name]
    if tensor.get("datatype") != datatype:
        raise _wrong(f"{name} must have the datatype {datatype}", repr(str(tensor.get("datatype"))[:40]))
    shape = tensor.get("shape")
    if not isinstance(shape, list) or not all(type(n) is int and 0 <= n <= _MAX_DIMENSION for n in shape):
        raise _wrong("shape must be a list of whole numbers from 0 to 2147483647", repr(shape)[:60])
    parameters = tensor.get("parameters", {})
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    data = tensor.get("data")
    if (size is None) == (data is None):
        raise _wrong("a tensor must have either data or the parameter binary_data_size", "both or neither")
    if size is not None and not (type(size) is int and 0 <= size <= _MAX_DIMENSION):
        raise _wrong("binary_data_size must be a number of bytes", repr(size)[:40])
    if data is not None and not isinstance(data, list):
        raise _wrong("data must be a list", f"a JSON {base.kind_of(data)}")
    return _Tensor(name, tuple(shape), data, 0 if size is None else size)


def _data(tensor: _Tensor, binary: bytes) -> tuple[bytes, bytes]:
    """The tensor's own part of the binary data, and what follows it."""
    if tensor.binary_size > len(binary):
        raise _wrong(
            "binary_data_size must lie within the body", f"{tensor.binary_size}, with {len(binary)} bytes there"
        )
    return binary[: tensor.binary_size], binary[tensor.binary_size :]


def _images(tensor: _Tensor, binary: bytes, limits: RequestLimits) -> tuple[Source, ...]:
    shape = tensor.shape
    if len(shape) not in (1, 2) or (len(shape) == 2 and shape[1] != 1):
        raise _wrong("image must have the shape [N]", str(list(shape))[:60])
    count = shape[0]
    base.check_count(count, limits)
    if tensor.data is None:
        elements = _elements(binary, count)
        _check_elements(len(elements), count)
    else:
        texts = [text for item in tensor.data for text in (item if isinstance(item, list) else [item])]
        if not all(isinstance(text, str) for text in texts):
            raise _wrong("image must hold base64 in strings", "something else")
        _check_elements(len(texts), count)
        elements = [strict_json.from_base64(text, "image") for text in texts]
    return tuple(base.check_picture(data, limits) for data in elements)


def _check_elements(found: int, count: int) -> None:
    if found != count:
        raise _wrong(f"image must hold {count} elements, as its shape says", str(found))


def _elements(binary: bytes, count: int) -> list[bytes]:
    """BYTES elements: each behind its length."""
    found: list[bytes] = []
    position = 0
    while position < len(binary) and len(found) <= count:
        if position + 4 > len(binary):
            raise _wrong("each element must have its length before it", "half a length")
        (length,) = struct.unpack_from("<I", binary, position)
        position += 4
        if position + length > len(binary):
            raise _wrong("each element must lie within its tensor", f"one of {length} bytes")
        found.append(binary[position : position + length])
        position += length
    return found


def _pixels(tensor: _Tensor, binary: bytes, limits: RequestLimits) -> tuple[Source, ...]:
    shape = tensor.shape
    if len(shape) != 4 or shape[3] != 3 or 0 in shape[1:]:
        raise _wrong("pixels must have the shape [N, H, W, 3]", str(list(shape))[:60])
    base.check_count(shape[0], limits)
    pixels.check_pixels(shape[1], shape[2], limits)
    size = math.prod(shape)
    if tensor.data is None:
        if len(binary) != size:
            raise _wrong(f"pixels must have {size} bytes, as their shape says", str(len(binary)))
        numbers = np.frombuffer(binary, np.uint8)
    else:
        try:
            given = pixels.as_array(tensor.data, "pixels")
        except ValueError:
            raise _wrong("data must be numbers, flat or nested as the shape", "lists of unequal lengths") from None
        if given.size != size or given.shape not in ((size,), shape):
            raise _wrong(f"pixels must have {size} numbers, as their shape says", f"shape {list(given.shape)}")
        numbers = pixels.as_bytes(given, "pixels")
    return tuple(numbers.reshape(shape))


def _wanted_outputs(value: dict[str, Any]) -> dict[str, bool]:
    """The outputs to send, in order, and whether each is sent as binary data."""
    parameters = value.get("parameters", {})
    binary = isinstance(parameters, dict) and parameters.get("binary_data_output") is True
    requested = value.get("outputs")
    if requested is None or requested == []:
        return dict.fromkeys(_OUTPUTS, binary)
    if not isinstance(requested, list) or not all(isinstance(output, dict) for output in requested):
        raise _wrong("outputs must be a list of objects", f"a JSON {base.kind_of(requested)}")
    wanted: dict[str, bool] = {}
    for output in requested:
        name = output.get("name")
        if name not in _OUTPUTS or name in wanted:
            raise _wrong(f"outputs must be among {', '.join(_OUTPUTS)}, each once", repr(str(name)[:40]))
        own = output.get("parameters", {})
        own_choice = own.get("binary_data") if isinstance(own, dict) else None
        wanted[name] = own_choice if isinstance(own_choice, bool) else binary
    return wanted


def _render(
    predictions: Sequence[Prediction], wanted: dict[str, bool], identifier: str | None, model: ModelFacts
) -> Answer:
    outputs: list[dict[str, Any]] = []
    behind: list[bytes] = []
    for name, as_binary in wanted.items():
        output: dict[str, Any] = {"name": name}
        if name == "label":
            labels = [prediction.label for prediction in predictions]
            output |= {"datatype": "BYTES", "shape": [len(labels)]}
            encoded = [label.encode() for label in labels]
            binary = b"".join(struct.pack("<I", len(label)) + label for label in encoded)
            plain: list[Any] = labels
        else:
            rows = [p.logits if name == "logits" else tuple(p.probabilities.values()) for p in predictions]
            output |= {"datatype": "FP32", "shape": [len(rows), len(model.classes)]}
            binary = np.asarray(rows, "<f4").tobytes() if as_binary else b""
            plain = [number for row in rows for number in row]
        if as_binary:
            output["parameters"] = {"binary_data_size": len(binary)}
            behind.append(binary)
        else:
            output["data"] = plain
        outputs.append(output)
    identity = model.identity
    value: dict[str, Any] = {"model_name": identity.name, "model_version": identity.version}
    if identifier is not None:
        value["id"] = identifier
    text = base.dump(value | {"outputs": outputs})
    headers = {BUNDLE_HEADER: identity.bundle}
    if not behind:
        return Answer(text, headers=headers)
    headers[HEADER_LENGTH] = str(len(text))
    return Answer(b"".join((text, *behind)), headers=headers, content_type=_BINARY_TYPE)


def _wrong(expected: str, received: str) -> InputError:
    return InputError(f"{expected[0].upper()}{expected[1:]}. Received: {received}", code="bad_tensor")
