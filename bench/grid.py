"""What a whole grid costs, beside the lesson's way, in the same run.

    python bench/grid.py [--rounds 3] [--backbone xception] [--backbone mobilenet_v2]

Claims: the search after the pass over the photos, 12 cells x 10 epochs, takes at most 30 s on two cores; a second run
on cached features takes at most a quarter of the first.

A round runs, for each backbone, `rayml tune --scheduler none` with an empty cache, the same again with the cache it
left, and one epoch of the lesson's way: `make_model(...).fit` with the frozen backbone inside, on photos read and
decoded by `image_dataset_from_directory`, training and validation. The first, untimed epoch of `fit` traces and warms
up, for the benefit of the lesson. Without a scheduler no trial is stopped early: each run trains all 120 epochs, and
what the lesson's way would take for as many is 120 times that epoch.

Photos: RAYML_CLOTHING_DATA. Weights of mobilenet_v2: RAYML_MOBILENET_WEIGHTS; xception's are random, which costs the
same. About 13 minutes a round on two cores. Writes bench/results/grid.json when both backbones were run, otherwise it
only prints.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import last_line, machine, spread, versions, write_result

CELLS, EPOCHS, SCHEDULER = 12, 10, "none"
SIZES = {"xception": 150, "mobilenet_v2": 224}

LESSON = """
import json, sys, time
import keras
from rayml.backbones import preprocess_input
from rayml.head import make_model

data, backbone, weights, size = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
model = make_model(0.001, 100, backbone=backbone, weights=weights, image_size_px=size)
def photos(split):
    photos = keras.utils.image_dataset_from_directory(
        f"{data}/{split}", label_mode="categorical", batch_size=32, image_size=(size, size),
        shuffle=split == "train", seed=1, verbose=False)
    return photos.map(lambda x, y: (preprocess_input(backbone, x), y), num_parallel_calls=-1).prefetch(2)
train, validation = photos("train"), photos("validation")
model.fit(train.take(4), validation_data=validation.take(2), epochs=1, shuffle=False, verbose=0)  # `photos` does.
start = time.monotonic()
model.fit(train, validation_data=validation, epochs=1, shuffle=False, verbose=0)
print(json.dumps(time.monotonic() - start))
"""


def lesson_epoch(data: str, backbone: str, weights: str) -> float:
    """Seconds of one epoch the lesson's way."""
    command = [sys.executable, "-c", LESSON, data, backbone, weights, str(SIZES[backbone])]
    return float(last_line(command))


def tune(data: str, backbone: str, weights: str, out: Path, cache: Path) -> dict[str, Any]:
    """One `rayml tune` with the default grid; seconds by stage and of the whole command, epochs of all trials.

    Raises:
        SystemExit: a trial did not run all its epochs.
    """
    command = [sys.executable, "-m", "rayml", "tune", data, "--out", str(out), "--backbone", backbone]
    command += ["--weights", weights, "--image-size", str(SIZES[backbone]), "--cache", str(cache), "--json"]
    command += ["--scheduler", SCHEDULER]
    start = time.monotonic()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    seconds = time.monotonic() - start
    summary = json.loads(done.stdout)
    epochs = sum(trial["epochs"] for trial in summary["trials"])
    if epochs != CELLS * EPOCHS:
        raise SystemExit(f"rayml tune must run {CELLS * EPOCHS} epochs. Received: {epochs}")
    return {**summary["timings"], "command": seconds, "epochs": epochs, "best": summary["best"]["val_accuracy"]}


def main() -> int:
    """Measure and write what was measured; 1 when a claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backbone", action="append", choices=sorted(SIZES))
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error(f"--rounds must be at least 1. Received: {arguments.rounds}")
    data = os.environ.get("RAYML_CLOTHING_DATA", "")
    if not Path(data, "train").is_dir():
        parser.error(
            f"RAYML_CLOTHING_DATA must name a folder with train/ and validation/. Received: {data or 'nothing'}"
        )
    weights = {"xception": "none", "mobilenet_v2": os.environ.get("RAYML_MOBILENET_WEIGHTS", "none")}
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in arguments.backbone or SIZES}
    for number in range(arguments.rounds):
        for name, measured in rounds.items():
            with tempfile.TemporaryDirectory() as folder:
                first = tune(data, name, weights[name], Path(folder) / "first", Path(folder) / "cache")
                second = tune(data, name, weights[name], Path(folder) / "second", Path(folder) / "cache")
            epoch = lesson_epoch(data, name, weights[name])
            measured.append({"first": first, "second": second, "lesson_epoch": epoch})
            print(f"round {number + 1} {name}: {measured[-1]}", file=sys.stderr)
        held = report(data, rounds)
    return 0 if all(held.values()) else 1


def report(data: str, rounds: dict[str, list[dict[str, Any]]]) -> dict[str, bool]:
    """Write what the rounds so far have measured; the claims, and whether each holds."""
    backbones = {name: summarise(name, measured) for name, measured in rounds.items()}
    held = claims(backbones)
    result = {
        "machine": machine(),
        "versions": versions("rayml", "tensorflow", "tensorflow-cpu", "keras", "ray", "openvino"),
        "photos": sum(len(list(Path(data).glob(f"{split}/*/*"))) for split in ("train", "validation")),
        "cells": CELLS,
        "epochs": EPOCHS,
        "scheduler": SCHEDULER,
        "backbones": backbones,
        "claims": held,
    }
    write_result("grid", result, whole=set(backbones) == set(SIZES))
    return held


def claims(backbones: dict[str, dict[str, Any]]) -> dict[str, bool]:
    """What the medians say of each claim."""
    found = {}
    for name, one in backbones.items():
        for run in ("first", "second"):
            search = one[f"{run}_run_s"]["search"]["median"]
            found[f"{name}: {search:.1f} s for the search of the {run} run, at most 30"] = search <= 30
        share = one["second_by_first"]["median"]
        found[f"{name}: the second run takes {share:.2f} of the first, at most 0.25"] = share <= 0.25
    return found


def summarise(name: str, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians, in seconds, and ratios of each round."""
    stages = ("data", "ray", "backbone", "features", "search", "bundle", "command")
    return {
        "rounds": len(rounds),
        "image_size": SIZES[name],
        "best_val_accuracy": rounds[0]["first"]["best"],
        "epochs_run": {run: [r[run]["epochs"] for r in rounds] for run in ("first", "second")},
        "first_run_s": {stage: spread([r["first"][stage] for r in rounds]) for stage in stages},
        "second_run_s": {stage: spread([r["second"][stage] for r in rounds]) for stage in stages},
        "lesson_epoch_s": spread([r["lesson_epoch"] for r in rounds]),
        "second_by_first": spread([r["second"]["command"] / r["first"]["command"] for r in rounds]),
        "whole_by_pass": spread([r["first"]["command"] / r["first"]["features"] for r in rounds]),
        "lesson_by_ours": spread([r["lesson_epoch"] * r["first"]["epochs"] / r["first"]["command"] for r in rounds]),
    }


if __name__ == "__main__":
    sys.exit(main())
