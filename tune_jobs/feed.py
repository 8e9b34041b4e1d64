"""What hands the cells to Ray Tune: a limited number at once, and again where a process died before it could begin."""

from __future__ import annotations

from typing import Any

from ray.tune.search.basic_variant import BasicVariantGenerator

from tune_jobs.scheduler import Scheduler


class Feed(BasicVariantGenerator):
    """Ray's own generator of a grid, with what it lacks.

    Ray starts a trial again whose process dies while it runs. Where the process dies that was to be handed over to it,
    it gives the trial up; and a trial that is paused counts as one that runs.

    Arguments:
        scheduler: knows how many trials are paused.
        max_concurrent: trials at once at most, 0 for as many as there is room for.
    """

    def __init__(self, scheduler: Scheduler, max_concurrent: int) -> None:
        super().__init__(max_concurrent=max_concurrent)
        self._scheduler = scheduler
        self._limit = max_concurrent
        self._again: list[Any] = []

    def run_again(self, trial: Any) -> None:
        """Begin a trial anew that Ray has given up; it goes on from its checkpoint."""
        self._again.append(trial.reset())

    def is_finished(self) -> bool:
        """Whether no trial is left to be handed out."""
        return not self._again and bool(super().is_finished())

    def next_trial(self) -> Any:
        """The next trial, None while there is no room."""
        if self._limit:
            self.max_concurrent = self._limit + self._scheduler.paused
        if not self._again:
            return super().next_trial()  # type: ignore[no-untyped-call]
        trial = self._again.pop(0)
        self._live_trials.add(trial.trial_id)
        return trial

    def save_to_dir(self, dirpath: str, session_str: str = "", **kwargs: Any) -> None:
        """Nothing is restored from Ray's state."""
