"""A run's folder as it is on disk: finished, interrupted, or still searching."""

from __future__ import annotations

import csv
import fcntl
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rayml.bundle_json import MAX_JSON_BYTES, RECORD, Record
from rayml.errors import DataError, UsageError
from rayml.predictions import PREDICTIONS_FILE, Predictions

_LOCK_FILE = ".lock"  # Held by the process that searches, with flock(2), which ends with it.
RUNNING, WAITING = "running", "waiting"
# It names every file that was left aside: one beside each of a million photos, say, at a hundred bytes a name.
_MAX_RUN_BYTES = 1 << 28
_OTHERS = ("dropout", "batch_size", "weight_decay", "label_smoothing")
_MAX_S = 1e12  # 30,000 years
# Keys of run.json that hold an object wherever they are there.
_OBJECTS = ("settings", "versions", "data", "backbone", "features", "timings", "best")
_STATUS = {"stop": "stopped", "finish": "finished", "fail": "failed"}  # decisions of the ledger that end a trial


@dataclass(frozen=True)
class Epoch:
    """What an epoch of a trial gave: losses in nats, accuracies in 0..1."""

    number: int
    loss: float
    accuracy: float
    val_loss: float
    val_accuracy: float


@dataclass(frozen=True)
class Trial:
    """One cell of the grid.

    Arguments:
        trial_id: its number in the grid, five digits.
        size_inner, learning_rate: its cell.
        status: `finished`, `stopped`, `failed`, or, while the search goes on, `running` or `waiting`.
        epochs: its epochs so far, by number.
        reason: why it was stopped, in the ledger's words; "" where nothing is recorded.
        others: the settings beside size and rate in which the run's trials differ.
    """

    trial_id: str
    size_inner: int
    learning_rate: float
    status: str
    epochs: tuple[Epoch, ...]
    reason: str
    others: Mapping[str, float] = field(default_factory=dict)

    @property
    def described(self) -> str:
        """What it was trained with, in words."""
        others = "".join(f", {name.replace('_', ' ')} {value:g}" for name, value in self.others.items())
        return f"size_inner {self.size_inner}, learning rate {self.learning_rate:g}{others}"

    @property
    def best(self) -> Epoch | None:
        """The epoch of highest validation accuracy, the earlier one where two are equal."""
        return max(self.epochs, key=lambda epoch: (epoch.val_accuracy, -epoch.number), default=None)


@dataclass(frozen=True, eq=False)
class Run:
    """What a run's folder holds.

    Arguments:
        folder: RUN.
        record: run.json.
        trials: every cell of the grid, in its order.
        bundle: what RUN/best says of itself, None before there is a winner.
        predictions: the winner's answers on the validation photos, None before there is one.
    """

    folder: Path
    record: Mapping[str, Any]
    trials: tuple[Trial, ...]
    bundle: Record | None
    predictions: Predictions | None

    @property
    def status(self) -> str:
        """`searching`, `finished`, `failed` or `interrupted`; `starting` before there is a run.json."""
        return str(self.record.get("status", "starting"))

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self.status not in ("starting", "searching")

    @property
    def leader(self) -> Trial | None:
        """The winner; before there is one, the trial that leads."""
        chosen = _mapping(self.record, "best").get("trial_id")
        candidates = [trial for trial in self.trials if trial.best and trial.status != "failed"]
        if chosen is not None:
            candidates = [trial for trial in candidates if trial.trial_id == chosen] or candidates
        return min(candidates, key=rank, default=None)


def rank(trial: Trial) -> tuple[float, float, str]:
    """As the search ranks: highest accuracy, then lowest loss, then first in the grid."""
    best = trial.best
    assert best is not None
    return -best.val_accuracy, best.val_loss, trial.trial_id


def read_run(folder: Path) -> Run:
    """Read RUN.

    Raises:
        UsageError: there is no such folder.
        DataError: something in it is not what a search writes, or of another search; the message names it.
        BundleError: RUN/best/bundle.json is damaged.
    """
    if not folder.is_dir():
        raise UsageError(f"RUN must be the folder of a search. Received: {folder}, which is not there")
    record = _read_record(folder / "run.json")
    history = _read_history(folder / "history.csv")
    endings = _read_ledger(folder / "ledger.jsonl")
    cells = _by_trial(folder / "cells.csv") or _grid(_mapping(record, "settings"))
    rows = _by_trial(folder / "trials.csv")
    try:
        known = {number: rows.get(number) or cells[number] for number in sorted({*cells, *rows, *history})}
        differ = [name for name in _OTHERS if len({cell.get(name) for cell in known.values()}) > 1]
        trials = []
        for number, cell in known.items():
            epochs = history.get(number, ())
            status, reason = endings.get(number, (RUNNING if epochs else WAITING, ""))
            trials.append(
                Trial(
                    trial_id=number,
                    size_inner=int(cell["size_inner"]),
                    learning_rate=float(cell["learning_rate"]),
                    status=cell["status"] if number in rows else status,
                    epochs=epochs,
                    reason=reason,
                    others={name: float(cell[name]) for name in differ},
                )
            )
    except (KeyError, ValueError, IndexError, TypeError, OverflowError) as error:
        raise _damaged(folder / "trials.csv", error) from None
    best, answers = folder / "best" / RECORD, folder / PREDICTIONS_FILE
    bundle = Record.from_json(_read_bytes(best, MAX_JSON_BYTES)) if best.exists() else None
    predictions = Predictions.read(answers) if answers.exists() else None
    if bundle is not None and predictions is not None and bundle.classes != predictions.classes:
        raise DataError(
            f"{answers} must have the classes of {best}, in their order. "
            f"Received: {', '.join(predictions.classes):.200}",
            f"One of them is of another search. Without {PREDICTIONS_FILE} the page shows the bundle's own figures.",
        )
    return Run(folder, record, tuple(trials), bundle, predictions)


