"""The feature pass by rayml's own Ray actors, beside the same work as a Ray Data pipeline, in the same run.

    python bench/feature_pass.py [--rounds 5] [--backbone mobilenet_v2] [--photos N]

Claims: handing chunks of pictures to actors is no slower than Ray Data and takes at most 1.05 of its memory, driver and
Ray's processes together, so that what the actors do besides (name the picture that kills a worker, go on without a
node, keep each finished chunk) is not paid for.

Both sides read, decode and compute the same photos with the same class (`FeatureWorker`: the same engine, threads and
batches) on the same local Ray, into an empty bank each, after the backbone was frozen and Ray Data imported. Ray Data's
side is the plain pipeline of its documentation: paths -> `map_batches` with a stateful actor for each node -> shards
written by the driver as vectors come, which is how rayml does it without shared storage. The rounds alternate in who
begins. Peak memory: of the driver and of all processes of Ray on this machine, sampled four times a second (unique set
size).

Photos: RAYML_CLOTHING_DATA. Weights of mobilenet_v2: RAYML_MOBILENET_WEIGHTS; xception's are random, which costs the
same. About three minutes a round with xception on two cores, one with mobilenet_v2. Writes
bench/results/feature_pass.json after at least 3 rounds over all photos with mobilenet_v2; otherwise it only prints.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from measure import Peak, machine, private_mib, spread, versions, write_result

from rayml.backbones import BackboneSpec, backbone_spec
from rayml.data import Manifest, scan
from rayml.features import FeatureBank
from rayml.frozen import FrozenBackbone, freeze
from rayml.images import stack_pixels
from rayml.progress import Progress
from tune_jobs.cluster import Node, on_this_node, ray_cluster
from tune_jobs.feature_worker import FeatureWorker
from tune_jobs.features import feature_pass

SIZES = {"xception": 150, "mobilenet_v2": 224, "tiny": 64}
SAMPLE_EVERY_S = 0.25


def by_actors(manifest: Manifest, backbone: FrozenBackbone, bank: FeatureBank, nodes: Any, spec: BackboneSpec) -> None:
    """Rayml's pass."""
    feature_pass(
        manifest, backbone, bank, nodes, spec=spec, skip_unreadable=False, progress=Progress(quiet=True), shared=False
    )


class DataWorker:
    """`FeatureWorker` as Ray Data wants it: made once an actor, called with a batch of rows."""

    def __init__(self, image_size_px: int, threads: int, needed: list[Any]) -> None:
        import ray

        self._worker = FeatureWorker(image_size_px, threads, None, None)
        self._worker.load(*ray.get(needed))

    def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
        done = self._worker.compute(list(rows["path"]), list(rows["sha256"]))
        assert done.vectors is not None and not done.unreadable
        return {"sha256": rows["sha256"], "vector": done.vectors}


def by_ray_data(
    manifest: Manifest, backbone: FrozenBackbone, bank: FeatureBank, nodes: tuple[Node, ...], chunk: int
) -> None:
    """The same as a pipeline of Ray Data."""
    import ray
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    pictures, expected = backbone.golden()
    pixels = stack_pixels(pictures.values(), backbone.image_size_px)
    needed = [ray.put(value) for value in (backbone.graph(), pixels, expected)]
    wanted = {photo.sha256: str(manifest.root / photo.path) for photo in manifest.photos}
    rows = ray.data.from_items([{"path": path, "sha256": sha256} for sha256, path in wanted.items()])
    vectors = rows.map_batches(
        DataWorker,
        fn_constructor_args=(backbone.image_size_px, nodes[0].cpus, needed),
        batch_size=chunk,
        num_cpus=nodes[0].cpus,
        concurrency=len(nodes),
    )
    for batch in vectors.iter_batches(batch_size=chunk):
        bank.write(list(batch["sha256"]), np.ascontiguousarray(batch["vector"], np.float32))


