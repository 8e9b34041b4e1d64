"""Folders and names: splits, classes and their balance, and what lies there without being used.

Unlike `rayml.data.scan`, which stops at the first thing that it cannot learn from, this goes on and collects them all.
Links are followed as there: into split and class folders and no deeper.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from rayml.bundle_json import MAX_NAME_CHARACTERS
from rayml.check.findings import Finding
from rayml.data import TRAIN, VALIDATION
from rayml.errors import DataError
from rayml.folders import (
    PHOTO_SUFFIXES,
    entries,
    has_shown_name,
    hidden,
    is_photo,
    kind,
    normalized,
    sha256_of,
    told_apart,
)

TEST, ALL = "test", "all"
MAX_IMBALANCE = 10.0  # Largest class over smallest one: beyond it, accuracy says little about the small classes.
FEW_PHOTOS = 20  # Training photos of a class: with fewer, its precision and recall are mostly chance.
_OTHER_PICTURES = frozenset(
    {
        ".gif",
        ".bmp",
        ".tif",
        ".tiff",
        ".heic",
        ".heif",
        ".avif",
        ".jfif",
        ".jpe",
        ".jp2",
        ".jxl",
        ".svg",
        ".psd",
        ".raw",
    }
    | {".dng", ".nef", ".cr2", ".arw", ".ico"}
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a photo lies.

    Arguments:
        path: relative to the checked folder.
        split: "train", "validation", "test" or "all".
        label: the name of its class folder.
    """

    path: str
    split: str
    label: str


