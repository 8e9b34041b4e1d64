from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from rayml.canonical import canonical
from rayml.engines import load_engine


def network(seed: int = 0, *, scale: float = 2.0, mixed: bool = False) -> onnx.ModelProto:
    """uint8 (N, 4, 4, 3) -> float32 (N, 3); `mixed` writes the same in another order, with other names, loosely."""
    name = {key: f"{key}_{seed}" for key in ("cast", "scaled", "shifted", "both", "pooled", "unused")}
    weights = {"scale": np.array(scale, np.float32), "shift": np.array(scale, np.float32)}
    if mixed:  # The converter left the two equal constants apart here and merged them there.
        scale_name = shift_name = f"constant_{seed}"
        stored = [numpy_helper.from_array(weights["scale"], scale_name)]
    else:
        scale_name, shift_name = f"scale_{seed}", f"shift_{seed}"
        stored = [helper.make_tensor(shift_name, TensorProto.FLOAT, [], [scale])]
        stored.append(numpy_helper.from_array(weights["scale"], scale_name))
    axes = numpy_helper.from_array(np.array([1, 2], np.int64), f"axes_{seed}")
    constant = helper.make_node("Constant", [], [f"made_{seed}"], value=axes)
    nodes = [
        helper.make_node("Cast", ["images"], [name["cast"]], to=TensorProto.FLOAT),
        helper.make_node("Mul", [name["cast"], scale_name], [name["scaled"]]),
        helper.make_node("Add", [name["cast"], shift_name], [name["shifted"]]),
        helper.make_node("Sub", [name["scaled"], name["shifted"]], [name["both"]], name=f"sub {seed}"),
        constant,
        helper.make_node("ReduceMean", [name["both"]], [name["pooled"]], axes=[1, 2], keepdims=0),
        helper.make_node("Relu", [name["pooled"]], ["features"], doc_string=f"made {seed}"),
    ]
    if mixed:
        order = random.Random(seed)
        nodes.append(helper.make_node("Relu", [name["cast"]], [name["unused"]]))
        stored.append(numpy_helper.from_array(np.ones(7, np.float32), f"nobody_{seed}"))
        nodes[1], nodes[2] = nodes[2], nodes[1]
        order.shuffle(stored)
        for node in nodes:
            shuffled = list(node.attribute)
            order.shuffle(shuffled)
            del node.attribute[:]
            node.attribute.extend(shuffled)
    return helper.make_model(
        helper.make_graph(
            nodes,
            f"graph {seed}",
            [helper.make_tensor_value_info("images", TensorProto.UINT8, [f"unk__{seed}", 4, 4, 3])],
            [helper.make_tensor_value_info("features", TensorProto.FLOAT, [f"unk__{seed}", 3])],
            stored,
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )


def written(model: onnx.ModelProto) -> bytes:
    return canonical(model).SerializeToString(deterministic=True)


def test_the_same_network_gives_the_same_bytes() -> None:
    first = network(0)
    assert {written(network(seed, mixed=mixed)) for seed in range(5) for mixed in (False, True)} == {written(first)}
    assert written(canonical(first)) == written(first)
    graph = canonical(first).graph
    assert [value.name for value in (*graph.input, *graph.output)] == ["images", "features"]
    assert [node.name for node in graph.node] == ["Cast_0", "Mul_1", "Add_2", "Sub_3", "ReduceMean_4", "Relu_5"]
    assert [tensor.name for tensor in graph.initializer] == ["weight_0"]


def test_another_network_gives_other_bytes() -> None:
    assert written(network(scale=2.5)) != written(network())
    swapped = network()
    difference = next(node for node in swapped.graph.node if node.op_type == "Sub")
    difference.input[:] = list(reversed(difference.input))
    assert written(swapped) != written(network())


def test_what_it_computes_stays() -> None:
    pictures = np.random.default_rng(1).integers(0, 256, (5, 4, 4, 3), np.uint8)
    for mixed in (False, True):
        model = network(3, mixed=mixed)
        onnx.checker.check_model(canonical(model))
        expected = load_engine(model.SerializeToString(), "onnxruntime", threads=1)(pictures)
        np.testing.assert_array_equal(load_engine(written(model), "onnxruntime", threads=1)(pictures), expected)


FREEZE = """
import sys
from pathlib import Path
from rayml.backbones import backbone_spec
from rayml.features import bank_key
from rayml.frozen import freeze
made = freeze(backbone_spec(sys.argv[1], sys.argv[2], int(sys.argv[3])), Path(sys.argv[4]))
print(made.graph_sha256, bank_key(made))
"""


@pytest.mark.parametrize(
    ("name", "weights", "size_px"),
    [
        ("mobilenet_v2", "none", 96),
        ("efficientnetv2b0", "none", 64),
        ("xception", "none", 96),
    ],
)
@pytest.mark.slow  # The tiny one is frozen twice in tests/rayml/test_frozen.py.
def test_two_machines_freeze_the_same_bytes(name: str, weights: str, size_px: int, tmp_path: Path) -> None:
    """In two processes whose sets come in different orders, as on two machines."""
    said = []
    for seed in ("1", "2"):
        command = [sys.executable, "-c", FREEZE, name, weights, str(size_px), str(tmp_path / seed)]
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, env=environment)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout.split())
    assert said[0] == said[1]
    assert len(said[0]) == 2
