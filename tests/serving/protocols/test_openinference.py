"""The Open Inference Protocol, without a server."""

from __future__ import annotations

import json
import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest

from rayml.errors import InputError
from serving.limits import RequestLimits
from serving.protocols import openinference as protocol
from tests.serving.protocols.facts import FACTS, IDENTITY, PREDICTIONS

LIMITS = RequestLimits(max_image_bytes=1000, max_instances=3, max_pixels=100)
PIXELS = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)


def _image(**changes: Any) -> dict[str, Any]:
    tensor = {"name": "image", "shape": [2], "datatype": "BYTES", "data": ["eA==", "eQ=="]}
    return {name: value for name, value in (tensor | changes).items() if value is not ...}


def _pixels(**changes: Any) -> dict[str, Any]:
    tensor = {"name": "pixels", "shape": [2, 2, 2, 3], "datatype": "UINT8", "data": PIXELS.ravel().tolist()}
    return {name: value for name, value in (tensor | changes).items() if value is not ...}


def _parse(value: object, binary: bytes = b"", length: str | None = None) -> Any:
    text = json.dumps(value).encode()
    headers = {}
    if binary or length is not None:
        headers[protocol.HEADER_LENGTH] = str(len(text)) if length is None else length
    return protocol.parse(headers, text + binary, LIMITS, FACTS)


def _elements(*data: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(item)) + item for item in data)


def _as_binary(tensor: dict[str, Any], data: bytes, size: Any = None) -> dict[str, Any]:
    del tensor["data"]
    return tensor | {"parameters": {"binary_data_size": len(data) if size is None else size}}


def test_pictures_in_json() -> None:
    assert _parse({"inputs": [_image()]}).sources == (b"x", b"y")
    assert _parse({"inputs": [_image(shape=[2, 1], data=[["eA=="], ["eQ=="]])]}).sources == (b"x", b"y")


def test_pictures_in_binary() -> None:
    data = _elements(b"\xff\x00", b"y")
    assert _parse({"inputs": [_as_binary(_image(), data)]}, data).sources == (b"\xff\x00", b"y")


@pytest.mark.parametrize("data", [PIXELS.ravel().tolist(), PIXELS.tolist()])
def test_pixels_in_json_flat_or_nested(data: list[Any]) -> None:
    first, second = _parse({"inputs": [_pixels(data=data)]}).sources
    assert np.array_equal(np.stack([first, second]), PIXELS) and first.dtype == np.uint8


def test_pixels_in_binary() -> None:
    data = PIXELS.tobytes()
    first, second = _parse({"inputs": [_as_binary(_pixels(), data)]}, data).sources
    assert np.array_equal(np.stack([first, second]), PIXELS)


def test_the_answer_has_all_outputs_in_json() -> None:
    answer = _parse({"id": "42", "inputs": [_image()]}).render(PREDICTIONS)
    assert answer.content_type == "application/json"
    assert json.loads(answer.body) == {
        "model_name": "shirts",
        "model_version": "3",
        "id": "42",
        "outputs": [
            {"name": "probabilities", "datatype": "FP32", "shape": [2, 2], "data": [0.75, 0.25, 0.125, 0.875]},
            {"name": "logits", "datatype": "FP32", "shape": [2, 2], "data": [2.5, -7.0, -3.5, 9.0]},
            {"name": "label", "datatype": "BYTES", "shape": [2], "data": ["hat", "shoe"]},
        ],
    }


def test_chosen_outputs_in_binary() -> None:
    outputs = [
        {"name": "label", "parameters": {"binary_data": True}},
        {"name": "logits", "parameters": {"binary_data": False}},
        {"name": "probabilities"},
    ]
    request = {"inputs": [_image()], "outputs": outputs, "parameters": {"binary_data_output": True}}
    answer = _parse(request).render(PREDICTIONS)
    assert answer.content_type == "application/octet-stream"
    length = int(answer.headers[protocol.HEADER_LENGTH])
    label, logits, probabilities = json.loads(answer.body[:length])["outputs"]
    binary = answer.body[length:]
    assert logits["data"] == [2.5, -7.0, -3.5, 9.0]
    size = label["parameters"]["binary_data_size"]
    assert binary[:size] == _elements(b"hat", b"shoe")
    assert probabilities["parameters"]["binary_data_size"] == 16
    assert np.frombuffer(binary[size:], "<f4").tolist() == [0.75, 0.25, 0.125, 0.875]


