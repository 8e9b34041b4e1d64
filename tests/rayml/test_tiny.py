from __future__ import annotations

from importlib import resources

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from rayml import tiny
from rayml.clothing import CLASSES
from rayml.errors import UsageError, WeightsError
from rayml.sample import SAMPLE_SEED, SAMPLE_SEEDS_END, draw, sample_seed
from rayml.tiny import TINY_FEATURES, TINY_IMAGE_SIZE_PX, TINY_STRIDE, build_tiny
from scripts.train_tiny import FRESH_PER_CLASS, FRESH_SEEDS_START, TRAINING_SEEDS_START, folded

keras = pytest.importorskip("keras", reason="tiny is a Keras model")

MAX_ASSET_BYTES = 1_000_000
TRAIN_PER_CLASS, VALIDATION_PER_CLASS = 30, 10

Pictures = NDArray[np.float32]
Labels = NDArray[np.int64]


def sample_pictures(split: str, per_class: int) -> tuple[Pictures, Labels]:
    """The first `per_class` pictures of each class of the sample, at tiny's size, before JPEG."""
    size = (TINY_IMAGE_SIZE_PX, TINY_IMAGE_SIZE_PX)
    drawn = [
        np.asarray(draw(label, sample_seed(SAMPLE_SEED, split, n)).resize(size, Image.Resampling.BILINEAR), np.float32)
        for label in CLASSES
        for n in range(per_class)
    ]
    return np.stack(drawn), np.repeat(np.arange(len(CLASSES)), per_class)


@pytest.fixture(scope="module")
def data() -> tuple[Pictures, Labels, Pictures, Labels]:
    return *sample_pictures("train", TRAIN_PER_CLASS), *sample_pictures("validation", VALIDATION_PER_CLASS)


def test_the_asset_is_small_float16_and_needs_no_pickle() -> None:
    with resources.files("rayml").joinpath("assets/tiny.npz").open("rb") as file:
        assert len(file.read()) <= MAX_ASSET_BYTES
        file.seek(0)
        arrays = dict(np.load(file, allow_pickle=False))
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float16)}
    assert all(np.isfinite(array).all() for array in arrays.values())


@pytest.mark.parametrize("image_size_px", [32, TINY_IMAGE_SIZE_PX, 100, 224])
def test_features_are_a_finite_map_at_every_size(image_size_px: int) -> None:
    model = build_tiny(image_size_px)
    images = np.stack([np.asarray(draw("hat", 1, image_size_px)), np.asarray(draw("skirt", 2, image_size_px))])
    features = model(images.astype(np.float32)).numpy()
    cells = -(-image_size_px // TINY_STRIDE)
    assert model.output_shape == (None, cells, cells, TINY_FEATURES)
    assert features.shape == (2, cells, cells, TINY_FEATURES)
    assert features.dtype == np.float32
    assert np.isfinite(features).all()
    assert not np.array_equal(features[0], features[1])


def test_it_is_frozen_and_the_same_each_time() -> None:
    first, second = build_tiny(), build_tiny()
    assert first.trainable_weights == []
    assert first.count_params() > 0
    pairs = list(zip(first.get_weights(), second.get_weights(), strict=True))
    assert all(np.array_equal(a, b) for a, b in pairs)


def test_without_weights_it_is_random_and_still_frozen() -> None:
    random, trained = build_tiny(weights=False), build_tiny()
    assert random.trainable_weights == []
    kernel = [model.get_layer("stem").get_weights()[0] for model in (random, trained)]
    assert not np.allclose(*kernel)


@pytest.mark.parametrize("image_size_px", [31, 225])
def test_it_refuses_other_sizes(image_size_px: int) -> None:
    with pytest.raises(UsageError, match=f"32 to 224 px. Received: {image_size_px}"):
        build_tiny(image_size_px)


def test_weights_that_do_not_fit_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny, "_STEM_CHANNELS", 8)
    with pytest.raises(WeightsError, match="stem/kernel"):
        build_tiny()


