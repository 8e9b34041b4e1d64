"""What all benchmarks share: on what they ran, and where their figures go."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rayml.cores import usable_cores

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """The machine in words: processor, usable cores, memory in GiB, system, Python; and the day."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {
        "processor": model,
        "cores": usable_cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "date": date.today().isoformat(),
    }


def versions(*packages: str) -> dict[str, str]:
    """The installed versions of those packages that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and largest of some rounds."""
    return {
        "median": round(statistics.median(values), 3),
        "min": round(min(values), 3),
        "max": round(max(values), 3),
    }


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles of at least two values: half of them lie between `lower` and `upper`."""
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": round(median, 4), "lower": round(lower, 4), "upper": round(upper, 4)}


class Peak:
    """The most that some measures come to while it is open, each by its name in `most`.

    Arguments:
        every_s: how often they are taken; and once more at the end.
        measures: what gives a number.
    """

    def __init__(self, every_s: float, **measures: Callable[[], float]) -> None:
        self.most = dict.fromkeys(measures, 0.0)
        self._every_s, self._measures = every_s, measures
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        ended = False
        while not ended:
            ended = self._stop.wait(self._every_s)
            for name, measure in self._measures.items():
                self.most[name] = max(self.most[name], measure())


def private_mib(pid: int) -> float:
    """What goes with a process when it ends (unique set size), in MiB; 0 if it has."""
    import psutil  # Of the `dev` packages; most benchmarks do without.

    try:
        return float(psutil.Process(pid).memory_full_info().uss) / 2**20
    except psutil.Error:
        return 0.0


def last_line(command: Sequence[str], hidden: Sequence[str] = ()) -> Any:
    """The JSON that a process prints last. What it writes on stderr, TensorFlow's log, is shown only if it fails.

    Arguments:
        command: the program and its arguments.
        hidden: environment variables that it does not inherit.

    Raises:
        CalledProcessError: it failed.
    """
    surroundings = {name: value for name, value in os.environ.items() if name not in hidden}
    surroundings |= {"TF_CPP_MIN_LOG_LEVEL": "3", "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=surroundings)
    if done.returncode:
        sys.stderr.write(done.stderr)
    done.check_returncode()
    return json.loads(done.stdout.splitlines()[-1])


def write_result(name: str, result: dict[str, Any], *, whole: bool) -> None:
    """Print a result, and write it to bench/results/NAME.json unless that would replace a whole run by a quick look.

    Arguments:
        whole: all was run that the published figures have.
    """
    text = json.dumps(result, indent=1)
    print(text)
    path = RESULTS / f"{name}.json"
    if whole:
        RESULTS.mkdir(exist_ok=True)
        path.write_text(text + "\n")
    else:
        print(f"not written to {path.name}: this was not a whole run, see --help", file=sys.stderr)
