"""Decoded pictures of both splits in files of each machine, which all trials on it map into memory.

The whole network needs pictures, again in every epoch. Decoding them each time costs more than reading them, and a copy
for each trial more memory than there is. As with features (`rayml.gathered`) a recipe travels to the trials: the first
process of a machine that needs them decodes all pictures into two files; the others map the same pages.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from rayml.data import TRAIN, VALIDATION, Manifest, UnreadablePictures, read_photo
from rayml.end_to_end import PixelData
from rayml.errors import DataError, InputError, RaymlError
from rayml.gathered import forget_others
from rayml.images import load_pixels, preprocessing_id
from rayml.progress import Advance
from rayml.storage import FolderStore, alone

_BLOCK = 64  # Pictures in memory at a time while they are decoded.

Picture: TypeAlias = "tuple[str, str]"  # path relative to the root, sha256


@dataclass(frozen=True, eq=False)
class PixelRecipe:
    """What the pixels are made of.

    Arguments:
        root: the data set's folder, the same on every machine.
        folder: of each machine, for decoded data sets.
        image_size_px: H and W.
        train, validation: the pictures in their order.
        train_labels, validation_labels, classes, digest: as in `PixelData`.
    """

    root: Path
    folder: Path
    image_size_px: int
    train: tuple[Picture, ...]
    train_labels: NDArray[np.int32]
    validation: tuple[Picture, ...]
    validation_labels: NDArray[np.int32]
    classes: tuple[str, ...]
    digest: str

    @classmethod
    def of(cls, manifest: Manifest, image_size_px: int, folder: Path) -> PixelRecipe:
        """The recipe of a data set.

        Arguments:
            folder: of each machine, for decoded data sets.
        """
        splits = [manifest.split(split) for split in (TRAIN, VALIDATION)]
        digest = hashlib.sha256(preprocessing_id(image_size_px).encode())
        for photo in (photo for photos in splits for photo in photos):  # Their order decides which row is whose.
            digest.update(f"{photo.split} {photo.sha256} {photo.label}\n".encode())
        pictures = [tuple((photo.path, photo.sha256) for photo in photos) for photos in splits]
        places = {label: number for number, label in enumerate(manifest.classes)}
        labels = [np.array([places[photo.label] for photo in photos], np.int32) for photos in splits]
        return cls(
            manifest.root,
            folder,
            image_size_px,
            pictures[0],
            labels[0],
            pictures[1],
            labels[1],
            manifest.classes,
            digest.hexdigest(),
        )

    @property
    def place(self) -> Path:
        """The folder of this machine for the decoded pictures."""
        return self.folder / self.digest[:32]

    @property
    def bytes(self) -> int:
        """What the pixels take."""
        return (len(self.train) + len(self.validation)) * self.image_size_px**2 * 3


@dataclass(frozen=True, eq=False)
class GatheredPixels(PixelData):
    """Pixels that are memory-mapped; pickled, they are their recipe."""

    recipe: PixelRecipe

    def __reduce__(self) -> tuple[Callable[[PixelRecipe], GatheredPixels], tuple[PixelRecipe]]:
        return gather_pixels, (self.recipe,)


def gather_pixels(recipe: PixelRecipe, advance: Advance | None = None) -> GatheredPixels:
    """Decode the pictures on this machine, unless that was done.

    Arguments:
        advance: told of each picture.

    Raises:
        UnreadablePictures: names all of them.
        DataError: a picture is another one than when the data set was read.
        RaymlError: there is no room.
    """
    store = FolderStore(recipe.place)
    arrays = {}
    unreadable: dict[str, str] = {}
    with alone(recipe.folder, recipe.place.name):  # The other processes of this machine wait for the one that does it.
        for split, pictures in ((TRAIN, recipe.train), (VALIDATION, recipe.validation)):
            path = store.folder / f"{split}.npy"
            shape = (len(pictures), recipe.image_size_px, recipe.image_size_px, 3)
            found = _mapped(path, shape)
            if found is None:
                store.remove_drafts(path.name)
                try:
                    store.put(path.name, _parts(recipe, pictures, shape, advance))
                except UnreadablePictures as error:
                    unreadable |= error.reasons
                    continue
                found = _mapped(path, shape)
            elif advance:
                advance(len(pictures))
            if found is None:
                raise RaymlError(f"{path} could not be read back", "Is the disk full?")
            arrays[split] = found
        if unreadable:
            raise UnreadablePictures(unreadable, len(recipe.train) + len(recipe.validation))
        os.utime(store.folder)
        forget_others(recipe.folder)
    return GatheredPixels(
        arrays[TRAIN],
        recipe.train_labels,
        arrays[VALIDATION],
        recipe.validation_labels,
        recipe.classes,
        recipe.digest,
        recipe,
    )


def _parts(
    recipe: PixelRecipe, pictures: Sequence[Picture], shape: tuple[int, ...], advance: Advance | None
) -> Iterator[bytes | memoryview]:
    """The bytes of the file: written, not mapped, so that a full disk is an error and not the process's end."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    yield header.getvalue()
    unreadable: dict[str, str] = {}

    def decode(picture: Picture) -> NDArray[np.uint8]:
        path, sha256 = picture
        try:
            return load_pixels(read_photo(recipe.root / path, sha256), recipe.image_size_px)
        except InputError as error:
            unreadable[path] = error.message
        except OSError as error:
            raise DataError(
                f"{recipe.root / path} must stay as it was when the photos were read. Received: {error.strerror}",
                "Does each machine see DATA under the same path, and does nobody change it?",
            ) from None
        return np.zeros(shape[1:], np.uint8)

    with ThreadPoolExecutor() as pool:
        for start in range(0, len(pictures), _BLOCK):
            block = pictures[start : start + _BLOCK]
            pixels = np.stack(list(pool.map(decode, block)))
            if advance:
                advance(len(block))
            yield pixels.data.cast("B")
    if unreadable:
        raise UnreadablePictures(dict(sorted(unreadable.items())), len(pictures))


def _mapped(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    """The pixels in a file; None if it is not there or not what it should be."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return array if array.shape == shape and array.dtype == np.uint8 else None
