"""What a search costs beyond its arithmetic, and beside other ways to search the same heads.

    python bench/search.py [--rounds 3] [--cells 12,120,1000] [--only rayml,bare] [--cache FOLDER]

Claims: the lesson's grid of 12 heads x 10 epochs on cached features takes at most 1.3 times the arithmetic alone, and
Ray's start; 120 and 1,000 cells cost at most 0.3 s a trial beyond their arithmetic.

Features are made up: 3,068 + 341 vectors of 2,048 numbers in ten classes, as Xception's of the clothing photos, whose
size alone decides their cost. A round runs, each in a process of its own,

    bare      the heads one after the other in a plain loop over `HeadTrainer`, the epoch of each size compiled once;
              TensorFlow's import is told apart
    rayml     the same cells by `tune_jobs.search` on a Ray of this machine, whose start is told apart; every trial runs
              all its epochs (scheduler none), with history, ledger, checkpoints and TensorBoard
    keras_tuner, ray_tune   the 12 cells by KerasTuner's GridSearch and by Ray Tune with plain `model.fit`, in an
              environment of their own below --cache (2 GB), with the versions below
    full_model   one cell and epoch of KerasTuner's GridSearch on the whole network, frozen Xception at 150 px with
              random weights, on a tenth of as many photos (noise), its first epoch; `bench/grid.py` has later ones

120 and 1,000 cells are heads of 10 units at as many rates, two epochs each: next to no arithmetic, so that what is left
is the search's own. About 13 minutes a round on two cores. Writes bench/results/search.json when all
was run, otherwise it only prints.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import numpy as np  # noqa: E402
from environments import KERAS, as_here, install  # noqa: E402
from measure import last_line, machine, spread, versions, write_result  # noqa: E402

TRAIN, VALIDATION, FEATURES, CLASSES = 3068, 341, 2048, 10
SIZES, RATES, EPOCHS = (10, 100, 1000), (0.0001, 0.001, 0.01, 0.1), 10
RIVALS = (*KERAS, "keras-tuner==1.4.8", "tensorboard==2.21.0", as_here("ray", "[tune]"))
PHOTO_PX, SHARE_OF_PHOTOS = 150, 0.1
ONLY = ("bare", "rayml", "keras_tuner", "ray_tune", "full_model")


def grid(cells: int) -> dict[str, Any]:
    """The settings that make so many cells."""
    if cells == len(SIZES) * len(RATES):
        return {"size_inner": SIZES, "learning_rate": RATES, "epochs": EPOCHS}
    rates = tuple(float(rate) for rate in np.logspace(-4, -1, cells))
    return {"size_inner": (10,), "learning_rate": rates, "epochs": 2}


def make_features(folder: Path) -> None:
    """Vectors around a centre for each class, so that a head can learn them."""
    random = np.random.default_rng(1)
    centres = random.normal(size=(CLASSES, FEATURES)).astype(np.float32) / 8
    for name, count in (("train", TRAIN), ("validation", VALIDATION)):
        labels = random.integers(0, CLASSES, count).astype(np.int32)
        noise = random.normal(size=(count, FEATURES)).astype(np.float32)
        np.save(folder / f"{name}_x.npy", np.maximum(centres[labels] + noise, 0))
        np.save(folder / f"{name}_y.npy", labels)


def make_photos(folder: Path) -> None:
    """Noise in the shape of photos."""
    random = np.random.default_rng(1)
    for name, count in (("train", TRAIN), ("validation", VALIDATION)):
        few = round(SHARE_OF_PHOTOS * count)
        np.save(folder / f"{name}_x.npy", random.integers(0, 256, (few, PHOTO_PX, PHOTO_PX, 3)).astype(np.uint8))
        np.save(folder / f"{name}_y.npy", random.integers(0, CLASSES, few).astype(np.int32))


def data(folder: Path) -> Any:
    """As a search on cached features hands it to its trials."""
    from rayml.training import TrainingData

    names = tuple(f"class {number}" for number in range(CLASSES))
    arrays = [np.load(folder / f"{split}_{part}.npy") for split in ("train", "validation") for part in "xy"]
    return TrainingData(*arrays, classes=names, digest="made up")


def settings(folder: Path, cells: int) -> Any:
    """The settings of a search."""
    from tune_jobs.config import SearchSettings

    return SearchSettings(data=folder, out=folder / f"run-{cells}", scheduler="none", **grid(cells))


def step_bare(folder: Path, cells: int) -> dict[str, float]:
    """The heads in a plain loop."""
    start = time.monotonic()
    import tensorflow as tf

    from rayml.cores import usable_cores
    from rayml.training import HeadTrainer
    from tune_jobs import grid as listed

    tf.config.threading.set_intra_op_parallelism_threads(usable_cores())
    vectors = data(folder)
    tf.constant(0)
    imported = time.monotonic()
    trainers: dict[int, HeadTrainer] = {}
    best = 0.0
    for cell in listed.cells(settings(folder, cells)):
        size = cell["size_inner"]
        if size not in trainers:
            trainers[size] = HeadTrainer(vectors, size_inner=size)
        trainers[size].start(seed=1, learning_rate=cell["learning_rate"])
        for _ in range(grid(cells)["epochs"]):
            best = max(best, trainers[size].run_epoch().val_accuracy)
    return {"seconds": time.monotonic() - imported, "import_s": imported - start, "best": best}


def step_rayml(folder: Path, cells: int) -> dict[str, float]:
    """The same cells under rayml's search."""
    from rayml.progress import Progress
    from tune_jobs.cluster import ray_cluster
    from tune_jobs.search import run_search

    chosen, vectors = settings(folder, cells), data(folder)
    start = time.monotonic()
    with ray_cluster("local") as nodes:
        started = time.monotonic()
        with tempfile.TemporaryDirectory(dir=folder) as run:
            result = run_search(chosen, vectors, nodes, Path(run), Progress(quiet=True))
        seconds = time.monotonic() - started
    assert all(trial.status == "finished" for trial in result.trials)
    return {"seconds": seconds, "ray_s": started - start, "best": max(trial.val_accuracy for trial in result.trials)}


