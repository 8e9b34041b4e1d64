"""Keras on JAX, in a process of its own, against Keras on TensorFlow: the same heads, the same features."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import astuple

import keras
import numpy as np
import pytest
from numpy.typing import NDArray

from rayml.backbones import backbone_spec, feature_model
from rayml.engines.tensorflow import TensorFlowEngine
from rayml.errors import UsageError
from rayml.metrics import accuracy, cross_entropy
from rayml.training import HeadTrainer, TrainingData, head_trainer
from tests.conftest import ROOT
from tests.rayml.lively import drawings
from tests.rayml.under_jax import CASES, EPOCHS, SIZE_INNER, started

# As in test_training: both add the same float32 numbers in another order.
SAME = 2e-5


def vectors() -> TrainingData:
    random = np.random.default_rng(3)
    labels = random.integers(0, 4, 120).astype(np.int32)
    points = (random.normal(size=(4, 24))[labels] + random.normal(size=(120, 24))).astype(np.float32)
    return TrainingData(points[:90], labels[:90], points[90:], labels[90:], ("a", "b", "c", "d"), "vectors")


@pytest.fixture(scope="module")
def pictures() -> NDArray[np.uint8]:
    return drawings(40, 64)[0]  # More than go through the network at once.


@pytest.fixture(scope="module")
def under_jax(pictures: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> dict[str, NDArray[np.float32]]:
    folder = tmp_path_factory.mktemp("jax")
    data = vectors()
    arrays = (data.train_features, data.train_labels, data.validation_features, data.validation_labels)
    trainer = started(HeadTrainer(data, size_inner=SIZE_INNER), "plain")
    np.savez(
        folder / "given.npz",
        classes=len(data.classes),
        pictures=pictures,
        **{f"data_{i}": array for i, array in enumerate(arrays)},
        **{f"start_{i}": np.asarray(variable) for i, variable in enumerate(trainer._model.trainable_variables)},
    )
    done = subprocess.run(
        [sys.executable, "-m", "tests.rayml.under_jax", str(folder / "given.npz"), str(folder / "made.npz")],
        env={**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return dict(np.load(folder / "made.npz"))


@pytest.mark.parametrize("case", CASES)
def test_a_head_learns_the_same(case: str, under_jax: dict[str, NDArray[np.float32]]) -> None:
    trainer = started(HeadTrainer(vectors(), size_inner=SIZE_INNER, batch_size=int(CASES[case]["batch_size"])), case)
    epochs = np.array([astuple(trainer.run_epoch()) for _ in range(EPOCHS)])
    assert abs(epochs[-1, 0] - epochs[0, 0]) > 0.05
    np.testing.assert_allclose(under_jax[f"{case}_epochs"], epochs, rtol=SAME)
    for i, array in enumerate(trainer.weights().arrays().values()):
        np.testing.assert_allclose(under_jax[f"{case}_weights_{i}"], array, rtol=0, atol=SAME)
    np.testing.assert_allclose(under_jax[f"{case}_logits"], trainer.validation_logits(), rtol=0, atol=10 * SAME)


@pytest.mark.parametrize("parts", [2, 20])
def test_validation_in_parts_is_validation_as_a_whole(parts: int, under_jax: dict[str, NDArray[np.float32]]) -> None:
    logits, labels = under_jax[f"parts_{parts}_logits"], under_jax[f"parts_{parts}_labels"]
    loss, share = under_jax[f"parts_{parts}_metrics"]
    assert loss == pytest.approx(cross_entropy(logits, labels), rel=SAME)
    assert share == accuracy(logits, labels)


def test_an_epoch_is_no_longer_to_compile_where_validation_has_more_parts(
    under_jax: dict[str, NDArray[np.float32]],
) -> None:
    assert under_jax["parts_2_lines"] == under_jax["parts_20_lines"]


def test_pictures_give_the_same_features(
    under_jax: dict[str, NDArray[np.float32]], pictures: NDArray[np.uint8]
) -> None:
    expected = TensorFlowEngine(feature_model(backbone_spec("tiny")))(pictures)
    np.testing.assert_allclose(under_jax["features"], expected, rtol=0, atol=1e-5 * float(np.abs(expected).max()))


def test_another_backend_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    with pytest.raises(UsageError, match=r"KERAS_BACKEND must be tensorflow or jax\. Received: torch"):
        head_trainer(vectors(), size_inner=4)
