"""SIGKILL for one of two busy replicas: who notices?

    python -m tests.faults.kill_replica

Prints one JSON object: what plain clients saw, what `serving.client.Client` saw, which asks a second time.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from rayml.errors import RaymlError
from serving import client as serving_client
from serving.config import ServeSettings
from serving.environment import free_port
from serving.processes import descendants
from serving.run import running
from serving.servers import find_server
from tests.faults.load import Crowd
from tests.serving.tiny_bundle import CLASSES, picture, write_tiny_bundle

CLIENTS = 8
KILLS = 3
_BETWEEN = 400
_BACK_TIMEOUT_S = 120.0


def measure(kills: int = KILLS) -> dict[str, Any]:
    """Kill a replica, wait until there are two again, and so on, while plain and retrying clients ask.

    Returns:
        `Tally.to_json` of the plain clients, with `kills`, `failed_by_kill`, `clients`, and of the retrying client
        `client_requests` and `client_failed`.
    """
    asked, failures, stop = 0, [], threading.Event()

    def ask(url: str) -> None:
        nonlocal asked
        client = serving_client.Client(url)
        while not stop.is_set():
            try:
                assert client.predict(picture("green"))["label"] == "green"
            except RaymlError as error:
                failures.append(error.message)
            asked += 1

    with tempfile.TemporaryDirectory() as folder:
        bundle = write_tiny_bundle(Path(folder) / "bundle")
        with running(bundle, ServeSettings(port=free_port(), replicas=2, threads=1)) as url:
            main = find_server(url).pid
            retrying = [threading.Thread(target=ask, args=(url,)) for _ in range(2)]
            with Crowd(url, CLIENTS, {label: picture(label) for label in CLASSES}) as crowd:
                for thread in retrying:
                    thread.start()
                by_kill = []
                for _ in range(kills):
                    crowd.wait_for(_BETWEEN)
                    before = crowd.tally.failed
                    killed = replicas(main)[0]
                    os.kill(killed, signal.SIGKILL)
                    deadline = time.monotonic() + _BACK_TIMEOUT_S
                    while (alive := replicas(main)) and (len(alive) < 2 or killed in alive):
                        assert time.monotonic() < deadline, alive
                        time.sleep(0.1)
                    crowd.wait_for(_BETWEEN)
                    by_kill.append(crowd.tally.failed - before)
                stop.set()
                for thread in retrying:
                    thread.join()
    figures = {"kills": kills, "failed_by_kill": by_kill, "clients": CLIENTS}
    return {**crowd.tally.to_json(), **figures, "client_requests": asked, "client_failed": failures}


def replicas(main: int) -> list[int]:
    """The process ids of a server's replicas."""
    found = []
    for pid in sorted(descendants(main)):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if b"ServeReplica" in command:
            found.append(pid)
    return found


def main() -> None:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    print(json.dumps(measure(), indent=1))


if __name__ == "__main__":
    main()
