"""The callback that says why no trial runs, where all of them wait: Ray itself says nothing, and waits for ever."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ray import tune
from ray.tune.experiment import Trial

from tune_jobs.cluster import Node, usable_nodes

SAY_AFTER_S = 60.0


class Waiting(tune.Callback):
    """Follows a search under Ray Tune, which calls it and pickles it.

    Arguments:
        cpus, gpus: what a trial takes.
        say: prints a line; it is not pickled, since it belongs to this process.
        nodes_now: the machines at the moment.
        clock: seconds.
    """

    def __init__(
        self,
        cpus: float,
        gpus: float,
        say: Callable[[str], None],
        nodes_now: Callable[[], tuple[Node, ...]] = usable_nodes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cpus, self._gpus = cpus, gpus
        self._say: Callable[[str], None] | None = say
        self._nodes_now, self._clock = nodes_now, clock
        self._since: float | None = None
        self._said = False

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_say": None}

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Several times a second."""
        states = {trial.status for trial in trials}
        if Trial.RUNNING in states or Trial.PENDING not in states:
            self._since, self._said = None, False
            return
        now = self._clock()
        if self._since is None:
            self._since = now
        if self._say and not self._said and now - self._since >= SAY_AFTER_S:
            self._said = True
            self._say(f"search: no trial has run for {SAY_AFTER_S:g} s: {self._reason()}")

    def _reason(self) -> str:
        nodes = self._nodes_now()
        if any(self._cpus <= node.cpus and self._gpus <= node.gpus for node in nodes):
            return "waiting for the cluster to have processors free"
        largest = max(nodes, key=lambda node: (node.gpus, node.cpus), default=None)
        left = f"at most {largest.cpus} CPUs and {largest.gpus} GPUs" if largest else "no machine"
        return (
            f"a trial needs {self._cpus:g} CPUs and {self._gpus:g} GPUs on one machine, and there is {left}. It goes "
            "on when such a machine comes; or end it with Ctrl-C, and go on elsewhere with --resume"
        )
