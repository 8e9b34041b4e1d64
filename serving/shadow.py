"""A version tried on live traffic: it is asked what the live one has answered, beside it and never before it.

The answer of the live version is on its way when the shadow hears of the picture. One thread of the lowest priority
works through a short queue; what does not fit is dropped and counted, so that a shadow costs what is left over.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayml.errors import RaymlError
from serving.served_model import ServedModel

# Pictures that wait for the shadow; where it makes other pixels of them, how large each may be while it waits, and
# what making them may take of memory, which nobody else counts: enough for ordinary photos.
_QUEUE = 8
_MAX_BYTES = 4 << 20
_MAX_DECODE_BYTES = 64 << 20
# Latencies are those of the last so many pictures.
_RECENT = 1000
# Above everything: Linux' lowest priority, a seventieth of the processor while anybody else wants it (sched(7)).
_NICENESS = 19

_log = logging.getLogger("ray.serve")


class ShadowRun:
    """Compares one version with the live one, in a thread of its own.

    Arguments:
        pair: the live version and the shadow's, by number.
        preprocessing: how the live version's pixels are made.
        load: loads the shadow; called in the thread.
    """

    def __init__(self, pair: tuple[int, int | None], preprocessing: str, load: Callable[[], ServedModel]) -> None:
        self.pair = pair
        self._preprocessing = preprocessing
        self._load = load
        self._queue: queue.Queue[tuple[Any, ...] | None] = queue.Queue(_QUEUE)
        self._lock = threading.Lock()
        self._counts = {"compared": 0, "agreed": 0, "dropped": 0, "unreadable": 0}
        self._error: str | None = None
        self._live_s: deque[float] = deque(maxlen=_RECENT)
        self._shadow_s: deque[float] = deque(maxlen=_RECENT)
        self._stopped = threading.Event()
        self._own_pixels = True  # Until it is loaded, it may be one that makes other pixels than the live version.
        self._thread = threading.Thread(target=self._run, name="rayml-shadow", daemon=True)
        self._thread.start()

    def offer(self, source: bytes | NDArray[np.uint8], pixels: NDArray[np.uint8], label: str, seconds: float) -> None:
        """Hear of an answer of the live version; returns at once.

        Arguments:
            source: the picture as it came: encoded, or uint8 pixels (H, W, 3).
            pixels: uint8 (H, W, 3), as the live version took it.
            label: its answer.
            seconds: how long it took.
        """
        try:
            size = len(source) if isinstance(source, bytes) else source.nbytes
            if (self._own_pixels and size > _MAX_BYTES) or self._queue.full():
                raise queue.Full
            if not isinstance(source, bytes):  # Views of a request's body, which would stay in memory as a whole.
                pixels = pixels.copy()
                source = source.copy() if self._own_pixels else pixels
            self._queue.put_nowait((source if self._own_pixels else b"", pixels, label, seconds))
        except queue.Full:
            with self._lock:
                self._counts["dropped"] += 1

    def figures(self) -> dict[str, Any]:
        """What came of it, as plain values.

        Returns:
            `live`, `version`: the numbers; `compared`, `agreed`, `dropped`, `unreadable`: pictures; `live_ms` and
            `shadow_ms`: {`p50`, `p99`} of the inference of a picture, the shadow's at the lowest priority and so at
            its worst; `error`: why there is no comparison, or None.
        """
        with self._lock:
            live, shadow = np.array(self._live_s), np.array(self._shadow_s)
            found: dict[str, Any] = {"live": self.pair[0], "version": self.pair[1], **self._counts}
        return {**found, "live_ms": _quantiles(live), "shadow_ms": _quantiles(shadow), "error": self._error}

    def stop(self) -> None:
        """Let the thread end; what waits is forgotten. Returns at once."""
        self._stopped.set()
        with contextlib.suppress(queue.Full):  # Then it has no need to be woken.
            self._queue.put_nowait(None)

    def join(self) -> None:
        """Wait until the thread has ended; where it was loading, that may take long."""
        self._thread.join()

    def _run(self) -> None:
        # Linux gives each thread its own niceness, and threads that it starts, such as the engine's, inherit it.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        try:
            shadow = self._load()
        except Exception as error:
            self._error = error.message if isinstance(error, RaymlError) else f"{type(error).__name__}: {error}"
            _log.error("Shadow version %s does not load: %s", self.pair[1], self._error)
            return
        self._own_pixels = shadow.bundle.record.preprocessing != self._preprocessing
        while (item := self._queue.get()) is not None and not self._stopped.is_set():
            try:
                self._compare(shadow, *item)
            except Exception:
                _log.exception("Shadow version %s failed on a request.", self.pair[1])
                with self._lock:
                    self._counts["unreadable"] += 1

    def _compare(
        self,
        shadow: ServedModel,
        source: bytes | NDArray[np.uint8],
        pixels: NDArray[np.uint8],
        label: str,
        seconds: float,
    ) -> None:
        if self._own_pixels:
            if shadow.memory_bytes(source) > _MAX_DECODE_BYTES:
                with self._lock:
                    self._counts["dropped"] += 1
                return
            pixels = shadow.pixels(source)
        start = time.perf_counter()
        logits = shadow.predict_pixels(pixels[np.newaxis])
        taken = time.perf_counter() - start
        agreed = shadow.answers(logits)[0].label == label
        with self._lock:
            self._counts["compared"] += 1
            self._counts["agreed"] += agreed
            self._live_s.append(seconds)
            self._shadow_s.append(taken)


def _quantiles(seconds: NDArray[np.float64]) -> dict[str, float] | None:
    if not len(seconds):
        return None
    p50, p99 = np.quantile(seconds, (0.5, 0.99)) * 1000
    return {"p50": round(float(p50), 2), "p99": round(float(p99), 2)}
