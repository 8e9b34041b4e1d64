"""What the stages of a run share, and what a finished run is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rayml.backbones import BackboneSpec
from rayml.data import Manifest
from rayml.progress import Progress
from tune_jobs.cluster import Node
from tune_jobs.config import SearchSettings
from tune_jobs.mlflow_runs import Server
from tune_jobs.records import TrialRow


@dataclass(frozen=True)
class RunSummary:
    """What a finished search is, as `rayml tune --json` prints it.

    Arguments:
        run: RUN.
        bundle: RUN/best.
        best: the winner's line of trials.csv.
        trials: all lines.
        timings: seconds by stage, also where it was interrupted and resumed, but for a stage that was killed.
        computed, cached: pictures whose features had to be computed, and those whose features were there.
        largest_class_share: what answering with the largest class alone would score on validation.
    """

    run: Path
    bundle: Path
    best: TrialRow
    trials: tuple[TrialRow, ...]
    timings: dict[str, float]
    computed: int
    cached: int
    largest_class_share: float

    def to_json(self) -> dict[str, Any]:
        """Plain values; None for the accuracy and loss of a trial that failed before its first epoch."""
        trials = [
            {name: None if value != value else value for name, value in asdict(trial).items()} for trial in self.trials
        ]
        return asdict(self) | {"run": str(self.run), "bundle": str(self.bundle), "trials": trials}


class Stages:
    """Times the stages of a run and says each when it is done."""

    def __init__(self, progress: Progress) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress

    @contextmanager
    def stage(self, name: str) -> Iterator[list[str]]:
        """Time a stage; what is put into the list is said about it."""
        said: list[str] = []
        start = time.monotonic()
        try:
            yield said
        finally:  # A stage that is interrupted has taken its time, too.
            self.seconds[name] = round(time.monotonic() - start, 3)
        self._progress.say(f"{name}: {'; '.join(said)} ({self.seconds[name]:.1f} s)")


@dataclass(frozen=True)
class Job:
    """What the stages of a run share.

    Arguments:
        settings: what is searched, the storage checked.
        spec: the backbone to freeze.
        manifest: the photos; a stage that skips some goes on with a job without them.
        nodes: the machines to search on.
        mlflow: who follows, if anybody; it has answered once.
        run, cache: both folders, absolute.
        stages: times them.
        progress: is told how they go.
        before: run.json as an interrupted run has left it, where that one is resumed.
    """

    settings: SearchSettings
    spec: BackboneSpec
    manifest: Manifest
    nodes: tuple[Node, ...]
    mlflow: Server | None
    run: Path
    cache: Path
    stages: Stages
    progress: Progress
    before: dict[str, Any] = field(default_factory=dict)

    @property
    def timings(self) -> dict[str, float]:
        """Seconds by stage, with those that an interrupted run has spent on it."""
        earlier, now = self.before.get("timings", {}), self.stages.seconds
        return {stage: round(earlier.get(stage, 0.0) + now.get(stage, 0.0), 3) for stage in {**earlier, **now}}
