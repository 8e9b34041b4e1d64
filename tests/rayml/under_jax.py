"""What `test_training_jax` runs where Keras runs on JAX: heads on given vectors, features of given pictures.

Reads arrays from the first file named, writes arrays to the second.
"""

from __future__ import annotations

import sys
from dataclasses import astuple
from typing import Any
from unittest import mock

import jax
import keras
import numpy as np

from rayml.backbones import backbone_spec
from rayml.training import HeadTrainer, TrainingData, head_trainer
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

    engine = keras_engine(backbone_spec("tiny"))
    assert engine.name == "jax"
    found["features"] = engine(arrays["pictures"])
    assert "tensorflow" not in sys.modules
    np.savez(made, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
