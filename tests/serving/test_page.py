from __future__ import annotations

import asyncio
import io
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from PIL import Image

from rayml.bundle import Bundle
from rayml.clothing import CLASSES
from serving.call import Call
from serving.fetch import Fetcher
from serving.keys import ApiKeys
from serving.limits import RequestLimits
from serving.log import RequestLog
from serving.metrics import Metrics
from serving.models import Models
from serving.page import EXAMPLES, FILES, HEADERS, about, example, static
from serving.protocols.base import Answer, ModelFacts, ModelIdentity
from serving.service import Service
from serving.sources import BundleSource
from tests.serving.tiny_bundle import picture, write_tiny_bundle


@pytest.mark.parametrize("path", FILES)
def test_each_file_is_there_and_small(path: str) -> None:
    answer = static(path)
    assert answer.status == 200 and answer.content_type == FILES[path][1]
    assert 100 < len(answer.body) < 20_000
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_policy_allows_nothing_inline_and_nothing_from_elsewhere() -> None:
    policy = HEADERS["content-security-policy"]
    assert policy.startswith("default-src 'none'; ")
    assert not re.search(r"unsafe|http|\*|data:", policy)


def test_the_page_keeps_to_it() -> None:
    html, script, style = (static(path).body.decode() for path in ("/", "/web/app.js", "/web/style.css"))
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", html)
    for linked in re.findall(r'(?:src|href)="([^"]+)"', html):
        assert linked in FILES
    # No address of anywhere else, and no way from a name to markup.
    assert not re.search(r"https?://|//cdn", html + script + style)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|localStorage|cookie", script)


def test_what_is_asked_of_the_document_is_in_it() -> None:
    html, script = static("/").body.decode(), static("/web/app.js").body.decode()
    wanted = set(re.findall(r'\$\("([\w-]+)"\)', script)) | {"files", "camera"}
    assert wanted <= set(re.findall(r'id="([\w-]+)"', html))


@pytest.mark.parametrize("path", EXAMPLES)
def test_drawings(path: str) -> None:
    answer = example(path)
    with Image.open(io.BytesIO(answer.body)) as picture:
        assert (picture.format, picture.size) == ("JPEG", (192, 192))
    assert answer.content_type == "image/jpeg" and len(answer.body) < 30_000


def test_the_service_shows_it_to_everybody_and_the_model_to_those_with_a_key(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("secret\n")
    limits = RequestLimits()
    bundle = Bundle.open(write_tiny_bundle(tmp_path / "bundle"))
    models = Models(BundleSource.read(bundle.path), "auto", 2, limits)
    fetcher, keys, log = Fetcher([], 1000), ApiKeys(tmp_path / "keys"), RequestLog(None, False)
    service = Service(models, 2, limits, fetcher, keys, Metrics(None), log)

    async def pieces() -> AsyncIterator[bytes]:
        yield picture("red")

    async def ask(*requests: tuple[str, str, dict[str, str]]) -> list[Answer]:
        return [await service.answer(Call(method, path, b"", headers, pieces)) for method, path, headers in requests]

    key = {"x-api-key": "secret", "content-type": "image/png"}
    answers = asyncio.run(
        ask(
            *(("GET", path, {}) for path in (*FILES, "/web/examples/hat.jpg")),
            ("GET", "/web/about", {}),
            ("POST", "/explain", {"content-type": "image/png"}),
            ("GET", "/web/about", key),
            ("POST", "/explain", key),
            ("GET", "/web/../app.py", {}),
            ("POST", "/", {}),
        )
    )
    assert [answer.status for answer in answers] == [200] * 5 + [401, 401, 200, 200, 404, 405]
    assert json.loads(answers[7].body)["classes"] == ["blue", "green", "red"]
    assert json.loads(answers[8].body)["label"] == "red"


def test_what_the_page_is_told() -> None:
    identity = ModelIdentity("garments", "3", "ab" * 32)
    said = json.loads(about(ModelFacts(identity, ("hat", "sofa"), 64), RequestLimits(max_image_bytes=1000)).body)
    assert said == {
        "model": identity.to_dict(),
        "classes": ["hat", "sofa"],
        "examples": ["hat"],  # Drawings of what the model does not know would only mislead.
        "limits": {"max_image_bytes": 1000, "max_pixels": 50_000_000},
    }
    assert set(EXAMPLES.values()) == set(CLASSES)