@dataclass
class Layout:
    """What lies in a folder of class folders.

    Arguments:
        root: the folder, absolute.
        photos: all that are named like photos and may be read, ordered by path.
        splits: {split: {class: photos}}, zeros included.
        findings: in no particular order.
    """

    root: Path
    photos: list[Place] = field(default_factory=list)
    splits: dict[str, dict[str, int]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of all class folders, sorted."""
        return tuple(sorted({label for counts in self.splits.values() for label in counts}))

    def add(self, name: str, path: Path, detail: str) -> None:
        """Note a finding about one path."""
        self.findings.append(Finding(name, (relative(path, self.root),), detail))


def read_layout(root: Path | str) -> Layout:
    """Walk through a folder with the splits `train`, `validation` and `test`, or with class folders alone.

    Raises:
        DataError: it is no folder, or cannot be read at all.
    """
    path = Path(root).absolute()
    if kind(path) != "folder":
        received = "no such folder" if kind(path) == "nothing" else "a file"
        raise DataError(f"{path}: expected a folder of photos. Received: {received}", "rayml data check DIR")
    layout = Layout(path)
    inside = entries(path)
    split_folders = [entry for entry in inside if entry.name in (TRAIN, VALIDATION, TEST) and _holds_folders(entry)]
    if any(folder.name != TEST for folder in split_folders):
        _note_hidden(layout, path)
        for entry in inside:
            if entry in split_folders:
                _read_split(layout, entry, entry.name)
            else:
                _unused(layout, entry)
    else:
        _read_split(layout, path, ALL)
    for counts in layout.splits.values():
        counts.update({label: counts.get(label, 0) for label in layout.classes})
    layout.photos.sort(key=lambda place: place.path)
    return layout


def balance(layout: Layout) -> Iterator[Finding]:
    """What names and numbers of photos say: classes missing, meant to be one, small or out of proportion."""
    if len(layout.classes) < 2:
        found = ", ".join(layout.classes) or "none"
        yield Finding("few_classes", (), f"a classifier needs at least two class folders; there is {found}")
    folded: dict[str, list[str]] = {}
    for label in layout.classes:
        folded.setdefault(normalized(label).casefold().replace("_", "-").replace(" ", "-"), []).append(label)
    for same in folded.values():
        if len(same) > 1:
            yield Finding("similar_class_names", (), f"are these one class? {', '.join(told_apart(same, same))}")
    for split, counts in layout.splits.items():
        for label, count in counts.items():
            if count == 0:
                where = label if split == ALL else f"{split}/{label}"
                name = "missing_in_test" if split == TEST else "missing_class"
                yield Finding(name, (where,), f"no photos of {label} in {split}")
        present = {label: count for label, count in counts.items() if count}
        if len(present) < 2 or split == TEST:
            continue
        largest, smallest = max(present, key=lambda c: present[c]), min(present, key=lambda c: present[c])
        ratio = present[largest] / present[smallest]
        if ratio > MAX_IMBALANCE:
            detail = (
                f"{split}: {present[largest]} photos of {largest}, {present[smallest]} of {smallest} ({ratio:.1f}:1)"
            )
            yield Finding("imbalance", (), detail)
        if split != VALIDATION:
            few = {label: count for label, count in present.items() if count < FEW_PHOTOS}
            for label, count in few.items():
                yield Finding("few_photos", (), f"{split}: {count} photos of {label}, fewer than {FEW_PHOTOS}")
    if VALIDATION not in layout.splits:
        yield from _too_few_to_split(layout)


def _too_few_to_split(layout: Layout) -> Iterator[Finding]:
    """Classes of which a search can split no validation photo off, since equal photos count once."""
    by_class: dict[str, list[Path]] = {}
    for place in layout.photos:
        if place.split != TEST:
            by_class.setdefault(place.label, []).append(layout.root / place.path)
    for label, paths in by_class.items():
        if not _differ(paths):
            detail = f"no two different photos of {label}, so that none can be split off for validation"
            yield Finding("too_few_to_split", (relative(paths[0].parent, layout.root),), detail)


def _differ(paths: Iterable[Path]) -> bool:
    """Whether two of them have different bytes; reads no more of them than it takes."""
    found: set[str] = set()
    for path in paths:
        with suppress(DataError):  # One that cannot be read is a finding of its own.
            found.add(sha256_of(path))
        if len(found) > 1:
            return True
    return False


def relative(path: Path, root: Path) -> str:
    """A path's name below the root, "." for the root itself."""
    return path.relative_to(root).as_posix()


def _read_split(layout: Layout, folder: Path, split: str) -> None:
    counts = layout.splits.setdefault(split, {})
    for entry in _listed(layout, folder):
        if _what(layout, entry) != "folder":
            _unused(layout, entry)
        elif not has_shown_name(entry):
            layout.add("class_name", entry, f"a class name must be at most {MAX_NAME_CHARACTERS} printable characters")
        else:
            counts[entry.name] = _read_class(layout, entry, split)


def _read_class(layout: Layout, folder: Path, split: str) -> int:
    if _leads_back(folder):
        layout.add("link_loop", folder, "a link that leads back to a folder above it")
    before = len(layout.photos)
    for entry in _listed(layout, folder):
        what = _what(layout, entry)
        if what == "nothing":
            _broken(layout, entry)
        elif what is not None and is_photo(entry):
            layout.photos.append(Place(relative(entry, layout.root), split, folder.name))
        elif what == "folder" and _leads_back(entry):
            layout.add("link_loop", entry, "a link that leads back to a folder above it; it is not followed")
        elif what == "folder":
            layout.add("folder_in_class", entry, "a folder inside a class folder: what is in it is not used")
        elif what is not None:
            _unused(layout, entry)
    return len(layout.photos) - before


def _listed(layout: Layout, folder: Path) -> list[Path]:
    """What lies in a folder; one that cannot be read is a finding."""
    try:
        _note_hidden(layout, folder)
        return entries(folder)
    except DataError as error:
        layout.add("unreadable", folder, error.message.rpartition("Received: ")[2])
        return []


def _what(layout: Layout, path: Path) -> str | None:
    """`kind`, or None and a finding where the folder does not let it be seen."""
    try:
        return kind(path)
    except DataError as error:
        layout.add("unreadable", path, error.message.rpartition("Received: ")[2])
        return None


def _note_hidden(layout: Layout, folder: Path) -> None:
    for entry in hidden(folder):
        layout.add("hidden", entry, "hidden, not used")


def _unused(layout: Layout, path: Path) -> None:
    what = _what(layout, path)
    if what == "nothing":
        _broken(layout, path)
    elif what == "device":
        layout.add("unused_file", path, "a pipe or device; it is never opened")
    elif what == "folder" and _leads_back(path):
        layout.add("link_loop", path, "a link that leads back to a folder above it; it is not followed")
    elif what == "folder":
        layout.add("unused_file", path, "a folder that is none of train, validation, test; not used")
    elif what == "file":
        suffix = path.suffix.lower()
        if suffix in _OTHER_PICTURES:
            layout.add("unused_picture", path, f"{suffix} is not read: save it as JPEG, PNG or WebP")
        elif suffix in PHOTO_SUFFIXES:
            layout.add("unused_picture", path, "a picture outside the class folders; it is not used")
        else:
            layout.add("unused_file", path, "not named like a photo; it is not used")


def _broken(layout: Layout, path: Path) -> None:
    """A link to nothing: read like a photo it stops a search, otherwise nobody minds."""
    try:
        path.stat()
    except OSError as error:
        looped = error.errno == errno.ELOOP
        detail = "a link that leads to itself" if looped else "a link that leads nowhere"
        read = path.suffix.lower() in PHOTO_SUFFIXES and len(path.relative_to(layout.root).parts) > 1
        layout.add("broken_link" if read else "link_loop" if looped else "unused_file", path, detail)


def _holds_folders(path: Path) -> bool:
    """Whether it is a split's folder: a class may be called "train", and then holds photos."""
    try:
        return kind(path) == "folder" and (not entries(path) or any(kind(entry) == "folder" for entry in entries(path)))
    except DataError:
        return True  # What it is cannot be seen; reading it as a split says why.


def _leads_back(path: Path) -> bool:
    """Whether a link leads to a folder that it lies in."""
    return path.is_symlink() and path.parent.resolve().is_relative_to(path.resolve())
