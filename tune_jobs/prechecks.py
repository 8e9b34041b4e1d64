"""What is refused before Ray starts: settings, photos, folders and Keras' backend that cannot go together."""

from __future__ import annotations

import os
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rayml.backbones import BackboneSpec, backbone_spec
from rayml.check.doctor import quick_check
from rayml.check.findings import in_one_line
from rayml.data import Manifest, class_parents, scan
from rayml.errors import UsageError, install_hint
from rayml.frozen import default_cache
from rayml.progress import Progress
from rayml.storage import check_storage, is_bucket
from tune_jobs.cluster import keras_backend
from tune_jobs.config import END_TO_END, SearchSettings, check_folder
from tune_jobs.job import Stages
from tune_jobs.runfolder import check_same_backend, check_same_data, check_same_search, read_record


def check(
    settings: SearchSettings, run: Path, stages: Stages, progress: Progress
) -> tuple[BackboneSpec, Manifest, dict[str, Any] | None]:
    """Refuse what can be refused before Ray starts.

    Returns:
        The backbone to freeze, the photos, and run.json where a run is resumed.

    Raises:
        RaymlError: RUN, a setting or the photos are not what they must be.
    """
    record = None
    if settings.resume:
        record = read_record(run)
        check_same_search(settings, record)
        check_same_backend(keras_backend(), record)
    elif run.exists():
        raise UsageError(
            f"--out must be a new folder. Received: {run}, which is there",
            "Name another, or remove it. An interrupted search goes on with --resume.",
        )
    _check_apart(settings, run)
    _check_keras(settings)
    if settings.precision == "int8" and find_spec("onnxruntime") is None:
        raise UsageError(
            "precision int8 needs the package onnxruntime, which quantizes the backbone. Received: it is not installed",
            install_hint("onnxruntime"),
        )
    spec = backbone_spec(settings.backbone, settings.weights, settings.image_size, settings.precision)
    manifest = _scan(settings, stages, progress)
    if record is not None:
        manifest = check_same_data(manifest, record)
    return spec, manifest, record


def cache_folder(settings: SearchSettings) -> Path:
    """The cache's folder, absolute.

    Raises:
        UsageError: RAYML_CACHE is an address.
    """
    cache = settings.cache or default_cache()
    check_folder("RAYML_CACHE", cache)
    return cache.absolute()


def with_storage(settings: SearchSettings) -> SearchSettings:
    """The settings with their storage checked.

    Raises:
        RaymlError: see `rayml.storage.check_storage`.
    """
    if settings.storage_path is None:
        return settings
    return replace(settings, storage_path=check_storage(settings.storage_path))


def _check_apart(settings: SearchSettings, run: Path) -> None:
    """Refuse to write where folders are classes: every later command would find one without photos."""
    written = {"--out": run, "the cache": cache_folder(settings)}
    if settings.storage_path and not is_bucket(settings.storage_path):
        written["--storage-path"] = Path(settings.storage_path)
    for parent in class_parents(settings.data, settings.validation_fraction):
        for name, folder in written.items():
            if Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(parent)):
                raise UsageError(
                    f"{name} must lie outside {parent}, whose folders are classes. Received: {folder}",
                    "Name another one; a run that lies there may be moved.",
                )


def _check_keras(settings: SearchSettings) -> None:
    """Refuse a backend of Keras that the search cannot use; Keras itself, which takes seconds, is not loaded here."""
    backend = keras_backend()
    if backend not in ("tensorflow", "jax"):
        raise UsageError(f"KERAS_BACKEND must be tensorflow or jax. Received: {backend}", "Unset KERAS_BACKEND.")
    if backend == "jax" and settings.mode == END_TO_END:
        raise UsageError(
            "--mode end-to-end needs Keras on TensorFlow. Received: KERAS_BACKEND=jax", "Unset KERAS_BACKEND."
        )
    if backend == "jax" and find_spec("jax") is None:
        raise UsageError("KERAS_BACKEND=jax needs the package jax. Received: it is not installed", install_hint("jax"))


def _scan(settings: SearchSettings, stages: Stages, progress: Progress) -> Manifest:
    with stages.stage("data") as said:
        manifest = scan(settings.data, settings.validation_fraction, settings.seed, progress)
        said.append(_in_one_line(manifest))
        found = in_one_line(quick_check(manifest, progress))
    if found:
        progress.say(f"check: {found}; rayml data check {settings.data} tells more")
    return manifest


def _in_one_line(manifest: Manifest) -> str:
    """A data set in one line."""
    train, validation = len(manifest.split("train")), len(manifest.split("validation"))
    line = f"{train} training and {validation} validation photos in {len(manifest.classes)} classes"
    if straddling := manifest.straddling():
        line += f"; {len(straddling)} pictures are in both splits, e.g. {straddling[0][0].path}"
    if manifest.ignored:
        shown = ", ".join(manifest.ignored[:3])
        line += f"; {len(manifest.ignored)} other files left aside ({shown}{', ...' if manifest.ignored[3:] else ''})"
    return line
