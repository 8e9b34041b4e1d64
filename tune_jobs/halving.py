"""`sync`: successive halving by whole rungs, so that one seed gives one winner.

ASHA compares a trial with those that came before it: another order, another number of machines, another winner. Here a
rung is decided when every trial in it has arrived (or failed): the best 1/reduction_factor go on, the others stop.
Equal accuracies are told apart by the loss, then by the place in the grid.

A trial that has to wait makes room where another wants its processor: Ray pauses it and gives its process to the other.
Where none does, it keeps its process, since a new one would have to import TensorFlow and compile again; it makes room
later where one of the others loses its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ray.tune.experiment import Trial

from tune_jobs.ledger import CONTINUE, FAIL, STOP, Decision, Ledger
from tune_jobs.scheduler import METRIC, Halt, Scheduler, trial_number


def rung_epochs(epochs: int, grace_period: int, reduction_factor: float) -> tuple[int, ...]:
    """The epochs after which trials are compared: ceil(grace_period * reduction_factor ** k), below `epochs`."""
    found: list[int] = []
    while (exact := grace_period * reduction_factor ** len(found)) <= epochs - 1:  # It may be infinite.
        found.append(math.ceil(exact))
    return tuple(found)


class Halving(Scheduler):
    """`sync`.

    Arguments:
        grace_period, reduction_factor: see `rung_epochs`.
        trials: the numbers of all trials of the search, also of those that have ended.
        known: (trial, epoch) -> (validation accuracy, loss) of the epochs that an interrupted run had recorded.
        max_concurrent: trials that hold a process at once at most, 0 for as many as there is room for.
    """

    def __init__(
        self,
        ledger: Ledger,
        halt: Halt,
        *,
        epochs: int,
        grace_period: int,
        reduction_factor: float,
        trials: Sequence[str],
        known: dict[tuple[str, int], tuple[float, float]],
        max_concurrent: int = 0,
    ) -> None:
        super().__init__(ledger, halt, epochs=epochs)
        self._factor = reduction_factor
        self._limit = max_concurrent
        self._rungs = rung_epochs(epochs, grace_period, reduction_factor)
        self._scores = {place: score for place, score in known.items() if place[1] in self._rungs}
        self._groups: list[tuple[str, ...]] = [tuple(trials)]  # Who is in each rung, as far as that is decided.
        self._waiting: set[str] = set()  # Have arrived at an undecided rung, or lost it and still hold their process.
        self._settle()

    def hear(self, number: str, epoch: int, result: dict[str, Any]) -> None:
        """Score a trial at the rungs that it has reached.

        An interruption may leave a decision in the ledger without its epoch in the history, which the trial tells again
        (`earlier`, where it has gone on since): without it the rung would never be whole, and its others wait for ever.
        """
        reached = [(row.epoch, row.metrics.val_accuracy, row.metrics.val_loss) for row in result.get("earlier", ())]
        for at, accuracy, loss in [*reached, (epoch, result[METRIC], result["val_loss"])]:
            if at in self._rungs:
                self._scores[number, at] = (float(accuracy), float(loss))
        self._settle()

    def decide(self, tune_controller: Any, number: str, epoch: int, result: dict[str, Any]) -> str:
        """Let the trial go on between rungs; at a rung it waits for the others."""
        if epoch not in self._rungs:
            return str(self.CONTINUE)
        made = self.ledger.at(number, epoch)
        if made is not None and made.decision == CONTINUE:
            return str(self.CONTINUE)
        if made is None and self._others_want_room(tune_controller):
            return str(self.PAUSE)
        self._waiting.add(number)
        return str(self.NOOP)

    def fail(self, number: str, epoch: int, reason: str, *, again: bool = False) -> None:
        """The others need not wait for it."""
        super().fail(number, epoch, reason, again=again)
        self._settle()

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """Ray Tune asks at every step. Winners first, then those that are new; losers make room."""
        trials = {trial_number(trial): trial for trial in tune_controller.get_trials()}
        for number in sorted(self._waiting):
            if trials[number].status != Trial.RUNNING:  # Its process died while it waited; it comes again.
                self._waiting.discard(number)
            elif self._verdict(number) == CONTINUE:
                self._waiting.discard(number)
                # The one thing that Ray's interface lacks: going on with a trial that was left standing.
                tune_controller._tune_controller._schedule_trial_train(trials[number])
        paused = {number for number, trial in trials.items() if trial.status == Trial.PAUSED}
        self.paused = len(paused)
        lost = {number for number in paused | self._waiting if self._verdict(number) in (STOP, FAIL)}
        active = sum(trial.status in (Trial.RUNNING, Trial.PENDING) for trial in trials.values())
        ready = sorted(number for number in paused - lost if self._verdict(number) == CONTINUE)
        if ready and (not self._limit or active - len(lost & self._waiting) < self._limit):
            return self.kinds.first((trials[number] for number in ready), trials.values())
        # Only now, when all who go on have asked for a process: Ray hands those of the losers over to them.
        for number in sorted(lost):
            self._waiting.discard(number)
            tune_controller.stop_trial(trials[number])
        pending = sorted(number for number, trial in trials.items() if trial.status == Trial.PENDING)
        if pending and self._waiting:
            # It lost its process, with a machine perhaps, when all others were there and had kept theirs.
            number = max(self._waiting)
            self._waiting.discard(number)
            tune_controller.pause_trial(trials[number])
        return self.kinds.first((trials[number] for number in pending), trials.values())

    def _others_want_room(self, tune_controller: Any) -> bool:
        """Whether a trial of the undecided rung is neither there nor running: not begun, or without a process."""
        rung = self._rungs[len(self._groups) - 1]
        running = {trial_number(t) for t in tune_controller.get_trials() if t.status == Trial.RUNNING}
        return any(
            number not in running and (number, rung) not in self._scores and not self._failed(number)
            for number in self._groups[-1]
        )

    def _failed(self, number: str) -> bool:
        ending = self.ledger.ending(number)
        return ending is not None and ending.decision == FAIL

    def _was_compared(self, number: str, rung: int) -> bool:
        made = self.ledger.at(number, rung)
        return made is not None and made.decision != FAIL

    def _went_on(self, number: str, rung: int) -> bool:
        made = self.ledger.at(number, rung)
        return made is not None and made.decision == CONTINUE

    def _verdict(self, number: str) -> str | None:
        """What was decided at the last rung that the trial has reached; None while it has to wait."""
        if self._failed(number):
            return FAIL
        reached = [rung for rung in self._rungs if (number, rung) in self._scores]
        made = self.ledger.at(number, reached[-1]) if reached else None
        return made.decision if made else None

    def _settle(self) -> None:
        """Decide every rung whose trials are all there."""
        while len(self._groups) <= len(self._rungs):
            rung = self._rungs[len(self._groups) - 1]
            # One that failed later took part in what was decided here: without it a resumed search would decide anew.
            group = [
                number for number in self._groups[-1] if not self._failed(number) or self._was_compared(number, rung)
            ]
            if not group or any((number, rung) not in self._scores for number in group):
                return
            ranked = sorted(
                group, key=lambda number: (-self._scores[number, rung][0], self._scores[number, rung][1], number)
            )
            kept = max(1, int(len(ranked) / self._factor))
            cut = self._scores[ranked[kept - 1], rung][0]
            for place, number in enumerate(ranked, start=1):
                if self.ledger.at(number, rung):
                    continue
                value, goes_on = self._scores[number, rung][0], place <= kept
                reason = (
                    f"epoch {rung}: {value:.4f} is place {place} of {len(ranked)}, the best {kept} ({cut:.4f} and up) "
                    f"go on: {'go on' if goes_on else 'stop'}"
                )
                self.ledger.write(
                    Decision(number, rung, value, cut, len(ranked), CONTINUE if goes_on else STOP, reason)
                )
            # By the ledger, not by these scores: an epoch that was done again may have come out differently since.
            self._groups.append(tuple(number for number in sorted(ranked) if self._went_on(number, rung)))