def is_abandoned(folder: Path) -> bool:
    """Whether no process searches in RUN; False where its file system does not tell."""
    try:
        with (folder / _LOCK_FILE).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return True
    except OSError:  # Held, or files cannot be locked there.
        return False
    return True


def _grid(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The cells of a run that has no cells.csv yet, or is older than that file."""
    sizes, rates = (settings.get(name) for name in ("size_inner", "learning_rate"))
    if not isinstance(sizes, list) or not isinstance(rates, list):
        return {}
    return {
        f"{number:05}": {"size_inner": size, "learning_rate": rate}
        for number, (size, rate) in enumerate(itertools.product(sizes, rates))
    }


def _mapping(record: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = record.get(key)
    return found if isinstance(found, Mapping) else {}


def _read_record(path: Path) -> Mapping[str, Any]:
    if not path.exists():
        return {}
    try:
        record = json.loads(_read_bytes(path, _MAX_RUN_BYTES))
    except (ValueError, RecursionError) as error:
        raise _damaged(path, error) from None
    if not isinstance(record, dict):
        raise _damaged(path, f"a {type(record).__name__}")
    if wrong := _wrong_key(record):
        raise _damaged(path, f"another {wrong}")
    return record


def _wrong_key(record: Mapping[str, Any]) -> str:
    """The first key whose value is not of the type that a search writes and the page relies on; "" where all are."""
    for key in _OBJECTS:
        if not isinstance(record.get(key, {}), Mapping):
            return key
    if type(_mapping(record, "settings").get("epochs", 1)) is not int:
        return "settings.epochs"
    data, timings = _mapping(record, "data"), _mapping(record, "timings")
    counts = data.get("counts", {})
    if not isinstance(counts, Mapping) or not all(map(_is_counts, counts.values())):
        return "data.counts"
    if not isinstance(data.get("ignored", []), list):
        return "data.ignored"
    if not isinstance(data.get("unreadable", {}), Mapping):
        return "data.unreadable"
    return "" if all(type(value) in (int, float) and 0 <= value < _MAX_S for value in timings.values()) else "timings"


def _is_counts(value: object) -> bool:
    return isinstance(value, Mapping) and all(type(n) is int and 0 <= n < 1 << 63 for n in value.values())


def _read_bytes(path: Path, max_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise _damaged(path, error.strerror) from None
    if len(data) > max_bytes:
        raise _damaged(path, f"more than {max_bytes} bytes")
    return data


def _rows(path: Path) -> Iterator[dict[str, str]]:
    """The rows of a CSV file; one that is cut off at the end of the file is still being written and left out."""
    if not path.exists():
        return
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # A spreadsheet may have put a mark before it.
            text = file.read()
        yield from csv.DictReader(text[: text.rfind("\n") + 1].splitlines(keepends=True))
    except (OSError, ValueError, csv.Error) as error:
        raise _damaged(path, error) from None


def _by_trial(path: Path) -> dict[str, dict[str, str]]:
    try:
        return {row["trial_id"]: row for row in _rows(path)}
    except KeyError as error:
        raise _damaged(path, f"no column {error}") from None


def _read_history(path: Path) -> dict[str, tuple[Epoch, ...]]:
    """trial_id -> its epochs. An epoch that was done again after an interruption counts as it came last."""
    found: dict[str, dict[int, Epoch]] = {}
    try:
        for row in _rows(path):
            values = (float(row[name]) for name in ("loss", "accuracy", "val_loss", "val_accuracy"))
            epoch = Epoch(int(row["epoch"]), *values)
            if math.isfinite(epoch.val_accuracy):
                found.setdefault(row["trial_id"], {})[epoch.number] = epoch
    except (KeyError, ValueError, TypeError) as error:
        raise _damaged(path, error) from None
    return {number: tuple(epochs[i] for i in sorted(epochs)) for number, epochs in found.items()}


def _read_ledger(path: Path) -> dict[str, tuple[str, str]]:
    """trial_id -> the status that its end gave it, and the reason. Lines that are not whole are left out.

    A line cut short is still being written, or a full disk cut it; a resumed search leaves it out in the same way.
    """
    endings: dict[str, tuple[str, str]] = {}
    if not path.exists():
        return endings
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise _damaged(path, error) from None
    for line in lines:
        try:
            decision = json.loads(line)
            status = _STATUS.get(decision["decision"])
            if status:
                endings[str(decision["trial"])] = status, str(decision["reason"])
        except (ValueError, KeyError, TypeError):
            continue
    return endings


def _damaged(path: Path, received: object) -> DataError:
    return DataError(f"{path} must be what a search wrote. Received: {received!s:.200}")
