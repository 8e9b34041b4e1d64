"""TensorFlow Serving's REST API, without a server."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import numpy as np
import pytest

from rayml.errors import InputError
from serving.limits import RequestLimits
from serving.protocols import tfserving
from serving.protocols.base import Address
from tests.serving.protocols.facts import FACTS, IDENTITY, PREDICTIONS

LIMITS = RequestLimits(max_image_bytes=1000, max_instances=3, max_pixels=100)
PIXELS = [[[0, 1, 2], [253, 254, 255]]]  # 1 x 2 x 3
LONG_AND_SHORT = ["a" * 100_000, *["b"] * 250]  # 100 MB where each takes as much as the longest


def _sources(value: object) -> tuple[Any, ...]:
    return tfserving.parse({}, json.dumps(value).encode(), LIMITS, FACTS).sources


def _answer(value: object) -> Any:
    return json.loads(tfserving.parse({}, json.dumps(value).encode(), LIMITS, FACTS).render(PREDICTIONS).body)


@pytest.mark.parametrize("item", [{"b64": "eA=="}, {"image_bytes": {"b64": "eA=="}}])
def test_a_row_of_bytes(item: dict[str, Any]) -> None:
    assert _sources({"instances": [item]}) == (b"x",)


def test_a_row_with_an_address() -> None:
    assert _sources({"instances": [{"url": "https://a/b"}, {"b64": "eA=="}]}) == (Address("https://a/b"), b"x")


@pytest.mark.parametrize("item", [PIXELS, {"pixels": PIXELS}, [[[0.0, 1.0, 2.0], [253.0, 254.0, 255.0]]]])
def test_a_row_of_numbers(item: Any) -> None:
    (source,) = _sources({"instances": [item]})
    assert source.dtype == np.uint8 and source.tolist() == PIXELS


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ([{"b64": "eA=="}, {"b64": "eQ=="}], (b"x", b"y")),
        ({"image_bytes": [{"b64": "eA=="}]}, (b"x",)),
        ({"url": ["https://a/b"]}, (Address("https://a/b"),)),
    ],
)
def test_columns(inputs: Any, expected: tuple[Any, ...]) -> None:
    assert _sources({"inputs": inputs}) == expected


def test_a_column_of_numbers() -> None:
    first, second = _sources({"inputs": {"pixels": [PIXELS, PIXELS]}})
    assert first.tolist() == second.tolist() == PIXELS


ROW = [{"b64": "eA=="}, {"b64": "eA=="}]


def test_the_answer_by_row_has_every_output_by_name() -> None:
    assert _answer({"instances": ROW}) == {
        "predictions": [
            {"probabilities": [0.75, 0.25], "logits": [2.5, -7.0], "label": "hat"},
            {"probabilities": [0.125, 0.875], "logits": [-3.5, 9.0], "label": "shoe"},
        ]
    }


def test_the_answer_by_column() -> None:
    assert _answer({"inputs": ROW, "signature_name": "serving_default"}) == {
        "outputs": {
            "probabilities": [[0.75, 0.25], [0.125, 0.875]],
            "logits": [[2.5, -7.0], [-3.5, 9.0]],
            "label": ["hat", "shoe"],
        }
    }


@pytest.mark.parametrize(
    ("signature", "rows"),
    [("probabilities", [[0.75, 0.25], [0.125, 0.875]]), ("logits", [[2.5, -7.0], [-3.5, 9.0]])],
)
def test_a_signature_of_one_output_is_answered_without_its_name(signature: str, rows: list[list[float]]) -> None:
    assert _answer({"instances": ROW, "signature_name": signature}) == {"predictions": rows}
    assert _answer({"inputs": ROW, "signature_name": signature}) == {"outputs": rows}


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ({}, "bad_json"),
        ({"instances": ROW, "inputs": ROW}, "bad_json"),
        ({"instances": ROW, "more": 1}, "bad_json"),
        ({"instances": {"b64": "eA=="}}, "bad_json"),
        ({"instances": ["eA=="]}, "bad_json"),
        ({"instances": [{"b64": 7}]}, "bad_json"),
        ({"instances": [{"image_bytes": "eA=="}]}, "bad_json"),
        ({"instances": [{"b64": "eA==", "url": "x"}]}, "bad_json"),
        ({"instances": [{"image": "eA=="}]}, "bad_json"),
        ({"inputs": {"image_bytes": {"b64": "eA=="}}}, "bad_json"),
        ({"inputs": {"image_bytes": [], "url": []}}, "bad_json"),
        ({"instances": []}, "wrong_count"),
        ({"instances": [{"b64": "eA=="}] * 4}, "wrong_count"),
        ({"instances": [{"b64": "eA=="}] * 100}, "wrong_count"),
        ({"instances": [{"b64": "eA=="}] * 10_000}, "bad_json"),
        ({"instances": [{}] * 10_000}, "bad_json"),
        ({"instances": ROW, "signature_name": "other"}, "wrong_signature"),
        ({"instances": ROW, "signature_name": ["logits"]}, "wrong_signature"),
        ({"instances": [{"b64": "?"}]}, "bad_base64"),
        ({"instances": [{"b64": ""}]}, "empty_image"),
        ({"instances": [[[1, 2, 3]]]}, "wrong_shape"),
        ({"instances": [[[[1, 2]]]]}, "wrong_shape"),
        ({"instances": [[[[1, 2, 3], [1, 2]]]]}, "wrong_shape"),
        ({"instances": [[]]}, "wrong_shape"),
        ({"instances": [[[[[1, 2, 3]]]]]}, "wrong_shape"),
        ({"instances": [[[[1, 2, 256]]]]}, "wrong_pixels"),
        ({"instances": [[[[1, 2, -1]]]]}, "wrong_pixels"),
        ({"instances": [[[[1, 2, 0.5]]]]}, "wrong_pixels"),
        ({"instances": [[[[1, 2, 2**63]]]]}, "wrong_pixels"),
        ({"instances": [[[["1", "2", "3"]]]]}, "wrong_pixels"),
        ({"instances": [[[[None, 2, 3]]]]}, "wrong_pixels"),
        ({"instances": [[[[True, True, True]]]]}, "wrong_pixels"),
        ({"instances": [[[[True, 2, 3]]]]}, "wrong_pixels"),
        ({"instances": [[[[1, 2, {"b64": "eA=="}]]]]}, "wrong_pixels"),
        ({"instances": [{"pixels": "eA=="}]}, "wrong_pixels"),
        ({"instances": [{"pixels": 7}]}, "wrong_shape"),
        ({"instances": [[[1, [2]], 3]]}, "wrong_shape"),
    ],
)
def test_what_is_refused(value: object, code: str) -> None:
    with pytest.raises(InputError) as caught:
        _sources(value)
    assert (caught.value.status, caught.value.code) == (400, code)


@pytest.mark.parametrize("item", [LONG_AND_SHORT, {"pixels": [[LONG_AND_SHORT]]}])
def test_a_long_string_among_short_ones_takes_no_memory_for_each(item: Any) -> None:
    body = json.dumps({"instances": [item]}).encode()
    tracemalloc.start()
    try:
        with pytest.raises(InputError) as caught:
            tfserving.parse({}, body, LIMITS, FACTS)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (caught.value.status, caught.value.code) == (400, "wrong_pixels")
    assert peak < 10 * len(body)


def test_a_picture_with_too_many_pixels_or_bytes_is_413() -> None:
    for item in ([[[0, 0, 0]] * 101], {"b64": "eA==" * 0 + "A" * 2000}):
        with pytest.raises(InputError) as caught:
            _sources({"instances": [item]})
        assert caught.value.status == 413


@pytest.mark.parametrize("content_type", [None, "application/json", "APPLICATION/JSON; charset=utf-8"])
def test_content_types(content_type: str | None) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    assert tfserving.max_body_bytes(headers, LIMITS) == LIMITS.max_body_bytes


def test_other_content_types_are_refused() -> None:
    for headers in ({"content-type": "text/html"}, {"content-encoding": "gzip"}):
        with pytest.raises(InputError) as caught:
            tfserving.max_body_bytes(headers, LIMITS)
        assert caught.value.status == 415


def test_status_and_metadata() -> None:
    status = json.loads(tfserving.status([FACTS]).body)
    assert status == {
        "model_version_status": [
            {"version": "3", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
        ]
    }
    metadata = json.loads(tfserving.metadata(FACTS).body)
    assert metadata["model_spec"] == {"name": "shirts", "signature_name": "", "version": IDENTITY.version}
    signature = metadata["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["outputs"]["logits"]["tensor_shape"]["dim"][1]["size"] == "2"
    assert metadata["metadata"]["classes"] == ["hat", "shoe"]
