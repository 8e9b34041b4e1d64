"""Metrics: what is counted, and that replicas of one server add up."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from rayml.predictor import Prediction
from serving.metrics import METRICS_TYPE, Metrics
from serving.protocols.base import ModelIdentity

MODEL = ModelIdentity("shirts", "3", "ab" * 32)
PREDICTION = Prediction("hat", 0.75, {"hat": 0.75, "shoe": 0.25}, (1.0, 0.0))


def _lines(page: bytes) -> dict[str, float]:
    pairs = (line.rsplit(" ", 1) for line in page.decode().splitlines() if line and not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def test_what_is_counted() -> None:
    metrics = Metrics(None)
    metrics.request("/predict", 200, 0.02)
    metrics.request("/predict", 503, 0.0001)
    metrics.batch(4)
    metrics.queued(0.001)
    metrics.fetched(3.0)
    metrics.predicted(MODEL, 0.001, 0.02, PREDICTION)
    with metrics.place():
        inside = _lines(metrics.page().body)
    answer = metrics.page()
    assert answer.content_type == METRICS_TYPE
    seen = _lines(answer.body)
    assert seen['rayml_requests_total{route="/predict",status="200"}'] == 1
    assert seen['rayml_requests_total{route="/predict",status="503"}'] == 1
    assert seen['rayml_request_seconds_bucket{le="0.025",route="/predict"}'] == 2
    assert seen['rayml_batch_size_bucket{le="4.0"}'] == 1 and seen['rayml_batch_size_bucket{le="2.0"}'] == 0
    assert seen["rayml_queue_seconds_count"] == seen["rayml_fetch_seconds_count"] == 1
    assert seen["rayml_decode_seconds_count"] == seen["rayml_inference_seconds_count"] == 1
    assert seen['rayml_predictions_total{class="hat",model="shirts",version="3"}'] == 1
    assert seen['rayml_confidence_bucket{le="0.8",model="shirts",version="3"}'] == 1
    assert seen['rayml_confidence_bucket{le="0.7",model="shirts",version="3"}'] == 0
    assert (inside["rayml_requests_in_flight"], seen["rayml_requests_in_flight"]) == (1, 0)


def test_replicas_that_share_a_folder_add_up_and_the_dead_hold_no_place(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, sys\n"
        "from serving.metrics import Metrics\n"
        "metrics = Metrics(pathlib.Path(sys.argv[1]))\n"
        "metrics.request('/predict', 200, 0.1)\n"
        "held = metrics.place()\n"
        "held.__enter__()\n"
        "print(metrics.page().body.decode(), flush=True)\n"
        "os._exit(0)\n"  # Without leaving its place, as if it had been killed.
    )
    pages = [
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "m")], capture_output=True, text=True, check=True, timeout=120
        ).stdout
        for _ in range(3)
    ]
    counted = [_lines(page.encode()) for page in pages]
    assert [c['rayml_requests_total{route="/predict",status="200"}'] for c in counted] == [1, 2, 3]
    assert [c["rayml_requests_in_flight"] for c in counted] == [1, 1, 1]
