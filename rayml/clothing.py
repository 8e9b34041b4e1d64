"""The clothing photos of the lesson: where they come from and how to know them.

The files are known by their git trees, which the repository itself publishes (`git rev-parse COMMIT:train`): an
archive's bytes may change from one day to the next, as GitHub packs them anew, while its files do not. A tree is SHA-1
over all names and contents; to plant a file, one would need a second preimage, which nobody can make.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from rayml.archive import ArchiveLimits
from rayml.errors import DataError

CLASSES = ("dress", "hat", "longsleeve", "outwear", "pants", "shirt", "shoes", "shorts", "skirt", "t-shirt")
COMMIT = "11961516512414bf9f6c150a832cfd21b54a6b54"
URL = f"https://codeload.github.com/alexeygrigorev/clothing-dataset-small/zip/{COMMIT}"
LICENCE = "CC0 1.0"
TREES = {
    "train": "cc90b85bb4b32560a4316e6f6031b73a17860e97",
    "validation": "d64391f0dd7a926616fd01c77a65d4b9d3fc78d9",
    "test": "4244b1e77de7016ecac9b89f87c993381f0a448d",
}
PHOTOS = 3_781
ARCHIVE_MB = 110  # About: the server does not tell.
LIMITS = ArchiveLimits(max_entries=20_000, max_bytes=2**30)
_BESIDE = ("LICENSE", "README.md")


def wanted(name: str) -> str | None:
    """Where a file of the archive goes: its name without the archive's own folder; None for what is not needed."""
    rest = name if name.split("/")[0] in TREES else name.partition("/")[2]
    return rest if rest in _BESIDE or rest.split("/")[0] in TREES else None


def verify(folder: Path) -> None:
    """Make sure that a folder holds these photos and no others.

    Raises:
        DataError: a split is missing or differs.
    """
    for split, expected in TREES.items():
        received = git_tree(folder / split) if (folder / split).is_dir() else "nothing"
        if received != expected:
            raise DataError(
                f"{folder / split}: expected the {split} photos with the git tree {expected}. Received: {received}",
                "A file is missing, changed or added: fetch them again.",
            )


def git_tree(folder: Path) -> str:
    """The id that git gives to a folder of plain files (gitformat-tree), 40 hexadecimal digits.

    Raises:
        DataError: something in it is neither a file nor a folder, or cannot be read.
    """
    return _tree(folder).hex()


def _tree(folder: Path) -> bytes:
    entries = []
    try:
        for path in folder.iterdir():
            name = path.name.encode("utf-8", "surrogateescape")
            if path.is_dir() and not path.is_symlink():
                entries.append((name + b"/", b"40000 " + name, _tree(path)))
            elif path.is_file() and not path.is_symlink():
                entries.append((name, b"100644 " + name, _object(b"blob", path.read_bytes())))
            else:
                raise DataError(f"{path}: expected a plain file. Received: a link or a device", "Fetch them again.")
    except OSError as error:
        raise DataError(f"{error.filename}: expected something readable. Received: {error.strerror}") from None
    return _object(b"tree", b"".join(mode + b"\0" + digest for _, mode, digest in sorted(entries)))


def _object(kind: bytes, content: bytes) -> bytes:
    return hashlib.sha1(kind + b" %d\0" % len(content) + content).digest()
