"""The servers that a user has running on this machine: a note of each, so that `rayml deploy` finds them.

Notes lie in $XDG_RUNTIME_DIR/rayml, or /tmp/rayml-UID where there is none ($TMPDIR may differ between two terminals),
of mode 0700 and the user's own: only who started a server finds the folder that its replicas follow.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rayml.errors import ServerError


@dataclass(frozen=True)
class RunningServer:
    """A server that runs.

    Arguments:
        url: where it answers.
        models: the folder of models that its replicas follow, absolute.
        name: the model.
        pid: its main process.
        started: when that began, in the machine's own ticks, so that another process with this number is not taken
            for it.
    """

    url: str
    models: str
    name: str
    pid: int
    started: str


@contextlib.contextmanager
def noted(url: str, models: Path, name: str) -> Iterator[None]:
    """Leave a note of a server of this process while it runs.

    Raises:
        ServerError: the folder for notes is another user's, or the disk refused.
    """
    pid = os.getpid()
    path = _folder() / f"{pid}.json"
    note = RunningServer(url, str(models), name, pid, _started(pid))
    draft = path.with_suffix(".tmp")
    try:
        draft.unlink(missing_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(asdict(note), file)
        draft.replace(path)
    except OSError as error:
        raise ServerError(f"{path} must be writable. Received: {error.strerror}") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # A note that stays is removed by who finds it next.
            path.unlink()


def running_servers() -> list[RunningServer]:
    """This user's servers; notes of processes that have ended are removed."""
    found = []
    for path in sorted(_folder().glob("*.json")):
        with contextlib.suppress(OSError, ValueError, TypeError):
            note = RunningServer(**json.loads(path.read_text(encoding="utf-8")))
            if _started(note.pid) == note.started:
                found.append(note)
            else:
                path.unlink()
    return found


def find_server(address: str | None) -> RunningServer:
    """The server at an address, or the only one.

    Arguments:
        address: its URL as `rayml serve` printed it, or HOST:PORT, or None.

    Raises:
        ServerError: there is none, or there are several and none is named.
    """
    servers = running_servers()
    known = ", ".join(server.url for server in servers) or "none"
    if address is None:
        if len(servers) == 1:
            return servers[0]
        hint = "say which with --address URL" if servers else "start one with `rayml serve BUNDLE_OR_MODELS`"
        raise ServerError(f"one server of yours must run on this machine. Received: {known}", hint)
    wanted = _plain(address)
    for server in servers:
        if _plain(server.url) == wanted:
            return server
    raise ServerError(
        f"{address} must be a server that you have started on this machine with `rayml serve`. Received: {known}",
        "elsewhere, write into the folder of models that its replicas follow: rayml promote RUN MODELS",
    )


def _plain(address: str) -> str:
    host, _, port = address.removeprefix("http://").rstrip("/").rpartition(":")
    return f"{ {'localhost': '127.0.0.1', '0.0.0.0': '127.0.0.1'}.get(host, host) }:{port}"


def _folder() -> Path:
    base = os.environ.get("XDG_RUNTIME_DIR")
    folder = Path(base) / "rayml" if base else Path(f"/tmp/rayml-{os.getuid()}")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise ServerError(
            f"{folder} must be a folder of yours. Received: {error.strerror}",
            "XDG_RUNTIME_DIR must be your own, as after a login, or unset",
        ) from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ServerError(f"{folder} must be a folder of yours alone, mode 0700. Received: another", "remove it")
    return folder


def _started(pid: int) -> str:
    """When a process began (proc(5), field 22 of stat), or "" if it is not there."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]
