from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from rayml.backbones import ONNX_OPSET, backbone_spec, feature_model
from rayml.engines import load_engine
from rayml.export import to_onnx
from rayml.graph import FEATURES, check_graph
from tests.rayml.lively import drawings, lively_spec

# Of the largest feature: float32 rounding through 20 to 80 layers.
TOLERANCE = 3e-5


@pytest.mark.parametrize(
    ("name", "size_px"),
    [
        ("tiny", 64),
        ("mobilenet_v2", 64),
        ("mobilenet_v3_small", 64),  # hard-swish and squeeze-and-excitation
        pytest.param("efficientnetv2b0", 64, marks=pytest.mark.slow),  # Normalization: constants outside of the graph
        pytest.param("convnext_tiny", 32, marks=pytest.mark.slow),
        pytest.param("resnet50", 32, marks=pytest.mark.slow),  # blue, green, red less their means
    ],
)
def test_the_graph_gives_kerass_features(name: str, size_px: int, tmp_path: Path) -> None:
    if name == "mobilenet_v2":
        spec = lively_spec(name, size_px, tmp_path)
    else:
        spec = backbone_spec(name, None if name == "tiny" else "none", size_px)
    assert_agreement(feature_model(spec), size_px)


def test_convnexts_parts() -> None:
    """Erfc, grouped convolutions and constants outside of the graph, as in convnext_tiny, in a fifth of the blocks."""
    import keras
    from keras.src.applications.convnext import ConvNeXt

    keras.utils.set_random_seed(1)
    base = ConvNeXt(
        depths=[1, 1, 1, 1],
        projection_dims=[24, 48, 96, 192],
        default_size=32,
        include_top=False,
        weights=None,
        input_shape=(32, 32, 3),
        name="convnext_small_test",
    )
    for layer in base.layers:
        if "layer_scale" in layer.name:  # At the start 1e-6, which leaves nothing of a branch.
            layer.set_weights([np.full_like(layer.get_weights()[0], 0.5)])
    assert_agreement(feature_model(backbone_spec("convnext_tiny", "none", 32), base), 32)


def assert_agreement(model: Any, size_px: int) -> None:
    """Both engines on the exported graph against Keras, on drawings."""
    pixels, _ = drawings(10, size_px)
    expected = np.asarray(model(pixels, training=False))
    scale = np.abs(expected).max()
    assert expected.std(axis=0).max() > 0.02 * scale  # pictures differ, so that agreement says something
    data = to_onnx(model)
    graph = onnx.load_from_string(data)
    assert [(value.name, value.type.tensor_type.elem_type) for value in graph.graph.input] == [
        ("images", onnx.TensorProto.UINT8)
    ]
    assert [value.name for value in graph.graph.output] == ["features"]
    assert graph.opset_import[0].version == ONNX_OPSET
    assert not any(array.external_data for array in graph.graph.initializer)
    assert check_graph(data, FEATURES).image_size_px == size_px
    for engine in ("openvino", "onnxruntime"):
        features = load_engine(data, engine, threads=2)(pixels)
        np.testing.assert_allclose(features, expected, rtol=0, atol=TOLERANCE * scale, err_msg=engine)
