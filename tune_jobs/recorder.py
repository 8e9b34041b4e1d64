"""The callback that follows a search: each epoch into history.csv, a line for each trial that has ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray import cloudpickle, tune

from rayml.errors import RaymlError
from rayml.progress import Advance
from rayml.training import EpochMetrics
from tune_jobs.records import EpochRow, HistoryFile, TrialRow, summarise


def trial_number(trial: Any) -> str:
    """A trial's number in the grid: `12ab3_00007` -> `00007`, the same in each run of the same grid."""
    return str(trial.trial_id).rsplit("_", 1)[-1]


class Recorder(tune.Callback):
    """Follows a search under Ray Tune, which calls it and pickles it with its own state.

    Arguments:
        history: where the epochs go.
        epochs: how many each trial is to run.
        advance: told of each trial that has ended; not pickled, since a bar belongs to this process.
    """

    def __init__(self, history: HistoryFile, epochs: int, advance: Advance) -> None:
        self.rows: dict[str, TrialRow] = {}
        self.errors: dict[str, str] = {}
        self.checkpoints: dict[str, Path] = {}
        self._history = history
        self._epochs = epochs
        self._advance: Advance | None = advance
        self._by_trial: dict[str, list[EpochRow]] = {}
        self._best = float("-inf")

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_advance": None}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """An epoch is done."""
        metrics = EpochMetrics(*(result[name] for name in ("loss", "accuracy", "val_loss", "val_accuracy")))
        row = EpochRow(trial_number(trial), result["epoch"], metrics, result["time_total_s"])
        self._history.append(row)
        self._by_trial.setdefault(row.trial_id, []).append(row)
        self._best = max(self._best, metrics.val_accuracy)

    def on_checkpoint(self, iteration: int, trials: list[Any], trial: Any, checkpoint: Any, **info: Any) -> None:
        """A checkpoint is on the storage."""
        self.checkpoints[trial_number(trial)] = Path(checkpoint.path)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial ran all its epochs or was stopped."""
        self._close(trial, failed=False)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial raised, or its process died."""
        # Ray copies the file to the run's folder only later, where its own `get_pickled_error` looks for it.
        error = cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
        cause = getattr(error, "cause", None) or error
        text = cause.message if isinstance(cause, RaymlError) else f"{type(cause).__name__}: {cause}"
        self.errors[trial_number(trial)] = text.splitlines()[0]
        self._close(trial, failed=True)

    def _close(self, trial: Any, *, failed: bool) -> None:
        number = trial_number(trial)
        history = self._by_trial.get(number, [])
        self.rows[number] = summarise(number, trial.config, history, epochs=self._epochs, failed=failed)
        if self._advance:
            self._advance(1, f"best {self._best:.4f}" if history else "")
