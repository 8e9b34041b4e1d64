"""The served graph: a backbone's ONNX with a trained head behind it, and the checks that one from a stranger must pass.

    uint8 (N, H, W, 3) "images" -> backbone, byte for byte as exported -> float32 (N, D) "features"
                                -> Gemm -> Relu -> Gemm                -> float32 (N, C) "logits"

`check_graph` reads with the `onnx` package (0.15 s and 13 MB to import, measured; TensorFlow is not needed) and looks
before it takes memory: what a tensor claims to hold is compared with the bytes that are there, and the size of every
value on the way is worked out by ONNX shape inference on the graph without its weights. OpenVINO and ONNX Runtime read
the graph only after that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rayml.errors import BundleError, first_line
from rayml.head import HeadWeights

if TYPE_CHECKING:
    import onnx

INPUT, FEATURES, LOGITS = "images", "features", "logits"
HEAD_PREFIX = "rayml_head/"

# Gemm and Relu mean the same from 13 on; 17 is what rayml exports; 21 is the newest that both engines were tried with.
MIN_OPSET, MAX_OPSET = 13, 21

# A photo's widest layer in the largest backbone of keras.applications (NASNetLarge, EfficientNetV2L) stays below
# 60 MB; a gibibyte for one value of one photo is no classifier.
MAX_VALUE_BYTES = 1 << 30
# Weights up to this many bytes may be shapes, axes or indices, which shape inference has to read; larger ones are not.
_SMALL_TENSOR_BYTES = 4096
# Protobuf's own limit for one message.
MAX_MODEL_BYTES = (1 << 31) - 1

_DOMAINS = ("", "ai.onnx")
_WEIGHTED = ("Conv", "Gemm", "MatMul")
_SAME_SIZE = ("Reshape", "QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class GraphInfo:
    """What a checked graph takes and gives.

    Arguments:
        image_size_px: H and W of the pictures it takes.
        outputs: K, the length of what it gives for each: classes, or features of a bare backbone.
        opset: the version of ONNX' operators that it is written in.
        head: the head at its end, None in a bare backbone.
        precision: what its layers compute in, `int8` where values are quantized on the way, else `float32`.
    """

    image_size_px: int
    outputs: int
    opset: int
    head: HeadWeights | None
    precision: str = "float32"


def attach_head(backbone: bytes, head: HeadWeights) -> bytes:
    """Put a trained head behind a backbone, whose own nodes and weights stay as they are.

    Arguments:
        backbone: ONNX, uint8 (N, H, W, 3) "images" -> float32 (N, D) "features".
        head: takes D features, gives C logits.

    Returns:
        ONNX, uint8 (N, H, W, 3) "images" -> float32 (N, C) "logits".

    Raises:
        BundleError: the backbone is not such a graph, or the head takes another number of features.
    """
    from onnx import TensorProto, helper, numpy_helper

    info = check_graph(backbone, output=FEATURES)
    if info.outputs != head.features:
        raise BundleError(
            f"the head must take the backbone's {info.outputs} features. Received: a head for {head.features}",
            "train the head on features of this very backbone",
        )
    model = parse(backbone)
    graph = model.graph
    if any(name.startswith(HEAD_PREFIX) or name == LOGITS for name in _value_names(graph)):
        raise BundleError(f'the backbone must not use the names "{LOGITS}" and "{HEAD_PREFIX}...". Received: it does')
    features = graph.output[0]
    graph.value_info.append(features)  # keeps the backbone's own output known by type and shape
    del graph.output[:]
    graph.initializer.extend(
        numpy_helper.from_array(np.ascontiguousarray(array), HEAD_PREFIX + name)
        for name, array in head.arrays().items()
    )
    names = {name: HEAD_PREFIX + name for name in (*head.arrays(), "inner", "relu", "dense")}
    graph.node.extend(
        [
            helper.make_node(
                "Gemm", [FEATURES, names["inner_kernel"], names["inner_bias"]], [names["inner"]], name=names["inner"]
            ),
            helper.make_node("Relu", [names["inner"]], [names["relu"]], name=names["relu"]),
            helper.make_node(
                "Gemm", [names["relu"], names["logits_kernel"], names["logits_bias"]], [LOGITS], name=names["dense"]
            ),
        ]
    )
    batch = features.type.tensor_type.shape.dim[0].dim_param or "N"
    graph.output.append(helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, [batch, head.classes]))
    return bytes(model.SerializeToString())


def check_graph(model: bytes, output: str = LOGITS) -> GraphInfo:
    """Make sure that a graph is a picture classifier (or a bare backbone) that is safe to hand to an engine.

    It must be whole (ONNX' own checker and strict shape inference pass), be one straight graph of standard operators
    (no custom domain, no local function, no loop or branch), hold its weights itself (nothing external or sparse),
    all of them finite and as large as they claim, and have for every value of one photo a size that is known before it
    runs and is no more than `MAX_VALUE_BYTES`.

    Arguments:
        model: ONNX.
        output: "logits", or "features" for a bare backbone.

    Raises:
        BundleError: it is not, and why.
    """
    import onnx
    from onnx import TensorProto

    if len(model) > MAX_MODEL_BYTES:
        raise BundleError(f"a graph must have at most {MAX_MODEL_BYTES} bytes. Received: {len(model)}")
    proto = parse(model)
    opset = _check_operators(proto)
    graph = proto.graph
    for tensor in _tensors(graph):
        _check_tensor(tensor)
    size_px = _check_input(graph)
    if [value.name for value in graph.output] != [output]:
        raise BundleError(f'the graph must give "{output}" alone. Received: {[v.name for v in graph.output]}')
    try:
        inferred = _infer_shapes(proto)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        raise BundleError(f"the graph is not valid ONNX: {first_line(error)[:300]}") from None
    _check_values(inferred)
    result = inferred.output[0].type.tensor_type
    dims = [dim.dim_value for dim in result.shape.dim]
    if result.elem_type != TensorProto.FLOAT or len(dims) != 2 or dims[0] != 1 or dims[1] < 1:
        raise BundleError(
            f'"{output}" must be float32 (N, K), one row a picture. '
            f"Received: {_type_name(result.elem_type)} {dims} for one picture"
        )
    int8 = any(node.op_type == "QuantizeLinear" for node in graph.node)
    head = _read_head(graph) if output == LOGITS else None
    return GraphInfo(size_px, dims[1], opset, head, "int8" if int8 else "float32")


@dataclass(frozen=True)
class Sizes:
    """What a network takes of memory, in bytes.

    Arguments:
        largest_value: the largest value between pixels and output, for one photo.
        top_values: all values of the last layers together, for one photo.
        top_weights: the weights of those layers.
    """

    largest_value: int
    top_values: int
    top_weights: int


def sizes(model: bytes, top_layers: int) -> Sizes:
    """What a network takes.

    Arguments:
        model: ONNX that `check_graph` accepts.
        top_layers: how many of Keras' last layers with weights are the top. Those of separable convolutions are two
            operators here, so twice as many are taken: never too few.
    """
    from onnx import helper

    proto = parse(model)
    tensors = {value.name: value.type.tensor_type for value in _infer_shapes(proto).value_info}
    values = {
        name: math.prod(dim.dim_value for dim in tensor.shape.dim)
        * int(helper.tensor_dtype_to_np_dtype(tensor.elem_type).itemsize)
        for name, tensor in tensors.items()
    }
    weights = {tensor.name: tensor.ByteSize() for tensor in proto.graph.initializer}
    left, top_values, top_weights = 2 * top_layers, 0, 0
    for node in reversed(proto.graph.node):
        if not left:
            break
        top_values += sum(values.get(name, 0) for name in node.output)
        if node.op_type in _WEIGHTED:
            left -= 1
            top_weights += sum(weights.get(name, 0) for name in node.input)
    return Sizes(max(values.values()), top_values, top_weights)


def parse(model: bytes) -> onnx.ModelProto:
    """The graph in words that the `onnx` package knows, not checked.

    Raises:
        BundleError: the bytes are none.
    """
    import onnx

    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(model)
    except Exception:  # protobuf's DecodeError; its package has no types
        raise BundleError(f"expected an ONNX graph. Received: {len(model)} bytes that are none") from None
    return proto


def _check_operators(model: onnx.ModelProto) -> int:
    """The opset, if every node is a standard operator without a graph inside."""
    import onnx

    if model.functions or model.training_info:
        raise BundleError("the graph must have no local functions and no training part. Received: it has")
    versions = [entry.version for entry in model.opset_import if entry.domain in _DOMAINS]
    if len(versions) != 1 or not MIN_OPSET <= versions[0] <= MAX_OPSET:
        raise BundleError(f"the graph's opset must be {MIN_OPSET} to {MAX_OPSET}. Received: {versions}")
    for node in model.graph.node:
        if node.domain not in _DOMAINS or not onnx.defs.has(node.op_type):
            operator = f"{node.domain}.{node.op_type}".strip(".")
            raise BundleError(f"the graph must use standard ONNX operators only. Received: {operator[:100]!r}")
        for attribute in node.attribute:
            if attribute.HasField("g") or attribute.graphs:
                raise BundleError(f"the graph must be without loops and branches. Received: {node.op_type}")
            if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
                raise BundleError("the graph must hold no sparse tensors. Received: it does")
    if model.graph.sparse_initializer:
        raise BundleError("the graph must hold no sparse tensors. Received: it does")
    return int(versions[0])


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every tensor that the graph holds: weights and nodes' constants."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _check_tensor(tensor: onnx.TensorProto) -> None:
    """Claimed size against the bytes that are there, before anything is made of them; then finite values."""
    from onnx import TensorProto, numpy_helper

    name = repr(tensor.name[:100])
    if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
        raise BundleError(f"the graph must hold its weights itself. Received: {name} kept in another file")
    # Type -> (bytes an element in raw_data, the typed field that may hold the elements instead)
    fields: dict[int, tuple[int, str]] = {
        TensorProto.FLOAT: (4, "float_data"),
        TensorProto.DOUBLE: (8, "double_data"),
        TensorProto.FLOAT16: (2, "int32_data"),
        TensorProto.BFLOAT16: (2, "int32_data"),
        TensorProto.INT8: (1, "int32_data"),
        TensorProto.INT16: (2, "int32_data"),
        TensorProto.INT32: (4, "int32_data"),
        TensorProto.INT64: (8, "int64_data"),
        TensorProto.UINT8: (1, "int32_data"),
        TensorProto.UINT16: (2, "int32_data"),
        TensorProto.UINT32: (4, "uint64_data"),
        TensorProto.UINT64: (8, "uint64_data"),
        TensorProto.BOOL: (1, "int32_data"),
    }
    if tensor.data_type not in fields:
        raise BundleError(f"weights must be plain numbers. Received: {name} of type {_type_name(tensor.data_type)}")
    itemsize, field = fields[tensor.data_type]
    if any(dim < 0 for dim in tensor.dims) or tensor.HasField("segment"):
        raise BundleError(f"{name} must be one tensor of a real shape. Received: {list(tensor.dims)}")
    claimed = math.prod(tensor.dims)
    present = len(tensor.raw_data) // itemsize if tensor.HasField("raw_data") else len(getattr(tensor, field))
    whole = not tensor.HasField("raw_data") or len(tensor.raw_data) == claimed * itemsize
    if claimed != present or not whole:
        raise BundleError(f"{name} must hold the {claimed} values that it claims. Received: {present}")
    if tensor.data_type in (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16):
        array: NDArray[np.floating] = numpy_helper.to_array(tensor)
        if not np.isfinite(array.astype(np.float32) if array.dtype.itemsize < 4 else array).all():
            raise BundleError(f"weights must be finite numbers. Received: NaN or infinity in {name}")


def _check_input(graph: onnx.GraphProto) -> int:
    """The picture size in pixels, if the graph takes uint8 (N, H, W, 3) "images" and nothing else."""
    from onnx import TensorProto

    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    if [value.name for value in inputs] != [INPUT]:
        raise BundleError(f'the graph must take "{INPUT}" alone. Received: {[value.name for value in inputs]}')
    tensor = inputs[0].type.tensor_type
    dims = [dim.dim_value for dim in tensor.shape.dim]  # 0 where the size is open
    if tensor.elem_type != TensorProto.UINT8 or len(dims) != 4 or dims[0] or dims[3] != 3 or not dims[1] == dims[2] > 0:
        raise BundleError(
            f'"{INPUT}" must be uint8 (N, size, size, 3) with N left open. '
            f"Received: {_type_name(tensor.elem_type)} {dims}"
        )
    return int(dims[1])


def _infer_shapes(model: onnx.ModelProto) -> onnx.GraphProto:
    """The graph for one picture with the shape of every value, worked out without the large weights' data."""
    import onnx
    from onnx import helper

    skeleton = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    graph = skeleton.graph
    graph.name = model.graph.name
    graph.node.extend(model.graph.node)
    graph.output.extend(model.graph.output)
    images = next(value for value in model.graph.input if value.name == INPUT)
    graph.input.append(images)
    graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    for output in graph.output:
        if output.type.tensor_type.shape.dim:
            output.type.tensor_type.shape.dim[0].Clear()
    for tensor in model.graph.initializer:
        if tensor.ByteSize() <= _SMALL_TENSOR_BYTES:
            graph.initializer.append(tensor)
        else:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    onnx.checker.check_model(skeleton)
    return onnx.shape_inference.infer_shapes(skeleton, check_type=True, strict_mode=True, data_prop=True).graph


def _check_values(graph: onnx.GraphProto) -> None:
    """No value of one picture may be larger than `MAX_VALUE_BYTES`, nor of a size that only running it would show.

    Arguments:
        graph: what `_infer_shapes` gives.
    """
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.HasField("shape")
        and all(dim.HasField("dim_value") for dim in value.type.tensor_type.shape.dim)
    }
    shapes |= {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    elements = {name: math.prod(shape) for name, shape in shapes.items()}
    for node in graph.node:
        for name in filter(None, node.output):  # "" stands for an optional output that is not asked for.
            if name not in elements:
                elements[name] = _elements(node, shapes, elements)
            if elements[name] * 8 > MAX_VALUE_BYTES or min(shapes.get(name, ()), default=0) < 0:
                raise BundleError(
                    f"a value in the graph must take at most {MAX_VALUE_BYTES} bytes for one picture. "
                    f"Received: {name[:100]!r} of {shapes.get(name, elements[name])}"
                )


def _elements(node: onnx.NodeProto, shapes: dict[str, list[int]], elements: dict[str, int]) -> int:
    """How many elements a value has whose shape inference left open, where its inputs tell it all the same.

    They do in the Dense layers inside ConvNeXt, which Keras writes as (rows, K) x (K, N) with the rows counted when the
    graph runs.
    """
    if node.op_type in _SAME_SIZE and node.input[0] in elements:
        return elements[node.input[0]]
    if node.op_type == "MatMul" and node.input[0] in elements and len(shapes.get(node.input[1], ())) == 2:
        inner, outer = shapes[node.input[1]]
        if inner > 0:
            return elements[node.input[0]] // inner * outer
    raise BundleError(
        "every value in the graph must have a size that is known before it runs. "
        f"Received: {node.output[0][:100]!r} of {node.op_type}"
    )


def _read_head(graph: onnx.GraphProto) -> HeadWeights:
    """The head that `attach_head` put at the end."""
    from onnx import numpy_helper

    found = {tensor.name: tensor for tensor in graph.initializer if tensor.name.startswith(HEAD_PREFIX)}
    names = ("inner_kernel", "inner_bias", "logits_kernel", "logits_bias")
    if sorted(found) != sorted(HEAD_PREFIX + name for name in names):
        raise BundleError(f'the graph must end in a head "{HEAD_PREFIX}...". Received: {sorted(found)[:5]}')
    return HeadWeights(*(numpy_helper.to_array(found[HEAD_PREFIX + name]).copy() for name in names))


def _value_names(graph: onnx.GraphProto) -> Iterator[str]:
    yield from (tensor.name for tensor in graph.initializer)
    for node in graph.node:
        yield node.name
        yield from node.output


def _type_name(elem_type: int) -> str:
    from onnx import TensorProto

    names: dict[int, str] = {number: name for name, number in TensorProto.DataType.items()}
    return names.get(elem_type, str(elem_type)).lower()
