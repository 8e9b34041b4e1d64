"""Pictures that go through a network's last layers together have the answers that they have alone."""

from __future__ import annotations

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from rayml.engines import Engine, load_engine, openvino, openvino_graphs
from rayml.graph import attach_head
from tests.rayml import small

SIZE_PX, CHANNELS = 32, 64


def _network(mixes: bool = False, residual: bool = True) -> bytes:
    """uint8 -> 16 x 16, then 8 x 8 positions, a block with a way around it -> mean over the picture, float32 (N, 64).

    Arguments:
        mixes: the last layer adds up what it has for all pictures.
        residual: another way leads around everything, so that it can be cut nowhere.
    """
    random = np.random.default_rng(5)
    shapes = {
        "first": (CHANNELS, 3, 3, 3),
        "second": (CHANNELS, CHANNELS, 3, 3),
        "depthwise": (CHANNELS, 1, 3, 3),
        "inner": (CHANNELS, CHANNELS, 1, 1),
        "around": (CHANNELS, 3, 1, 1),
    }
    weights = {
        name: random.normal(size=shape, scale=(2 / np.prod(shape[1:])) ** 0.5).astype(np.float32)
        for name, shape in shapes.items()
    }
    half = {"strides": [2, 2], "pads": [0, 0, 1, 1]}
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "scale"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "first"], ["a"], **half),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "second"], ["c"], **half),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Conv", ["d", "depthwise"], ["e"], group=CHANNELS, pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["e", "inner"], ["f"]),
        helper.make_node("Add", ["d", "f"], ["g"]),
        helper.make_node("Relu", ["g"], ["h"]),
        helper.make_node("Conv", ["h", "inner"], ["i"]),
        helper.make_node("ReduceMean", ["i"], ["features" if residual else "j"], axes=[2, 3], keepdims=0),
    ]
    if not residual:
        nodes += [
            helper.make_node("Conv", ["planes", "around"], ["k"]),
            helper.make_node("ReduceMean", ["k"], ["l"], axes=[2, 3], keepdims=0),
            helper.make_node("Add", ["j", "l"], ["features"]),
        ]
    if mixes:
        nodes[-1].output[0] = "apart"
        nodes.append(helper.make_node("ReduceSum", ["apart", "all"], ["features"], keepdims=1))
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    tensors += [
        numpy_helper.from_array(np.float32(1 / 255).reshape(()), "scale"),
        numpy_helper.from_array(np.zeros(1, np.int64), "all"),
    ]
    graph = helper.make_graph(
        nodes,
        "backbone",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", SIZE_PX, SIZE_PX, 3])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", CHANNELS])],
        tensors,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made)
    return made.SerializeToString()


@pytest.fixture(autouse=True)
def _small_graphs_are_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_graphs, "WORTH_BYTES", 1)
    monkeypatch.setattr(openvino, "WORTH_BYTES", 1)
    monkeypatch.setattr(openvino_graphs, "_COST_OF_A_BYTE", 0)


def _engine(graph: bytes, *, grouped: bool = True, streams: int = 2) -> Any:
    return load_engine(graph, "openvino", threads=2, streams=streams, grouped=grouped)


def _with_head() -> bytes:
    return attach_head(_network(), small.head(features=CHANNELS))


