"""Intel's OpenVINO, on the processor."""

from __future__ import annotations

import contextlib
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayml.engines.base import Engine, import_package, usable_threads
from rayml.engines.openvino_graphs import WORTH_BYTES, for_one, split
from rayml.engines.turns import Lane, Turns
from rayml.errors import BundleError, UsageError
from rayml.graph import parse
from rayml.memory import give_back_file

_log = logging.getLogger(__name__)

# How many pictures go through the last layers together. Eight gain 2 % more than four, and two half as much.
_GROUP = 4
_WEIGHTS = "graph.bin"
_HINTS = {"float32": "f32", "bfloat16": "bf16"}


class OpenVINOEngine(Engine):
    """A graph compiled by OpenVINO.

    `grouped` says whether it computes pictures together, `may_gain_from_groups` whether it is worth a try to make it
    again so that it does.

    Arguments:
        model: ONNX, uint8 (N, H, W, 3) -> float32 (N, K).
        threads: all of its threads together; as many as there are processors by default.
        streams: pictures worked on side by side, with `threads / streams` threads each; as many as threads by default,
            which takes the least processor time a picture (MobileNetV2: 8.5 ms against 12.5 with one stream of two
            threads; Xception: 48 against 56). 1 gives the quickest single answer of a large network.
        precision: what it computes in, one of `PRECISIONS`; weights and results are float32 in any case.
        grouped: compute the last layers for up to four pictures together that wait at the same time, where the graph
            may gain from it: Xception takes 0.85 of the time a picture then, and 0.3 s longer to be made.
            Results may differ in their last bits with the company that a picture has (Xception: 1e-7 of their size).

    Raises:
        MissingPackage: OpenVINO is not installed.
        UsageError: fewer threads or streams than 1, or a precision that the processor does not have.
        BundleError: OpenVINO does not accept the graph.
    """

    name = "openvino"

    def __init__(
        self,
        model: bytes,
        threads: int | None = None,
        streams: int | None = None,
        precision: str = "float32",
        grouped: bool = False,
    ) -> None:
        # OpenVINO's converter for other formats comes with its import where it is there. It reports each import to
        # Google Analytics, and takes a second and 12 MB that nobody needs here.
        sys.modules.setdefault("openvino.tools.ovc", None)  # type: ignore[arg-type]
        openvino = import_package("openvino")
        self.threads = usable_threads(threads)
        self.streams = self.threads if streams is None else min(streams, self.threads)
        if self.streams < 1:
            raise UsageError(f"streams must be at least 1. Received: streams={streams}")
        settings: dict[str, Any] = {
            # Left alone it computes in bfloat16 where the processor can: other answers on another machine.
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            # Pinned, the threads of two processes sit on the same cores (39 images/s instead of 72 on two cores).
            "ENABLE_CPU_PINNING": False,
            "INFERENCE_NUM_THREADS": self.threads,
            "NUM_STREAMS": self.streams,
        }
        core = openvino.Core()
        # Asked for more than there is, OpenVINO would compute in float32 without a word.
        if precision == "bfloat16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise UsageError(
                "bfloat16 needs a processor that computes in it (AVX512-BF16 or AMX). Received: one that does not",
                "use float32",
            )
        try:
            self._compiled, self.grouped = self._compile(core, model, settings, grouped)
        except RuntimeError as error:
            raise BundleError(f"OpenVINO must accept the graph. Received: {str(error).strip()[:300]}") from None
        self.may_gain_from_groups = not grouped and len(model) >= WORTH_BYTES
        self.image_size_px = int(self._compiled.inputs[int(self.grouped)].shape[1])
        self.outputs = int(self._compiled.outputs[-1].shape[1])
        # Without groups two lanes for each stream: while it computes, the next picture waits for it, and no core for
        # its caller. A group has several pictures to wait.
        lanes = (
            [_GroupLane(self._compiled) for _ in range(self.streams)]
            if self.grouped
            else [_PictureLane(self._compiled) for _ in range(2 * self.streams)]
        )
        self._turns = Turns(lanes)
        # Its Python binding initialises static data with the first call: two threads that get there together wait for
        # each other for ever, one with the interpreter's lock, one with the lock of the C++ static (pybind11's
        # documentation of gil_safe_call_once). So the first call is made here, before any other thread can come.
        pixels = np.zeros((1, self.image_size_px, self.image_size_px, 3), np.uint8)
        self._run(pixels, np.empty((1, self.outputs), np.float32))

    def _compile(self, core: Any, model: bytes, settings: dict[str, Any], grouped: bool) -> tuple[Any, bool]:
        """Compile a graph without keeping its weights twice.

        A compiled model holds its own, repacked weights and the graph that it came from with the original ones, 80 MB
        for Xception, which nothing asks for again. So the originals go into a file without a name, which OpenVINO maps,
        and after compiling the memory behind it is given back. It is the quicker way too: 0.15 s for Xception, where
        OpenVINO takes 0.26 to read the weights from memory.
        """
        if sys.platform == "linux":
            try:
                with tempfile.TemporaryDirectory(prefix="rayml-openvino-") as folder:
                    path = _with_weights_apart(model, Path(folder))
                    compiled = _compiled(core, core.read_model(path), settings, grouped)
                    give_back_file(path.with_name(_WEIGHTS))
                    return compiled
            except OSError as error:
                _log.warning("The weights stay in memory twice: no file can hold them (%s).", error.strerror)
        return _compiled(core, core.read_model(model, b""), settings, grouped)

    def _run(self, images: NDArray[np.uint8], result: NDArray[np.float32]) -> None:
        self._turns.run(images, result)

    def compare(self, other: OpenVINOEngine, images: NDArray[np.uint8], tries: int = 3) -> tuple[float, float]:
        """Try which of two engines is quicker.

        Callers of this one wait during each try, of either: they would slow one of them down more than the other.

        Arguments:
            other: an engine that nobody else uses yet.
            images: uint8 (N, H, W, 3), C-contiguous, enough for all threads of both.
            tries: of each, in turn.

        Returns:
            The least seconds that this and the other took; more were due to something else.
        """
        best = [float("inf"), float("inf")]
        result = np.empty((len(images), self.outputs), np.float32)
        for _ in range(tries):
            for i in range(2):
                with self._turns.held() as run:
                    began = time.perf_counter()
                    (run, other._run)[i](images, result)
                    best[i] = min(best[i], time.perf_counter() - began)
        return best[0], best[1]


