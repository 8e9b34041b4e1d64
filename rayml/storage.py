"""Where features and frozen backbones are kept: a folder, or a bucket with a local copy of what was used from it.

A store is a set of files under names like "a" or "a/b". Each is written whole or not at all and never changes
afterwards, so that a copy that is there is a good one, and two writers of one name do each other no harm.

    --storage-path /nfs/rayml          a folder that every machine sees: files are used where they lie
                   s3://bucket/prefix  objects; credentials, region and AWS_ENDPOINT_URL come from the surroundings
                   gs://bucket/prefix  likewise, for Google Cloud Storage

Buckets are spoken to through pyarrow, which comes with Ray Tune and which Ray Tune itself uses: one address and one set
of credentials serve both, and its files bring S3 and GCS without further packages (fsspec needs one for each).
"""

from __future__ import annotations

import fcntl
import os
import urllib.parse
import uuid
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from rayml.errors import RaymlError, UsageError

BUCKET_SCHEMES = ("s3", "gs")
_COPY_BYTES = 1 << 22
_MARK = "mark-"
_LOCKS = 64  # Files for all names together, since one that is taken away could not be waited for.
_FULL_HINT = (
    "Free some space, or name another folder: --cache (or RAYML_CACHE), --storage-path; finished features are kept."
)
_BUCKET_HINT = "Are the address, the credentials and their rights good on this machine? What is finished is kept."


class Store(ABC):
    """Files by name. A store can be pickled: another machine opens the same one."""

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """The names that are there, and how many bytes each has.

        Raises:
            RaymlError: the storage cannot be read.
        """

    @abstractmethod
    def put(self, name: str, parts: Iterable[bytes | memoryview]) -> None:
        """Write a file, which is there as a whole when this returns.

        Arguments:
            parts: its bytes, one after the other.

        Raises:
            RaymlError: the storage is full, read-only or cannot be reached. What was there stays.
        """

    @abstractmethod
    def local(self, name: str, size: int) -> Path:
        """A file of this machine with the content of one that is there.

        Arguments:
            size: what `sizes` says.

        Raises:
            RaymlError: it is gone, or there is no room for a copy.
        """

    @abstractmethod
    def peek(self, name: str) -> bytes | None:
        """A small file as it is now, or None.

        Raises:
            RaymlError: the storage cannot be read.
        """

    def mark(self) -> str:
        """Leave a file here by whose name `check_mark` knows this storage; one that is here already serves as well.

        Raises:
            RaymlError: as `sizes` and `put`.
        """
        mark = min((name for name in self.sizes() if name.startswith(_MARK)), default=f"{_MARK}{uuid.uuid4().hex}")
        self.put(mark, [b""])
        return mark

    def check_mark(self, mark: str) -> None:
        """Make sure, on another machine, that this is the storage with that mark and that it can be written.

        Raises:
            RaymlError: it is not, e.g. a folder that is not mounted there, or it cannot.
        """
        if self.peek(mark) is None:
            raise RaymlError(
                f"{self} must be the same place on every machine. Received: another one, or nothing",
                "Is it mounted there, by the same path? A bucket (s3://, gs://) need not be.",
            )
        self.put(mark, [b""])


