"""A cluster that grows by itself is asked for the room that a search needs, and waited for.

Such a cluster may have no worker at all when the job starts. Ray's autoscaler looks at what waits to be run, but the
search decides by the machines that are there how many threads a trial gets and where pictures are computed: so the
machines have to come first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from rayml.errors import SearchError
from tune_jobs.cluster import Node, autoscaler_maximum, gpu_places, usable_nodes
from tune_jobs.config import SearchSettings
from tune_jobs.tracker import Tracker

_POLL_S = 1.0
# Often enough to see that the job lives, seldom enough for a log.
_SAY_S = 30.0


@dataclass(frozen=True)
class Demand:
    """The trials that are to run at the same time.

    Arguments:
        cpus, gpus: what one of them takes.
        trials: how many there are.
    """

    cpus: float
    gpus: float
    trials: int

    @classmethod
    def of(cls, settings: SearchSettings, trials: int | None = None) -> Demand:
        """What a search would use if it had it: all trials at once, or `max_concurrent` of them.

        Arguments:
            trials: how many are to be run; every trial of the grid by default.
        """
        trials = settings.trials if trials is None else trials
        at_once = trials if settings.max_concurrent is None else min(trials, settings.max_concurrent)
        return cls(settings.trial_cpus or 1.0, settings.trial_gpus, at_once)

    def places(self, nodes: Sequence[Node]) -> int:
        """How many of the trials have a place on the machines, `trials` at most."""
        places = 0
        for node in nodes:
            on_cpus = int(node.cpus / self.cpus + 1e-9)
            places += min(on_cpus, gpu_places(node.gpus, self.gpus)) if self.gpus else on_cpus
        return min(places, self.trials)

    def within(self, most: tuple[int, int] | None) -> Demand:
        """The same for as many trials as a cluster can ever have a place for, at least one.

        Arguments:
            most: the processors and graphics processors that it may grow to; None where nobody says.
        """
        return self if most is None else replace(self, trials=max(1, self.places([Node("", *most)])))

    def bundles(self) -> list[dict[str, float]]:
        """The demand in the autoscaler's words."""
        one = {"CPU": self.cpus, "GPU": self.gpus} if self.gpus else {"CPU": self.cpus}
        return [dict(one) for _ in range(self.trials)]


class Shrinking(Tracker):
    """Asks the autoscaler for less room as the last trials end, so that machines that have nothing to do can go.

    Arguments:
        demand: what `room` asked for.
        trials: of the whole search.
    """

    name = "autoscaler"

    def __init__(self, demand: Demand, trials: int) -> None:
        self._demand, self._trials = demand, trials
        self._ended: set[str] = set()

    def end(self, number: str, status: str) -> None:
        """See `Tracker`."""
        from ray.autoscaler.sdk import request_resources

        self._ended.add(number)
        left = self._trials - len(self._ended)
        if left < self._demand.trials:
            request_resources(bundles=replace(self._demand, trials=left).bundles())


@contextmanager
def room(demand: Demand, timeout_s: float, say: Callable[[str], None]) -> Iterator[tuple[Node, ...]]:
    """Ask the autoscaler for room, wait for it, and keep the request up while the search runs; see `Shrinking`.

    Arguments:
        demand: what there should be room for.
        timeout_s: seconds to wait; after that the search goes on in the room that is there.
        say: told what is waited for.

    Yields:
        The machines that are there.

    Raises:
        SearchError: there was no room for a single trial in time.
    """
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=demand.within(autoscaler_maximum()).bundles())
    try:
        yield await_room(demand, timeout_s, say)
    finally:
        request_resources(bundles=[])  # It would hold the machines for ever.


def await_room(
    demand: Demand,
    timeout_s: float,
    say: Callable[[str], None],
    nodes_now: Callable[[], tuple[Node, ...]] = usable_nodes,
    most_now: Callable[[], tuple[int, int] | None] = autoscaler_maximum,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[Node, ...]:
    """Wait until there is room for the whole demand, or `timeout_s` seconds have passed and there is some.

    What the cluster cannot grow to is not waited for.

    Arguments:
        nodes_now: the machines at the moment.
        most_now: what the cluster may grow to; an autoscaler that has just started does not say so yet.
        clock, sleep: seconds.

    Raises:
        SearchError: see `room`.
    """
    start = clock()
    said = -_SAY_S
    while True:
        nodes, possible = nodes_now(), demand.within(most_now())
        places, waited = possible.places(nodes), clock() - start
        if places == possible.trials:
            return nodes
        if waited >= timeout_s:
            break
        if waited - said >= _SAY_S:
            said = waited
            say(f"ray: {places} of {possible.trials} trials have a place; waiting for the cluster to grow")
        sleep(_POLL_S)
    if not places:
        received = ", ".join(f"{node.cpus} CPUs and {node.gpus} GPUs" for node in nodes) or "no machine"
        raise SearchError(
            f"a machine with {demand.cpus:g} CPUs and {demand.gpus:g} GPUs was expected within {timeout_s:g} s. "
            f"Received: {received}",
            "Look at the autoscaler's log (`ray status`), or wait longer: scale_up_timeout_s.",
        )
    say(f"ray: going on with {places} of {possible.trials} trials at once; the cluster has not grown further")
    return nodes
