"""The checkpoints of the trials: RUN/checkpoints/TRIAL/EPOCH.npz, the newest two of each.

A trial writes its own and finds its own again, however it came to an end: a killed process, a pause, a killed driver,
a node that went away, a run that was moved. Ray Tune's own checkpoints would be written twice (by the trial, then
copied) and found again only through Ray's state. A file is written beside its place and renamed, so that a process
that is killed leaves the last whole one. Nothing waits for the disk: what a power cut spoils is found out by the zip's
checksums when it is read, and the one before serves.
"""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from contextlib import suppress
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayml.errors import RaymlError, SearchError
from rayml.head import HeadWeights
from rayml.training import EpochMetrics
from tune_jobs.records import EpochRow

KEPT = 2  # The newest, and the one before for when the newest is damaged.
_TUNED = "best_tuned_"

_DAMAGED = (
    OSError,
    ValueError,
    KeyError,
    IndexError,
    EOFError,
    RuntimeError,  # zipfile: a flag that says encrypted, a method that it does not know
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
    RaymlError,  # weights that do not belong together
)


@dataclass(frozen=True, eq=False)
class BestEpoch:
    """The best epoch of a trial so far: highest validation accuracy, the earlier one where two are equal.

    Arguments:
        epoch: 1 for the first.
        val_accuracy: what was measured after it.
        weights: the head after it.
        tuned: the backbone's weights after it that had been trained by then, by their place; see
            `rayml.end_to_end.EndToEndTrainer.tuned`.
    """

    epoch: int
    val_accuracy: float
    weights: HeadWeights
    tuned: dict[int, NDArray[np.float32]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """All that a trial needs to go on as if nothing had happened.

    Arguments:
        state: weights, optimiser state, random state and epochs done, as the trainer gives them.
        best: its best epoch.
        history: its epochs so far, from the first, at least one.
    """

    state: dict[str, NDArray[Any]]
    best: BestEpoch
    history: tuple[EpochRow, ...]


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Add the checkpoint of a trial's last epoch and remove those that are older than the one before.

    Arguments:
        folder: RUN/checkpoints/TRIAL; made where it is not there.

    Raises:
        OSError: the disk is full or read-only; the older ones stay.
    """
    arrays = {f"state_{name}": array for name, array in checkpoint.state.items()}
    arrays |= {f"best_{name}": array for name, array in checkpoint.best.weights.arrays().items()}
    arrays |= {f"{_TUNED}{place}": array for place, array in checkpoint.best.tuned.items()}
    arrays |= {
        "best_epoch": np.array(checkpoint.best.epoch),
        "best_val_accuracy": np.array(checkpoint.best.val_accuracy),
    }
    arrays["history"] = np.array([(*astuple(row.metrics), row.seconds) for row in checkpoint.history])
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / f"{len(checkpoint.history):05}.npz"
    draft = folder / f".{place.name}-{os.getpid()}"
    try:
        with draft.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        draft.replace(place)
    except OSError:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise
    # Drafts, too: of processes of this trial that were killed while they wrote.
    for old in (*_by_epoch(folder)[KEPT:], *folder.glob(".*.npz-*")):
        old.unlink(missing_ok=True)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read one file that `write_checkpoint` wrote.

    Raises:
        SearchError: it is damaged or not there.
    """
    try:
        # NumPy leaves a file that it opened itself open where it turns out to be damaged.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        state = {name.removeprefix("state_"): array for name, array in arrays.items() if name.startswith("state_")}
        weights = HeadWeights(*(arrays[f"best_{name}"] for name in HeadWeights.NAMES))
        tuned = {int(name.removeprefix(_TUNED)): array for name, array in arrays.items() if name.startswith(_TUNED)}
        best = BestEpoch(int(arrays["best_epoch"]), float(arrays["best_val_accuracy"]), weights, tuned)
        history = tuple(
            EpochRow(path.parent.name, epoch, EpochMetrics(*map(float, figures[:4])), float(figures[4]))
            for epoch, figures in enumerate(arrays["history"], start=1)
        )
        if len(history) != int(path.stem):
            raise ValueError(f"it holds {len(history)} epochs")
        return Checkpoint(state, best, history)
    except _DAMAGED as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        name = f"{path.parent.name}/{path.name}"
        raise SearchError(f"the checkpoint {name} is damaged ({' '.join(reason.split())})") from None


def newest_checkpoint(folder: Path) -> tuple[Checkpoint | None, tuple[str, ...]]:
    """The newest checkpoint of a trial that can be read, and what is wrong with those newer than it.

    Arguments:
        folder: RUN/checkpoints/TRIAL, which need not be there.
    """
    damaged: list[str] = []
    for path in _by_epoch(folder):
        try:
            return read_checkpoint(path), tuple(damaged)
        except SearchError as error:
            damaged.append(error.message)
    return None, tuple(damaged)


def _by_epoch(folder: Path) -> list[Path]:
    """The newest first."""
    return sorted(folder.glob("[0-9]*.npz"), reverse=True)
