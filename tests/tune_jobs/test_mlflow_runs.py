"""MLflow as a follower: with a client that fails as a server does, and with a real server on this machine."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from rayml.errors import SearchError, UsageError, install_hint
from rayml.progress import Progress
from rayml.sample import write_sample
from rayml.training import EpochMetrics
from tests.clients.environments import environment, surroundings
from tests.tune_jobs.small import QUIET, settings
from tune_jobs import mlflow_runs
from tune_jobs.mlflow_runs import MLflow, Server
from tune_jobs.records import EpochRow
from tune_jobs.run import run_tune

SERVER = "mlflow==3.17.2"
START_TIMEOUT_S = 300.0


def row(trial: str, epoch: int, accuracy: float = 0.5) -> EpochRow:
    return EpochRow(trial, epoch, EpochMetrics(1.0, 0.5, 2.0, accuracy), 1.0)


# --- without the package


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything else is done: RUN is not made."""
    write_sample(tmp_path / "photos", train_per_class=2, validation_per_class=1)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(UsageError, match="--mlflow needs the package mlflow or mlflow-skinny") as caught:
        run_tune(settings(tmp_path, mlflow="http://127.0.0.1:1"), QUIET)
    assert caught.value.hint == install_hint("mlflow")
    assert not (tmp_path / "run").exists()


def test_an_address_is_shown_and_recorded_without_its_password(tmp_path: Path) -> None:
    assert mlflow_runs._without_password("https://me:secret@host:5000/x") == "https://...@host:5000/x"
    assert mlflow_runs._without_password("http://host:5000") == "http://host:5000"
    chosen = settings(tmp_path, mlflow="https://me:secret@host:5000")
    assert "secret" not in json.dumps(chosen.to_json(), default=str)


class Once:
    """A server that answers before the features, and is gone after them."""

    asked = 0

    def __init__(self, uri: str) -> None:
        Once.asked += 1
        if Once.asked > 1:
            raise SearchError("an MLflow server was expected")
        self.client, self.experiment = Refusing(), "1"


