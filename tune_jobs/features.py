"""The feature pass: every picture that the bank lacks goes through the frozen backbone once, spread over the cluster.

Each node works with one Ray actor on all of its processors, a node with graphics processors with one for each of
those. Ray is asked for one processor each, so that a node takes part where others use some of it. The driver hands out
chunks of pictures; a finished chunk is a shard of the bank, so that an interrupted pass keeps what it finished. Where
the bank lies on shared storage the workers write to it, otherwise the driver does. Pictures are read where they are
computed: on more than one node the folder must lie where all of them see it.

A worker that dies loses nothing: its chunk is done again, by itself or by others where its node is gone. A chunk that
kills workers twice is halved until it is a single picture. A worker's death may take the answer to an earlier chunk
with it, so that one is blamed; a single picture is therefore tried once more by a worker that has nothing else in hand.
If that one dies too, the picture is named like any unreadable one.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rayml.backbones import BackboneSpec
from rayml.data import Manifest, Photo, UnreadablePictures
from rayml.errors import RaymlError, SearchError, first_line
from rayml.features import FeatureBank
from rayml.frozen import FrozenBackbone
from rayml.images import stack_pixels
from rayml.progress import Advance, Progress
from tune_jobs.cluster import Node, gpu_places
from tune_jobs.feature_worker import FeatureWorker, store

CHUNKS_A_WORKER = 32  # Progress, and what an interruption may lose: a thirty-second of the pass, within
MIN_CHUNK, MAX_CHUNK = 32, 1024  # bounds that keep shards neither tiny nor
MAX_SHARD_BYTES = 16 << 20  # larger than memory likes: the driver has a few of them at a time, however large the data.
IN_FLIGHT = 2  # Chunks a worker has in hand, so that it never waits for the driver.
STARTS = 3  # Of a worker that dies before it is ready; its node is then given up.
DEATHS_IN_A_ROW = 10  # Without any chunk finished or picture proved between: then it is not the pictures.
SAY_WAITING_AFTER_S = 60.0
_MEMORY, _AGAIN = "Is there memory enough?", "What they finished is kept: run the same command again."


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


def feature_pass(
    manifest: Manifest,
    backbone: FrozenBackbone,
    bank: FeatureBank,
    nodes: Sequence[Node],
    *,
    spec: BackboneSpec,
    skip_unreadable: bool,
    progress: Progress,
    shared: bool = False,
    gpus_a_worker: float = 1.0,
) -> PassResult:
    """Bring the bank up to date with a data set.

    Arguments:
        manifest: whose pictures are wanted; the same picture under two names is computed once.
        nodes: where to compute.
        spec: what `backbone` was frozen from.
        skip_unreadable: go on without pictures that cannot be read, instead of refusing the data set.
        shared: the bank lies where every node can write it, which each worker proves before it gets pictures.
        gpus_a_worker: the share of a graphics processor that a worker takes where there are any; 0 leaves them out, and
            so does a backbone in int8, which Keras does not compute.

    Raises:
        UnreadablePictures: there are some, and they are not to be skipped. The other features are kept.
        DataError: a picture is another one than in the manifest.
        SearchError: workers die whatever they compute, or a machine computes other features.
        RaymlError: the bank cannot be read or written, here or on a node.
    """
    start = time.monotonic()
    wanted = {photo.sha256: photo for photo in manifest.photos}
    there = bank.has(list(wanted))
    missing = [photo for photo, present in zip(wanted.values(), there, strict=True) if not present]
    reasons: dict[str, str] = {}  # by sha256
    engine = ""
    if missing:
        share = gpus_a_worker if backbone.precision == "float32" else 0.0
        slots = [slot for node in nodes for slot in _slots(node, share)]
        with progress.bar("features", len(missing), "photos") as advance:
            crew = _Crew(manifest.root, backbone, bank, slots, spec, shared, progress, advance)
            try:
                crew.work_off(missing)
            finally:
                crew.dismiss()  # At once, since the trials wait for their processors.
        reasons, engine = crew.unreadable, ", ".join(sorted(crew.engines))
    by_path = {photo.path: reasons[photo.sha256] for photo in manifest.photos if photo.sha256 in reasons}
    if by_path and not skip_unreadable:
        raise UnreadablePictures(by_path, len(manifest.photos))
    computed = len(missing) - len(reasons)
    return PassResult(computed, len(wanted) - len(missing), by_path, time.monotonic() - start, engine)


@dataclass(eq=False)
class _Chunk:
    """Pictures to compute together.

    Arguments:
        deaths: workers that died over them, or over what they had in hand beside them.
        alone: a worker is to have nothing else in hand, so that its death proves something.
    """

    photos: list[Photo]
    deaths: int = 0
    alone: bool = False


class _Chunks:
    """What is still to be handed out."""

    def __init__(self, photos: list[Photo], size: int) -> None:
        self._fresh = iter(range(0, len(photos), size))
        self._photos, self._size = photos, size
        self._again: deque[_Chunk] = deque()

    def take(self, *, idle: bool) -> _Chunk | None:
        """The next one: fresh ones first, so that a chunk that kills workers holds up no others.

        Arguments:
            idle: the worker has nothing in hand; others get none that is to be computed alone.
        """
        for at in self._fresh:
            return _Chunk(self._photos[at : at + self._size])
        for chunk in self._again:
            if idle or not chunk.alone:
                self._again.remove(chunk)
                return chunk
        return None

    def give_back(self, chunk: _Chunk) -> None:
        """It was not begun."""
        self._again.appendleft(chunk)

    def killed(self, chunk: _Chunk) -> Photo | None:
        """A worker died, over it as it seems: do it again, in halves or alone; the picture, once it is proved."""
        chunk.deaths += 1
        if chunk.alone:
            return chunk.photos[0]
        if chunk.deaths < 2:
            self._again.append(chunk)
        elif len(chunk.photos) == 1:
            chunk.alone = True
            self._again.append(chunk)
        else:
            middle = len(chunk.photos) // 2
            self._again += [_Chunk(half, deaths=1) for half in (chunk.photos[:middle], chunk.photos[middle:])]
        return None


@dataclass(eq=False)
class _Slot:
    """A place for a worker: a node, or a share of its graphics processors.

    Arguments:
        threads: what its worker computes with.
        gpus: what its worker asks Ray for, beside one processor.
        starts: workers here that died before they were ready.
        running: what its worker has been asked for, oldest first; None stands for loading the backbone.
    """

    node: Node
    threads: int
    gpus: float
    starts: int = 0
    ready: bool = False
    worker: Any = None
    running: dict[Any, _Chunk | None] = field(default_factory=dict)

    def wants(self, depth: int) -> bool:
        """Whether its worker may be given another chunk when it has at most `depth` in hand."""
        alone = any(chunk is not None and chunk.alone for chunk in self.running.values())
        return self.ready and len(self.running) <= depth and not alone


def _slots(node: Node, gpus_a_worker: float) -> list[_Slot]:
    if not (node.gpus and gpus_a_worker):
        return [_Slot(node, node.cpus, 0.0)]
    count = min(node.cpus, gpu_places(node.gpus, gpus_a_worker))
    return [_Slot(node, node.cpus // count, gpus_a_worker) for _ in range(count)]


def _hand_out(slots: Sequence[_Slot], chunks: _Chunks, ask: Callable[[_Slot, _Chunk], Any]) -> None:
    """Give the workers what they may take: one chunk for each, before there is a second for any.

    Arguments:
        ask: has a slot's worker compute a chunk; what its answer will be known by.
    """
    for depth in range(IN_FLIGHT):
        for slot in slots:
            if slot.wants(depth) and (chunk := chunks.take(idle=not slot.running)):
                slot.running[ask(slot, chunk)] = chunk


class _Crew:
    """The workers of one pass."""

    def __init__(
        self,
        root: Path,
        backbone: FrozenBackbone,
        bank: FeatureBank,
        slots: list[_Slot],
        spec: BackboneSpec,
        shared: bool,
        progress: Progress,
        advance: Advance,
    ) -> None:
        import ray

        self.unreadable: dict[str, str] = {}  # sha256 -> reason
        self.engines: set[str] = set()
        self._root, self._backbone, self._bank, self._slots = root, backbone, bank, slots
        self._spec, self._shared, self._progress, self._advance = spec, shared, progress, advance
        self._left = 0
        self._deaths_in_a_row = 0
        pictures, expected = backbone.golden()
        pixels = stack_pixels(pictures.values(), backbone.image_size_px)
        # Once into Ray's object store, from where each node takes them once.
        mark = bank.store.mark() if shared else ""
        needed = (backbone.graph(), pixels, expected, mark, backbone.precision)
        self._needed = [ray.put(part) for part in needed]
        for slot in slots:
            self._start(slot)

    def work_off(self, photos: list[Photo]) -> None:
        """Compute all of them."""
        import ray

        fair = max(MIN_CHUNK, math.ceil(len(photos) / (len(self._slots) * CHUNKS_A_WORKER)))
        chunks = _Chunks(photos, max(1, min(fair, MAX_CHUNK, MAX_SHARD_BYTES // (4 * self._backbone.features))))
        self._left = len(photos)
        while self._left:
            pending = {ref: slot for slot in self._slots for ref in slot.running}
            done, _ = ray.wait(list(pending), num_returns=1, timeout=None if self.engines else SAY_WAITING_AFTER_S)
            if not done:
                self._progress.say("features: waiting for the cluster to have processors free")
                continue
            slot = pending[done[0]]
            if error := self._collect(slot, done[0]):
                self._bury(slot, chunks, error)
            _hand_out(self._slots, chunks, self._ask)

    def dismiss(self) -> None:
        """End all workers."""
        import ray

        for slot in self._slots:
            ray.kill(slot.worker)

    def _ask(self, slot: _Slot, chunk: _Chunk) -> Any:
        paths = [str(self._root / photo.path) for photo in chunk.photos]
        return slot.worker.compute.remote(paths, [photo.sha256 for photo in chunk.photos])

    def _start(self, slot: _Slot) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        options = {
            "num_cpus": 1,  # All of a node's are never free where anything else runs on it.
            "num_gpus": slot.gpus,
            "max_restarts": 0,  # Ray would not say over which picture it died.
            "scheduling_strategy": NodeAffinitySchedulingStrategy(slot.node.node_id, soft=False),
        }
        spec, bank = self._spec if slot.gpus else None, self._bank if self._shared else None
        slot.worker = (
            ray.remote(FeatureWorker).options(**options).remote(self._backbone.image_size_px, slot.threads, spec, bank)
        )
        slot.ready, slot.running = False, {slot.worker.load.remote(*self._needed): None}

    def _collect(self, slot: _Slot, ref: Any) -> Exception | None:
        """Take in what a worker answered; the error if it is dead and did not."""
        import ray

        try:
            answer = ray.get(ref)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, RaymlError):
                raise error.cause from None
            raise
        except ray.exceptions.RayError as error:
            return error
        chunk = slot.running.pop(ref)
        if chunk is None:
            slot.ready = True
            self.engines.add(answer)
            return None
        digests = [photo.sha256 for photo in chunk.photos]
        if answer.vectors is not None:
            store(self._bank, digests, answer.vectors, answer.unreadable)
        elif good := [digest for row, digest in enumerate(digests) if row not in answer.unreadable]:
            self._bank.note(good)
        self.unreadable |= {chunk.photos[row].sha256: reason for row, reason in answer.unreadable.items()}
        self._deaths_in_a_row = 0
        self._done(len(chunk.photos))
        return None

    def _bury(self, slot: _Slot, chunks: _Chunks, error: Exception) -> None:
        """A worker is dead: see to its chunks, and start another one where its node lives."""
        import ray

        lost = [chunk for ref, chunk in list(slot.running.items()) if self._collect(slot, ref)]
        slot.running.clear()
        ray.kill(slot.worker)
        reason = first_line(error)
        if lost and lost[0] is None:
            slot.starts += 1
        for chunk in reversed(lost[1:]):
            if chunk:
                chunks.give_back(chunk)
        alive = any(node["NodeID"] == slot.node.node_id and node["Alive"] for node in ray.nodes())  # type: ignore[no-untyped-call]
        if lost and lost[0]:
            if not alive:
                chunks.give_back(lost[0])
            elif culprit := chunks.killed(lost[0]):
                self.unreadable[culprit.sha256] = "the process that reads it dies"
                self._deaths_in_a_row = 0
                self._done(1)
        if alive:
            self._deaths_in_a_row += 1
        if self._deaths_in_a_row >= DEATHS_IN_A_ROW:
            raise SearchError(
                f"workers of the feature pass died {DEATHS_IN_A_ROW} times in a row ({reason})",
                f"{_MEMORY} {_AGAIN}",
            )
        if alive and slot.starts < STARTS:
            self._progress.say(f"features: a worker died and is started again ({reason})")
            self._start(slot)
            return
        ended = f"is given up, whose workers died {STARTS} times before they were ready" if alive else "is gone"
        self._slots.remove(slot)
        if not self._slots:
            raise SearchError(
                f"no machine is left for the feature pass: the last one {ended} ({reason})",
                f"{_MEMORY} {_AGAIN}" if alive else _AGAIN,
            )
        self._progress.say(f"features: a machine {ended}; the others go on ({reason})")

    def _done(self, count: int) -> None:
        self._left -= count
        self._advance(count)
