"""One trial: a cell of the search, an epoch at a time, reported to Ray Tune, with a checkpoint each.

Ray reuses the actor of a finished trial for the next one. The trainers stay in the process between trials, so that
TensorFlow is imported once a slot and the epoch compiled once for each head size.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rayml.end_to_end import EndToEndTrainer, PixelData
from rayml.errors import RaymlError
from rayml.storage import FolderStore
from rayml.training import HeadTrainer, TrainingData, head_trainer
from tune_jobs.checkpoints import BestEpoch, Checkpoint, newest_checkpoint, write_checkpoint
from tune_jobs.cluster import node_name
from tune_jobs.lean import import_keras
from tune_jobs.records import EpochRow

HEAD_KIND = ("size_inner", "dropout", "batch_size")  # Of a cell: trials that agree in them share a compiled epoch.
KEPT_HEADS = 8  # Kinds of head whose compiled epoch stays; a search by chance may have a new one in each trial.
# How often a process holds a head's numbers: of the kind that it trains, with Adam's two moments, gradients, the best
# epoch's weights and all that is written of them, and of each other kind that stays. Measured, of heads of 0.07 and
# 0.2 GB: 11 to 12, and 4.
_TRAINED_COPIES, _KEPT_COPIES = 12, 4

# Of this process, by everything that their compiled epoch depends on, those that were used last at the end.
_trainers: dict[tuple[Any, ...], HeadTrainer | EndToEndTrainer] = {}


def held_numbers(kinds: Iterable[int]) -> int:
    """How many numbers a process holds at most that trains heads.

    Arguments:
        kinds: the weights of each kind of head that it may train, at least one.
    """
    largest, *others = sorted(kinds, reverse=True)[:KEPT_HEADS]
    return _TRAINED_COPIES * largest + _KEPT_COPIES * sum(others)


def train_head(config: dict[str, Any], data: TrainingData | PixelData) -> None:
    """The trainable that Ray Tune runs. It goes on from its newest checkpoint that can be read, if there is one.

    What it reports: `epoch`, the figures of `EpochMetrics`, `seconds`, and at times `earlier` (the epochs before it,
    of a trial that was started again), `note` (a line to be said), `failed` (why it ends, in a way that would come
    again) or `halted` (why the whole search has to end). A failure is reported, not raised: Ray would start the trial
    again, and throw its process away.

    Arguments:
        config: `cell` (see `tune_jobs.grid`), `checkpoints` (the folder of all trials), `mark` (a file in it that every
            machine must see), `epochs`, `seed`, `threads`, and for pictures `network`, a `rayml.end_to_end.Network`.
        data: both splits as features or as pictures, the same for all trials.
    """
    from ray import tune

    cell = config["cell"]
    if reason := _unshared(Path(config["checkpoints"]), config["mark"]):
        tune.report({"epoch": 0, "val_accuracy": math.nan, "halted": reason})
        return
    folder = Path(config["checkpoints"]) / cell["trial"]
    trainer = _trainer(config, data)
    rates = {name: cell[name] for name in ("learning_rate", "weight_decay", "label_smoothing")}
    trainer.start(seed=config["seed"], **rates)
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
            reason = f"the loss is not a finite number at learning rate {cell['learning_rate']:g}"
            tune.report({**_report(row), "failed": reason})
            return
        history.append(row)
        if best is None or metrics.val_accuracy > best.val_accuracy:
            tuned = trainer.tuned() if isinstance(trainer, EndToEndTrainer) else {}
            best = BestEpoch(row.epoch, metrics.val_accuracy, trainer.weights(), tuned)
        try:
            write_checkpoint(folder, Checkpoint(trainer.state(), best, tuple(history)))
        except OSError as error:
            reason = f"the checkpoint of trial {cell['trial']} could not be written ({error.strerror or error})"
            tune.report({**_report(row), "halted": reason})
            return
        tune.report({**_report(row), **note})
        note = {}


def _unshared(checkpoints: Path, mark: str) -> str:
    """Why what is written here would be found nowhere else; "" where this machine sees the driver's RUN."""
    try:
        if FolderStore(checkpoints).peek(mark) is not None:
            return ""
        received = "another one, or none,"
    except RaymlError as error:
        received = error.message
    return (
        f"RUN, {checkpoints.parent}, must be one folder that all machines see by the same path (docs/cluster.md). "
        f"Received: {received} on {node_name()}"
    )


def _report(row: EpochRow) -> dict[str, Any]:
    return {**asdict(row.metrics), "epoch": row.epoch, "seconds": row.seconds}


def _trainer(config: dict[str, Any], data: TrainingData | PixelData) -> HeadTrainer | EndToEndTrainer:
    keras = import_keras()
    if not _trainers and keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(config["threads"])
        tf.config.threading.set_inter_op_parallelism_threads(1)
        for gpu in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(gpu, True)  # Trials may share one.
        # Newer graphics processors round a float32 convolution's inputs to 10 bits by default: no longer float32.
        tf.config.experimental.enable_tensor_float_32_execution(False)
    shape = {name: config["cell"][name] for name in HEAD_KIND}
    key = (data.digest, config.get("network"), *shape.values())
    found = _trainers.pop(key, None)
    if found is None:
        if isinstance(data, PixelData):
            _trainers.clear()  # Each holds a whole network; building one anew is quick beside an epoch.
            found = EndToEndTrainer(data, config["network"], **shape)
        else:
            while len(_trainers) >= KEPT_HEADS:
                del _trainers[next(iter(_trainers))]
            # The vectors are on the device once, not once for each kind of head.
            same_data = (kept for (digest, *_), kept in _trainers.items() if digest == data.digest)
            beside = next((kept for kept in same_data if isinstance(kept, HeadTrainer)), None)
            found = head_trainer(data, **shape, beside=beside)
    _trainers[key] = found
    return found
