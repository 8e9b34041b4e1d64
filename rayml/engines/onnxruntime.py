"""Microsoft's ONNX Runtime, on the processor."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rayml.engines.base import Engine, import_package, usable_threads
from rayml.errors import BundleError


class OnnxRuntimeEngine(Engine):
    """A graph in an ONNX Runtime session, in float32.

    Arguments:
        model: ONNX, uint8 (N, H, W, 3) -> float32 (N, K).
        threads: the threads that share one call; as many as there are processors by default.

    Raises:
        MissingPackage: ONNX Runtime is not installed.
        UsageError: fewer threads than 1.
        BundleError: ONNX Runtime does not accept the graph.
    """

    name = "onnxruntime"

    def __init__(self, model: bytes, threads: int | None = None) -> None:
        onnxruntime = import_package("onnxruntime")
        self.threads = usable_threads(threads)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors; they are raised as well
        # Waiting threads must sleep: spinning, they take the processor from the decoding of the next pictures.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions share no base class below Exception
            raise BundleError(f"ONNX Runtime must accept the graph. Received: {str(error).strip()[:300]}") from None
        self._session._model_bytes = None  # Kept to start anew on another provider, which never happens here: 83 MB.
        self._input = self._session.get_inputs()[0].name
        self.image_size_px = int(self._session.get_inputs()[0].shape[1])
        self.outputs = int(self._session.get_outputs()[0].shape[1])

    def _run(self, images: NDArray[np.uint8], result: NDArray[np.float32]) -> None:
        for i in range(len(images)):
            (logits,) = self._session.run(None, {self._input: images[i : i + 1]})
            result[i] = logits[0]
