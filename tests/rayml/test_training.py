"""The proof that training on cached features is the lesson's training: Keras' own `fit` of `make_model` against it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rayml.backbones import BackboneSpec, feature_model, preprocess_input
from rayml.engines import load_engine
from rayml.errors import UsageError
from rayml.export import to_onnx
from rayml.head import HeadWeights, build_head, make_model
from rayml.training import VALIDATION_BATCH, EpochMetrics, HeadTrainer, TrainingData, epoch_order
from tests.rayml.lively import drawings, lively_spec

SEED, RATE, SIZE_INNER, BATCH, EPOCHS = 5, 0.01, 16, 20, 3
TRAIN, VALIDATION, CLASSES = 48, 16, 10  # Batches of 20, 20 and 8; validation in one of 16.

# How far a loss may lie from Keras' own, as a share of it. Both sides add the same float32 numbers in another order
# (XLA against TensorFlow's kernels): an ulp is 6e-8, a sum over 1280 to 2048 features loses a few of them, and the 9
# steps of Adam that follow each other carry them on: 1.5e-6 was measured. Accuracies are counts and must be equal.
SAME_FEATURES = 1e-5
# OpenVINO's own convolutions move each feature by about 1e-6 of its size as well: 2e-6 was measured.
ENGINE_FEATURES = 1e-4


def vectors(count: int = 90, features: int = 24, classes: int = 4, seed: int = 1) -> TrainingData:
    """Separable enough to learn, noisy enough never to be perfect."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, count + 30).astype(np.int32)
    centres = random.normal(size=(classes, features))
    points = (centres[labels] + random.normal(size=(count + 30, features))).astype(np.float32)
    names = tuple(f"class {number}" for number in range(classes))
    return TrainingData(points[:count], labels[:count], points[count:], labels[count:], names, f"synthetic {seed}")


def one_hot(labels: NDArray[np.int32], classes: int) -> NDArray[np.float32]:
    return np.eye(classes, dtype=np.float32)[labels]


def start_of(trainer: HeadTrainer) -> list[NDArray[np.float32]]:
    return list(trainer.weights().arrays().values())


def keras_epochs(
    model: Any, train: tuple[Any, Any], validation: tuple[Any, Any], *, batch_size: int, epochs: int
) -> list[EpochMetrics]:
    """Keras' own `fit`, an epoch at a time, on the pictures in the order in which the trainer takes them."""
    history = []
    for epoch in range(epochs):
        order = epoch_order(SEED, epoch, len(train[1]))
        figures = model.fit(
            train[0][order],
            train[1][order],
            batch_size=batch_size,
            shuffle=False,
            validation_data=validation,
            verbose=0,
        ).history
        history.append(
            EpochMetrics(*(float(figures[name][0]) for name in ("loss", "accuracy", "val_loss", "val_accuracy")))
        )
    return history


def assert_same(ours: list[EpochMetrics], keras: list[EpochMetrics], tolerance: float, counts: bool = True) -> None:
    print(*zip(ours, keras, strict=True), sep="\n")
    for one, other in zip(ours, keras, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=tolerance)
        assert one.val_loss == pytest.approx(other.val_loss, rel=tolerance)
        assert one.accuracy == pytest.approx(other.accuracy, abs=1e-6)
        assert one.val_accuracy == pytest.approx(other.val_accuracy, abs=1e-6)


# --- the whole model, from pixels on


def assert_equivalent(spec: BackboneSpec, model: Any) -> None:
    """A model of `make_model` under `fit`, against the trainer on features of Keras and on features of OpenVINO."""
    pixels, labels = drawings(TRAIN + VALIDATION, spec.image_size_px)
    backbone = feature_model(spec, next(layer for layer in model.layers if hasattr(layer, "layers")))
    engine = load_engine(to_onnx(backbone), "openvino", threads=2)

    def trainer_on(features: NDArray[np.float32]) -> HeadTrainer:
        data = TrainingData(
            features[:TRAIN], labels[:TRAIN], features[TRAIN:], labels[TRAIN:], tuple("abcdefghij"), "drawings"
        )
        trainer = HeadTrainer(data, size_inner=SIZE_INNER, batch_size=BATCH)
        trainer.start(seed=SEED, learning_rate=RATE)
        return trainer

    by_keras = trainer_on(np.asarray(backbone.predict(pixels, batch_size=16, verbose=0)))
    by_engine = trainer_on(engine(pixels))
    for layer, arrays in (("inner", start_of(by_keras)[:2]), ("logits", start_of(by_keras)[2:])):
        next(part for part in walk(model) if part.name == layer).set_weights(arrays)
    scaled = np.asarray(preprocess_input(spec.name, pixels.astype(np.float32)))
    truth = one_hot(labels, CLASSES)
    expected = keras_epochs(
        model,
        (scaled[:TRAIN], truth[:TRAIN]),
        (scaled[TRAIN:], truth[TRAIN:]),
        batch_size=BATCH,
        epochs=EPOCHS,
    )
    # Something is learned, so that equal figures are not those of a head that stands still.
    assert abs(expected[-1].loss - expected[0].loss) > 0.05 * expected[0].loss
    assert_same([by_keras.run_epoch() for _ in range(EPOCHS)], expected, SAME_FEATURES)
    assert_same([by_engine.run_epoch() for _ in range(EPOCHS)], expected, ENGINE_FEATURES)


