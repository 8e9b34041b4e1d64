"""RUN as a thing that one search at a time writes, and that an interrupted search goes on in.

`run.json` says what was searched and how it stands: `status` is `searching`, `interrupted`, `failed` or `finished`. A
driver that was killed leaves `searching` behind. What has been done is never taken from Ray's state in `ray/`, only
from rayml's own files: history.csv, ledger.jsonl and the checkpoints (see `tune_jobs.search`).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rayml.data import Manifest
from rayml.errors import UsageError
from tune_jobs.config import SearchSettings

RECORD_FILE = "run.json"
_DRAFT = "run.json.tmp"
_LOCK_FILE = ".lock"

# Settings that do not decide what is searched: another machine, another place. All others must be those of the run.
_PLACES = frozenset(("data", "out", "storage_path", "address", "skip_unreadable"))
_FREE = _PLACES | {"trial_cpus", "trial_gpus", "feature_gpus", "max_concurrent", "scale_up_timeout_s"}
_TAKEN_AGAIN = "storage_path"  # A place, too, but where it is a bucket the run remembers it.
_NAMED_WEIGHTS = (None, "imagenet", "none", "builtin")


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold RUN for this process; the lock ends with the process, however that ends.

    Raises:
        UsageError: another process searches there, or RUN cannot be written.
    """
    path = run / _LOCK_FILE
    try:
        file = path.open("a+")
    except OSError as error:
        raise UsageError(f"--out must be a folder that can be written. Received: {run} ({error.strerror})") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = os.fstat(file.fileno()).st_nlink > 0  # Else its holder has just ended and removed it.
        except BlockingIOError:
            ours = False
        except OSError as error:
            raise UsageError(f"{run} must lie where files can be locked. Received: {error.strerror}") from None
        if not ours:
            file.seek(0)
            raise UsageError(
                f"one search at a time can write {run}. Received: a second one, beside {file.read() or 'another'}",
                "Wait until it ends, or name another --out.",
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def read_record(run: Path) -> dict[str, Any]:
    """run.json.

    Raises:
        UsageError: RUN is not there or not a folder, or run.json is not there or damaged.
    """
    if not run.is_dir():
        raise UsageError(f"--resume needs the folder of a run. Received: {run}, which is none", "Leave --resume out.")
    if not (run / RECORD_FILE).exists():
        raise UsageError(
            f"--resume needs the folder of a run. Received: {run}, which holds no {RECORD_FILE}",
            "Nothing of a search is in it: name another --out, and leave --resume out.",
        )
    try:
        record = json.loads((run / RECORD_FILE).read_text())
        if not isinstance(record, dict) or not isinstance(record.get("settings"), dict):
            raise ValueError("no settings in it")
        return record
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{run / RECORD_FILE} must be readable to resume. Received: {' '.join(str(error).split())}",
            "Name another --out, and search anew.",
        ) from None


def write_record(run: Path, record: dict[str, Any]) -> None:
    """Write run.json whole.

    Raises:
        OSError: the disk is full or read-only; the old one stays.
    """
    draft = run / _DRAFT
    draft.write_text(json.dumps(record, indent=1) + "\n")
    draft.replace(run / RECORD_FILE)


def remove_unbegun(run: Path) -> None:
    """Remove what is left of a run that ended before it began: at most its lock, half a run.json, and empty folders.

    A folder with any other file in it stays as it is. Files that NFS keeps of others that were open do not count.

    Raises:
        UsageError: as `locked`.
    """
    if not run.is_dir() or any(not path.is_dir() and not _is_left_over(path.name) for path in run.rglob("*")):
        return
    with locked(run):
        if (run / RECORD_FILE).exists():  # Another process has begun there meanwhile.
            return
        shutil.rmtree(run, ignore_errors=True)
    with suppress(OSError):
        run.rmdir()


def _is_left_over(name: str) -> bool:
    return name in (_LOCK_FILE, _DRAFT) or name.startswith(".nfs")


def set_status(run: Path, status: str, timings: dict[str, float]) -> None:
    """Note how a run ended, and what it has taken; where even that cannot be written, it says `searching` still."""
    with suppress(OSError, UsageError):
        write_record(run, {**read_record(run), "status": status, "timings": timings})


