"""The callback that follows a search: epochs to history.csv and trackers, faults to the scheduler, all to people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import cloudpickle, tune
from ray.exceptions import RayActorError

from rayml.errors import RaymlError
from rayml.progress import Advance
from rayml.training import EpochMetrics
from tune_jobs.feed import Feed
from tune_jobs.ledger import STATUS
from tune_jobs.records import EpochRow, HistoryFile
from tune_jobs.scheduler import Scheduler, trial_number
from tune_jobs.standing import Standing
from tune_jobs.tracker import Trackers

RETRIES = 5  # Of a trial whose process died; it goes on from its checkpoint.


class Recorder(tune.Callback):
    """Follows a search under Ray Tune, which calls it and pickles it with its own state.

    Arguments:
        history: where the epochs go.
        scheduler: told of trials whose process died too often, and of a disk that is full.
        feed: begins a trial again that Ray gives up too early.
        standing: told of everything, for the terminal.
        trackers: who else follows.
        advance: told of each trial that has ended, and how the search stands.
        say: prints a line. None of these four is pickled, since they belong to this process.

    Attributes:
        ended: the numbers of the trials that it has seen come to their end.
    """

    def __init__(
        self,
        history: HistoryFile,
        scheduler: Scheduler,
        feed: Feed,
        standing: Standing,
        trackers: Trackers,
        advance: Advance,
        say: Callable[[str], None],
    ) -> None:
        self._history = history
        self._scheduler = scheduler
        self._feed = feed
        self._begun_again: Counter[str] = Counter()
        self._running: set[str] = set()
        self.ended: set[str] = set()
        self._standing: Standing | None = standing
        self._trackers: Trackers | None = trackers
        self._advance: Advance | None = advance
        self._say: Callable[[str], None] | None = say

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), **dict.fromkeys(("_standing", "_trackers", "_advance", "_say"))}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has a process."""
        self._running.add(trial_number(trial))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """An epoch is done, or a trial was started again and says where it is."""
        if "note" in result and self._say:
            self._say(f"trial {trial_number(trial)}: {result['note']}")
        if "failed" in result or "halted" in result:
            return
        metrics = EpochMetrics(*(result[name] for name in ("loss", "accuracy", "val_loss", "val_accuracy")))
        row = EpochRow(trial_number(trial), result["epoch"], metrics, result["seconds"])
        try:
            for each in (*result.get("earlier", ()), row):
                new = self._history.record(each)
                if new and self._standing and self._trackers:
                    self._standing.epoch(each)
                    self._trackers.epoch(each)
        except OSError as error:
            self._scheduler.halt.reason = f"an epoch could not be written to history.csv ({error.strerror or error})"
        self._show(0)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial ran all its epochs, was stopped, or failed by itself."""
        self._close(trial_number(trial))

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The process of a trial died; Ray starts it again."""
        self._say_died(trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The process of a trial died once too often, or a trial raised again and again."""
        text, died = _cause(trial)
        number = trial_number(trial)
        if died and self._begun_again[number] < RETRIES >= trial.num_failures:
            self._begun_again[number] += 1
            self._say_died(trial)
            self._feed.run_again(trial)
            return
        try:
            self._scheduler.fail(number, len(self._history.of(number)), text.splitlines()[0], again=True)
        except OSError as full:
            self._scheduler.halt.reason = f"a decision could not be written to ledger.jsonl ({full.strerror or full})"
        self._close(number)

    def _say_died(self, trial: Any) -> None:
        if self._say:
            self._say(f"trial {trial_number(trial)}: its process died; it goes on from its last checkpoint in another")

    def _close(self, number: str) -> None:
        self._running.discard(number)
        self.ended.add(number)
        ending = self._scheduler.ledger.ending(number)
        if ending and self._standing and self._trackers and not self._scheduler.halt.reason:
            self._standing.end(number, STATUS[ending.decision])
            self._trackers.end(number, STATUS[ending.decision])
            self._show(1)

    def _show(self, ended: int) -> None:
        if self._standing and self._advance:
            self._advance(ended, self._standing.line(len(self._running) - self._scheduler.paused))


def _cause(trial: Any) -> tuple[str, bool]:
    """Why Ray gave a trial up, and whether its process died, as against that it raised.

    Ray copies its files to the run's folder only later, where its own `get_pickled_error` looks for them. It pickles
    what a trial raised and that a process died, but not that it was killed because the machine ran out of memory.
    """
    if trial.pickled_error_file is None:
        last = Path(trial.error_file).read_text(errors="replace").rpartition("Failure #")[2]
        return "".join(last.splitlines()[1:2]) or "its process died", True
    error = cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    cause = getattr(error, "cause", None) or error
    text = cause.message if isinstance(cause, RaymlError) else f"{type(cause).__name__}: {cause}"
    return text, isinstance(error, RayActorError)
