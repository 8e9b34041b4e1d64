from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from rayml.backbones import ONNX_OPSET, backbone_spec, feature_model
from rayml.engines import load_engine
from rayml.export import to_onnx
from tests.rayml.lively import drawings, lively_spec

# Of the largest feature: float32 rounding through 20 to 80 layers.
TOLERANCE = 3e-5


@pytest.mark.parametrize(
    ("name", "size_px"),
    [
        ("tiny", 64),
        ("mobilenet_v2", 64),
        ("mobilenet_v3_small", 64),  # hard-swish and squeeze-and-excitation
        ("efficientnetv2b0", 64),  # Normalization: constants outside of the graph
        ("convnext_tiny", 32),  # Erfc, grouped convolutions, constants
        ("resnet50", 32),  # blue, green, red less their means
    ],
)
def test_the_graph_gives_kerass_features(name: str, size_px: int, tmp_path: Path) -> None:
    # ConvNeXt scales its branches by 1e-6 at the start; what is left of the stem says enough about a picture.
    if name == "tiny":
        spec = backbone_spec(name, None, size_px)
    elif name == "mobilenet_v2":
        spec = lively_spec(name, size_px, tmp_path)
    else:
        spec = backbone_spec(name, "none", size_px)
    model = feature_model(spec)
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
    for engine in ("openvino", "onnxruntime"):
        features = load_engine(data, engine, threads=2)(pixels)
        np.testing.assert_allclose(features, expected, rtol=0, atol=TOLERANCE * scale, err_msg=engine)


def test_the_same_backbone_is_the_same_file_in_each_process() -> None:
    """Features are kept by the graph's digest: another order of nodes would mean to compute all of them anew."""
    code = (
        "import hashlib\nfrom rayml.backbones import backbone_spec, feature_model\nfrom rayml.export import to_onnx\n"
        "spec = backbone_spec('mobilenet_v3_small', 'none', 32)\n"
        "for _ in range(2):\n    print('sha256', hashlib.sha256(to_onnx(feature_model(spec))).hexdigest())"
    )
    digests = set()
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=300
        )
        lines = [line for line in done.stdout.splitlines() if line.startswith("sha256")]
        assert len(lines) == 2
        digests.update(lines)
    assert len(digests) == 1
