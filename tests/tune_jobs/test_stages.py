from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rayml.backbones import backbone_spec
from rayml.data import Manifest
from tests.tune_jobs.small import QUIET, settings
from tune_jobs.features import PassResult
from tune_jobs.job import Job, Stages
from tune_jobs.runfolder import read_record
from tune_jobs.stages import _begin

BACKBONE: Any = SimpleNamespace(
    name="tiny", image_size_px=64, weights_sha256="w", graph_sha256="g", preprocessing="p", precision="float32"
)


def test_a_run_that_goes_on_knows_where_its_features_came_from(tmp_path: Path) -> None:
    before = {"features": {"computed": 12, "cached": 3, "engine": "openvino"}, "timings": {"features": 60.0}}
    stages, run = Stages(QUIET), tmp_path / "run"
    stages.seconds["features"] = 0.5
    run.mkdir()
    shared: Any = (settings(tmp_path), backbone_spec("tiny"), Manifest(tmp_path, (), (), ()), (), None, run, tmp_path)
    found, computed = PassResult(0, 15, {}, 0.5, ""), PassResult(2, 13, {}, 0.5, "onnxruntime")
    _begin(Job(*shared, stages, QUIET, before), BACKBONE, found)
    record = read_record(run)
    assert (record["features"], record["timings"]) == (before["features"], {"features": 60.5})
    now = {"computed": 2, "cached": 13, "engine": "onnxruntime"}
    assert _begin(Job(*shared, stages, QUIET, before), BACKBONE, computed)["features"] == now
    assert _begin(Job(*shared, stages, QUIET), BACKBONE, found)["features"]["cached"] == 15
