"""Folders of labelled photos as a manifest: which picture, which class, which split, which content.

A class is a folder, its photos are the files in it that are named .jpg, .jpeg, .png or .webp. Two layouts are read:

    DATA/train/<class>/*.jpg and DATA/validation/<class>/*.jpg
    DATA/<class>/*.jpg (or DATA/train/<class>/*.jpg alone), with a fraction to be split off for validation

Nothing is decoded here: a photo is known by the SHA-256 of its bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from rayml.errors import DataError, UsageError
from rayml.folders import FolderReader, entries, kind, shown, told_apart
from rayml.progress import Progress

TRAIN, VALIDATION, EVALUATION = "train", "validation", "evaluation"

_SHOWN_REASONS = 5  # Of pictures that cannot be read: a reason may be a sentence.

_LAYOUT_HINT = (
    "Expected DATA/train/<class>/*.jpg and DATA/validation/<class>/*.jpg, or DATA/<class>/*.jpg with "
    "--validation-fraction 0.2."
)


@dataclass(frozen=True)
class Photo:
    """One labelled photo.

    Arguments:
        path: relative to the manifest's root, with "/" between its parts.
        label: its class, the name of its folder.
        split: "train", "validation" or "evaluation".
        sha256: of its bytes, 64 hexadecimal digits.
    """

    path: str
    label: str
    split: str
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """All photos of a data set.

    Arguments:
        root: the folder that `Photo.path` is relative to, absolute.
        classes: their names; a class's number is its place here.
        photos: ordered by path.
        ignored: what lies in the folders and is not used, relative to root, folders with a "/" at their end.
    """

    root: Path
    classes: tuple[str, ...]
    photos: tuple[Photo, ...]
    ignored: tuple[str, ...]

    @property
    def digest(self) -> str:
        """SHA-256 over split, label and content of all photos; names, order and place do not matter."""
        rows = sorted((photo.split, photo.label, photo.sha256) for photo in self.photos)
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def split(self, name: str) -> tuple[Photo, ...]:
        """The photos of one split, ordered by path."""
        return tuple(photo for photo in self.photos if photo.split == name)

    def counts(self) -> dict[str, dict[str, int]]:
        """How many photos each split has of each class, zeros included."""
        splits = sorted({photo.split for photo in self.photos})
        counts = {split: dict.fromkeys(self.classes, 0) for split in splits}
        for photo in self.photos:
            counts[photo.split][photo.label] += 1
        return counts

    def straddling(self) -> tuple[tuple[Photo, ...], ...]:
        """The photos that lie in more than one split with the same bytes, grouped: they make a validation too kind."""
        groups: dict[str, list[Photo]] = {}
        for photo in self.photos:
            groups.setdefault(photo.sha256, []).append(photo)
        return tuple(tuple(group) for group in groups.values() if len({photo.split for photo in group}) > 1)

    def without(self, paths: Collection[str]) -> Manifest:
        """This manifest less some photos, which it then lists as ignored.

        Arguments:
            paths: `Photo.path` of those to leave out.

        Raises:
            DataError: a path is none of its photos, or a class would be left without photos in a split.
        """
        unknown = set(paths) - {photo.path for photo in self.photos}
        if unknown:
            raise DataError(f"expected paths of photos of this data. Received: {shown(unknown)}")
        photos = tuple(photo for photo in self.photos if photo.path not in paths)
        left = replace(self, photos=photos, ignored=tuple(sorted({*self.ignored, *paths})))
        _check_complete(left, sorted({photo.split for photo in self.photos}))
        return left


class UnreadablePictures(DataError):
    """Pictures of a data set that cannot be read.

    Arguments:
        reasons: why, by `Photo.path`.
        total: how many pictures were to be read.
        hint: as in `RaymlError`.
    """

    def __init__(
        self,
        reasons: dict[str, str],
        total: int,
        hint: str = "Mend or remove them, or go on without them: --skip-unreadable.",
    ) -> None:
        listed = "; ".join(f"{path} ({reason})" for path, reason in islice(reasons.items(), _SHOWN_REASONS))
        rest = len(reasons) - _SHOWN_REASONS
        more = f"; and {rest} more" if rest > 0 else ""
        super().__init__(f"{len(reasons)} of {total} pictures cannot be read: {listed}{more}", hint)
        self.reasons = reasons
        self.total = total

    def __reduce__(self) -> tuple[type[UnreadablePictures], tuple[dict[str, str], int, str]]:
        return UnreadablePictures, (self.reasons, self.total, self.hint)


def scan(
    root: Path | str, validation_fraction: float | None = None, seed: int = 1, progress: Progress | None = None
) -> Manifest:
    """Read a folder of photos to learn from.

    Arguments:
        root: DATA, see this module's docstring for its two layouts.
        validation_fraction: above 0 and below 1: split so much of each class off for validation. By content: equal
            bytes fall into one split, whatever their names, their order or even their labels. None: DATA/validation
            holds it.
        seed: which of the possible splits.
        progress: where to show reading that takes long; nowhere when left out.

    Raises:
        DataError: there is nothing, or too little, to learn from; the message names the folder or file.
        UsageError: the fraction is not between 0 and 1, or there is a validation folder already.
    """
    root = _existing(root)
    if validation_fraction is None:
        return _scan_two_folders(root, progress)
    if not 0 < validation_fraction < 1:
        raise UsageError(f"the validation fraction must lie between 0 and 1. Received: {validation_fraction}")
    if kind(root / VALIDATION) == "folder":
        raise UsageError(
            f"expected either a validation folder or a validation fraction. Received: {root / VALIDATION} and "
            f"{validation_fraction}",
            "Leave out --validation-fraction, or move the validation folder away.",
        )
    reader = FolderReader(root, progress)
    (start,) = class_parents(root, validation_fraction)
    if start != root:
        reader.ignore(entry for entry in entries(root) if entry != start)
    photos = _photos(reader, start, TRAIN)
    _check_class_folders(start, photos)
    classes = _at_least_two(start, photos)
    manifest = _manifest(root, classes, _split(photos, validation_fraction, seed), reader)
    _check_complete(manifest, (TRAIN, VALIDATION))
    return manifest


def class_parents(root: Path, validation_fraction: float | None) -> tuple[Path, ...]:
    """The folders whose folders are classes, as `scan` reads them; they need not be there.

    Arguments:
        root, validation_fraction: as of `scan`.
    """
    if validation_fraction is None:
        return root / TRAIN, root / VALIDATION
    # A class may be called "train": as a split's folder it holds folders.
    inner = root / TRAIN
    nested = kind(inner) == "folder" and any(kind(entry) == "folder" for entry in entries(inner))
    return (inner if nested else root,)


def scan_labelled(root: Path | str, classes: Sequence[str], progress: Progress | None = None) -> Manifest:
    """Read a folder of class folders to evaluate on, as the split "evaluation".

    Arguments:
        root: holds one folder for each class; a class without a folder is fine.
        classes: in the order of the model's outputs.
        progress: as of `scan`.

    Raises:
        DataError: there are no photos, or a folder is none of the classes.
    """
    root = _existing(root)
    reader = FolderReader(root, progress)
    unknown = sorted(entry.name for entry in entries(root) if kind(entry) == "folder" and entry.name not in classes)
    if unknown:
        hint = f"Point to a folder of class folders, for example {root / unknown[-1]}."
        expected, received = told_apart(classes, unknown), told_apart(unknown, classes)
        raise DataError(
            f"{root}: expected folders of the classes {', '.join(expected)}. Received: {shown(received)}",
            hint if set(unknown) & {TRAIN, VALIDATION, "test"} else "Move other folders away.",
        )
    photos = [photo for found in _photos(reader, root, EVALUATION).values() for photo in found]
    manifest = _manifest(root, tuple(classes), photos, reader)
    _check_complete(manifest, ())
    return manifest


def read_photo(path: Path, sha256: str) -> bytes:
    """The bytes of a photo that a manifest names.

    Arguments:
        sha256: what the manifest says of them.

    Raises:
        DataError: they are others: what is kept under that sha256 would be wrong for good.
        OSError: it cannot be read.
    """
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise DataError(
            f"{path} must stay as it was when the photos were read. Received: another picture",
            "Run the same command again when nobody changes the photos.",
        )
    return data


def _scan_two_folders(root: Path, progress: Progress | None) -> Manifest:
    reader = FolderReader(root, progress)
    train, validation = root / TRAIN, root / VALIDATION
    if kind(train) != "folder":
        found = [entry.name + "/" * (kind(entry) == "folder") for entry in entries(root)]
        raise DataError(f"{root}: expected the folders train and validation. Received: {shown(found)}", _LAYOUT_HINT)
    if kind(validation) != "folder":
        raise DataError(
            f"{root}: expected a validation folder beside train. Received: none",
            "Use --validation-fraction 0.2 to split a fifth of the photos off for validation.",
        )
    reader.ignore(entry for entry in entries(root) if entry not in (train, validation))
    by_split = {split: _photos(reader, root / split, split) for split in (TRAIN, VALIDATION)}
    _check_class_folders(train, by_split[TRAIN])
    _check_class_folders(validation, by_split[VALIDATION])
    for split, other in ((VALIDATION, TRAIN), (TRAIN, VALIDATION)):
        missing = sorted(set(by_split[other]) - set(by_split[split]))
        if missing:
            alike = sorted(set(told_apart(by_split[split], missing)) - set(by_split[split]))
            hint = f"Add photos of each class to {split}, or remove the class from {other}."
            if alike:
                hint = f"{split} has {shown(alike)}, which is written in the same way: give both folders one name."
            names = shown(told_apart(missing, by_split[split]))
            raise DataError(f"{root / split}: expected the classes of {other}. Received: no folder for {names}", hint)
    photos = [photo for labels in by_split.values() for found in labels.values() for photo in found]
    return _manifest(root, _at_least_two(train, by_split[TRAIN]), photos, reader)


def _existing(root: Path | str) -> Path:
    path = Path(root).absolute()
    if kind(path) != "folder":
        received = "no such folder" if kind(path) == "nothing" else "a file"
        raise DataError(f"{path}: expected a folder of photos. Received: {received}", _LAYOUT_HINT)
    return path


def _photos(reader: FolderReader, folder: Path, split: str) -> dict[str, list[Photo]]:
    return {
        label: [Photo(path, label, split, sha256) for path, sha256 in found]
        for label, found in reader.class_photos(folder).items()
    }


def _manifest(root: Path, classes: tuple[str, ...], photos: Iterable[Photo], reader: FolderReader) -> Manifest:
    return Manifest(root, classes, tuple(sorted(photos, key=lambda photo: photo.path)), reader.ignored)


def _check_class_folders(folder: Path, photos: dict[str, list[Photo]]) -> None:
    if not photos:
        found = shown(entry.name for entry in entries(folder))
        raise DataError(f"{folder}: expected a folder for each class. Received: {found}", _LAYOUT_HINT)
    for label, in_class in photos.items():
        if not in_class:
            raise DataError(
                f"{folder / label}: expected photos (.jpg, .jpeg, .png, .webp). Received: an empty class folder",
                "Add photos, or remove the folder.",
            )


def _at_least_two(folder: Path, photos: dict[str, list[Photo]]) -> tuple[str, ...]:
    """The sorted class names."""
    if len(photos) < 2:
        raise DataError(
            f"{folder}: expected at least two classes. Received: only {shown(photos)}",
            "A classifier tells classes apart: add a folder for another one.",
        )
    return tuple(sorted(photos))


def _check_complete(manifest: Manifest, splits: Iterable[str]) -> None:
    if not manifest.photos:
        raise DataError(
            f"{manifest.root}: expected photos (.jpg, .jpeg, .png, .webp) in class folders. Received: none",
            _LAYOUT_HINT,
        )
    counts = manifest.counts()
    for split in splits:
        if split == EVALUATION:  # A class without photos is fine there.
            continue
        empty = [label for label in manifest.classes if counts.get(split, {}).get(label, 0) == 0]
        if empty:
            raise DataError(
                f"{manifest.root}: expected photos of each class for {split}. Received: none of {shown(empty)}",
                "Add photos of that class.",
            )


def _split(photos: dict[str, list[Photo]], fraction: float, seed: int) -> list[Photo]:
    """Give each photo its split by the rank of its content's seeded hash within its class.

    Content with several labels is ranked with the first of them, and all of it goes where that one goes.
    """
    ranked: set[str] = set()
    validation: set[str] = set()
    for label in sorted(photos):
        contents = {photo.sha256 for photo in photos[label]} - ranked
        if len(contents) < 2:
            raise DataError(
                f"{label}: expected at least two different photos to split. Received: {len(contents)}",
                "Add photos of that class; equal ones, also under another class's name, count once.",
            )
        by_hash = sorted(contents, key=lambda content: hashlib.sha256(f"{seed}:{content}".encode()).digest())
        validation.update(by_hash[: min(max(1, round(fraction * len(contents))), len(contents) - 1)])
        ranked |= contents
    return [
        replace(photo, split=VALIDATION if photo.sha256 in validation else TRAIN)
        for found in photos.values()
        for photo in found
    ]
