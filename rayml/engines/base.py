"""The interface of all engines.

The ONNX engines take one picture at a time, whatever a caller passes: an answer does not depend on what else was asked
at the time. Measured on two cores with Xception at 150 px and MobileNetV2 at 224 px, a fixed shape of one picture
against open batches of 4 to 32: OpenVINO takes 48 and 8.5 ms of processor time a picture against 49 to 52 and 11.5 to
15, ONNX Runtime no more than in batches, and a serving process holds 300 and 165 MB against 320 to 770 and 200 to 770.
Only the last layers of large networks gain from company, and only if asked for: see `openvino_graphs`.
"""

from __future__ import annotations

import importlib
import os
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayml.cores import usable_cores
from rayml.errors import UsageError

# Pictures that go through a Keras model at once: beyond it nothing gets faster, and memory grows.
KERAS_CPU_BATCH, KERAS_GPU_BATCH = 32, 128


class Engine(ABC):
    """A graph made ready to run. Calling it is thread-safe.

    `name` says which engine it is, `image_size_px` the H = W that it takes, `outputs` the K that it gives,
    `threads` how many threads it computes with.
    """

    name: str
    image_size_px: int
    outputs: int
    threads: int

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Run the graph.

        Arguments:
            images: uint8 (N, H, W, 3), any N including 0.

        Returns:
            float32 (N, K), C-contiguous, the caller's own.

        Raises:
            ValueError: another type or shape.
        """
        size = self.image_size_px
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (size, size, 3):
            raise ValueError(f"images must be uint8 (N, {size}, {size}, 3). Received: {images.dtype} {images.shape}")
        result = np.empty((len(images), self.outputs), np.float32)
        if len(images):
            self._run(np.ascontiguousarray(images), result)
        return result

    @abstractmethod
    def _run(self, images: NDArray[np.uint8], result: NDArray[np.float32]) -> None:
        """Fill `result` (N, K) from `images`, N >= 1, both C-contiguous."""


class MissingPackage(UsageError):
    """None of the packages that an engine needs is installed."""

    def __init__(self, *packages: str) -> None:
        super().__init__(
            f"the engine needs the package {' or '.join(packages)}. Received: it is not installed",
            " or ".join(f"pip install {package}" for package in packages),
        )


def import_package(name: str) -> Any:
    """The package that an engine needs.

    Raises:
        MissingPackage: it is not installed. An import that fails otherwise is a bug to be seen.
    """
    # ONNX Runtime 1.32 tells Microsoft of each import, with a number for this machine that it keeps in the home folder.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise MissingPackage(name) from None


def keras_shape(model: Any) -> tuple[int, int]:
    """The side in px and the number of outputs K of a Keras model, uint8 (N, H, W, 3) -> float32 (N, K).

    Raises:
        ValueError: the model takes or gives something else.
    """
    takes, gives = tuple(model.input_shape), tuple(model.output_shape)
    if len(takes) != 4 or takes[1] is None or takes[1] != takes[2] or takes[3] != 3 or len(gives) != 2:
        raise ValueError(f"the model must be (N, size, size, 3) -> (N, outputs). Received: {takes} -> {gives}")
    return int(takes[1]), int(gives[1])


def usable_threads(threads: int | None) -> int:
    """The number of threads asked for, or as many as this process may use cores.

    Raises:
        UsageError: below 1.
    """
    if threads is None:
        return usable_cores()
    if threads < 1:
        raise UsageError(f"threads must be at least 1. Received: threads={threads}")
    return threads
