"""How a search stands, in one line: the best so far, trials that run and have ended, the time that is left."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from tune_jobs.records import EpochRow, TrialRow


class Standing:
    """Counts what it is told of.

    Arguments:
        cells: see `tune_jobs.grid`.
        epochs: of a trial at most.
        clock: seconds.
    """

    def __init__(
        self, cells: Iterable[dict[str, Any]], epochs: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._cells = {cell["trial"]: cell for cell in cells}
        self._epochs = epochs
        self._clock = clock
        self._done: Counter[str] = Counter()
        self._ended: dict[str, str] = {}
        self._best: EpochRow | None = None
        self._left = len(self._cells) * epochs  # Epochs, if no more trials are stopped.
        self._started, self._since = clock(), 0

    def known(self, rows: Iterable[EpochRow], ended: Iterable[TrialRow]) -> None:
        """What an interrupted search had done already; its time is not that of this one."""
        for row in rows:
            self.epoch(row)
        for trial in ended:
            self.end(trial.trial_id, trial.status)
        self._started, self._since = self._clock(), 0

    def epoch(self, row: EpochRow) -> None:
        """An epoch is done."""
        if row.epoch > self._done[row.trial_id]:
            self._left -= row.epoch - self._done[row.trial_id]
            self._since += row.epoch - self._done[row.trial_id]
            self._done[row.trial_id] = row.epoch
        if self._best is None or row.metrics.val_accuracy > self._best.metrics.val_accuracy:
            self._best = row

    def end(self, number: str, status: str) -> None:
        """A trial has ended: `finished`, `stopped` or `failed`."""
        if number not in self._ended:
            self._ended[number] = status
            self._left -= self._epochs - self._done[number]

    def line(self, running: int) -> str:
        """All of it.

        Arguments:
            running: trials that run now.
        """
        states = Counter(self._ended.values())
        parts = [f"{running} running", *(f"{states[state]} {state}" for state in ("stopped", "failed"))]
        if self._best:
            cell = self._cells[self._best.trial_id]
            where = f"size_inner {cell['size_inner']}, rate {cell['learning_rate']:.3g}, epoch {self._best.epoch}"
            parts.insert(0, f"best {self._best.metrics.val_accuracy:.4f} ({where})")
        # Before a trial has ended, nearly all the time went into TensorFlow's import and the compilation.
        if self._since and self._left and self._ended:
            seconds = self._left * (self._clock() - self._started) / self._since
            parts.append(f"at most {duration(seconds)} left")
        return ", ".join(parts)


def duration(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
