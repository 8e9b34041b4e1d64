"""The schedulers: which trials go on after an epoch, every decision with its reason in the ledger.

`none` runs every trial to its last epoch. `asha` is Ray's ASHAScheduler (Li et al. 2020, "A System for Massively
Parallel Hyperparameter Tuning"), which lacks two things: it does not say what it compared, and its rungs do not survive
the process; here they come back from the ledger. `sync` is successive halving by whole rungs (Jamieson and Talwalkar
2016, "Non-stochastic Best Arm Identification and Hyperparameter Optimization"), in `tune_jobs.halving`.

A trial that is started again reports its last epoch once more, since nobody may have heard of it: an epoch that was
decided stays decided.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

from tune_jobs.ledger import CONTINUE, FAIL, FINISH, STOP, Decision, Ledger
from tune_jobs.trial import HEAD_KIND

METRIC, MODE = "val_accuracy", "max"


def trial_number(trial: Any) -> str:
    """A trial's number in the grid, the same in each run of the same grid."""
    return str(trial.config["cell"]["trial"])


class Kinds:
    """Which trial is best begun next: one for which a process that is free has compiled the epoch.

    Ray does not say which process a trial gets. Estimated: as many processes know a kind of head as have trained it at
    once, and those of them that train it no more are free. Compiling takes about as long as ten epochs of 100 units.
    """

    def __init__(self) -> None:
        self._most: Counter[tuple[Any, ...]] = Counter()

    def first(self, candidates: Iterable[Any], trials: Iterable[Any]) -> Any:
        """The candidate to begin next, None of none.

        Arguments:
            candidates: trials that wait for a process, in the order of the grid.
            trials: all of the search.
        """
        running = Counter(_kind(trial) for trial in trials if trial.status == Trial.RUNNING)
        self._most |= running

        def merit(trial: Any) -> tuple[bool, int]:
            kind = _kind(trial)
            return self._most[kind] > running[kind], -running[kind]

        return max(candidates, key=merit, default=None)  # Of equals the first.


def _kind(trial: Any) -> tuple[Any, ...]:
    return tuple(trial.config["cell"][name] for name in HEAD_KIND)


class Halt(tune.Stopper):
    """Ends the whole search where going on would lose something, e.g. on a full disk.

    `reason` is None as long as all is well.
    """

    def __init__(self) -> None:
        self.reason: str | None = None

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No single trial is ended this way."""
        return False

    def stop_all(self) -> bool:
        """Ray Tune asks after every step."""
        return self.reason is not None


class Scheduler(FIFOScheduler):
    """`none`: every trial runs all its epochs. The base of the others.

    Arguments:
        ledger: where decisions go, and where those of an interrupted run come from.
        halt: told of a ledger that cannot be written.
        epochs: of each trial at most.
    """

    def __init__(self, ledger: Ledger, halt: Halt, *, epochs: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ledger = ledger
        self.halt = halt
        self.epochs = epochs
        self.paused = 0  # Trials that wait without a process.
        self.kinds = Kinds()

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Ray Tune says what it was told; a second run with the same scheduler is as good as the first."""
        self._metric = metric
        return (metric, mode) == (METRIC, MODE)

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """Ray Tune asks at every step."""
        trials = tune_controller.get_trials()
        return self.kinds.first((trial for trial in trials if trial.status == Trial.PENDING), trials)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Ray Tune asks what becomes of a trial after an epoch."""
        number, epoch = trial_number(trial), int(result["epoch"])
        try:
            if "halted" in result:
                self.halt.reason = str(result["halted"])
            elif "failed" in result:
                self.fail(number, epoch, str(result["failed"]))
            else:
                known = self.ledger.at(number, epoch)  # Before `hear`, which may decide a rung: `decide` looks at that.
                self.hear(number, epoch, result)
                if known is not None:
                    return str(self.STOP if known.decision != CONTINUE else self.CONTINUE)
                if epoch < self.epochs:
                    return self.decide(tune_controller, number, epoch, result)
                reason = f"epoch {epoch}: {result[METRIC]:.4f} after the last epoch: finished"
                self.ledger.write(Decision(number, epoch, result[METRIC], None, 0, FINISH, reason))
        except OSError as error:
            self.halt.reason = f"a decision could not be written to ledger.jsonl ({error.strerror or error})"
        return str(self.STOP)

    def hear(self, number: str, epoch: int, result: dict[str, Any]) -> None:
        """Take note of what a trial has reached, also where that was decided before an interruption.

        Raises:
            OSError: the ledger cannot be written.
        """

    def decide(self, tune_controller: Any, number: str, epoch: int, result: dict[str, Any]) -> str:
        """What becomes of a trial after an epoch that is not its last and has not been decided."""
        return str(self.CONTINUE)

    def fail(self, number: str, epoch: int, reason: str, *, again: bool = False) -> None:
        """A trial failed.

        Arguments:
            again: see `Decision`; not where the failure would come again.

        Raises:
            OSError: the ledger cannot be written.
        """
        self.ledger.write(Decision(number, epoch, None, None, 0, FAIL, f"epoch {epoch}: {reason}", again))


@dataclass(frozen=True)
class _Named:
    """What Ray's scheduler asks of a trial; its own ids are others in each run."""

    trial_id: str


class Asha(Scheduler):
    """`asha`: a trial goes on where it is not below the best 1/reduction_factor of those that were there before it.

    Arguments:
        grace_period: epochs of the first rung; the others are at grace_period * reduction_factor ** k.
        reduction_factor: at least 2.
    """

    def __init__(self, ledger: Ledger, halt: Halt, *, epochs: int, grace_period: int, reduction_factor: float) -> None:
        super().__init__(ledger, halt, epochs=epochs)
        self._asha = ASHAScheduler(
            time_attr="epoch",
            metric=METRIC,
            mode=MODE,
            max_t=epochs,
            grace_period=grace_period,
            reduction_factor=reduction_factor,
        )
        for made in ledger.decisions:
            if made.value is not None and (rung := self._rung(made.trial, made.epoch)) is not None:
                rung[made.trial] = made.value

    def decide(self, tune_controller: Any, number: str, epoch: int, result: dict[str, Any]) -> str:
        """Let Ray decide, and say what it compared."""
        rung = self._rung(number, epoch)
        if rung is None:
            return str(self.CONTINUE)
        value, before = float(result[METRIC]), len(rung)
        cut: Any = self._asha._brackets[0].cutoff(rung)
        named: Any = _Named(number)
        self._asha.on_trial_add(tune_controller, named)
        action = self._asha.on_trial_result(tune_controller, named, {"epoch": epoch, METRIC: value})
        self._asha.on_trial_remove(tune_controller, named)
        if cut is None:
            compared = "the first at its rung"
        else:
            compared = f"{'below' if value < cut else 'not below'} {cut:.4f} of {before} trial{'s' * (before > 1)}"
        ends = action == self.STOP
        reason = f"epoch {epoch}: {value:.4f} {compared}: {'stop' if ends else 'go on'}"
        cut = None if cut is None else float(cut)
        self.ledger.write(Decision(number, epoch, value, cut, before, STOP if ends else CONTINUE, reason))
        return str(action)

    def _rung(self, number: str, epoch: int) -> dict[str, float] | None:
        """What Ray holds of the rung that this epoch reaches; None where it reaches none."""
        for milestone, recorded in self._asha._brackets[0]._rungs:
            if epoch >= milestone and number not in recorded and epoch < self.epochs:
                found: dict[str, float] = recorded
                return found
        return None
