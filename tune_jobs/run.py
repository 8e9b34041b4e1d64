"""One search from photos to a bundle: `python -m tune_jobs.run CONFIG.yaml`; `rayml tune` is the same with options.

With `--or-resume` it goes on with RUN where an earlier attempt has left it, for a job that is started again by itself.
CONFIG.yaml holds the fields of `tune_jobs.config.SearchSettings`; see tune_jobs/configs/ for examples. The built-in
sample with `backbone: tiny` takes about a minute on two cores.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from rayml.errors import RaymlError, SearchError, UsageError
from rayml.progress import Progress
from rayml.report import keep_report
from rayml.report.page import PAGE
from tune_jobs.cluster import Node, ray_cluster
from tune_jobs.config import SearchSettings, make_settings, read_settings
from tune_jobs.growth import Demand, room
from tune_jobs.job import Job, RunSummary, Stages
from tune_jobs.mlflow_runs import Server
from tune_jobs.plan import Plan, make_plan
from tune_jobs.prechecks import cache_folder, check, with_storage
from tune_jobs.runfolder import locked, read_record, remove_unbegun, set_status, with_stored, write_record
from tune_jobs.search import Search
from tune_jobs.stages import asked, run_stages

INTERRUPTED = 130  # 128 + SIGINT, as shells have it.
_OR_RESUME = "--or-resume"


def plan_tune(settings: SearchSettings, progress: Progress) -> Plan:
    """What `run_tune` would take; nothing is written.

    Raises:
        RaymlError: what `run_tune` would raise before it begins.
    """
    run, cache = settings.out.absolute(), cache_folder(settings)
    stages = Stages(progress)
    spec, manifest, _ = check(settings, run, stages, progress)
    settings = with_storage(settings)
    with ExitStack() as stack:
        return make_plan(settings, manifest, spec, _nodes(settings, stages, stack, None), run, cache)


def run_tune(settings: SearchSettings, progress: Progress) -> RunSummary:
    """Photos, frozen backbone, features, search, bundle: everything that `rayml tune` does.

    Raises:
        RaymlError: see the stages. Where it ends before the trials begin, RUN is not left behind.
    """
    run, cache = settings.out.absolute(), cache_folder(settings)
    with ExitStack() as stack:
        if settings.resume:
            read_record(run)  # Says what is wrong with it before a lock is tried.
            stack.enter_context(locked(run))
        stages = Stages(progress)
        spec, manifest, record = check(settings, run, stages, progress)
        if record is not None and record["status"] == "finished" and (run / "best").is_dir():
            progress.say(f"{settings.out} is finished: nothing is left to do")
            if not (run / PAGE).exists():  # It was killed before its report.
                _report(settings, run, stages)
            return _finished(settings, record)
        mlflow = Server(settings.mlflow) if settings.mlflow else None  # Rather now than after the features.
        settings = with_storage(settings)
        if spec.weights == "none":
            progress.say("weights: none were asked for: the backbone is random, so expect little of its features")
        with ExitStack() as cluster:
            nodes = _nodes(settings, stages, cluster, progress)
            for note in make_plan(settings, manifest, spec, nodes, run, cache).notes:
                progress.say(note)
            if not settings.resume:
                stack.enter_context(_new(run))
            job = Job(settings, spec, manifest, nodes, mlflow, run, cache, stages, progress, record or {})
            try:
                if not settings.resume:  # At once: who is killed on the way to the first trial can go on as was asked.
                    write_record(run, {**asked(settings), "status": "searching", "timings": {}})
                summary = run_stages(job)
            except BaseException as error:
                set_status(run, "interrupted" if isinstance(error, KeyboardInterrupt) else "failed", job.timings)
                raise
        _report(settings, run, stages)
    return replace(summary, timings={**summary.timings, "report": stages.seconds["report"]})


def _report(settings: SearchSettings, run: Path, stages: Stages) -> None:
    with stages.stage("report") as said:
        try:
            said.append(str(settings.out / keep_report(run, settings.data).name))
        except (OSError, RaymlError) as error:  # The winner is there, and the page can be written at any time.
            said.append(f"not written ({error}); rayml report {settings.out} --data {settings.data} writes it")


@contextmanager
def _new(run: Path) -> Iterator[None]:
    """RUN, made and held for this process; removed again where an error comes before the trials begin."""
    try:
        run.mkdir(parents=True)
    except OSError as error:
        raise UsageError(f"--out must be a folder that can be made. Received: {run} ({error.strerror})") from None
    try:
        with locked(run):
            try:
                yield
            except BaseException:
                if not (run / "history.csv").exists():  # The search begins with it.
                    shutil.rmtree(run, ignore_errors=True)
                raise
    finally:
        # NFS keeps a removed file for as long as it is open, the lock's too, and with it the folder.
        with suppress(OSError):
            run.rmdir()


def _nodes(settings: SearchSettings, stages: Stages, stack: ExitStack, progress: Progress | None) -> tuple[Node, ...]:
    """The machines to search on; Ray ends with the stack. A cluster that grows is waited for where progress is said."""
    with stages.stage("ray") as said:
        nodes = stack.enter_context(ray_cluster(settings.address))
        if settings.scale_up_timeout_s and progress:
            remaining = settings.trials
            if settings.resume:  # No machines are needed for the trials that have ended.
                remaining = len(Search(settings, settings.out, goes_on=True).remaining())
            demand = Demand.of(settings, max(1, remaining))
            nodes = stack.enter_context(room(demand, settings.scale_up_timeout_s, progress.say))
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
        print(json.dumps(run_tune(settings, Progress()).to_json(), allow_nan=False))
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
