"""The OpenAPI document: every route is in it, and every example is what the service takes and gives."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import jsonschema
import pytest
from starlette.requests import Request
from starlette.responses import Response

from serving import routes
from serving.app import Classifier
from serving.docs_page import html_page
from serving.limits import RequestLimits
from serving.openapi import document, json_page
from tests.serving.protocols.facts import FACTS
from tests.serving.tiny_bundle import write_tiny_bundle

pytestmark = pytest.mark.filterwarnings(
    "ignore:Using extra keyword arguments on `Field` is deprecated:pydantic.warnings.PydanticDeprecatedSince20"
)
DOCUMENT = document(FACTS, RequestLimits())


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    """One that answers with the tiny bundle."""
    bundle = write_tiny_bundle(tmp_path_factory.mktemp("openapi") / "bundle")
    made = Classifier(str(bundle), "auto", 1, asdict(RequestLimits()))
    asyncio.run(made.reconfigure({}))
    return made


def _ask(classifier: Classifier, method: str, path: str, body: bytes = b"", content_type: str = "") -> Response:
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "headers": [(b"content-type", content_type.encode())],
        "query_string": b"",
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    return asyncio.run(classifier(Request(scope, receive)))


def _validate(value: Any, schema: dict[str, Any], described: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator({**schema, "components": described["components"]}).validate(value)


def _operations(described: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            yield path, method, operation


def test_every_route_is_described_with_its_methods() -> None:
    fixed = {path: set(route.methods) for path, route in routes.FIXED.items()}
    for name, route in {route.name: route for path in DOCUMENT["paths"] for route in [routes.find(path)[0]]}.items():
        fixed.setdefault(name, set(route.methods))
    described = {
        routes.find(path)[0].name: {method.upper() for method in operations}
        for path, operations in DOCUMENT["paths"].items()
    }
    assert described == fixed
    assert len([path for path in DOCUMENT["paths"] if path.startswith(("/v1/", "/v2/models"))]) == 12


def test_whether_a_key_is_needed_is_said_rightly() -> None:
    for path, _, operation in _operations(DOCUMENT):
        needs_key = routes.find(path)[0].needs_key
        assert ("401" in operation["responses"]) is needs_key, path
        assert ("security" in operation) is needs_key, path


def test_every_operation_says_that_it_may_be_late_or_refused() -> None:
    # Pages wait for a version to load, and 503 and 504 come from the proxy, too.
    for path, method, operation in _operations(DOCUMENT):
        assert {"500", "502", "503", "504"} <= operation["responses"].keys(), (path, method)
        assert "version" in operation["responses"]["503"]["description"]


def test_operations_have_names_of_their_own() -> None:
    names = [operation["operationId"] for _, _, operation in _operations(DOCUMENT)]
    assert len(names) == len(set(names))


def test_examples_fit_their_schemas() -> None:
    checked = 0
    for _, _, operation in _operations(DOCUMENT):
        bodies = [operation.get("requestBody", {}), *operation["responses"].values()]
        for content in (content for body in bodies for content in body.get("content", {}).values()):
            examples = [content["example"]] if "example" in content else []
            examples += [example["value"] for example in content.get("examples", {}).values()]
            for example in examples:
                _validate(example, content["schema"], DOCUMENT)
                checked += 1
    assert checked > 20


def test_the_service_takes_the_examples_and_answers_as_described(classifier: Classifier) -> None:
    described = json.loads(bytes(_ask(classifier, "GET", "/openapi.json").body))
    answered = 0
    for path, method, operation in _operations(described):
        content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
        bodies = [content["example"]] if "example" in content else []
        bodies += [example["value"] for example in content.get("examples", {}).values()]
        for body in bodies or [None]:
            encoded = b"" if body is None else json.dumps(body).encode()
            response = _ask(classifier, method.upper(), path, encoded, "application/json")
            if "images.example.com" in encoded.decode():  # URLs are not fetched unless hosts are allowed.
                assert response.status_code == 422
            elif method != "post" or body is not None:
                assert response.status_code == 200, (path, response.body)
            said = operation["responses"][str(response.status_code)]
            media_type = response.headers["content-type"].partition(";")[0]
            if method == "head":
                continue
            assert media_type in said["content"], path
            if media_type == "application/json":
                _validate(json.loads(bytes(response.body)), said["content"][media_type]["schema"], described)
                answered += 1
    assert answered > 20


def test_the_pages_are_made_once_for_a_model() -> None:
    other = replace(FACTS, classes=("hat", "coat"))
    for page in (json_page, html_page):
        assert page(FACTS, RequestLimits()) is page(replace(FACTS), RequestLimits())
        assert page(other, RequestLimits()).body != page(FACTS, RequestLimits()).body


def test_the_page_needs_nothing_from_elsewhere() -> None:
    answer = html_page(FACTS, RequestLimits())
    page = answer.body.decode()
    assert answer.content_type == "text/html; charset=utf-8"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert not re.search(r"<script|<img|<link|@import|url\(", page)
    assert not re.search(r'(?:src|href)="(?!/)', page)
    for path in DOCUMENT["paths"]:
        assert path in page
