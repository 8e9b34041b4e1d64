"""A pass on a cluster of its own: python -m tests.tune_jobs.many_nodes FROZEN FOLDER; prints what happened as JSON.

One machine plays the head, without processors, and four nodes. Each chunk takes a moment longer than it must, so that
there is a pass to disturb: when every node has worked, one of them is taken away and one worker of another killed.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import ray
from ray.cluster_utils import Cluster

import tune_jobs.features
from rayml.backbones import backbone_spec
from rayml.clothing import CLASSES
from rayml.data import scan_labelled
from rayml.engines import load_engine
from rayml.features import FeatureBank
from rayml.frozen import load_frozen
from rayml.images import load_pixels
from rayml.progress import Progress
from rayml.sample import draw
from tune_jobs.cluster import ray_cluster
from tune_jobs.feature_worker import Done, FeatureWorker

PICTURES = 60  # of each class
NODES = 4


class Noted(FeatureWorker):
    """Leaves a file for each chunk: NODE-PID-TIME."""

    def compute(self, paths: Sequence[str], digests: Sequence[str]) -> Done:
        node = ray.get_runtime_context().get_node_id()
        (Path(os.environ["NOTES"]) / f"{node}-{os.getpid()}-{time.monotonic_ns()}").touch()
        time.sleep(0.5)
        return super().compute(paths, digests)


def notes() -> list[tuple[str, int]]:
    """Node and process of each chunk that was begun."""
    parts = [path.name.split("-") for path in sorted(Path(os.environ["NOTES"]).iterdir())]
    return [(node, int(pid)) for node, pid, _ in parts]


def main() -> None:
    """Run one pass and disturb it."""
    frozen, folder = load_frozen(Path(sys.argv[1])), Path(sys.argv[2])
    assert frozen is not None
    photos = folder / "photos"
    for label in CLASSES:
        (photos / label).mkdir(parents=True)
        for seed in range(PICTURES):
            draw(label, seed).save(photos / label / f"{seed}.jpg")
    manifest = scan_labelled(photos, CLASSES)
    os.environ["NOTES"] = str(folder / "notes")
    Path(os.environ["NOTES"]).mkdir()

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 128 << 20})
    added = [
        cluster.add_node(num_cpus=1, num_gpus=int(number == 0), object_store_memory=128 << 20)
        for number in range(NODES)
    ]
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, logging_level=logging.ERROR, log_to_driver=False)
    lost = []

    def disturb() -> None:
        while len({node for node, _ in notes()}) < NODES:
            time.sleep(0.2)
        taken, struck = added[-1], added[-2]
        cluster.remove_node(taken, allow_graceful=False)
        lost.append("node")
        process = next(pid for node, pid in reversed(notes()) if node == struck.node_id)
        os.kill(process, signal.SIGKILL)
        lost.append("worker")

    disturber = threading.Thread(target=disturb)
    tune_jobs.features.FeatureWorker = Noted  # type: ignore[misc]
    tune_jobs.features.MIN_CHUNK = 1
    bank = FeatureBank.of(frozen, folder / "cache")
    with ray_cluster(cluster.address) as nodes:
        disturber.start()
        spec = backbone_spec("tiny")
        result = tune_jobs.features.feature_pass(
            manifest, frozen, bank, nodes, spec=spec, skip_unreadable=False, progress=Progress(), shared=True
        )
        disturber.join()
    ray.shutdown()
    cluster.shutdown()

    pixels = np.stack([load_pixels((photos / photo.path).read_bytes(), 64) for photo in manifest.photos])
    expected = load_engine(frozen.graph(), threads=2)(pixels)
    kept = FeatureBank.of(frozen, folder / "cache")
    rows = kept.rows([photo.sha256 for photo in manifest.photos])
    said = {
        "photos": len({photo.sha256 for photo in manifest.photos}),
        "computed": result.computed,
        "kept": len(kept),
        "engine": result.engine,
        "nodes_at_work": len({node for node, _ in notes()}),
        "lost": lost,
        "difference": float(np.abs(rows - expected).max() / np.abs(expected).max()),
    }
    print(json.dumps(said))


if __name__ == "__main__":
    main()
