"""What a search leaves behind in RUN, written by rayml itself as it goes: history.csv and trials.csv."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from rayml.training import EpochMetrics

HISTORY_COLUMNS = ("trial_id", "epoch", "loss", "accuracy", "val_loss", "val_accuracy", "seconds")


@dataclass(frozen=True)
class EpochRow:
    """One line of history.csv: what an epoch of a trial gave, and the seconds since the trial began."""

    trial_id: str
    epoch: int
    metrics: EpochMetrics
    seconds: float

    def cells(self) -> tuple[Any, ...]:
        """The values under `HISTORY_COLUMNS`; repr keeps every digit, so that a figure can be compared exactly."""
        return (self.trial_id, self.epoch, *astuple(self.metrics), f"{self.seconds:.3f}")


@dataclass(frozen=True)
class TrialRow:
    """One line of trials.csv.

    Arguments:
        trial_id: the trial's number in the grid, five digits.
        size_inner, learning_rate, dropout: its cell.
        status: `finished` (all epochs), `stopped` (by the scheduler) or `failed`.
        epochs: how many it ran.
        best_epoch: of highest validation accuracy, the earlier one where two are equal; 0 if there is none.
        val_accuracy, val_loss: after the best epoch; not a number if there is none.
        seconds: from its first epoch to its last.
    """

    trial_id: str
    size_inner: int
    learning_rate: float
    dropout: float
    status: str
    epochs: int
    best_epoch: int
    val_accuracy: float
    val_loss: float
    seconds: float


def summarise(trial_id: str, cell: dict[str, Any], history: list[EpochRow], *, epochs: int, failed: bool) -> TrialRow:
    """A trial's line from its epochs.

    Arguments:
        cell: holds `size_inner`, `learning_rate` and `dropout`.
        history: its rows, by epoch.
        epochs: how many it was to run.
        failed: it ended by an error.
    """
    best = max(history, key=lambda row: (row.metrics.val_accuracy, -row.epoch), default=None)
    return TrialRow(
        trial_id=trial_id,
        size_inner=cell["size_inner"],
        learning_rate=cell["learning_rate"],
        dropout=cell["dropout"],
        status="failed" if failed else "finished" if len(history) == epochs else "stopped",
        epochs=len(history),
        best_epoch=best.epoch if best else 0,
        val_accuracy=best.metrics.val_accuracy if best else float("nan"),
        val_loss=best.metrics.val_loss if best else float("nan"),
        seconds=round(history[-1].seconds, 3) if history else 0.0,
    )


def winner(trials: Iterable[TrialRow]) -> TrialRow | None:
    """The trial whose best epoch is best: highest validation accuracy, then lowest loss, then first in the grid.

    Failed trials never win, however good an epoch they had.
    """
    candidates = [trial for trial in trials if trial.status != "failed" and trial.best_epoch]
    return min(candidates, key=lambda trial: (-trial.val_accuracy, trial.val_loss, trial.trial_id), default=None)


class HistoryFile:
    """history.csv, a line an epoch, each on disk before the next epoch is known."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._append(HISTORY_COLUMNS)

    def append(self, row: EpochRow) -> None:
        """Add a line."""
        self._append(row.cells())

    def _append(self, cells: tuple[Any, ...]) -> None:
        with self._path.open("a", newline="") as file:
            csv.writer(file).writerow(cells)


def write_trials(path: Path, trials: Iterable[TrialRow]) -> None:
    """Write trials.csv whole, in the order of the grid."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([field.name for field in fields(TrialRow)])
    writer.writerows(astuple(trial) for trial in sorted(trials, key=lambda trial: trial.trial_id))
    draft = path.with_suffix(".csv.tmp")
    draft.write_text(text.getvalue(), newline="")
    draft.replace(path)
