"""One search from photos to a bundle: `python -m tune_jobs.run CONFIG.yaml`; `rayml tune` is the same with options.

CONFIG.yaml holds the fields of `tune_jobs.config.SearchSettings`; see tune_jobs/configs/ for examples. The built-in
sample with `backbone: tiny` takes about a minute on two cores.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayml.backbones import TINY, BackboneSpec, backbone_spec
from rayml.bundle import BundleContents, Golden, Training, write_bundle
from rayml.check.doctor import quick_check
from rayml.check.findings import in_one_line
from rayml.data import Manifest, scan
from rayml.end_to_end import Network, PixelData
from rayml.errors import RaymlError, SearchError, UsageError
from rayml.evaluation import scores
from rayml.features import FeatureBank, packed
from rayml.frozen import FrozenBackbone, default_cache, find_frozen, freeze, share_frozen
from rayml.gathered import Recipe, gather, in_memory
from rayml.graph import attach_head
from rayml.model_card import CardNotes, data_licence
from rayml.predictions import PREDICTIONS_FILE, Predictions
from rayml.progress import Progress
from rayml.report import keep_report
from rayml.storage import check_storage
from rayml.training import TrainingData
from tune_jobs.cluster import Node, on_this_node, ray_cluster
from tune_jobs.config import END_TO_END, SearchSettings, make_settings, read_settings
from tune_jobs.end_to_end import decode, network, select_network
from tune_jobs.features import PassResult, feature_pass
from tune_jobs.growth import Demand, room
from tune_jobs.mlflow_runs import MLflow, Server
from tune_jobs.plan import Plan, make_plan
from tune_jobs.records import TrialRow
from tune_jobs.runfolder import (
    check_same_backbone,
    check_same_data,
    check_same_search,
    locked,
    read_record,
    set_status,
    with_stored,
    write_record,
)
from tune_jobs.search import Search, SearchResult, run_search
from tune_jobs.select import Winner, select

REPORTED_PACKAGES = ("rayml", "ray", "tensorflow", "jax", "keras", "numpy", "onnx", "openvino", "pillow")


@dataclass(frozen=True)
class RunSummary:
    """What a finished search is, as `rayml tune --json` prints it.

    Arguments:
        run: RUN.
        bundle: RUN/best.
        best: the winner's line of trials.csv.
        trials: all lines.
        timings: seconds by stage.
        computed, cached: pictures whose features had to be computed, and those whose features were there.
        largest_class_share: what answering with the largest class alone would score on validation.
    """

    run: Path
    bundle: Path
    best: TrialRow
    trials: tuple[TrialRow, ...]
    timings: dict[str, float]
    computed: int
    cached: int
    largest_class_share: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"run": str(self.run), "bundle": str(self.bundle)}


class Stages:
    """Times the stages of a run and says each when it is done."""

    def __init__(self, progress: Progress) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress

    @contextmanager
    def stage(self, name: str) -> Iterator[list[str]]:
        """Time a stage; what is put into the list is said about it."""
        said: list[str] = []
        start = time.monotonic()
        yield said
        self.seconds[name] = round(time.monotonic() - start, 3)
        self._progress.say(f"{name}: {'; '.join(said)} ({self.seconds[name]:.1f} s)")


def plan_tune(settings: SearchSettings, progress: Progress) -> Plan:
    """What `run_tune` would take; nothing is written.

    Raises:
        RaymlError: what `run_tune` would raise before it begins.
    """
    run, cache = settings.out.absolute(), (settings.cache or default_cache()).absolute()
    stages = Stages(progress)
    settings = _with_storage(settings)
    _check_keras(settings)
    spec = backbone_spec(settings.backbone, settings.weights, settings.image_size)
    manifest = _scan(settings, stages, progress)
    with ExitStack() as stack:
        return make_plan(settings, manifest, spec, _nodes(settings, stages, stack, None), run, cache)


def run_tune(settings: SearchSettings, progress: Progress) -> RunSummary:
    """Photos, frozen backbone, features, search, bundle: everything that `rayml tune` does.

    Raises:
        RaymlError: see the stages. Where it ends before the first epoch, RUN is not left behind.
    """
    run, cache = settings.out.absolute(), (settings.cache or default_cache()).absolute()
    with ExitStack() as stack:
        record = None
        if settings.resume:
            stack.enter_context(locked(_existing(run)))
            record = read_record(run)
        elif run.exists():
            raise UsageError(
                f"--out must be a new folder. Received: {run}, which is there",
                "Name another, or remove it. An interrupted search goes on with --resume.",
            )
        if record is not None:
            check_same_search(settings, record)
        _check_keras(settings)
        spec = backbone_spec(settings.backbone, settings.weights, settings.image_size)
        if settings.mlflow:
            Server(settings.mlflow)  # Rather now than after the features.
        stages = Stages(progress)
        manifest = _scan(settings, stages, progress)
        if record is not None:
            manifest = check_same_data(manifest, record)
            if record["status"] == "finished" and (run / "best").is_dir():
                progress.say(f"{settings.out} is finished: nothing is left to do")
                return _finished(settings, record)
        settings = _with_storage(settings)
        if spec.weights == "none":
            progress.say("weights: none were asked for: the backbone is random, so expect little of its features")
        with ExitStack() as cluster:
            nodes = _nodes(settings, stages, cluster, progress)
            for note in make_plan(settings, manifest, spec, nodes, run, cache).notes:
                progress.say(note)
            if not settings.resume:
                _make(run)
                stack.enter_context(locked(run))
            try:
                summary = _run(settings, spec, manifest, nodes, run, cache, stages, progress)
            except BaseException as error:
                if not (run / "history.csv").exists() and not settings.resume:  # Nothing was learned yet.
                    shutil.rmtree(run)
                else:
                    set_status(run, "interrupted" if isinstance(error, KeyboardInterrupt) else "failed")
                raise
        with stages.stage("report") as said:
            try:
                said.append(str(settings.out / keep_report(run, settings.data).name))
            except (OSError, RaymlError) as error:  # The winner is there, and the page can be written at any time.
                said.append(f"not written ({error}); rayml report {settings.out} --data {settings.data} writes it")
    return summary


def _with_storage(settings: SearchSettings) -> SearchSettings:
    if settings.storage_path is None:
        return settings
    return replace(settings, storage_path=check_storage(settings.storage_path))


def _check_keras(settings: SearchSettings) -> None:
    """Refuse a backend of Keras that the search cannot use; Keras itself, which takes seconds, is not loaded here."""
    backend = os.environ.get("KERAS_BACKEND") or "tensorflow"
    if backend not in ("tensorflow", "jax"):
        raise UsageError(f"KERAS_BACKEND must be tensorflow or jax. Received: {backend}")
    if backend == "jax" and settings.mode == END_TO_END:
        raise UsageError(
            "--mode end-to-end needs Keras on TensorFlow. Received: KERAS_BACKEND=jax", "Unset KERAS_BACKEND."
        )
    if backend == "jax" and find_spec("jax") is None:
        raise UsageError(
            "KERAS_BACKEND=jax needs the package jax. Received: it is not installed", 'pip install "rayml[jax]"'
        )


def _make(run: Path) -> None:
    try:
        run.mkdir(parents=True)
    except OSError as error:
        raise UsageError(f"--out must be a folder that can be made. Received: {run} ({error.strerror})") from None


def _scan(settings: SearchSettings, stages: Stages, progress: Progress) -> Manifest:
    with stages.stage("data") as said:
        manifest = scan(settings.data, settings.validation_fraction, settings.seed)
        said.append(describe(manifest))
        found = in_one_line(quick_check(manifest))
    if found:
        progress.say(f"check: {found}; rayml data check {settings.data} tells more")
    return manifest


def _existing(run: Path) -> Path:
    read_record(run)  # Says what is wrong with it before a lock is tried.
    return run


def _finished(settings: SearchSettings, record: dict[str, Any]) -> RunSummary:
    """What a finished run was, from its files."""
    trials = Search(settings, settings.out).result().trials
    (best,) = [trial for trial in trials if trial.trial_id == record["best"]["trial_id"]]
    return RunSummary(
        run=settings.out,
        bundle=settings.out / "best",
        best=best,
        trials=trials,
        timings=record["timings"],
        computed=record["features"]["computed"],
        cached=record["features"]["cached"],
        largest_class_share=record["largest_class_share"],
    )


def _nodes(settings: SearchSettings, stages: Stages, stack: ExitStack, progress: Progress | None) -> tuple[Node, ...]:
    """The machines to search on; Ray ends with the stack. A cluster that grows is waited for where progress is said."""
    with stages.stage("ray") as said:
        nodes = stack.enter_context(ray_cluster(settings.address))
        if settings.scale_up_timeout_s and progress:
            nodes = stack.enter_context(room(Demand.of(settings), settings.scale_up_timeout_s, progress.say))
        if not nodes:
            raise SearchError(
                "a machine with a processor was expected in the cluster. Received: none",
                "Start workers, or let the search wait for a cluster that grows: scale_up_timeout_s.",
            )
        said.append(f"{sum(node.cpus for node in nodes)} CPUs and {sum(node.gpus for node in nodes)} GPUs")
        said.append(f"{len(nodes)} machine{'s' if len(nodes) > 1 else ''}")
    return nodes


def _run(
    settings: SearchSettings,
    spec: BackboneSpec,
    manifest: Manifest,
    nodes: tuple[Node, ...],
    run: Path,
    cache: Path,
    stages: Stages,
    progress: Progress,
) -> RunSummary:
    with stages.stage("backbone") as said:
        backbone = find_frozen(spec, cache, settings.storage_path)
        where = settings.storage_path or "the cache"
        said.append(f"{spec.name} at {spec.image_size_px} px {f'found in {where}' if backbone else 'frozen'}")
        backbone = backbone or on_this_node(freeze, spec, cache)
        if settings.storage_path is not None:
            share_frozen(backbone, cache, settings.storage_path)
    if settings.mode == END_TO_END:
        return _run_networks(settings, spec, manifest, backbone, nodes, run, cache, stages, progress)
    bank = FeatureBank.of(backbone, cache, settings.storage_path)
    with stages.stage("features") as said:
        passed = feature_pass(
            manifest,
            backbone,
            bank,
            nodes,
            spec=spec,
            skip_unreadable=settings.skip_unreadable,
            progress=progress,
            shared=settings.storage_path is not None,
            gpus_a_worker=settings.feature_gpus,
        )
        said.append(f"{passed.computed} computed" + (f" by {passed.engine}" if passed.engine else ""))
        said.append(f"{passed.cached} found in {where}")
        if passed.unreadable:
            said.append(f"{len(passed.unreadable)} unreadable and skipped: {_some(passed.unreadable)}")
            manifest = manifest.without(passed.unreadable)
    data = training_data(manifest, bank, cache / "training" if settings.shares_bank else None)
    record = _begin(settings, manifest, spec, backbone, passed, run, stages)
    result = _search(settings, data, None, nodes, run, stages, progress)
    with stages.stage("bundle") as said:
        won = select(result, data)
        _write_best(settings, manifest, backbone, won, run, progress, said)
    return _finish(settings, record, data.validation_labels, won, result, run, stages)


def _run_networks(
    settings: SearchSettings,
    spec: BackboneSpec,
    manifest: Manifest,
    backbone: FrozenBackbone,
    nodes: tuple[Node, ...],
    run: Path,
    cache: Path,
    stages: Stages,
    progress: Progress,
) -> RunSummary:
    """The rest of a run in mode end-to-end."""
    chosen = network(settings, spec)
    with stages.stage("pixels") as said:
        data, unreadable = decode(manifest, spec.image_size_px, cache, settings.skip_unreadable, progress)
        manifest = manifest.without(unreadable)
        said.append(f"{data.recipe.bytes / 1e6:.1f} MB of decoded photos")
        if unreadable:
            said.append(f"{len(unreadable)} unreadable and skipped: {_some(unreadable)}")
    passed = PassResult(0, 0, unreadable, stages.seconds["pixels"], "")
    record = _begin(settings, manifest, spec, backbone, passed, run, stages)
    result = _search(settings, data, chosen, nodes, run, stages, progress)
    with stages.stage("bundle") as said:
        won, backbone = select_network(result, data, spec, backbone, run)
        _write_best(settings, manifest, backbone, won, run, progress, said)
        for tuned in run.glob(".tuned-*"):
            shutil.rmtree(tuned)
    return _finish(settings, record, data.validation_labels, won, result, run, stages)


def _begin(
    settings: SearchSettings,
    manifest: Manifest,
    spec: BackboneSpec,
    backbone: FrozenBackbone,
    passed: PassResult,
    run: Path,
    stages: Stages,
) -> dict[str, Any]:
    """Write run.json before the trials; what is in it."""
    record = {"settings": settings.to_json(), **_describe_run(manifest, spec, backbone, passed)}
    if settings.resume and (before := read_record(run)) is not None:
        check_same_backbone(backbone.graph_sha256, before)
        record["data"]["unreadable"] |= before["data"]["unreadable"]  # Left out before the pass this time.
    write_record(run, {**record, "status": "searching", "timings": stages.seconds})
    return record


def _search(
    settings: SearchSettings,
    data: TrainingData | PixelData,
    before_head: Network | None,
    nodes: tuple[Node, ...],
    run: Path,
    stages: Stages,
    progress: Progress,
) -> SearchResult:
    with stages.stage("search") as said:
        followers = [MLflow(Server(settings.mlflow), run, settings.to_json())] if settings.mlflow else []
        result = run_search(settings, data, nodes, run, progress, before_head, followers)
        states = [trial.status for trial in result.trials]
        said += [f"{states.count(state)} {state}" for state in ("finished", "stopped", "failed") if state in states]
    for number, reason in result.errors.items():
        progress.say(f"trial {number} failed: {reason}")
    return result


def _write_best(
    settings: SearchSettings,
    manifest: Manifest,
    backbone: FrozenBackbone,
    won: Winner,
    run: Path,
    progress: Progress,
    said: list[str],
) -> None:
    for damage in won.damaged:
        progress.say(f"{damage}: the one before it holds the winner's best epoch too")
    if (run / "best").exists():  # Of a run that was killed before it could say that it had finished.
        shutil.rmtree(run / "best")
    seal(run / "best", settings, manifest, backbone, won)
    predictions(manifest, won).write(run / PREDICTIONS_FILE, won.temperature)
    said.append(
        f"trial {won.trial.trial_id}, size_inner {won.trial.size_inner}, learning rate "
        f"{won.trial.learning_rate:g}, epoch {won.trial.best_epoch}: val_accuracy {won.trial.val_accuracy:.4f}"
    )


def _finish(
    settings: SearchSettings,
    record: dict[str, Any],
    validation_labels: NDArray[np.int32],
    won: Winner,
    result: SearchResult,
    run: Path,
    stages: Stages,
) -> RunSummary:
    largest = float(np.bincount(validation_labels).max() / len(validation_labels))
    won_record = {"best": asdict(won.trial), "bundle": "best", "largest_class_share": largest}
    write_record(run, {**record, "status": "finished", **won_record, "timings": stages.seconds})
    return RunSummary(
        run=settings.out,
        bundle=settings.out / "best",
        best=won.trial,
        trials=result.trials,
        timings=stages.seconds,
        computed=record["features"]["computed"],
        cached=record["features"]["cached"],
        largest_class_share=largest,
    )


def _some(paths: Iterable[str]) -> str:
    shown = list(islice(paths, 6))
    return ", ".join(shown[:5]) + (", ..." if len(shown) > 5 else "")


def describe(manifest: Manifest) -> str:
    """A data set in one line."""
    train, validation = len(manifest.split("train")), len(manifest.split("validation"))
    line = f"{train} training and {validation} validation photos in {len(manifest.classes)} classes"
    if straddling := manifest.straddling():
        line += f"; {len(straddling)} pictures are in both splits, e.g. {straddling[0][0].path}"
    if manifest.ignored:
        shown = ", ".join(manifest.ignored[:3])
        line += f"; {len(manifest.ignored)} other files left aside ({shown}{', ...' if manifest.ignored[3:] else ''})"
    return line


def training_data(manifest: Manifest, bank: FeatureBank, folder: Path | None) -> TrainingData:
    """Both splits as feature vectors and labels, out of the bank.

    Arguments:
        folder: of each machine, where its trials map the vectors from; None to hold them in memory, for trials on
            machines that cannot read the bank.

    Raises:
        RaymlError: as `rayml.gathered.gather`.
    """
    numbers = {label: number for number, label in enumerate(manifest.classes)}
    splits = [manifest.split(name) for name in ("train", "validation")]
    train, validation = (packed([photo.sha256 for photo in split]) for split in splits)
    train_labels, validation_labels = (np.array([numbers[p.label] for p in split], np.int32) for split in splits)
    recipe = Recipe(
        bank=bank,
        folder=folder or Path(),
        train=train,
        train_labels=train_labels,
        validation=validation,
        validation_labels=validation_labels,
        classes=manifest.classes,
        digest=hashlib.sha256(f"{bank.folder.name} {manifest.digest}".encode()).hexdigest(),
    )
    return gather(recipe) if folder else in_memory(recipe)


def predictions(manifest: Manifest, won: Winner) -> Predictions:
    """What the winner answered on the validation photos, for the report and for whoever asks which were wrong."""
    photos = manifest.split("validation")
    return Predictions(
        classes=manifest.classes,
        paths=tuple(photo.path for photo in photos),
        sha256=tuple(photo.sha256 for photo in photos),
        labels=np.array([manifest.classes.index(photo.label) for photo in photos], np.int64),
        logits=won.validation_logits,
    )


def seal(
    folder: Path,
    settings: SearchSettings,
    manifest: Manifest,
    backbone: FrozenBackbone,
    won: Winner,
) -> None:
    """Write the winner's bundle: the backbone's very graph with the head behind it, and what it has to answer."""
    pictures, features = backbone.golden()
    labels = [manifest.classes.index(photo.label) for photo in manifest.split("validation")]
    measured = scores(won.validation_logits, labels, manifest.classes, won.temperature)
    tuning = settings.fine_tuning
    trained = tuning.layers if tuning and won.trial.best_epoch > tuning.after_epoch else 0
    write_bundle(
        folder,
        BundleContents(
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
            metrics=measured,
            temperature=won.temperature,
            model=attach_head(backbone.graph(), won.head),
            head=won.head,
            golden=Golden(tuple(pictures[name] for name in sorted(pictures)), won.head.logits(features)),
            notes=CardNotes(
                counts=manifest.counts(),
                weights=Path(settings.weights or ("builtin" if backbone.name == TINY else "imagenet")).name,
                data_licence=data_licence(manifest.root),
                versions={"python": platform.python_version(), **_versions()},
                trained_layers=trained,
                augmentation=settings.augment,
            ),
        ),
    )


def _describe_run(
    manifest: Manifest, spec: BackboneSpec, backbone: FrozenBackbone, passed: PassResult
) -> dict[str, Any]:
    return {
        "versions": {"python": platform.python_version(), **_versions()},
        "data": {
            "digest": manifest.digest,
            "counts": manifest.counts(),
            "ignored": list(manifest.ignored),
            "unreadable": passed.unreadable,
        },
        "backbone": {
            "name": backbone.name,
            "image_size": backbone.image_size_px,
            "weights": spec.weights_file.name if spec.weights_file else spec.weights,
            "weights_sha256": backbone.weights_sha256,
            "graph_sha256": backbone.graph_sha256,
            "preprocessing": backbone.preprocessing,
        },
        "features": {"computed": passed.computed, "cached": passed.cached, "engine": passed.engine},
    }


def _versions() -> dict[str, str]:
    """Of the packages that decide a result; some have other names where they are built for one processor only."""
    found = {}
    for name in REPORTED_PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def main(arguments: list[str]) -> int:
    """Run the search of a settings file and print its summary as one JSON object."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("Usage: python -m tune_jobs.run CONFIG.yaml", file=sys.stderr)
        return UsageError.exit_code
    try:
        settings = make_settings(with_stored(read_settings(Path(arguments[0]))), arguments[0])
        print(json.dumps(run_tune(settings, Progress()).to_json()))
    except RaymlError as error:
        print(f"Error: {error.message}", error.hint, sep="\n", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
