"""A graph for OpenVINO in two: what is computed for each picture alone, and what is computed for several together.

The last layers of a convolutional network hold most of its weights and look at few positions: MobileNetV2's at 7 x 7
and Xception's at 9 x 9 have 9 and 80 MB, which are read anew for every picture. For several pictures at once they are
read once. The first layers hold few weights and large maps, which fit the processor's cache for one picture only.
Measured with twelve callers on two cores (Intel Xeon, AVX-512), processor time a picture in groups of 4 against 1:
Xception 0.85, ResNet50 0.96, InceptionV3 0.98, MobileNetV2 1.02, ConvNeXtTiny 1.10 (OpenVINO fuses less within a
branch). So who asks for it tries what it gains.

The shapes stay fixed: with an open number of pictures OpenVINO is slower, holds more memory, and has damaged its heap.
One graph with a branch for each number, chosen by its inputs, holds the weights once, and has a thread for each stream;
two compiled graphs have two, which get into each other's way: with two callers 0.92 of the answers instead of 0.98.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np

_log = logging.getLogger(__name__)

# Layers that look at no more positions than this gain from being computed for several pictures together. Measured on
# ImageNet's MobileNetV2 and Xception: 49 and 81 positions gain 17 to 26 %, 196 and 324 gain 0 to 5.
_POSITIONS = 100
# What is computed for a picture alone is written, copied into the group, and read again: a byte of it costs as much as
# this many bytes of weights.
_COST_OF_A_BYTE = 8
# With fewer weights than this behind the cut nothing was gained: MobileNetV2 and EfficientNetB0 have less. Xception has
# 17 MB there in int8, and takes 0.82 of the time a picture (AMD EPYC, two cores).
WORTH_BYTES = 16 << 20
# Where a layer begins; between others, OpenVINO fuses operations with each other.
_LAYERS = {"Convolution", "GroupConvolution", "MatMul", "MaxPool", "AvgPool", "Pad"}


@dataclass(frozen=True)
class _Cut:
    """Where a graph is cut.

    Arguments:
        name: of the operation of which all later ones are computed.
        shape: of its result for one picture, without the leading 1.
        dense: name of the operation behind which only dense layers follow, or None.
    """

    name: str
    shape: tuple[int, ...]
    dense: str | None


def for_one(graph: Any) -> Any:
    """The graph, an openvino.Model, uint8 (N, H, W, 3) -> float32 (N, K), changed to take one picture."""
    graph.reshape({0: [1, *graph.input(0).partial_shape[1:]]})
    return graph


def split(graph: Any, most: int) -> Any | None:
    """Split a graph where it is worth it.

    Arguments:
        graph: an openvino.Model, uint8 (N, H, W, 3) -> float32 (N, K), N open.
        most: how many pictures go together.

    Returns:
        None where no layers gain from it, or where they do not keep the pictures apart. Else an openvino.Model of one
        choice and what it chooses among:

        0. bool (1): whether to compute the features of a picture, else results from features.
        1. uint8 (1, H, W, 3): the picture.
        2. bool (1): whether to compute the results of one picture, else of `most`.
        3. float32 (1, ...): the features of one picture.
        4. float32 (most, ...): the features of `most` pictures.

        It gives float32 (1, ...), the features of a picture, and float32 (most, K), results, those of one in the first
        row. What was not chosen is 0.
    """
    from openvino import Model, opset13

    one = for_one(graph.clone())
    cut = _best_cut(one)
    if cut is None:
        return None
    alone, together = (_tail(graph, cut, size) for size in (1, most))
    outputs = one.output(0).shape[1]
    shapes = [list(tail.output(0).partial_shape) for tail in (alone, together)]
    if shapes[0][0] != 1 or shapes[1][0] != most or shapes[0][1] != shapes[1][1]:
        _log.warning("The last layers run a picture at a time: for %d they give %s.", most, shapes[1])
        return None
    tail = _with_dense_layers(graph, cut, _either(_filled(alone, most), together))
    features = _operation(one, cut.name).output(0)
    front = Model(
        [opset13.result(features), opset13.result(opset13.constant(np.zeros((most, outputs), np.float32)))],
        one.get_parameters(),
        "front",
    )
    nothing = opset13.result(opset13.constant(np.zeros((1, *cut.shape), np.float32)))
    tail = Model([nothing, *tail.get_results()], tail.get_parameters(), "tail")
    return _either(front, tail)


def _best_cut(graph: Any) -> _Cut | None:
    """Where to cut a graph that takes one picture."""
    operations = graph.get_ordered_ops()
    place = {operation.get_friendly_name(): i for i, operation in enumerate(operations)}
    if len(place) < len(operations):
        return None  # Two of the same name.
    users = [
        [
            place[each.get_node().get_friendly_name()]
            for output in operation.outputs()
            for each in output.get_target_inputs()
        ]
        for operation in operations
    ]
    varies = [operation.get_type_name() == "Parameter" for operation in operations]
    for i, own in enumerate(users):
        for user in own:
            varies[user] |= varies[i]
    used_at = [max(own, default=i) for i, own in enumerate(users)]
    weights = np.zeros(len(operations) + 1, np.int64)  # [i]: bytes that operation i needs
    for i in reversed(range(len(operations))):
        if not varies[used_at[i]]:
            used_at[i] = used_at[used_at[i]]
        if operations[i].get_type_name() == "Constant":
            weights[used_at[i]] += operations[i].get_byte_size()
    weights_from = weights[::-1].cumsum()[::-1]  # [i]: bytes that operation i and those behind it need
    best, dense, gain, reached = None, None, WORTH_BYTES, 0
    for i, operation in enumerate(operations):
        if not varies[i] or not users[i]:
            continue
        if reached <= i and operation.get_output_size() == 1 and operation.output(0).partial_shape.is_static:
            # Nothing before it is used behind it.
            shape = tuple(operation.output(0).shape)
            kinds = [kind for user in users[i] if (kind := operations[user].get_type_name()) != "ShapeOf"]
            begins = len(kinds) > 1 or any(kind in _LAYERS for kind in kinds)
            if len(shape) == 4 and shape[0] == 1 and shape[2] * shape[3] <= _POSITIONS and begins:
                this = weights_from[i + 1] - _COST_OF_A_BYTE * 4 * int(np.prod(shape))
                if this > gain:
                    best, dense, gain = (operation.get_friendly_name(), shape[1:]), None, this
            elif best and len(shape) == 2 and kinds == ["MatMul"] and dense is None:
                dense = operation.get_friendly_name()
        reached = max(reached, *users[i])
    return best and _Cut(*best, dense)


def _tail(graph: Any, cut: _Cut, size: int) -> Any:
    """What comes behind the cut, up to the dense layers: float32 (size, ...) -> float32 (size, D)."""
    from openvino import Model, Type, opset13

    copy = graph.clone()
    features = opset13.parameter([size, *cut.shape], Type.f32)
    _replace(copy, cut.name, features.output(0))
    results = copy.get_results() if cut.dense is None else [opset13.result(_operation(copy, cut.dense).output(0))]
    tail = Model(results, [features], f"tail of {size}")
    tail.validate_nodes_and_infer_types()
    return tail


def _filled(tail: Any, rows: int) -> Any:
    """The same with rows of 0 behind those of the result, `rows` in all."""
    from openvino import Model, opset13

    values = tail.get_results()[0].input_value(0)
    nothing = opset13.constant(np.zeros((rows - values.shape[0], values.shape[1]), np.float32))
    return Model([opset13.result(opset13.concat([values, nothing], 0))], tail.get_parameters(), "filled")


def _with_dense_layers(graph: Any, cut: _Cut, tail: Any) -> Any:
    """The same with the graph's dense layers behind it, if there are any.

    They are there once, for most pictures: for one OpenVINO would keep their weights again, in another order.
    """
    from openvino import Model

    if cut.dense is None:
        return tail
    copy = graph.clone()
    _replace(copy, cut.dense, tail.get_results()[0].input_value(0))
    return Model(copy.get_results(), tail.get_parameters(), "tail")


def _either(first: Any, second: Any) -> Any:
    """A graph that computes one of two: bool (1), whether the first, and both's inputs -> the results of either."""
    from openvino import Model, Type, opset13

    chosen = opset13.parameter([1], Type.boolean)
    branch = opset13.if_op(chosen)
    branch.set_then_body(first)
    branch.set_else_body(second)
    inputs = [chosen]
    for inner in (*first.get_parameters(), *second.get_parameters()):
        inputs.append(opset13.parameter(list(inner.shape), inner.get_element_type()))
        own = (inner, None) if len(inputs) <= 1 + len(first.get_parameters()) else (None, inner)
        branch.set_input(inputs[-1].output(0), *own)
    outputs = [branch.set_output(*each) for each in zip(first.get_results(), second.get_results(), strict=True)]
    return Model([opset13.result(output) for output in outputs], inputs, "either")


def _operation(graph: Any, name: str) -> Any:
    return next(each for each in graph.get_ordered_ops() if each.get_friendly_name() == name)


def _replace(graph: Any, name: str, value: Any) -> None:
    """Let all that uses the result of an operation use another value."""
    for user in _operation(graph, name).output(0).get_target_inputs():
        user.replace_source_output(value)
