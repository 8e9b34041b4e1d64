from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from rayml.errors import SearchError
from rayml.metrics import accuracy, cross_entropy
from rayml.training import HeadTrainer, TrainingData
from tests.tune_jobs.small import vectors
from tune_jobs.checkpoints import BestEpoch, Checkpoint, write_checkpoint
from tune_jobs.records import EpochRow, TrialRow
from tune_jobs.search import SearchResult
from tune_jobs.select import ENGINE_ROUNDING, HEAD_ROUNDING, best_epoch, prove, select


@pytest.fixture(scope="module")
def data() -> TrainingData:
    return vectors(noise=2.0)


@pytest.fixture
def result(data: TrainingData, tmp_path: Path) -> SearchResult:
    """A search of one trial whose first epoch was its best."""
    trainer = HeadTrainer(data, size_inner=4, batch_size=16)
    trainer.start(seed=1, learning_rate=0.05)
    metrics = trainer.run_epoch()
    best = BestEpoch(1, metrics.val_accuracy, trainer.weights())
    history = (EpochRow("00000", 1, metrics, 0.5), EpochRow("00000", 2, trainer.run_epoch(), 1.0))
    write_checkpoint(tmp_path / "checkpoints" / "00000", Checkpoint(trainer.state(), best, history))
    row = TrialRow("00000", 4, 0.05, 0.0, "finished", 2, 1, metrics.val_accuracy, metrics.val_loss, 1.0)
    return SearchResult((row,), {})


def test_the_winner_is_its_best_epochs_own_weights(result: SearchResult, data: TrainingData, tmp_path: Path) -> None:
    won = select(result, data, tmp_path)
    assert won.trial is result.trials[0]
    np.testing.assert_array_equal(won.validation_logits, won.head.logits(data.validation_features))
    assert accuracy(won.validation_logits, data.validation_labels) == won.trial.val_accuracy
    assert 0.05 <= won.temperature <= 20


def changed(result: SearchResult, **values: object) -> SearchResult:
    return dataclasses.replace(result, trials=(dataclasses.replace(result.trials[0], **values),))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "values",
    [{"val_accuracy": 0.999}, {"val_loss": 0.0}, {"best_epoch": 2}],
    ids=["accuracy", "loss", "epoch"],
)
def test_weights_that_do_not_score_what_the_table_says(
    result: SearchResult, data: TrainingData, values: dict[str, object], tmp_path: Path
) -> None:
    with pytest.raises(SearchError, match="the winner's weights were to score"):
        select(changed(result, **values), data, tmp_path)


def test_losses_may_differ_as_two_sums_do_and_no_more(result: SearchResult, data: TrainingData, tmp_path: Path) -> None:
    loss = result.trials[0].val_loss
    select(changed(result, val_loss=loss + 1e-5), data, tmp_path)
    for other in (loss * 0.99, loss * 1.01):
        with pytest.raises(SearchError, match="the winner's weights were to score"):
            select(changed(result, val_loss=other), data, tmp_path)


def test_a_checkpoint_that_was_changed(result: SearchResult, data: TrainingData, tmp_path: Path) -> None:
    (file,) = (tmp_path / "checkpoints" / "00000").iterdir()
    with np.load(file) as arrays:
        stored = dict(arrays)
    stored["best_logits_bias"] = stored["best_logits_bias"] + np.float32([3, 0, 0])
    np.savez(file, **stored)
    with pytest.raises(SearchError, match="Received: ") as caught:
        select(result, data, tmp_path)
    assert "No bundle was written" in caught.value.hint
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(SearchError, match=r"no checkpoint that can be read .*00002\.npz is damaged"):
        select(result, data, tmp_path)


def test_another_order_of_adding_may_break_a_tie_the_other_way(
    result: SearchResult, data: TrainingData, tmp_path: Path
) -> None:
    trial, best, _ = best_epoch(result, tmp_path)
    logits = best.weights.logits(data.validation_features)
    # The features of one picture, moved until its two best classes are equal but for rounding.
    features = data.validation_features.copy()
    row = int(np.argmin(np.diff(np.sort(logits, axis=1)[:, -2:], axis=1)))
    other = int(np.argsort(logits[row])[-2])
    low, high = features[row], data.validation_features[int(np.argmax(logits.argmax(axis=1) == other))]
    for _ in range(60):
        middle = ((low + high) / 2).astype(np.float32)
        ahead = best.weights.logits(middle[None])[0]
        low, high = (middle, high) if ahead.argmax() != other else (low, middle)
    features[row] = high
    labels = data.validation_labels

    def one_more_right(logits: NDArray[np.float32]) -> TrialRow:
        more = accuracy(logits, labels) + 1 / len(labels)
        return dataclasses.replace(trial, val_accuracy=more, val_loss=cross_entropy(logits, labels))

    off = one_more_right(best.weights.logits(features))
    proved = prove(off, best, features, labels, ())
    assert proved.trial is off
    assert proved.val_accuracy == accuracy(proved.validation_logits, labels) < off.val_accuracy
    # Further apart than rounding takes one head on the same features, nearer than two engines are.
    features[row] = high + np.float32(3e-4) * (data.validation_features[row] - high)
    apart = best.weights.logits(features)
    gap = float(np.diff(np.sort(apart[row])[-2:])[0])
    assert HEAD_ROUNDING < gap / float(np.abs(apart).max()) < ENGINE_ROUNDING
    with pytest.raises(SearchError, match="the winner's weights were to score"):
        prove(one_more_right(apart), best, features, labels, ())
    prove(one_more_right(apart), best, features, labels, (), rounding=ENGINE_ROUNDING)
    features[row] = high
    # One tie is no excuse for two pictures.
    two = dataclasses.replace(off, val_accuracy=off.val_accuracy + 1 / len(labels))
    with pytest.raises(SearchError, match="the winner's weights were to score"):
        prove(two, best, features, labels, (), rounding=ENGINE_ROUNDING)


def test_no_trial_gave_a_result(result: SearchResult, data: TrainingData, tmp_path: Path) -> None:
    with pytest.raises(SearchError, match="no trial gave a result"):
        select(changed(result, status="failed"), data, tmp_path)
