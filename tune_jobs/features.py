"""The feature pass: every picture that the bank lacks goes through the frozen backbone once, spread over the cluster.

One Ray actor a node takes all of its processors and works off chunks of pictures; the driver writes what comes back
as shards of the bank, so that an interrupted pass keeps what it finished. Pictures are read where they are computed:
on more than one node the folder must lie on storage that all of them see.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayml.backbones import BackboneSpec
from rayml.data import Manifest, Photo
from rayml.engines.base import Engine
from rayml.errors import DataError, InputError, SearchError
from rayml.features import FeatureBank
from rayml.frozen import FrozenBackbone
from rayml.images import load_pixels
from rayml.progress import Progress
from tune_jobs.cluster import Node

BATCH = 8  # Pictures in one call of the engine: more is no faster on a processor and takes more memory.
CHUNKS_A_NODE = 32  # Progress, and what an interruption may lose: a thirty-second of the pass, within
MIN_CHUNK, MAX_CHUNK = 32, 1024  # bounds that keep shards neither tiny nor larger than the driver's memory likes.
IN_FLIGHT = 2  # Chunks a worker has in hand, so that it never waits for the driver.
RESTARTS = 3  # Of a worker that died; its chunk is done again.


@dataclass(frozen=True)
class PassResult:
    """What a pass did.

    Arguments:
        computed: pictures that went through the backbone.
        cached: pictures that the bank had.
        unreadable: relative path -> reason, of pictures without features.
        seconds: how long it took.
        engine: what ran the graph, "" where nothing had to be computed.
    """

    computed: int
    cached: int
    unreadable: dict[str, str]
    seconds: float
    engine: str


class FeatureWorker:
    """Runs on a node: pictures in, vectors out. The engine is loaded with the first call, also after a restart.

    Arguments:
        image_size_px: the side of the square that the backbone looks at.
        threads: processors to use.
        spec: given where a graphics processor is at hand: Keras then runs the backbone on it instead of the graph.
    """

    def __init__(self, image_size_px: int, threads: int, spec: BackboneSpec | None) -> None:
        self._image_size_px = image_size_px
        self._threads = threads
        self._spec = spec
        self._pool = ThreadPoolExecutor(threads)
        self._engine: Engine | None = None

    def _load(self, graph: Any) -> Engine:
        import ray

        from rayml.engines import load_engine

        if self._engine is None and self._spec is None:
            self._engine = load_engine(ray.get(graph), threads=self._threads, streams=self._threads)
        elif self._engine is None and self._spec is not None:
            from rayml.backbones import feature_model
            from rayml.engines.tensorflow import TensorFlowEngine

            self._engine = TensorFlowEngine(feature_model(self._spec))
        assert self._engine is not None
        return self._engine

    def compute(self, graph: list[Any], paths: list[str]) -> tuple[NDArray[np.float32], dict[int, str], str]:
        """The vectors of n pictures.

        Arguments:
            graph: holds the reference to the backbone's ONNX in Ray's object store; in a list, so that Ray hands over
                the reference and not, with each call, a copy of the bytes.
            paths: n files.

        Returns:
            float32 (n, D); position -> reason of those that could not be read, whose rows mean nothing; the engine.
        """
        engine = self._load(graph[0])
        unreadable: dict[int, str] = {}

        def run(start: int) -> NDArray[np.float32]:
            batch = np.zeros((len(paths[start : start + BATCH]), self._image_size_px, self._image_size_px, 3), np.uint8)
            for row, path in enumerate(paths[start : start + BATCH]):
                try:
                    batch[row] = load_pixels(Path(path).read_bytes(), self._image_size_px)
                except InputError as error:
                    unreadable[start + row] = error.message
                except OSError as error:
                    unreadable[start + row] = f"{error.strerror}"
            return engine(batch)

        return np.concatenate(list(self._pool.map(run, range(0, len(paths), BATCH)))), unreadable, engine.name


def feature_pass(
    manifest: Manifest,
    backbone: FrozenBackbone,
    bank: FeatureBank,
    nodes: Sequence[Node],
    *,
    spec: BackboneSpec,
    skip_unreadable: bool,
    progress: Progress,
) -> PassResult:
    """Bring the bank up to date with a data set.

    Arguments:
        manifest: whose pictures are wanted; the same picture under two names is computed once.
        nodes: where to compute.
        spec: what `backbone` was frozen from.
        skip_unreadable: go on without pictures that cannot be read, instead of refusing the data set.

    Raises:
        DataError: pictures that cannot be read; each of the first few is named. The other features are kept.
        SearchError: a worker died again and again.
    """
    import ray

    start = time.monotonic()
    wanted = {photo.sha256: photo for photo in manifest.photos}
    missing = [photo for digest, photo in wanted.items() if digest not in bank]
    reasons: dict[str, str] = {}  # by sha256
    engine = ""
    if missing:
        on_gpu = any(node.gpus for node in nodes)
        graph = [ray.put(backbone.graph())]
        workers = _start_workers(backbone, nodes, spec if on_gpu else None)
        try:
            chunk = min(MAX_CHUNK, max(MIN_CHUNK, math.ceil(len(missing) / (len(workers) * CHUNKS_A_NODE))))
            with progress.bar("features", len(missing), "photos") as advance:
                chunks = iter([missing[at : at + chunk] for at in range(0, len(missing), chunk)])
                running: dict[Any, tuple[Any, list[Photo]]] = {}

                def submit(worker: Any, photos: list[Photo]) -> None:
                    paths = [str(manifest.root / photo.path) for photo in photos]
                    running[worker.compute.remote(graph, paths)] = (worker, photos)

                for worker in workers * IN_FLIGHT:
                    for photos in islice(chunks, 1):
                        submit(worker, photos)
                while running:
                    done, _ = ray.wait(list(running), num_returns=1)
                    worker, photos = running.pop(done[0])
                    for following in islice(chunks, 1):
                        submit(worker, following)
                    vectors, unreadable, engine = ray.get(done[0])
                    reasons |= {photos[row].sha256: reason for row, reason in unreadable.items()}
                    good = [row for row in range(len(photos)) if row not in unreadable]
                    if good:
                        bank.write([photos[row].sha256 for row in good], vectors[good])
                    advance(len(photos))
        except ray.exceptions.RayActorError as error:
            raise SearchError(
                f"a worker of the feature pass died {RESTARTS + 1} times ({str(error).splitlines()[0]})",
                "Is there memory enough? What it finished is kept: run the same command again.",
            ) from None
        for worker in workers:
            ray.kill(worker)  # At once, since the trials wait for their processors.
    by_path = {photo.path: reasons[photo.sha256] for photo in manifest.photos if photo.sha256 in reasons}
    if by_path and not skip_unreadable:
        shown = "; ".join(f"{path} ({reason})" for path, reason in islice(by_path.items(), 5))
        more = f"; and {len(by_path) - 5} more" if len(by_path) > 5 else ""
        raise DataError(
            f"{len(by_path)} of {len(manifest.photos)} pictures cannot be read: {shown}{more}",
            "Mend or remove them, or go on without them: --skip-unreadable.",
        )
    computed = len(missing) - len(reasons)
    return PassResult(computed, len(wanted) - len(missing), by_path, time.monotonic() - start, engine)


def _start_workers(backbone: FrozenBackbone, nodes: Sequence[Node], spec: BackboneSpec | None) -> list[Any]:
    """One actor a node; on nodes with graphics processors alone where a spec is given."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    worker = ray.remote(FeatureWorker)
    return [
        worker.options(
            num_cpus=node.cpus,
            num_gpus=1 if spec else 0,
            max_restarts=RESTARTS,
            max_task_retries=RESTARTS,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.node_id, soft=False),
        ).remote(backbone.image_size_px, node.cpus, spec)
        for node in nodes
        if node.gpus or not spec
    ]
