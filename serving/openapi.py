"""The OpenAPI 3.1 document of all routes, with examples.

It is built from the model that is served: paths carry its name, examples its classes and a picture that can be sent.
"""

from __future__ import annotations

import base64
import functools
import zlib
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from serving.limits import RequestLimits
from serving.protocols.base import Answer, ModelFacts, dump
from serving.protocols.explain import GRID
from serving.protocols.openinference import MAX_ID_CHARACTERS

_JSON = "application/json"
_Schema = dict[str, Any]
_BINARY: _Schema = {"type": "string", "format": "binary"}
# What each refusal means; a route lists those that it can answer with.
_REFUSALS = {
    400: "The body or the query cannot be read, or there is no picture.",
    401: "An API key is missing or wrong; only where the server asks for keys.",
    404: "There is no such path, model or version.",
    405: "Another method.",
    408: "The body took too long to arrive.",
    413: "The body or a picture is too large.",
    415: "The body is of another type, compressed, or no JPEG, PNG or WebP.",
    422: "The URL is refused, or does not lead to a picture.",
    500: "A fault of the server.",
    502: "A replica failed; try again.",
    503: "All places are taken, the version is not loaded or no replica is ready; try again after the seconds in "
    "retry-after.",
    504: "There was no answer in time.",
}

_OF_PAGES = (404, 405, 500, 502, 503, 504)


