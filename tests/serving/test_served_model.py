"""One version of a model: whether it computes pictures together."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from rayml.bundle import Bundle
from rayml.engines.openvino import OpenVINOEngine
from rayml.errors import BundleError
from rayml.predictor import Predictor
from serving.limits import RequestLimits
from serving.served_model import ServedModel
from tests.serving.tiny_bundle import write_tiny_bundle

NAME = "primaries"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle that takes next to no time."""
    return Bundle.open(write_tiny_bundle(tmp_path_factory.mktemp("served") / "bundle"))


@pytest.mark.parametrize(("seconds", "grouped"), [((1.0, 0.9), True), ((1.0, 0.99), False), ((1.0, 2.0), False)])
def test_pictures_go_together_only_where_that_is_quicker(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, seconds: tuple[float, float], grouped: bool
) -> None:
    tried: list[int] = []

    def took(alone: OpenVINOEngine, together: OpenVINOEngine, pictures: np.ndarray) -> tuple[float, float]:
        assert alone is not together
        tried.append(len(pictures))
        return seconds

    monkeypatch.setattr(OpenVINOEngine, "compare", took)
    model = ServedModel(NAME, 1, bundle, "auto", 2, RequestLimits())
    alone = model._predictor
    model.group()
    assert (model._predictor, tried) == (alone, [])  # Its layers are so small that they gain nothing.
    assert isinstance(alone.engine, OpenVINOEngine)
    alone.engine.may_gain_from_groups = True
    model.group()
    assert (model._predictor, tried) == (alone, [])  # Nor can they be cut.
    model._tried_groups = False
    make = model._make

    def made(opened: Bundle, grouped: bool) -> Predictor:
        predictor = make(opened, grouped=grouped)
        predictor.engine.grouped = True
        return predictor

    model._make = made
    before = model.answers(model.predict_pixels(model.pixels(model.sample)[np.newaxis]))
    model.group()
    model.group()  # What was tried is not tried again.
    assert (model._predictor is not alone, tried) == (grouped, [8])
    assert model.answers(model.predict_pixels(model.pixels(model.sample)[np.newaxis])) == before


def test_a_version_is_computed_in_the_precision_asked_for(bundle: Bundle) -> None:
    assert ServedModel(NAME, 1, bundle, "auto", 1, RequestLimits())._predictor.precision == "float32"
    with pytest.raises(BundleError, match="int8 needs a bundle whose backbone is in int8"):
        ServedModel(NAME, 1, bundle, "auto", 1, RequestLimits(), "int8")


def test_a_version_whose_files_have_gone_answers_on(bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(bundle.path, tmp_path / "copy")
    model = ServedModel(NAME, 1, tmp_path / "copy", "auto", 1, RequestLimits())
    alone = model._predictor
    alone.engine.may_gain_from_groups = True
    shutil.rmtree(tmp_path / "copy")
    with pytest.raises(BundleError):
        model.group()
    assert model._predictor is alone
