"""What `test_training_jax` runs where Keras runs on JAX: heads on given vectors, features of given pictures.

Reads arrays from the first file named, writes arrays to the second.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import astuple
from typing import Any
from unittest import mock

import jax
import keras
import numpy as np

from rayml.backbones import backbone_spec
from rayml.training import VALIDATION_BATCH, HeadTrainer, TrainingData, epoch_order, head_trainer
from rayml.training_jax import JaxHeadTrainer
from tune_jobs.feature_worker import keras_engine

CASES = {
    "plain": {"batch_size": 32, "weight_decay": 0.0, "label_smoothing": 0.0},
    "whole": {"batch_size": 45, "weight_decay": 0.0, "label_smoothing": 0.0},
    "decay": {"batch_size": 32, "weight_decay": 0.05, "label_smoothing": 0.1},
}
SEED, RATE, SIZE_INNER, EPOCHS = 5, 0.01, 8, 3


def started(trainer: HeadTrainer, case: str) -> HeadTrainer:
    values = CASES[case]
    trainer.start(
        seed=SEED,
        learning_rate=RATE,
        weight_decay=values["weight_decay"],
        label_smoothing=values["label_smoothing"],
    )
    return trainer


def validated(data: TrainingData, parts: int) -> dict[str, Any]:
    """An epoch with so many whole parts of validation and a rest: its loss, its logits, the lines of its program."""
    repeated = np.arange(parts * VALIDATION_BATCH + 100) % len(data.validation_labels)
    features, labels = data.validation_features[repeated], data.validation_labels[repeated]
    many = dataclasses.replace(data, validation_features=features, validation_labels=labels)
    trainer = started(head_trainer(many, size_inner=SIZE_INNER), "plain")
    metrics = trainer.run_epoch()
    lists = (trainer._model.trainable_variables, trainer._model.non_trainable_variables, trainer._optimizer.variables)
    state = tuple([variable.value for variable in each] for each in lists)
    order = epoch_order(SEED, 0, len(data.train_labels))
    lowered = trainer._compiled_epoch.lower(
        state, order, trainer._train, trainer._validation, np.float32(0), np.float32(0)
    )
    return {
        f"parts_{parts}_metrics": np.array([metrics.val_loss, metrics.val_accuracy]),
        f"parts_{parts}_logits": trainer.validation_logits(),
        f"parts_{parts}_labels": labels,
        f"parts_{parts}_lines": len(lowered.as_text().splitlines()),
    }


def main(given: str, made: str) -> None:
    assert keras.backend.backend() == "jax"
    arrays = np.load(given)
    classes = tuple(str(number) for number in range(int(arrays["classes"])))
    data = TrainingData(*(arrays[f"data_{i}"] for i in range(4)), classes, "given")
    found = {}
    for case, values in CASES.items():
        trainer = started(head_trainer(data, size_inner=SIZE_INNER, batch_size=int(values["batch_size"])), case)
        assert isinstance(trainer, JaxHeadTrainer)
        # Glorot's random numbers are the backend's own: begin where the other began.
        for i, variable in enumerate(trainer._model.trainable_variables):
            variable.assign(arrays[f"start_{i}"])
        found[f"{case}_epochs"] = np.array([astuple(trainer.run_epoch()) for _ in range(EPOCHS)])
        for i, array in enumerate(trainer.weights().arrays().values()):
            found[f"{case}_weights_{i}"] = array
        found[f"{case}_logits"] = trainer.validation_logits()

    trainer = started(head_trainer(data, size_inner=SIZE_INNER, dropout=0.3), "plain")
    precisions, loss, call = set(), trainer._loss, type(trainer._model).__call__

    def watched_loss(truth: Any, logits: Any) -> Any:
        precisions.add(jax.config.jax_default_matmul_precision)
        return loss(truth, logits)

    def watched_call(model: Any, *arguments: Any, **options: Any) -> Any:
        precisions.add(jax.config.jax_default_matmul_precision)
        return call(model, *arguments, **options)

    trainer._loss = watched_loss
    trainer.run_epoch()
    with mock.patch.object(type(trainer._model), "__call__", watched_call):
        trainer.validation_logits()
    assert precisions == {"highest"}, precisions
    trainer._loss = loss
    state = trainer.state()
    onwards = [trainer.run_epoch() for _ in range(2)]
    trainer.start(seed=SEED + 1, learning_rate=RATE * 2)
    trainer.run_epoch()
    trainer.restore(state)
    assert [trainer.run_epoch() for _ in range(2)] == onwards

    for parts in (2, 20):
        found |= validated(data, parts)

    engine = keras_engine(backbone_spec("tiny"))
    assert engine.name == "jax"
    found["features"] = engine(arrays["pictures"])
    assert "tensorflow" not in sys.modules
    np.savez(made, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
