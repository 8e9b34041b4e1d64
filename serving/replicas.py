"""What each replica says of itself, as one small file beside the versions that it serves: MODELS/NAME/replicas/ID.json.

`rayml deploy` reads them to know that all replicas, on whatever machines, have made a version ready and then taken it.
A replica writes its file anew every two seconds, in a thread of its own, so that it does while it loads a version; one
that has not done so for a while is gone.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import socket
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rayml.registry import REPLICAS, Registry

_BEAT_S = 2.0
# A replica that has missed this many seconds, on a machine that is overloaded perhaps, no longer counts.
_GONE_S = 30.0
# Its file stays for longer: whoever waits for it has to see that it has not ended, but fallen silent.
_FORGOTTEN_S = 3600.0
_MAX_BYTES = 1 << 16

_log = logging.getLogger("ray.serve")


@dataclass(frozen=True)
class Report:
    """What a replica said last.

    Arguments:
        replica: its file's name: host, process namespace and process id.
        live: the version that it answers with, or None while it starts.
        bundle: that version's digest, "" while it starts.
        ready: the versions that it could answer with at once.
        failed: version -> why it cannot be loaded.
        shadow: `ShadowRun.figures`, or None.
        pinned: whether it keeps its version whatever is made live.
    """

    replica: str
    live: str | None
    bundle: str = ""
    ready: tuple[int, ...] = ()
    failed: dict[str, str] = field(default_factory=dict)
    shadow: dict[str, Any] | None = None
    pinned: bool = False


class Reporter:
    """Writes this process's report; where the folder cannot be written to, it says so once and tries again.

    Arguments:
        registry: MODELS.
        name: the model.
    """

    def __init__(self, registry: Registry, name: str) -> None:
        self._folder = registry.root / name / REPLICAS
        self._path = self._folder / f"{_here()}{os.getpid()}-{secrets.token_hex(4)}.json"
        self._text = ""
        self._told = False
        self._lock = threading.Lock()  # One writes at a time, and nobody after the end.
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="rayml-report", daemon=True)

    def write(self, content: dict[str, Any]) -> None:
        """Say how far this replica is, now where it is news and every two seconds from then on."""
        text = json.dumps(content)
        if text == self._text:
            return
        self._text = text
        self._put()
        if self._thread.ident is None:
            self._thread.start()

    def remove(self) -> None:
        """This replica is gone."""
        with self._lock:
            self._ended.set()
            with contextlib.suppress(OSError):
                self._path.unlink()

    def _beat(self) -> None:
        while not self._ended.wait(_BEAT_S):
            self._put()

    def _put(self) -> None:
        draft = self._path.with_suffix(".tmp")
        with self._lock:
            if self._ended.is_set():
                return
            try:
                self._folder.mkdir(exist_ok=True)
                draft.write_text(self._text, encoding="utf-8")
                draft.replace(self._path)
                self._told = False
            except OSError as error:
                if not self._told:
                    _log.warning("Replicas cannot report in %s: %s. `rayml deploy` sees none.", self._folder, error)
                self._told = True


def reports(registry: Registry, name: str) -> list[Report]:
    """What the living replicas of a model said last; the files of those that have ended are removed.

    Arguments:
        registry: MODELS.
        name: the model.
    """
    found = []
    for path in sorted((registry.root / name / REPLICAS).glob("*.json")):
        try:
            silent_s = time.time() - path.stat().st_mtime
            if silent_s > _FORGOTTEN_S or _ended_here(path.stem):
                path.unlink()
                continue
            if silent_s > _GONE_S:
                continue
            with path.open("rb") as file:
                content = json.loads(file.read(_MAX_BYTES))
            live = content["live"]
            found.append(
                Report(
                    path.stem,
                    None if live is None else str(live["version"]),
                    "" if live is None else str(live["bundle"]),
                    tuple(content["ready"]),
                    dict(content["failed"]),
                    content["shadow"],
                    bool(content.get("pinned")),  # Replicas of an older rayml do not say.
                )
            )
        except (OSError, ValueError, KeyError, TypeError):
            continue  # It has just ended, or nobody's file.
    return found


def has_ended(registry: Registry, name: str, replica: str) -> bool:
    """Whether a replica that has reported took its file away, or it was removed for it by `reports`.

    Arguments:
        registry: MODELS.
        name: the model.
        replica: `Report.replica`.
    """
    try:
        (registry.root / name / REPLICAS / f"{replica}.json").stat()
    except FileNotFoundError:
        return True
    except OSError:  # A shared disk that does not answer for a moment.
        return False
    return False


def _here() -> str:
    """What the names of all begin with that see the same processes: a container may have its host's name."""
    host = "".join(c for c in socket.gethostname() if c.isalnum() or c == "-")[:60] or "host"
    namespace = ""
    with contextlib.suppress(OSError):  # pid_namespaces(7); where there are none, no server runs either.
        namespace = "".join(c for c in str(Path("/proc/self/ns/pid").readlink()) if c.isdigit())
    return f"{host}-{namespace}-"


def _ended_here(replica: str) -> bool:
    """Whether the name is that of a process of this machine that has ended."""
    pid = replica.removeprefix(_here()).partition("-")[0]
    return replica.startswith(_here()) and pid.isdigit() and not Path(f"/proc/{pid}").exists()