def walk(model: Any) -> list[Any]:
    """The layers of a model and of the models in it."""
    return [part for layer in model.layers for part in (layer, *walk(layer))] if hasattr(model, "layers") else []


def test_xception_at_150_px_learns_as_under_keras(tmp_path: Path) -> None:
    spec = lively_spec("xception", 150, tmp_path)
    model = make_model(RATE, SIZE_INNER, weights=spec.weights)
    assert model.input_shape == (None, 150, 150, 3)
    assert_equivalent(spec, model)


def test_mobilenet_with_real_weights_learns_as_under_keras(mobilenet_weights: Path) -> None:
    spec = BackboneSpec("mobilenet_v2", str(mobilenet_weights), 96)
    model = make_model(RATE, SIZE_INNER, backbone="mobilenet_v2", weights=str(mobilenet_weights), image_size_px=96)
    assert_equivalent(spec, model)


# --- the head alone, on vectors


def compiled_head(data: TrainingData, start: list[NDArray[np.float32]], rate: float) -> Any:
    import keras

    model = build_head(data.train_features.shape[1], start[0].shape[1], len(data.classes))
    model.set_weights(start)
    model.compile(
        optimizer=keras.optimizers.Adam(learning_rate=rate),
        loss=keras.losses.CategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


@pytest.mark.parametrize("batch_size", [1, 32, 45, 90, 500], ids=lambda size: f"batch {size}")
def test_the_head_steps_as_under_keras(batch_size: int) -> None:
    data = vectors()
    trainer = HeadTrainer(data, size_inner=8, batch_size=batch_size)
    trainer.start(seed=SEED, learning_rate=RATE)
    model = compiled_head(data, start_of(trainer), RATE)
    truth = one_hot(data.train_labels, 4), one_hot(data.validation_labels, 4)
    expected = keras_epochs(
        model,
        (data.train_features, truth[0]),
        (data.validation_features, truth[1]),
        batch_size=batch_size,
        epochs=EPOCHS,
    )
    assert_same([trainer.run_epoch() for _ in range(EPOCHS)], expected, SAME_FEATURES)
    for ours, theirs in zip(start_of(trainer), model.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=SAME_FEATURES)
    np.testing.assert_allclose(
        trainer.validation_logits(), model.predict(data.validation_features, verbose=0), rtol=0, atol=1e-4
    )


def test_weight_decay_and_label_smoothing_are_keras_own() -> None:
    import keras

    data = vectors()
    trainer = HeadTrainer(data, size_inner=8, batch_size=32)
    trainer.start(seed=SEED, learning_rate=RATE, weight_decay=0.3, label_smoothing=0.2)
    model = compiled_head(data, start_of(trainer), RATE)
    model.compile(
        optimizer=keras.optimizers.AdamW(learning_rate=RATE, weight_decay=0.3),
        loss=keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.2),
        metrics=["accuracy"],
    )
    truth = one_hot(data.train_labels, 4), one_hot(data.validation_labels, 4)
    plain = keras.losses.CategoricalCrossentropy(from_logits=True)
    for epoch in range(EPOCHS):
        order = epoch_order(SEED, epoch, len(data.train_labels))
        figures = model.fit(
            data.train_features[order], truth[0][order], batch_size=32, shuffle=False, verbose=0
        ).history
        ours = trainer.run_epoch()
        assert ours.loss == pytest.approx(figures["loss"][0], rel=SAME_FEATURES)
        assert ours.accuracy == pytest.approx(figures["accuracy"][0], abs=1e-6)
        val_loss = float(plain(truth[1], model(data.validation_features, training=False)))
        assert ours.val_loss == pytest.approx(val_loss, rel=SAME_FEATURES)
    for ours_array, theirs in zip(start_of(trainer), model.get_weights(), strict=True):
        np.testing.assert_allclose(ours_array, theirs, rtol=0, atol=SAME_FEATURES)
    # Without them the very same start ends elsewhere, and a trial after one with them has none of them.
    trainer.start(seed=SEED, learning_rate=RATE)
    assert abs(trainer.run_epoch().loss - figures["loss"][0]) > 0.01
    fresh = HeadTrainer(data, size_inner=8, batch_size=32)
    fresh.start(seed=SEED, learning_rate=RATE)
    fresh.run_epoch()
    assert arrays_of(trainer) == arrays_of(fresh)


