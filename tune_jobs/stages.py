"""The stages of a run between a cluster and a sealed bundle, one after the other."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import asdict, replace
from itertools import islice
from typing import Any

import numpy as np

from rayml.end_to_end import Network, PixelData
from rayml.features import FeatureBank
from rayml.frozen import FrozenBackbone, find_frozen, freeze, share_frozen
from rayml.gathered import Recipe, gather, in_memory
from rayml.training import TrainingData
from tune_jobs.cluster import autoscaler_maximum, keras_backend, on_this_node
from tune_jobs.config import END_TO_END, SearchSettings
from tune_jobs.end_to_end import decode, network, select_network
from tune_jobs.features import PassResult, feature_pass
from tune_jobs.growth import Demand, Shrinking
from tune_jobs.job import Job, RunSummary
from tune_jobs.mlflow_runs import MLflow
from tune_jobs.plan import check_sealable
from tune_jobs.runfolder import check_same_backbone, check_same_data, order_digest, write_record
from tune_jobs.sealing import seal, versions
from tune_jobs.search import SearchResult, run_search
from tune_jobs.select import Winner, select
from tune_jobs.tracker import Tracker


def run_stages(job: Job) -> RunSummary:
    """Backbone, features or pixels, search, bundle; run.json follows.

    Raises:
        RaymlError: see the stages.
    """
    settings = job.settings
    with job.stages.stage("backbone") as said:
        backbone = find_frozen(job.spec, job.cache, settings.storage_path)
        found = f"found in {_storage(settings)}" if backbone else "frozen"
        in_int8 = "" if job.spec.precision == "float32" else f" in {job.spec.precision}"
        said.append(f"{job.spec.name} at {job.spec.image_size_px} px{in_int8} {found}")
        backbone = backbone or on_this_node(freeze, job.spec, job.cache)
        check_sealable(settings, job.manifest, backbone)  # The plan knew less where it was not in the cache.
        check_same_backbone(backbone.graph_sha256, job.before)  # Rather than after the features.
        if settings.storage_path is not None:
            share_frozen(backbone, job.cache, settings.storage_path)
    return (_run_on_pixels if settings.mode == END_TO_END else _run_on_features)(job, backbone)


def _storage(settings: SearchSettings) -> str:
    return settings.storage_path or "the cache"


def _run_on_features(job: Job, backbone: FrozenBackbone) -> RunSummary:
    """The rest of a run in mode features."""
    settings, stages = job.settings, job.stages
    bank = FeatureBank.of(backbone, job.cache, settings.storage_path, settings.feature_dtype)
    with stages.stage("features") as said:
        passed = feature_pass(
            job.manifest,
            backbone,
            bank,
            job.nodes,
            spec=job.spec,
            skip_unreadable=settings.skip_unreadable,
            progress=job.progress,
            shared=settings.storage_path is not None,
            gpus_a_worker=settings.feature_gpus,
        )
        said.append(f"{passed.computed} computed" + (f" by {passed.engine}" if passed.engine else ""))
        said.append(f"{passed.cached} found in {_storage(settings)}")
        if passed.unreadable:
            said.append(f"{len(passed.unreadable)} unreadable and skipped: {_some(passed.unreadable)}")
            job = replace(job, manifest=job.manifest.without(passed.unreadable))
    recipe = Recipe.of(job.manifest, bank, job.cache / "training")
    data = gather(recipe) if settings.shares_bank else in_memory(recipe)
    record = _begin(job, backbone, passed)
    result = _search(job, data, None)
    with stages.stage("bundle") as said:
        won = select(result, data, job.run)
        _write_best(job, backbone, won, said)
    return _finish(job, record, data, won, result)


def _run_on_pixels(job: Job, backbone: FrozenBackbone) -> RunSummary:
    """The rest of a run in mode end-to-end."""
    settings, stages = job.settings, job.stages
    chosen = network(settings, job.spec)
    with stages.stage("pixels") as said:
        data, unreadable = decode(
            job.manifest, job.spec.image_size_px, job.cache, settings.skip_unreadable, job.progress
        )
        job = replace(job, manifest=job.manifest.without(unreadable))
        said.append(f"{data.recipe.bytes / 1e6:.1f} MB of decoded photos")
        if unreadable:
            said.append(f"{len(unreadable)} unreadable and skipped: {_some(unreadable)}")
    record = _begin(job, backbone, PassResult(0, 0, unreadable, stages.seconds["pixels"], ""))
    result = _search(job, data, chosen)
    with stages.stage("bundle") as said:
        won, backbone = select_network(result, data, job.spec, backbone, job.run)
        _write_best(job, backbone, won, said)
        for tuned in job.run.glob(".tuned-*"):
            shutil.rmtree(tuned)
    return _finish(job, record, data, won, result)


def asked(settings: SearchSettings) -> dict[str, Any]:
    """What run.json says from the start."""
    return {"settings": settings.to_json(), "versions": versions(), "keras_backend": keras_backend()}


def _begin(job: Job, backbone: FrozenBackbone, passed: PassResult) -> dict[str, Any]:
    """Write run.json anew before the trials, with all that is known by then; what is in it."""
    record: dict[str, Any] = {
        **asked(job.settings),
        "data": {
            "digest": job.manifest.digest,
            "order": order_digest(job.manifest),
            "counts": job.manifest.counts(),
            "ignored": list(job.manifest.ignored),
            "unreadable": passed.unreadable,
        },
        "backbone": {
            "name": backbone.name,
            "image_size": backbone.image_size_px,
            "weights": job.spec.weights_file.name if job.spec.weights_file else job.spec.weights,
            "weights_sha256": backbone.weights_sha256,
            "graph_sha256": backbone.graph_sha256,
            "preprocessing": backbone.preprocessing,
            "precision": backbone.precision,
        },
        "features": {"computed": passed.computed, "cached": passed.cached, "engine": passed.engine},
    }
    # Photos may have been skipped since. A run that was killed in its first pass had not come so far.
    check_same_data(job.manifest, job.before)
    record["data"]["unreadable"] |= job.before.get("data", {}).get("unreadable", {})
    if not passed.computed:  # The interrupted run knows where they came from.
        record["features"] = job.before.get("features", record["features"])
    write_record(job.run, {**record, "status": "searching", "timings": job.timings})
    return record


def _search(job: Job, data: TrainingData | PixelData, before_head: Network | None) -> SearchResult:
    settings, run = job.settings, job.run
    with job.stages.stage("search") as said:
        followers: list[Tracker] = [MLflow(job.mlflow, run, settings.to_json())] if job.mlflow else []
        if settings.scale_up_timeout_s:
            asked_for = Demand.of(settings).within(autoscaler_maximum())
            followers.append(Shrinking(asked_for, settings.trials))
        result = run_search(settings, data, job.nodes, run, job.progress, before_head, followers)
        states = [trial.status for trial in result.trials]
        said += [f"{states.count(state)} {state}" for state in ("finished", "stopped", "failed") if state in states]
    for number, reason in result.errors.items():
        job.progress.say(f"trial {number} failed: {reason}")
    return result


def _write_best(job: Job, backbone: FrozenBackbone, won: Winner, said: list[str]) -> None:
    for damage in won.damaged:
        job.progress.say(f"{damage}: the one before it holds the winner's best epoch too")
    if abs(won.val_accuracy - won.trial.val_accuracy) > 1e-9:
        job.progress.say(
            f"the bundle scores {won.val_accuracy:.6f} where the table says {won.trial.val_accuracy:.6f}: the two best "
            "classes of a picture are equal but for rounding"
        )
    seal(job.run, job.settings, job.manifest, backbone, won)
    said.append(
        f"trial {won.trial.trial_id}, size_inner {won.trial.size_inner}, learning rate "
        f"{won.trial.learning_rate:g}, epoch {won.trial.best_epoch}: val_accuracy {won.trial.val_accuracy:.4f}"
    )


def _finish(
    job: Job, record: dict[str, Any], data: TrainingData | PixelData, won: Winner, result: SearchResult
) -> RunSummary:
    largest = float(np.bincount(data.validation_labels).max() / len(data.validation_labels))
    won_record = {"best": asdict(won.trial), "bundle": "best", "largest_class_share": largest}
    write_record(job.run, {**record, "status": "finished", **won_record, "timings": job.timings})
    return RunSummary(
        run=job.settings.out,
        bundle=job.settings.out / "best",
        best=won.trial,
        trials=result.trials,
        timings=job.timings,
        computed=record["features"]["computed"],
        cached=record["features"]["cached"],
        largest_class_share=largest,
    )


def _some(paths: Iterable[str]) -> str:
    shown = list(islice(paths, 6))
    return ", ".join(shown[:5]) + (", ..." if len(shown) > 5 else "")
