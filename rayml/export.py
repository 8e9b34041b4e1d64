"""A backbone's Keras model written as ONNX: `images` uint8 (N, H, W, 3) -> `features` float32 (N, D)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rayml.backbones import ONNX_OPSET

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
    _put_in_order(proto.graph)
    onnx.checker.check_model(proto)
    return bytes(proto.SerializeToString(deterministic=True))


def _put_in_order(graph: Any) -> None:
    """Order and name nodes and constants by the way from the output back to the input, in place.

    tf2onnx walks over sets and counts names on through a process: without this the same backbone is another file, and
    its features are computed anew, each time that it is frozen.
    """
    makers = {name: node for node in graph.node for name in node.output}
    constants = {constant.name: constant for constant in graph.initializer}
    names = {"": "", **{value.name: value.name for value in (*graph.input, *graph.output)}}
    nodes, used = [], []
    waiting = [(value.name, False) for value in graph.output]
    done: set[str] = set()
    while waiting:
        name, inputs_done = waiting.pop()
        if inputs_done:
            node = makers[name]
            nodes.append(node)
            for output in node.output:
                names.setdefault(output, f"value_{len(names)}")
        elif name not in done:
            done.add(name)
            if name in makers:
                done.update(makers[name].output)
                waiting += [(name, True), *((before, False) for before in reversed(makers[name].input))]
            elif name in constants:
                used.append(constants[name])
                names[name] = f"constant_{len(names)}"
    for node in nodes:
        node.name = ""
        node.input[:] = [names[name] for name in node.input]
        node.output[:] = [names[name] for name in node.output]
        node.attribute.sort(key=lambda attribute: attribute.name)
    for constant in used:
        constant.name = names[constant.name]
    for field, ordered in (("node", nodes), ("initializer", used), ("value_info", [])):
        copies = [type(part).FromString(part.SerializeToString()) for part in ordered]
        graph.ClearField(field)
        getattr(graph, field).extend(copies)


def _erfc(graph: Any, node: Any, name: str, arguments: Any) -> None:
    """erfc(x) = 1 - erf(x), for tf2onnx, which knows only Erf."""
    one = graph.make_const(f"{name}_one", np.array(1, np.float32)).output[0]
    erf = graph.make_node("Erf", [node.input[0]]).output[0]
    node.type = "Sub"
    graph.replace_inputs(node, [one, erf])
