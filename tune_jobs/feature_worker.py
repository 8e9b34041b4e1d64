"""The process of a node that computes features: encoded pictures in, vectors out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rayml.backbones import BackboneSpec
from rayml.data import read_photo
from rayml.errors import InputError, RaymlError, SearchError, UsageError
from rayml.features import FeatureBank
from rayml.frozen import TOLERANCES, difference
from rayml.images import load_pixels
from tune_jobs.cluster import node_name
from tune_jobs.lean import import_keras

if TYPE_CHECKING:
    from rayml.engines.base import Engine

# Pictures in one call of the engine. More is no faster on a processor, whose engines take one at a time anyway; a
# graphics processor wants many, and the engine halves what does not fit into its memory.
CPU_BATCH, GPU_BATCH = 8, 128
PIXEL_BYTES = 256 << 20  # Of decoded pictures that a worker holds at most: with large ones a call gets fewer.

Decode: TypeAlias = "Callable[[int, NDArray[np.uint8]], None]"  # of a picture by its place in the chunk, into its array


@dataclass(frozen=True)
class Done:
    """What a worker made of a chunk of n pictures.

    Arguments:
        vectors: float32 (n, D), or None where the worker wrote them into the bank.
        unreadable: position -> reason of those without features, whose rows mean nothing.
    """

    vectors: NDArray[np.float32] | None
    unreadable: dict[int, str]


class FeatureWorker:
    """A Ray actor.

    Arguments:
        image_size_px: the side of the square that the backbone looks at.
        threads: processors to use.
        spec: given on a graphics processor: Keras runs the backbone on it instead of an engine the graph.
        bank: where the vectors go, or None to hand them back.
    """

    def __init__(self, image_size_px: int, threads: int, spec: BackboneSpec | None, bank: FeatureBank | None) -> None:
        self._image_size_px, self._threads, self._spec, self._bank = image_size_px, threads, spec, bank
        self._pool = ThreadPoolExecutor(threads)
        self._held = PIXEL_BYTES // (image_size_px * image_size_px * 3)  # Pictures.
        self._engine: Engine | None = None

    def load(
        self,
        graph: bytes,
        pictures: NDArray[np.uint8],
        expected: NDArray[np.float32],
        mark: str = "",
        precision: str = "float32",
    ) -> str:
        """Make the backbone ready and prove that it computes here what it computes elsewhere.

        Arguments:
            graph: its ONNX.
            pictures: uint8 (G, H, W, 3).
            expected: the features that belong to them, float32 (G, D).
            mark: of the bank's storage, which this machine has to see and to write.
            precision: what the backbone computes in.

        Returns:
            The engine's name.

        Raises:
            SearchError: this machine gives other features.
            RaymlError: this machine sees another storage, or cannot write it.
            WeightsError: the weights file cannot be read from this machine.
        """
        from rayml.engines import load_engine

        if self._bank is not None:
            try:
                self._bank.store.check_mark(mark)
            except RaymlError as error:
                raise RaymlError(f"on {node_name()}, {error.message}", error.hint) from None
        if self._spec is None:
            engine: Engine = load_engine(graph, threads=self._threads, streams=self._threads)
        else:
            engine = keras_engine(self._spec)
        far, most = difference(engine(pictures), expected, precision), TOLERANCES[precision]
        if not far <= most:
            share = "their size" if precision == "float32" else "what tells the pictures apart"
            raise SearchError(
                f"the features of known pictures must come out the same on every machine, to {most:g} of {share}. "
                f"Received: a difference of {far:.2g} by {engine.name} in {precision} on {node_name()}",
                "Are the packages and drivers of that machine those of the others?"
                if precision == "float32"
                else "Has that processor VNNI or AMX, like the others? In float32 it need not.",
            )
        self._engine = engine
        return engine.name

    def compute(self, paths: Sequence[str], digests: Sequence[str]) -> Done:
        """The vectors of n pictures.

        Arguments:
            paths: n files.
            digests: their sha256, under which the vectors are kept.

        Raises:
            DataError: a picture is another one than when the data set was read.
            RaymlError: a file cannot be read from this machine, though the driver has just read it.
        """
        unreadable: dict[int, str] = {}
        pictures = list(zip(paths, digests, strict=True))

        def decode(row: int, pixels: NDArray[np.uint8]) -> None:
            path, sha256 = pictures[row]
            try:
                pixels[:] = load_pixels(read_photo(Path(path), sha256), self._image_size_px)
            except InputError as error:
                unreadable[row] = error.message
            except OSError as error:
                raise _unseen(path, error) from None

        passed = (self._side_by_side if self._spec is None else self._in_turn)(range(len(pictures)), decode)
        vectors = np.concatenate(list(passed))
        if self._bank is None:
            return Done(vectors, unreadable)
        store(self._bank, digests, vectors, unreadable)
        return Done(None, unreadable)

    def _side_by_side(self, rows: range, decode: Decode) -> Iterable[NDArray[np.float32]]:
        """On processors each thread decodes a few pictures and then runs them through the engine."""
        engine = self._engine
        assert engine is not None

        def run(part: range) -> NDArray[np.float32]:
            pixels = self._blank(len(part))
            for row, into in zip(part, pixels, strict=True):
                decode(row, into)
            return engine(pixels)

        return self._pool.map(run, _parts(rows, min(CPU_BATCH, self._held // self._threads)))

    def _in_turn(self, rows: range, decode: Decode) -> Iterator[NDArray[np.float32]]:
        """On a graphics processor all threads decode, ahead of the one that has it compute."""
        engine = self._engine
        assert engine is not None
        for block in _parts(rows, self._held):
            pixels = self._blank(len(block))
            decoded = self._pool.map(decode, block, pixels)
            for part in _parts(range(len(block)), GPU_BATCH):
                for _ in part:
                    next(decoded)
                yield engine(pixels[part.start : part.stop])

    def _blank(self, count: int) -> NDArray[np.uint8]:
        return np.zeros((count, self._image_size_px, self._image_size_px, 3), np.uint8)


def _parts(rows: range, size: int) -> Iterator[range]:
    size = max(1, size)
    return (rows[start : start + size] for start in range(0, len(rows), size))


def store(bank: FeatureBank, digests: Sequence[str], vectors: NDArray[np.float32], unreadable: dict[int, str]) -> None:
    """Write a chunk's vectors, less those of pictures that could not be read, as one shard."""
    good = [row for row in range(len(digests)) if row not in unreadable]
    if good:
        bank.write([digests[row] for row in good], vectors[good])


