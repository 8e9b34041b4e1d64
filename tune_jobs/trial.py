"""One trial: a head of one size at one learning rate, an epoch at a time, reported to Ray Tune with a checkpoint.

Ray reuses the actor of a finished trial for the next one. The trainers stay in the process between trials, so that
TensorFlow is imported once a slot and the epoch compiled once for each head size.
"""

from __future__ import annotations

import math
import tempfile
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayml.errors import SearchError
from rayml.head import HeadWeights
from rayml.training import HeadTrainer, TrainingData

CHECKPOINT_FILE = "head.npz"

# Of this process, by everything that their compiled epoch depends on.
_trainers: dict[tuple[Any, ...], HeadTrainer] = {}


@dataclass(frozen=True, eq=False)
class BestEpoch:
    """The best epoch of a trial so far: highest validation accuracy, the earlier one where two are equal.

    Arguments:
        epoch: 1 for the first.
        val_accuracy: what was measured after it.
        weights: the head after it.
    """

    epoch: int
    val_accuracy: float
    weights: HeadWeights


def train_head(config: dict[str, Any], data: TrainingData) -> None:
    """The trainable that Ray Tune runs.

    Arguments:
        config: `size_inner`, `learning_rate`, `dropout`, `epochs`, `batch_size`, `seed`, `threads`.
        data: both splits as features, the same object for all trials.

    Raises:
        SearchError: the loss is no longer a finite number.
    """
    from ray import tune

    trainer = _trainer(config, data)
    trainer.start(seed=config["seed"], learning_rate=config["learning_rate"])
    best: BestEpoch | None = None
    if checkpoint := tune.get_checkpoint():
        with checkpoint.as_directory() as folder:
            state, best = read_checkpoint(Path(folder))
        trainer.restore(state)
    while trainer.completed_epochs < config["epochs"]:
        metrics = trainer.run_epoch()
        if not (math.isfinite(metrics.loss) and math.isfinite(metrics.val_loss)):
            raise SearchError(
                f"the loss of epoch {trainer.completed_epochs} is not a finite number at "
                f"learning rate {config['learning_rate']:g}"
            )
        if best is None or metrics.val_accuracy > best.val_accuracy:
            best = BestEpoch(trainer.completed_epochs, metrics.val_accuracy, trainer.weights())
        with tempfile.TemporaryDirectory() as folder:
            write_checkpoint(Path(folder), trainer.state(), best)
            report = {**asdict(metrics), "epoch": trainer.completed_epochs, "best_epoch": best.epoch}
            tune.report(report, checkpoint=tune.Checkpoint.from_directory(folder))


def _trainer(config: dict[str, Any], data: TrainingData) -> HeadTrainer:
    import tensorflow as tf

    if not _trainers:
        tf.config.threading.set_intra_op_parallelism_threads(config["threads"])
        tf.config.threading.set_inter_op_parallelism_threads(1)
        for gpu in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(gpu, True)  # Trials may share one.
    shape = {name: config[name] for name in ("size_inner", "dropout", "batch_size")}
    key = (data.digest, *shape.values())
    if key not in _trainers:
        _trainers[key] = HeadTrainer(data, **shape)
    return _trainers[key]


def write_checkpoint(folder: Path, state: dict[str, NDArray[Any]], best: BestEpoch) -> None:
    """Write all that a trial needs to go on, and the head of its best epoch."""
    arrays = {f"state_{name}": array for name, array in state.items()}
    arrays |= {f"best_{name}": array for name, array in best.weights.arrays().items()}
    arrays |= {"best_epoch": np.array(best.epoch), "best_val_accuracy": np.array(best.val_accuracy)}
    np.savez(folder / CHECKPOINT_FILE, **arrays)  # type: ignore[arg-type]


def read_checkpoint(folder: Path) -> tuple[dict[str, NDArray[Any]], BestEpoch]:
    """Read what `write_checkpoint` wrote.

    Raises:
        SearchError: the file is damaged or not there.
    """
    try:
        # NumPy leaves a file that it opened itself open where it turns out to be damaged.
        with (folder / CHECKPOINT_FILE).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            state = {name.removeprefix("state_"): arrays[name] for name in arrays.files if name.startswith("state_")}
            weights = HeadWeights(*(arrays[f"best_{name}"] for name in HeadWeights.NAMES))
            return state, BestEpoch(int(arrays["best_epoch"]), float(arrays["best_val_accuracy"]), weights)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise SearchError(f"the checkpoint in {folder} is damaged ({error})", "Search again.") from None
