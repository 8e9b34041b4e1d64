from __future__ import annotations

import pytest

from rayml.training import EpochMetrics
from tune_jobs.records import EpochRow, TrialRow
from tune_jobs.standing import Standing, duration

CELLS = [{"trial": f"{number:05}", "size_inner": 10, "learning_rate": 10.0**-number} for number in range(4)]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def row(trial: int, epoch: int, accuracy: float) -> EpochRow:
    return EpochRow(f"{trial:05}", epoch, EpochMetrics(1.0, 0.5, 1.0, accuracy), 1.0)


def test_one_line_says_how_it_stands() -> None:
    clock = Clock()
    standing = Standing(CELLS, 10, clock)
    assert standing.line(0) == "0 running, 0 stopped, 0 failed"
    clock.now += 4
    standing.epoch(row(0, 1, 0.5))
    standing.epoch(row(1, 1, 0.75))
    assert standing.line(2) == "best 0.7500 (size_inner 10, rate 0.1, epoch 1), 2 running, 0 stopped, 0 failed"
    standing.epoch(row(0, 2, 0.75))  # As good, but later.
    standing.end("00000", "stopped")
    standing.end("00000", "stopped")  # Told twice.
    standing.end("00003", "failed")
    clock.now += 2
    # Three epochs took six seconds; of forty, eight and ten fall away.
    assert standing.line(1) == (
        "best 0.7500 (size_inner 10, rate 0.1, epoch 1), 1 running, 1 stopped, 1 failed, at most 38 s left"
    )


def test_an_epoch_told_again_counts_once() -> None:
    clock = Clock()
    standing = Standing(CELLS[:2], 3, clock)
    standing.end("00001", "failed")
    clock.now += 1
    standing.epoch(row(0, 2, 0.5))  # A trial that was started again tells of its last epoch.
    standing.epoch(row(0, 2, 0.5))
    assert standing.line(1).endswith("at most 0 s left")  # half a second
    standing.epoch(row(0, 3, 0.5))
    standing.end("00000", "finished")
    assert "left" not in standing.line(0)


def test_what_was_done_before_an_interruption_takes_no_time_of_this_one() -> None:
    clock = Clock()
    standing = Standing(CELLS, 10, clock)
    ended = TrialRow("00000", 10, 1.0, 0.0, "finished", 10, 1, 0.9, 1.0, 1.0)
    standing.known([row(0, epoch, 0.9) for epoch in range(1, 11)], [ended])
    assert standing.line(0) == "best 0.9000 (size_inner 10, rate 1, epoch 1), 0 running, 0 stopped, 0 failed"
    clock.now += 3
    standing.epoch(row(1, 1, 0.1))
    assert standing.line(1).endswith("at most 87 s left")


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (99.4, "99 s"), (600, "10 min"), (5990, "100 min"), (9000, "2.5 h")]
)
def test_seconds_for_people(seconds: float, words: str) -> None:
    assert duration(seconds) == words
