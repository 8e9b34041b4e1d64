"""Make another version live under the replicas that run: ready everywhere first, then live everywhere, or neither."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from rayml.errors import ServerError
from rayml.registry import Registry, State
from serving.replicas import Report, has_ended, reports

# A replica loads a version in seconds; on a machine that is full to the brim it takes longer.
READY_TIMEOUT_S = 120.0
_POLL_S = 0.2
# Fewer pictures than this do not show that two versions agree on 98 in 100.
MIN_COMPARED = 100


@dataclass(frozen=True)
class Agreement:
    """A shadow's comparison, over all replicas.

    Arguments:
        version: the shadow's.
        floor: the share of pictures on which it must agree.
        compared, agreed, dropped, unreadable: pictures.
        live_ms, shadow_ms: {`p50`, `p99`} of the slowest replica, or None where nothing was compared.
        errors: why replicas cannot compare.
    """

    version: int
    floor: float
    compared: int
    agreed: int
    dropped: int
    unreadable: int
    live_ms: dict[str, float] | None
    shadow_ms: dict[str, float] | None
    errors: tuple[str, ...]

    @property
    def share(self) -> float | None:
        """Agreed of those that the shadow was asked; what it has no answer to is not agreed."""
        asked = self.compared + self.unreadable
        return self.agreed / asked if asked else None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**fields, "agreement": self.share, "errors": list(self.errors)}


def agreement(state: State, replicas: list[Report]) -> Agreement | None:
    """What the replicas found of the state's shadow, or None where there is none."""
    if state.shadow is None:
        return None
    # Not those that are pinned to another version, or have yet to take the live one: they compare with something else.
    pair = {"live": state.live, "version": state.shadow.version}
    found = [r.shadow for r in replicas if r.shadow is not None and pair.items() <= r.shadow.items()]

    def slowest(key: str) -> dict[str, float] | None:
        times = [figures[key] for figures in found if figures[key] is not None]
        return {q: max(t[q] for t in times) for q in ("p50", "p99")} if times else None

    counts = {key: sum(figures[key] for figures in found) for key in ("compared", "agreed", "dropped", "unreadable")}
    errors = tuple(sorted({figures["error"] for figures in found if figures["error"]}))
    return Agreement(
        state.shadow.version,
        state.shadow.floor,
        **counts,
        live_ms=slowest("live_ms"),
        shadow_ms=slowest("shadow_ms"),
        errors=errors,
    )


def check_shadow(registry: Registry, name: str, state: State, version: int) -> None:
    """Refuse to make a shadow live whose agreement is not shown.

    Raises:
        ServerError: it is below its floor, or too little was compared.
    """
    if state.shadow is None or state.shadow.version != version:
        return
    found = agreement(state, reports(registry, name))
    assert found is not None
    hint = "`rayml models` shows the comparison; `rayml deploy MODELS --no-shadow` ends it and takes the floor away"
    if found.compared < MIN_COMPARED:
        why = f" ({'; '.join(found.errors)})" if found.errors else ""
        raise ServerError(
            f"version {version} must be compared on {MIN_COMPARED} pictures before it may be live. "
            f"Received: {found.compared}{why}",
            hint,
        )
    assert found.share is not None
    if found.share < found.floor:
        failed = f", {found.unreadable} of which it failed on" if found.unreadable else ""
        raise ServerError(
            f"version {version} must agree with the live one on {found.floor:g} of the pictures. "
            f"Received: {found.share:.4f} of {found.compared + found.unreadable}{failed}",
            hint,
        )


def switch(
    registry: Registry,
    name: str,
    state: State,
    say: Callable[[str], None] = lambda _: None,
    timeout_s: float = READY_TIMEOUT_S,
) -> int:
    """Put a state with another live version in force; inside `registry.writing()`.

    All replicas load, verify and warm the version while they answer with the old one. Only when each of them is ready
    does live.json change; if one of them cannot have it, it does not, and no client has seen the version. Replicas that
    are pinned to a version keep it, and nobody waits for them.

    Arguments:
        registry: MODELS.
        name: the model.
        state: the new state; its `live` is the version to go to.
        say: told what is waited for, and who is not.
        timeout_s: seconds for each of the two steps.

    Returns:
        How many replicas answer with it now; 0 where no server runs.

    Raises:
        ServerError: a replica cannot have it, or does not say so in time; the old version is live as before. In the
            second step replicas may have answered with the new one meanwhile, which the hint says.
    """
    assert state.live is not None
    old, version = registry.state(name), state.live
    found = reports(registry, name)
    known = {replica.replica: replica for replica in found if not replica.pinned}
    rollout = _Rollout(registry, name, version, registry.digest(name, version), known, timeout_s)
    if pinned := len(found) - len(known):
        say(f"Left out: {pinned} replica{'s' if pinned > 1 else ''} that a Serve config file pins to a version.")
    if known and old.live != version:
        say(f"{len(known)} replica{'s' if len(known) > 1 else ''} make version {version} ready ...")
        registry.write_state(name, replace(old, candidate=version))
        try:
            hint = "nothing has changed for clients; the version stays stored and is not live"
            rollout.wait("ready", lambda replica: version in replica.ready, hint)
        except BaseException:
            registry.write_state(name, replace(old, candidate=None))
            raise
    registry.write_state(name, state)
    if not known:
        return 0
    hint = "nothing has changed for clients"
    if old.live != version:
        again = "no version" if old.live is None else f"version {old.live}"
        hint = f"the replicas that were that far have answered with it meanwhile; {again} is live again"
    try:
        return rollout.wait("live", lambda replica: replica.live == str(version), hint)
    except ServerError:
        registry.write_state(name, replace(old, candidate=None))
        raise


@dataclass(frozen=True)
class _Rollout:
    """A version on its way into the replicas.

    Arguments:
        registry, name, version: which.
        digest: of its bundle.
        known: the last word of each replica that is to have it, kept up to date.
        timeout_s: seconds for each step.
    """

    registry: Registry
    name: str
    version: int
    digest: str
    known: dict[str, Report]
    timeout_s: float

    def wait(self, what: str, arrived: Callable[[Report], bool], hint: str) -> int:
        """Wait until every replica has arrived that has not ended and is not pinned; the number of them.

        One that is silent has not ended: it may go on with another version than the others.
        """
        deadline = time.monotonic() + self.timeout_s
        while True:
            self._look()
            for replica in self.known.values():
                if (reason := self._obstacle(replica)) is not None:
                    raise ServerError(
                        f"every replica must be able to have version {self.version}. "
                        f"Received: {replica.replica}: {reason}",
                        hint,
                    )
            late = [replica for replica in self.known.values() if not arrived(replica)]
            if not late:
                return len(self.known)
            if time.monotonic() > deadline:
                raise ServerError(
                    f"version {self.version} must be {what} in every replica within {self.timeout_s:g} s. "
                    f"Received: {len(late)} of {len(self.known)} are not that far, such as {late[0].replica}",
                    f"{hint}; try again when the machine is less busy",
                )
            time.sleep(_POLL_S)

    def _look(self) -> None:
        self.known.update((replica.replica, replica) for replica in reports(self.registry, self.name))
        for one in list(self.known.values()):
            if one.pinned or has_ended(self.registry, self.name, one.replica):
                del self.known[one.replica]

    def _obstacle(self, replica: Report) -> str | None:
        """Why a replica will never have the version as it was stored."""
        if replica.live == str(self.version) and replica.bundle != self.digest:
            return "it answers with another bundle under this number, whose folder has been changed"
        return replica.failed.get(str(self.version))
