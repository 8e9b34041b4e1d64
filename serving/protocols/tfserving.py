"""TensorFlow Serving's REST API (tensorflow.org/tfx/serving/api_rest): predict, status and metadata.

`{"instances": [...]}` asks by row and is answered `{"predictions": [...]}`; `{"inputs": ...}` asks by column and is
answered `{"outputs": ...}`. A picture is `{"b64": ...}`, `{"image_bytes": {"b64": ...}}`, `{"url": ...}`,
`{"pixels": [...]}` or H x W x 3 numbers as they are. The signature `serving_default` has three outputs, so a prediction
is an object `{"probabilities": [...], "logits": [...], "label": ...}`; the signatures `probabilities` and `logits` have
one, so there a prediction is a list of C numbers. Their order is that of the classes in the metadata.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rayml.errors import InputError
from rayml.predictor import Prediction
from serving.limits import RequestLimits
from serving.protocols import base, pixels, strict_json
from serving.protocols.base import BUNDLE_HEADER, Address, Answer, ModelFacts, Source, Work

DEFAULT_SIGNATURE = "serving_default"
_OUTPUTS: dict[str, Callable[[Prediction], Any]] = {
    "probabilities": lambda prediction: list(prediction.probabilities.values()),
    "logits": lambda prediction: list(prediction.logits),
    "label": lambda prediction: prediction.label,
}
SIGNATURES: dict[str, tuple[str, ...]] = {
    DEFAULT_SIGNATURE: tuple(_OUTPUTS),
    "probabilities": ("probabilities",),
    "logits": ("logits",),
}
_INPUTS = ("image_bytes", "pixels", "url")
_EXPECTED = 'a JSON object with "instances" (a list, by row) or "inputs" (by column)'


def max_body_bytes(headers: Mapping[str, str], limits: RequestLimits) -> int:
    """The largest body, in bytes.

    Raises:
        InputError: 415 for a body that is declared as something else than JSON.
    """
    base.check_lenient_json_type(headers)
    return limits.max_body_bytes


def memory_bytes(_headers: Mapping[str, str], body: bytes, limits: RequestLimits) -> int:
    """The most memory that `parse` takes beside `body`."""
    return strict_json.memory_bytes(body, limits.max_json_values, limits.max_json_strings)


def parse(_headers: Mapping[str, str], body: bytes, limits: RequestLimits, model: ModelFacts) -> Work:
    """The pictures of a `:predict` request, by row or by column.

    Raises:
        InputError: 400 for a malformed body, 413 for a picture above its limit.
    """
    value = strict_json.parse_object(body, _EXPECTED, limits.max_json_values, limits.max_json_strings)
    strict_json.only_members(value, ("signature_name", "instances", "inputs"), _EXPECTED)
    if ("instances" in value) == ("inputs" in value):
        raise strict_json.bad_json(_EXPECTED, "both" if "instances" in value else "neither")
    signature = value.get("signature_name", DEFAULT_SIGNATURE)
    outputs = SIGNATURES.get(signature) if isinstance(signature, str) else None
    if outputs is None:
        names = " or ".join(SIGNATURES)
        raise InputError(f"signature_name must be {names}. Received: {str(signature)[:40]!r}", code="wrong_signature")
    items = value["instances"] if "instances" in value else _column(value["inputs"])
    if not isinstance(items, list):
        raise strict_json.bad_json(_EXPECTED, f"instances is a JSON {base.kind_of(items)}")
    base.check_count(len(items), limits)
    sources = tuple(_source(item, limits) for item in items)
    by_row = "instances" in value

    def render(predictions: Sequence[Prediction]) -> Answer:
        columns = {name: [_OUTPUTS[name](prediction) for prediction in predictions] for name in outputs}
        if len(outputs) == 1:  # A single output goes without its name.
            only = columns[outputs[0]]
            return _answer({"predictions": only} if by_row else {"outputs": only}, model)
        if by_row:
            rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
            return _answer({"predictions": rows}, model)
        return _answer({"outputs": columns}, model)

    return Work(sources, render)


def status(versions: Sequence[ModelFacts]) -> Answer:
    """What `GET /v1/models/NAME[/versions/V]` answers."""
    states = [
        {
            "version": facts.identity.version,
            "state": "AVAILABLE",
            "status": {"error_code": "OK", "error_message": ""},
        }
        for facts in versions
    ]
    return Answer(base.dump({"model_version_status": states}))


def metadata(model: ModelFacts) -> Answer:
    """What `GET /v1/models/NAME[/versions/V]/metadata` answers."""
    count = len(model.classes)
    inputs = {
        "image_bytes": _tensor("DT_STRING", "image_bytes", -1),
        "pixels": _tensor("DT_UINT8", "pixels", -1, -1, -1, 3),
        "url": _tensor("DT_STRING", "url", -1),
    }
    outputs = {
        "probabilities": _tensor("DT_FLOAT", "probabilities", -1, count),
        "logits": _tensor("DT_FLOAT", "logits", -1, count),
        "label": _tensor("DT_STRING", "label", -1),
    }
    signatures = {
        name: {
            "inputs": inputs,
            "outputs": {output: outputs[output] for output in chosen},
            "method_name": "tensorflow/serving/predict",
            "defaults": {},
        }
        for name, chosen in SIGNATURES.items()
    }
    identity = model.identity
    return Answer(
        base.dump(
            {
                "model_spec": {"name": identity.name, "signature_name": "", "version": identity.version},
                "metadata": {"signature_def": {"signature_def": signatures}, "classes": list(model.classes)},
            }
        )
    )


def _answer(value: dict[str, Any], model: ModelFacts) -> Answer:
    return Answer(base.dump(value), headers={BUNDLE_HEADER: model.identity.bundle})


def _tensor(dtype: str, name: str, *shape: int) -> dict[str, Any]:
    sizes = [{"size": str(size), "name": ""} for size in shape]
    return {"dtype": dtype, "tensor_shape": {"dim": sizes, "unknown_rank": False}, "name": f"{name}:0"}


def _column(value: Any) -> Any:
    """The elements of `inputs`: a list as it is, or one named input with a list, whose elements take its name."""
    if not isinstance(value, dict):
        return value
    if len(value) != 1 or not value.keys() <= set(_INPUTS):
        names = ", ".join(sorted(repr(name[:40]) for name in value)[:5]) or "none"
        raise strict_json.bad_json(_EXPECTED, f"inputs named {names}; there must be one of {', '.join(_INPUTS)}")
    ((name, items),) = value.items()
    if not isinstance(items, list):
        raise strict_json.bad_json(_EXPECTED, f"{name} is a JSON {base.kind_of(items)} and must be a list")
    return [{name: item} for item in items]


def _source(item: Any, limits: RequestLimits) -> Source:
    if isinstance(item, list):
        return pixels.picture(item, "an instance", limits)
    if not isinstance(item, dict) or len(item) != 1:
        raise strict_json.bad_json(_EXPECTED, f"a JSON {base.kind_of(item)} that is no picture")
    ((name, value),) = item.items()
    if name == "url" and isinstance(value, str):
        return Address(value)
    if name == "pixels":
        return pixels.picture(value, "pixels", limits)
    if name == "image_bytes":
        if not isinstance(value, dict) or value.keys() != {"b64"}:
            raise strict_json.bad_json(_EXPECTED, 'image_bytes that is not {"b64": "<base64>"}')
        name, value = "b64", value["b64"]
    if name == "b64" and isinstance(value, str):
        return base.check_picture(strict_json.from_base64(value, "b64"), limits)
    raise strict_json.bad_json(_EXPECTED, f"a picture given as {name[:40]!r}, a JSON {base.kind_of(value)}")
