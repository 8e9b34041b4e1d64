"""A backbone's graph in int8: its weights, and what goes into its layers, as integers of 8 bits.

Post-training static quantization by ONNX Runtime (https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html):
weights symmetric with a scale for each output channel, values between layers asymmetric with one scale each, from the
least and the largest value that was seen for drawn pictures. Pairs of QuantizeLinear and DequantizeLinear say so in the
graph, which each engine turns into integer arithmetic by itself.

The pictures are drawn, so that one backbone has one graph in int8, whatever it is used for. Measured with ImageNet's
MobileNetV2 at 224 px on 341 photos of clothes, the error of the features, root mean square, as a share of what tells
the photos apart: 0.086 with 32 drawn pictures, 0.090 with 128, 0.087 and 0.093 with as many of the photos themselves.
NNCF 3.4 with its presets gave more than twice that.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayml.canonical import canonical
from rayml.engines.base import import_package
from rayml.graph import INPUT, parse

CALIBRATION_PICTURES = 32
CALIBRATION_SEED = 100  # The golden pictures have one below, the sample and the training of tiny far larger ones.

# Layers that multiply by weights, and what bounds their results. Of 8 backbones that were tried, none gained time from
# more of them; with `Pad` among them OpenVINO 2026.4 gave wrong features for ResNet50, and with `AveragePool` and
# `Concat` it crashed on DenseNet121 and NASNetMobile.
_OPERATORS = ("Conv", "MatMul", "Gemm", "Relu", "Clip")


def calibration_pixels(image_size_px: int) -> NDArray[np.uint8]:
    """The pictures from which the ranges come: uint8 (`CALIBRATION_PICTURES`, H, W, 3), always the same."""
    from rayml.clothing import CLASSES
    from rayml.sample import draw

    return np.stack(
        [
            np.asarray(draw(CLASSES[i % len(CLASSES)], CALIBRATION_SEED + i, size_px=image_size_px))
            for i in range(CALIBRATION_PICTURES)
        ]
    )


def to_int8(graph: bytes, pixels: NDArray[np.uint8]) -> bytes:
    """Quantize a backbone.

    Arguments:
        graph: ONNX in float32, uint8 (N, H, W, 3) "images" -> float32 (N, D) "features".
        pixels: what to take the ranges of values from, uint8 (M, H, W, 3).

    Returns:
        The same graph with int8 layers, about a quarter of its size; the features are float32 still.

    Raises:
        MissingPackage: ONNX Runtime is not installed.
    """
    import_package("onnxruntime")  # It has to come before what imports ONNX Runtime otherwise.
    import onnx
    from onnxruntime import GraphOptimizationLevel, InferenceSession, SessionOptions
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    class Pictures(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left: Iterator[NDArray[np.uint8]] = iter(pixels[:, None])

        def get_next(self) -> dict[str, Any] | None:
            picture = next(self._left, None)
            return None if picture is None else {INPUT: picture}

    with tempfile.TemporaryDirectory(prefix="rayml-int8-") as folder:
        fused, quantized = Path(folder) / "fused.onnx", Path(folder) / "quantized.onnx"
        # Batch normalization becomes part of the layer before it, without which its scale would be rounded twice.
        # ONNX Runtime's own `quant_pre_process` does just this, but goes on with the graph as it was when it fails.
        options = SessionOptions()
        options.graph_optimization_level = GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(fused)
        InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        prepared = parse(fused.read_bytes())
        add_pre_process_metadata(prepared)  # Else `quantize_static` would log that this was left out.
        quantize_static(
            prepared,
            quantized,
            Pictures(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(_OPERATORS),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"WeightSymmetric": True},
        )
        made = canonical(parse(quantized.read_bytes()))
    standard = [entry for entry in made.opset_import if not entry.domain]
    del made.opset_import[:]  # ONNX Runtime names all that it knows.
    made.opset_import.extend(standard)
    onnx.checker.check_model(made)
    return bytes(made.SerializeToString(deterministic=True))
