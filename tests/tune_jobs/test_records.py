from __future__ import annotations

import csv
import dataclasses
import math
from pathlib import Path
from typing import Any

from rayml.training import EpochMetrics
from tune_jobs.records import EpochRow, HistoryFile, TrialRow, summarise, winner, write_trials

CELL = {
    "size_inner": 10,
    "learning_rate": 0.01,
    "dropout": 0.0,
    "batch_size": 8,
    "weight_decay": 0.1,
    "label_smoothing": 0.2,
}


def epochs(*accuracies: float, losses: tuple[float, ...] = ()) -> list[EpochRow]:
    return [
        EpochRow("00003", number, EpochMetrics(1.0, 0.5, losses[number - 1] if losses else 1.0, accuracy), number * 0.5)
        for number, accuracy in enumerate(accuracies, start=1)
    ]


def trial(number: int, accuracy: float, loss: float = 1.0, status: str = "finished", best_epoch: int = 1) -> TrialRow:
    return TrialRow(f"{number:05}", 10, 0.01, 0.0, status, 3, best_epoch, accuracy, loss, 1.0)


def test_the_best_epoch_is_the_earliest_of_the_best() -> None:
    row = summarise("00003", CELL, epochs(0.5, 0.75, 0.75, 0.6, losses=(4, 3, 1, 2)), epochs=4, failed=False)
    # Equal accuracy: the earlier epoch, though its loss is higher.
    assert (row.best_epoch, row.val_accuracy, row.val_loss) == (2, 0.75, 3)
    assert (row.status, row.epochs, row.seconds) == ("finished", 4, 2.0)
    assert (row.size_inner, row.learning_rate, row.dropout) == (10, 0.01, 0.0)


def test_how_a_trial_ended() -> None:
    assert summarise("1", CELL, epochs(0.5), epochs=2, failed=False).status == "stopped"
    assert summarise("1", CELL, epochs(0.5, 0.6), epochs=2, failed=True).status == "failed"
    nothing = summarise("1", CELL, [], epochs=2, failed=True)
    assert (nothing.status, nothing.epochs, nothing.best_epoch, nothing.seconds) == ("failed", 0, 0, 0.0)
    assert math.isnan(nothing.val_accuracy) and math.isnan(nothing.val_loss)


def test_the_winner() -> None:
    low, high = trial(0, 0.8), trial(1, 0.9)
    assert winner([low, high]) is high
    # Equal accuracy: the lower loss; equal loss too: first in the grid.
    assert winner([trial(0, 0.9, 0.5), trial(1, 0.9, 0.4)]) == trial(1, 0.9, 0.4)
    assert winner([trial(2, 0.9), trial(0, 0.9), trial(1, 0.9)]) == trial(0, 0.9)
    # A stopped one may win, a failed one never.
    stopped = trial(2, 0.95, status="stopped")
    assert winner([high, stopped, trial(3, 0.99, status="failed")]) is stopped
    assert winner([trial(0, math.nan, math.nan, "failed", 0)]) is None
    assert winner([]) is None


def read(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_files_keep_every_digit(tmp_path: Path) -> None:
    history = HistoryFile(tmp_path / "history.csv")
    third = 1 / 3
    assert history.record(EpochRow("00001", 1, EpochMetrics(third, 2 / 3, third / 7, third), 1.23456))
    (line,) = read(tmp_path / "history.csv")
    assert list(line) == ["trial_id", "epoch", "loss", "accuracy", "val_loss", "val_accuracy", "seconds"]
    assert float(line["val_loss"]) == third / 7
    assert (line["trial_id"], line["seconds"]) == ("00001", "1.235")

    write_trials(tmp_path / "trials.csv", [trial(1, third), trial(0, 0.5)])
    lines = read(tmp_path / "trials.csv")
    assert ",".join(lines[0]) == (
        "trial_id,size_inner,learning_rate,dropout,status,epochs,best_epoch,val_accuracy,val_loss,seconds,"
        "batch_size,weight_decay,label_smoothing"
    )
    assert [line["trial_id"] for line in lines] == ["00000", "00001"]
    assert float(lines[1]["val_accuracy"]) == third
    assert sorted(path.name for path in tmp_path.iterdir()) == ["history.csv", "trials.csv"]


def row(trial_id: str, epoch: int, accuracy: float = 0.5) -> EpochRow:
    return EpochRow(trial_id, epoch, EpochMetrics(1.0, 0.5, 1 / 3, accuracy), epoch * 0.5)


def test_an_epoch_is_recorded_once(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    history = HistoryFile(path)
    for trial_id, epoch in (("00001", 1), ("00000", 1), ("00001", 2)):
        assert history.record(row(trial_id, epoch))
    before = path.read_bytes()
    assert not history.record(dataclasses.replace(row("00001", 1), seconds=9.0))
    assert path.read_bytes() == before
    # It came out differently: the new one is what the checkpoint goes with.
    assert history.record(row("00001", 1, 0.75))
    assert [(line["trial_id"], line["epoch"], line["val_accuracy"]) for line in read(path)] == [
        ("00000", "1", "0.5"),
        ("00001", "1", "0.75"),
        ("00001", "2", "0.5"),
    ]


def test_a_history_is_read_back_as_far_as_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    history = HistoryFile(path)
    rows = [row("00000", 1), row("00001", 1), row("00000", 2), row("00000", 4)]
    for each in rows:
        history.record(each)
    before = path.read_bytes()
    again = HistoryFile(path)
    assert path.read_bytes() == before  # Nothing to mend, nothing written.
    assert again.of("00000") == [rows[0], rows[2]]  # No gaps.
    assert (again.of("00001"), again.of("00002")) == ([rows[1]], [])
    for cut in range(1, 40):
        path.write_bytes(before[:-cut])
        kept = HistoryFile(path)
        assert kept.of("00000")[0] == rows[0]
        assert path.read_bytes().endswith(b"\n")
        assert all(len(line) == 7 and None not in line.values() for line in read(path))
        kept.record(row("00002", 1))
        assert HistoryFile(path).of("00002") == [row("00002", 1)]
    path.write_bytes(before + b"\0\0\0\xff\xfe,,,\n")
    assert HistoryFile(path).of("00000") == [rows[0], rows[2]]
    assert sorted(path.read_bytes().splitlines()) == sorted(before.splitlines())
