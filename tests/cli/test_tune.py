from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from rayml.cli.tune import tune
from tune_jobs.job import RunSummary
from tune_jobs.records import TrialRow


@pytest.mark.parametrize("there", [True, False])
def test_a_report_is_named_where_there_is_one(there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    best = TrialRow("00000", 10, 0.01, 0.0, "finished", 2, 1, 0.75, 0.5, 1.0)
    summary = RunSummary(tmp_path, tmp_path / "best", best, (best,), {}, 3, 0, 0.1)
    if there:
        (tmp_path / "report.html").touch()

    def done(*_: Any) -> RunSummary:
        return summary

    monkeypatch.setattr("tune_jobs.run.run_tune", done)
    result = CliRunner().invoke(tune, [str(tmp_path), "--out", str(tmp_path / "run"), "--backbone", "tiny"])
    assert result.exit_code == 0, result.output
    report = [f"The report: {tmp_path / 'report.html'}"] if there else []
    assert result.stdout.splitlines()[2:] == [
        "The largest class alone would score 0.1000.",
        *report,
        f"Next: rayml serve {tmp_path / 'best'}",
    ]
