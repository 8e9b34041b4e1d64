from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayml.errors import BundleError, UsageError, WeightsError
from rayml.head import HeadWeights, build_head, head_weights, make_model

HEAD_SHAPES = [(64, 100), (100,), (100, 10), (10,)]


def names(model: Any) -> list[str]:
    return [type(layer).__name__ for layer in model.layers]


# --- make_model


@pytest.fixture(scope="module")
def lesson() -> Any:
    """The lesson's function with all its defaults, but for the download."""
    return make_model(weights=None)


def test_the_lessons_layers_and_defaults(lesson: Any) -> None:
    assert lesson.input_shape == (None, 150, 150, 3)
    assert names(lesson) == ["InputLayer", "Functional", "GlobalAveragePooling2D", "Functional"]
    assert (lesson.layers[1].name, lesson.layers[1].output_shape[1:]) == ("xception", (5, 5, 2048))
    head = lesson.layers[3]
    assert names(head) == ["InputLayer", "Dense", "Dense"]
    inner, logits = head.layers[1:]
    assert (inner.units, inner.activation.__name__) == (100, "relu")
    assert (logits.units, logits.activation.__name__) == (10, "linear")
    assert lesson.output_shape == (None, 10)


def test_the_base_is_frozen(lesson: Any) -> None:
    trainable = [tuple(variable.shape) for variable in lesson.trainable_variables]
    assert trainable == [(2048, 100), (100,), (100, 10), (10,)]
    assert lesson.layers[1].trainable is False
    before = [np.asarray(variable).copy() for variable in lesson.layers[1].variables]
    kernel = np.asarray(lesson.trainable_variables[0]).copy()
    lesson.train_on_batch(np.random.default_rng(1).uniform(-1, 1, (2, 150, 150, 3)), np.eye(10)[:2])
    # Not its moving averages either: it runs as `training=False`.
    for old, variable in zip(before, lesson.layers[1].variables, strict=True):
        np.testing.assert_array_equal(old, np.asarray(variable))
    assert not np.array_equal(kernel, np.asarray(lesson.trainable_variables[0]))


def test_how_it_learns(lesson: Any) -> None:
    import keras

    assert type(lesson.optimizer) is keras.optimizers.Adam
    assert float(lesson.optimizer.learning_rate) == pytest.approx(0.01)
    assert type(lesson.loss) is keras.losses.CategoricalCrossentropy
    assert lesson.loss.get_config()["from_logits"] is True
    assert set(lesson.get_metrics_result()) == {"loss", "accuracy"}


def test_every_argument_reaches_the_model() -> None:
    model = make_model(0.002, 7, 0.25, backbone="tiny", weights="builtin", image_size_px=48, classes=3)
    assert (model.input_shape, model.output_shape) == ((None, 48, 48, 3), (None, 3))
    head = model.layers[-1]
    assert names(head) == ["InputLayer", "Dense", "Dropout", "Dense"]
    assert head.layers[1].units == 7
    assert head.layers[2].rate == 0.25
    assert float(model.optimizer.learning_rate) == pytest.approx(0.002)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"learning_rate": 0}, "learning_rate must be a number over 0. Received: 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be a number over 0. Received: nan"),
        ({"size_inner": -3}, "size_inner must be at least 1. Received: -3"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1. Received: 1.0"),
        ({"dropout": -0.1}, "Received: -0.1"),
        ({"classes": 1}, "classes must be at least 2. Received: 1"),
        ({"backbone": "xeption"}, "--backbone must be one of"),
        ({"image_size_px": 70}, "71 to 1024 px. Received: 70"),
    ],
    ids=str,
)
def test_values_that_cannot_be(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make_model(**{"weights": None, **values})


def test_weights_that_are_not_there() -> None:
    with pytest.raises(WeightsError, match=r"a file that is there\. Received: nowhere\.weights\.h5"):
        make_model(weights="nowhere.weights.h5")


# --- the head alone


def test_a_heads_start_is_its_seeds() -> None:
    starts = [build_head(64, 100, 10, seed=seed) for seed in (1, 1, 2)]
    first, again, other = (head_weights(model) for model in starts)
    assert [array.shape for array in first.arrays().values()] == HEAD_SHAPES
    for name, array in first.arrays().items():
        np.testing.assert_array_equal(array, again.arrays()[name])
    assert not np.array_equal(first.inner_kernel, other.inner_kernel)
    # Glorot and Bengio 2010: uniform within sqrt(6 / (fan in + fan out)).
    assert np.abs(first.inner_kernel).max() == pytest.approx((6 / 164) ** 0.5, rel=0.01)
    assert not first.inner_bias.any()
    assert np.unique(build_head(10, 10, 10, seed=3).get_weights()[0]).size == 100


def test_numpy_gives_what_keras_gives() -> None:
    model = build_head(64, 100, 10, seed=1)
    vectors = np.random.default_rng(1).normal(size=(20, 64)).astype(np.float32)
    logits = head_weights(model).logits(vectors)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, model.predict(vectors, verbose=0), rtol=0, atol=1e-5)


# --- weights as arrays


def arrays(**changes: Any) -> dict[str, Any]:
    shapes = {"inner_kernel": (6, 4), "inner_bias": (4,), "logits_kernel": (4, 3), "logits_bias": (3,)}
    random = np.random.default_rng(1)
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()} | changes


def test_a_file_keeps_every_bit(tmp_path: Path) -> None:
    head = HeadWeights(**arrays())
    assert (head.features, head.size_inner, head.classes) == (6, 4, 3)
    (tmp_path / "head.npz").write_bytes(head.to_npz())
    for source in (head.to_npz(), tmp_path / "head.npz"):
        read = HeadWeights.from_npz(source)
        for name, array in head.arrays().items():
            np.testing.assert_array_equal(array, read.arrays()[name])
    with zipfile.ZipFile(tmp_path / "head.npz") as archive:
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"inner_bias": np.zeros(5, np.float32)}, r"inner_bias must be \(4,\). Received: \(5,\)"),
        ({"inner_kernel": np.zeros((6, 5), np.float32)}, r"inner_kernel must be \(6, 4\)"),
        ({"logits_bias": np.zeros(3)}, "logits_bias must be float32. Received: float64"),
        ({"logits_kernel": np.zeros(4, np.float32)}, "two dimensions"),
        ({"logits_bias": np.array([0, np.nan, 0], np.float32)}, "not finite"),
        ({"inner_bias": np.array([0, np.inf, 0, 0], np.float32)}, "not finite"),
    ],
)
def test_arrays_that_are_no_head(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(BundleError, match=words):
        HeadWeights(**arrays(**changes))


def test_files_that_are_no_head(tmp_path: Path) -> None:
    whole = HeadWeights(**arrays()).to_npz()
    np.savez(tmp_path / "other.npz", weights=np.zeros(3))
    np.savez(tmp_path / "pickle.npz", **arrays(logits_bias=np.array([{}, {}, {}])))
    for damaged in (b"", b"no zip", whole[:100], whole[: len(whole) // 2], whole[:-30]):
        with pytest.raises(BundleError, match="head"):
            HeadWeights.from_npz(damaged)
    for name in ("other.npz", "pickle.npz", "missing.npz"):
        with pytest.raises(BundleError, match="head"):
            HeadWeights.from_npz(tmp_path / name)