@pytest.mark.parametrize(
    "tensor",
    [
        _image(name="other"),
        _image(name=7),
        _image(datatype="FP32"),
        _image(datatype=...),
        _image(shape=...),
        _image(shape=[3]),
        _image(shape=[1]),
        _image(shape=[2, 2]),
        _image(shape=[-2]),
        _image(shape=[2**63]),
        _image(shape=[2.0]),
        _image(shape=[True]),
        _image(shape="2"),
        _image(data=...),
        _image(data="eA=="),
        _image(data=[1, 2]),
        _image(parameters={"binary_data_size": 4}),
        _image(shape=[1] * 1000),
        _pixels(shape=[1] * 1000),
        _pixels(shape=[2, 2, 3, 2]),
        _pixels(shape=[24]),
        _pixels(shape=[1, 2, 2, 3]),
        _pixels(shape=[2, 0, 2, 3]),
        _pixels(data=[1, 2]),
        _pixels(data=[[1], [2, 3]]),
    ],
)
def test_tensors_that_are_refused(tensor: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        _parse({"inputs": [tensor]})
    assert (caught.value.status, caught.value.code) == (400, "bad_tensor")
    assert len(caught.value.message) < 200


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ({}, "bad_tensor"),
        ({"inputs": []}, "bad_tensor"),
        ({"inputs": [_image(), _image()]}, "bad_tensor"),
        ({"inputs": [7]}, "bad_tensor"),
        ({"inputs": [_image()], "outputs": [{"name": "other"}]}, "bad_tensor"),
        ({"inputs": [_image()], "outputs": [{"name": "label"}, {"name": "label"}]}, "bad_tensor"),
        ({"inputs": [_image()], "outputs": ["label"]}, "bad_tensor"),
        ({"inputs": [_image()], "id": 7}, "bad_tensor"),
        ({"inputs": [_image()], "id": "é" * 257}, "bad_tensor"),
        ({"inputs": [_image(shape=[0], data=[])]}, "wrong_count"),
        ({"inputs": [_image(shape=[100], data=["eA=="] * 100)]}, "wrong_count"),
        ({"inputs": [_image(shape=[10_000], data=["eA=="] * 10_000)]}, "bad_json"),
        ({"inputs": [_image(data=["?", "eA=="])]}, "bad_base64"),
        ({"inputs": [_image(data=["", "eA=="])]}, "empty_image"),
        ({"inputs": [_pixels(data=[256] * 24)]}, "wrong_pixels"),
        ({"inputs": [_pixels(data=["1"] * 24)]}, "wrong_pixels"),
        ([], "bad_json"),
    ],
)
def test_requests_that_are_refused(value: object, code: str) -> None:
    with pytest.raises(InputError) as caught:
        _parse(value)
    assert (caught.value.status, caught.value.code) == (400, code)


def test_an_identifier_at_its_limit_is_repeated() -> None:
    answer = _parse({"inputs": [_image()], "id": "é" * 256}).render(PREDICTIONS)
    assert json.loads(answer.body)["id"] == "é" * 256


def test_a_long_string_among_short_ones_takes_no_memory_for_each() -> None:
    request = {"inputs": [_pixels(data=["a" * 100_000, *["b"] * 250])]}
    tracemalloc.start()
    try:
        with pytest.raises(InputError) as caught:
            _parse(request)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (caught.value.status, caught.value.code) == (400, "wrong_pixels")
    assert peak < 2_000_000


@pytest.mark.parametrize(
    ("data", "size", "length"),
    [
        (_elements(b"x"), None, None),  # One element where the shape says two.
        (_elements(b"x", b"y", b"z"), None, None),
        (_elements(b"x", b"y")[:-1], None, None),
        (struct.pack("<I", 2**32 - 1) + b"xxxx", None, None),
        (b"\x01\x00", None, None),
        (_elements(b"x", b"y"), 9, None),
        (_elements(b"x", b"y"), 11, None),
        (_elements(b"x", b"y"), -1, None),
        (_elements(b"x", b"y"), 1.5, None),
        (_elements(b"x", b"y"), None, "100000"),
        (_elements(b"x", b"y"), None, "-1"),
        (_elements(b"x", b"y"), None, "9" * 100_000),
        (_elements(b"x", b"y"), None, "٣"),
    ],
)
def test_binary_data_that_are_refused(data: bytes, size: Any, length: str | None) -> None:
    with pytest.raises(InputError) as caught:
        _parse({"inputs": [_as_binary(_image(), data, size)]}, data, length)
    assert (caught.value.status, caught.value.code) == (400, "bad_tensor")


def test_too_large_a_picture_is_413() -> None:
    for tensor in (_image(shape=[1], data=["A" * 2000]), _pixels(shape=[1, 11, 10, 3], data=[0] * 330)):
        with pytest.raises(InputError) as caught:
            _parse({"inputs": [tensor]})
        assert caught.value.status == 413


@pytest.mark.parametrize("shape", [(1, 1, 1_000_001, 3), (1, 1_000_001, 1, 3)])
def test_too_long_a_side_is_413(shape: tuple[int, ...]) -> None:
    data = bytes(3 * 1_000_001)
    text = json.dumps({"inputs": [_as_binary(_pixels(shape=list(shape)), data)]}).encode()
    with pytest.raises(InputError, match="sides must be at most 1000000 pixels") as caught:
        protocol.parse({protocol.HEADER_LENGTH: str(len(text))}, text + data, RequestLimits(), FACTS)
    assert (caught.value.status, caught.value.code) == (413, "image_too_large")


def test_what_is_said_of_server_and_model() -> None:
    assert json.loads(protocol.server_metadata().body)["extensions"] == ["binary_tensor_data"]
    assert json.loads(protocol.live().body) == {"live": True}
    assert json.loads(protocol.ready().body) == {"ready": True}
    assert json.loads(protocol.model_ready(FACTS).body) == {"name": "shirts", "ready": True}
    model = json.loads(protocol.model_metadata(FACTS, [FACTS]).body)
    assert (model["name"], model["versions"]) == ("shirts", [IDENTITY.version])
    assert {tensor["name"]: tensor["shape"] for tensor in model["inputs"] + model["outputs"]} == {
        "image": [-1],
        "pixels": [-1, -1, -1, 3],
        "probabilities": [-1, 2],
        "logits": [-1, 2],
        "label": [-1],
    }
