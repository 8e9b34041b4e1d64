"""Which engine runs a graph."""

from __future__ import annotations

import logging
from pathlib import Path

from rayml.engines.base import Engine, MissingPackage
from rayml.errors import BundleError, UsageError
from rayml.memory import give_back_freed

PRECISIONS = ("float32", "bfloat16")
ENGINES = ("auto", "openvino", "onnxruntime")
_log = logging.getLogger(__name__)


def load_engine(
    model: bytes | Path,
    name: str = "auto",
    threads: int | None = None,
    streams: int | None = None,
    precision: str = "float32",
    grouped: bool = False,
) -> Engine:
    """Make a graph ready to run.

    Arguments:
        model: ONNX, as bytes or a file, uint8 (N, H, W, 3) "images" -> float32 (N, K). From a stranger, let
            `graph.check_graph` see it first.
        name: "openvino", "onnxruntime", or "auto": OpenVINO where it is installed, else ONNX Runtime.
        threads: how many threads it computes with, all callers together; as many as there are processors by default.
        streams: how many pictures it works on side by side, sharing the threads; OpenVINO only, see there.
        precision: what it computes in, one of `PRECISIONS`; bfloat16 with OpenVINO only, where the processor has it.
        grouped: compute pictures that wait at the same time together where that saves time; OpenVINO only, see there.

    Raises:
        UsageError: an unknown name or precision, one that is not there, or fewer threads or streams than 1.
        BundleError: the engine does not accept the graph.
    """
    if name not in ENGINES:
        raise UsageError(f"engine must be one of {', '.join(ENGINES)}. Received: {name!r}")
    if precision not in PRECISIONS:
        raise UsageError(f"precision must be one of {', '.join(PRECISIONS)}. Received: {precision!r}")
    if precision != "float32" and name == "onnxruntime":
        raise UsageError(f"onnxruntime must compute in float32. Received: {precision}", "use openvino, or float32")
    graph = model if isinstance(model, bytes) else _read(model)
    engine = _make(graph, name if precision == "float32" else "openvino", threads, streams, precision, grouped)
    _log.debug("%s runs a graph of %d bytes with threads=%s, streams=%s", engine.name, len(graph), threads, streams)
    give_back_freed()
    return engine


def _make(graph: bytes, name: str, threads: int | None, streams: int | None, precision: str, grouped: bool) -> Engine:
    if name in ("auto", "openvino"):
        from rayml.engines.openvino import OpenVINOEngine

        try:
            return OpenVINOEngine(graph, threads, streams, precision, grouped)
        except MissingPackage:
            if name == "openvino":
                raise
    from rayml.engines.onnxruntime import OnnxRuntimeEngine

    try:
        return OnnxRuntimeEngine(graph, threads)
    except MissingPackage:
        if name == "onnxruntime":
            raise
        raise MissingPackage("openvino", "onnxruntime") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"expected a readable graph. Received: {path} ({error.strerror})") from None