@pytest.mark.parametrize("name", ["weight_decay", "label_smoothing"])
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_a_penalty_that_cannot_be(name: str, value: float) -> None:
    penalties = {"weight_decay": 0.0, "label_smoothing": 0.0, name: value}
    with pytest.raises(UsageError, match=f"{name} must be .*Received: {value}"):
        HeadTrainer(vectors(), size_inner=4).start(seed=1, learning_rate=RATE, **penalties)


def test_adams_state_is_keras_own_after_an_epoch() -> None:
    data = vectors()
    trainer = HeadTrainer(data, size_inner=8, batch_size=32)
    trainer.start(seed=SEED, learning_rate=RATE)
    model = compiled_head(data, start_of(trainer), RATE)
    order = epoch_order(SEED, 0, len(data.train_labels))
    truth = one_hot(data.train_labels, 4)
    for at in range(0, len(order), 32):
        model.train_on_batch(data.train_features[order[at : at + 32]], truth[order[at : at + 32]])
    trainer.run_epoch()
    state = trainer.state()
    theirs = [np.asarray(variable) for variable in model.optimizer.variables]
    # Steps, learning rate, and two moments for each of the four arrays.
    assert len(theirs) == 2 + 2 * 4
    for number, array in enumerate(theirs):
        np.testing.assert_allclose(state[f"optimizer_{number}"], array, rtol=0, atol=1e-6)
    assert state["optimizer_0"] == 3


def test_accuracies_are_the_fractions_that_counting_gives() -> None:
    data = vectors(count=7)
    trainer = HeadTrainer(data, size_inner=4, batch_size=3)
    trainer.start(seed=1, learning_rate=RATE)
    metrics = trainer.run_epoch()
    hits = (trainer.validation_logits().argmax(axis=1) == data.validation_labels).sum()
    assert metrics.val_accuracy == hits / 30
    assert metrics.accuracy in {count / 7 for count in range(8)}


def validated_on(count: int) -> TrainingData:
    """Some vectors to train on; to validate on so many, each again and again."""
    few = vectors(count=20)
    repeated = np.arange(count) % 30
    return dataclasses.replace(
        few, validation_features=few.validation_features[repeated], validation_labels=few.validation_labels[repeated]
    )


@pytest.mark.parametrize("beyond", [0, 100])
def test_validation_in_parts_is_validation_as_a_whole(beyond: int) -> None:
    from rayml.metrics import accuracy, cross_entropy

    data = validated_on(2 * VALIDATION_BATCH + beyond)
    trainer = HeadTrainer(data, size_inner=4)
    trainer.start(seed=1, learning_rate=RATE)
    metrics = trainer.run_epoch()
    logits = trainer.weights().logits(data.validation_features)
    assert metrics.val_accuracy == accuracy(logits, data.validation_labels)
    assert metrics.val_loss == pytest.approx(cross_entropy(logits, data.validation_labels), rel=SAME_FEATURES)


def test_an_epoch_is_no_longer_to_compile_where_validation_has_more_parts() -> None:
    import tensorflow as tf

    operations = []
    for parts in (2, 20):
        trainer = HeadTrainer(validated_on(parts * VALIDATION_BATCH + 100), size_inner=4)
        traced = trainer._compiled_epoch.get_concrete_function(tf.TensorSpec([20], tf.int32)).graph.as_graph_def()
        operations.append(len(traced.node) + sum(len(function.node_def) for function in traced.library.function))
    assert operations[0] == operations[1]