def rival(script: str, cache: Path, *arguments: object) -> dict[str, float]:
    """What a rival's script prints, in the environment of the rivals."""
    command = [str(install(cache, RIVALS) / "python"), str(HERE / "rivals" / script), *map(str, arguments)]
    # Without the variables that would lead it to rayml's packages.
    answer: dict[str, float] = last_line(command, hidden=("PYTHONPATH", "VIRTUAL_ENV"))
    return answer


def step(name: str, folder: Path, cells: int) -> dict[str, float]:
    """One of the steps above in a process of its own."""
    command = [sys.executable, __file__, "--step", name, "--folder", str(folder), "--cells", str(cells)]
    answer: dict[str, float] = last_line(command)
    return answer


def one_round(only: Sequence[str], sizes: Sequence[int], cache: Path, folder: Path) -> dict[str, dict[str, float]]:
    """Every measurement once."""
    measured: dict[str, dict[str, float]] = {}
    features, photos = folder / "features", folder / "photos"
    features.mkdir()
    make_features(features)

    def note(name: str, answer: dict[str, float]) -> None:
        measured[name] = answer
        print(f"{name}: {answer}", file=sys.stderr)

    for cells in sizes:
        for name in ("bare", "rayml"):
            if name in only:
                note(f"{name} {cells}", step(name, features, cells))
    lists = (EPOCHS, ",".join(map(str, SIZES)), ",".join(map(str, RATES)))
    for name, script in (("keras_tuner", "keras_tuner_search.py"), ("ray_tune", "ray_tune_fit.py")):
        if name in only:
            note(name, rival(script, cache, features, *lists))
    if "full_model" in only:
        photos.mkdir()
        make_photos(photos)
        note("full_model", rival("keras_tuner_search.py", cache, photos, 1, 100, 0.001, "Xception"))
    return measured


def summarise(rounds: list[dict[str, dict[str, float]]], sizes: Sequence[int]) -> dict[str, Any]:
    """Medians in seconds, and what they say of the claims."""
    names = list(rounds[0])
    found: dict[str, Any] = {
        name: {what: spread([one[name][what] for one in rounds]) for what in rounds[0][name]} for name in names
    }
    claims = {}
    if {"bare 12", "rayml 12"} <= set(names):
        ratio = spread([one["rayml 12"]["seconds"] / one["bare 12"]["seconds"] for one in rounds])
        found["rayml_by_bare"] = ratio
        whole = [
            one["rayml 12"]["seconds"] / sum(one["bare 12"][key] for key in ("seconds", "import_s")) for one in rounds
        ]
        found["rayml_by_bare_with_import"] = spread(whole)
        claims[f"12 cells: {ratio['median']} of the arithmetic, at most 1.3"] = ratio["median"] <= 1.3
    for cells in sizes:
        if cells != 12 and {f"bare {cells}", f"rayml {cells}"} <= set(names):
            beyond = [(one[f"rayml {cells}"]["seconds"] - one[f"bare {cells}"]["seconds"]) / cells for one in rounds]
            found[f"overhead_s_a_trial_{cells}"] = spread(beyond)
            imports = [one[f"bare {cells}"]["import_s"] / cells for one in rounds]  # Once a worker; of the overhead
            found[f"overhead_s_a_trial_{cells}_for_tensorflow"] = spread(imports)  # the part that is TensorFlow's.
            median = found[f"overhead_s_a_trial_{cells}"]["median"]
            claims[f"{cells} cells: {median} s a trial beyond the arithmetic, at most 0.3"] = median <= 0.3
    return {**found, "claims": claims}


def main() -> int:
    """Measure and write what was measured; 1 when a claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cells", default="12,120,1000")
    parser.add_argument("--only", default=",".join(ONLY))
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "rayml-rivals")
    parser.add_argument("--step", choices=ONLY[:2], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        print(json.dumps(globals()[f"step_{arguments.step}"](arguments.folder, int(arguments.cells))))
        return 0
    if arguments.rounds < 1:
        parser.error(f"--rounds must be at least 1. Received: {arguments.rounds}")
    if not all(part.isdecimal() and int(part) for part in arguments.cells.split(",")):
        parser.error(f"--cells must be numbers of at least 1, separated by commas. Received: {arguments.cells}")
    sizes, only = [int(part) for part in arguments.cells.split(",")], arguments.only.split(",")
    if unknown := set(only) - set(ONLY):
        parser.error(f"--only must name some of {', '.join(ONLY)}. Received: {', '.join(sorted(unknown))}")
    rounds = []
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as folder:
            rounds.append(one_round(only, sizes, arguments.cache, Path(folder)))
    result = {
        "machine": machine(),
        "versions": versions("rayml", "ray", "tensorflow", "tensorflow-cpu", "keras"),
        "rivals": list(RIVALS),
        "rounds": len(rounds),
        "epochs": EPOCHS,
        **summarise(rounds, sizes),
    }
    write_result("search", result, whole=set(only) == set(ONLY) and sizes == [12, 120, 1000])
    return 0 if all(result["claims"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
