"""A search of a known outcome, as a driver of its own: `python -m tests.faults.driver ADDRESS FOLDER`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rayml.training import TrainingData
from tests.tune_jobs.small import QUIET, settings, vectors
from tune_jobs.cluster import ray_cluster
from tune_jobs.config import SearchSettings
from tune_jobs.search import SearchResult, run_search

EPOCHS = 6  # Rungs of `sync` after 1, 2 and 4: 12 + 6 + 3 x 2 + 1 x 2 epochs are run.


def chosen(folder: Path, **changes: Any) -> SearchSettings:
    values: dict[str, Any] = {
        "size_inner": (4,),
        "learning_rate": tuple(0.001 * 1.5**step for step in range(12)),
        "dropout": 0.3,  # Its random state is part of a checkpoint.
        "epochs": EPOCHS,
        "grace_period": 1,
        "reduction_factor": 2,
        "scheduler": "sync",
        "trial_cpus": 1,
    }
    return settings(folder, **{**values, **changes})


def data() -> TrainingData:
    return vectors(count=400, noise=2.5)


def search(address: str, folder: Path, **changes: Any) -> SearchResult:
    """Begin the search, or go on with it."""
    asked = chosen(folder, **changes)
    asked.out.mkdir(parents=True, exist_ok=True)
    with ray_cluster(address) as nodes:
        return run_search(asked, data(), nodes, asked.out, QUIET)


def main() -> None:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address", metavar="ADDRESS", help="of a Ray cluster")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="for the run")
    arguments = parser.parse_args()
    search(arguments.address, arguments.folder)


if __name__ == "__main__":
    main()
