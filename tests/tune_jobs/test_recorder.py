from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.conftest import ROOT
from tests.tune_jobs.small import settings
from tune_jobs.feed import Feed
from tune_jobs.recorder import RETRIES, Recorder
from tune_jobs.search import Search
from tune_jobs.standing import Standing
from tune_jobs.tracker import Trackers

OUT_OF_MEMORY = """Failure # 5 (occurred at 2026-01-01_00-00-00)
The actor died unexpectedly before finishing this task.
Failure # 6 (occurred at 2026-01-01_00-00-10)
Task was killed due to the node running low on memory.
Memory on the node was 30.17GB / 31.00GB
"""
DIED = "trial 00001: its process died; it goes on from its last checkpoint in another"


def recorded(tmp_path: Path) -> tuple[Search, Feed, Recorder, list[str]]:
    """A search with its feed, its recorder and what that says."""
    chosen = settings(tmp_path)
    chosen.out.mkdir()
    search, said = Search(chosen, chosen.out), list[str]()
    feed = Feed(search.scheduler, 0)
    standing, trackers = Standing(search.cells, chosen.epochs), Trackers((), search.cells, said.append)
    recorder = Recorder(
        search.history, search.scheduler, feed, standing, trackers, lambda done, note="": None, said.append
    )
    return search, feed, recorder, said


def killed(tmp_path: Path, failures: int) -> Any:
    """A trial whose process was killed so often while it ran; Ray has given it up."""
    (tmp_path / "error.txt").write_text(OUT_OF_MEMORY)
    trial: Any = SimpleNamespace(
        config={"cell": {"trial": "00001"}},
        num_failures=failures,
        pickled_error_file=None,
        error_file=str(tmp_path / "error.txt"),
        reset=lambda: trial,
    )
    return trial


def test_a_trial_that_was_killed_for_memory_fails_alone(tmp_path: Path) -> None:
    """Ray pickles no error of it, and gives it up after its last try."""
    search, feed, recorder, said = recorded(tmp_path)
    trial = killed(tmp_path, RETRIES + 1)
    recorder.on_trial_error(0, [], trial)
    (failed,) = search.ledger.decisions
    assert failed.trial == "00001"
    assert failed.reason == "epoch 0: Task was killed due to the node running low on memory."
    assert failed.again
    # Where Ray gives it up before its last try, it is begun again, as after any death.
    trial.num_failures = 1
    recorder.on_trial_error(0, [], trial)
    assert not feed.is_finished()
    assert said == [DIED]
    assert len(search.ledger.decisions) == 1


def test_a_trial_goes_on_as_often_as_the_page_says(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "search.md").read_text(encoding="utf-8")
    assert "goes on from its last epoch in another process, up to five times; then that trial has failed" in page
    search, _, recorder, said = recorded(tmp_path)
    for _ in range(5):
        recorder.on_trial_error(0, [], killed(tmp_path, 1))  # Ray gives it up at once where it could not begin.
    assert (said, search.ledger.decisions) == ([DIED] * 5, ())
    recorder.on_trial_error(0, [], killed(tmp_path, 1))
    assert len(said) == 5 and [made.decision for made in search.ledger.decisions] == ["fail"]
