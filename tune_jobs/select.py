"""From a search to its winner: the best epoch's own weights, proved to score what the table says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rayml.calibration import fit_temperature
from rayml.errors import SearchError
from rayml.head import HeadWeights
from rayml.metrics import accuracy, cross_entropy
from rayml.training import TrainingData
from tune_jobs.checkpoints import BestEpoch, newest_checkpoint
from tune_jobs.records import TrialRow, winner
from tune_jobs.search import CHECKPOINTS, SearchResult

# The table's loss was summed by the compiled epoch, this one by NumPy; both in float32 from the same vectors.
LOSS_TOLERANCE = 1e-4
# How far two computations of the same logits may lie apart, as a share of the largest: the same head on the same
# vectors by XLA and by NumPy, 7e-7 measured with 2,048 features and 1,000 units; and a whole network by two engines.
HEAD_ROUNDING, ENGINE_ROUNDING = 1e-5, 1e-4


@dataclass(frozen=True, eq=False)
class Winner:
    """The classifier that a search found.

    Arguments:
        trial: its line in trials.csv.
        head: the weights after the best epoch.
        validation_logits: what they give on the validation pictures, float32 (M, C).
        val_accuracy: theirs; not the trial's where rounding decides between the two best classes of a picture.
        temperature: fitted to those logits.
        damaged: what is wrong with newer checkpoints than the one that the weights are from.
    """

    trial: TrialRow
    head: HeadWeights
    validation_logits: NDArray[np.float32]
    val_accuracy: float
    temperature: float
    damaged: tuple[str, ...] = ()


def select(result: SearchResult, data: TrainingData, run: Path) -> Winner:
    """Take the best epoch of the best trial out of its checkpoint, of a search on features.

    Arguments:
        run: RUN, with the checkpoints.

    Raises:
        SearchError: no trial gave a result, or the weights do not score what the table says.
    """
    trial, best, damaged = best_epoch(result, run)
    return prove(trial, best, data.validation_features, data.validation_labels, damaged)


def best_epoch(result: SearchResult, run: Path) -> tuple[TrialRow, BestEpoch, tuple[str, ...]]:
    """The best trial, what its checkpoint holds, and what is wrong with newer checkpoints than that.

    Raises:
        SearchError: no trial gave a result, or its checkpoints are damaged.
    """
    trial = winner(result.trials)
    if trial is None:
        raise SearchError("no trial gave a result", "See ledger.jsonl in the run's folder.")
    checkpoint, damaged = newest_checkpoint(run / CHECKPOINTS / trial.trial_id)
    if checkpoint is None:
        raise SearchError(
            f"the winner, trial {trial.trial_id}, has no checkpoint that can be read ({'; '.join(damaged) or 'none'})",
            "Run the same command again with --resume: it is trained again.",
        )
    return trial, checkpoint.best, damaged


def prove(
    trial: TrialRow,
    best: BestEpoch,
    features: NDArray[np.float32],
    labels: NDArray[np.int32],
    damaged: tuple[str, ...],
    *,
    rounding: float = HEAD_ROUNDING,
) -> Winner:
    """Score the winner's weights once more, and hold the score against the table.

    Sums come out differently in their last digits where they are added in another order. So a picture whose best two
    classes are equal but for that may have been counted for either; every other one has to be answered as it was.

    Arguments:
        features: of the validation pictures, float32 (M, D).
        labels: theirs, int32 (M,).
        rounding: as a share of the largest logit, how near two classes are that are equal but for rounding.

    Raises:
        SearchError: the weights do not score what the table says.
    """
    logits = best.weights.logits(features)
    scored = accuracy(logits, labels), cross_entropy(logits, labels)
    expected = trial.val_accuracy, trial.val_loss
    same_loss = abs(scored[1] - expected[1]) <= LOSS_TOLERANCE * max(1.0, abs(expected[1]))
    unsure = _ties(logits, rounding) / len(labels) + 1e-12
    if best.epoch != trial.best_epoch or not abs(scored[0] - expected[0]) <= unsure or not same_loss:
        raise SearchError(
            f"the winner's weights were to score {expected} after epoch {trial.best_epoch} on the validation "
            f"pictures. Received: {scored} after epoch {best.epoch}",
            "No bundle was written. Please report this with the run's folder.",
        )
    return Winner(trial, best.weights, logits, scored[0], fit_temperature(logits, labels), damaged)


def _ties(logits: NDArray[np.float32], rounding: float) -> int:
    """Pictures whose highest two logits are nearer to each other than two computations of them may be."""
    highest = np.sort(logits, axis=1)[:, -2:]
    return int((highest[:, 1] - highest[:, 0] <= rounding * max(1.0, float(np.abs(logits).max()))).sum())