def _compiled(core: Any, graph: Any, settings: dict[str, Any], grouped: bool) -> tuple[Any, bool]:
    """The graph compiled, and whether as `openvino_graphs.split` has it."""
    parts = split(graph, _GROUP) if grouped else None
    return core.compile_model(parts or for_one(graph), "CPU", settings), parts is not None


class _PictureLane(Lane):
    """A request for a picture at a time.

    What goes in and comes out stays at the same place: handing it over anew with each call takes 35 us of the
    interpreter. A request does not keep its arrays alive; the lane does.
    """

    size = 1

    def __init__(self, compiled: Any) -> None:
        self._picture = np.zeros(compiled.input(0).shape, np.uint8)
        self._result = np.zeros(compiled.output(0).shape, np.float32)
        self._request = _request(compiled, [self._picture], {0: self._result})

    def drain(self) -> None:
        """As the interface has it."""
        _drain(self._request)

    def start(self, place: int, picture: NDArray[np.uint8]) -> None:
        """As the interface has it."""
        self._picture[:] = picture
        self._request.start_async()

    def wait(self, place: int) -> None:
        """As the interface has it."""
        self._request.wait()

    def start_together(self, first: int, count: int) -> int:
        """Nothing: its picture has come to its end alone."""
        return 1

    def wait_together(self) -> NDArray[np.float32]:
        """As the interface has it."""
        return self._result


class _GroupLane(Lane):
    """Requests for a group of pictures: one for each of them alone, one for what they have in common."""

    size = _GROUP

    def __init__(self, compiled: Any) -> None:
        _, picture, _, _, features = compiled.inputs
        self._pictures = np.zeros((_GROUP, *picture.shape[1:]), np.uint8)
        self._features = np.zeros(features.shape, np.float32)
        self._results = np.zeros(compiled.outputs[1].shape, np.float32)
        self._single = np.ones(1, np.bool_)
        self._true, self._false = np.ones(1, np.bool_), np.zeros(1, np.bool_)
        rest = [self._single, self._features[:1], self._features]
        self._alone = [
            _request(compiled, [self._true, self._pictures[i : i + 1], *rest], {0: self._features[i : i + 1]})
            for i in range(_GROUP)
        ]
        self._together = _request(compiled, [self._false, self._pictures[:1], *rest], {1: self._results})

    def drain(self) -> None:
        """As the interface has it."""
        _drain(*self._alone, self._together)

    def start(self, place: int, picture: NDArray[np.uint8]) -> None:
        """As the interface has it."""
        self._pictures[place] = picture[0]
        self._alone[place].start_async()

    def wait(self, place: int) -> None:
        """As the interface has it."""
        self._alone[place].wait()

    def start_together(self, first: int, count: int) -> int:
        """As the interface has it."""
        self._single[0] = count < _GROUP
        if first:
            self._features[0] = self._features[first]
        self._together.start_async()
        return 1 if count < _GROUP else _GROUP

    def wait_together(self) -> NDArray[np.float32]:
        """As the interface has it."""
        self._together.wait()
        return self._results[: 1 if self._single[0] else _GROUP]


def _request(compiled: Any, inputs: list[NDArray[Any]], outputs: dict[int, NDArray[Any]]) -> Any:
    """A request that reads and writes these arrays."""
    from openvino import Tensor

    request = compiled.create_infer_request()
    for i, array in enumerate(inputs):
        request.set_input_tensor(i, Tensor(array, shared_memory=True))
    for i, array in outputs.items():
        request.set_output_tensor(i, Tensor(array, shared_memory=True))
    return request


def _drain(*requests: Any) -> None:
    for request in requests:
        with contextlib.suppress(RuntimeError):  # It has failed, and somebody was told.
            request.wait()


def _with_weights_apart(model: bytes, folder: Path) -> Path:
    """Write a graph into `folder` with its weights in a file of their own; returns its path."""
    import onnx

    path = folder / "graph.onnx"
    onnx.save_model(parse(model), path, save_as_external_data=True, location=_WEIGHTS)
    return path
