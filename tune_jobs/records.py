"""What a search leaves behind in RUN, written by rayml itself as it goes: history.csv and trials.csv."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, fields
from itertools import count, takewhile
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
        batch_size, weight_decay, label_smoothing: of its cell.
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
    batch_size: int = 32
    weight_decay: float = 0.0
    label_smoothing: float = 0.0


def summarise(trial_id: str, cell: dict[str, Any], history: list[EpochRow], *, epochs: int, failed: bool) -> TrialRow:
    """A trial's line from its epochs.

    Arguments:
        cell: see `tune_jobs.grid`.
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
        **{name: cell[name] for name in ("batch_size", "weight_decay", "label_smoothing")},
    )


def winner(trials: Iterable[TrialRow]) -> TrialRow | None:
    """The trial whose best epoch is best: highest validation accuracy, then lowest loss, then first in the grid.

    Failed trials never win, however good an epoch they had.
    """
    candidates = [trial for trial in trials if trial.status != "failed" and trial.best_epoch]
    return min(candidates, key=lambda trial: (-trial.val_accuracy, trial.val_loss, trial.trial_id), default=None)


class HistoryFile:
    """history.csv and what it says: a line an epoch, each in the file before the next epoch of its trial is known.

    Arguments:
        path: read if it is there, as far as it can be; lines that were cut short are removed.

    Raises:
        OSError: it cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: dict[str, dict[int, EpochRow]] = {}
        content = path.read_bytes() if path.exists() else b""
        text = content[: content.rfind(b"\n") + 1].decode(errors="replace")  # What has no end was cut short.
        lines = text.replace("\0", "").splitlines()
        for line in csv.reader(lines[1:]):
            with suppress(ValueError, TypeError):
                trial_id, epoch, *figures, seconds = line
                row = EpochRow(trial_id, int(epoch), EpochMetrics(*map(float, figures)), float(seconds))
                self._rows.setdefault(trial_id, {}).setdefault(row.epoch, row)
        if not content.endswith(b"\n") or len(lines) != 1 + sum(map(len, self._rows.values())):
            self.rewrite()

    def of(self, trial_id: str) -> list[EpochRow]:
        """The epochs of a trial from its first, as far as there are no gaps."""
        rows = self._rows.get(trial_id, {})
        return [rows[epoch] for epoch in takewhile(rows.__contains__, count(1))]

    def record(self, row: EpochRow) -> bool:
        """Add an epoch. One that is there already is left as it is, unless it came out differently this time, as it
        may after a damaged checkpoint on another processor: the checkpoints hold what comes of the new one.

        Returns:
            Whether there was anything to write.

        Raises:
            OSError: the disk is full or read-only.
        """
        known = self._rows.setdefault(row.trial_id, {})
        if row.epoch in known and known[row.epoch].metrics == row.metrics:
            return False
        changed = row.epoch in known
        known[row.epoch] = row
        if changed:
            self.rewrite()
        else:
            with self._path.open("a", newline="") as file:
                csv.writer(file).writerow(row.cells())
        return True

    def rewrite(self) -> None:
        """Write it whole, by trial and epoch."""
        rows = [by_epoch[epoch] for _, by_epoch in sorted(self._rows.items()) for epoch in sorted(by_epoch)]
        _write_csv(self._path, HISTORY_COLUMNS, [row.cells() for row in rows])


def write_trials(path: Path, trials: Iterable[TrialRow]) -> None:
    """Write trials.csv whole, in the order of the grid."""
    columns = [field.name for field in fields(TrialRow)]
    _write_csv(path, columns, [astuple(trial) for trial in sorted(trials, key=lambda trial: trial.trial_id)])


def write_cells(path: Path, cells: Sequence[dict[str, Any]]) -> None:
    """Write cells.csv: what each trial is, before there is anything to tell of it."""
    columns = ["trial_id", *(name for name in cells[0] if name != "trial")]
    _write_csv(path, columns, [tuple(cell.values()) for cell in cells])


def _write_csv(path: Path, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """All of it or, where the disk is full, none of it."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(rows)
    draft = path.with_suffix(".csv.tmp")
    draft.write_text(text.getvalue(), newline="")
    draft.replace(path)