def measured(act: Callable[[], None]) -> dict[str, float]:
    """Seconds and MiB of one side."""
    me = psutil.Process()
    with Peak(
        SAMPLE_EVERY_S,
        driver_mib=lambda: private_mib(me.pid),
        ray_mib=lambda: sum(private_mib(child.pid) for child in me.children(recursive=True)),
    ) as peak:
        start = time.monotonic()
        act()
        seconds = time.monotonic() - start
    return {"seconds": seconds, **peak.most}


def held_mib(side: dict[str, float]) -> float:
    """The peaks of the driver and of Ray's processes together."""
    return side["driver_mib"] + side["ray_mib"]


def main() -> int:
    """Measure and write what was measured; 1 when a claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--backbone", choices=sorted(SIZES), default="mobilenet_v2")
    parser.add_argument("--photos", type=int, help="The first N alone; all by default.")
    arguments = parser.parse_args()
    weights = {"xception": "none", "mobilenet_v2": os.environ.get("RAYML_MOBILENET_WEIGHTS", "none"), "tiny": None}
    spec = backbone_spec(arguments.backbone, weights[arguments.backbone], SIZES[arguments.backbone])
    manifest = scan(Path(os.environ["RAYML_CLOTHING_DATA"]))
    if arguments.photos:
        manifest = Manifest(manifest.root, manifest.classes, manifest.photos[: arguments.photos], manifest.ignored)
    wanted = [photo.sha256 for photo in {photo.sha256: photo for photo in manifest.photos}.values()]
    rounds: list[dict[str, dict[str, float]]] = []
    with tempfile.TemporaryDirectory() as folder, ray_cluster("local") as nodes:
        importlib.import_module("ray.data")  # Here, so that no side's seconds have it.
        backbone = on_this_node(freeze, spec, Path(folder))
        chunk = min(1024, max(32, len(wanted) // (len(nodes) * 32)))

        def bank(name: str) -> FeatureBank:
            return FeatureBank(Path(folder) / name, backbone.features)

        for number in range(arguments.rounds):
            ours, theirs = bank(f"actors {number}"), bank(f"data {number}")
            sides: dict[str, Callable[[], None]] = {
                "actors": lambda ours=ours: by_actors(manifest, backbone, ours, nodes, spec),  # type: ignore[misc]
                "ray_data": lambda theirs=theirs: by_ray_data(manifest, backbone, theirs, nodes, chunk),  # type: ignore[misc]
            }
            order = sorted(sides, reverse=bool(number % 2))
            rounds.append({name: measured(sides[name]) for name in order})
            np.testing.assert_array_equal(ours.rows(wanted), theirs.rows(wanted))
            print(f"round {number + 1}: {rounds[-1]}", file=sys.stderr)
    sides_measured = {
        name: {what: spread([r[name][what] for r in rounds]) for what in rounds[0][name]} for name in rounds[0]
    }
    slower = spread([r["ray_data"]["seconds"] / r["actors"]["seconds"] for r in rounds])
    larger = spread([held_mib(r["actors"]) / held_mib(r["ray_data"]) for r in rounds])
    claims = {
        f"Ray Data takes {slower['median']:.2f} times as long as the actors, at least 1": slower["median"] >= 1,
        f"the actors take {larger['median']:.2f} of Ray Data's memory, at most 1.05": larger["median"] <= 1.05,
    }
    result = {
        "machine": machine(),
        "versions": versions("rayml", "ray", "openvino", "numpy", "pyarrow"),
        "backbone": arguments.backbone,
        "image_size": SIZES[arguments.backbone],
        "photos": len(wanted),
        "rounds": len(rounds),
        "sides": sides_measured,
        "ray_data_by_actors": slower,
        "memory_by_ray_data": larger,
        "claims": claims,
    }
    whole = arguments.rounds >= 3 and not arguments.photos and arguments.backbone == "mobilenet_v2"
    write_result("feature_pass", result, whole=whole)
    return 0 if all(claims.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
