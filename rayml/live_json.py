"""`live.json`, format 1: which version of a model answers, which did before, and what is being tried."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from rayml.bundle_json import strict_json
from rayml.errors import BundleError, RegistryError, UsageError

FORMAT = 1
STATE = "live.json"
MEND = "Move away what rayml did not write there, or bring a whole copy of the folder back."


@dataclass(frozen=True)
class Shadow:
    """A version that is asked on live traffic without being answered from.

    Arguments:
        version: its number.
        floor: the share of pictures, 0 to 1, on which its class has to be the live version's before it may be live.
    """

    version: int
    floor: float


@dataclass(frozen=True)
class State:
    """The content of live.json.

    Arguments:
        live: the version that answers, or None before the first promotion.
        before: the versions that were live before it, oldest first; a rollback goes to the last.
        candidate: a version that replicas are to make ready because it is about to be live.
        shadow: a version that is tried on live traffic.
    """

    live: int | None = None
    before: tuple[int, ...] = ()
    candidate: int | None = None
    shadow: Shadow | None = None

    def with_live(self, version: int) -> State:
        """The state in which `version` answers, and what answered so far can be gone back to."""
        if version == self.live:
            return replace(self, candidate=None)
        before = tuple(v for v in self.before if v != version) + (() if self.live is None else (self.live,))
        return State(version, before, None, self._shadow_beside(version))

    def rolled_back(self) -> State:
        """The state before the last promotion.

        Raises:
            UsageError: there was none.
        """
        if not self.before:
            received = "none" if self.live is None else f"only version {self.live}"
            raise UsageError(f"an older version must have been live. Received: {received}")
        return State(self.before[-1], self.before[:-1], None, self._shadow_beside(self.before[-1]))

    def _shadow_beside(self, live: int) -> Shadow | None:
        """The shadow, unless it is live now: a version is not compared with itself."""
        return None if self.shadow is not None and self.shadow.version == live else self.shadow

    def to_json(self) -> bytes:
        """live.json's bytes."""
        shadow = None if self.shadow is None else {"version": self.shadow.version, "floor": self.shadow.floor}
        content = {
            "format": FORMAT,
            "live": self.live,
            "before": list(self.before),
            "candidate": self.candidate,
            "shadow": shadow,
        }
        return json.dumps(content).encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes, name: str) -> State:
        """Read live.json.

        Arguments:
            data: its bytes.
            name: its path, for the message.

        Raises:
            RegistryError: it is not what `to_json` writes.
        """
        try:
            content = strict_json(data, name)
        except BundleError as error:
            raise RegistryError(error.message, MEND) from None
        if not isinstance(content, dict) or set(content) != {"format", "live", "before", "candidate", "shadow"}:
            raise RegistryError(f"{name} must be as rayml wrote it. Received: other keys", MEND)
        if content["format"] != FORMAT:
            raise RegistryError(f"{name}: format {FORMAT} was expected. Received: {content['format']!r:.80}")
        before, shadow = content["before"], content["shadow"]
        good = _is_version(content["live"]) and _is_version(content["candidate"]) and isinstance(before, list)
        good = good and all(_is_version(v) and v is not None for v in before)
        if shadow is not None:
            good = good and isinstance(shadow, dict) and set(shadow) == {"version", "floor"}
            good = good and shadow["version"] is not None and _is_version(shadow["version"])
            good = good and type(shadow["floor"]) in (int, float) and 0 <= shadow["floor"] <= 1
        if not good:
            raise RegistryError(f"{name} must hold version numbers. Received: {data[:200]!r}", MEND)
        found = None if shadow is None else Shadow(shadow["version"], float(shadow["floor"]))
        return cls(content["live"], tuple(before), content["candidate"], found)


def _is_version(value: object) -> bool:
    return value is None or (type(value) is int and 1 <= value < 10**9)
