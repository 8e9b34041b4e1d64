"""The whole network on pictures, against Keras' own `fit` of `make_model` and against training on features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayml.augmentation import Augmentation
from rayml.backbones import BackboneSpec, backbone_spec, build_base, feature_model, preprocess_input
from rayml.end_to_end import EndToEndTrainer, FineTuning, Network, PixelData, top_variables
from rayml.errors import UsageError
from rayml.head import make_model
from rayml.training import EpochMetrics, HeadTrainer, TrainingData, epoch_order
from tests.rayml.lively import drawings

SEED, RATE, SIZE_INNER, BATCH, EPOCHS = 5, 0.01, 16, 20, 2
TRAIN, VALIDATION = 48, 16
TINY = backbone_spec("tiny", None, 32)
ALL = Augmentation.parse("flip,shift=0.1,zoom=0.1,rotation=0.05")
# As in test_training: the same float32 numbers added in another order.
SAME = 1e-5


@pytest.fixture(scope="module")
def data() -> PixelData:
    return pixel_data(TINY)


def pixel_data(spec: BackboneSpec) -> PixelData:
    pixels, labels = drawings(TRAIN + VALIDATION, spec.image_size_px)
    return PixelData(
        pixels[:TRAIN], labels[:TRAIN], pixels[TRAIN:], labels[TRAIN:], tuple("abcdefghij"), f"drawings {spec}"
    )


def made(data: PixelData, *, dropout: float = 0.0, spec: BackboneSpec = TINY, **options: Any) -> EndToEndTrainer:
    return EndToEndTrainer(data, Network(spec, **options), size_inner=SIZE_INNER, dropout=dropout, batch_size=BATCH)


def started(data: PixelData, **options: Any) -> EndToEndTrainer:
    trainer = made(data, **options)
    trainer.start(seed=SEED, learning_rate=RATE)
    return trainer


def bits(trainer: EndToEndTrainer) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in trainer.state().items()}


def assert_same(ours: list[EpochMetrics], expected: list[EpochMetrics], tolerance: float) -> None:
    print(*zip(ours, expected, strict=True), sep="\n")
    for one, other in zip(ours, expected, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=tolerance)
        assert one.val_loss == pytest.approx(other.val_loss, rel=tolerance)
        assert one.accuracy == pytest.approx(other.accuracy, abs=1e-6)
        assert one.val_accuracy == pytest.approx(other.val_accuracy, abs=1e-6)


def lesson(data: PixelData, spec: BackboneSpec, start: list[Any], model: Any, epochs: int) -> list[EpochMetrics]:
    """`fit` of the lesson's own model, an epoch at a time, on the pictures in the trainer's order."""
    model.get_layer("head").set_weights(start)
    scale = [np.asarray(preprocess_input(spec.name, p.astype(np.float32)))
             for p in (data.train_pixels, data.validation_pixels)]  # fmt: skip
    truth = [np.eye(10, dtype=np.float32)[labels] for labels in (data.train_labels, data.validation_labels)]
    history = []
    for epoch in range(epochs):
        order = epoch_order(SEED, epoch, TRAIN)
        figures = model.fit(
            scale[0][order],
            truth[0][order],
            batch_size=BATCH,
            shuffle=False,
            validation_data=(scale[1], truth[1]),
            verbose=0,
        ).history
        names = ("loss", "accuracy", "val_loss", "val_accuracy")
        history.append(EpochMetrics(*(float(figures[name][0]) for name in names)))
    return history


def test_frozen_and_unaugmented_it_is_the_lesson_and_the_features_way(data: PixelData) -> None:
    trainer = started(data)
    start = list(trainer.weights().arrays().values())
    ours = [trainer.run_epoch() for _ in range(EPOCHS)]
    model = make_model(RATE, SIZE_INNER, backbone="tiny", weights="builtin", image_size_px=32)
    assert_same(ours, lesson(data, TINY, start, model, EPOCHS), SAME)
    assert abs(ours[-1].loss - ours[0].loss) > 0.05 * ours[0].loss  # It does learn.
    backbone = feature_model(TINY)
    features = TrainingData(
        np.asarray(backbone.predict(data.train_pixels, verbose=0)),
        data.train_labels,
        np.asarray(backbone.predict(data.validation_pixels, verbose=0)),
        data.validation_labels,
        data.classes,
        "features",
    )
    cached = HeadTrainer(features, size_inner=SIZE_INNER, batch_size=BATCH)
    cached.start(seed=SEED, learning_rate=RATE)
    assert_same(ours, [cached.run_epoch() for _ in range(EPOCHS)], SAME)
    assert trainer.tuned() == {}


def test_fine_tuning_is_keras_own(data: PixelData) -> None:
    """After the head, the top layers learn with it, by a new Adam at another rate: unfreezing and compiling anew."""
    import keras

    trainer = started(data, fine_tuning=FineTuning(layers=3, after_epoch=1, learning_rate=0.001))
    start = list(trainer.weights().arrays().values())
    ours = [trainer.run_epoch() for _ in range(3)]
    model = make_model(RATE, SIZE_INNER, backbone="tiny", weights="builtin", image_size_px=32)
    expected = lesson(data, TINY, start, model, 1)
    base = model.get_layer("tiny")
    base.trainable = True
    chosen = {"block7_pointwise", "block7_depthwise", "block6_pointwise"}
    for layer in base.layers:
        layer.trainable = layer.name in chosen
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.001), loss, metrics=["accuracy"])
    scaled = [pixels.astype(np.float32) for pixels in (data.train_pixels, data.validation_pixels)]
    truth = [np.eye(10, dtype=np.float32)[labels] for labels in (data.train_labels, data.validation_labels)]
    for epoch in (1, 2):
        order = epoch_order(SEED, epoch, TRAIN)
        figures = model.fit(
            scaled[0][order],
            truth[0][order],
            batch_size=BATCH,
            shuffle=False,
            validation_data=(scaled[1], truth[1]),
            verbose=0,
        ).history
        names = ("loss", "accuracy", "val_loss", "val_accuracy")
        expected.append(EpochMetrics(*(float(figures[name][0]) for name in names)))
    assert_same(ours, expected, 1e-4)
    theirs = {index: np.asarray(variable) for index, variable in enumerate(base.variables)}
    tuned = trainer.tuned()
    assert len(tuned) == 5  # Two pointwise kernels with their biases, one depthwise kernel without.
    for index, array in tuned.items():
        np.testing.assert_allclose(array, theirs[index], rtol=0, atol=1e-5)
        assert not np.array_equal(array, np.asarray(build_base(TINY).variables[index]))
    # The next trial has the backbone as it was loaded.
    trainer.start(seed=SEED, learning_rate=RATE)
    assert trainer.run_epoch() == ours[0]
    assert trainer.tuned() == {}


@pytest.mark.parametrize("kept_after", [1, 2, 3])
def test_it_goes_on_bit_for_bit_where_it_was_left(data: PixelData, kept_after: int) -> None:
    """With everything that has a state: augmentation, dropout, both Adams, fine-tuned layers."""
    options: dict[str, Any] = {
        "dropout": 0.3,
        "augmentation": ALL,
        "fine_tuning": FineTuning(layers=2, after_epoch=2, learning_rate=0.001),
    }
    straight = started(data, **options)
    history = [straight.run_epoch() for _ in range(kept_after)]
    kept = straight.state()
    history += [straight.run_epoch() for _ in range(4 - kept_after)]
    second = made(data, **options)
    second.start(seed=SEED, learning_rate=RATE)
    second.restore(kept)
    assert [second.run_epoch() for _ in range(4 - kept_after)] == history[kept_after:]
    assert bits(second) == bits(straight)
    assert any(name.startswith("tuned_") for name in kept) == (kept_after == 3)
    frozen = sum(array.nbytes for name, array in kept.items() if name.startswith("tuned_"))
    assert frozen < sum(variable.numpy().nbytes for variable in build_base(TINY).variables) / 2


def test_augmentation_is_of_training_alone_and_the_seed_decides_it(data: PixelData) -> None:
    plain, augmented = started(data), started(data, augmentation=ALL)
    for trainer in (plain, augmented):
        trainer.start(seed=SEED, learning_rate=1e-12)
    first, changed = plain.run_epoch(), augmented.run_epoch()
    assert abs(first.loss - changed.loss) > 1e-3
    assert changed.val_loss == pytest.approx(first.val_loss, rel=1e-5)
    second = augmented.run_epoch()
    assert second.loss != changed.loss  # Each epoch changes the pictures anew.
    augmented.start(seed=SEED, learning_rate=1e-12)
    assert augmented.run_epoch() == changed
    augmented.start(seed=SEED + 1, learning_rate=1e-12)
    assert augmented.run_epoch().loss != changed.loss


def test_mixed_precision_trains_in_bfloat16_and_validates_in_float32(data: PixelData) -> None:
    import keras

    trainer = started(data, mixed_precision=True, fine_tuning=FineTuning(layers=1, after_epoch=1, learning_rate=1e-3))
    exact = started(data, fine_tuning=FineTuning(layers=1, after_epoch=1, learning_rate=1e-3))
    assert trainer._base.get_layer("block7_pointwise").compute_dtype == "bfloat16"
    assert keras.config.dtype_policy().name == "float32"
    for _ in range(2):
        ours, theirs = trainer.run_epoch(), exact.run_epoch()
        assert ours.loss != theirs.loss
        assert ours.loss == pytest.approx(theirs.loss, rel=0.05)
    # Its logits are those of the float32 network with its weights.
    base = build_base(TINY)
    for index, array in trainer.tuned().items():
        base.variables[index].assign(array)
    features = np.asarray(feature_model(TINY, base)(data.validation_pixels))
    np.testing.assert_allclose(trainer.validation_logits(), trainer.weights().logits(features), rtol=0, atol=1e-4)


def test_the_top_layers_leave_batch_normalisation_alone() -> None:
    import keras

    base = build_base(backbone_spec("mobilenet_v2", "none", 32))
    found = top_variables(base, 2)
    layers = [base.variables[index].path.split("/")[-2] for index in found]
    assert layers == ["block_16_project", "Conv_1"]
    normalisation = [layer for layer in base.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert normalisation and not any(layer.trainable for layer in normalisation)
    with pytest.raises(UsageError, match=r"unfreeze must be at most 52, the layers of .*Received: 53"):
        top_variables(base, 53)


@pytest.mark.parametrize(
    "values", [{"layers": 0}, {"after_epoch": 0}, {"learning_rate": 0.0}, {"learning_rate": float("nan")}]
)
def test_fine_tuning_that_cannot_be(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=str(next(iter(values)))):
        FineTuning(**{"layers": 1, "after_epoch": 1, "learning_rate": 0.1, **values})


@pytest.mark.slow
def test_mobilenet_with_real_weights_learns_as_under_keras(mobilenet_weights: Path) -> None:
    spec = BackboneSpec("mobilenet_v2", str(mobilenet_weights), 96)
    data = pixel_data(spec)
    trainer = made(data, spec=spec)
    trainer.start(seed=SEED, learning_rate=RATE)
    start = list(trainer.weights().arrays().values())
    model = make_model(RATE, SIZE_INNER, backbone="mobilenet_v2", weights=str(mobilenet_weights), image_size_px=96)
    assert_same([trainer.run_epoch() for _ in range(EPOCHS)], lesson(data, spec, start, model, EPOCHS), 1e-4)