def document(model: ModelFacts, limits: RequestLimits) -> dict[str, Any]:
    """The OpenAPI document for a server of this model.

    Arguments:
        model: the live one.
        limits: what a request may cost.
    """
    name = model.identity.name
    examples = _Examples(model)
    paths: dict[str, Any] = {}
    paths["/predict"] = {"post": _predict(examples)}
    paths["/predict/batch"] = {"post": _batch(examples, limits)}
    paths["/explain"] = {"post": _explain(examples, paths["/predict"]["post"])}
    paths["/lesson"] = {"post": _lesson(examples)}
    for operations in paths.values():
        operations["post"]["parameters"] = [
            _query("model", "The model's name; left out: whichever is served.", examples.name),
            _query("version", "The model's version; left out: the live one.", examples.version),
        ]
    live, ready = _object(status={"const": "live"}), {"status": "ready", "model": examples.model}
    paths["/healthz"] = {"get": _get("Whether the server lives", "health", live, {"status": "live"}, key=False)}
    paths["/readyz"] = {"get": _get("Whether its answers are right", "readiness", _ref("Ready"), ready, key=False)}
    paths["/metrics"] = {"get": _text("Prometheus metrics", "metrics", "text/plain")}
    paths["/openapi.json"] = {"get": _get("This document", "openapi", {"type": "object"}, None, key=False)}
    paths["/docs"] = {"get": _text("This document as a page", "docs", "text/html", key=False)}
    for path, operations in (*_v1(examples), *_v2(examples)):
        paths[path.replace("{name}", name)] = operations
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"rayml: {name}",
            "version": version("rayml"),
            "description": f"Classifies pictures into {len(model.classes)} classes: {', '.join(model.classes)}.",
        },
        "paths": {path: _with_head(operations) for path, operations in paths.items()},
        "components": {
            "schemas": _schemas(model),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


@functools.lru_cache(maxsize=2)  # Of the live version and the one before it: milliseconds each, on the event loop.
def json_page(model: ModelFacts, limits: RequestLimits) -> Answer:
    """What `GET /openapi.json` answers."""
    return Answer(dump(document(model, limits)))


class _Examples:
    """What requests and answers look like for one model; the numbers are made up, everything else is real."""

    def __init__(self, model: ModelFacts) -> None:
        self.model = model.identity.to_dict()
        self.name, self.version = model.identity.name, model.identity.version
        self.classes = list(model.classes)
        self.size = model.image_size_px
        rest = len(self.classes) - 1
        # Two or more classes share what the first one leaves; a single one has all.
        self.probabilities = [0.9 if rest else 1.0, *([0.1 / rest] * rest if rest else [])]
        self.logits = [4.5, *([-1.5] * rest)]
        self.base64 = base64.b64encode(_one_pixel_png()).decode()
        self.url = "https://images.example.com/shirt.jpg"
        self.prediction = {
            "label": self.classes[0],
            "confidence": self.probabilities[0],
            "probabilities": dict(zip(self.classes, self.probabilities, strict=True)),
        }


def _predict(examples: _Examples) -> dict[str, Any]:
    one = {
        "base64": {"value": {"image": examples.base64}},
        "url": {"value": {"url": examples.url}},
    }
    raw = {"schema": _BINARY}
    content = {
        **dict.fromkeys(("image/jpeg", "image/png", "image/webp", "application/octet-stream"), raw),
        _JSON: {"schema": {"oneOf": [_ref("Image"), _ref("Url")]}, "examples": one},
        "multipart/form-data": {"schema": _object(file=_BINARY)},
    }
    answer = examples.prediction | {"model": examples.model}
    return _post("Classify one picture", "predict", content, _ref("Answer"), answer)


def _batch(examples: _Examples, limits: RequestLimits) -> dict[str, Any]:
    files = {"type": "array", "items": _BINARY, "minItems": 1}
    images = {
        "type": "array",
        "minItems": 1,
        "maxItems": limits.max_instances,
        "items": {"oneOf": [{"type": "string", "contentEncoding": "base64"}, _ref("Image"), _ref("Url")]},
    }
    content = {
        _JSON: {"schema": _object(images=images), "example": {"images": [examples.base64, {"url": examples.url}]}},
        "multipart/form-data": {"schema": _object(file=files)},
    }
    answer = {"predictions": [examples.prediction, examples.prediction], "model": examples.model}
    return _post("Classify many pictures", "predict_batch", content, _ref("Answers"), answer)


def _explain(examples: _Examples, predict: dict[str, Any]) -> dict[str, Any]:
    row = [0.1, 0.3, 1.2, 2.5, 1.0, 0.2, -0.1]
    answer = {name: examples.prediction[name] for name in ("label", "confidence")}
    answer |= {"grid": [row] * GRID, "model": examples.model}
    content = {kind: shown for kind, shown in predict["requestBody"]["content"].items() if kind != _JSON}
    content[_JSON] = {"schema": _ref("Image"), "example": {"image": examples.base64}}
    about = "Where the model looked: by how much the label's log-odds fall with each of 7 x 7 places covered"
    return _post(about, "explain", content, _ref("Explanation"), answer)


def _lesson(examples: _Examples) -> dict[str, Any]:
    content = {_JSON: {"schema": _ref("Url"), "example": {"url": examples.url}}}
    answer = dict(zip(examples.classes, examples.logits, strict=True))
    return _post("Classify a picture by URL; answers each class's logit", "lesson", content, _ref("Scores"), answer)


def _v1(examples: _Examples) -> list[tuple[str, dict[str, Any]]]:
    row = {"probabilities": examples.probabilities, "logits": examples.logits, "label": examples.classes[0]}
    content = {
        _JSON: {
            "schema": _ref("V1Request"),
            "examples": {
                "row": {"value": {"instances": [{"b64": examples.base64}]}},
                "column": {"value": {"inputs": {"image_bytes": [{"b64": examples.base64}]}}},
                "numbers": {"value": {"signature_name": "probabilities", "instances": [[[[255, 0, 0]]]]}},
            },
        }
    }
    status = {"model_version_status": [{"version": examples.version, "state": "AVAILABLE", "status": _OK}]}
    found: list[tuple[str, dict[str, Any]]] = []
    for path, suffix in (("/v1/models/{name}", ""), (f"/v1/models/{{name}}/versions/{examples.version}", "_version")):
        about = "TensorFlow Serving: "
        found += [
            (path, {"get": _get(f"{about}state", f"v1_status{suffix}", _ref("V1Status"), status, plain=True)}),
            (
                f"{path}/metadata",
                {"get": _get(f"{about}signatures", f"v1_metadata{suffix}", {"type": "object"}, None, plain=True)},
            ),
            (
                f"{path}:predict",
                {
                    "post": _post(
                        f"{about}predictions",
                        f"v1_predict{suffix}",
                        content,
                        _ref("V1Response"),
                        {"predictions": [row]},
                        plain=True,
                    )
                },
            ),
        ]
    return found


_OK = {"error_code": "OK", "error_message": ""}


def _v2(examples: _Examples) -> list[tuple[str, dict[str, Any]]]:
    about = "Open Inference: "
    request = {"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [examples.base64]}]}
    size = [1, len(examples.classes)]
    response = {
        "model_name": examples.name,
        "model_version": examples.version,
        "outputs": [
            {"name": "probabilities", "datatype": "FP32", "shape": size, "data": examples.probabilities},
            {"name": "logits", "datatype": "FP32", "shape": size, "data": examples.logits},
            {"name": "label", "datatype": "BYTES", "shape": [1], "data": [examples.classes[0]]},
        ],
    }
    content = {
        _JSON: {"schema": _ref("V2Request"), "example": request},
        "application/octet-stream": {"schema": _BINARY},
    }
    live, ready = _object(live={"type": "boolean"}), _object(ready={"type": "boolean"})
    server = {"name": "rayml", "version": version("rayml"), "extensions": ["binary_tensor_data"]}
    found: list[tuple[str, dict[str, Any]]] = [
        ("/v2", {"get": _get(f"{about}server", "v2_server", {"type": "object"}, server, plain=True)}),
        ("/v2/health/live", {"get": _get(f"{about}alive", "v2_live", live, {"live": True}, key=False, plain=True)}),
        ("/v2/health/ready", {"get": _get(f"{about}ready", "v2_ready", ready, {"ready": True}, key=False, plain=True)}),
    ]
    for path, suffix in (("/v2/models/{name}", ""), (f"/v2/models/{{name}}/versions/{examples.version}", "_version")):
        is_ready = {"name": examples.name, "ready": True}
        infer = _post(f"{about}inference", f"v2_infer{suffix}", content, _ref("V2Response"), response, plain=True)
        infer["responses"]["200"]["content"]["application/octet-stream"] = {"schema": _BINARY}
        found += [
            (path, {"get": _get(f"{about}tensors", f"v2_model{suffix}", {"type": "object"}, None, plain=True)}),
            (
                f"{path}/ready",
                {
                    "get": _get(
                        f"{about}model ready", f"v2_model_ready{suffix}", {"type": "object"}, is_ready, plain=True
                    )
                },
            ),
            (f"{path}/infer", {"post": infer}),
        ]
    return found


def _schemas(model: ModelFacts) -> dict[str, _Schema]:
    text, number = {"type": "string"}, {"type": "number"}
    share = {"type": "number", "minimum": 0, "maximum": 1}
    shares = _object(**dict.fromkeys(model.classes, share))
    base64_text = {"type": "string", "contentEncoding": "base64", "minLength": 4}
    prediction = {"label": {"enum": list(model.classes)}, "confidence": share, "probabilities": shares}
    status = _object(version=text, state=text, status=_object(error_code=text, error_message=text))
    tensor = {
        "type": "object",
        "required": ["name", "shape", "datatype"],
        "properties": {
            "name": {"enum": ["image", "pixels"]},
            "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
            "datatype": {"enum": ["BYTES", "UINT8"]},
            "data": {"type": "array"},
            "parameters": {"type": "object"},
        },
    }
    instances = {"type": "array", "minItems": 1, "items": {"type": ["object", "array"]}}
    signature = {"enum": ["serving_default", "probabilities", "logits"]}
    by_row: _Schema = _object(instances=instances, signature_name=signature)
    by_column: _Schema = _object(inputs={"type": ["object", "array"]}, signature_name=signature)
    by_row["required"], by_column["required"] = ["instances"], ["inputs"]
    return {
        "Model": _object(name=text, version=text, bundle=text),
        "Ready": _object(status={"const": "ready"}, model=_ref("Model")),
        "Image": _object(image=base64_text),
        "Url": _object(url={"type": "string", "format": "uri", "maxLength": 2048}),
        "Answer": _object(**prediction, model=_ref("Model")),
        "Answers": _object(predictions={"type": "array", "items": _object(**prediction)}, model=_ref("Model")),
        "Explanation": _object(
            label=prediction["label"], confidence=share, grid=_square(number, GRID), model=_ref("Model")
        ),
        "Scores": _object(**dict.fromkeys(model.classes, number)),
        "V1Request": {"oneOf": [by_row, by_column]},
        "V1Response": {"type": "object"},
        "V1Status": _object(model_version_status={"type": "array", "items": status}),
        "V2Request": {
            "type": "object",
            "required": ["inputs"],
            "properties": {
                "id": {**text, "maxLength": MAX_ID_CHARACTERS},
                "inputs": {"type": "array", "minItems": 1, "maxItems": 1, "items": tensor},
                "outputs": {"type": "array", "items": {"type": "object"}},
                "parameters": {"type": "object"},
            },
        },
        "V2Response": {
            "type": "object",
            "required": ["model_name", "outputs"],
            "properties": {"outputs": {"type": "array", "items": {"type": "object"}}},
        },
        "Error": _object(error=_object(code=text, message=text)),
        "PlainError": _object(error=text),
    }


def _object(**members: Any) -> _Schema:
    return {"type": "object", "properties": members, "required": list(members), "additionalProperties": False}


def _square(item: _Schema, side: int) -> _Schema:
    """An array of `side` arrays of as many items."""
    row: _Schema = {"type": "array", "minItems": side, "maxItems": side, "items": item}
    return {**row, "items": row}


def _ref(name: str) -> _Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _query(name: str, text: str, example: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "description": text, "schema": {"const": example}}


def _get(
    summary: str, operation: str, schema: _Schema, example: Any, *, key: bool = True, plain: bool = False
) -> dict[str, Any]:
    content: dict[str, Any] = {"schema": schema}
    if example is not None:
        content["example"] = example
    return _operation(summary, operation, {_JSON: content}, _OF_PAGES, key, plain)


def _text(summary: str, operation: str, media_type: str, key: bool = True) -> dict[str, Any]:
    content = {media_type: {"schema": {"type": "string"}}}
    return _operation(summary, operation, content, _OF_PAGES, key, plain=False)


def _post(
    summary: str, operation: str, content: dict[str, Any], schema: _Schema, example: Any, plain: bool = False
) -> dict[str, Any]:
    answer = {_JSON: {"schema": schema, "example": example}}
    statuses = (400, 404, 405, 408, 413, 415, 422, 500, 502, 503, 504)
    described = _operation(summary, operation, answer, statuses, True, plain)
    return described | {"requestBody": {"required": True, "content": content}}


def _operation(
    summary: str, operation: str, content: dict[str, Any], statuses: Sequence[int], key: bool, plain: bool
) -> dict[str, Any]:
    error = {_JSON: {"schema": _ref("PlainError" if plain else "Error")}}
    responses: dict[str, Any] = {"200": {"description": summary, "content": content}}
    for status in sorted({*statuses, *((401,) if key else ())}):
        responses[str(status)] = {"description": _REFUSALS[status], "content": error}
    described: dict[str, Any] = {"operationId": operation, "summary": summary, "responses": responses}
    # A server without keys asks for none: the empty requirement says so.
    return described | ({"security": [{}, {"bearer": []}, {"header": []}]} if key else {})


def _with_head(operations: Mapping[str, Any]) -> dict[str, Any]:
    """Every page may also be asked for without its body."""
    if "get" not in operations:
        return dict(operations)
    got = operations["get"]
    responses = {status: {"description": r["description"]} for status, r in got["responses"].items()}
    return {**operations, "head": {**got, "operationId": f"{got['operationId']}_head", "responses": responses}}


def _one_pixel_png() -> bytes:
    """A whole PNG of one red pixel, for examples that can be sent as they are."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = (1).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])  # 8 bits a channel, RGB
    pixels = zlib.compress(bytes([0, 255, 0, 0]))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
