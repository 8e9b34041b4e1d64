"""TensorFlow, the reference that the other engines are measured against."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayml.engines.base import Engine, MissingPackage, is_missing

# Pictures that go through the network at once: beyond it nothing gets faster, and memory grows.
_CPU_BATCH, _GPU_BATCH = 32, 128


class TensorFlowEngine(Engine):
    """A Keras model called with `training=False`, as one compiled function.

    It needs the model with its weights, so no bundle can be run by it: it is for making features where TensorFlow is
    the faster (a GPU) and for tests. TensorFlow's own settings say how many threads it uses; `threads` is 0.

    Arguments:
        model: Keras, uint8 (N, H, W, 3) -> float32 (N, K).

    Raises:
        MissingPackage: TensorFlow is not installed.
        ValueError: the model takes or gives something else.
    """

    name = "tensorflow"
    threads = 0

    def __init__(self, model: Any) -> None:
        try:
            import tensorflow as tf
        except ImportError as error:
            if is_missing(error, "tensorflow"):
                raise MissingPackage("tensorflow") from None
            raise
        takes, gives = tuple(model.input_shape), tuple(model.output_shape)
        if len(takes) != 4 or takes[1] is None or takes[1] != takes[2] or takes[3] != 3 or len(gives) != 2:
            raise ValueError(f"the model must be (N, size, size, 3) -> (N, outputs). Received: {takes} -> {gives}")
        self.image_size_px, self.outputs = int(takes[1]), int(gives[1])
        signature = [tf.TensorSpec((None, takes[1], takes[2], 3), tf.uint8)]
        self._batch = _GPU_BATCH if tf.config.list_physical_devices("GPU") else _CPU_BATCH
        self._function = tf.function(lambda images: model(images, training=False), input_signature=signature)

    def _run(self, images: NDArray[np.uint8], result: NDArray[np.float32]) -> None:
        import tensorflow as tf

        start = 0
        while start < len(images):
            part = slice(start, start + self._batch)
            try:
                result[part] = self._function(images[part]).numpy()
            except tf.errors.ResourceExhaustedError:  # The device's memory, which others may share.
                if self._batch == 1:
                    raise
                self._batch = max(1, self._batch // 2)
            else:
                start = part.stop
