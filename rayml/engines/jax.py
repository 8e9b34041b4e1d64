"""JAX, for features on graphics processors where Keras runs on it (`KERAS_BACKEND=jax`)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayml.engines.base import KERAS_CPU_BATCH, KERAS_GPU_BATCH, Engine, import_package, keras_shape


class JaxEngine(Engine):
    """A Keras model called with `training=False`, as one jitted function; Keras' backend must be JAX.

    As `rayml.engines.tensorflow.TensorFlowEngine` it needs the model with its weights, so no bundle can be run by it.

    Arguments:
        model: Keras, uint8 (N, H, W, 3) -> float32 (N, K).

    Raises:
        MissingPackage: JAX is not installed.
        ValueError: the model takes or gives something else.
    """

    name = "jax"
    threads = 0

    def __init__(self, model: Any) -> None:
        jax = import_package("jax")
        self.image_size_px, self.outputs = keras_shape(model)
        self._batch = KERAS_CPU_BATCH if jax.default_backend() == "cpu" else KERAS_GPU_BATCH
        self._function = jax.jit(lambda weights, images: model.stateless_call(*weights, images, training=False)[0])
        self._weights = (
            [variable.value for variable in model.trainable_variables],
            [variable.value for variable in model.non_trainable_variables],
        )

    def _run(self, images: NDArray[np.uint8], result: NDArray[np.float32]) -> None:
        import jax

        for start in range(0, len(images), self._batch):
            part = images[start : start + self._batch]
            # One shape, one compilation: the last part is filled up.
            padded = np.zeros((self._batch, *part.shape[1:]), np.uint8)
            padded[: len(part)] = part
            # Full float32, also where a graphics processor would round a convolution's inputs to 10 bits.
            with jax.default_matmul_precision("highest"):
                answer = self._function(self._weights, padded)
            result[start : start + len(part)] = np.asarray(answer)[: len(part)]
