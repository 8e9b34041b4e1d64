"""What a search leaves behind of its winner: the sealed bundle, and the answers on the validation photos."""

from __future__ import annotations

import platform
import re
import shutil
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rayml.backbones import TINY
from rayml.bundle import Golden, Training
from rayml.bundle_writer import BundleContents, write_bundle
from rayml.data import VALIDATION, Manifest
from rayml.evaluation import scores
from rayml.frozen import FrozenBackbone
from rayml.graph import attach_head
from rayml.model_card import CardNotes, data_licence
from rayml.predictions import PREDICTIONS_FILE, Predictions
from tune_jobs.config import SearchSettings
from tune_jobs.select import Winner

REPORTED_PACKAGES = ("rayml", "ray", "tensorflow", "jax", "keras", "numpy", "onnx", "openvino", "pillow", "simplejpeg")


def seal(run: Path, settings: SearchSettings, manifest: Manifest, backbone: FrozenBackbone, won: Winner) -> None:
    """Write RUN/best and RUN/predictions.csv.

    Arguments:
        run: RUN.
        manifest: the photos that were searched on.
        backbone: the winner's.

    Raises:
        BundleError: the disk refused the bundle.
        OSError: the answers could not be written.
    """
    photos = manifest.split(VALIDATION)
    labels = np.array([manifest.classes.index(photo.label) for photo in photos], np.int64)
    if (run / "best").exists():  # Of a run that was killed before it could say that it had finished.
        shutil.rmtree(run / "best")
    write_bundle(run / "best", _contents(settings, manifest, backbone, won, labels))
    answers = Predictions(
        classes=manifest.classes,
        paths=tuple(photo.path for photo in photos),
        sha256=tuple(photo.sha256 for photo in photos),
        labels=labels,
        logits=won.validation_logits,
    )
    answers.write(run / PREDICTIONS_FILE, won.temperature)


def _contents(
    settings: SearchSettings,
    manifest: Manifest,
    backbone: FrozenBackbone,
    won: Winner,
    labels: NDArray[np.int64],
) -> BundleContents:
    """The winner's bundle: the backbone's very graph with the head behind it, and what it has to answer."""
    pictures, features = backbone.golden()
    figures = scores(won.validation_logits, labels, manifest.classes, won.temperature)
    tuning = settings.fine_tuning
    return BundleContents(
        name=re.sub(r"[^A-Za-z0-9._-]+", "-", settings.data.absolute().name).strip("._-")[:64] or "classifier",
        classes=manifest.classes,
        preprocessing=backbone.preprocessing,
        image_size_px=backbone.image_size_px,
        backbone_name=backbone.name,
        weights_sha256=backbone.weights_sha256,
        dropout=won.trial.dropout,
        training=Training(
            learning_rate=won.trial.learning_rate,
            epochs=won.trial.best_epoch,
            seed=settings.seed,
            data_digest=manifest.digest,
            mode=settings.mode,
        ),
        metrics=figures,
        temperature=won.temperature,
        model=attach_head(backbone.graph(), won.head),
        head=won.head,
        golden=Golden(tuple(pictures.values()), won.head.logits(features)),
        notes=CardNotes(
            counts=manifest.counts(),
            weights=Path(settings.weights or ("builtin" if backbone.name == TINY else "imagenet")).name,
            data_licence=data_licence(manifest.root),
            versions=versions(),
            trained_layers=tuning.layers if tuning and won.trial.best_epoch > tuning.after_epoch else 0,
            augmentation=settings.augment,
            precision=backbone.precision,
        ),
    )


def versions() -> dict[str, str]:
    """Of Python and the packages that decide a result; some have other names where built for one processor only."""
    found = {"python": platform.python_version()}
    for name in REPORTED_PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
