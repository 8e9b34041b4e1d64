"""The manifests' own texts on a cluster of processes with a network each: see scripts/cluster_demo.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.k8s.rendered import ROOT


@pytest.mark.slow
def test_search_service_upgrade_and_drain() -> None:
    if os.geteuid():
        pytest.skip("networks of their own need root")
    command = [sys.executable, "-m", "scripts.cluster_demo", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=2400)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["wrong_token"] in (401, 403)
    assert sum(found["trials"].values()) == 12 and found["trials"].get("failed", 0) <= 1  # the killed worker's
    assert found["val_accuracy"] > 0.5  # ten classes
    assert set(found["load"]) == {"200"}, found
    assert found["replicas"] == 2 and set(found["upgrade"]) == {"200"}, found
    assert set(found["drain"]) == {"200"}, found
    assert found["told"] == found["load"]["200"]  # each replica tells its own requests, together all of them