def arrays_of(trainer: HeadTrainer) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in trainer.state().items()}


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_a_head_goes_on_bit_for_bit_where_it_was_left(dropout: float) -> None:
    data = vectors()
    straight = HeadTrainer(data, size_inner=8, dropout=dropout)
    straight.start(seed=SEED, learning_rate=RATE)
    history = [straight.run_epoch() for _ in range(4)]

    first = HeadTrainer(data, size_inner=8, dropout=dropout)
    first.start(seed=SEED, learning_rate=RATE)
    resumed = [first.run_epoch() for _ in range(2)]
    kept = first.state()
    first.run_epoch()  # What was kept is a copy: going on does not change it.
    second = HeadTrainer(data, size_inner=8, dropout=dropout)
    second.start(seed=99, learning_rate=1.0)
    second.restore(kept)
    assert second.completed_epochs == 2
    resumed += [second.run_epoch() for _ in range(2)]
    assert resumed == history
    assert arrays_of(second) == arrays_of(straight)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_a_new_start_leaves_nothing_of_the_trial_before(dropout: float) -> None:
    data = vectors()
    used = HeadTrainer(data, size_inner=8, dropout=dropout)
    used.start(seed=1, learning_rate=0.3)
    for _ in range(2):
        used.run_epoch()
    fresh = HeadTrainer(data, size_inner=8, dropout=dropout)
    for trainer in (used, fresh):
        trainer.start(seed=SEED, learning_rate=RATE)
    assert arrays_of(used) == arrays_of(fresh)
    assert [used.run_epoch() for _ in range(2)] == [fresh.run_epoch() for _ in range(2)]


def test_dropout_drops_in_training_alone() -> None:
    data = vectors()
    losses = {}
    for dropout in (0.0, 0.5):
        trainer = HeadTrainer(data, size_inner=64, dropout=dropout)
        trainer.start(seed=SEED, learning_rate=1e-12)
        losses[dropout] = trainer.run_epoch()
    assert abs(losses[0.5].loss - losses[0.0].loss) > 1e-3
    assert losses[0.5].val_loss == pytest.approx(losses[0.0].val_loss, rel=1e-6)
    # Each epoch drops other units.
    assert trainer.run_epoch().loss != losses[0.5].loss


def test_the_seed_decides_the_start_and_the_order() -> None:
    data = vectors()
    trainer = HeadTrainer(data, size_inner=8)
    starts: list[HeadWeights] = []
    for seed in (1, 1, 2, 2**31 - 1):
        trainer.start(seed=seed, learning_rate=RATE)
        starts.append(trainer.weights())
    assert np.array_equal(starts[0].inner_kernel, starts[1].inner_kernel)
    assert not np.array_equal(starts[0].inner_kernel, starts[2].inner_kernel)
    assert not np.array_equal(starts[2].inner_kernel, starts[3].inner_kernel)


def test_an_epochs_order_is_a_permutation_of_its_own() -> None:
    orders = [epoch_order(seed, epoch, 50) for seed in (1, 2) for epoch in (0, 1)]
    for order in orders:
        assert order.dtype == np.int32
        assert sorted(order.tolist()) == list(range(50))
    assert len({order.tobytes() for order in orders}) == 4
    np.testing.assert_array_equal(epoch_order(2, 1, 50), orders[3])


def test_two_trainers_hold_the_vectors_once() -> None:
    data = vectors()
    first = HeadTrainer(data, size_inner=4)
    curves = []
    for trainer in (HeadTrainer(data, size_inner=8, beside=first), HeadTrainer(data, size_inner=8)):
        trainer.start(seed=1, learning_rate=RATE)
        curves.append([trainer.run_epoch() for _ in range(2)])
        shared = trainer._train is first._train and trainer._validation is first._validation
        assert shared == (len(curves) == 1)
    assert curves[0] == curves[1]


def test_a_state_of_another_head_is_refused() -> None:
    data = vectors()
    small, large = HeadTrainer(data, size_inner=4), HeadTrainer(data, size_inner=5)
    for trainer in (small, large):
        trainer.start(seed=1, learning_rate=RATE)
    with pytest.raises(ValueError, match="shape"):
        large.restore(small.state())
    with pytest.raises(KeyError):
        large.restore({})


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_a_learning_rate_that_cannot_be(rate: float) -> None:
    trainer = HeadTrainer(vectors(), size_inner=4)
    with pytest.raises(UsageError, match="learning_rate"):
        trainer.start(seed=1, learning_rate=rate)
