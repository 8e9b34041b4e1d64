"""MLflow as a follower of a search, `--mlflow URI`: a run for the search, and under it one for each trial.

A server that is not there is said before the search begins. During it a thread of its own speaks to the server, so that
no trial waits for it; where it fails, that is said once and the search goes on without. RUN/mlflow.json holds the ids
of the runs, so that a search that goes on goes on in the same ones.
"""

from __future__ import annotations

import json
import os
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from rayml.errors import SearchError, UsageError, install_hint
from tune_jobs.records import EpochRow
from tune_jobs.tracker import FIGURES, Tracker

EXPERIMENT = "rayml"  # Unless MLFLOW_EXPERIMENT_NAME names another.
# MLflow's own patience is seven tries of two minutes, and it prints addresses to stdout, where --json has its answer.
# What somebody has set stays.
_SURROUNDINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",  # Else it tells its makers what is called (mlflow.org, "Usage Tracking").
}
_CLOSE_TIMEOUT_S = 60.0
_MOST_METRICS = 1000  # In one request; a limit of MLflow's.


class Server:
    """An MLflow server, or a folder or database in its place, that answers.

    Arguments:
        uri: as MLflow takes it: http://HOST:PORT, sqlite:///FILE, ...

    Raises:
        UsageError: the package is missing.
        SearchError: nothing answers there.
    """

    def __init__(self, uri: str) -> None:
        for name, value in _SURROUNDINGS.items():
            os.environ.setdefault(name, value)
        try:
            from mlflow import MlflowClient
        except ImportError:
            raise UsageError(
                "--mlflow needs the package mlflow or mlflow-skinny. Received: neither is installed",
                install_hint("mlflow"),
            ) from None
        try:
            self.client = MlflowClient(tracking_uri=uri)
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
            found = self.client.get_experiment_by_name(name)
            self.experiment: str = found.experiment_id if found else self.client.create_experiment(name)
        except Exception as error:  # MLflow passes on those of each of its stores.
            raise SearchError(
                f"an MLflow server was expected at --mlflow {_without_password(uri)}. Received: {_short(error)}",
                "Start it (`mlflow server`), mend the address, or leave --mlflow out.",
            ) from None


class MLflow(Tracker):
    """Tells a server.

    Arguments:
        server: it.
        run: RUN.
        settings: what the search's own run is to show, by name.
    """

    name = "mlflow"

    def __init__(self, server: Server, run: Path, settings: dict[str, Any]) -> None:
        self._client, self._experiment = server.client, server.experiment
        self._file = run / "mlflow.json"
        self._search_name = run.name
        self._settings = settings
        self._ids: dict[str, str] = {}  # The search's own run is "".
        self._sent: dict[str, int] = {}  # Of a trial that goes on: its last epoch that the server knows.
        self._running: set[str] = set()  # Begun, and not ended.
        self._best = 0.0
        self._failure = ""
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._metrics: dict[str, list[Any]] = defaultdict(list)
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._queue.put(self._open)
        self._thread.start()

    def begin(self, number: str, cell: dict[str, Any]) -> None:
        """See `Tracker`."""
        self._ask(lambda: self._begin(number, cell))

    def epoch(self, row: EpochRow) -> None:
        """See `Tracker`."""
        now = int(1000 * time.time())
        self._ask(lambda: self._epoch(row, now))

    def end(self, number: str, status: str) -> None:
        """See `Tracker`."""
        self._ask(lambda: self._end(number, status))

    def close(self, status: str) -> None:
        """See `Tracker`; waits for what is on its way.

        Raises:
            SearchError: the server failed, or is too slow.
        """
        self._ask(lambda: self._end("", status))
        self._queue.put(None)
        self._thread.join(_CLOSE_TIMEOUT_S)
        if self._thread.is_alive():
            self._failure = self._failure or f"the server has not taken everything within {_CLOSE_TIMEOUT_S:g} s"
        self._check()

    def _ask(self, job: Callable[[], None]) -> None:
        self._check()
        self._queue.put(job)

    def _check(self) -> None:
        if self._failure:
            raise SearchError(self._failure)

    # All below runs in the thread.

    def _work(self) -> None:
        try:
            while True:
                jobs = [self._queue.get()]
                with suppress(queue.Empty):
                    while len(jobs) < _MOST_METRICS // len(FIGURES):
                        jobs.append(self._queue.get_nowait())
                for job in jobs:
                    if job:
                        job()
                for number in list(self._metrics):
                    self._flush(number)
                if None in jobs:
                    return
        except Exception as error:  # Nobody else would hear of it.
            self._failure = f"the server failed ({_short(error)})"

    def _open(self) -> None:
        """Find the runs of a search that goes on, or make the search's own."""
        from mlflow.exceptions import MlflowException

        with suppress(OSError, ValueError):
            self._ids = dict(json.loads(self._file.read_text()))
        if "" in self._ids:
            try:
                self._client.update_run(self._ids[""], status="RUNNING")
                return
            except MlflowException:  # Another server, or somebody removed it.
                self._ids = {}
        self._make("", self._search_name, {}, self._settings)

    def _make(self, number: str, name: str, tags: dict[str, str], params: dict[str, Any]) -> None:
        from mlflow.entities import Param

        made = self._client.create_run(self._experiment, run_name=name, tags=tags)
        self._ids[number] = made.info.run_id
        draft = self._file.with_suffix(".json.tmp")
        draft.write_text(json.dumps(self._ids))
        draft.replace(self._file)
        shown = [Param(key, str(value)[:500]) for key, value in params.items()]
        self._client.log_batch(made.info.run_id, params=shown)

    def _begin(self, number: str, cell: dict[str, Any]) -> None:
        self._running.add(number)
        if number not in self._ids:
            tags = {"mlflow.parentRunId": self._ids[""]}
            self._make(number, f"{self._search_name} {number}", tags, cell)
            return
        known = self._client.get_metric_history(self._ids[number], FIGURES[0])
        self._sent[number] = max((metric.step for metric in known), default=0)
        self._client.update_run(self._ids[number], status="RUNNING")

    def _epoch(self, row: EpochRow, now_ms: int) -> None:
        from mlflow.entities import Metric

        self._best = max(self._best, row.metrics.val_accuracy)
        if row.epoch > self._sent.get(row.trial_id, 0):
            figures = ((name, getattr(row.metrics, name)) for name in FIGURES)
            self._metrics[row.trial_id] += [Metric(name, value, now_ms, row.epoch) for name, value in figures]

    def _end(self, number: str, status: str) -> None:
        self._flush(number)
        self._running.discard(number)
        run = self._ids[number]
        if not number:
            for left in sorted(self._running):  # Interrupted with the search.
                self._end(left, status)
            self._client.log_metric(run, f"best_{FIGURES[0]}", self._best)
        self._client.set_tag(run, "rayml.status", status)
        self._client.set_terminated(run, {"failed": "FAILED", "interrupted": "KILLED"}.get(status, "FINISHED"))

    def _flush(self, number: str) -> None:
        if metrics := self._metrics.pop(number, None):
            self._client.log_batch(self._ids[number], metrics=metrics)


def _short(error: Exception) -> str:
    """The cause in one line; MLflow's messages hold those of the whole chain, and the address with its password."""
    lines = str(error).strip().splitlines() or [""]
    cause = lines[0].rpartition("Caused by ")[2] or lines[0]
    return f"{type(error).__name__}: {_without_password(cause)}"[:200]


def _without_password(uri: str) -> str:
    head, at, tail = uri.rpartition("@")
    return f"{head.partition('://')[0]}://...@{tail}" if at and "://" in head else uri
