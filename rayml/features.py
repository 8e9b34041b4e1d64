"""The feature bank: one float32 vector for each picture, kept by the picture's content, computed once.

A bank's folder is named by what decides its vectors (preprocessing, backbone graph, image size, precision). It holds
shards, each an array `NAME.npy` float32 (n, D) and its index `NAME.json`: the sha256 of the n pictures. The index is
written last and by a rename, so a shard is there or it is not; two writers never touch each other's.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rayml.errors import RaymlError
from rayml.frozen import FrozenBackbone

BANK_VERSION = 1
PRECISION = "float32"


def bank_key(backbone: FrozenBackbone) -> str:
    """The name of a backbone's bank: sha256 over all that decides a picture's features, as 64 hexadecimal digits."""
    identity = {
        "bank": BANK_VERSION,
        "preprocessing": backbone.preprocessing,
        "graph": backbone.graph_sha256,
        "image_size": backbone.image_size_px,
        "precision": PRECISION,
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


class FeatureBank:
    """The vectors of one backbone.

    Arguments:
        folder: the bank's own folder; made with the first shard.
        features: D.
    """

    def __init__(self, folder: Path, features: int) -> None:
        self.folder = folder
        self.features = features
        self._places: dict[str, tuple[Path, int]] = {}  # sha256 -> (array file, row)
        for index in sorted(folder.glob("*.json")):
            self._add(index)

    @classmethod
    def of(cls, backbone: FrozenBackbone, cache: Path) -> FeatureBank:
        """Open the bank of a backbone in a cache."""
        return cls(cache / "features" / bank_key(backbone), backbone.features)

    def __contains__(self, sha256: str) -> bool:
        return sha256 in self._places

    def __len__(self) -> int:
        return len(self._places)

    def _add(self, index: Path) -> None:
        """Take a shard in; one that is not whole (a disk that lost a write) counts as not there."""
        array = index.with_suffix(".npy")
        try:
            digests = json.loads(index.read_text())
            vectors = np.load(array, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return
        whole = isinstance(digests, list) and vectors.shape == (len(digests), self.features)
        if whole and vectors.dtype == np.float32:
            self._places.update((digest, (array, row)) for row, digest in enumerate(digests))

    def write(self, digests: list[str], vectors: NDArray[np.float32]) -> None:
        """Add one shard.

        Arguments:
            digests: the sha256 of n pictures.
            vectors: float32 (n, D), finite.

        Raises:
            RaymlError: values that are not finite, or a disk that is full or read-only. What was there stays.
        """
        if vectors.shape != (len(digests), self.features) or vectors.dtype != np.float32:
            raise ValueError(f"expected float32 {(len(digests), self.features)}, got {vectors.dtype} {vectors.shape}")
        if not np.isfinite(vectors).all():
            raise RaymlError("the backbone gave features that are not finite numbers", "Are its weights sound?")
        name = hashlib.sha256("".join(digests).encode()).hexdigest()[:32]
        array, index = self.folder / f"{name}.npy", self.folder / f"{name}.json"
        drafts = [self.folder / f".{name}-{os.getpid()}{suffix}" for suffix in (".npy", ".json")]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with drafts[0].open("wb") as file:
                np.save(file, vectors)
                file.flush()
                os.fsync(file.fileno())
            drafts[1].write_text(json.dumps(digests))
            drafts[0].replace(array)
            drafts[1].replace(index)
        except OSError as error:
            for draft in drafts:
                with suppress(OSError):
                    draft.unlink(missing_ok=True)
            raise RaymlError(
                # NumPy's own error for a full disk has a text alone.
                f"features could not be written to {self.folder}: {error.strerror or error}",
                "Free some space, or point --cache (or RAYML_CACHE) to another folder; finished features are kept.",
            ) from None
        self._add(index)

    def rows(self, digests: list[str]) -> NDArray[np.float32]:
        """The vectors of N pictures, float32 (N, D), in the order asked for; shards are memory-mapped.

        Raises:
            KeyError: a picture that is not in the bank.
        """
        gathered = np.empty((len(digests), self.features), np.float32)
        by_array: dict[Path, list[tuple[int, int]]] = {}
        for position, digest in enumerate(digests):
            array, row = self._places[digest]
            by_array.setdefault(array, []).append((position, row))
        for array, places in by_array.items():
            positions, rows = np.array(places).T
            gathered[positions] = np.load(array, mmap_mode="r", allow_pickle=False)[rows]
        return gathered
