"""Clients that nobody here wrote, unmodified, each in an environment of its own, against the shared server."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayml.bundle import Bundle
from rayml.predictor import Prediction, Predictor
from tests.clients.environments import environment, run
from tests.serving.live import Live, live
from tests.serving.tiny_bundle import CLASSES, picture

__all__ = ["live"]

pytestmark = pytest.mark.slow
SCRIPTS = Path(__file__).parent / "scripts"
MODEL = "primaries"


class _Expected:
    """A picture, its pixels and what the bundle says of it."""

    def __init__(self, live: Live, folder: Path) -> None:
        predictor = Predictor(Bundle.open(live.bundle), threads=1)
        self.image = picture("green")
        self.picture = folder / "green.png"
        self.picture.write_bytes(self.image)
        self.pixels = folder / "pixels.npy"
        np.save(self.pixels, predictor.decode(self.image)[np.newaxis])
        self.prediction: Prediction = predictor.predict([self.image])[0]
        self.base64 = base64.b64encode(self.image).decode()

    def check(self, outputs: dict[str, Any]) -> None:
        """Hold named outputs, whatever their nesting and types, against the bundle's answer."""
        probabilities = np.ravel(outputs["probabilities"]).astype(float)
        logits = np.ravel(outputs["logits"]).astype(float)
        (label,) = np.ravel(outputs["label"]).tolist()
        assert probabilities == pytest.approx(list(self.prediction.probabilities.values()), abs=1e-5)
        assert logits == pytest.approx(self.prediction.logits, abs=1e-4)
        assert (label.decode() if isinstance(label, bytes) else label) in ("green", "b'green'")


@pytest.fixture
def expected(live: Live, tmp_path: Path) -> _Expected:
    """What every client has to find."""
    return _Expected(live, tmp_path)


def test_tritonclient(live: Live, expected: _Expected) -> None:
    python = environment("tritonclient[http]==2.73.0") / "python"
    script = [str(python), str(SCRIPTS / "triton.py"), live.url, MODEL, str(expected.picture), str(expected.pixels)]
    found = json.loads(run(script))
    assert found["live"] and found["ready"] and found["model_ready"] and found["version_ready"]
    assert found["other_ready"] is False
    assert found["server"]["extensions"] == ["binary_tensor_data"]
    assert found["model"]["versions"] == ["3"]
    assert len(found["answers"]) == 4
    for outputs in (*found["answers"], found["bytes"]):
        expected.check(outputs)
    assert found["id"] == "x"
    assert "model must be primaries" in found["error"]
    assert "compressed" in found["compressed"]


def test_kserve(live: Live, expected: _Expected) -> None:
    python = environment("kserve==0.21.0") / "python"
    script = [str(python), str(SCRIPTS / "kserve_rest.py"), live.url, MODEL]
    found = json.loads(run([*script, str(expected.picture), str(expected.pixels)]).splitlines()[-1])
    assert found["live"] and found["ready"] and found["model_ready"]
    for outputs in (*found["answers"], found["bytes"], found["v1"]["predictions"][0]):
        expected.check(outputs)
    assert "model must be primaries" in found["error"]


def test_mlserver_infer(live: Live, expected: _Expected, tmp_path: Path) -> None:
    mlserver = environment("mlserver==1.7.1") / "mlserver"
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [expected.base64]}
    lines = [json.dumps({"id": str(n), "inputs": [tensor]}) for n in range(5)]
    (tmp_path / "in.txt").write_text("\n".join(lines) + "\n")
    host = live.url.removeprefix("http://")
    command = [str(mlserver), "infer", "--url", host, "--model-name", MODEL, "--workers", "2"]
    run([*command, "--input-data-path", "in.txt", "--output-data-path", "out.txt"], cwd=tmp_path)
    answers = [json.loads(line) for line in (tmp_path / "out.txt").read_text().splitlines()]
    assert len(answers) == 5
    for answer in answers:
        expected.check({output["name"]: output["data"] for output in answer["outputs"]})


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(live: Live, expected: _Expected, tmp_path: Path) -> None:
    def curl(*arguments: str) -> Any:
        return json.loads(run(["curl", "--silent", "--show-error", "--max-time", "60", *arguments]))

    label = expected.prediction.label
    file = str(expected.picture)
    own = live.url + "/predict"
    assert curl("--data-binary", f"@{file}", "-H", "content-type: image/png", own)["label"] == label
    assert curl("--form", f"file=@{file}", own)["label"] == label
    assert len(curl("--form", f"file=@{file}", "--form", f"file=@{file}", own + "/batch")["predictions"]) == 2
    # As in TensorFlow Serving's documentation: -d, and no content type of one's own.
    body = tmp_path / "body.json"
    body.write_text(json.dumps({"instances": [{"b64": expected.base64}]}))
    for address in (f"{live.url}/v1/models/{MODEL}:predict", f"{live.url}/v1/models/{MODEL}/versions/3:predict"):
        expected.check(curl("-d", f"@{body}", "-X", "POST", address)["predictions"][0])
    # A body that curl announces with Expect: 100-continue, and one in chunks.
    large = tmp_path / "large.png"
    large.write_bytes(expected.image + bytes(80_000))
    assert curl("--data-binary", f"@{large}", "-H", "content-type: image/png", own)["label"] == label
    chunked = ("-H", "transfer-encoding: chunked", "-H", "content-type: image/png")
    assert curl("--data-binary", f"@{large}", *chunked, own)["label"] == label
    assert curl("--http1.0", "--data-binary", f"@{file}", "-H", "content-type: image/png", own)["label"] == label
    assert set(curl(live.url + "/readyz")["model"]) == {"name", "version", "bundle"}
    assert len(CLASSES) == len(curl("--data-binary", f"@{file}", "-H", "content-type: image/png", own)["probabilities"])


def test_schemathesis(live: Live, tmp_path: Path) -> None:
    schemathesis = environment("schemathesis==4.32.5") / "schemathesis"
    checks = (
        "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,"
        "response_headers_conformance,unsupported_method,ignored_auth"
    )
    # The stateful phase follows links between operations, of which there are none: it only repeats the others for long.
    command = [str(schemathesis), "run", f"{live.url}/openapi.json", "--checks", checks]
    command += ["--phases", "examples,coverage,fuzzing", "--max-examples", "20", "--seed", "1"]
    output = run([*command, "--request-timeout", "60", "--no-color"], cwd=tmp_path, timeout_s=1200)
    assert "Test cases:" in output and " passed" in output and " failed" not in output, output