def _alone(engine: Engine, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.concatenate([engine(images[i : i + 1]) for i in range(len(images))])


@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("with_head", [True, False])
def test_answers_are_those_of_the_whole_graph(with_head: bool, streams: int) -> None:
    graph = _with_head() if with_head else _network()
    whole, grouped = _engine(graph, grouped=False), _engine(graph, streams=streams)
    assert (whole.grouped, grouped.grouped) == (False, True)
    assert (whole.may_gain_from_groups, grouped.may_gain_from_groups) == (True, False)
    assert (grouped.image_size_px, grouped.outputs) == (SIZE_PX, 3 if with_head else CHANNELS)
    images = small.pictures(11, size_px=SIZE_PX)
    expected = _alone(whole, images)
    assert np.ptp(expected, axis=0).max() > 0.1  # The pictures have different answers.
    tolerance = 1e-5 * np.abs(expected).max()
    for count in range(12):
        np.testing.assert_allclose(grouped(images[:count]), expected[:count], rtol=0, atol=tolerance)
    np.testing.assert_allclose(_alone(grouped, images), expected, rtol=0, atol=tolerance)


def test_callers_that_wait_go_together_and_get_their_own_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    grouped = _engine(_with_head())
    images = small.pictures(16, size_px=SIZE_PX)
    expected = _alone(grouped, images)
    lane_type = type(grouped._turns._free[0])
    start_together, sizes = lane_type.start_together, set()

    def noted(lane: Any, first: int, count: int) -> int:
        sizes.add(computed := start_together(lane, first, count))
        return computed

    monkeypatch.setattr(lane_type, "start_together", noted)
    with ThreadPoolExecutor(16) as pool:
        for _ in range(40):
            rows = pool.map(lambda i: grouped(images[i : i + 1])[0], range(16))
            np.testing.assert_allclose(np.stack(list(rows)), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert sizes == {1, 4}


def test_where_a_graph_is_cut() -> None:
    """Where few positions are left, and a layer begins: not between a convolution and what is fused with it."""
    from openvino import Core

    graph = openvino_graphs.for_one(Core().read_model(_with_head(), b""))
    cut = openvino_graphs._best_cut(graph)
    assert cut is not None
    assert cut.shape == (CHANNELS, 8, 8)
    users = _users(graph, cut.name)
    assert users == {"GroupConvolution", "Add"}
    assert cut.dense is not None
    assert _users(graph, cut.dense) == {"MatMul"}


def _users(graph: Any, name: str) -> set[str]:
    operation = next(each for each in graph.get_ordered_ops() if each.get_friendly_name() == name)
    return {each.get_node().get_type_name() for each in operation.output(0).get_target_inputs()} - {"ShapeOf"}


@pytest.mark.parametrize(
    "settings",
    [{"_POSITIONS": 63}, {"WORTH_BYTES": 1 << 20}, {"_COST_OF_A_BYTE": 100}],
    ids=lambda each: next(iter(each)),
)
def test_a_graph_that_gains_nothing_stays_whole(settings: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in settings.items():
        monkeypatch.setattr(openvino_graphs, name, value)
    engine = _engine(_with_head())
    assert not engine.grouped


def test_a_graph_with_a_way_around_everything_stays_whole() -> None:
    engine = _engine(_network(residual=False))
    assert not engine.grouped


def test_last_layers_that_mix_pictures_stay_with_one(caplog: pytest.LogCaptureFixture) -> None:
    graph = _network(mixes=True)
    with caplog.at_level(logging.WARNING):
        engine = _engine(graph)
    assert not engine.grouped
    assert "The last layers run a picture at a time" in caplog.text
    images = small.pictures(5, size_px=SIZE_PX)
    np.testing.assert_allclose(engine(images), _alone(_engine(graph, grouped=False), images), rtol=1e-5)


def test_two_engines_are_compared_while_callers_wait() -> None:
    graph = _with_head()
    whole, grouped = _engine(graph, grouped=False), _engine(graph)
    images = small.pictures(8, size_px=SIZE_PX)
    expected = whole(images)
    run = grouped._run
    grouped._run = lambda *arguments: (time.sleep(0.3), run(*arguments))
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(whole, images[i % 8 : i % 8 + 1]) for i in range(200)]
        whole_s, grouped_s = whole.compare(grouped, images)
        np.testing.assert_array_equal(np.concatenate([each.result() for each in asked]), np.tile(expected, (25, 1)))
    assert 0 < whole_s < 0.3 < grouped_s
