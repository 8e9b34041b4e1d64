"""What a trial's process keeps between trials; what a trial does is tested with the search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayml.storage import FolderStore
from rayml.training import HeadTrainer
from tests.tune_jobs.small import vectors
from tune_jobs import trial


def test_kinds_of_head_share_the_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    data, other = vectors(), vectors(seed=2)
    kept: dict[tuple[Any, ...], Any] = {(other.digest, None, 4, 0.0, 16): HeadTrainer(other, size_inner=4)}
    monkeypatch.setattr(trial, "_trainers", kept)

    def trainer(size_inner: int) -> Any:
        return trial._trainer({"cell": {"size_inner": size_inner, "dropout": 0.0, "batch_size": 16}}, data)

    small, large = trainer(4), trainer(8)
    assert small is trainer(4) and small is not large
    assert large._train is small._train and large._validation is small._validation
    np.testing.assert_array_equal(small._train[0], data.train_features)


def test_a_machine_that_sees_another_run_ends_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it trains or writes anything there."""
    reported: list[dict[str, Any]] = []
    monkeypatch.setattr("ray.tune.report", reported.append)
    monkeypatch.setattr(trial, "node_name", lambda: "10.0.0.7")
    here, there = tmp_path / "here" / "checkpoints", tmp_path / "there" / "checkpoints"
    mark = FolderStore(here).mark()
    nothing: Any = None
    trial.train_head({"cell": {"trial": "00000"}, "checkpoints": str(there), "mark": mark}, nothing)
    (told,) = reported
    assert told["epoch"] == 0 and trial._unshared(here, mark) == ""
    assert told["halted"] == (
        f"RUN, {there.parent}, must be one folder that all machines see by the same path (docs/cluster.md). "
        "Received: another one, or none, on 10.0.0.7"
    )
    assert not there.exists()
    here.joinpath("mark-2").mkdir()
    assert "mark-2 could not be read" in trial._unshared(here, "mark-2")
