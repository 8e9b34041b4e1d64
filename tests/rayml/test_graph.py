from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from rayml import graph
from rayml.errors import BundleError
from rayml.graph import GraphInfo, Sizes, attach_head, check_graph, sizes
from tests.rayml import small

Change = Callable[[onnx.ModelProto], object]


def test_head_behind_backbone_gives_what_numpy_gives() -> None:
    weights = small.head()
    model = attach_head(small.backbone().SerializeToString(), weights)
    images = small.pictures(5)
    (logits,) = ReferenceEvaluator(onnx.load_model_from_string(model)).run(None, {"images": images})
    np.testing.assert_allclose(logits, weights.logits(small.features_of(images)), rtol=1e-4, atol=1e-4)


def test_the_backbone_stays_as_it_was_byte_for_byte() -> None:
    before = small.backbone()
    after = onnx.load_model_from_string(attach_head(before.SerializeToString(), small.head())).graph
    nodes, weights = before.graph.node, before.graph.initializer
    assert [n.SerializeToString() for n in after.node[: len(nodes)]] == [n.SerializeToString() for n in nodes]
    kept = after.initializer[: len(weights)]
    assert [w.SerializeToString() for w in kept] == [w.SerializeToString() for w in weights]
    assert [node.op_type for node in after.node[len(nodes) :]] == ["Gemm", "Relu", "Gemm"]


def test_what_a_checked_graph_is() -> None:
    weights = small.head()
    info = check_graph(attach_head(small.backbone().SerializeToString(), weights))
    assert (info.image_size_px, info.outputs, info.opset) == (small.SIZE_PX, 3, 17)
    assert info.head is not None
    assert all(np.array_equal(array, weights.arrays()[name]) for name, array in info.head.arrays().items())
    assert check_graph(small.backbone().SerializeToString(), output="features") == GraphInfo(24, 8, 17, None)


def test_what_a_network_takes() -> None:
    """Four values of three channels, two of eight, all float32; the picture and the features are none between them."""
    channel = small.SIZE_PX**2 * 4
    model = small.backbone().SerializeToString()
    assert sizes(model, 0) == Sizes(small.FEATURES * channel, 0, 0)
    # The convolution is its only layer; two are looked for, since one of Keras' may be two here.
    top = sizes(model, 1)
    assert (top.largest_value, top.top_values) == (small.FEATURES * channel, (4 * 3 + 2 * small.FEATURES) * channel)
    assert small.KERNEL.nbytes + small.BIAS.nbytes <= top.top_weights < small.KERNEL.nbytes + small.BIAS.nbytes + 100
    # With a head behind it, those two operators are the head's.
    headed = sizes(attach_head(model, small.head()), 1)
    assert headed.top_values < channel


def test_a_head_for_other_features_is_refused() -> None:
    with pytest.raises(BundleError, match=r"must take the backbone's 8 features\. Received: a head for 9"):
        attach_head(small.backbone().SerializeToString(), small.head(features=9))


def test_a_second_head_is_refused() -> None:
    model = attach_head(small.backbone().SerializeToString(), small.head())
    with pytest.raises(BundleError, match='must give "features" alone'):
        attach_head(model, small.head())