def keras_engine(spec: BackboneSpec) -> Engine:
    """The backbone under Keras, on a graphics processor where there is one, on the backend that Keras runs on.

    Raises:
        WeightsError: as `rayml.backbones.build_base`.
        UsageError: Keras runs on another backend than TensorFlow and JAX.
    """
    from rayml.backbones import feature_model

    backend = import_keras().backend.backend()
    if backend == "jax":
        from rayml.engines.jax import JaxEngine

        return JaxEngine(feature_model(spec))
    if backend != "tensorflow":
        raise UsageError(f"KERAS_BACKEND must be tensorflow or jax. Received: {backend}")
    import tensorflow as tf

    from rayml.engines.tensorflow import TensorFlowEngine

    # Newer graphics processors round a float32 convolution's inputs to 10 bits by default: no longer float32.
    tf.config.experimental.enable_tensor_float_32_execution(False)
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)  # Others may share it.
    return TensorFlowEngine(feature_model(spec))


def _unseen(path: str, error: OSError) -> RaymlError:
    """The driver has read every file of the data set: what cannot be read here is no bad picture."""
    return RaymlError(
        f"{path} must be on every machine as it was when the photos were read. Received: {error.strerror or error} on "
        f"{node_name()}",
        "Does that machine see DATA under the same path, and does nobody change it? What is finished is kept.",
    )
