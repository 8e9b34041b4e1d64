"""The same search on clusters of one, two and four nodes, and with a node killed: the same winner, the same history.

The nodes are Ray's simulated ones, real processes of this machine. Each search is a driver of its own, since this
process may be connected to the session's cluster.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.faults.test_kills import history, ledger, rows

pytestmark = pytest.mark.slow

_CLUSTER = """
import sys, threading
from pathlib import Path
from ray.cluster_utils import Cluster
import ray
from tests.faults.driver import search

count, folder, kill_at = int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 10**8})
nodes = [cluster.add_node(num_cpus=1, object_store_memory=10**8) for _ in range(count - 1)]
cluster.wait_for_nodes()
ray.init(address=cluster.address, log_to_driver=False)
if kill_at:
    from tests.faults.test_kills import rows, wait_until
    def kill():
        wait_until(lambda: rows(folder) >= kill_at)
        cluster.remove_node(nodes[-1], allow_graceful=False)
    threading.Thread(target=kill).start()
search("auto", folder)
print(len({node["NodeID"] for node in ray.nodes()}), "nodes")
ray.shutdown()
cluster.shutdown()
"""


def run(count: int, folder: Path, kill_at: int = 0) -> None:
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(
        [sys.executable, "-c", _CLUSTER, str(count), str(folder), str(kill_at)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=800,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"{count} nodes" in done.stdout


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("one")
    run(1, folder)
    assert rows(folder) == 26
    yield folder


@pytest.mark.parametrize("count", [2, 4])
def test_more_nodes_give_the_same(one: Path, tmp_path: Path, count: int) -> None:
    run(count, tmp_path)
    assert history(tmp_path) == history(one)
    assert ledger(tmp_path) == ledger(one)
    assert (tmp_path / "run" / "trials.csv").read_text().count("\n") == 13


def test_a_node_killed(one: Path, tmp_path: Path) -> None:
    run(3, tmp_path, kill_at=6)
    assert history(tmp_path) == history(one)
    assert ledger(tmp_path) == ledger(one)
