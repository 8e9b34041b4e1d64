"""What a search will take, worked out before anything is made: trials, epochs, processors, disk and memory."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rayml.backbones import BackboneSpec
from rayml.bundle import MAX_HEAD_BYTES
from rayml.bundle_json import MAX_CLASSES
from rayml.data import TRAIN, Manifest
from rayml.end_to_end import VALIDATION_BATCH
from rayml.errors import SearchError
from rayml.features import FeatureBank
from rayml.frozen import FrozenBackbone, find_frozen
from rayml.gathered import Recipe
from rayml.graph import MAX_MODEL_BYTES, Sizes, sizes
from rayml.pixels import PixelRecipe
from rayml.storage import FolderStore, is_bucket
from tune_jobs.checkpoints import KEPT
from tune_jobs.cluster import Node, autoscaler_maximum
from tune_jobs.config import END_TO_END, SearchSettings
from tune_jobs.grid import cells
from tune_jobs.growth import Demand
from tune_jobs.halving import rung_epochs
from tune_jobs.search import CHECKPOINTS, trial_cpus
from tune_jobs.trial import HEAD_KIND, held_numbers

MOST_FEATURES = 4096  # Until a backbone is frozen; NASNetLarge gives 4,032, Xception 2,048.
# A trial's process with TensorFlow and a small compiled head, beside the features: 0.8 GB measured.
PROCESS_BYTES = 900 * 10**6
FLOAT_BYTES = 4
# The same with a Keras network built and traced, and how many of a frozen one's largest values there are at once: with
# Xception at 150 px and 32 photos a step 1.15 GB measured in a process without Ray, of it 4.4 times the largest.
NETWORK_PROCESS_BYTES = 1000 * 10**6
LARGEST_VALUES = 5
FRAME_BYTES = 10_000  # More than names and sizes take in a head's file or a graph, beside the numbers.
COPIES = 4  # Of a head's numbers in a checkpoint: weights, Adam's two moments, the best epoch's weights.


@dataclass(frozen=True)
class Need:
    """Bytes that are needed somewhere, and those that are free there.

    Arguments:
        what: what for.
        needed, free: bytes, on a disk those that are still to be written; free is None where nobody knows.
    """

    what: str
    needed: int
    free: int | None

    def __str__(self) -> str:
        room = "" if self.free is None else f" of {_size(self.free)} free"
        return f"{self.what}: {_size(self.needed)}{room}"


@dataclass(frozen=True)
class Plan:
    """A search's cost.

    Arguments:
        trials, epochs: cells of the grid, and epochs of each at most.
        most_epochs: of all trials together, if none is stopped early; in `sync` mode exactly what halving leaves.
        rungs: the epochs after which trials may be stopped.
        cpus, gpus: of one trial.
        at_once: trials that run side by side.
        machines, machine_cpus, machine_gpus: what there is.
        photos, to_compute: in the data set, and those whose features have to be computed.
        needs: disk and memory.
        exact: the backbone is in the cache; otherwise its features are reckoned at their most.
        notes: what a person should know.
    """

    trials: int
    epochs: int
    most_epochs: int
    rungs: tuple[int, ...]
    cpus: float
    gpus: float
    at_once: int
    machines: int
    machine_cpus: int
    machine_gpus: int
    photos: int
    to_compute: int
    needs: tuple[Need, ...]
    exact: bool
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """For people."""
        rungs = f", compared after epoch {', '.join(map(str, self.rungs))}" if self.rungs else ""
        most = "" if self.exact or not self.to_compute else " (at most; the backbone is not in the cache yet)"
        return [
            f"trials: {self.trials} of at most {self.epochs} epochs{rungs}; at most {self.most_epochs} epochs in all",
            f"at once: {self.at_once}, with {self.cpus:g} CPUs and {self.gpus:g} GPUs each, on {self.machines} machine"
            f"{'s' * (self.machines > 1)} with {self.machine_cpus} CPUs and {self.machine_gpus} GPUs",
            f"photos: {self.photos}" + (f", features of {self.to_compute} to be computed" if self.to_compute else ""),
            *(f"{need}{most}" for need in self.needs),
            *self.notes,
        ]


def make_plan(
    settings: SearchSettings, manifest: Manifest, spec: BackboneSpec, nodes: Sequence[Node], run: Path, cache: Path
) -> Plan:
    """Work out what a search takes; nothing is written.

    Arguments:
        nodes: the machines that are there.
        run, cache: folders, which need not be there yet.

    Raises:
        SearchError: it cannot be done here: no machine has room for a trial, or a disk or every memory is too small,
            or no bundle could hold the winner. The message is the arithmetic.
    """
    try:
        cpus = trial_cpus(settings, nodes)
    except SearchError as error:
        if (most := autoscaler_maximum()) and most[0] >= (settings.trial_cpus or 1) and most[1] >= settings.trial_gpus:
            timeout_s = settings.scale_up_timeout_s  # Without a plan alone, the search has waited for its room by now.
            wait = (
                f"the search would wait up to {timeout_s:g} s for it"
                if timeout_s
                else "wait for it: scale_up_timeout_s"
            )
            error.hint = f"The cluster may grow to {most[0]} CPUs and {most[1]} GPUs; {wait}."
        raise
    storage = settings.storage_path
    frozen = find_frozen(spec, cache, storage)
    check_sealable(settings, manifest, frozen)
    if settings.mode == END_TO_END:
        return _plan_networks(settings, manifest, spec, frozen, nodes, cpus, run, cache)
    wanted = {photo.sha256 for photo in manifest.photos}
    bank = FeatureBank.of(frozen, cache, storage, settings.feature_dtype) if frozen else None
    to_compute = int((~bank.has(list(wanted))).sum()) if bank is not None else len(wanted)
    features = frozen.features if frozen else MOST_FEATURES
    grid, classes = cells(settings), len(manifest.classes)
    heads = [head_numbers(features, cell["size_inner"], classes) for cell in grid]
    vectors = len(manifest.photos) * features * FLOAT_BYTES
    together = 0  # Vectors that are still to be brought together for trials.
    if settings.shares_bank:
        place = Recipe.of(manifest, bank, cache / "training").place if bank is not None else None
        together = _unwritten(vectors, place)
    graph = (frozen.folder / "backbone.onnx").stat().st_size if frozen else 0
    # Trials that read the bank map one file a machine; others are sent the vectors, and hold them once more.
    kinds = {tuple(cell[name] for name in HEAD_KIND): head for cell, head in zip(grid, heads, strict=True)}
    held = FLOAT_BYTES * held_numbers(kinds.values())
    one_trial = PROCESS_BYTES + (0 if settings.shares_bank else vectors) + held
    checkpoints = [COPIES * FLOAT_BYTES * head for head in heads]
    disk = {
        **_disk_for_run(run, checkpoints, _at_once(settings, cpus, nodes), FLOAT_BYTES * max(heads), graph),
        **_bank_needs(settings, features * len(manifest.photos), features * to_compute, together, cache),
    }
    plan = _plan(settings, manifest, nodes, cpus, to_compute, disk, vectors, one_trial, frozen is not None)
    memory = _memory(nodes)
    if frozen:
        _check_disk(disk)
    if memory is not None and frozen and vectors + one_trial > memory:
        raise SearchError(
            f"one trial needs {_size(vectors + one_trial)} of memory on a machine: {_size(PROCESS_BYTES)} for "
            f"TensorFlow, {_size(vectors if settings.shares_bank else 2 * vectors)} for the features, "
            f"{_size(held)} for heads and Adam. Received: at most {_size(memory)}",
            "Use a machine with more, fewer photos, or a smaller --size-inner.",
        )
    return plan


def check_sealable(settings: SearchSettings, manifest: Manifest, frozen: FrozenBackbone | None) -> None:
    """Refuse what no bundle could hold.

    Arguments:
        frozen: the backbone; without one, only what is too much for any is refused.

    Raises:
        SearchError: too many classes, or too large a head.
    """
    classes = len(manifest.classes)
    if classes > MAX_CLASSES:
        raise SearchError(f"a bundle has at most {MAX_CLASSES} classes. Received: {classes}", "Merge some of them.")
    features = frozen.features if frozen else 1
    graph = (frozen.folder / "backbone.onnx").stat().st_size if frozen else 0
    largest = max(cell["size_inner"] for cell in cells(settings))
    head = FLOAT_BYTES * head_numbers(features, largest, classes) + FRAME_BYTES
    if head > MAX_HEAD_BYTES or graph + head > MAX_MODEL_BYTES:
        raise SearchError(
            f"a bundle holds a head of at most {_size(MAX_HEAD_BYTES)}, and of {_size(MAX_MODEL_BYTES)} with its "
            f"backbone. Received: {_size(head)} with --size-inner {largest} and {classes} classes, and a backbone of "
            f"{_size(graph)}",
            "Use a smaller --size-inner.",
        )


def head_numbers(features: int, size_inner: int, classes: int) -> int:
    """How many weights a head has."""
    return (features + 1) * size_inner + (size_inner + 1) * classes


def _plan(
    settings: SearchSettings,
    manifest: Manifest,
    nodes: Sequence[Node],
    cpus: float,
    to_compute: int,
    disk: Iterable[Need],
    shared: int,
    one_trial: int,
    exact: bool,
) -> Plan:
    """The plan, where a machine needs `shared` bytes of memory and each trial on it `one_trial` beside."""
    at_once, memory = _at_once(settings, cpus, nodes), _memory(nodes)
    here = min(at_once, max(_at_once(settings, cpus, [node]) for node in nodes))
    needed = shared + here * one_trial
    return Plan(
        trials=settings.trials,
        epochs=settings.epochs,
        most_epochs=_most_epochs(settings, settings.trials),
        rungs=_rungs(settings),
        cpus=cpus,
        gpus=settings.trial_gpus,
        at_once=at_once,
        machines=len(nodes),
        machine_cpus=sum(node.cpus for node in nodes),
        machine_gpus=sum(node.gpus for node in nodes),
        photos=len(manifest.photos),
        to_compute=to_compute,
        needs=(*disk, Need(f"memory for {here} trials on one machine", needed, memory)),
        exact=exact,
        notes=tuple(_notes(settings, at_once, here, needed, memory)),
    )


def _memory(nodes: Sequence[Node]) -> int | None:
    return max((node.memory_bytes for node in nodes), default=0) or None


def _plan_networks(
    settings: SearchSettings,
    manifest: Manifest,
    spec: BackboneSpec,
    frozen: FrozenBackbone | None,
    nodes: Sequence[Node],
    cpus: float,
    run: Path,
    cache: Path,
) -> Plan:
    """In mode end-to-end: pixels instead of features, and the whole network in each trial."""
    graph = frozen.graph() if frozen else b""
    network = sizes(graph, settings.unfreeze) if graph else Sizes(0, 0, 0)
    features = frozen.features if frozen else MOST_FEATURES
    grid = cells(settings)
    head = max(head_numbers(features, cell["size_inner"], len(manifest.classes)) for cell in grid)
    checkpoint = COPIES * (FLOAT_BYTES * head + network.top_weights)
    largest = min(max(cell["batch_size"] for cell in grid), len(manifest.split(TRAIN)))
    batch = max(VALIDATION_BATCH, largest)
    one_trial = (
        NETWORK_PROCESS_BYTES
        + len(graph) * (1 + settings.mixed_precision)
        + batch * (LARGEST_VALUES * network.largest_value + 2 * network.top_values)  # With the gradients of the top's.
        + FLOAT_BYTES * held_numbers([head])
        + COPIES * network.top_weights
    )
    pixels = len(manifest.photos) * 3 * spec.image_size_px**2
    decoded = PixelRecipe.of(manifest, spec.image_size_px, cache / "pixels").place
    checkpoints, at_once = [checkpoint] * settings.trials, _at_once(settings, cpus, nodes)
    graphs = len(graph) * (2 if settings.unfreeze else 1)  # A trained backbone's is written before the bundle's.
    disk = {
        **_disk_for_run(run, checkpoints, at_once, FLOAT_BYTES * head, graphs),
        **_on_disk("disk for the cache", _unwritten(pixels, decoded), cache),
    }
    # Pages of a mapped file: memory that the system takes back where it is short of it.
    plan = _plan(settings, manifest, nodes, cpus, 0, disk, pixels, one_trial, frozen is not None)
    if frozen is None:
        told = "the network's memory and disk are not in it: the backbone is not in the cache yet"
        return replace(plan, notes=(*plan.notes, told))
    _check_disk(disk)
    if (memory := _memory(nodes)) is not None and one_trial > memory:
        raise SearchError(
            f"one trial needs {_size(one_trial)} of memory on a machine, {_size(one_trial - NETWORK_PROCESS_BYTES)} of "
            f"it for the network at {batch} photos a step. Received: at most {_size(memory)}",
            "Use a machine with more, a smaller --batch-size or --image-size, or --mode features.",
        )
    return plan


def _bank_needs(settings: SearchSettings, numbers: int, new: int, together: int, cache: Path) -> dict[Need, int | None]:
    """Where features go: to what machines share, else to the cache, where they are also brought together for trials.

    Arguments:
        numbers, new: of all vectors, and of those to be computed.
        together: bytes of the vectors that are to be brought together.

    Returns:
        The needs, each with its file system; see `_on_disk`.
    """
    storage, size = settings.storage_path, np.dtype(settings.feature_dtype).itemsize
    if storage is None:
        return _on_disk("disk for the cache", size * new + together, cache)
    if is_bucket(storage):
        features: dict[Need, int | None] = {Need(f"features, in {storage}", size * new, None): None}
        together += size * numbers if together else 0  # Copies of the shards, beside.
    else:
        features = _on_disk(f"disk for features, in {storage}", size * new, Path(storage))
    return {**features, **_on_disk("disk for the cache, on each machine", together, cache)}


def _disk_for_run(
    run: Path, checkpoints: Sequence[int], at_once: int, head: int, graphs: int
) -> dict[Need, int | None]:
    """What RUN takes: checkpoints, of those that are written at once one more, and a bundle with its head twice."""
    kept = _unwritten(KEPT * sum(checkpoints), run / CHECKPOINTS)
    return _on_disk("disk for RUN", kept + at_once * max(checkpoints) + 2 * head + graphs, run)


def _at_once(settings: SearchSettings, cpus: float, nodes: Sequence[Node]) -> int:
    limit = min(settings.trials, settings.max_concurrent or settings.trials)
    return Demand(cpus, settings.trial_gpus, limit).places(nodes)


def _rungs(settings: SearchSettings) -> tuple[int, ...]:
    if settings.scheduler == "none":
        return ()
    return rung_epochs(settings.epochs, settings.first_rung, settings.reduction_factor)


def _most_epochs(settings: SearchSettings, trials: int) -> int:
    if settings.scheduler != "sync":
        return trials * settings.epochs
    total, done = 0, 0
    for rung in (*_rungs(settings), settings.epochs):
        total, done = total + trials * (rung - done), rung
        trials = max(1, int(trials / settings.reduction_factor))
    return total


def _notes(settings: SearchSettings, at_once: int, here: int, needed: int, memory: int | None) -> list[str]:
    found = []
    if settings.scheduler != "none" and not _rungs(settings):
        found.append(
            f"{settings.scheduler}: no trial is stopped early, since the first comparison would come after epoch "
            f"{settings.first_rung} of {settings.epochs}"
        )
    elif settings.scheduler == "asha" and at_once == 1 and settings.trials > 1:
        found.append(
            "asha: one trial at a time: each is compared only with those before it, so the first is never stopped and "
            "the others only where a better one came earlier; --scheduler sync compares all of them"
        )
    if memory is not None and needed > memory:
        found.append(
            f"memory: {here} trials at once may want {_size(needed)} of {_size(memory)}; --max-concurrent would help"
        )
    return found


def _check_disk(disk: dict[Need, int | None]) -> None:
    """Refuse what does not fit; what goes to one file system has to find room there together."""
    for device in {device for device in disk.values() if device is not None}:
        needs = [need for need, its in disk.items() if its == device and need.needed]
        free = min((need.free for need in needs if need.free is not None), default=0)
        if sum(need.needed for need in needs) > free:
            listed = " and ".join(f"{need.what} needs {_size(need.needed)}" for need in needs)
            raise SearchError(
                f"{listed}. Received: {_size(free)} free on that file system",
                "Free some space, or name other folders: --out, --cache, --storage-path.",
            )


def _unwritten(needed: int, folder: Path | None) -> int:
    """Bytes that are still to be written of what goes into a folder; files that lie there whole are."""
    there = sum(FolderStore(folder).sizes().values()) if folder is not None else 0
    return max(0, needed - there)


def _on_disk(what: str, needed: int, folder: Path) -> dict[Need, int | None]:
    """A need of room where a folder is or would be made, with the number of that file system; None where unknown."""
    there = next((parent for parent in (folder, *folder.parents) if parent.exists()), None)
    try:
        free, device = (shutil.disk_usage(there).free, there.stat().st_dev) if there else (None, None)
    except OSError:
        free = device = None
    return {Need(what, needed, free): device}


def _size(count: int) -> str:
    for unit, factor in (("GB", 10**9), ("MB", 10**6)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count / 1000:.0f} kB"
