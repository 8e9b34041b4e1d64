"""A trial's process that Ray kills because the machine runs out of memory: the trial goes on in another."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.faults.test_kills import rows

pytestmark = pytest.mark.slow

# Ray is told that the machine's memory ends a little above what is in use, and the first trial takes more than that.
_SEARCH = """
import sys, time
from pathlib import Path
import psutil
memory = psutil.virtual_memory()
spare = 3 << 30
import os
os.environ["RAY_memory_usage_threshold"] = str((memory.total - memory.available + spare) / memory.total)
os.environ["RAY_memory_monitor_refresh_ms"] = "100"
import numpy as np
import tune_jobs.search
from tests.tune_jobs.small import QUIET, settings, vectors
from tune_jobs.cluster import ray_cluster
from tune_jobs.trial import train_head

def greedy(config, data):
    mark = Path(config["checkpoints"]).parent / f"taken-{config['cell']['trial']}"
    if config["cell"]["trial"] == "00000" and not mark.exists():
        mark.touch()
        taken = np.ones(spare // 8 * 2)
        time.sleep(60)
        mark.with_name("spared").touch()
    train_head(config, data)

tune_jobs.search.train_head = greedy
folder = Path(sys.argv[1])
with ray_cluster("local") as nodes:
    (folder / "run").mkdir()
    result = tune_jobs.search.run_search(settings(folder), vectors(), nodes, folder / "run", QUIET)
print([trial.status for trial in result.trials])
"""


def test_a_trial_that_is_killed_for_memory_goes_on(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _SEARCH, str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "['finished', 'finished', 'finished', 'finished']" in done.stdout
    assert (tmp_path / "run" / "taken-00000").exists()
    assert not (tmp_path / "run" / "spared").exists()
    assert rows(tmp_path) == 12
