"""The grid under Ray Tune: trials scheduled over the cluster, stopped early, each epoch and each decision recorded."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.air.execution._internal import actor_manager
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.tune.execution import tune_controller

from rayml.end_to_end import Network, PixelData
from rayml.errors import RaymlError, SearchError
from rayml.progress import Progress
from rayml.storage import FolderStore
from rayml.training import TrainingData
from tune_jobs.checkpoints import newest_checkpoint
from tune_jobs.cluster import Node
from tune_jobs.config import SearchSettings
from tune_jobs.feed import Feed
from tune_jobs.grid import cells, in_turns
from tune_jobs.growth import Demand
from tune_jobs.halving import Halving
from tune_jobs.ledger import FAIL, STOP, Ledger
from tune_jobs.recorder import RETRIES, Recorder
from tune_jobs.records import HistoryFile, TrialRow, summarise, winner, write_cells, write_trials
from tune_jobs.scheduler import METRIC, MODE, Asha, Halt, Scheduler, trial_number
from tune_jobs.standing import Standing
from tune_jobs.tensorboard import TensorBoard
from tune_jobs.tracker import Tracker, Trackers
from tune_jobs.trial import HEAD_KIND, train_head
from tune_jobs.waiting import Waiting

CHECKPOINTS = "checkpoints"

# rayml keeps its own records; Ray's loggers for each trial take more time than a trial of a small head.
_TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # A failed trial is said in a line, without its traceback.
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # Nothing is ever restored from Ray's own state; see docs/architecture.md.
}


@dataclass(frozen=True)
class SearchResult:
    """What a search gave.

    Arguments:
        trials: a line each, in the order of the grid.
        errors: trial_id -> why it failed.
    """

    trials: tuple[TrialRow, ...]
    errors: dict[str, str]


def trial_cpus(settings: SearchSettings, nodes: Sequence[Node]) -> float:
    """Processors of a trial: what was asked for, else the cluster's shared out over the grid, whole and at least 1.

    Those of machines with too few graphics processors for a trial do not count, and no trial gets so many that fewer
    trials run at once than with one processor each.

    In `sync` mode it is 1, however many there are: sums come out differently in their last digits where they are shared
    over another number of threads, and one seed is to give one winner on every cluster.

    Raises:
        SearchError: no node can ever run such a trial.
    """
    cpus = settings.trial_cpus or _share(settings, [node for node in nodes if node.gpus >= settings.trial_gpus])
    if not any(cpus <= node.cpus and settings.trial_gpus <= node.gpus for node in nodes):
        largest = max(nodes, key=lambda node: (node.gpus, node.cpus))
        raise SearchError(
            f"a trial needs {cpus:g} CPUs and {settings.trial_gpus:g} GPUs on one machine. Received: at most "
            f"{largest.cpus} CPUs and {largest.gpus} GPUs",
            "Lower --trial-cpus or --trial-gpus, or add machines.",
        )
    return float(cpus)


def _share(settings: SearchSettings, nodes: Sequence[Node]) -> int:
    """The processors of the machines that can run a trial, shared out over the grid."""
    if settings.scheduler == "sync" or not nodes:
        return 1

    def at_once(cpus: int) -> int:
        return Demand(cpus, settings.trial_gpus, settings.trials).places(nodes)

    most = min(sum(node.cpus for node in nodes) // settings.trials, max(node.cpus for node in nodes))
    return next((cpus for cpus in range(most, 1, -1) if at_once(cpus) == at_once(1)), 1)


class Search:
    """A search as far as RUN tells: what has been done, what remains.

    Arguments:
        settings: what is searched.
        run: RUN; an interrupted search is found in its `history.csv`, `ledger.jsonl` and `checkpoints/`.
        goes_on: trials whose processes died, or that raised an error, have not ended: they are tried again.

    Raises:
        OSError: they cannot be read or written.
    """

    def __init__(self, settings: SearchSettings, run: Path, *, goes_on: bool = False) -> None:
        self.settings = settings
        self.run = run
        self.cells = cells(settings)
        self.history = HistoryFile(run / "history.csv")
        self.ledger = Ledger(run / "ledger.jsonl")
        if goes_on:
            self.ledger.try_again()
        self.halt = Halt()
        self.scheduler = self._scheduler()

    def _scheduler(self) -> Scheduler:
        rungs: dict[str, Any] = {
            "epochs": self.settings.epochs,
            "grace_period": self.settings.first_rung,
            "reduction_factor": self.settings.reduction_factor,
        }
        if self.settings.scheduler == "asha":
            return Asha(self.ledger, self.halt, **rungs)
        if self.settings.scheduler == "sync":
            numbers = [cell["trial"] for cell in self.cells]
            known = {
                (row.trial_id, row.epoch): (row.metrics.val_accuracy, row.metrics.val_loss)
                for number in numbers
                for row in self.history.of(number)
            }
            limit = self.settings.max_concurrent or 0
            return Halving(self.ledger, self.halt, **rungs, trials=numbers, known=known, max_concurrent=limit)
        return Scheduler(self.ledger, self.halt, epochs=self.settings.epochs)

    def ended(self) -> dict[str, TrialRow]:
        """The trials that need no more epochs, by number."""
        found = {}
        for cell in self.cells:
            number = cell["trial"]
            rows, ending = self.history.of(number), self.ledger.ending(number)
            failed = ending is not None and ending.decision == FAIL
            stopped = ending is not None and ending.decision == STOP and len(rows) >= ending.epoch
            if failed or stopped or len(rows) >= self.settings.epochs:
                found[number] = summarise(number, cell, rows, epochs=self.settings.epochs, failed=failed)
        return found

    def remaining(self) -> list[dict[str, Any]]:
        """The cells that are to be run: those that have not ended, and the winner if its weights were lost."""
        ended = self.ended()
        found = [cell for cell in self.cells if cell["trial"] not in ended]
        if not found and (won := winner(ended.values())) is not None:
            checkpoint, _ = newest_checkpoint(self.run / CHECKPOINTS / won.trial_id)
            if checkpoint is None or checkpoint.best.epoch != won.best_epoch:
                return [cell for cell in self.cells if cell["trial"] == won.trial_id]
        return found

    def standing(self, trackers: Trackers) -> Standing:
        """How the search stands; the trackers are told of what has been, too."""
        rows, ended = [row for cell in self.cells for row in self.history.of(cell["trial"])], self.ended()
        for row in rows:
            trackers.epoch(row)
        for number, trial in ended.items():
            trackers.end(number, trial.status)
        found = Standing(self.cells, self.settings.epochs)
        found.known(rows, ended.values())
        return found

    def result(self) -> SearchResult:
        """What there is so far."""
        trials = tuple(row for _, row in sorted(self.ended().items()))
        failed = [(trial.trial_id, self.ledger.ending(trial.trial_id)) for trial in trials if trial.status == "failed"]
        return SearchResult(trials, {number: ending.reason for number, ending in failed if ending is not None})


def run_search(
    settings: SearchSettings,
    data: TrainingData | PixelData,
    nodes: Sequence[Node],
    run: Path,
    progress: Progress,
    network: Network | None = None,
    trackers: Sequence[Tracker] = (),
) -> SearchResult:
    """Search the grid, or what remains of it.

    Arguments:
        data: features, or with `network` pictures.
        run: RUN; `history.csv`, `ledger.jsonl`, `cells.csv`, `trials.csv`, `checkpoints/`, `tensorboard/` and `ray/`
            are written there, also where it ends in an error.
        trackers: who follows it besides.

    Raises:
        SearchError: no node has room for a trial, every trial failed, or RUN cannot be written, or is another folder
            on another machine.
        KeyboardInterrupt: Ctrl-C; what the trials had reported stays.
    """
    os.environ.update(_TUNE_ENVIRONMENT)
    cpus = trial_cpus(settings, nodes)
    try:
        search = Search(settings, run, goes_on=True)
        write_cells(run / "cells.csv", search.cells)
        followers = Trackers((TensorBoard(run / "tensorboard"), *trackers), search.cells, progress.say)
        standing = search.standing(followers)
        with progress.bar("trials", settings.trials, "trials", even=False) as advance:
            if ended := len(search.ended()):
                advance(ended, standing.line(0))
            # Twice only where the winner's weights turn out to be lost.
            interrupted = False
            for _ in range(2):
                if remaining := search.remaining():
                    feed = Feed(search.scheduler, settings.max_concurrent or 0)
                    known = (search.history, search.scheduler, feed, standing, followers)
                    recorder = Recorder(*known, advance, progress.say)
                    waiting = Waiting(cpus, settings.trial_gpus, progress.say)
                    _tune(search, remaining, data, network, cpus, feed, [recorder, waiting])
                    # Ray Tune catches Ctrl-C and returns. Of a winner that was lost the files say that it has ended.
                    interrupted = not recorder.ended.issuperset(cell["trial"] for cell in remaining)
                    interrupted = interrupted or len(search.ended()) < settings.trials
                if search.halt.reason or interrupted:
                    break
        followers.close("interrupted" if search.halt.reason or interrupted else "finished")
        if search.halt.reason:
            raise SearchError(search.halt.reason, _AGAIN)
        search.history.rewrite()
        result = search.result()
        write_trials(run / "trials.csv", result.trials)
    except OSError as error:
        raise SearchError(f"{run} could not be written ({error.strerror or error})", _AGAIN) from None
    if interrupted:
        done = settings.trials - len(search.remaining())
        progress.say(f"search: interrupted when {done} of {settings.trials} trials had ended")
        raise KeyboardInterrupt
    if all(trial.status == "failed" for trial in result.trials):
        first = min(result.errors)
        ending = search.ledger.ending(first)
        hint = _TRY_AGAIN if ending is not None and ending.again else "A smaller --learning-rate is the usual cure."
        raise SearchError(f"every trial failed; the first: {result.errors[first]}", hint)
    return result


_TRY_AGAIN = (
    "Is there memory enough on the machines (free -m, dmesg)? A lower --max-concurrent takes less. The same command "
    "with --resume tries the trials again."
)
_AGAIN = "What was done is kept: mend that, then run the same command again with --resume."


def _tune(
    search: Search,
    remaining: list[dict[str, Any]],
    data: TrainingData | PixelData,
    network: Network | None,
    cpus: float,
    feed: Feed,
    callbacks: list[tune.Callback],
) -> None:
    """Run cells under Ray Tune. Its own state is of this process alone: a resumed search begins it anew."""
    settings = search.settings
    state = search.run / "ray"
    if state.exists():
        shutil.rmtree(state, ignore_errors=True)
    if state.exists():  # Not ours to remove, perhaps; it is of no use either.
        state.rename(state.with_name(f"ray-unusable-{os.getpid()}"))
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(train_head, data=data), {"cpu": cpus, "gpu": settings.trial_gpus}),
        param_space={
            "cell": tune.grid_search(in_turns(remaining, HEAD_KIND)),
            "checkpoints": str(search.run.absolute() / CHECKPOINTS),
            "mark": _marked(search.run),
            "epochs": settings.epochs,
            "network": network,
            "seed": settings.seed,
            "threads": math.ceil(cpus),
        },
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode=MODE,
            scheduler=search.scheduler,
            search_alg=feed,
            reuse_actors=True,
            trial_name_creator=trial_number,
            trial_dirname_creator=trial_number,
        ),
        run_config=tune.RunConfig(
            name=state.name,
            storage_path=str(search.run.absolute()),
            callbacks=callbacks,
            stop=search.halt,
            failure_config=tune.FailureConfig(max_failures=RETRIES),
            verbose=0,
        ),
    )
    _know_deaths_for_memory()
    try:
        tuner.fit()
    except tune.error.TuneError as error:  # Its text is the traceback of the cause, which stands in the last line.
        reason = (str(error).strip().splitlines() or ["no reason given"])[-1]
        raise SearchError(f"Ray Tune gave up ({reason})", _AGAIN) from error


def _marked(run: Path) -> str:
    """A file among the checkpoints by which trials know that their machine sees this RUN."""
    try:
        return FolderStore(run / CHECKPOINTS).mark()
    except RaymlError as error:
        raise SearchError(f"{run} could not be written ({error.message})", _AGAIN) from None


def _know_deaths_for_memory() -> None:
    """Let Ray Tune take a process that Ray kills for want of memory for one that died.

    In Ray 2.60 it knows deaths as `RayActorError` alone. Of an `OutOfMemoryError`, which is none, it makes a
    `RuntimeError` that ends all trials (`_actor_task_failed` in ray/air/execution/_internal/actor_manager.py). Both
    modules use the name in `isinstance` only.
    """
    died = (RayActorError, OutOfMemoryError)
    for module in (actor_manager, tune_controller):
        module.RayActorError = died  # type: ignore[attr-defined]
