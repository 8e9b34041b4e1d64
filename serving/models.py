"""The versions of one model that a replica answers from, and how a new one takes over while requests run.

A replica follows its model's live.json (see `rayml.registry`): a thread looks at it twice a second, loads what it asks
for, lets it reproduce its golden pictures and answer once, and only then lets it answer clients, by one assignment. So
nothing restarts, no request fails, and it works alike for one replica and for many on many machines: whoever may write
the folder may deploy, and there is no other door. (Ray Serve's own ways: `serve.run` starts every replica anew;
`reconfigure` takes a replica out of the proxy's list until it is done, so a single one would answer nobody, and ends it
when it raises.) What does not load never answers: the version before it goes on.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rayml.errors import InputError, RaymlError, UsageError
from rayml.memory import settle
from rayml.registry import State
from serving.limits import RequestLimits
from serving.protocols.base import ModelFacts
from serving.replicas import Reporter
from serving.served_model import ServedModel
from serving.shadow import ShadowRun
from serving.sources import Source

POLL_S = 0.5
# Versions in memory beside the live one (and a candidate or a shadow, while there is one): the one before it, so that
# a rollback takes no time, or one that a request has named. No more than a deployment needs for a moment anyway.
_OTHERS = 1
# A version that had to make room, or could not be loaded, is not loaded again at once: a stranger who asks for two in
# turn, or for a damaged one again and again, keeps no core busy.
_RELOAD_S = 10.0
# Nor is any version loaded because a request names it, so soon after another one was: there may be many to ask for.
_NEXT_LOAD_S = 5.0
VERSION_NOT_LOADED = "version_not_loaded"
# A live version that cannot be loaded, out of memory perhaps, is tried again after this long.
_RETRY_S = 30.0

# What makes a loaded version quicker takes the cores for a second or two; the start of its server needs them first.
_SETTLE_AFTER_S = 3.0

_log = logging.getLogger("ray.serve")


class Models:
    """The versions of one model. Thread-safe.

    Arguments:
        source: where they come from.
        engine, threads, limits, precision: as in `ServedModel`.
        reporter: where to say how far this replica is, or None for nowhere.

    Raises:
        UsageError: no version is live.
        BundleError: the live version is damaged, or does not give here what it gave when it was trained.
    """

    def __init__(
        self,
        source: Source,
        engine: str,
        threads: int,
        limits: RequestLimits,
        reporter: Reporter | None = None,
        precision: str = "auto",
    ) -> None:
        self.name = source.name
        self._source = source
        self._engine, self._threads, self._limits, self._precision = engine, threads, limits, precision
        self._reporter = reporter
        self._warm_up: Callable[[ServedModel], None] | None = None
        self._lock = threading.RLock()  # What is loaded changes hands under it; loading takes about a second.
        self._others: dict[int, ServedModel] = {}  # Least recently used first.
        self._opened_at: dict[int, float] = {}  # Whether it could be loaded or not.
        self._loaded_for_a_request_at = -_NEXT_LOAD_S
        self._failed: dict[int, tuple[float, str]] = {}
        self._told = ("", 0.0)  # Why nothing changes, and when that was written down.
        self._settle_at = 0.0  # When what was loaded last is made quicker; infinite once it has been.
        self._candidate: int | None = None
        self._shadow: ShadowRun | None = None
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="rayml-load")
        self._wake, self._stopped = threading.Event(), threading.Event()
        self._follower = threading.Thread(target=self._follow, name="rayml-follow", daemon=True)
        self._report()
        try:
            state = source.state()
            if state.live is None:
                raise UsageError(f"a version of {self.name} must be live. Received: none", "rayml promote RUN MODELS")
            self._live_version = state.live
            self._live = self._open(state.live)
        except BaseException:
            if reporter is not None:
                reporter.remove()  # Its thread would go on saying that this replica is about to start.
            raise

    def start(self, warm_up: Callable[[ServedModel], None]) -> None:
        """Warm the live version up, then begin to follow what is to be live.

        Arguments:
            warm_up: lets a version be used once by all that will use it.
        """
        self._warm_up = warm_up
        warm_up(self._live)
        self._report()
        self._settle_at = time.monotonic() + _SETTLE_AFTER_S
        self._follower.start()

    @property
    def live(self) -> ServedModel:
        """The version that answers where none is named."""
        return self._live

    def loaded(self, name: str | None = None, version: str | None = None) -> ServedModel | None:
        """The version that a request asks for, or None where only `get` can tell, since it is not in memory.

        Arguments:
            name, version: as in `get`.

        Raises:
            InputError: 404, there is none.
        """
        if name is not None and name != self.name:
            raise InputError(f"The model must be {self.name}.", status=404, code="unknown_model")
        live = self._live
        if version is None or version == live.facts.identity.version:
            return live
        number = int(version) if version.isascii() and version.isdigit() and len(version) < 10 else 0
        found = self._others.get(number)
        if found is not None and found.facts.identity.version == version:
            return found
        if str(number) != version:  # 007 is no other name for 7.
            raise self._unknown_version()
        return None

    async def get(self, name: str | None = None, version: str | None = None) -> ServedModel:
        """The version that a request asks for; keep it for the whole request, the live one may change meanwhile.

        Arguments:
            name: the model's name, or None for whichever there is.
            version: its version, or None for the live one; another one is loaded when it is first asked for.

        Raises:
            InputError: 404, there is none; 503, it cannot be had now.
        """
        found = self.loaded(name, version)
        if found is not None:
            return found
        assert version is not None  # There is always a live one.
        # Not on the event loop, which would answer nobody while a shared disk hangs.
        return await asyncio.get_running_loop().run_in_executor(self._loader, self._on_demand, int(version))

    def versions(self, name: str) -> list[ModelFacts]:
        """The loaded versions of a model, the live one first; none for a name that is not served."""
        live, others = self._live, list(self._others.values())
        return [model.facts for model in (live, *others)] if name == self.name else []

    def answered(
        self,
        model: ServedModel,
        source: bytes | NDArray[np.uint8],
        pixels: NDArray[np.uint8],
        label: str,
        seconds: float,
    ) -> None:
        """Hear of an answer that is on its way, for a shadow to be asked the same.

        Arguments:
            model: who gave it.
            source: the picture, as it came: encoded, or as pixels.
            pixels: uint8 (H, W, 3), as the model took it.
            label: the answer.
            seconds: how long the model took.
        """
        shadow = self._shadow
        if shadow is not None and model is self._live:
            shadow.offer(source, pixels, label, seconds)

    def follow(self, source: Source) -> None:
        """Take versions from another place; what answers now goes on until that place's live version is ready.

        Arguments:
            source: the place, of the same model.
        """
        self._source = source  # Without the lock, which is held while a version loads: an event loop calls this.
        self._wake.set()

    def stop(self) -> None:
        """End the thread and the report."""
        self._stopped.set()
        self._wake.set()
        if self._follower.ident is not None:
            self._follower.join()
        if self._shadow is not None:
            self._shadow.stop()
            self._shadow.join()
        if self._reporter is not None:
            self._reporter.remove()

    def _unknown_version(self) -> InputError:
        return InputError(f"{self.name} has no such version.", status=404, code="unknown_version")

    def _on_demand(self, number: int) -> ServedModel:
        try:
            self._source.path(number)
        except UsageError:
            raise self._unknown_version() from None
        except RaymlError:  # The folder is away, or holds what is not ours.
            raise _not_loaded("That version cannot be loaded.", _RELOAD_S) from None
        with self._lock:
            for loaded in (self._live, *self._others.values()):
                if loaded.facts.identity.version == str(number):
                    self._others.pop(number, None)
                    if loaded is not self._live:
                        self._others[number] = loaded  # Used last.
                    return loaded
            again_at = max(
                self._opened_at.get(number, -_RELOAD_S) + _RELOAD_S, self._loaded_for_a_request_at + _NEXT_LOAD_S
            )
            if (left_s := again_at - time.monotonic()) > 0:
                message = "That version had to make room or cannot be loaded, or another has just been; try again."
                raise _not_loaded(message, left_s)
            try:
                return self._open_other(number)
            except RaymlError as error:
                _log.error("Version %d of %s does not load: %s", number, self.name, error.message)
                raise _not_loaded("That version cannot be loaded.", _RELOAD_S) from None
            finally:
                self._loaded_for_a_request_at = time.monotonic()

    def _open(self, number: int) -> ServedModel:
        try:
            path = self._source.path(number)
            model = ServedModel(self.name, number, path, self._engine, self._threads, self._limits, self._precision)
            if self._warm_up is not None:
                self._warm_up(model)
        finally:
            self._opened_at[number] = time.monotonic()
        return model

    def _open_other(self, number: int) -> ServedModel:
        """Load a version; the one least recently used makes room for it then, not for one that does not load."""
        opened = self._open(number)
        kept = [n for n in self._others if n == self._candidate]
        for other in [n for n in self._others if n not in kept][: max(0, len(self._others) - len(kept) - _OTHERS + 1)]:
            del self._others[other]
        self._others[number] = opened
        return opened

    def _follow(self) -> None:
        while not self._stopped.is_set():
            try:
                self._step()
            except Exception as error:  # The folder is away, or damaged: go on with what there is.
                self._tell(error)
            self._wake.wait(POLL_S)
            self._wake.clear()
            self._settle()

    def _tell(self, error: Exception) -> None:
        """Write down what keeps the versions as they are; again only when it is another thing, or after a while."""
        reason = error.message if isinstance(error, RaymlError) else f"{type(error).__name__}: {error}"
        told, at = self._told
        now = time.monotonic()
        if reason == told and now - at < _RETRY_S:
            return
        self._told = (reason, now)
        trace = None if isinstance(error, RaymlError) else error
        _log.error("%s stays at version %d: %s", self.name, self._live_version, reason, exc_info=trace)

    def _settle(self) -> None:
        """Once after a version went live, make it quicker and put the memory in order; no request waits for it.

        Others are left as they were loaded: a stranger may ask for one after the other.
        """
        if time.monotonic() >= self._settle_at and not self._stopped.is_set():
            self._settle_at = math.inf
            for improve in (self._live.group, settle):
                try:  # They answer without it, and the versions to be live matter more.
                    improve()
                except RaymlError as error:
                    _log.error("%s answers on as it did when it was loaded: %s", self.name, error.message)
                except Exception:
                    _log.exception("%s answers on as it did when it was loaded.", self.name)

    def _step(self) -> None:
        """One look at what should be, and one step towards it."""
        try:
            with self._lock:
                self._go_on(self._source.state())
        finally:
            self._report()

    def _go_on(self, state: State) -> None:
        wanted = {state.live, state.candidate} - {None}
        now = time.monotonic()
        for number, (since, _) in list(self._failed.items()):
            if number not in wanted or now - since > _RETRY_S:
                del self._failed[number]
        self._candidate = state.candidate
        if state.candidate is not None and state.candidate != self._live_version:
            self._make_ready(state.candidate)
        if state.live is not None and (state.live != self._live_version) and self._make_ready(state.live):
            old = self._live
            self._live, self._live_version = self._others.pop(state.live), state.live
            self._others[int(old.facts.identity.version)] = old
            self._settle_at = time.monotonic() + _SETTLE_AFTER_S
        self._set_shadow(state)

    def _make_ready(self, number: int) -> bool:
        if number in self._others:
            return True
        if number in self._failed:
            return False
        try:
            self._open_other(number)
        except Exception as error:
            reason = error.message if isinstance(error, RaymlError) else f"{type(error).__name__}: {error}"
            self._failed[number] = (time.monotonic(), reason[:500])
            _log.error("Version %d of %s does not load: %s", number, self.name, reason)
            return False
        return True

    def _set_shadow(self, state: State) -> None:
        wanted = None if state.shadow is None or state.shadow.version == state.live else state.shadow.version
        pair = (self._live_version, wanted)
        if self._shadow is not None and self._shadow.pair != pair:
            self._shadow.stop()  # It may still be loading, at its leisure: nobody waits for that here.
            self._shadow = None
        if self._shadow is None and wanted is not None:
            path = self._source.path(wanted)
            self._shadow = ShadowRun(
                pair, self._live.bundle.record.preprocessing, lambda: self._load_shadow(wanted, path)
            )

    def _load_shadow(self, number: int, path: Path) -> ServedModel:
        return ServedModel(self.name, number, path, self._engine, 1, self._limits, self._precision)

    def _report(self) -> None:
        if self._reporter is None:
            return
        live = getattr(self, "_live", None)
        with self._lock:
            self._reporter.write(
                {
                    "live": None if live is None else live.facts.identity.to_dict(),
                    "ready": [] if live is None else sorted({self._live_version, *self._others}),
                    "failed": {str(number): reason for number, (_, reason) in self._failed.items()},
                    "shadow": None if self._shadow is None else self._shadow.figures(),
                    "pinned": self._source.pinned is not None,
                }
            )


def _not_loaded(message: str, retry_after_s: float) -> InputError:
    return InputError(message, status=503, code=VERSION_NOT_LOADED, retry_after_s=retry_after_s)
