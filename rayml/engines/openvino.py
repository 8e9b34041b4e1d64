"""Intel's OpenVINO, on the processor."""

from __future__ import annotations

import logging
import queue
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayml.engines.base import Engine, import_package, usable_threads
from rayml.errors import BundleError, UsageError
from rayml.memory import give_back_file

_log = logging.getLogger(__name__)

_HINTS = {"float32": "f32", "bfloat16": "bf16"}


class OpenVINOEngine(Engine):
    """A graph compiled by OpenVINO.

    Arguments:
        model: ONNX, uint8 (N, H, W, 3) -> float32 (N, K).
        threads: all of its threads together; as many as there are processors by default.
        streams: pictures worked on side by side, with `threads / streams` threads each; as many as threads by default,
            which takes the least processor time a picture (MobileNetV2: 8.5 ms against 12.5 with one stream of two
            threads; Xception: 48 against 56). 1 gives the quickest single answer of a large network.
        precision: what it computes in, one of `PRECISIONS`; weights and results are float32 in any case.

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
            graph = core.read_model(model, b"")
            graph.reshape({0: [1, *graph.input(0).partial_shape[1:]]})
            self._compiled = self._compile(core, graph, settings)
        except RuntimeError as error:
            raise BundleError(f"OpenVINO must accept the graph. Received: {str(error).strip()[:300]}") from None
        shape, result = self._compiled.input(0).partial_shape, self._compiled.output(0).partial_shape
        self.image_size_px = int(shape[1].get_length())
        self.outputs = int(result[1].get_length())
        # Two for each stream: while a stream computes, the next picture waits for it, and no core for its caller.
        self._free: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(2 * self.streams):
            self._free.put(self._compiled.create_infer_request())
        # Its Python binding initialises static data with the first call: two threads that get there together wait for
        # each other for ever, one with the interpreter's lock, one with the lock of the C++ static (pybind11's
        # documentation of gil_safe_call_once). So the first call is made here, before any other thread can come.
        pixels = np.zeros((1, self.image_size_px, self.image_size_px, 3), np.uint8)
        self._run(pixels, np.empty((1, self.outputs), np.float32))

    def _compile(self, core: Any, graph: Any, settings: dict[str, Any]) -> Any:
        """Compile a graph without keeping its weights twice.

        A compiled model holds its own, repacked weights and the graph that it came from with the original ones, 80 MB
        for Xception, which nothing asks for again. So the originals go into a file without a name, and after compiling
        the memory behind it is given back.
        """
        if sys.platform != "linux":
            return core.compile_model(graph, "CPU", settings)
        try:
            temporary = tempfile.TemporaryDirectory(prefix="rayml-openvino-")
        except OSError as error:
            _log.warning("The weights stay in memory twice: no folder can be made for them (%s).", error.strerror)
            return core.compile_model(graph, "CPU", settings)
        with temporary as folder:
            try:
                graph = _weights_in_a_file(core, graph, Path(folder))
            except RuntimeError as error:
                _log.warning("The weights stay in memory twice: they could not be written to %s (%s).", folder, error)
            compiled = core.compile_model(graph, "CPU", settings)
            give_back_file(Path(folder) / "graph.bin")
        return compiled

    def _run(self, images: NDArray[np.uint8], result: NDArray[np.float32]) -> None:
        requests = self._take(min(len(images), self.streams))
        try:
            for first in range(0, len(images), len(requests)):
                running = list(zip(requests, range(first, len(images)), strict=False))
                for request, i in running:
                    request.start_async({0: images[i : i + 1]}, share_inputs=True)
                for request, i in running:
                    request.wait()
                    result[i] = request.get_output_tensor(0).data[0]
        except BaseException:  # Ctrl-C in a notebook, too: one that is still at work would refuse its next caller.
            requests = [self._compiled.create_infer_request() for _ in requests]
            raise
        finally:
            for request in requests:
                self._free.put(request)

    def _take(self, most: int) -> list[Any]:
        """Up to `most` requests that nobody else uses, at least one, which may take until another caller is done."""
        taken = [self._free.get()]
        while len(taken) < most:
            try:
                taken.append(self._free.get_nowait())
            except queue.Empty:
                break
        return taken


def _weights_in_a_file(core: Any, graph: Any, folder: Path) -> Any:
    """The same graph with its weights in a file of `folder`, which OpenVINO maps into memory."""
    import openvino

    path = folder / "graph.xml"
    openvino.save_model(graph, path, compress_to_fp16=False)
    return core.read_model(path)