def _tensor(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def _claim_a_terabyte(model: onnx.ModelProto) -> None:
    _tensor(model, "kernel").dims[:] = [1 << 20, 1 << 18, 1, 1]


def _claim_more_than_64_bits(model: onnx.ModelProto) -> None:
    _tensor(model, "kernel").dims[:] = [1 << 62, 1 << 62, 1 << 62, 1]


def _negative(model: onnx.ModelProto) -> None:
    _tensor(model, "kernel").dims[:] = [-8, -3, 1, 1]


def _cut(model: onnx.ModelProto) -> None:
    _tensor(model, "kernel").raw_data = _tensor(model, "kernel").raw_data[:-1]


def _poison(model: onnx.ModelProto, value: float) -> None:
    array = np.array([value, *small.BIAS[1:]], np.float32)
    _tensor(model, "bias").CopyFrom(numpy_helper.from_array(array, "bias"))


def _nan_constant(model: onnx.ModelProto) -> None:
    tensor = helper.make_tensor("c", TensorProto.FLOAT, [1], [float("nan")])
    model.graph.node.insert(0, helper.make_node("Constant", [], ["c"], value=tensor))


def _external(model: onnx.ModelProto) -> None:
    tensor = _tensor(model, "kernel")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../etc/passwd")


def _custom_domain(model: onnx.ModelProto) -> None:
    model.graph.node[5].domain = "com.example"
    model.opset_import.add(domain="com.example", version=1)


def _loop(model: onnx.ModelProto) -> None:
    body = helper.make_graph([], "body", [], [])
    model.graph.node.append(helper.make_node("Loop", [], ["unused"], body=body))


def _sparse(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.add()


def _function(model: onnx.ModelProto) -> None:
    model.functions.add(name="Relu", domain="")


def _grow(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array([1 << 20, 1 << 20], np.int64), "large"))
    model.graph.node.append(helper.make_node("ConstantOfShape", ["large"], ["terabytes"]))


def _grow_unseen(model: onnx.ModelProto, operator: str) -> None:
    """The same behind an operator whose values shape inference does not follow."""
    model.graph.initializer.append(numpy_helper.from_array(np.array([1 << 20, 1 << 20], np.int64), "large"))
    model.graph.node.append(helper.make_node(operator, ["large"], ["hidden"]))
    model.graph.node.append(helper.make_node("ConstantOfShape", ["hidden"], ["terabytes"]))


def _cycle(model: onnx.ModelProto) -> None:
    model.graph.node[5].input[0] = "features"


def _float_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT


def _fixed_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4


def _open_size(model: onnx.ModelProto) -> None:
    for dim in model.graph.input[0].type.tensor_type.shape.dim[1:3]:
        dim.dim_param = "S"


def _second_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))


def _second_output(model: onnx.ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("relu", TensorProto.FLOAT, None))


def _wrong_width(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 9


def _newer_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 99


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_claim_a_terabyte, "'kernel' must hold the 274877906944 values that it claims. Received: 24"),
        (_claim_more_than_64_bits, "'kernel' must hold the"),
        (_negative, "'kernel' must be one tensor of a real shape"),
        (_cut, "'kernel' must hold the 24 values"),
        (lambda model: _poison(model, float("nan")), "NaN or infinity in 'bias'"),
        (lambda model: _poison(model, float("inf")), "NaN or infinity in 'bias'"),
        (_nan_constant, "NaN or infinity in 'c'"),
        (_external, "'kernel' kept in another file"),
        (_custom_domain, "standard ONNX operators only. Received: 'com.example.Relu'"),
        (_loop, "without loops and branches. Received: Loop"),
        (_sparse, "sparse"),
        (_function, "no local functions"),
        (_grow, "at most 1073741824 bytes for one picture. Received: 'terabytes'"),
        (lambda model: _grow_unseen(model, "Identity"), "known before it runs. Received: 'terabytes'"),
        (lambda model: _grow_unseen(model, "Abs"), "known before it runs. Received: 'terabytes'"),
        (_cycle, "not valid ONNX"),
        (_float_input, "must be uint8 .* Received: float"),
        (_fixed_batch, "with N left open"),
        (_open_size, "must be uint8"),
        (_second_input, '"images" alone'),
        (_second_output, '"features" alone'),
        (_wrong_width, "not valid ONNX"),
        (_newer_opset, r"opset must be 13 to 21. Received: \[99\]"),
    ],
)
def test_unsafe_and_broken_graphs_are_refused(change: Change, words: str) -> None:
    model = small.backbone()
    change(model)
    with pytest.raises(BundleError, match=words):
        check_graph(model.SerializeToString(), output="features")


@pytest.mark.parametrize("data", [b"", b"\x00", b"no graph at all", b"\x80\x04\x95pickle"])
def test_bytes_that_are_no_graph(data: bytes) -> None:
    with pytest.raises(BundleError):
        check_graph(data)


def test_a_cut_graph_is_refused_wherever_it_is_cut() -> None:
    model = attach_head(small.backbone().SerializeToString(), small.head())
    for length in range(0, len(model), 7):
        with pytest.raises(BundleError):
            check_graph(model[:length])


def test_a_graph_larger_than_protobuf_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small.backbone().SerializeToString()
    monkeypatch.setattr(graph, "MAX_MODEL_BYTES", len(model) - 1)
    with pytest.raises(BundleError, match="at most"):
        check_graph(model, output="features")
