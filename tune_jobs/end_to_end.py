"""What a search of whole networks does otherwise than one on cached features: before its trials, and after them.

Before: the pictures are decoded once a machine. After: the winner's network is written as a graph in a process of its
own, with the golden features that Keras gives, and scored on the validation pictures by the engine that will serve it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rayml.augmentation import Augmentation
from rayml.backbones import BackboneSpec, build_base
from rayml.data import Manifest, UnreadablePictures
from rayml.end_to_end import VALIDATION_BATCH, Network, PixelData, top_variables
from rayml.engines import load_engine
from rayml.frozen import FrozenBackbone, freeze_tuned
from rayml.pixels import GatheredPixels, PixelRecipe, gather_pixels
from rayml.progress import Progress
from tune_jobs.cluster import on_this_node
from tune_jobs.config import SearchSettings
from tune_jobs.search import SearchResult
from tune_jobs.select import ENGINE_ROUNDING, Winner, best_epoch, prove


def network(settings: SearchSettings, spec: BackboneSpec) -> Network:
    """What the settings make of a backbone.

    Raises:
        UsageError: more layers are to be trained than it has.
    """
    if settings.unfreeze:
        on_this_node(_check_layers, spec, settings.unfreeze)
    augmentation = Augmentation.parse(settings.augment)
    return Network(spec, augmentation, settings.fine_tuning, settings.mixed_precision)


def _check_layers(spec: BackboneSpec, layers: int) -> None:
    top_variables(build_base(spec), layers)


def decode(
    manifest: Manifest, image_size_px: int, cache: Path, skip_unreadable: bool, progress: Progress
) -> tuple[GatheredPixels, dict[str, str]]:
    """Decode a data set on this machine.

    Returns:
        Its pixels, and relative path -> reason of the pictures that were left out.

    Raises:
        UnreadablePictures: there are some, and they are not to be skipped.
        RaymlError: the cache has no room.
    """
    unreadable: dict[str, str] = {}
    while True:
        recipe = PixelRecipe.of(manifest.without(unreadable), image_size_px, cache / "pixels")
        count = len(recipe.train) + len(recipe.validation)
        try:
            with progress.bar("pixels", count, "photos") as advance:
                return gather_pixels(recipe, advance), unreadable
        except UnreadablePictures as error:
            if not skip_unreadable:
                raise
            unreadable |= error.reasons


def select_network(
    result: SearchResult, data: PixelData, spec: BackboneSpec, frozen: FrozenBackbone, run: Path
) -> tuple[Winner, FrozenBackbone]:
    """Take the best epoch of the best trial out of its checkpoint, and write its network as a graph.

    Arguments:
        frozen: the backbone of `spec`, which is the winner's if nothing of it was trained.
        run: RUN; the folder of a trained backbone is made there.

    Returns:
        The winner, and its backbone.

    Raises:
        SearchError: no trial gave a result, or the graph does not score what the table says.
        RaymlError: the graph could not be written, or an engine does not compute what Keras does.
    """
    trial, best, damaged = best_epoch(result, run)
    if best.tuned:
        folder = Path(tempfile.mkdtemp(prefix=".tuned-", dir=run)) / "backbone"
        frozen = on_this_node(freeze_tuned, spec, best.tuned, folder)
    features = graph_features(frozen, data.validation_pixels)
    return prove(trial, best, features, data.validation_labels, damaged, rounding=ENGINE_ROUNDING), frozen


def graph_features(backbone: FrozenBackbone, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What the engine makes of pictures: uint8 (N, H, W, 3) -> float32 (N, D)."""
    engine = load_engine(backbone.graph())
    parts = range(0, len(pixels), VALIDATION_BATCH)
    return np.concatenate([engine(np.ascontiguousarray(pixels[at : at + VALIDATION_BATCH])) for at in parts])
