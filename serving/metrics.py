"""What a server counts: Prometheus metrics, shown at `GET /metrics`.

All replicas of one server count into files that they share (prometheus_client's multiprocess mode), so that whichever
answers tells the sum, and what a replica counted stays when it is gone.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from rayml.predictor import Prediction
from serving.protocols.base import Answer, ModelIdentity

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Seconds: from a small network on pixels to a large one behind a full queue.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64)
_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


class Metrics:
    """Counters of one replica, or of all that share a folder. Thread-safe.

    Arguments:
        folder: where the replicas of one server share their counts, or None for this process alone.
    """

    def __init__(self, folder: Path | None) -> None:
        if folder is not None:
            folder.mkdir(exist_ok=True)
            # prometheus_client reads both when a metric is made; by itself it chooses when it is imported.
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, values

        if folder is not None:
            values.ValueClass = values.MultiProcessValue()  # type: ignore[no-untyped-call]
        self._folder = folder
        own = self._registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"rayml_{name}", text, labels, registry=own)

        def histogram(name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
            return Histogram(f"rayml_{name}", text, labels, registry=own, buckets=buckets)

        self._in_flight = Gauge(
            "rayml_requests_in_flight",
            "Requests for predictions that hold a place.",
            registry=own,
            multiprocess_mode="livesum",
        )
        self._requests = counter("requests", "Requests by route and status.", "route", "status")
        self._seconds = histogram("request_seconds", "Seconds from a request's head to its answer.", _SECONDS, "route")
        self._batch = histogram("batch_size", "Pictures in a request.", _SIZES)
        self._queue = histogram("queue_seconds", "Seconds that a job waited for a thread.", _SECONDS)
        self._fetch = histogram("fetch_seconds", "Seconds for a picture's URL.", _SECONDS)
        self._decode = histogram("decode_seconds", "Seconds for decoding and resizing a picture.", _SECONDS)
        self._inference = histogram("inference_seconds", "Seconds for a picture in the network.", _SECONDS)
        self._predictions = counter("predictions", "Predictions by class.", "model", "version", "class")
        self._confidence = histogram("confidence", "Confidence of the predicted class.", _SHARES, "model", "version")

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Count a request that holds a place while it does."""
        self._in_flight.inc()
        try:
            yield
        finally:
            self._in_flight.dec()

    def batch(self, pictures: int) -> None:
        """Count a request's pictures."""
        self._batch.observe(pictures)

    def queued(self, seconds: float) -> None:
        """Count how long a job waited for a thread."""
        self._queue.observe(seconds)

    def fetched(self, seconds: float) -> None:
        """Count how long a URL took, whatever became of it."""
        self._fetch.observe(seconds)

    def predicted(self, model: ModelIdentity, decode_s: float, inference_s: float, prediction: Prediction) -> None:
        """Count a picture that was classified."""
        self._decode.observe(decode_s)
        self._inference.observe(inference_s)
        self._predictions.labels(model.name, model.version, prediction.label).inc()
        self._confidence.labels(model.name, model.version).observe(prediction.confidence)

    def page(self) -> Answer:
        """All of it in Prometheus' text format."""
        from prometheus_client import CollectorRegistry, generate_latest

        registry = self._registry
        if self._folder is not None:
            from prometheus_client import multiprocess

            _forget_the_dead(self._folder)
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry, str(self._folder))  # type: ignore[no-untyped-call]
        return Answer(generate_latest(registry), content_type=METRICS_TYPE)


def _forget_the_dead(folder: Path) -> None:
    """What replicas that are gone held is held no more; what they counted stays."""
    for path in folder.glob("gauge_live*_*.db"):
        found = re.search(r"_(\d+)\.db$", path.name)
        if found and not Path(f"/proc/{found[1]}").exists():
            path.unlink(missing_ok=True)
