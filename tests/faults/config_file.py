"""A Serve config file in which only the version changes: do the replicas stay, does a request fail?

    python -m tests.faults.config_file

Prints one JSON object. The file is given to Ray Serve as `serve deploy` gives it, by way of the controller, since a
server of `rayml serve` has no dashboard.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from rayml.bundle import Bundle
from rayml.registry import Registry, State
from serving.config import ServeSettings
from serving.environment import free_port
from serving.run import Server
from tests.faults.kill_replica import replicas
from tests.faults.load import Crowd
from tests.serving.tiny_bundle import CLASSES, picture, write_tiny_bundle

_TIMEOUT_S = 120.0


def measure() -> dict[str, Any]:
    """Pin versions 1, 2 and one that is not reproduced here, in turn, then none, while clients ask.

    The server starts in this process and changes its environment.

    Returns:
        `Tally.to_json`, with `pids`: the replicas at each step, `versions_live`: what they had answered with by then,
        and `taken`: whether they came to answer with what the step asks for, the last one for version 1, which is live.
    """
    with tempfile.TemporaryDirectory() as folder:
        registry = Registry(Path(folder) / "models")
        made = [write_tiny_bundle(Path(folder) / str(t), temperature=float(t)) for t in (1, 2)]
        made.append(write_tiny_bundle(Path(folder) / "foreign", golden_factor=1.5))
        with registry.writing():
            for bundle in made:
                registry.add(Bundle.open(bundle))
            registry.write_state("primaries", State(live=1))
        with Server(registry.root, ServeSettings(port=free_port(), threads=1)) as server:
            pids, live, taken = [], [], []
            _deploy(registry, 1)
            with Crowd(server.url, 4, {label: picture(label) for label in CLASSES}) as crowd:
                for version in (1, 2, 3, None):
                    if version != 1:
                        _deploy(registry, version)
                    wanted = str(version or 1)
                    enough = crowd.tally.versions[wanted] + 50
                    deadline = time.monotonic() + (_TIMEOUT_S if version != 3 else 5.0)
                    while crowd.tally.versions[wanted] < enough and time.monotonic() < deadline:
                        time.sleep(0.1)
                    taken.append(crowd.tally.versions[wanted] >= enough)
                    pids.append(replicas(os.getpid()))
                    live.append(sorted(v for v, count in crowd.tally.versions.items() if count))
    return {**crowd.tally.to_json(), "pids": pids, "versions_live": live, "taken": taken}


def _deploy(registry: Registry, version: int | None) -> None:
    from ray import serve
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    application = {
        "name": "rayml",
        "route_prefix": "/",
        "import_path": "serving.app:build",
        "args": {"models": str(registry.root), "name": "primaries", "threads": 1},
        "deployments": [] if version is None else [{"name": "Classifier", "user_config": {"version": version}}],
    }
    _get_global_client().deploy_apps(ServeDeploySchema.model_validate({"applications": [application]}))
    deadline = time.monotonic() + _TIMEOUT_S
    while str(serve.status().applications["rayml"].status) not in ("RUNNING", "ApplicationStatus.RUNNING"):
        assert time.monotonic() < deadline, serve.status()
        time.sleep(0.2)


def main() -> None:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    print(json.dumps(measure(), indent=1))


if __name__ == "__main__":
    main()