def test_a_search_goes_on_without_a_server_that_is_gone_after_the_features(
    tmp_path: Path, ray_cluster: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_sample(tmp_path / "photos", train_per_class=2, validation_per_class=1)
    monkeypatch.setattr("tune_jobs.run.Server", Once)
    monkeypatch.setattr(MLflow, "_open", lambda self: self._client.create_run())
    small: dict[str, Any] = {"size_inner": (4,), "learning_rate": (0.05,), "epochs": 1, "trial_cpus": 2}
    done = run_tune(settings(tmp_path, mlflow="http://127.0.0.1:1", **small), Progress())
    assert [trial.status for trial in done.trials] == ["finished"]
    assert "mlflow: the server failed (ConnectionError: " in capsys.readouterr().err


class Refusing:
    """A client whose server is gone."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def refuse(*arguments: Any, **named: Any) -> Any:
            raise ConnectionError("HTTPConnectionPool: Max retries exceeded (Caused by refused)")

        return refuse


def test_a_server_that_fails_is_told_to_whoever_speaks_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = object.__new__(Server)
    server.client, server.experiment = Refusing(), "1"
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.setattr(MLflow, "_open", lambda self: self._client.create_run())
    tracker = MLflow(server, tmp_path / "run", {})
    tracker._thread.join(60)
    with pytest.raises(SearchError, match=r"the server failed \(ConnectionError: .*refused"):
        tracker.begin("00000", {})
    with pytest.raises(SearchError, match="the server failed"):
        tracker.close("finished")


class Noting:
    """A client that notes which run is ended, and how."""

    def __init__(self) -> None:
        self.ended: list[tuple[str, str]] = []

    def set_terminated(self, run: str, status: str) -> None:
        self.ended.append((run, status))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *arguments, **named: None


def test_trials_that_ran_when_the_search_was_interrupted_end_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = object.__new__(Server)
    server.client, server.experiment = Noting(), "1"
    monkeypatch.setattr(MLflow, "_open", lambda self: self._make("", "search", {}, {}))
    monkeypatch.setattr(MLflow, "_make", lambda self, number, *_: self._ids.update({number: f"run {number}"}))
    tracker = MLflow(server, tmp_path / "run", {})
    for number in ("00000", "00001", "00002"):
        tracker.begin(number, {})
    tracker.end("00001", "finished")
    tracker.close("interrupted")
    assert server.client.ended == [
        ("run 00001", "FINISHED"),
        ("run 00000", "KILLED"),
        ("run 00002", "KILLED"),
        ("run ", "KILLED"),
    ]


# --- with a real server

DRIVE = """
import sys
sys.path.append(sys.argv[1])  # After all others: MLflow's packages must not take the place of rayml's.
"""


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The address of an MLflow server of this machine, and its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(environment(SERVER) / "mlflow"), "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{folder}/runs.db", "--artifacts-destination", str(folder / "kept")]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--workers", "1"], stdout=log, stderr=log, env=surroundings(), start_new_session=True
        )
    url, ends = f"http://127.0.0.1:{port}", time.monotonic() + START_TIMEOUT_S
    try:
        while True:
            with suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=5):
                break
            assert process.poll() is None and time.monotonic() < ends, (folder / "server.log").read_text()[-2000:]
            time.sleep(0.5)
        yield url, process
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, 9)
    process.wait(60)


def with_mlflow(code: str, *arguments: object, timeout_s: float = 600.0) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own that can import MLflow."""
    packages = next(environment(SERVER).parent.glob("lib/python3*/site-packages"))
    return subprocess.run(
        [sys.executable, "-c", DRIVE + code, str(packages), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        stdin=subprocess.DEVNULL,
    )


SEARCH = """
sys.argv = ["rayml", *sys.argv[2:]]
from rayml.cli import main
main()
"""

READ = """
import json
from mlflow import MlflowClient
client = MlflowClient(tracking_uri=sys.argv[2])
(experiment,) = [e for e in client.search_experiments() if e.name == "rayml"]
print(json.dumps([{
    "name": run.info.run_name, "status": run.info.status, "params": run.data.params, "id": run.info.run_id,
    "parent": run.data.tags.get("mlflow.parentRunId"), "said": run.data.tags.get("rayml.status"),
    "metrics": run.data.metrics,
    "steps": [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "val_accuracy")],
} for run in client.search_runs([experiment.experiment_id])]))
"""

# Two epochs; then, as a search that goes on: all of that again, and one more.
RESUME = """
from pathlib import Path
from rayml.training import EpochMetrics
from tune_jobs.mlflow_runs import MLflow, Server
from tune_jobs.records import EpochRow
run = Path(sys.argv[3])
for epochs in (2, 3):
    tracker = MLflow(Server(sys.argv[2]), run, {"epochs": 3})
    tracker.begin("00000", {"size_inner": 4})
    for epoch in range(1, epochs + 1):
        tracker.epoch(EpochRow("00000", epoch, EpochMetrics(1.0, 0.5, 2.0, 0.1 * epoch), 1.0))
    if epochs == 3:
        tracker.end("00000", "finished")
    tracker.close("finished" if epochs == 3 else "interrupted")
"""

DIES = """
import os, time
from pathlib import Path
from rayml.errors import SearchError
from rayml.training import EpochMetrics
from tune_jobs.mlflow_runs import MLflow, Server
from tune_jobs.records import EpochRow
tracker = MLflow(Server(sys.argv[2]), Path(sys.argv[3]), {})
tracker.begin("00000", {"size_inner": 4})
while not (Path(sys.argv[3]) / "mlflow.json").exists():
    time.sleep(0.1)
os.killpg(int(sys.argv[4]), 9)
try:
    for epoch in range(1, 2000):
        tracker.epoch(EpochRow("00000", epoch, EpochMetrics(1.0, 0.5, 2.0, 0.5), 1.0))
        time.sleep(0.05)
except SearchError as error:
    print(error.message)
"""


@pytest.mark.slow
def test_a_search_tells_a_real_server(tmp_path: Path, ray_cluster: str) -> None:
    write_sample(tmp_path / "photos", train_per_class=3, validation_per_class=2)
    with serving(tmp_path) as (url, process):
        grid = ["--backbone", "tiny", "--size-inner", "4,8", "--learning-rate", "0.01", "--epochs", "2"]
        command = ["tune", tmp_path / "photos", "--out", tmp_path / "run", *grid, "--scheduler", "none"]
        command += ["--cache", tmp_path / "cache", "--address", ray_cluster, "--mlflow", url, "--json"]
        done = with_mlflow(SEARCH, *command)
        assert done.returncode == 0, done.stderr
        assert "mlflow" not in done.stderr
        trials = json.loads(done.stdout)["trials"]
        runs = json.loads(with_mlflow(READ, url).stdout)
        (whole,) = [run for run in runs if run["parent"] is None]
        assert (whole["name"], whole["status"], whole["said"]) == ("run", "FINISHED", "finished")
        assert whole["metrics"]["best_val_accuracy"] == max(trial["val_accuracy"] for trial in trials)
        assert whole["params"]["scheduler"] == "none"
        children = {run["name"]: run for run in runs if run["parent"] == whole["id"]}
        assert sorted(children) == ["run 00000", "run 00001"]
        for trial in trials:
            told = children[f"run {trial['trial_id']}"]
            assert told["params"]["size_inner"] == str(trial["size_inner"])
            assert [step for step, _ in sorted(told["steps"])] == [1, 2]
            assert max(value for _, value in told["steps"]) == pytest.approx(trial["val_accuracy"])
            assert told["status"] == "FINISHED"
        assert url not in (tmp_path / "run" / "run.json").read_text()

        # The same runs are gone on with; each epoch is there once.
        (tmp_path / "again").mkdir()
        done = with_mlflow(RESUME, url, tmp_path / "again")
        assert done.returncode == 0, done.stderr
        runs = [run for run in json.loads(with_mlflow(READ, url).stdout) if run["name"].startswith("again")]
        assert sorted(run["name"] for run in runs) == ["again", "again 00000"]
        assert [step for step, _ in sorted(runs[0]["steps"] or runs[1]["steps"])] == [1, 2, 3]
        assert {run["status"] for run in runs} == {"FINISHED"}

        # A server that dies in the middle ends nothing, and is said.
        (tmp_path / "dies").mkdir()
        done = with_mlflow(DIES, url, tmp_path / "dies", process.pid)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("the server failed (")

    # One that is not there is said before anything is done.
    done = with_mlflow(SEARCH, *[tmp_path / "gone" if part == tmp_path / "run" else part for part in command])
    assert done.returncode == 1
    error, hint = done.stderr.splitlines()[-2:]
    assert error.startswith(f"Error: an MLflow server was expected at --mlflow {url}. Received: ")
    assert hint.startswith("Start it (`mlflow server`)")
    assert not (tmp_path / "gone").exists()
