"""The feature bank: one vector for each picture, kept by the picture's content, computed once.

A bank is named by what decides its vectors (preprocessing, backbone graph, image size, precision). It holds shards,
each an array `NAME.npy`, (n, D) in float32 or, for half the room, float16, and its index `NAME.sha256`, the 32 bytes of
n pictures. The index is written last, so a shard is there or it is not; two writers never touch each other's. Opening a
bank reads the indexes alone: 40 bytes a picture in memory, and from a bucket the arrays are copied when they are used.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rayml.errors import RaymlError
from rayml.frozen import FrozenBackbone
from rayml.storage import BucketStore, FolderStore, open_store

BANK_VERSION = 2
DTYPES = ("float32", "float16")
_ARRAY, _INDEX = ".npy", ".sha256"
_LOOK_EVERY_S = 2.0
_COPIES_AT_ONCE = 16  # Of a bucket's objects: each waits most of its time for an answer.
_DIGEST = np.dtype("S32")  # Compares and sorts as bytes; two of one length are never taken for each other.


Digests: TypeAlias = "Sequence[str] | NDArray[np.bytes_]"  # Of pictures: 64 hexadecimal digits, or 32 bytes each.


def bank_key(backbone: FrozenBackbone, dtype: str = "float32") -> str:
    """The name of a backbone's bank: sha256 over all that decides a picture's features, as 64 hexadecimal digits.

    Arguments:
        dtype: what they are kept in, one of `DTYPES`.
    """
    identity = {
        "bank": BANK_VERSION,
        "preprocessing": backbone.preprocessing,
        "graph": backbone.graph_sha256,
        "image_size": backbone.image_size_px,
        "precision": dtype,
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


class FeatureBank:
    """The vectors of one backbone. It can be pickled: a worker on another machine writes into the same bank.

    Arguments:
        store: where it lies, or a folder of this machine.
        features: D.
        dtype: what vectors are kept in, one of `DTYPES`; they are written and read as float32 all the same.

    What is there is read with the first question, so that a worker that only writes reads nothing.
    """

    def __init__(self, store: FolderStore | BucketStore | Path, features: int, dtype: str = "float32") -> None:
        self.store = FolderStore(store) if isinstance(store, Path) else store
        self.features = features
        self.dtype = dtype
        self._forget()

    def _forget(self) -> None:
        """What is there is read with the next question."""
        self._shards: list[tuple[str, int]] = []  # name, size of its array in bytes
        self._pending: list[tuple[int, NDArray[np.bytes_]]] = []  # shard, its digests; not in the three below yet
        self._digests: NDArray[np.bytes_] = np.empty(0, _DIGEST)  # sorted
        self._shard_of: NDArray[np.int32] = np.empty(0, np.int32)
        self._row_of: NDArray[np.int32] = np.empty(0, np.int32)
        self._paths: dict[int, Path] = {}  # shard -> its array on this machine
        self._opened = False

    @classmethod
    def of(
        cls, backbone: FrozenBackbone, cache: Path, storage: str | None = None, dtype: str = "float32"
    ) -> FeatureBank:
        """Open the bank of a backbone.

        Arguments:
            cache: the folder of this machine for what it keeps.
            storage: what machines share, as `rayml.storage.check_storage` gave it.
            dtype: see `FeatureBank`.
        """
        return cls(open_store(storage, f"features/{bank_key(backbone, dtype)}", cache), backbone.features, dtype)

    @property
    def folder(self) -> Path:
        """The folder of this machine that holds the arrays in use; its name is the bank's."""
        return self.store.folder

    def __reduce__(self) -> tuple[type[FeatureBank], tuple[FolderStore | BucketStore, int, str]]:
        return FeatureBank, (self.store, self.features, self.dtype)

    def __contains__(self, sha256: str) -> bool:
        return bool(self.has([sha256])[0])

    def __len__(self) -> int:
        self._sort()
        return len(self._digests)

    def has(self, digests: Digests) -> NDArray[np.bool_]:
        """Which of N pictures are in the bank, bool (N,).

        Arguments:
            digests: the sha256 of each.
        """
        self._sort()
        wanted = packed(digests)
        return self._digests[self._places(wanted)] == wanted if len(self._digests) else np.zeros(len(wanted), bool)

    def write(self, digests: Sequence[str], vectors: NDArray[np.float32]) -> None:
        """Add one shard.

        Arguments:
            digests: the sha256 of n pictures.
            vectors: float32 (n, D), finite.

        Raises:
            RaymlError: values that are not finite or too large for the bank's dtype, or a storage that is full,
                read-only or cannot be reached. What was there stays.
        """
        if vectors.shape != (len(digests), self.features) or vectors.dtype != np.float32:
            raise ValueError(f"expected float32 {(len(digests), self.features)}, got {vectors.dtype} {vectors.shape}")
        if not np.isfinite(vectors).all():
            raise RaymlError("the backbone gave features that are not finite numbers", "Are its weights sound?")
        largest, most = float(np.abs(vectors).max(initial=0)), float(np.finfo(self.dtype).max)
        if largest > most:
            raise RaymlError(
                f"features must be at most {most:g} to be kept in {self.dtype}. Received: {largest:g}",
                "Keep them in float32: --feature-dtype float32.",
            )
        name = _shard(digests)
        header = array_header(len(digests), self.features, self.dtype)
        try:
            self.store.put(name + _ARRAY, [header, np.ascontiguousarray(vectors, self.dtype).data.cast("B")])
            self.store.put(name + _INDEX, [packed(digests).tobytes()])
        except RaymlError as error:
            raise RaymlError(f"features could not be written: {error.message}", error.hint) from None
        self.note(digests)

    def note(self, digests: Sequence[str]) -> None:
        """Know of a shard that was written, by whomever: a network's folder may be slow to show it.

        Arguments:
            digests: as it was written.
        """
        if self._opened:
            self._add(_shard(digests), self._size(len(digests)), packed(digests).tobytes())

    def wait_for(self, digests: Digests, timeout_s: float) -> None:
        """Look until N pictures are in the bank, or the time is over."""
        end = time.monotonic() + timeout_s
        while not self.has(digests).all() and time.monotonic() < end:
            time.sleep(_LOOK_EVERY_S)
            self._forget()

    def rows(self, digests: Digests) -> NDArray[np.float32]:
        """The vectors of N pictures in the order asked for; shards are memory-mapped, one at a time.

        Arguments:
            digests: the sha256 of each.

        Raises:
            KeyError: a picture that is not in the bank.
            RaymlError: a shard is damaged, or could not be copied to this machine.
        """
        gathered = np.empty((len(digests), self.features), np.float32)
        if not (present := self.has(digests)).all():
            raise KeyError(packed(digests)[int(np.argmin(present))].hex())
        places = self._places(packed(digests))
        order = np.argsort(self._shard_of[places], kind="stable")
        shards = self._shard_of[places][order]
        self._fetch(np.unique(shards).tolist())
        bounds = [0, *(np.flatnonzero(np.diff(shards)) + 1), len(order)]
        for start, end in pairwise(bounds):
            if start < end:
                positions = order[start:end]
                gathered[positions] = self._array(int(shards[start]))[self._row_of[places[positions]]]
        return gathered

    def _fetch(self, shards: list[int]) -> None:
        """Have the arrays of some shards on this machine."""
        new = [shard for shard in shards if shard not in self._paths]
        wanted = [(name + _ARRAY, size) for name, size in (self._shards[shard] for shard in new)]
        self._paths.update(zip(new, self._files(wanted), strict=True))

    def _array(self, shard: int) -> NDArray[np.floating[Any]]:
        name, path = self._shards[shard][0], self._paths[shard]
        try:
            array: NDArray[np.floating[Any]] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise RaymlError(
                f"features in {path} cannot be read: {error}", f"Remove {name}.* and run again: they are made anew."
            ) from None
        return array

    def _add(self, name: str, size: int, index: bytes) -> None:
        """Take a shard in; one that is not whole (a disk that lost a write) counts as not there."""
        count, rest = divmod(len(index), _DIGEST.itemsize)
        if count and not rest and size == self._size(count):
            self._pending.append((len(self._shards), np.frombuffer(index, _DIGEST)))
            self._shards.append((name, size))

    def _size(self, count: int) -> int:
        """Bytes of the array of a shard of so many pictures."""
        header = array_header(count, self.features, self.dtype)
        return len(header) + count * self.features * np.dtype(self.dtype).itemsize

    def _open(self) -> None:
        """Read the indexes of the shards that are there."""
        sizes = self.store.sizes()
        names = sorted(name.removesuffix(_INDEX) for name in sizes if name.endswith(_INDEX))
        indexes = self._files([(name + _INDEX, sizes[name + _INDEX]) for name in names])
        for name, index in zip(names, indexes, strict=True):
            self._add(name, sizes.get(name + _ARRAY, -1), index.read_bytes())

    def _files(self, wanted: list[tuple[str, int]]) -> list[Path]:
        """Files of this machine for names of the store and their sizes, copied side by side where they have to be."""
        if isinstance(self.store, FolderStore):
            return [self.store.local(*one) for one in wanted]
        with ThreadPoolExecutor(_COPIES_AT_ONCE) as pool:
            return list(pool.map(lambda one: self.store.local(*one), wanted))

    def _sort(self) -> None:
        """Take the shards that were added since the last look into the sorted index.

        Raises:
            RaymlError: the storage cannot be read.
        """
        if not self._opened:
            self._open()
            self._opened = True
        if not self._pending:
            return
        digests = np.concatenate([self._digests, *(found for _, found in self._pending)])
        shards = [np.full(len(found), shard, np.int32) for shard, found in self._pending]
        rows = [np.arange(len(found), dtype=np.int32) for _, found in self._pending]
        self._digests, first = np.unique(digests, return_index=True)
        self._shard_of = np.concatenate([self._shard_of, *shards])[first]
        self._row_of = np.concatenate([self._row_of, *rows])[first]
        self._pending = []

    def _places(self, wanted: NDArray[np.bytes_]) -> NDArray[np.intp]:
        """Where in the sorted index each would be, int (N,); the index is not empty."""
        return np.minimum(np.searchsorted(self._digests, wanted), len(self._digests) - 1)


def _shard(digests: Sequence[str]) -> str:
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:32]


def packed(digests: Digests) -> NDArray[np.bytes_]:
    """Hexadecimal sha256 as an array of 32 bytes each."""
    if isinstance(digests, np.ndarray):
        return digests
    return np.frombuffer(bytes.fromhex("".join(digests)), _DIGEST)


def array_header(count: int, features: int, dtype: str = "float32") -> bytes:
    """What NumPy writes before the numbers of an array (n, D)."""
    buffer = io.BytesIO()
    described = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
        "fortran_order": False,
        "shape": (count, features),
    }
    np.lib.format.write_array_header_1_0(buffer, described)
    return buffer.getvalue()
