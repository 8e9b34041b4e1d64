"""The bare model: OpenVINO and decoding in a loop, no server. Reads one JSON line a round, answers one."""

import json
import sys
import threading
import time
from pathlib import Path
from typing import Protocol


class Model(Protocol):
    """What answers."""

    def probabilities(self, data: bytes) -> object:
        """A picture's probabilities."""


def measure(model: Model, photos: list[bytes], seconds: float, workers: int) -> dict[str, float]:
    """Classify for some seconds on so many threads."""
    until = time.perf_counter() + seconds
    found: list[float] = []

    def work(number: int) -> None:
        while time.perf_counter() < until:
            start = time.perf_counter()
            model.probabilities(photos[number % len(photos)])
            found.append(time.perf_counter() - start)
            number += 1

    cpu, began = time.process_time(), time.perf_counter()
    threads = [threading.Thread(target=work, args=(n * 7,)) for n in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found.sort()
    return {
        "answers": len(found),
        "failures": 0,
        "seconds": time.perf_counter() - began,
        "p50_ms": found[len(found) // 2] * 1000,
        "p99_ms": found[int(len(found) * 0.99)] * 1000,
        "cpu_s": time.process_time() - cpu,
    }


def answer_orders(model: Model) -> None:
    """Measure until standard input ends."""
    photos = [path.read_bytes() for path in sorted(Path(sys.argv[1]).iterdir())]
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps(measure(model, photos, order["seconds"], order["workers"])), flush=True)


if __name__ == "__main__":
    from common import OpenVINO

    answer_orders(OpenVINO())
