"""A backbone's Keras model written as ONNX: `images` uint8 (N, H, W, 3) -> `features` float32 (N, D)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rayml.backbones import ONNX_OPSET
from rayml.canonical import canonical

if TYPE_CHECKING:
    import keras


def to_onnx(model: keras.Model) -> bytes:
    """Convert what `rayml.backbones.feature_model` builds.

    tf2onnx with its storage for large models, which keeps the weights out of the graph while it is rewritten: three
    times as fast for Xception. Four things it does not do by itself, and neither does `keras.Model.export`, are done
    here: weights back into the graph, constants that layers hold outside of it (Normalization in EfficientNet and
    ConvNeXt), grouped convolutions that Keras compiles apart, and `Erfc` (the exact GELU of ConvNeXt).

    Arguments:
        model: one input named `images`, uint8 (N, H, W, 3); one output, float32 (N, D).

    Returns:
        The bytes of an ONNX file.
    """
    import onnx
    import tensorflow as tf
    import tf2onnx

    if not hasattr(np, "product"):
        setattr(np, "product", np.prod)  # noqa: B010 - tf2onnx 1.17 still calls the name that NumPy 2 dropped.

    def features(images: Any) -> dict[str, Any]:
        eagerly = tf.config.functions_run_eagerly()
        tf.config.run_functions_eagerly(True)  # Keras' inner tf.functions are traced into this graph, not called by it.
        try:
            return {"features": model(images, training=False)}
        finally:
            tf.config.run_functions_eagerly(eagerly)

    signature = [tf.TensorSpec((None, *model.input_shape[1:]), tf.uint8, name="images")]
    function = tf.function(features, input_signature=signature, autograph=False)
    proto, storage = tf2onnx.convert.from_function(
        function, signature, opset=ONNX_OPSET, large_model=True, custom_op_handlers={"Erfc": (_erfc, [])}
    )
    for initializer in proto.graph.initializer:
        if initializer.data_location == onnx.TensorProto.EXTERNAL:
            location = next(entry.value for entry in initializer.external_data if entry.key == "location")
            initializer.ClearField("external_data")
            initializer.ClearField("data_location")
            initializer.raw_data = storage.name_to_tensor_data[location]
    concrete = function.get_concrete_function()
    constants = {inner.name: outer for outer, inner in concrete.graph.captures if outer.dtype != tf.resource}
    for value in list(proto.graph.input):
        if value.name != "images":
            proto.graph.initializer.append(onnx.numpy_helper.from_array(constants[value.name].numpy(), value.name))
            proto.graph.input.remove(value)
    proto = canonical(proto)
    onnx.checker.check_model(proto)
    return bytes(proto.SerializeToString(deterministic=True))


def _erfc(graph: Any, node: Any, name: str, arguments: Any) -> None:
    """erfc(x) = 1 - erf(x), for tf2onnx, which knows only Erf."""
    one = graph.make_const(f"{name}_one", np.array(1, np.float32)).output[0]
    erf = graph.make_node("Erf", [node.input[0]]).output[0]
    node.type = "Sub"
    graph.replace_inputs(node, [one, erf])
