"""The models that a replica answers with: loaded, proved on their golden pictures, and found by name and version."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rayml.bundle import Bundle
from rayml.errors import InputError
from rayml.predictor import Prediction, Predictor
from serving.limits import RequestLimits
from serving.protocols.base import ModelFacts, ModelIdentity


class ServedModel:
    """One version of a model, ready to answer. Thread-safe.

    Arguments:
        bundle: where it lies, on this machine.
        engine: one of `serving.config.ENGINES`.
        threads: pictures that it classifies side by side, at least 1.
        limits: what a picture may cost.
        precision: what the engine computes in, one of `rayml.engines.PRECISIONS`.

    Raises:
        BundleError: the bundle is damaged, or its model does not give here what it gave when it was trained.
    """

    def __init__(
        self, bundle: Path, engine: str, threads: int, limits: RequestLimits, precision: str = "float32"
    ) -> None:
        opened = Bundle.open(bundle)
        record = opened.record
        identity = ModelIdentity(record.name, str(record.version), opened.digest)
        self.facts = ModelFacts(identity, tuple(record.classes), record.image_size_px)
        # A stream a thread: pictures side by side, each on one thread, is what a service under load gains most from.
        self._predictor = Predictor(opened, engine, threads, streams=threads, limits=limits.image, precision=precision)
        self._predictor.check_golden()
        # A picture for warming up: it went through the whole training path.
        self.sample: bytes = opened.golden.pictures[0]

    def decode(self, data: bytes) -> NDArray[np.uint8]:
        """As `Predictor.decode`."""
        return self._predictor.decode(data)

    def predict_pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """As `Predictor.predict_pixels`."""
        return self._predictor.predict_pixels(pixels)

    def answers(self, logits: NDArray[np.float32]) -> list[Prediction]:
        """As `Predictor.answers`."""
        return self._predictor.answers(logits)


class Models:
    """The models of a replica, by name and version.

    Arguments:
        served: at least one; the first answers where a request names no version.
    """

    def __init__(self, served: Sequence[ServedModel]) -> None:
        self._served = tuple(served)

    @property
    def live(self) -> ServedModel:
        """The one that answers where a request names none."""
        return self._served[0]

    async def get(self, name: str | None = None, version: str | None = None) -> ServedModel:
        """The model that a request names.

        Arguments:
            name: None for whichever is live.
            version: None for the live one of that name, otherwise exactly as its bundle has it.

        Raises:
            InputError: 404 for a name or version that is not served.
        """
        named = [model for model in self._served if name is None or model.facts.identity.name == name]
        if not named:
            known = sorted({model.facts.identity.name for model in self._served})
            raise InputError(f"The model must be {' or '.join(known)}.", status=404, code="unknown_model")
        if version is None:
            return named[0]
        for model in named:
            if model.facts.identity.version == version:
                return model
        known = [model.facts.identity.version for model in named]
        raise InputError(f"The version must be {' or '.join(known)}.", status=404, code="unknown_version")

    def versions(self, name: str) -> list[ModelFacts]:
        """All versions of a model, the live one first; none for a name that is not served."""
        return [model.facts for model in self._served if model.facts.identity.name == name]
