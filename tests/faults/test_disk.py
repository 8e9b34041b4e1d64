"""What cannot be written ends the search with a line that names it, and nothing is lost."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from rayml.errors import SearchError
from tests.faults.driver import search
from tests.faults.test_kills import figures, history, rows
from tune_jobs.records import HistoryFile

SMALL: dict[str, Any] = {"learning_rate": (0.01, 0.02), "epochs": 3}


@pytest.mark.slow
def test_checkpoints_that_cannot_be_written(ray_cluster: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "checkpoints").write_text("a file where the folder belongs")
    with pytest.raises(SearchError, match=r"run could not be written \(mark-.* to .*checkpoints: File exists\)$"):
        search(ray_cluster, tmp_path, **SMALL)
    (run / "checkpoints").unlink()
    places = [run / "checkpoints" / trial for trial in ("00000", "00001")]
    for place in places:
        place.parent.mkdir(exist_ok=True)
        place.write_text("a file where the folder belongs")
    with pytest.raises(SearchError, match=r"the checkpoint of trial 0000[01] could not be written \(") as caught:
        search(ray_cluster, tmp_path, **SMALL)
    assert "--resume" in caught.value.hint
    assert rows(tmp_path) == 0
    assert not (run / "trials.csv").exists()
    for place in places:
        place.unlink()
    assert len(search(ray_cluster, tmp_path, **SMALL).trials) == 2
    assert rows(tmp_path) == 4  # Of two after epoch 1, one goes on.


@pytest.mark.slow
def test_a_history_that_cannot_be_written(ray_cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = search(ray_cluster, tmp_path / "undisturbed", **SMALL)
    record, written = HistoryFile.record, []

    def full(self: HistoryFile, row: Any) -> bool:
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(row)
        return record(self, row)

    with monkeypatch.context() as patch:
        patch.setattr(HistoryFile, "record", full)
        with pytest.raises(SearchError, match=r"written to history\.csv \(No space left on device\)"):
            search(ray_cluster, tmp_path / "full", **SMALL)
    assert rows(tmp_path / "full") == 2
    assert figures(search(ray_cluster, tmp_path / "full", **SMALL)) == figures(undisturbed)
    assert history(tmp_path / "full") == history(tmp_path / "undisturbed")
