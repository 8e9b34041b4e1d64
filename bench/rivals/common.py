"""What the rivals share: the bundle's graph in OpenVINO or a Keras model of the same shape, and the same decoding.

Each rival runs in an environment of its own, without rayml. The settings come from the environment: RIVAL_MODEL (ONNX
file), RIVAL_SIZE (pixels), RIVAL_THREADS, RIVAL_BACKBONE (a name of keras.applications), RIVAL_CLASSES, RIVAL_INNER.
"""

from __future__ import annotations

import io
import os
import threading
from typing import Any

import numpy as np
from PIL import Image

SIZE = int(os.environ["RIVAL_SIZE"])
THREADS = int(os.environ["RIVAL_THREADS"])
PORT = int(os.environ.get("RIVAL_PORT", "0"))


def decode(data: bytes) -> np.ndarray:
    """A JPEG as uint8 (1, SIZE, SIZE, 3) by Pillow, with its scaled decoding and the filter that rayml uses."""
    image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP"))
    image.draft("RGB", (SIZE, SIZE))
    resized = image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    return np.asarray(resized, np.uint8)[np.newaxis]


class OpenVINO:
    """The graph, compiled as rayml compiles it: in the same precision, no pinning, a stream a thread."""

    def __init__(self, threads: int = THREADS) -> None:
        import openvino

        core = openvino.Core()
        graph = core.read_model(os.environ["RIVAL_MODEL"])
        graph.reshape({0: [1, SIZE, SIZE, 3]})
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}[
                os.environ["RIVAL_PRECISION"]
            ],
            "ENABLE_CPU_PINNING": False,
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": threads,
        }
        self._compiled = core.compile_model(graph, "CPU", settings)
        self._local = threading.local()
        self._run(np.zeros((1, SIZE, SIZE, 3), np.uint8))

    def _run(self, pixels: np.ndarray) -> np.ndarray:
        if not hasattr(self._local, "request"):
            self._local.request = self._compiled.create_infer_request()
        request = self._local.request
        request.infer({0: pixels}, share_inputs=True)
        return request.get_output_tensor(0).data[0]

    def probabilities(self, data: bytes) -> list[float]:
        """A picture's probabilities. Thread-safe."""
        logits = self._run(decode(data))
        shares = np.exp(logits - logits.max())
        return (shares / shares.sum()).tolist()


class Keras:
    """A model of the same backbone and head with random weights, which cost the same, asked as most people ask it."""

    def __init__(self) -> None:
        import keras

        backbone = getattr(keras.applications, os.environ["RIVAL_BACKBONE"])(
            weights=None, include_top=False, pooling="avg", input_shape=(SIZE, SIZE, 3)
        )
        inputs = keras.Input((SIZE, SIZE, 3))
        features = backbone(keras.layers.Rescaling(1 / 127.5, -1.0)(inputs), training=False)
        inner = keras.layers.Dense(int(os.environ["RIVAL_INNER"]), activation="relu")(features)
        self._model = keras.Model(inputs, keras.layers.Dense(int(os.environ["RIVAL_CLASSES"]))(inner))
        self._lock = threading.Lock()
        self.probabilities_of(np.zeros((1, SIZE, SIZE, 3), np.uint8))

    def probabilities_of(self, pixels: np.ndarray) -> list[float]:
        """`predict` of one decoded picture."""
        with self._lock:
            logits = self._model.predict(pixels.astype(np.float32), verbose=0)[0]
        shares = np.exp(logits - logits.max())
        return (shares / shares.sum()).tolist()

    def probabilities(self, data: bytes) -> list[float]:
        """A picture's probabilities."""
        return self.probabilities_of(decode(data))
