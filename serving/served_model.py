"""One version of a model in a replica."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rayml import images
from rayml.bundle import Bundle
from rayml.engines.openvino import OpenVINOEngine
from rayml.predictor import Prediction, Predictor
from serving.limits import RequestLimits
from serving.protocols.base import ModelFacts, ModelIdentity

# Whether pictures are computed together is decided by trying it, with so many for each thread. It must save more than
# tries differ by.
_TRIED_PER_THREAD, _WORTH = 4, 0.97

_log = logging.getLogger("ray.serve")


class ServedModel:
    """One version of a model, ready to answer. Thread-safe.

    Arguments:
        name, version: what it is called here; the bundle's own version is what it was called when it was made.
        bundle: it, verified, or its folder, whose files are then read once less.
        engine: one of `serving.config.ENGINES`.
        threads: pictures that it classifies side by side, at least 1.
        limits: what a picture may cost.
        precision: as in `rayml.predictor.Predictor`.

    Raises:
        BundleError: it is damaged, or its model does not give here what it gave when it was trained.
    """

    def __init__(
        self,
        name: str,
        version: int,
        bundle: Bundle | Path,
        engine: str,
        threads: int,
        limits: RequestLimits,
        precision: str = "auto",
    ) -> None:
        # A stream a thread: pictures side by side, each on one thread, is what a service under load gains most from.
        self._make = partial(
            Predictor, engine=engine, threads=threads, streams=threads, limits=limits.image, precision=precision
        )
        self._predictor = self._make(bundle)
        self._predictor.check_golden()
        self.bundle = opened = self._predictor.bundle
        identity = ModelIdentity(name, str(version), opened.digest)
        self.facts = ModelFacts(identity, tuple(opened.record.classes), opened.record.image_size_px)
        self._tried_groups = False
        # A picture for warming up: it went through the whole training path.
        self.sample: bytes = opened.golden.pictures[0]

    def group(self) -> None:
        """Compute pictures that wait at the same time together from now on, where that is quicker on this machine.

        It goes on answering meanwhile. A start does not wait for it: there is no load yet that it would be for.

        Raises:
            BundleError: the bundle's files have gone or changed, or pictures together have other answers; all stays
                as it was.
        """
        alone = self._predictor
        if self._tried_groups or not isinstance(alone.engine, OpenVINOEngine) or not alone.engine.may_gain_from_groups:
            return
        self._tried_groups = True
        together = self._make(self.bundle, grouped=True)
        assert isinstance(together.engine, OpenVINOEngine)
        if not together.engine.grouped:
            return
        together.check_golden()
        pictures = [alone.decode(data) for data in self.bundle.golden.pictures]
        many = np.resize(pictures, (_TRIED_PER_THREAD * alone.engine.threads, *pictures[0].shape))
        before_s, after_s = alone.engine.compare(together.engine, many)
        if after_s < _WORTH * before_s:
            self._predictor = together
        _log.info(
            "%s version %s: %.1f ms for %d pictures one by one, %.1f together.",
            self.facts.identity.name,
            self.facts.identity.version,
            1000 * before_s,
            len(many),
            1000 * after_s,
        )

    def memory_bytes(self, source: bytes | NDArray[np.uint8]) -> int:
        """The most memory that `pixels` takes beside the picture.

        Raises:
            InputError: it is larger than it may be, or no picture.
        """
        size = self.facts.image_size_px
        if isinstance(source, bytes):
            return images.decode_bytes(source, size, self._predictor.limits)
        return images.fit_bytes(source.shape[0], source.shape[1], size)

    def pixels(self, source: bytes | NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A picture, encoded or as uint8 (H, W, 3) of any size, as the uint8 (H, W, 3) that the graph takes.

        Raises:
            InputError: it cannot be read.
        """
        if isinstance(source, bytes):
            return self._predictor.decode(source)
        return images.fit_pixels(source, self.facts.image_size_px)

    def predict_pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """As `Predictor.predict_pixels`."""
        return self._predictor.predict_pixels(pixels)

    def answers(self, logits: NDArray[np.float32]) -> list[Prediction]:
        """As `Predictor.answers`."""
        return self._predictor.answers(logits)
