from __future__ import annotations

from typing import Any

from rayml.errors import SearchError
from rayml.training import EpochMetrics
from tune_jobs.records import EpochRow
from tune_jobs.tracker import Tracker, Trackers

CELLS = ({"trial": "00000", "size_inner": 4}, {"trial": "00001", "size_inner": 8})


class Listener(Tracker):
    """Notes what it is told; fails at the word that it is given."""

    name = "listener"

    def __init__(self, fails_at: str = "", error: Exception | None = None) -> None:
        self.heard: list[tuple[Any, ...]] = []
        self._fails_at, self._error = fails_at, error

    def _hear(self, *what: Any) -> None:
        if what[0] == self._fails_at and self._error:
            raise self._error
        self.heard.append(what)

    def begin(self, number: str, cell: dict[str, Any]) -> None:
        self._hear("begin", number, cell)

    def epoch(self, row: EpochRow) -> None:
        self._hear("epoch", row.trial_id, row.epoch)

    def end(self, number: str, status: str) -> None:
        self._hear("end", number, status)

    def close(self, status: str) -> None:
        self._hear("close", status)


def row(trial: str, epoch: int) -> EpochRow:
    return EpochRow(trial, epoch, EpochMetrics(1.0, 0.5, 1.0, 0.5), 1.0)


def test_each_trial_begins_before_anything_is_told_of_it() -> None:
    listener, said = Listener(), list[str]()
    trackers = Trackers([listener], CELLS, said.append)
    trackers.epoch(row("00001", 1))
    trackers.epoch(row("00001", 2))
    trackers.end("00000", "failed")
    trackers.close("finished")
    assert listener.heard == [
        ("begin", "00001", {"size_inner": 8}),
        ("epoch", "00001", 1),
        ("epoch", "00001", 2),
        ("begin", "00000", {"size_inner": 4}),
        ("end", "00000", "failed"),
        ("close", "finished"),
    ]
    assert said == []


def test_one_that_fails_is_said_once_and_left_out() -> None:
    said: list[str] = []
    full, gone, sound = (
        Listener("epoch", OSError(28, "No space left on device")),
        Listener("begin", SearchError("the server failed")),
        Listener(),
    )
    trackers = Trackers([full, gone, sound], CELLS, said.append)
    for epoch in (1, 2):
        trackers.epoch(row("00000", epoch))
    trackers.close("finished")
    assert said == [
        "listener: the server failed; the search goes on without it",
        "listener: No space left on device; the search goes on without it",
    ]
    assert len(sound.heard) == 4
    assert len(full.heard) == 1 and gone.heard == []
