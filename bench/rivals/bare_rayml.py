"""rayml's own path from bytes to probabilities in a loop, no server: as `bare.py`, in rayml's environment."""

import os
from pathlib import Path

from bare import answer_orders

from rayml.predictor import Predictor

THREADS = int(os.environ["RIVAL_THREADS"])


class Rayml:
    """A bundle's predictor, a stream a thread as in a replica."""

    def __init__(self) -> None:
        bundle, precision = Path(os.environ["RIVAL_MODEL"]).parent, os.environ["RIVAL_PRECISION"]
        self._predictor = Predictor(bundle, threads=THREADS, streams=THREADS, precision=precision)

    def probabilities(self, data: bytes) -> dict[str, float]:
        """A picture's probabilities by class."""
        return self._predictor.predict([data])[0].probabilities


if __name__ == "__main__":
    answer_orders(Rayml())
