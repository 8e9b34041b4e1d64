from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from rayml.backbones import backbone_spec, feature_model
from rayml.engines import load_engine
from rayml.engines.base import MissingPackage
from rayml.export import to_onnx
from rayml.frozen import TOLERANCES, difference
from rayml.graph import FEATURES, check_graph
from rayml.quantize import CALIBRATION_PICTURES, calibration_pixels, to_int8
from tests.rayml.lively import drawings, lively_spec


@pytest.fixture(scope="module")
def plain() -> bytes:
    return to_onnx(feature_model(backbone_spec("tiny")))


@pytest.fixture(scope="module")
def quantized(plain: bytes) -> bytes:
    return to_int8(plain, calibration_pixels(64))


def test_each_layer_multiplies_integers(plain: bytes, quantized: bytes) -> None:
    info = check_graph(quantized, output=FEATURES)
    assert (info.image_size_px, info.outputs, info.precision) == (64, 160, "int8")
    assert check_graph(plain, output=FEATURES).precision == "float32"
    graph = onnx.load_from_string(quantized).graph
    made_by = {name: node for node in graph.node for name in node.output}
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    layers = [node for node in graph.node if node.op_type == "Conv"]
    assert len(layers) == sum(node.op_type == "Conv" for node in onnx.load_from_string(plain).graph.node) > 10
    for layer in layers:
        assert {made_by[name].op_type for name in layer.input} == {"DequantizeLinear"}
        weights = made_by[layer.input[1]]
        assert kinds[weights.input[0]] == onnx.TensorProto.INT8
        (scales,) = [tensor for tensor in graph.initializer if tensor.name == weights.input[1]]
        (values,) = [tensor for tensor in graph.initializer if tensor.name == weights.input[0]]
        assert list(scales.dims) == [values.dims[0]]  # One for each output channel.
        source = made_by[made_by[layer.input[0]].input[0]]
        assert source.op_type == "QuantizeLinear"
    assert len(quantized) < 0.4 * len(plain)
    assert [entry.domain for entry in onnx.load_from_string(quantized).opset_import] == [""]


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_the_features_are_nearly_the_same(plain: bytes, quantized: bytes, engine: str) -> None:
    pixels, _ = drawings(20, 64, first_seed=4000)
    exact = load_engine(plain, engine, threads=1)(pixels)
    found = load_engine(quantized, engine, threads=1)(pixels)
    assert 1e-3 < difference(found, exact, "int8") < TOLERANCES["int8"]  # The same to the last digit would be float32.


def test_one_graph_gives_one_graph_in_int8(plain: bytes, quantized: bytes) -> None:
    assert calibration_pixels(64).shape == (CALIBRATION_PICTURES, 64, 64, 3)
    assert to_int8(plain, calibration_pixels(64)) == quantized
    assert to_int8(plain, calibration_pixels(64) // 2) != quantized


def test_what_bounds_a_layers_result_is_part_of_it(tmp_path: Path) -> None:
    """MobileNetV2 bounds its values by 6: with a scale for what lies beyond, few of the 256 steps are left for them."""
    plain = to_onnx(feature_model(lively_spec("mobilenet_v2", 64, tmp_path)))
    nodes = [node.op_type for node in onnx.load_from_string(to_int8(plain, calibration_pixels(64))).graph.node]
    assert "Clip" in [node.op_type for node in onnx.load_from_string(plain).graph.node] and "Clip" not in nodes
    assert nodes.count("Conv") == 52


def test_layers_whose_values_have_no_shape_until_they_run() -> None:
    """ConvNeXt's dense layers are written as products of (rows, K), the rows counted when the graph runs."""
    import keras

    images = keras.Input((32, 32, 3), dtype="uint8", name="images")
    values = keras.layers.Dense(8)(keras.layers.Dense(16, activation="relu")(keras.ops.cast(images, "float32") / 255))
    model = keras.Model(images, keras.layers.GlobalAveragePooling2D(name="features")(values))
    graph = to_int8(to_onnx(model), calibration_pixels(32))
    assert check_graph(graph, output=FEATURES).precision == "int8"
    assert "MatMul" in [node.op_type for node in onnx.load_from_string(graph).graph.node]


def test_a_graph_that_cannot_be_fused_is_not_quantized_as_it_is(plain: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    def failing(*_arguments: object, **_settings: object) -> None:
        raise RuntimeError("no room")

    monkeypatch.setattr(onnxruntime, "InferenceSession", failing)
    with pytest.raises(RuntimeError, match="no room"):
        to_int8(plain, calibration_pixels(64))


def test_without_onnx_runtime(plain: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> object:
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr("rayml.engines.base.importlib.import_module", missing)
    with pytest.raises(MissingPackage, match="needs the package onnxruntime"):
        to_int8(plain, np.zeros((1, 64, 64, 3), np.uint8))
