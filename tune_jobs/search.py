"""The grid under Ray Tune: trials scheduled over the cluster, stopped early by ASHA, each epoch recorded."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from rayml.errors import SearchError
from rayml.progress import Progress
from rayml.training import TrainingData
from tune_jobs.cluster import Node
from tune_jobs.config import SearchSettings
from tune_jobs.recorder import Recorder, trial_number
from tune_jobs.records import HistoryFile, TrialRow, write_trials
from tune_jobs.trial import train_head

METRIC, MODE = "val_accuracy", "max"

# rayml keeps its own records; Ray's loggers for each trial take more time than a trial of a small head.
_TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # A failed trial is said in a line, without its traceback.
}


@dataclass(frozen=True)
class SearchResult:
    """What a search gave.

    Arguments:
        trials: a line each, in the order of the grid.
        checkpoints: trial_id -> the folder of its last checkpoint, which holds its best epoch.
        errors: trial_id -> why it failed.
    """

    trials: tuple[TrialRow, ...]
    checkpoints: dict[str, Path]
    errors: dict[str, str]


def trial_cpus(settings: SearchSettings, nodes: Sequence[Node]) -> float:
    """Processors of a trial: what was asked for, else the cluster's shared out over the grid, whole and at least 1.

    Raises:
        SearchError: no node can ever run such a trial.
    """
    available = sum(node.cpus for node in nodes)
    cpus = settings.trial_cpus or max(1, min(available // settings.trials, max(node.cpus for node in nodes)))
    if not any(cpus <= node.cpus and settings.trial_gpus <= node.gpus for node in nodes):
        largest = max(nodes, key=lambda node: (node.gpus, node.cpus))
        raise SearchError(
            f"a trial needs {cpus:g} CPUs and {settings.trial_gpus:g} GPUs on one machine. Received: at most "
            f"{largest.cpus} CPUs and {largest.gpus} GPUs",
            "Lower --trial-cpus or --trial-gpus, or add machines.",
        )
    return float(cpus)


def run_search(
    settings: SearchSettings, data: TrainingData, nodes: Sequence[Node], run: Path, progress: Progress
) -> SearchResult:
    """Search the grid.

    Arguments:
        run: RUN; `history.csv`, `trials.csv` and `ray/` are written there, also where it ends in an error.

    Raises:
        SearchError: no node has room for a trial, or every trial failed.
        KeyboardInterrupt: Ctrl-C; what the trials had reported stays.
    """
    os.environ.update(_TUNE_ENVIRONMENT)
    cpus = trial_cpus(settings, nodes)
    scheduler: TrialScheduler = FIFOScheduler()  # type: ignore[no-untyped-call]
    if settings.scheduler == "asha":
        scheduler = ASHAScheduler(
            max_t=settings.epochs, grace_period=settings.first_rung, reduction_factor=settings.reduction_factor
        )
    space = {
        "size_inner": tune.grid_search(list(settings.size_inner)),
        "learning_rate": tune.grid_search(list(settings.learning_rate)),
        "dropout": settings.dropout,
        "epochs": settings.epochs,
        "batch_size": settings.batch_size,
        "seed": settings.seed,
        "threads": math.ceil(cpus),
    }
    with progress.bar("trials", settings.trials, "trials") as advance:
        recorder = Recorder(HistoryFile(run / "history.csv"), settings.epochs, advance)
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(train_head, data=data), {"cpu": cpus, "gpu": settings.trial_gpus}),
            param_space=space,
            tune_config=tune.TuneConfig(
                metric=METRIC,
                mode=MODE,
                scheduler=scheduler,
                max_concurrent_trials=settings.max_concurrent,
                reuse_actors=True,
                trial_name_creator=trial_number,
                trial_dirname_creator=trial_number,
            ),
            run_config=tune.RunConfig(
                name="ray",
                storage_path=str(run.absolute()),
                callbacks=[recorder],
                checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
                failure_config=tune.FailureConfig(max_failures=0),
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        except tune.error.TuneError as error:
            reason = str(error).splitlines()[0]
            raise SearchError(f"Ray Tune gave up ({reason})", f"Its state lies in {run / 'ray'}.") from None
    trials = tuple(recorder.rows[number] for number in sorted(recorder.rows))
    write_trials(run / "trials.csv", trials)
    if len(trials) < settings.trials:  # Ray Tune catches Ctrl-C, saves its state and returns.
        progress.say(f"search: interrupted when {len(trials)} of {settings.trials} trials had ended")
        raise KeyboardInterrupt
    if all(trial.status == "failed" for trial in trials):
        first = recorder.errors[min(recorder.errors)]
        raise SearchError(f"every trial failed; the first: {first}", "A smaller --learning-rate is the usual cure.")
    return SearchResult(trials, recorder.checkpoints, recorder.errors)
