"""Where the versions of a model come from: a bundle that stays what it is, or a folder of models that changes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from rayml.bundle import Record, read_record
from rayml.errors import UsageError
from rayml.registry import Registry, State


class Source(Protocol):
    """Where versions come from."""

    @property
    def name(self) -> str:
        """The model's name."""

    @property
    def pinned(self) -> int | None:
        """The version that answers whatever is made live, or None."""

    def state(self) -> State:
        """Which version is live."""

    def path(self, version: int) -> Path:
        """The folder of a version's bundle; UsageError where there is none."""


@dataclass(frozen=True)
class BundleSource:
    """One bundle, which stays what it is.

    Arguments:
        folder: the bundle's.
        record: what it says of itself.
    """

    folder: Path
    record: Record

    @classmethod
    def read(cls, path: str | Path) -> BundleSource:
        """The bundle in a folder, or behind a link to one. What loads it verifies it.

        Raises:
            BundleError: there is none, or its record is damaged.
        """
        folder = Path(path).resolve()
        return cls(folder, read_record(folder))

    @property
    def name(self) -> str:
        """The model's name."""
        return self.record.name

    @property
    def pinned(self) -> int | None:
        """None: nothing else could be made live."""
        return None

    def state(self) -> State:
        """The bundle's own version is live."""
        return State(live=self.record.version)

    def path(self, version: int) -> Path:
        """The bundle's folder."""
        if version != self.record.version:
            raise UsageError(f"the version must be {self.record.version}. Received: {version}")
        return self.folder


@dataclass(frozen=True)
class RegistrySource:
    """A model in a folder of models.

    Arguments:
        registry: the folder.
        name: the model.
        pinned: the version that answers whatever live.json says, or None.
    """

    registry: Registry
    name: str
    pinned: int | None = None

    def state(self) -> State:
        """What live.json says; with a pinned version, nothing else is made ready."""
        state = self.registry.state(self.name)
        return state if self.pinned is None else replace(state, live=self.pinned, candidate=None)

    def path(self, version: int) -> Path:
        """A version's folder."""
        return self.registry.path(self.name, version)
