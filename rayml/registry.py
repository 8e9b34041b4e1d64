"""Numbered versions of classifiers in a folder, and which one is live.

    MODELS/.lock                  held by the one writer at a time (flock(2))
    MODELS/NAME/1, 2, ...         bundles, each copied once and never changed or removed
    MODELS/NAME/live.json         which of them answers, which did before, and what is being tried

A bundle gets its number here: the `version` in its bundle.json is part of what is sealed and stays as it is. Servers
follow live.json, so writing it is what a promotion is. It is replaced in one step (rename(2) after fsync(2)), as a new
version's folder is: a writer that is killed leaves the old state, or the new one, whole, and at most a hidden
`.partial-...` that the next writer removes. Readers need no lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from rayml.bundle import Bundle
from rayml.bundle_json import GOLDEN, NAME_PATTERN, RECORD
from rayml.durable import sync_folder, write_durably
from rayml.errors import BundleError, RegistryError, UsageError
from rayml.folders import LOST_AND_FOUND
from rayml.live_json import MEND, STATE, Shadow, State

__all__ = ["REPLICAS", "STATE", "Registry", "Shadow", "State", "find_bundle"]

# Where replicas say how far they are, see `serving.replicas`.
REPLICAS = "replicas"
_LOCK = ".lock"
_PARTIAL = ".partial-"
_NUMBER = re.compile(r"[1-9][0-9]{0,8}")


class Registry:
    """A folder of models. Reading is free; whoever changes something does so inside `writing`.

    Arguments:
        root: MODELS; a missing folder is an empty registry until something is written.

    Raises:
        RegistryError: there is something in it that is no model.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).absolute()
        self._writing = False
        self.names()

    @staticmethod
    def is_one(path: Path) -> bool:
        """Whether `path` is a folder that holds models, live or only stored, rather than a bundle."""
        if not path.is_dir() or os.path.lexists(path / RECORD):
            return False
        return any(path.glob(f"*/{STATE}")) or any(path.glob(f"*/[1-9]*/{RECORD}"))

    def names(self) -> tuple[str, ...]:
        """The models, by name.

        Raises:
            RegistryError: there is something else in the folder.
        """
        found = []
        if os.path.lexists(self.root / RECORD):
            raise RegistryError(f"{self.root} must hold models. Received: one bundle", "rayml promote BUNDLE MODELS")
        for entry in self._entries(self.root):
            if entry.name.startswith(".") or entry.name == LOST_AND_FOUND:
                continue  # The lock, and what desktops and file systems leave behind.
            if (
                NAME_PATTERN.fullmatch(entry.name) is None
                or not entry.is_dir()
                or (self.root / entry.name / RECORD).exists()
            ):
                raise RegistryError(f"{self.root} must hold models, a folder for each. Received: {entry.name}", MEND)
            self._numbers(entry.name)
            found.append(entry.name)
        return tuple(sorted(found))

    def one_name(self, name: str | None) -> str:
        """`name` if there is such a model, or the only one's name.

        Raises:
            UsageError: no such model, or several and none is named.
        """
        names = self.names()
        if name is None and len(names) == 1:
            return names[0]
        received = ", ".join(names[:10]) or "no model"
        if name is None:
            hint = "say which one with --name" if names else "write one with `rayml promote RUN MODELS`"
            raise UsageError(f"{self.root} must hold one model. Received: {received}", hint)
        if name not in names:
            raise UsageError(f"{name} must be a model of {self.root}. Received: {received}")
        return name

    def versions(self, name: str) -> tuple[int, ...]:
        """The numbers of a model's versions, ascending.

        Raises:
            RegistryError: there is something else in its folder.
        """
        return self._numbers(name)

    def state(self, name: str) -> State:
        """What is live.

        Raises:
            RegistryError: live.json is damaged.
        """
        path = self.root / name / STATE
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return State()
        except OSError as error:
            raise RegistryError(f"{path} must be readable. Received: {error.strerror}") from None
        return State.from_json(data, str(path))

    def path(self, name: str, version: int) -> Path:
        """The folder of a version's bundle.

        Raises:
            UsageError: there is no such version.
            RegistryError: the folder cannot be read.
        """
        path = self.root / name / str(version)
        try:
            found = path.is_dir()
        except OSError as error:
            raise RegistryError(f"{path} must be a readable folder. Received: {error.strerror}") from None
        if not found:
            known = "not to be read"  # Another fault of the folder is no reason not to say this.
            with contextlib.suppress(RegistryError):
                known = ", ".join(map(str, self.versions(name))) or "none"
            raise UsageError(f"{name} must have a version {version}. Received: the versions are {known}")
        return path

    def find(self, name: str, digest: str) -> int | None:
        """The version that is the bundle with this digest, if one is."""
        for version in reversed(self.versions(name)):
            with contextlib.suppress(RegistryError):
                if self.digest(name, version) == digest:
                    return version
        return None

    def digest(self, name: str, version: int) -> str:
        """The sha256 hex of a version's bundle.json, which seals its other files.

        Raises:
            UsageError: there is no such version.
            RegistryError: it cannot be read.
        """
        path = self.path(name, version)
        try:
            return _digest(path)
        except OSError as error:
            raise RegistryError(f"{path / RECORD} must be readable. Received: {error.strerror}") from None

    @contextlib.contextmanager
    def writing(self, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Be the one writer: waits for another one to finish, and removes what a killed one left.

        Arguments:
            waiting: called once if there is another one.

        Raises:
            RegistryError: the folder cannot be written to.
        """
        with self._readably():
            self.root.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.root / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            with self._readably():
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    waiting()
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
                for left in self.root.glob(f"*/{_PARTIAL}*"):
                    shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
            self._writing = True
            yield
        finally:
            self._writing = False
            os.close(descriptor)  # Gives the lock back too.

    def add(self, bundle: Bundle, name: str | None = None, *, lasting: bool = True) -> int:
        """Store a bundle as the next version, without making it live; one that is there already keeps its number.

        Arguments:
            bundle: what to copy; it is verified again where it arrives.
            name: the model's name, the bundle's own by default.
            lasting: False for an empty registry that lasts no longer than a process: the copy is not forced to disk
                and is left to its reader to verify, and its number is what its own bundle.json says.

        Raises:
            UsageError: no name for a model.
            RegistryError: the disk refused.
            BundleError: the bundle has changed since it was opened.
        """
        assert self._writing
        name = bundle.record.name if name is None else name
        if NAME_PATTERN.fullmatch(name) is None:
            raise UsageError(f"a model's name must be 1 to 64 letters, digits, '.', '_' or '-'. Received: {name!r}")
        folder = self.root / name
        known = self._numbers(name) if folder.exists() else ()
        if known and (same := self.find(name, bundle.digest)) is not None:
            Bundle.open(self.path(name, same))  # It may have been damaged since.
            return same
        number = max(known, default=0) + 1 if lasting else bundle.record.version
        partial = folder / f"{_PARTIAL}{secrets.token_hex(8)}"
        with self._readably():
            folder.mkdir(exist_ok=True)
            try:
                sync_folder(self.root)
                _copy(bundle, partial, lasting)
            except BaseException:
                with contextlib.suppress(OSError):
                    shutil.rmtree(partial)
                with contextlib.suppress(OSError):
                    folder.rmdir()  # A model without a version is none.
                raise
            partial.rename(folder / str(number))
            sync_folder(folder)
        return number

    def write_state(self, name: str, state: State) -> None:
        """Replace live.json in one step.

        Raises:
            UsageError: it names a version that is not there.
            RegistryError: the disk refused; the old one is whole.
        """
        assert self._writing
        for version in (state.live, state.candidate, state.shadow.version if state.shadow else None):
            if version is not None:
                self.path(name, version)
        folder = self.root / name
        partial = folder / f"{_PARTIAL}{secrets.token_hex(8)}"
        with self._readably():
            try:
                write_durably(partial, state.to_json())
                partial.replace(folder / STATE)
            except BaseException:
                with contextlib.suppress(OSError):
                    partial.unlink()
                raise
            sync_folder(folder)

    def _numbers(self, name: str) -> tuple[int, ...]:
        numbers = []
        for entry in self._entries(self.root / name):
            if entry.name.startswith(".") or entry.name in (STATE, REPLICAS):
                continue
            if _NUMBER.fullmatch(entry.name) is None or not entry.is_dir():
                raise RegistryError(
                    f"{self.root / name} must hold numbered versions and {STATE}. Received: {entry.name}", MEND
                )
            numbers.append(int(entry.name))
        return tuple(sorted(numbers))

    def _entries(self, folder: Path) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(folder) as entries:
                return list(entries)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise RegistryError(f"{folder} must be a readable folder. Received: {error.strerror}") from None

    @contextlib.contextmanager
    def _readably(self) -> Iterator[None]:
        """The disk's refusals as an error that a person can act on."""
        try:
            yield
        except OSError as error:
            raise RegistryError(
                f"{self.root} must be writable. Received: {error.strerror or error}",
                "free space, or choose another folder",
            ) from None


def find_bundle(run: str | Path) -> Bundle:
    """The verified bundle of a run's folder, RUN/best, or of a bundle's own folder.

    Raises:
        BundleError: there is none, or it is damaged.
    """
    path = Path(run)
    if path.is_dir() and not os.path.lexists(path / RECORD):
        if not os.path.lexists(path / "best"):
            raise BundleError(
                f"expected a run with a bundle, {path / 'best'}. Received: {path}, which has none",
                "a search that was interrupted or failed has no winner: finish it with `rayml tune`",
            )
        path = path / "best"
    return Bundle.open(path)


def _digest(folder: Path) -> str:
    return hashlib.sha256((folder / RECORD).read_bytes()).hexdigest()


def _copy(bundle: Bundle, target: Path, lasting: bool) -> None:
    """The bundle's files; where they are to last, forced to disk and verified where they arrived."""
    (target / GOLDEN).mkdir(parents=True)
    for name in (*bundle.record.files, RECORD):
        with (bundle.path / name).open("rb") as source, (target / name).open("xb") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)
            if lasting:
                copy.flush()
                os.fsync(copy.fileno())
    if lasting:
        sync_folder(target / GOLDEN)
        sync_folder(target)
    arrived = Bundle.open(target).digest if lasting else _digest(target)
    if arrived != bundle.digest:
        raise BundleError(
            f"{bundle.path} must not change while it is copied. Received: another bundle.json", "try again"
        )
