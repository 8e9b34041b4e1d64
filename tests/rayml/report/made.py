"""Runs made up without a search: every file that a search writes, with figures that a test can work out."""

from __future__ import annotations

import csv
import fcntl
import hashlib
import itertools
import json
from pathlib import Path
from typing import IO, Any

import numpy as np

from rayml.bundle_writer import write_bundle
from rayml.evaluation import scores
from rayml.predictions import PREDICTIONS_FILE, Predictions
from tests.rayml import small

SIZES, RATES = (4, 8), (0.001, 0.01)
# Best validation accuracy by trial: 00002 wins, 00003 is stopped.
CURVES = {
    "00000": (0.3, 0.5, 0.6),
    "00001": (0.4, 0.6, 0.5),
    "00002": (0.5, 0.75, 0.7),
    "00003": (0.2, 0.1),
}
STATUS = {"00000": "finished", "00001": "finished", "00002": "finished", "00003": "stopped"}
REASON = "epoch 2: 0.1000 below 0.5000 of 4 trials: stop"


def settings(**changes: Any) -> dict[str, Any]:
    return {
        "data": "photos", "size_inner": list(SIZES), "learning_rate": list(RATES), "epochs": 3, "seed": 1,
        "weights": None, "scheduler": "asha", **changes,
    }  # fmt: skip


def record(status: str = "finished", classes: tuple[str, ...] = small.CLASSES, **changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "settings": settings(),
        "versions": {"python": "3.11.7", "rayml": "0.1.0"},
        "data": {
            "digest": "d" * 64,
            "counts": {"train": dict.fromkeys(classes, 20), "validation": dict.fromkeys(classes, 4)},
            "ignored": ["LICENSE"],
            "unreadable": {},
        },
        "backbone": {"name": "small", "image_size": small.SIZE_PX},
        "features": {"computed": 60, "cached": 0, "engine": "openvino"},
        "status": status,
        "timings": {"data": 0.5, "ray": 9.0, "features": 3.25, "search": 75.0, "bundle": 1.0},
    }
    if status == "finished":
        made |= {"best": {"trial_id": "00002"}, "bundle": "best"}
    return made | changes


def cells(folder: Path) -> None:
    grid = itertools.product(SIZES, RATES)
    lines = [f"{number:05},{size},{rate}\n" for number, (size, rate) in enumerate(grid)]
    (folder / "cells.csv").write_text("trial_id,size_inner,learning_rate\n" + "".join(lines))


def history(folder: Path, curves: dict[str, tuple[float, ...]]) -> None:
    with (folder / "history.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["trial_id", "epoch", "loss", "accuracy", "val_loss", "val_accuracy", "seconds"])
        for trial, accuracies in curves.items():
            for epoch, accuracy in enumerate(accuracies, 1):
                writer.writerow([trial, epoch, 1.5 - accuracy, accuracy + 0.1, 1.6 - accuracy, accuracy, epoch])


def searching(folder: Path, curves: dict[str, tuple[float, ...]]) -> Path:
    """A run at work: no trials.csv yet, no winner."""
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(record("searching", timings={"data": 0.5})))
    cells(folder)
    history(folder, curves)
    return folder


def hold(folder: Path) -> IO[bytes]:
    """Hold a run as the process that searches does, until what this returns is closed."""
    lock = (folder / ".lock").open("wb")
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def photos(folder: Path, classes: tuple[str, ...] = small.CLASSES, each: int = 4) -> Path:
    """A validation folder of `each` little pictures a class."""
    pictures = iter(small.pictures(each * len(classes), seed=5))
    for place, _ in enumerate(classes):
        (folder / "validation" / str(place)).mkdir(parents=True)
        for number in range(each):
            (folder / "validation" / str(place) / f"{number}.png").write_bytes(small.png(next(pictures)))
    return folder


def predictions(data: Path, classes: tuple[str, ...] = small.CLASSES, each: int = 4) -> Predictions:
    """Answers on `photos`: three of four right, the fourth of each class taken for the next one, surely."""
    paths = [f"validation/{place}/{number}.png" for place in range(len(classes)) for number in range(each)]
    labels = np.repeat(np.arange(len(classes)), each)
    logits = np.zeros((len(labels), len(classes)), np.float32)
    for i, label in enumerate(labels):
        number = i % each
        logits[i, label if number < 3 else (label + 1) % len(classes)] = 1 + number + label / 10
    digests = (hashlib.sha256((data / path).read_bytes()).hexdigest() for path in paths)
    return Predictions(classes, tuple(paths), tuple(digests), labels, logits)


def finished(folder: Path, data: Path, classes: tuple[str, ...] = small.CLASSES, **changes: Any) -> Path:
    """A run that is over, with its winner's bundle and answers."""
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(record(classes=classes, **changes)))
    history(folder, CURVES)
    with (folder / "trials.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["trial_id", "size_inner", "learning_rate", "dropout", "status", "epochs"])
        for i, (trial, status) in enumerate(STATUS.items()):
            writer.writerow([trial, SIZES[i // 2], RATES[i % 2], 0.0, status, len(CURVES[trial])])
    (folder / "ledger.jsonl").write_text(
        json.dumps({"trial": "00002", "epoch": 2, "decision": "continue", "reason": "it leads"}) + "\n"
        + json.dumps({"trial": "00003", "epoch": 2, "decision": "stop", "reason": REASON}) + "\n"
    )  # fmt: skip
    found = predictions(data, classes)
    found.write(folder / PREDICTIONS_FILE, temperature=1.5)
    metrics = scores(found.logits, found.labels, classes, 1.5)
    write_bundle(folder / "best", small.contents(classes=classes, temperature=1.5, metrics=metrics))
    return folder
