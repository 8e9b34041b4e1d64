"""A server whose versions change, whose replicas die, and to which too many come; each script prints its figures."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

pytestmark = pytest.mark.slow


def _figures(script: str, *arguments: str) -> dict[str, Any]:
    """What a script prints, in a process of its own: servers change their process's environment."""
    command = [sys.executable, "-m", f"tests.faults.{script}", *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def test_no_request_fails_while_versions_change() -> None:
    figures = _figures("deploy_under_load", "10000")
    assert figures["requests"] >= 10_000 and figures["deployments"] >= 10, figures
    assert figures["failed"] == 0, figures
    assert len(figures["versions"]) == 2, figures


def test_a_killed_replica_fails_what_it_held_and_a_client_that_retries_sees_nothing() -> None:
    figures = _figures("kill_replica")
    assert figures["client_requests"] > 100 and not figures["client_failed"], figures
    # A request of each client can have been on its way to the replica.
    assert all(failed <= figures["clients"] for failed in figures["failed_by_kill"]), figures
    assert not figures["versions"].keys() - {"3"}, figures


def test_ten_times_the_load_is_refused_and_forgotten() -> None:
    figures = _figures("overload", "10")
    assert figures["refused"] > figures["accepted"] > 0, figures
    assert not figures["other"] and not figures["wrong"] and not figures["no_retry_after"], figures
    assert figures["recovered_s"] < 60, figures


def test_a_config_file_changes_the_version_and_not_the_replicas() -> None:
    figures = _figures("config_file")
    assert figures["pids"][0] and figures["pids"].count(figures["pids"][0]) == 4, figures
    # The third is not reproduced here: it never answers, and the second goes on, until no version is pinned.
    assert figures["versions_live"] == [["1"], ["1", "2"], ["1", "2"], ["1", "2"]], figures
    assert figures["taken"] == [True, True, False, True], figures
    assert figures["failed"] == 0, figures


@pytest.mark.parametrize("name", ["config_file", "deploy_under_load", "driver", "kill_replica", "overload"])
def test_each_script_says_how_it_is_called(name: str) -> None:
    command = [sys.executable, "-m", f"tests.faults.{name}", "--help"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("usage: ")