def with_stored(values: dict[str, Any]) -> dict[str, Any]:
    """Settings as they were given, completed by those of the run where one is resumed.

    Arguments:
        values: by field name of `SearchSettings`; DATA, the cache and a weights file are not in the record, since a
            run may be moved.

    Raises:
        UsageError: see `read_record`.
    """
    if not values.get("resume") or not isinstance(values.get("out"), str | Path):
        return values
    known = read_record(Path(values["out"]))["settings"]
    free = _free(known.get("scheduler")) - {_TAKEN_AGAIN}
    stored = {name: value for name, value in known.items() if name not in free}
    if stored.get("weights") not in _NAMED_WEIGHTS:
        del stored["weights"]
    return {**stored, **values}


def _free(scheduler: str | None) -> frozenset[str]:
    """The settings that may be others when a run is resumed; in `sync` mode threads decide the last digits."""
    return _FREE - {"trial_cpus"} if scheduler == "sync" else _FREE


def check_same_search(settings: SearchSettings, record: dict[str, Any]) -> None:
    """Refuse to go on with other settings.

    Raises:
        UsageError: names each that differs, with both values.
    """
    now = json.loads(json.dumps(settings.to_json()))
    free = _free(settings.scheduler)
    differing = [
        f"{name} {value} where the run has {record['settings'][name]}"
        for name, value in now.items()
        if name not in free and name in record["settings"] and record["settings"][name] != value
    ]
    if differing:
        raise UsageError(
            f"--resume needs the settings of the run. Received: {'; '.join(differing)}",
            "Leave them out to take the run's own (a weights file must be named again), or name another --out.",
        )


def check_same_backend(backend: str, record: dict[str, Any]) -> None:
    """Refuse to go on with Keras on another backend: each has random states and random numbers of its own.

    Raises:
        UsageError: it is another.
    """
    before = record.get("keras_backend", backend)
    if backend != before:
        raise UsageError(
            f"--resume needs Keras on the run's backend, {before}. Received: {backend}",
            f"Set KERAS_BACKEND={before}, or name another --out to search anew.",
        )


def order_digest(manifest: Manifest) -> str:
    """What the order of the photos is known by, which their names decide; the data set's own digest leaves it out."""
    return hashlib.sha256(" ".join(photo.sha256 for photo in manifest.photos).encode()).hexdigest()


def check_same_data(manifest: Manifest, record: dict[str, Any]) -> Manifest:
    """Refuse to go on with other photos, and in `sync` mode with the same ones in another order.

    Returns:
        The manifest without the pictures that the run could not read either.

    Raises:
        UsageError: says where photos were added or are missing, if the numbers tell.
    """
    described = record.get("data")
    if not described:
        return manifest
    known = {photo.path for photo in manifest.photos}
    manifest = manifest.without([path for path in described["unreadable"] if path in known])
    if manifest.digest == described["digest"]:
        order = order_digest(manifest)
        if record.get("settings", {}).get("scheduler") == "sync" and described.get("order", order) != order:
            raise UsageError(
                "--resume of a search in sync needs the photos by the names of the run: their order is part of its "
                "result. Received: the same photos in another order",
                "Name the folder as it was, or another --out to search anew.",
            )
        return manifest
    before, now = described["counts"], manifest.counts()
    changes = [
        f"{split}/{label}: {now.get(split, {}).get(label, 0)} photos where the run had "
        f"{before.get(split, {}).get(label, 0)}"
        for split in sorted({*before, *now})
        for label in sorted({*before.get(split, {}), *now.get(split, {})})
        if now.get(split, {}).get(label, 0) != before.get(split, {}).get(label, 0)
    ]
    raise UsageError(
        "--resume needs the photos of the run. Received: "
        + ("; ".join(changes[:5]) or "as many of each class, but others")
        + ("; ..." if changes[5:] else ""),
        "Name the folder as it was, or another --out to search anew.",
    )


def check_same_backbone(graph_sha256: str, record: dict[str, Any]) -> None:
    """Refuse to go on with features of another network, e.g. of another weights file by the same name.

    Raises:
        UsageError: it is another.
    """
    before = record.get("backbone", {}).get("graph_sha256", graph_sha256)
    if graph_sha256 != before:
        raise UsageError(
            f"--resume needs the backbone of the run, graph sha256 {before[:12]}. Received: {graph_sha256[:12]}",
            "Name the weights file that the run had, or another --out to search anew.",
        )
