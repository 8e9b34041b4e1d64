from __future__ import annotations

import pickle
from types import SimpleNamespace

import pytest

from tune_jobs.cluster import Node
from tune_jobs.waiting import Waiting


class Search:
    """A search that waits, the machines of its cluster, and a clock."""

    def __init__(self, *nodes: Node) -> None:
        self.now = 0.0
        self.said: list[str] = []
        self.waiting = Waiting(4, 0, self.said.append, lambda: nodes, lambda: self.now)

    def go_on(self, seconds: float, *states: str) -> None:
        """A step now, and one after some seconds."""
        trials = [SimpleNamespace(status=state) for state in states]
        self.waiting.on_step_end(0, trials)
        self.now += seconds
        self.waiting.on_step_end(1, trials)


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ([Node("a", 2, 0)], "there is at most 2 CPUs and 0 GPUs. It goes on"),
        ([], "there is no machine. It goes on"),
        ([Node("a", 2, 0), Node("b", 4, 0)], "waiting for the cluster to have processors free"),
    ],
)
def test_trials_that_all_wait_are_said_once(nodes: list[Node], said: str) -> None:
    search = Search(*nodes)
    search.go_on(59, "PENDING", "TERMINATED")
    assert search.said == []
    for _ in range(3):
        search.go_on(60, "PENDING", "PAUSED")
    (line,) = search.said
    assert line.startswith("search: no trial has run for 60 s: ") and said in line
    # Again only after one has run.
    search.go_on(600, "RUNNING", "PENDING")
    search.go_on(60, "PENDING")
    assert search.said == [line] * 2


def test_nothing_is_said_while_a_trial_runs() -> None:
    search = Search(Node("a", 2, 0))
    search.go_on(600, "RUNNING", "PENDING")
    search.go_on(600, "PAUSED", "TERMINATED")
    search.go_on(600)
    assert search.said == []


def test_it_can_be_pickled() -> None:
    assert isinstance(pickle.loads(pickle.dumps(Waiting(4, 0, lambda line: None))), Waiting)
