from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from rayml.errors import SearchError
from rayml.sample import write_sample
from tests.tune_jobs import small
from tests.tune_jobs.grow import HEAD_ID
from tune_jobs.cluster import Node
from tune_jobs.growth import Demand, Shrinking, await_room


def machines(*sizes: tuple[int, int]) -> tuple[Node, ...]:
    return tuple(Node(f"node {number}", cpus, gpus) for number, (cpus, gpus) in enumerate(sizes))


def test_what_a_search_asks_for(tmp_path: Path) -> None:
    assert Demand.of(small.settings(tmp_path)) == Demand(1.0, 0.0, 4)  # the grid's four cells
    changed = small.settings(tmp_path, max_concurrent=3, trial_cpus=2, trial_gpus=0.25)
    assert Demand.of(changed) == Demand(2, 0.25, 3)
    assert Demand.of(changed, 2) == Demand(2, 0.25, 2)  # Of a search that is resumed, what remains.
    assert Demand.of(changed).bundles() == [{"CPU": 2, "GPU": 0.25}] * 3
    assert Demand(1, 0, 2).bundles() == [{"CPU": 1}] * 2


@pytest.mark.parametrize(
    ("demand", "sizes", "places"),
    [
        (Demand(1, 0, 8), [], 0),
        (Demand(1, 0, 8), [(2, 0), (2, 0)], 4),
        (Demand(1, 0, 3), [(2, 0), (2, 0)], 3),  # never more than there are trials
        (Demand(3, 0, 8), [(2, 0), (4, 0)], 1),  # a trial is not split over two machines
        (Demand(1, 0.25, 8), [(8, 1)], 4),
        (Demand(4, 0.25, 8), [(8, 1)], 2),
        (Demand(1, 1, 8), [(8, 0)], 0),
        (Demand(1, 0.6, 8), [(8, 2)], 2),  # nor over two graphics processors
        (Demand(1, 2, 8), [(8, 5)], 2),
        (Demand(0.1, 0, 80), [(3, 0)], 30),  # 3 / 0.1 is a little less than 30
    ],
)
def test_places(demand: Demand, sizes: list[tuple[int, int]], places: int) -> None:
    assert demand.places(machines(*sizes)) == places


class Growing:
    """A cluster to which a machine of two processors comes every ten seconds, up to `most`, and its clock.

    Arguments:
        says_so_after_s: until then its autoscaler does not say what it may grow to; None for never.
    """

    def __init__(self, most: int, says_so_after_s: float | None = None) -> None:
        self.now = 0.0
        self.most = most
        self.says_so_after_s = says_so_after_s
        self.said: list[str] = []

    def nodes(self) -> tuple[Node, ...]:
        return machines(*[(2, 0)] * min(self.most, int(self.now / 10)))

    def maximum(self) -> tuple[int, int] | None:
        return None if self.says_so_after_s is None or self.now < self.says_so_after_s else (2 * self.most, 0)

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def wait(self, demand: Demand, timeout_s: float) -> tuple[Node, ...]:
        return await_room(demand, timeout_s, self.said.append, self.nodes, self.maximum, lambda: self.now, self.sleep)


def test_the_search_waits_until_all_trials_have_a_place() -> None:
    cluster = Growing(most=9)
    assert len(cluster.wait(Demand(1, 0, 8), 900)) == 4
    assert cluster.now == 40
    assert cluster.said == [
        "ray: 0 of 8 trials have a place; waiting for the cluster to grow",
        "ray: 6 of 8 trials have a place; waiting for the cluster to grow",
    ]


def test_the_search_goes_on_in_the_room_that_there_is() -> None:
    cluster = Growing(most=2)
    assert len(cluster.wait(Demand(1, 0, 8), 60)) == 2
    assert cluster.now == 60
    assert cluster.said[-1] == "ray: going on with 4 of 8 trials at once; the cluster has not grown further"


