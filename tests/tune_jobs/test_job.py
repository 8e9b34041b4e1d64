from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.tune_jobs.small import QUIET
from tune_jobs.job import Job, RunSummary, Stages
from tune_jobs.records import TrialRow


def test_a_trial_without_an_epoch_is_json_all_the_same() -> None:
    best = TrialRow("00000", 10, 0.01, 0.0, "finished", 2, 1, 0.75, 0.5, 1.0)
    failed = replace(
        best, trial_id="00001", status="failed", best_epoch=0, val_accuracy=float("nan"), val_loss=float("nan")
    )
    summary = RunSummary(Path("run"), Path("run/best"), best, (best, failed), {"search": 1.0}, 3, 0, 0.1)
    found = json.loads(json.dumps(summary.to_json(), allow_nan=False))
    assert (found["run"], found["bundle"], found["best"]["val_accuracy"]) == ("run", "run/best", 0.75)
    assert [(trial["status"], trial["val_accuracy"], trial["val_loss"]) for trial in found["trials"]] == [
        ("finished", 0.75, 0.5),
        ("failed", None, None),
    ]


def test_a_run_that_goes_on_adds_to_what_it_has_spent() -> None:
    stages, nothing = Stages(QUIET), [None] * 7
    stages.seconds.update(data=1.0, features=0.5, search=2.25)
    shared: Any = (*nothing, stages, QUIET)
    assert Job(*shared).timings == {"data": 1.0, "features": 0.5, "search": 2.25}
    before = {"timings": {"data": 2.0, "backbone": 3.0, "features": 60.0}}
    timings = Job(*shared, before=before).timings
    assert list(timings.items()) == [("data", 3.0), ("backbone", 3.0), ("features", 60.5), ("search", 2.25)]


def test_a_stage_that_is_interrupted_has_taken_its_time() -> None:
    stages = Stages(QUIET)
    with pytest.raises(KeyboardInterrupt), stages.stage("search"):
        time.sleep(0.01)
        raise KeyboardInterrupt
    assert stages.seconds["search"] >= 0.01
