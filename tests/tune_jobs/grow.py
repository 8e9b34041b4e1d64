"""The job's command on a head without workers and Ray's autoscaler: `python -m tests.tune_jobs.grow FOLDER`.

FOLDER holds autoscaling.json and tune.yaml. Prints the command's exit code, then what it said.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from scripts.local_cluster import LocalCluster, isolate

HEAD_ID = "f" * 51 + "00000"  # what Ray's provider for tests takes for the head


def main(folder: Path) -> None:
    """Start the head, run the job on it, and print."""
    autoscaler = {"RAY_enable_autoscaler_v2": "1", "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    autoscaler |= {"RAY_CLOUD_INSTANCE_ID": HEAD_ID, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID}
    arguments = [f"--autoscaling-config={folder / 'autoscaling.json'}"]
    with LocalCluster(folder, 0, arguments, autoscaler) as cluster:
        while len(cluster.alive()) != 1:
            cluster.nodes[0].check()
            time.sleep(1)
        # As a job, as KubeRay's submitter does.
        submit = ["ray", "job", "submit", "--address", cluster.dashboard_url, "--", "python", "-m", "tune_jobs.run"]
        done = cluster.run([*submit, str(folder / "tune.yaml")], check=False)
    print(done.returncode, done.stdout + done.stderr, sep="\n")


if __name__ == "__main__":
    isolate()
    main(Path(sys.argv[1]))
