"""TensorFlow, the reference that the other engines are measured against."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayml.engines.base import KERAS_CPU_BATCH, KERAS_GPU_BATCH, Engine, import_package, keras_shape


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
        tf = import_package("tensorflow")
        self.image_size_px, self.outputs = keras_shape(model)
        signature = [tf.TensorSpec((None, self.image_size_px, self.image_size_px, 3), tf.uint8)]
        self._batch = KERAS_GPU_BATCH if tf.config.list_physical_devices("GPU") else KERAS_CPU_BATCH
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
