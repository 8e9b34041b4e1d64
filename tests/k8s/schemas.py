"""What the API server would say to a manifest: KubeRay's and Kubernetes' schemas, closed, and the CRDs' CEL rules."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

KUBERNETES = "1.37"
# The package that evaluates CEL is for Python 3.11 and up; below that the CRDs' few rules are not asked.
cel: Any = importlib.import_module("cel") if sys.version_info >= (3, 11) else None
# The two kinds of the Prometheus operator whose definitions no package carries, restated from its API reference as far
# as these manifests use them, and closed like the others.
_LABELS = {"type": "object", "additionalProperties": {"type": "string"}}
_SELECTOR = {"type": "object", "properties": {"matchLabels": _LABELS}, "additionalProperties": False}


def _closed_object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


_STRING = {"type": "string", "minLength": 1}
_META = _closed_object(["name"], name=_STRING, namespace=_STRING, labels=_LABELS, annotations=_LABELS)
_RELABELING = _closed_object(["sourceLabels", "targetLabel"], sourceLabels={"type": "array"}, targetLabel=_STRING)
_AUTHORIZATION = _closed_object(
    ["credentials"], type=_STRING, credentials=_closed_object(["name", "key"], name=_STRING, key=_STRING)
)
_ENDPOINT = _closed_object(
    ["port"],
    port=_STRING,
    interval=_STRING,
    path=_STRING,
    relabelings={"type": "array", "items": _RELABELING},
    authorization=_AUTHORIZATION,
)
_ALERT = _closed_object(
    ["alert", "expr", "labels", "annotations"],
    **{"alert": _STRING, "expr": _STRING, "for": _STRING, "labels": _LABELS, "annotations": _LABELS},
)
PROMETHEUS = {
    "PodMonitor": _closed_object(
        ["apiVersion", "kind", "metadata", "spec"],
        apiVersion={"const": "monitoring.coreos.com/v1"},
        kind={},
        metadata=_META,
        spec=_closed_object(
            ["selector", "podMetricsEndpoints"],
            selector=_SELECTOR,
            podMetricsEndpoints={"type": "array", "items": _ENDPOINT, "minItems": 1},
        ),
    ),
    "PrometheusRule": _closed_object(
        ["apiVersion", "kind", "metadata", "spec"],
        apiVersion={"const": "monitoring.coreos.com/v1"},
        kind={},
        metadata=_META,
        spec=_closed_object(
            ["groups"],
            groups={
                "type": "array",
                "items": _closed_object(["name", "rules"], name=_STRING, rules={"type": "array", "items": _ALERT}),
            },
        ),
    ),
}


def faults(document: dict[str, Any], crds: Path) -> list[str]:
    """What the schema of the document's kind finds wrong with it; [] where it would be taken.

    Arguments:
        document: one manifest.
        crds: the folder of KubeRay's custom resource definitions.
    """
    group = document["apiVersion"].partition("/")[0]
    if group == "ray.io":
        schema, validator = _kuberay(crds, document["kind"], document["apiVersion"])
        whole = completed(document, schema)
        found = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(whole)]
        return found + list(_broken_rules(whole, schema, "$"))
    if group == "monitoring.coreos.com":
        validator = jsonschema.Draft202012Validator(PROMETHEUS[document["kind"]])
        return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{'.'.join(map(str, error.path))}: {error.message}"]
    return []


@functools.cache
def _kuberay(crds: Path, kind: str, version: str) -> tuple[dict[str, Any], jsonschema.Draft202012Validator]:
    path = crds / f"ray.io_{kind.lower()}s.yaml"
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    definition = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)["spec"]
    wanted = version.removeprefix("ray.io/")
    (schema,) = (v["schema"]["openAPIV3Schema"] for v in definition["versions"] if v["name"] == wanted)
    return schema, jsonschema.Draft202012Validator(closed(schema))


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema as the API server prunes by it: an object that lists its properties has no others."""
    schema = dict(schema)
    if schema.pop("x-kubernetes-int-or-string", False):
        return {"type": ["integer", "string"]}
    if "properties" in schema:
        schema["properties"] = {name: closed(part) for name, part in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema.setdefault("additionalProperties", False)
    for key in ("items", "additionalProperties", "not"):
        if isinstance(schema.get(key), dict):
            schema[key] = closed(schema[key])
    return schema


def completed(value: Any, schema: dict[str, Any]) -> Any:
    """The value as the API server sees it before it validates: defaults filled in, nulls left out."""
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        filled = {name: part["default"] for name, part in properties.items() if "default" in part}
        filled |= {name: part for name, part in value.items() if part is not None}
        rest = schema.get("additionalProperties")
        rest = rest if isinstance(rest, dict) else {}
        return {name: completed(part, properties.get(name, rest)) for name, part in filled.items()}
    if isinstance(value, list):
        return [completed(part, schema.get("items", {})) for part in value]
    return value


def _broken_rules(value: Any, schema: dict[str, Any], path: str) -> Iterator[str]:
    """The CEL rules (`x-kubernetes-validations`) that the value breaks, as for an object that is created.

    A rule with `oldSelf` compares with what was there before: it is not asked of a new object.
    """
    rules = schema.get("x-kubernetes-validations", [])
    cel = pytest.importorskip("cel", reason="the package of CEL needs Python 3.11") if rules else None
    for rule in rules:
        if (
            cel is not None
            and "oldSelf" not in rule["rule"]
            and cel.evaluate(rule["rule"], {"self": value}) is not True
        ):
            yield f"{path}: {rule['message']}"
    if isinstance(value, dict):
        for name, part in value.items():
            under = schema.get("properties", {}).get(name, schema.get("additionalProperties"))
            if isinstance(under, dict):
                yield from _broken_rules(part, under, f"{path}.{name}")
    elif isinstance(value, list):
        for number, part in enumerate(value):
            yield from _broken_rules(part, schema.get("items", {}), f"{path}[{number}]")
