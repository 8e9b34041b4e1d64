"""Another version in a real server: it takes over, both are addressed in every protocol, and it goes back."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from rayml.bundle import Bundle
from rayml.errors import ServerError
from serving.servers import find_server
from tests.cli.test_commands import assert_refused, rayml
from tests.serving.live import Live, live
from tests.serving.tiny_bundle import picture, write_tiny_bundle

__all__ = ["live"]


@pytest.fixture
def deployed(live: Live, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """What `rayml deploy` said of a second version in the shared server, which is as before afterwards."""
    other = write_tiny_bundle(tmp_path / "other", temperature=2.0)
    done = rayml("deploy", other, "--address", live.url, "--json")
    assert done.returncode == 0, done
    assert "1 replica make version 4 ready" in done.stderr
    yield {**json.loads(done.stdout), "digest": Bundle.open(other).digest}
    back = rayml("deploy", live.bundle, "--address", live.url)
    assert (back.returncode, back.stdout) == (0, "primaries version 3 is live in 1 replica.\n"), back


def test_a_second_version(live: Live, deployed: dict[str, Any], tmp_path: Path) -> None:
    digest = deployed.pop("digest")
    assert deployed == {"name": "primaries", "version": 4, "bundle": digest, "replicas": 1}
    assert requests.get(live.url + "/readyz", timeout=30).json()["model"]["version"] == "4"
    first = Bundle.open(live.bundle).digest
    expected = {None: ("4", digest), "3": ("3", first), "4": ("4", digest)}
    headers = {"content-type": "image/png"}
    for version, identity in expected.items():
        query = f"?version={version}" if version else ""
        answer = requests.post(live.url + "/predict" + query, data=picture("red"), headers=headers, timeout=30)
        assert (answer.json()["model"]["version"], answer.headers["x-rayml-bundle"]) == identity
        path = f"/versions/{version}" if version else ""
        instance = {"instances": [{"b64": base64.b64encode(picture("red")).decode()}]}
        answer = requests.post(f"{live.url}/v1/models/primaries{path}:predict", json=instance, timeout=30)
        assert answer.status_code == 200 and len(answer.json()["predictions"]) == 1
        assert requests.get(f"{live.url}/v1/models/primaries{path}", timeout=30).status_code == 200
        assert requests.get(f"{live.url}/v2/models/primaries{path}", timeout=30).json()["name"] == "primaries"
        assert requests.get(f"{live.url}/v2/models/primaries{path}/ready", timeout=30).status_code == 200
    for path in ("/v1/models/primaries/versions/9", "/v2/models/primaries/versions/9", "/v2/models/x/versions/3"):
        assert requests.get(live.url + path, timeout=30).status_code == 404
    # A version that is not reproduced here changes nothing, and neither does one that is not there.
    assert_refused(rayml("deploy", tmp_path, "--address", live.url), 2, "expected a run with a bundle")
    foreign = write_tiny_bundle(tmp_path / "foreign", golden_factor=1.5)
    assert_refused(rayml("deploy", foreign, "--address", live.url), 2, "must reproduce the golden logits")
    assert requests.get(live.url + "/readyz", timeout=30).json()["model"]["version"] == "4"


def test_a_server_is_found_by_its_address(live: Live) -> None:
    port = live.settings.port
    for address in (live.url, live.url + "/", f"127.0.0.1:{port}", f"http://localhost:{port}"):
        assert find_server(address).url == live.url
    with pytest.raises(ServerError, match=f"Received: .*:{port}"):
        find_server("http://127.0.0.1:1")
