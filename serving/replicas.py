"""What each replica says of itself, as one small file beside the versions that it serves: MODELS/NAME/replicas/ID.json.

`rayml deploy` reads them to know that all replicas, on whatever machines, have made a version ready and then taken it.
A replica writes its file anew every two seconds; one that has not done so for a while is gone.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rayml.registry import REPLICAS, Registry

_BEAT_S = 2.0
# A replica that has missed this many seconds, on a machine that is overloaded perhaps, no longer counts.
_GONE_S = 30.0
_MAX_BYTES = 1 << 16

_log = logging.getLogger("ray.serve")


@dataclass(frozen=True)
class Report:
    """What a replica said last.

    Arguments:
        replica: its file's name, host and process id.
        live: the version that it answers with, or None while it starts.
        ready: the versions that it could answer with at once.
        failed: version -> why it cannot be loaded.
        shadow: `ShadowRun.figures`, or None.
    """

    replica: str
    live: str | None
    ready: tuple[int, ...] = ()
    failed: dict[str, str] = field(default_factory=dict)
    shadow: dict[str, Any] | None = None


class Reporter:
    """Writes this process's report; where the folder cannot be written to, it says so once and does without.

    Arguments:
        registry: MODELS.
        name: the model.
    """

    def __init__(self, registry: Registry, name: str) -> None:
        self._folder = registry.root / name / REPLICAS
        self._path = self._folder / f"{_host()}-{os.getpid()}-{secrets.token_hex(4)}.json"
        self._last: tuple[float, str] = (0.0, "")
        self._works = True

    def write(self, content: dict[str, Any]) -> None:
        """Say how far this replica is; cheap where nothing has changed."""
        text = json.dumps(content)
        if not self._works or (text == self._last[1] and time.monotonic() - self._last[0] < _BEAT_S):
            return
        draft = self._path.with_suffix(".tmp")
        try:
            self._folder.mkdir(exist_ok=True)
            draft.write_text(text, encoding="utf-8")
            draft.replace(self._path)
        except OSError as error:
            self._works = False
            _log.warning("Replicas cannot report in %s: %s. `rayml deploy` will not see them.", self._folder, error)
        self._last = (time.monotonic(), text)

    def remove(self) -> None:
        """This replica is gone."""
        self._works = False
        with contextlib.suppress(OSError):
            self._path.unlink()


def reports(registry: Registry, name: str) -> list[Report]:
    """What the living replicas of a model said last; the files of others are removed.

    Arguments:
        registry: MODELS.
        name: the model.
    """
    found = []
    for path in sorted((registry.root / name / REPLICAS).glob("*.json")):
        try:
            gone = time.time() - path.stat().st_mtime > _GONE_S or _ended_here(path.stem)
            if gone:
                path.unlink()
                continue
            with path.open("rb") as file:
                content = json.loads(file.read(_MAX_BYTES))
            live = content["live"]
            found.append(
                Report(
                    path.stem,
                    None if live is None else str(live["version"]),
                    tuple(content["ready"]),
                    dict(content["failed"]),
                    content["shadow"],
                )
            )
        except (OSError, ValueError, KeyError, TypeError):
            continue  # It has just ended, or nobody's file.
    return found


def _host() -> str:
    return "".join(c for c in socket.gethostname() if c.isalnum() or c == "-")[:60] or "host"


def _ended_here(replica: str) -> bool:
    """Whether the name is that of a process of this machine that has ended."""
    host, pid, _ = replica.rsplit("-", 2)
    return host == _host() and pid.isdigit() and not Path(f"/proc/{pid}").exists()
