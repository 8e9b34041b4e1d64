"""One way to write down an ONNX graph, so that two machines that convert the same network hold the same bytes.

tf2onnx walks over sets while it rewrites a graph, and Keras numbers the layers of a process: the same network converted
twice has its nodes in another order and under other names, sometimes a constant twice instead of once. What it computes
is the same. Here the order, the names and the number of equal constants are made to follow from the graph itself.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

BATCH_DIMENSION = "N"


def canonical(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same computation, written in the one way.

    Nodes come in the order in which a walk from the outputs meets them, inputs first; each is named by its operator and
    its place. Weights are named by the place of their first use; equal ones become one. What no output needs, shapes of
    inner values, descriptions and the names of attributes' tensors are left out. Inputs and outputs keep their names.

    Arguments:
        model: one graph without loops, branches and local functions, its first dimension open.

    Returns:
        A new model; `SerializeToString(deterministic=True)` of two equal graphs gives equal bytes.
    """
    import onnx

    source = model.graph
    weights = {tensor.name: tensor for tensor in source.initializer}
    renamed = {value.name: value.name for value in (*source.input, *source.output)} | {"": ""}
    by_content: dict[bytes, str] = {}
    target = onnx.GraphProto(name="rayml")
    for number, node in enumerate(_from_the_outputs(source)):
        written = target.node.add()
        written.CopyFrom(node)
        written.name = f"{node.op_type}_{number}"
        written.ClearField("doc_string")
        for name in node.input:
            if name in weights and name not in renamed:
                tensor = _plain(weights[name])
                content = hashlib.sha256(tensor.SerializeToString(deterministic=True)).digest()
                if content not in by_content:
                    by_content[content] = tensor.name = f"weight_{len(by_content)}"
                    target.initializer.append(tensor)
                renamed[name] = by_content[content]
        for place, name in enumerate(node.output):
            if name and name not in renamed:
                renamed[name] = written.name if place == 0 else f"{written.name}_{place}"
        written.input[:] = [renamed[name] for name in node.input]
        written.output[:] = [renamed[name] for name in node.output]
        del written.attribute[:]
        written.attribute.extend(sorted(node.attribute, key=lambda attribute: attribute.name))
        for attribute in written.attribute:
            attribute.ClearField("doc_string")
            if attribute.HasField("t"):
                attribute.t.CopyFrom(_plain(attribute.t))
    for values, theirs in ((target.input, source.input), (target.output, source.output)):
        values.extend(value for value in theirs if value.name not in weights)
        for value in values:
            value.type.tensor_type.shape.dim[0].dim_param = BATCH_DIMENSION
            value.ClearField("doc_string")
    return onnx.ModelProto(
        ir_version=model.ir_version,
        producer_name=model.producer_name,
        producer_version=model.producer_version,
        opset_import=model.opset_import,
        graph=target,
    )


def _from_the_outputs(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes that the outputs need, each after what it takes; without recursion, networks are hundreds deep."""
    makers = {name: node for node in graph.node for name in node.output if name}
    ordered: list[onnx.NodeProto] = []
    met: set[int] = set()
    stack = [(makers[value.name], False) for value in reversed(graph.output)]
    while stack:
        node, ready = stack.pop()
        if ready:
            ordered.append(node)
        elif id(node) not in met:
            met.add(id(node))
            stack.append((node, True))
            stack.extend((makers[name], False) for name in reversed(node.input) if name in makers)
    return ordered


def _plain(tensor: onnx.TensorProto) -> onnx.TensorProto:
    """The tensor without a name, its numbers as raw bytes whatever field they came in."""
    from onnx import numpy_helper

    return numpy_helper.from_array(numpy_helper.to_array(tensor))
