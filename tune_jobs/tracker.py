"""Whoever follows a search besides RUN's own files: told of each trial's beginning, epochs and end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

from rayml.errors import RaymlError
from tune_jobs.records import EpochRow

FIGURES = ("val_accuracy", "val_loss", "accuracy", "loss")


class Tracker(ABC):
    """Follows a search. Of a search that goes on it is first told all that has been.

    Every method may raise `OSError` or `RaymlError`: then the search goes on without it.

    Arguments:
        name: for what is said of it.
    """

    name = ""

    def begin(self, number: str, cell: dict[str, Any]) -> None:
        """A trial is about to be told of.

        Arguments:
            number: the trial's, five digits.
            cell: what it is trained with, by name.
        """
        return

    def epoch(self, row: EpochRow) -> None:
        """A trial has done an epoch, each once and in order."""
        return

    @abstractmethod
    def end(self, number: str, status: str) -> None:
        """A trial has ended: `finished`, `stopped` or `failed`."""

    def close(self, status: str) -> None:
        """The search has ended: `finished`, or `interrupted` where it may go on."""
        return


class Trackers:
    """All that follow a search. One that fails is said and left out; the search does not end for it.

    Arguments:
        trackers: who follows.
        cells: see `tune_jobs.grid`.
        say: prints a line.
    """

    def __init__(
        self, trackers: Iterable[Tracker], cells: Iterable[dict[str, Any]], say: Callable[[str], None]
    ) -> None:
        self._trackers = list(trackers)
        self._cells = {cell["trial"]: {name: cell[name] for name in cell if name != "trial"} for cell in cells}
        self._begun: set[str] = set()
        self._say = say

    def epoch(self, row: EpochRow) -> None:
        """Tell of an epoch, and before the first one of its trial."""
        self._begin(row.trial_id)
        self._tell(lambda tracker: tracker.epoch(row))

    def end(self, number: str, status: str) -> None:
        """Tell of a trial's end."""
        self._begin(number)
        self._tell(lambda tracker: tracker.end(number, status))

    def close(self, status: str) -> None:
        """Tell of the search's end."""
        self._tell(lambda tracker: tracker.close(status))

    def _begin(self, number: str) -> None:
        if number not in self._begun:
            self._begun.add(number)
            self._tell(lambda tracker: tracker.begin(number, self._cells[number]))

    def _tell(self, what: Callable[[Tracker], None]) -> None:
        for tracker in list(self._trackers):
            try:
                what(tracker)
            except (OSError, RaymlError) as error:
                reason = error.message if isinstance(error, RaymlError) else error.strerror or error
                self._say(f"{tracker.name}: {reason}; the search goes on without it")
                self._trackers.remove(tracker)
