"""Training data brought together in files of each machine, which all trials on it map into memory.

A search hands its data to every trial. Through Ray's object store that is a copy for each machine and, as tensors, one
more for each trial and head size. Here a recipe travels instead: which pictures of which bank, in which order. The
first process of a machine that needs it brings the vectors together in two files; the others map the same pages.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayml.data import TRAIN, VALIDATION, Manifest
from rayml.errors import RaymlError
from rayml.features import FeatureBank, array_header, packed
from rayml.storage import FolderStore, alone
from rayml.training import TrainingData

_BLOCK_BYTES = 32 << 20  # Of vectors in memory at a time while they are brought together.
_WAIT_S = 90.0  # A folder on NFS may show after a minute alone what another machine has written.
_KEPT = 3  # Of the data sets used last; each is as large as its vectors, and quickly made again.


@dataclass(frozen=True, eq=False)
class Recipe:
    """What training data is made of.

    Arguments:
        bank: holds the vectors.
        folder: of each machine, for data sets brought together.
        train, validation: the sha256 of the pictures, 32 bytes each, in their order.
        train_labels, validation_labels, classes, digest: as in `TrainingData`.
    """

    bank: FeatureBank
    folder: Path
    train: NDArray[np.bytes_]
    train_labels: NDArray[np.int32]
    validation: NDArray[np.bytes_]
    validation_labels: NDArray[np.int32]
    classes: tuple[str, ...]
    digest: str

    @classmethod
    def of(cls, manifest: Manifest, bank: FeatureBank, folder: Path) -> Recipe:
        """The recipe of a data set.

        Arguments:
            bank: holds the features of its pictures.
            folder: of each machine, for data sets brought together.
        """
        numbers = {label: number for number, label in enumerate(manifest.classes)}
        splits = [manifest.split(split) for split in (TRAIN, VALIDATION)]
        pictures = [packed([photo.sha256 for photo in photos]) for photos in splits]
        # In their order, which the data set's own digest leaves out: a row belongs to a photo by its place alone.
        digest = hashlib.sha256(f"{bank.folder.name} {manifest.digest}".encode())
        for names in pictures:
            digest.update(names.tobytes())
        labels = [np.array([numbers[photo.label] for photo in photos], np.int32) for photos in splits]
        return cls(
            bank=bank,
            folder=folder,
            train=pictures[0],
            train_labels=labels[0],
            validation=pictures[1],
            validation_labels=labels[1],
            classes=manifest.classes,
            digest=digest.hexdigest(),
        )

    @property
    def place(self) -> Path:
        """The folder of this machine for the vectors brought together."""
        return self.folder / self.digest[:32]


@dataclass(frozen=True, eq=False)
class GatheredData(TrainingData):
    """Training data whose vectors are memory-mapped; pickled, it is its recipe."""

    recipe: Recipe

    def __reduce__(self) -> tuple[Callable[[Recipe], GatheredData], tuple[Recipe]]:
        return gather, (self.recipe,)


def gather(recipe: Recipe) -> GatheredData:
    """Bring the data together on this machine, unless that was done.

    Raises:
        KeyError: a picture that is not in the bank.
        RaymlError: a shard is damaged or cannot be copied here, or there is no room on the disk or in memory.
    """
    store = FolderStore(recipe.place)
    arrays: dict[str, Any] = {}
    with alone(recipe.folder, recipe.place.name):  # The other processes of this machine wait for the one that does it.
        for split, digests in (("train", recipe.train), ("validation", recipe.validation)):
            path = store.folder / f"{split}.npy"
            shape = (len(digests), recipe.bank.features)
            arrays[split] = _mapped(path, shape)
            if arrays[split] is None:
                recipe.bank.wait_for(digests, _WAIT_S)
                store.remove_drafts(path.name)
                store.put(path.name, _parts(recipe.bank, digests))
                arrays[split] = _mapped(path, shape)
            if arrays[split] is None:
                raise RaymlError(f"{path} could not be read back", "Is the disk full?")
        os.utime(store.folder)
        forget_others(recipe.folder)
    return GatheredData(
        arrays["train"],
        recipe.train_labels,
        arrays["validation"],
        recipe.validation_labels,
        recipe.classes,
        recipe.digest,
        recipe,
    )


def in_memory(recipe: Recipe) -> TrainingData:
    """The same data in this process's memory, to be sent to machines that cannot read the bank; no folder is used.

    Raises:
        KeyError, RaymlError: as `rayml.features.FeatureBank.rows`.
    """
    return TrainingData(
        recipe.bank.rows(recipe.train),
        recipe.train_labels,
        recipe.bank.rows(recipe.validation),
        recipe.validation_labels,
        recipe.classes,
        recipe.digest,
    )


def _parts(bank: FeatureBank, digests: NDArray[np.bytes_]) -> Iterator[bytes | memoryview]:
    """The bytes of the file: written, not mapped, so that a full disk is an error and not the process's end."""
    yield array_header(len(digests), bank.features)
    block = max(1, _BLOCK_BYTES // (4 * bank.features))
    for start in range(0, len(digests), block):
        yield bank.rows(digests[start : start + block]).data.cast("B")


def _mapped(path: Path, shape: tuple[int, int]) -> NDArray[np.float32] | None:
    """The vectors in a file; None if it is not there or not what it should be.

    Raises:
        RaymlError: they are more than the system gives a process.
    """
    try:
        # Pages are copied when written to, which nobody does: TensorFlow takes only memory that could be.
        array = np.load(path, mmap_mode="c", allow_pickle=False)
    except OSError as error:
        if error.errno == errno.ENOMEM:  # Linux counts pages that could be written as if all of them were.
            raise RaymlError(
                f"{path} needs {4 * shape[0] * shape[1] / 1e9:.1f} GB of memory, which this machine does not give",
                "Use a machine with more, or fewer photos.",
            ) from None
        return None
    except (ValueError, EOFError):
        return None
    return array if array.shape == shape and array.dtype == np.float32 else None


def forget_others(folder: Path) -> None:
    """Remove the data sets that were not used for longest, but for those that are being made.

    A process that maps one keeps it.
    """
    with suppress(OSError):
        used = sorted((path for path in folder.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
        for path in used[:-_KEPT]:
            with alone(folder, path.name, wait=False) as nobody_makes_it:
                if nobody_makes_it:
                    shutil.rmtree(path, ignore_errors=True)
