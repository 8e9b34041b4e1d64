"""Processes killed at random moments: the same winner and the same history as a search that nobody disturbed."""

from __future__ import annotations

import csv
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import ROOT
from tests.faults.driver import data, search
from tune_jobs.records import winner
from tune_jobs.search import SearchResult
from tune_jobs.select import select

PATIENCE_S = 300


def history(folder: Path) -> list[dict[str, str]]:
    """history.csv without the times."""
    with (folder / "run" / "history.csv").open(newline="") as file:
        return [{name: cell for name, cell in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def rows(folder: Path) -> int:
    path = folder / "run" / "history.csv"
    return path.read_bytes().count(b"\n") - 1 if path.exists() else -1


def ledger(folder: Path) -> list[str]:
    return sorted((folder / "run" / "ledger.jsonl").read_text().splitlines())


def figures(result: SearchResult) -> list[tuple[Any, ...]]:
    return [(t.trial_id, t.status, t.epochs, t.best_epoch, t.val_accuracy, t.val_loss) for t in result.trials]


class Undisturbed:
    """What the search gives when it is left alone."""

    def __init__(self, address: str, folder: Path) -> None:
        self.result = search(address, folder)
        self.rows = history(folder)
        self.ledger = ledger(folder)

    def assert_same(self, folder: Path, result: SearchResult) -> None:
        assert history(folder) == self.rows
        assert ledger(folder) == self.ledger
        assert figures(result) == figures(self.result)
        won = winner(result.trials)
        assert won is not None
        # The weights are there, and score what the table says.
        assert select(result, data(), folder / "run").trial == won


@pytest.fixture(scope="module")
def undisturbed(ray_cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    found = Undisturbed(ray_cluster, tmp_path_factory.mktemp("undisturbed"))
    assert len(found.rows) == 26
    assert len({row["trial_id"] for row in found.rows}) == 12
    return found


def wait_until(ready: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not ready():
        assert time.monotonic() < end, "it did not get that far"
        time.sleep(0.002)


def kill_trials() -> int:
    """Kill every process of the session's own cluster that trains."""
    killed = 0
    for process in psutil.Process().children(recursive=True):
        try:
            if process.cmdline()[0].startswith(("ray::ImplicitFunc", "ray::train_head")):
                process.kill()
                killed += 1
        except (psutil.Error, IndexError):
            continue
    return killed


def trial_killed(address: str, folder: Path, at: int) -> SearchResult:
    """The processes of all running trials die when so many epochs are recorded."""
    killed: list[int] = []

    def kill() -> None:
        wait_until(lambda: rows(folder) >= at)
        killed.append(kill_trials())

    killer = threading.Thread(target=kill)
    killer.start()
    result = search(address, folder)
    killer.join()
    assert killed[0] > 0
    return result


def driver_killed(address: str, folder: Path, at: int, *, trials_too: bool = False) -> None:
    """A driver dies when so many epochs are recorded."""
    command = [sys.executable, "-m", "tests.faults.driver", address, str(folder)]
    driver = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: rows(folder) >= at or driver.poll() is not None)
        if trials_too:
            kill_trials()
    finally:
        driver.kill()
        driver.wait()


def test_trials_killed(ray_cluster: str, undisturbed: Undisturbed, tmp_path: Path) -> None:
    at = random.Random().randrange(1, 20)
    undisturbed.assert_same(tmp_path, trial_killed(ray_cluster, tmp_path, at))


def test_driver_killed_and_the_run_moved(ray_cluster: str, undisturbed: Undisturbed, tmp_path: Path) -> None:
    at = random.Random().randrange(1, 26)
    driver_killed(ray_cluster, tmp_path / "here", at)
    (tmp_path / "here").rename(tmp_path / "there")
    undisturbed.assert_same(tmp_path / "there", search(ray_cluster, tmp_path / "there"))


def test_what_a_crash_may_leave_behind(ray_cluster: str, undisturbed: Undisturbed, tmp_path: Path) -> None:
    """Lines cut short, a damaged checkpoint of each trial, another one gone, Ray's state in ruins."""
    at = random.Random().randrange(13, 26)
    driver_killed(ray_cluster, tmp_path, at, trials_too=True)
    run = tmp_path / "run"
    for name in ("history.csv", "ledger.jsonl"):
        whole = (run / name).read_bytes()
        (run / name).write_bytes(whole[: len(whole) - 7])
    for trial in (run / "checkpoints").glob("0*"):
        newest = max(trial.glob("*.npz"))
        newest.write_bytes(newest.read_bytes()[:1000])
    for path in (run / "ray").rglob("*"):
        if path.is_file():
            path.write_bytes(b"ruins")
    undisturbed.assert_same(tmp_path, search(ray_cluster, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("round_number", range(20))
def test_killed_again_and_again(ray_cluster: str, undisturbed: Undisturbed, tmp_path: Path, round_number: int) -> None:
    """One to three kills, of trials, of the driver, or of both, at random moments."""
    chance = random.Random(round_number)
    kinds = [chance.choice(("trials", "driver", "both")) for _ in range(chance.randrange(1, 4))]
    for kind in kinds:
        at = max(rows(tmp_path), 0) + chance.randrange(1, 12)
        if at >= len(undisturbed.rows):
            break
        if kind == "trials":
            trial_killed(ray_cluster, tmp_path, at)
        else:
            driver_killed(ray_cluster, tmp_path, at, trials_too=kind == "both")
    undisturbed.assert_same(tmp_path, search(ray_cluster, tmp_path))
