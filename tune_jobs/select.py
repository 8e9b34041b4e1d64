"""From a search to its winner: the best epoch's own weights, proved to score what the table says."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rayml.calibration import fit_temperature
from rayml.errors import SearchError
from rayml.head import HeadWeights
from rayml.metrics import accuracy, cross_entropy
from rayml.training import TrainingData
from tune_jobs.checkpoints import newest_checkpoint
from tune_jobs.records import TrialRow, winner
from tune_jobs.search import SearchResult

# The table's loss was summed by the compiled epoch, this one by NumPy; both in float32 from the same vectors.
LOSS_TOLERANCE = 1e-4


@dataclass(frozen=True, eq=False)
class Winner:
    """The classifier that a search found.

    Arguments:
        trial: its line in trials.csv.
        head: the weights after the best epoch.
        validation_logits: what they give on the validation pictures, float32 (M, C).
        temperature: fitted to those logits.
        damaged: what is wrong with newer checkpoints than the one that the weights are from.
    """

    trial: TrialRow
    head: HeadWeights
    validation_logits: NDArray[np.float32]
    temperature: float
    damaged: tuple[str, ...] = ()


def select(result: SearchResult, data: TrainingData) -> Winner:
    """Take the best epoch of the best trial out of its checkpoint.

    Raises:
        SearchError: no trial gave a result, or the weights do not score what the table says.
    """
    trial = winner(result.trials)
    if trial is None:
        raise SearchError("no trial gave a result", "See ledger.jsonl in the run's folder.")
    checkpoint, damaged = newest_checkpoint(result.checkpoints[trial.trial_id])
    if checkpoint is None:
        raise SearchError(
            f"the winner, trial {trial.trial_id}, has no checkpoint that can be read ({'; '.join(damaged) or 'none'})",
            "Run the same command again with --resume: it is trained again.",
        )
    best = checkpoint.best
    logits = best.weights.logits(data.validation_features)
    scored = accuracy(logits, data.validation_labels), cross_entropy(logits, data.validation_labels)
    expected = trial.val_accuracy, trial.val_loss
    same_loss = abs(scored[1] - expected[1]) <= LOSS_TOLERANCE * max(1.0, abs(expected[1]))
    if best.epoch != trial.best_epoch or scored[0] != expected[0] or not same_loss:
        raise SearchError(
            f"the winner's weights were to score {expected} after epoch {trial.best_epoch} on the validation "
            f"pictures. Received: {scored} after epoch {best.epoch}",
            "No bundle was written. Please report this with the run's folder.",
        )
    return Winner(trial, best.weights, logits, fit_temperature(logits, data.validation_labels), damaged)
