"""New versions into a busy server, again and again: how many requests fail?

    python -m tests.faults.deploy_under_load [REQUESTS]

Prints one JSON object. Ten thousand requests of eight clients take about a minute.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from serving.config import ServeSettings
from serving.environment import free_port
from serving.run import running
from tests.faults.load import Crowd
from tests.serving.tiny_bundle import CLASSES, picture, write_tiny_bundle

CLIENTS = 8
REPLICAS = 2
# A deployment, then as many requests again, and so on: at least so many deployments, however quick the requests are.
_BETWEEN, _DEPLOYMENTS = 500, 10


def measure(requests: int) -> dict[str, Any]:
    """Deploy two bundles in turn while clients ask.

    Arguments:
        requests: how many to count at least.

    Returns:
        `Tally.to_json`, with `deployments`, `replicas` and `clients`.
    """
    with tempfile.TemporaryDirectory() as folder:
        bundles = [write_tiny_bundle(Path(folder) / str(t), temperature=float(t)) for t in (1, 2)]
        settings = ServeSettings(port=free_port(), replicas=REPLICAS, threads=1)
        deployments = 0
        pictures = {label: picture(label) for label in CLASSES}
        with running(bundles[0], settings) as url, Crowd(url, CLIENTS, pictures) as crowd:
            crowd.wait_for(_BETWEEN)
            while crowd.tally.total < requests or deployments < _DEPLOYMENTS:
                deployments += 1
                rayml("deploy", str(bundles[deployments % 2]), "--address", url)
                crowd.wait_for(_BETWEEN)
    return {**crowd.tally.to_json(), "deployments": deployments, "replicas": REPLICAS, "clients": CLIENTS}


def rayml(*arguments: str) -> str:
    """Run a command as a person would; its output."""
    done = subprocess.run([sys.executable, "-m", "rayml", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"rayml {' '.join(arguments)}: {done.stderr}")
    return done.stdout


def main() -> None:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "requests", metavar="REQUESTS", nargs="?", type=int, default=10_000, help="of all clients together"
    )
    arguments = parser.parse_args()
    print(json.dumps(measure(arguments.requests), indent=1))


if __name__ == "__main__":
    main()
