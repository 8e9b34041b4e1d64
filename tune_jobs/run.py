"""One search from photos to a bundle: `python -m tune_jobs.run CONFIG.yaml`; `rayml tune` is the same with options.

With `--or-resume` it goes on with RUN where an earlier attempt has left it, for a job that is started again by itself.
CONFIG.yaml holds the fields of `tune_jobs.config.SearchSettings`; see tune_jobs/configs/ for examples. The built-in
sample with `backbone: tiny` takes about a minute on two cores.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from rayml.backbones import BackboneSpec, backbone_spec
from rayml.check.doctor import quick_check
from rayml.check.findings import in_one_line
from rayml.data import Manifest, scan
from rayml.end_to_end import Network, PixelData
from rayml.errors import RaymlError, SearchError, UsageError, install_hint
from rayml.features import FeatureBank
from rayml.frozen import FrozenBackbone, default_cache, find_frozen, freeze, share_frozen
from rayml.gathered import Recipe, gather, in_memory
from rayml.progress import Progress
from rayml.report import keep_report
from rayml.storage import check_storage
from rayml.training import TrainingData
from tune_jobs.cluster import Node, keras_backend, on_this_node, ray_cluster
from tune_jobs.config import END_TO_END, SearchSettings, check_folder, make_settings, read_settings
from tune_jobs.end_to_end import decode, network, select_network
from tune_jobs.features import PassResult, feature_pass
from tune_jobs.growth import Demand, Shrinking, room
from tune_jobs.mlflow_runs import MLflow, Server
from tune_jobs.plan import Plan, check_sealable, make_plan
from tune_jobs.records import TrialRow
from tune_jobs.runfolder import (
    check_same_backbone,
    check_same_backend,
    check_same_data,
    check_same_search,
    locked,
    read_record,
    remove_unbegun,
    set_status,
    with_stored,
    write_record,
)
from tune_jobs.sealing import seal, versions
from tune_jobs.search import Search, SearchResult, run_search
from tune_jobs.select import Winner, select
from tune_jobs.tracker import Tracker

INTERRUPTED = 130  # 128 + SIGINT, as shells have it.
_OR_RESUME = "--or-resume"


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


@dataclass(frozen=True)
class _Job:
    """What the stages of a run share.

    Arguments:
        settings: what is searched, the storage checked.
        spec: the backbone to freeze.
        manifest: the photos; a stage that skips some goes on with a job without them.
        nodes: the machines to search on.
        mlflow: who follows, if anybody; it has answered once.
        run, cache: both folders, absolute.
        stages: times them.
        progress: is told how they go.
    """

    settings: SearchSettings
    spec: BackboneSpec
    manifest: Manifest
    nodes: tuple[Node, ...]
    mlflow: Server | None
    run: Path
    cache: Path
    stages: Stages
    progress: Progress


def plan_tune(settings: SearchSettings, progress: Progress) -> Plan:
    """What `run_tune` would take; nothing is written.

    Raises:
        RaymlError: what `run_tune` would raise before it begins.
    """
    run, cache = settings.out.absolute(), _cache(settings)
    stages = Stages(progress)
    spec, manifest, _ = _check(settings, run, stages, progress)
    settings = _with_storage(settings)
    with ExitStack() as stack:
        return make_plan(settings, manifest, spec, _nodes(settings, stages, stack, None), run, cache)


def run_tune(settings: SearchSettings, progress: Progress) -> RunSummary:
    """Photos, frozen backbone, features, search, bundle: everything that `rayml tune` does.

    Raises:
        RaymlError: see the stages. Where it ends before the first epoch, RUN is not left behind.
    """
    run, cache = settings.out.absolute(), _cache(settings)
    with ExitStack() as stack:
        if settings.resume:
            stack.enter_context(locked(_existing(run)))
        stages = Stages(progress)
        spec, manifest, record = _check(settings, run, stages, progress)
        if record is not None and record["status"] == "finished" and (run / "best").is_dir():
            progress.say(f"{settings.out} is finished: nothing is left to do")
            return _finished(settings, record)
        mlflow = Server(settings.mlflow) if settings.mlflow else None  # Rather now than after the features.
        settings = _with_storage(settings)
        if spec.weights == "none":
            progress.say("weights: none were asked for: the backbone is random, so expect little of its features")
        with ExitStack() as cluster:
            nodes = _nodes(settings, stages, cluster, progress)
            for note in make_plan(settings, manifest, spec, nodes, run, cache).notes:
                progress.say(note)
            if not settings.resume:
                stack.enter_context(_new(run))
            try:
                if not settings.resume:  # At once: who is killed on the way to the first trial can go on as was asked.
                    write_record(run, {**_asked(settings), "status": "searching", "timings": {}})
                summary = _run(_Job(settings, spec, manifest, nodes, mlflow, run, cache, stages, progress))
            except BaseException as error:
                set_status(run, "interrupted" if isinstance(error, KeyboardInterrupt) else "failed")
                raise
        with stages.stage("report") as said:
            try:
                said.append(str(settings.out / keep_report(run, settings.data).name))
            except (OSError, RaymlError) as error:  # The winner is there, and the page can be written at any time.
                said.append(f"not written ({error}); rayml report {settings.out} --data {settings.data} writes it")
    return summary


def _check(
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
    _check_keras(settings)
    spec = backbone_spec(settings.backbone, settings.weights, settings.image_size)
    manifest = _scan(settings, stages, progress)
    if record is not None:
        manifest = check_same_data(manifest, record)
    return spec, manifest, record


def _cache(settings: SearchSettings) -> Path:
    """The cache's folder, absolute.

    Raises:
        UsageError: RAYML_CACHE is an address.
    """
    cache = settings.cache or default_cache()
    check_folder("RAYML_CACHE", cache)
    return cache.absolute()


def _with_storage(settings: SearchSettings) -> SearchSettings:
    if settings.storage_path is None:
        return settings
    return replace(settings, storage_path=check_storage(settings.storage_path))


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


@contextmanager
def _new(run: Path) -> Iterator[None]:
    """RUN, made and held for this process; removed again where an error comes before the first epoch."""
    try:
        run.mkdir(parents=True)
    except OSError as error:
        raise UsageError(f"--out must be a folder that can be made. Received: {run} ({error.strerror})") from None
    try:
        with locked(run):
            try:
                yield
            except BaseException:
                if not (run / "history.csv").exists():  # Nothing was learned yet.
                    shutil.rmtree(run, ignore_errors=True)
                raise
    finally:
        # NFS keeps a removed file for as long as it is open, the lock's too, and with it the folder.
        with suppress(OSError):
            run.rmdir()


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
        if not nodes and settings.scale_up_timeout_s:
            raise SearchError(
                "a plan needs a machine to reckon with. Received: a cluster that has none yet",
                f"The search itself would wait up to {settings.scale_up_timeout_s:g} s for one: start it without "
                "--dry-run, or plan when there is a worker.",
            )
        if not nodes:
            raise SearchError(
                "a machine with a processor was expected in the cluster. Received: none",
                "Start workers, or let the search wait for a cluster that grows: scale_up_timeout_s.",
            )
        said.append(f"{sum(node.cpus for node in nodes)} CPUs and {sum(node.gpus for node in nodes)} GPUs")
        said.append(f"{len(nodes)} machine{'s' if len(nodes) > 1 else ''}")
    return nodes


def _run(job: _Job) -> RunSummary:
    settings, stages = job.settings, job.stages
    with stages.stage("backbone") as said:
        backbone = find_frozen(job.spec, job.cache, settings.storage_path)
        where = settings.storage_path or "the cache"
        said.append(f"{job.spec.name} at {job.spec.image_size_px} px {f'found in {where}' if backbone else 'frozen'}")
        backbone = backbone or on_this_node(freeze, job.spec, job.cache)
        check_sealable(settings, job.manifest, backbone)  # The plan knew less where it was not in the cache.
        if settings.resume:
            check_same_backbone(backbone.graph_sha256, read_record(job.run))  # Rather than after the features.
        if settings.storage_path is not None:
            share_frozen(backbone, job.cache, settings.storage_path)
    if settings.mode == END_TO_END:
        return _run_networks(job, backbone)
    bank = FeatureBank.of(backbone, job.cache, settings.storage_path)
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
        said.append(f"{passed.cached} found in {where}")
        if passed.unreadable:
            said.append(f"{len(passed.unreadable)} unreadable and skipped: {_some(passed.unreadable)}")
            job = replace(job, manifest=job.manifest.without(passed.unreadable))
    recipe = Recipe.of(job.manifest, bank, job.cache / "training")
    data = gather(recipe) if settings.shares_bank else in_memory(recipe)
    record = _begin(job, backbone, passed)
    result = _search(job, data, None)
    with stages.stage("bundle") as said:
        won = select(result, data)
        _write_best(job, backbone, won, said)
    return _finish(job, record, data, won, result)


def _run_networks(job: _Job, backbone: FrozenBackbone) -> RunSummary:
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


def _asked(settings: SearchSettings) -> dict[str, Any]:
    """What run.json says from the start."""
    return {"settings": settings.to_json(), "versions": versions(), "keras_backend": keras_backend()}


def _begin(job: _Job, backbone: FrozenBackbone, passed: PassResult) -> dict[str, Any]:
    """Write run.json anew before the trials, with all that is known by then; what is in it."""
    record: dict[str, Any] = {
        **_asked(job.settings),
        "data": {
            "digest": job.manifest.digest,
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
        },
        "features": {"computed": passed.computed, "cached": passed.cached, "engine": passed.engine},
    }
    if job.settings.resume:
        before = read_record(job.run)
        # Photos may have been skipped since. A run that was killed in its first pass had not come so far.
        check_same_data(job.manifest, before)
        record["data"]["unreadable"] |= before.get("data", {}).get("unreadable", {})
    write_record(job.run, {**record, "status": "searching", "timings": job.stages.seconds})
    return record


def _search(job: _Job, data: TrainingData | PixelData, before_head: Network | None) -> SearchResult:
    settings, run = job.settings, job.run
    with job.stages.stage("search") as said:
        followers: list[Tracker] = [MLflow(job.mlflow, run, settings.to_json())] if job.mlflow else []
        if settings.scale_up_timeout_s:
            followers.append(Shrinking(Demand.of(settings), settings.trials))
        result = run_search(settings, data, job.nodes, run, job.progress, before_head, followers)
        states = [trial.status for trial in result.trials]
        said += [f"{states.count(state)} {state}" for state in ("finished", "stopped", "failed") if state in states]
    for number, reason in result.errors.items():
        job.progress.say(f"trial {number} failed: {reason}")
    return result


def _write_best(job: _Job, backbone: FrozenBackbone, won: Winner, said: list[str]) -> None:
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
    job: _Job, record: dict[str, Any], data: TrainingData | PixelData, won: Winner, result: SearchResult
) -> RunSummary:
    largest = float(np.bincount(data.validation_labels).max() / len(data.validation_labels))
    won_record = {"best": asdict(won.trial), "bundle": "best", "largest_class_share": largest}
    write_record(job.run, {**record, "status": "finished", **won_record, "timings": job.stages.seconds})
    return RunSummary(
        run=job.settings.out,
        bundle=job.settings.out / "best",
        best=won.trial,
        trials=result.trials,
        timings=job.stages.seconds,
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


def main(arguments: list[str]) -> int:
    """Run the search of a settings file and print its summary as one JSON object; exit codes as of `rayml`."""
    if "--help" in arguments:
        print(__doc__, end="")
        return 0
    files = [argument for argument in arguments if argument != _OR_RESUME]
    if len(files) != 1 or files[0].startswith("-"):
        print(f"Usage: python -m tune_jobs.run CONFIG.yaml [{_OR_RESUME}]", file=sys.stderr)
        return UsageError.exit_code
    try:
        values = read_settings(Path(files[0]))
        if _OR_RESUME in arguments and "out" in values:
            out = Path(str(values["out"]))
            remove_unbegun(out)
            if out.exists():
                values["resume"] = True
        settings = make_settings(with_stored(values), files[0])
        print(json.dumps(run_tune(settings, Progress()).to_json()))
    except RaymlError as error:
        print(f"Error: {error.message}", error.hint, sep="\n", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        if error.strerror is None:
            raise
        where = f": {error.filename}" if error.filename else ""
        print(f"Error: {error.strerror}{where}", "Mend that and start it again.", sep="\n", file=sys.stderr)
        return RaymlError.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