def test_folding_batch_normalisation_keeps_the_features() -> None:
    keras.utils.set_random_seed(1)
    images = keras.Input((TINY_IMAGE_SIZE_PX, TINY_IMAGE_SIZE_PX, 3))
    trained = keras.Model(images, tiny.feature_map(images, batch_normalization=True))
    rng = np.random.default_rng(1)
    for layer in trained.layers:
        if layer.name.endswith("_bn"):  # gamma, beta, mean, variance: none of them at its neutral start.
            layer.set_weights([rng.uniform(0.5, 1.5, w.shape).astype(np.float32) for w in layer.get_weights()])
    plain = build_tiny(weights=False)
    arrays = folded(trained)
    for layer in plain.layers:
        if layer.weights:
            layer.set_weights([arrays[f"{layer.name}/{w.name}"].astype(np.float32) for w in layer.weights])
    photo = np.asarray(draw("shoes", 1, TINY_IMAGE_SIZE_PX), np.float32)[None]
    expected, received = trained(photo, training=False).numpy(), plain(photo).numpy()
    assert expected.max() > 0.5
    assert np.abs(expected - received).max() < 0.02 * expected.max()  # float16 keeps three decimal digits.


def test_the_network_has_never_seen_a_picture_of_any_sample() -> None:
    assert TRAINING_SEEDS_START >= SAMPLE_SEEDS_END
    assert FRESH_SEEDS_START + FRESH_PER_CLASS > FRESH_SEEDS_START > TRAINING_SEEDS_START


def linear_accuracy(train: Pictures, train_labels: Labels, test: Pictures, test_labels: Labels) -> float:
    """Validation accuracy of a ridge regression onto the classes, with the best of four penalties."""
    ones = [np.ones((len(rows), 1), np.float32) for rows in (train, test)]
    a, b = np.hstack([train, ones[0]]), np.hstack([test, ones[1]])
    target = np.eye(len(CLASSES))[train_labels]
    accuracies = []
    for penalty in (0.01, 1.0, 10.0, 100.0):
        solution = np.linalg.solve(a.T @ a + penalty * np.eye(a.shape[1]), a.T @ target)
        accuracies.append(float(((b @ solution).argmax(axis=1) == test_labels).mean()))
    return max(accuracies)


def nearest_accuracy(train: Pictures, train_labels: Labels, test: Pictures, test_labels: Labels) -> float:
    distances = ((test[:, None] - train[None]) ** 2).sum(axis=-1)
    return float((train_labels[distances.argmin(axis=1)] == test_labels).mean())


def test_a_head_on_tiny_is_right_where_trivial_rules_are_not(data: tuple[Pictures, Labels, Pictures, Labels]) -> None:
    train, train_labels, validation, validation_labels = data

    colours = [x.mean(axis=(1, 2)) / 255 for x in (train, validation)]
    cell = TINY_IMAGE_SIZE_PX // 8
    coarse = [
        x.reshape(-1, 8, cell, 8, cell, 3).mean(axis=(2, 4)).reshape(len(x), -1) / 255 for x in (train, validation)
    ]
    trivial = [
        rule(kind[0], train_labels, kind[1], validation_labels)
        for kind in (colours, coarse)
        for rule in (nearest_accuracy, linear_accuracy)
    ]
    assert max(trivial) < 0.4

    keras.utils.set_random_seed(1)
    backbone = build_tiny()
    features = [backbone.predict(x, verbose=0).mean(axis=(1, 2)) for x in (train, validation)]
    head = keras.Sequential([keras.layers.Dense(100, activation="relu"), keras.layers.Dense(len(CLASSES))])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    head.compile(optimizer=keras.optimizers.Adam(0.005), loss=loss)
    head.fit(features[0], train_labels, batch_size=32, epochs=10, verbose=0)
    accuracy = float((head.predict(features[1], verbose=0).argmax(axis=1) == validation_labels).mean())
    assert accuracy >= 0.85