@pytest.mark.parametrize("says_so_after_s", [0.0, 25.0])
def test_more_than_the_cluster_can_grow_to_is_not_waited_for(says_so_after_s: float) -> None:
    cluster = Growing(2, says_so_after_s)
    assert len(cluster.wait(Demand(1, 0, 8), 900)) == 2
    assert cluster.now == max(20, says_so_after_s)
    assert cluster.said == [
        f"ray: 0 of {8 if says_so_after_s else 4} trials have a place; waiting for the cluster to grow"
    ]
    assert Demand(1, 0.5, 8).within((6, 2)) == Demand(1, 0.5, 4)
    assert Demand(1, 0, 8).within((sys.maxsize, 0)) == Demand(1, 0, 8)
    with pytest.raises(SearchError, match=r"a machine with 1 CPUs and 1 GPUs was expected within 60 s\."):
        Growing(2, 0.0).wait(Demand(1, 1, 8), 60)


def test_no_room_at_all_is_an_error() -> None:
    cluster = Growing(most=0)
    with pytest.raises(SearchError) as caught:
        cluster.wait(Demand(1, 1, 8), 60)
    assert caught.value.message == ("a machine with 1 CPUs and 1 GPUs was expected within 60 s. Received: no machine")
    assert "scale_up_timeout_s" in caught.value.hint
    with pytest.raises(SearchError, match="Received: 2 CPUs and 0 GPUs"):
        Growing(most=1).wait(Demand(1, 1, 8), 60)


def test_less_is_asked_for_as_the_last_trials_end(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr("ray.autoscaler.sdk.request_resources", lambda bundles: asked.append(len(bundles)))
    shrinking = Shrinking(Demand(1, 0, 3), trials=5)
    for number in ("00004", "00001", "00001"):
        shrinking.end(number, "stopped")
    assert asked == []
    for number in ("00000", "00002", "00003"):
        shrinking.end(number, "finished")
    assert asked == [2, 1, 0]


# A head without processors and a worker type of which there may be two, made by Ray's provider for tests, which starts
# them as processes of the head's machine; everything else is the autoscaler (v2) that runs on Kubernetes.
AUTOSCALING = {
    "cluster_name": "rayml-test",
    "max_workers": 2,
    "idle_timeout_minutes": 5,
    "provider": {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "head_node_id": HEAD_ID,
        "gcs_address": "10.77.0.1:6379",
        "launch_multiple": True,
    },
    "auth": {},
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "worker": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2},
    },
    "head_node_type": "ray.head.default",
    "upscaling_speed": 20.0,
    "file_mounts": {},
    "file_mounts_sync_continuously": False,
    "cluster_synced_files": [],
    "rsync_exclude": [],
    "rsync_filter": [],
    **{f"{which}setup_commands": [] for which in ("", "head_", "worker_")},
    **{f"{which}_start_ray_commands": [] for which in ("head", "worker")},
    "initialization_commands": [],
}


@pytest.mark.slow
def test_a_cluster_without_a_worker_grows_for_a_search() -> None:
    """The job's own command against Ray's autoscaler, version 2, from a head alone to a bundle."""
    if os.geteuid():
        pytest.skip("a network of its own needs root")
    with tempfile.TemporaryDirectory(prefix="rayml-", dir="/var/tmp") as name:
        folder = Path(name)
        write_sample(folder / "photos", train_per_class=6, validation_per_class=3)
        (folder / "autoscaling.json").write_text(json.dumps(AUTOSCALING))
        settings = {"data": str(folder / "photos"), "out": str(folder / "run"), "cache": str(folder / "cache")}
        settings |= {"backbone": "tiny", "size_inner": [4, 8], "learning_rate": [0.01], "epochs": 2, "batch_size": 16}
        settings |= {"scheduler": "none", "address": "auto", "trial_cpus": 1, "max_concurrent": 2}
        (folder / "tune.yaml").write_text(json.dumps({**settings, "scale_up_timeout_s": 400}))
        command = [sys.executable, "-m", "tests.tune_jobs.grow", name]
        done = subprocess.run(command, capture_output=True, text=True, timeout=1500)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("0\n"), done.stdout
        assert "ray: 0 of 2 trials have a place; waiting for the cluster to grow" in done.stdout
        assert "ray: 2 CPUs and 0 GPUs; 2 machines" in done.stdout
        assert (folder / "run" / "best" / "bundle.json").is_file()
