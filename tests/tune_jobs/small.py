"""A search small enough to be run many times: vectors that a head can learn, settings, the cluster's one node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rayml.progress import Progress
from rayml.training import TrainingData
from tune_jobs.cluster import Node, ray_cluster
from tune_jobs.config import SearchSettings

QUIET = Progress(quiet=True)


def vectors(count: int = 60, features: int = 12, classes: int = 3, seed: int = 1, noise: float = 1.0) -> TrainingData:
    """`count` vectors to learn from and 30 to validate on."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, count + 30).astype(np.int32)
    centres = random.normal(size=(classes, features))
    points = (centres[labels] + noise * random.normal(size=(count + 30, features))).astype(np.float32)
    names = tuple(f"class {number}" for number in range(classes))
    digest = f"synthetic {count} {features} {classes} {seed} {noise}"
    return TrainingData(points[:count], labels[:count], points[count:], labels[count:], names, digest)


def settings(folder: Path, **changes: Any) -> SearchSettings:
    values = {
        "data": folder / "photos",
        "out": folder / "run",
        "cache": folder / "cache",
        "backbone": "tiny",
        "size_inner": (4, 8),
        "learning_rate": (0.001, 0.05),
        "epochs": 3,
        "batch_size": 16,
        "scheduler": "none",
        **changes,
    }
    return SearchSettings(**values)


def one_at_a_time(folder: Path, **changes: Any) -> SearchSettings:
    """Settings whose trials follow each other: TensorFlow's import in a second process outlasts all their epochs."""
    return settings(folder, **{"trial_cpus": 2, **changes})


def nodes(address: str) -> tuple[Node, ...]:
    """The nodes of the cluster that the tests run on."""
    with ray_cluster(address) as found:
        return found