class FolderStore(Store):
    """A folder, of this machine or mounted; made with the first file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __str__(self) -> str:
        return str(self.folder)

    def sizes(self) -> dict[str, int]:
        """See `Store`; drafts are left out."""
        found = {}
        for parent, _, names in os.walk(self.folder):
            for path in (Path(parent, name) for name in names if not name.startswith(".")):
                with suppress(FileNotFoundError):  # Taken away meanwhile.
                    found[path.relative_to(self.folder).as_posix()] = path.stat().st_size
        return found

    def put(self, name: str, parts: Iterable[bytes | memoryview]) -> None:
        """See `Store`."""
        path = self.folder / name
        # Two machines may write at once, with the same process id.
        draft = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with draft.open("wb") as file:
                for part in parts:
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        except BaseException as error:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
            if not isinstance(error, OSError):
                raise
            raise RaymlError(
                f"{path.name} could not be written to {path.parent}: {error.strerror or error}", _FULL_HINT
            ) from None

    def local(self, name: str, size: int) -> Path:
        """See `Store`; the file itself."""
        return self.folder / name

    def remove_drafts(self, name: str) -> None:
        """Remove what processes that were killed have left of a file; nobody writes it now."""
        for draft in self.folder.glob(f".{name}-*"):
            draft.unlink(missing_ok=True)

    def peek(self, name: str) -> bytes | None:
        """See `Store`."""
        try:
            return (self.folder / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RaymlError(f"{self.folder / name} could not be read: {error.strerror}", _FULL_HINT) from None


class BucketStore(Store):
    """Objects of a bucket; each is copied to this machine when it is first used, once for all of its processes.

    Arguments:
        root: an address, see this module's docstring.
        part: what follows the address's path, e.g. "features/KEY".
        folder: the folder of this machine for the copies.
    """

    def __init__(self, root: str, part: str, folder: Path) -> None:
        self._root, self._part, self.folder = root, part, folder
        self._copies = FolderStore(folder)

    @cached_property
    def _opened(self) -> tuple[Any, PurePosixPath]:
        """With the first use: a worker that cannot says so, instead of failing to start."""
        filesystem, base = open_bucket(self._root)
        return filesystem, PurePosixPath(base, self._part)

    @property
    def _filesystem(self) -> Any:
        return self._opened[0]

    @property
    def _base(self) -> PurePosixPath:
        return self._opened[1]

    def __reduce__(self) -> tuple[type[BucketStore], tuple[str, str, Path]]:
        return BucketStore, (self._root, self._part, self.folder)

    def __str__(self) -> str:
        return f"{self._root.partition('?')[0].rstrip('/')}/{self._part}"

    def sizes(self) -> dict[str, int]:
        """See `Store`."""
        import pyarrow.fs

        with self._reaching("listed"):
            selector = pyarrow.fs.FileSelector(str(self._base), allow_not_found=True, recursive=True)
            found = [info for info in self._filesystem.get_file_info(selector) if info.is_file]
        return {PurePosixPath(info.path).relative_to(self._base).as_posix(): int(info.size) for info in found}

    def put(self, name: str, parts: Iterable[bytes | memoryview]) -> None:
        """See `Store`; this machine keeps a copy."""
        parts = list(parts)
        self._copies.put(name, parts)
        with self._reaching(f"written to ({name})"), self._filesystem.open_output_stream(self._place(name)) as stream:
            for part in parts:
                stream.write(part)

    def local(self, name: str, size: int) -> Path:
        """See `Store`; a copy."""
        path = self.folder / name
        if not _has_size(path, size):
            with alone(self.folder, name):  # The other processes of this machine wait for the one copy.
                if not _has_size(path, size):
                    self._copies.put(name, self._read(name))
        return path

    def peek(self, name: str) -> bytes | None:
        """See `Store`; the object itself, not the copy."""
        with self._reaching(f"read ({name})"):
            try:
                with self._filesystem.open_input_stream(self._place(name)) as stream:
                    return bytes(stream.read())
            except FileNotFoundError:
                return None

    def _read(self, name: str) -> Iterator[bytes]:
        with self._reaching(f"read ({name})"), self._filesystem.open_input_stream(self._place(name)) as stream:
            while block := stream.read(_COPY_BYTES):
                yield block

    def _place(self, name: str) -> str:
        return str(self._base / name)

    @contextmanager
    def _reaching(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RaymlError(f"{self} could not be {what}: {_one_line(error)}", _BUCKET_HINT) from None


def is_bucket(root: str) -> bool:
    """Whether a --storage-path is the address of a bucket, not a folder."""
    return "://" in root


def check_storage(root: str) -> str:
    """Make sure that a --storage-path is one, and that a bucket answers.

    Arguments:
        root: a folder, which need not be there yet, or the address of a bucket.

    Returns:
        The folder's absolute path, or the address as it came.

    Raises:
        UsageError: neither, or an address with credentials in it, or a bucket that is not there.
        RaymlError: a bucket that cannot be reached, or not with these credentials.
    """
    import pyarrow.fs

    if not is_bucket(root):
        path = Path(root).absolute()
        there = next(parent for parent in (path, *path.parents) if parent.exists())
        if not root or not there.is_dir():
            which = repr(root) if there == path else f"{root!r}, where {there} is a file"
            raise UsageError(f"--storage-path must be a folder or a bucket. Received: {which}")
        return str(path)
    scheme = root.partition("://")[0]
    parsed = urllib.parse.urlsplit(root)
    if scheme not in BUCKET_SCHEMES or not parsed.hostname:
        raise UsageError(
            f"--storage-path must be a folder, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX. Received: {root}",
            "Mount anything else as a folder, on every machine.",
        )
    if parsed.username or parsed.password:
        raise UsageError(
            f"--storage-path must be without credentials. Received: some, for the bucket {parsed.hostname}",
            "Put them into the surroundings of every machine (AWS_ACCESS_KEY_ID, a role, ...): RUN notes the address.",
        )
    filesystem, base = open_bucket(root)
    bucket = PurePosixPath(base).parts[0]
    try:
        there = filesystem.get_file_info(bucket).type != pyarrow.fs.FileType.NotFound
    except OSError as error:
        raise RaymlError(f"--storage-path {root} cannot be used: {_one_line(error)}", _BUCKET_HINT) from None
    if not there:
        raise UsageError(f"--storage-path must name a bucket that is there. Received: {bucket}", _BUCKET_HINT)
    return root


def open_bucket(root: str) -> tuple[Any, str]:
    """The pyarrow file system of a bucket's address, and the path in it: what Ray Tune takes as its storage, too.

    Raises:
        UsageError: pyarrow cannot read the address.
        RaymlError: the bucket's region could not be found out.
    """
    import pyarrow
    import pyarrow.fs

    try:
        filesystem, path = pyarrow.fs.FileSystem.from_uri(root)
    except pyarrow.ArrowInvalid as error:
        raise UsageError(f"--storage-path must be an address. Received: {root} ({_one_line(error)})") from None
    except OSError as error:
        raise RaymlError(f"--storage-path {root} cannot be used: {_one_line(error)}", _BUCKET_HINT) from None
    return filesystem, path


def open_store(root: str | None, part: str, cache: Path) -> FolderStore | BucketStore:
    """The store of one thing.

    Arguments:
        root: the storage that machines share, as `check_storage` gave it, or None: the cache is the only place then.
        part: the thing, e.g. "features/KEY".
        cache: the folder of this machine for what it keeps.
    """
    if root is None:
        return FolderStore(cache / part)
    return BucketStore(root, part, cache / part) if is_bucket(root) else FolderStore(Path(root, part))


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


@contextmanager
def alone(folder: Path, name: str, *, wait: bool = True) -> Iterator[bool]:
    """One thread of one process of this machine at a time, for names that share a lock's file.

    Arguments:
        wait: for the others; without it, what is given says whether there are none.

    Raises:
        RaymlError: the folder cannot be made, or files cannot be locked in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / f".copying-{zlib.crc32(name.encode()) % _LOCKS}").open("wb")
    except OSError as error:
        raise RaymlError(f"{folder} could not be made: {error.strerror}", _FULL_HINT) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))  # Let go with the file.
            held = True
        except BlockingIOError:
            held = False
        except OSError as error:
            raise RaymlError(
                f"{folder} must lie where files can be locked. Received: {error.strerror}",
                "Name a folder on another disk: --cache, or RAYML_CACHE.",
            ) from None
        yield held


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
