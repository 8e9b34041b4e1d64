"""One trial: a head of one size at one learning rate, an epoch at a time, reported to Ray Tune, with a checkpoint each.

Ray reuses the actor of a finished trial for the next one. The trainers stay in the process between trials, so that
TensorFlow is imported once a slot and the epoch compiled once for each head size.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rayml.training import HeadTrainer, TrainingData
from tune_jobs.checkpoints import BestEpoch, Checkpoint, newest_checkpoint, write_checkpoint
from tune_jobs.records import EpochRow

# Of this process, by everything that their compiled epoch depends on.
_trainers: dict[tuple[Any, ...], HeadTrainer] = {}


def train_head(config: dict[str, Any], data: TrainingData) -> None:
    """The trainable that Ray Tune runs. It goes on from its newest checkpoint that can be read, if there is one.

    What it reports: `epoch`, the figures of `EpochMetrics`, `seconds`, and at times `earlier` (the epochs before it,
    of a trial that was started again), `note` (a line to be said), `failed` (why it ends, in a way that would come
    again) or `halted` (why the whole search has to end). A failure is reported, not raised: Ray would start the trial
    again, and throw its process away.

    Arguments:
        config: `cell` (see `tune_jobs.grid`), `checkpoints` (the folder of all trials), `epochs`, `seed`, `threads`.
        data: both splits as features, the same object for all trials.
    """
    from ray import tune

    cell = config["cell"]
    folder = Path(config["checkpoints"]) / cell["trial"]
    trainer = _trainer(config, data)
    trainer.start(seed=config["seed"], learning_rate=cell["learning_rate"])
    started = time.monotonic()
    history: list[EpochRow] = []
    best: BestEpoch | None = None
    found, damaged = newest_checkpoint(folder)
    note = {}
    if damaged:
        note = {"note": f"{'; '.join(damaged)}: going on from epoch {len(found.history) if found else 0}"}
    if found:
        trainer.restore(found.state)
        best, history = found.best, list(found.history)
        started -= history[-1].seconds
        # Once more: whoever started this trial again may not have heard of it.
        tune.report({**_report(history[-1]), **note, "earlier": history[:-1]})
        note = {}
    while trainer.completed_epochs < config["epochs"]:
        metrics = trainer.run_epoch()
        row = EpochRow(cell["trial"], trainer.completed_epochs, metrics, time.monotonic() - started)
        if not (math.isfinite(metrics.loss) and math.isfinite(metrics.val_loss)):
            reason = f"the loss of epoch {row.epoch} is not a finite number at learning rate {cell['learning_rate']:g}"
            tune.report({**_report(row), "failed": reason})
            return
        history.append(row)
        if best is None or metrics.val_accuracy > best.val_accuracy:
            best = BestEpoch(row.epoch, metrics.val_accuracy, trainer.weights())
        try:
            write_checkpoint(folder, Checkpoint(trainer.state(), best, tuple(history)))
        except OSError as error:
            reason = f"the checkpoint of trial {cell['trial']} could not be written ({error.strerror or error})"
            tune.report({**_report(row), "halted": reason})
            return
        tune.report({**_report(row), **note})
        note = {}


def _report(row: EpochRow) -> dict[str, Any]:
    return {**asdict(row.metrics), "epoch": row.epoch, "seconds": row.seconds}


def _trainer(config: dict[str, Any], data: TrainingData) -> HeadTrainer:
    import tensorflow as tf

    if not _trainers:
        tf.config.threading.set_intra_op_parallelism_threads(config["threads"])
        tf.config.threading.set_inter_op_parallelism_threads(1)
        for gpu in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(gpu, True)  # Trials may share one.
    shape = {name: config["cell"][name] for name in ("size_inner", "dropout", "batch_size")}
    key = (data.digest, *shape.values())
    if key not in _trainers:
        _trainers[key] = HeadTrainer(data, **shape)
    return _trainers[key]
