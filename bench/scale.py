"""What the bookkeeping of a feature pass and a search costs as the data grows a hundredfold.

    python bench/scale.py [--entries 3409,34090,340900] [--features 2048] [--rounds 3]

Claims, of each step: the largest data takes at most 1.5 times as long as in proportion to the next smaller one, and
from the smallest to the largest a process takes at most 1 kB of memory more for each picture, beside the vectors that a
trial maps.

The network is left out: its cost is proportional by nature. What is measured is everything around it, each step in a
process of its own, for its peak of private memory (what is not a page of a file that others share):

    bank      shards of made-up vectors written as the pass writes them
    open      the bank opened, and every picture of a manifest of that size looked up
    gather    both splits of the training data brought together in one file, in an order of its own
    trial     that file opened as a trial does, its vectors made into TensorFlow's, one epoch's gather over all of them

About five minutes a round and 6 GB of disk with the default sizes; only with these bench/results/scale.json is written,
otherwise the figures are only printed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from measure import Peak, machine, private_mib, spread, versions, write_result

from rayml.data import Manifest, Photo
from rayml.features import FeatureBank, packed
from rayml.gathered import Recipe, gather

CHUNK = 1024  # As the pass writes them.
ENTRIES, FEATURES = "3409,34090,340900", 2048
SAMPLE_EVERY_S = 0.05
TRAIN = 0.9  # Of the pictures; the others are for validation.
STEPS = ("bank", "open", "gather", "trial")


def digest(number: int) -> str:
    """A made-up sha256, in no order."""
    return hashlib.sha256(number.to_bytes(8, "little")).hexdigest()


def manifest(entries: int) -> Manifest:
    """A tenth of the pictures is for validation, of ten classes."""
    photos = (
        Photo(f"{split}/class {number % 10}/photo-{number:08}.jpg", f"class {number % 10}", split, digest(number))
        for number in range(entries)
        for split in ("validation" if number % 10 == 7 else "train",)
    )
    return Manifest(Path("/photos"), tuple(f"class {label}" for label in range(10)), tuple(photos), ())


def step_bank(folder: Path, entries: int, features: int) -> None:
    """Write the shards."""
    bank = FeatureBank(folder / "bank", features)
    for start in range(0, entries, CHUNK):
        numbers = range(start, min(start + CHUNK, entries))
        vectors = np.random.default_rng(start).standard_normal((len(numbers), features), np.float32)
        bank.write([digest(number) for number in numbers], vectors)


def step_open(folder: Path, entries: int, features: int) -> None:
    """What the driver does before a pass that finds everything there."""
    photos = manifest(entries).photos
    assert FeatureBank(folder / "bank", features).has([photo.sha256 for photo in photos]).all()


def recipe(folder: Path, entries: int, features: int) -> Recipe:
    """The training data of that manifest."""
    made = manifest(entries)
    train, validation = made.split("train"), made.split("validation")
    return Recipe(
        bank=FeatureBank(folder / "bank", features),
        folder=folder / "training",
        train=packed([photo.sha256 for photo in train]),
        train_labels=np.zeros(len(train), np.int32),
        validation=packed([photo.sha256 for photo in validation]),
        validation_labels=np.zeros(len(validation), np.int32),
        classes=made.classes,
        digest="0" * 64,
    )


def step_gather(folder: Path, entries: int, features: int) -> None:
    """Bring both splits together."""
    made = recipe(folder, entries, features)
    gather(made)
    (folder / "recipe").write_bytes(pickle.dumps(made))


def step_trial(folder: Path, entries: int, features: int) -> None:
    """Open the data as a trial does, and look at every vector once, in an order of its own."""
    import tensorflow as tf

    from rayml.training import device_vectors

    data = gather(pickle.loads((folder / "recipe").read_bytes()))
    vectors = device_vectors(data.train_features)

    @tf.function(jit_compile=True, autograph=False)
    def look(order: Any) -> Any:
        def step(at: Any, total: Any) -> Any:
            return at + 1, total + tf.reduce_sum(tf.gather(vectors, tf.slice(order, [at * 32], [32])))

        return tf.while_loop(lambda at, _: at < len(data.train_labels) // 32, step, (tf.constant(0), tf.constant(0.0)))

    look(tf.constant(np.random.default_rng(1).permutation(len(data.train_labels)).astype(np.int32)))


def run_step(step: str, folder: Path, entries: int, features: int) -> dict[str, float]:
    """One step in a process of its own."""
    command = [sys.executable, __file__, "--step", step, "--folder", str(folder)]
    command += ["--entries", str(entries), "--features", str(features)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def claims(entries: dict[str, Any], features: int) -> dict[str, bool]:
    """What the medians say of each step; nothing where there is but one size."""
    sizes = sorted(map(int, entries))
    if len(sizes) < 2:
        return {}
    least, before, most = sizes[0], sizes[-2], sizes[-1]
    found = {}
    for step in STEPS:
        seconds, mib = (
            {size: entries[str(size)][step][what]["median"] for size in sizes} for what in ("seconds", "private_mib")
        )
        limit = 1.5 * seconds[before] * most / before
        found[f"{step}: {seconds[most]:.2f} s for {most:,} pictures, at most {limit:.2f}"] = seconds[most] <= limit
        mapped = TRAIN * features * 4 if step == "trial" else 0
        each = ((mib[most] - mib[least]) * 2**20 / (most - least) - mapped) / 1000
        found[f"{step}: {each:.2f} kB of memory for each more picture, at most 1"] = each <= 1
    return found


def main() -> int:
    """Measure and write what was measured; 1 when a claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", default=ENTRIES)
    parser.add_argument("--features", type=int, default=FEATURES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        if arguments.step == "trial":
            import tensorflow as tf

            tf.constant(0)  # What TensorFlow itself takes is not the data's.
        before = private_mib(os.getpid())
        with Peak(SAMPLE_EVERY_S, private_mib=lambda: private_mib(os.getpid()) - before) as peak:
            start = time.monotonic()
            globals()[f"step_{arguments.step}"](arguments.folder, int(arguments.entries), arguments.features)
            seconds = time.monotonic() - start
        print(json.dumps({"seconds": seconds, **peak.most}))
        return 0
    sizes = [int(part) for part in arguments.entries.split(",")]
    measured: dict[int, dict[str, list[dict[str, float]]]] = {size: {step: [] for step in STEPS} for size in sizes}
    for number in range(arguments.rounds):
        for size in sizes:
            with tempfile.TemporaryDirectory() as folder:
                for step in STEPS:
                    measured[size][step].append(run_step(step, Path(folder), size, arguments.features))
            print(f"round {number + 1}, {size}: { {s: m[-1] for s, m in measured[size].items()} }", file=sys.stderr)
    entries = {
        str(size): {
            "vectors_mib": round(size * arguments.features * 4 / 2**20, 1),
            **{
                step: {what: spread([one[what] for one in rounds]) for what in ("seconds", "private_mib")}
                for step, rounds in steps.items()
            },
        }
        for size, steps in measured.items()
    }
    held = claims(entries, arguments.features)
    result = {
        "machine": machine(),
        "versions": versions("rayml", "numpy", "tensorflow", "tensorflow-cpu"),
        "features": arguments.features,
        "rounds": arguments.rounds,
        "entries": entries,
        "claims": held,
    }
    whole = (arguments.entries, arguments.features) == (ENTRIES, FEATURES)
    write_result("scale", result, whole=whole)
    return 0 if all(held.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
