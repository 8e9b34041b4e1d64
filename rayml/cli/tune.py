"""`rayml tune`: a search from photos to a bundle."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from rayml.cli.help import SectionedCommand
from rayml.cli.tables import show_table
from rayml.errors import UsageError

SECTIONS = {
    "What goes in and comes out": (
        "out",
        "config",
        "validation_fraction",
        "skip_unreadable",
        "mlflow",
        "resume",
        "dry_run",
    ),
    "The frozen backbone": ("backbone", "weights", "image_size", "precision", "cache", "feature_dtype"),
    "The grid": ("size_inner", "learning_rate", "dropout", "batch_size", "weight_decay", "label_smoothing"),
    "Training": ("mode", "epochs", "seed"),
    "With --mode end-to-end": (
        "augment",
        "unfreeze",
        "fine_tune_epochs",
        "fine_tune_learning_rate",
        "mixed_precision",
    ),
    "Stopping early": ("scheduler", "grace_period", "reduction_factor"),
    "Where it runs": ("address", "storage_path", "feature_gpus", "trial_cpus", "trial_gpus", "max_concurrent"),
}


def _numbers(kind: type[int] | type[float]) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    """One or more numbers separated by commas: "10,100" -> (10, 100)."""

    def parse(_context: click.Context, parameter: click.Parameter, value: str | None) -> Any:
        try:
            return None if value is None else tuple(kind(part) for part in value.split(","))
        except ValueError:
            what = "whole numbers" if kind is int else "numbers"
            raise click.BadParameter(
                f"must be {what} separated by commas. Received: {value}", param=parameter
            ) from None

    return parse


def _backbones(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """For shell completion."""
    from rayml.backbones import ARCHITECTURES

    return [name for name in ARCHITECTURES if name.startswith(incomplete)]


@click.command(cls=SectionedCommand, sections=SECTIONS, short_help="Search for the best classifier of photos.")
@click.argument("photos", metavar="DATA", required=False, type=click.Path(path_type=Path))
@click.option(
    "--out", metavar="RUN", type=click.Path(path_type=Path), help="Folder for what comes out; new, or with --resume."
)
@click.option("--config", metavar="FILE.yaml", type=click.Path(path_type=Path), help="Settings; options go before it.")
@click.option("--validation-fraction", metavar="SHARE", type=float, help="Where DATA has no validation/, e.g. 0.2.")
@click.option("--skip-unreadable", is_flag=True, default=None, help="Go on without pictures that cannot be read.")
@click.option(
    "--backbone",
    metavar="NAME",
    shell_complete=_backbones,
    help="xception (default), mobilenet_v2, ... of keras.applications; or tiny.",
)
@click.option("--weights", metavar="imagenet|none|FILE", help="Of the backbone; imagenet by default, none is random.")
@click.option("--image-size", metavar="PX", type=int, help="Side of the square it looks at; 150 for xception.")
@click.option("--precision", metavar="float32|int8", help="What it computes in: float32; int8 is faster.")
@click.option("--size-inner", metavar="N,N,...", callback=_numbers(int), help="Units of the inner layer: 10,100,1000.")
@click.option("--learning-rate", metavar="X,X,...", callback=_numbers(float), help="Of Adam: 0.0001,0.001,0.01,0.1.")
@click.option("--dropout", metavar="X,X,...", callback=_numbers(float), help="After the inner layer: 0.")
@click.option("--batch-size", metavar="N,N,...", callback=_numbers(int), help="Photos a step: 32.")
@click.option("--weight-decay", metavar="X,X,...", callback=_numbers(float), help="Of AdamW: 0.")
@click.option("--label-smoothing", metavar="X,X,...", callback=_numbers(float), help="A share of each label: 0.")
@click.option("--mode", metavar="features|end-to-end", help="Cached features, or the whole network: features.")
@click.option("--epochs", metavar="N", type=int, help="Of each trial at most: 10.")
@click.option("--augment", metavar="KINDS", help="flip,shift=0.1,zoom=0.1,rotation=0.05 or some of them.")
@click.option("--unfreeze", metavar="N", type=int, help="Train the backbone's last N layers after the head: 0.")
@click.option("--fine-tune-epochs", metavar="N", type=int, help="How many of --epochs, the last ones: half of them.")
@click.option("--fine-tune-learning-rate", metavar="X", type=float, help="Of Adam in those: 0.00001.")
@click.option("--mixed-precision", is_flag=True, default=None, help="Train in bfloat16, for graphics processors.")
@click.option("--seed", metavar="N", type=int, help="Of everything random: 1.")
@click.option("--scheduler", metavar="asha|sync|none", help="What stops trials early: asha; sync by whole rungs.")
@click.option("--grace-period", metavar="N", type=int, help="Epochs before a trial may be stopped: 2.")
@click.option("--reduction-factor", metavar="X", type=float, help="The best 1/X go on at each rung: 3.")
@click.option("--address", metavar="local|auto|HOST:PORT", help="The Ray cluster to use: local starts one.")
@click.option("--storage-path", metavar="DIR|s3://...|gs://...", help="Where machines share backbones and features.")
@click.option("--feature-dtype", metavar="float32|float16", help="What features are kept in: float32.")
@click.option("--feature-gpus", metavar="SHARE", type=float, help="Of a GPU, for each worker that makes features: 1.")
@click.option("--trial-cpus", metavar="N", type=float, help="Processors of a trial; shared out by default.")
@click.option("--trial-gpus", metavar="N", type=float, help="Graphics processors of a trial, e.g. 0.25: 0.")
@click.option("--max-concurrent", metavar="N", type=int, help="Trials at once at most.")
@click.option(
    "--cache", metavar="DIR", type=click.Path(path_type=Path), help="Of this machine, for backbones and features."
)
@click.option("--mlflow", metavar="URI", help="Tell an MLflow server, e.g. http://127.0.0.1:5000.")
@click.option("--resume", is_flag=True, default=None, help="Go on with the search that was interrupted in RUN.")
@click.option("--dry-run", is_flag=True, help="Say what it would take, and end.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def tune(photos: Path | None, config: Path | None, dry_run: bool, as_json: bool, **options: Any) -> None:
    """Search for the best classifier of the photos in DATA and write it to RUN/best.

    DATA holds train/CLASS/*.jpg and validation/CLASS/*.jpg, or CLASS/*.jpg with --validation-fraction.

    \b
    rayml tune photos --out run
    rayml tune photos --out run --backbone mobilenet_v2 --image-size 224 --epochs 5
    rayml tune photos --out run --mode end-to-end --augment flip --unfreeze 4
    rayml tune photos --out run --scheduler sync --dry-run
    rayml tune photos --out run --resume
    """
    from rayml.progress import Progress
    from tune_jobs.config import make_settings, read_settings
    from tune_jobs.run import plan_tune, run_tune
    from tune_jobs.runfolder import with_stored

    given = {"data": photos, **options}
    values = {**(read_settings(config) if config else {}), **{k: v for k, v in given.items() if v is not None}}
    for name, what in (("data", "DATA"), ("out", "--out RUN")):
        if name not in values:
            raise UsageError(f"{what} is needed. Received: nothing", "rayml tune DATA --out RUN")
    settings = make_settings(with_stored(values), str(config or "options"))
    if dry_run:
        plan = plan_tune(settings, Progress())
        click.echo(json.dumps(plan.to_json()) if as_json else "\n".join(plan.lines()))
        return
    summary = run_tune(settings, Progress())
    if as_json:
        click.echo(json.dumps(summary.to_json(), allow_nan=False))
        return
    varied = [
        name
        for name in ("dropout", "batch_size", "weight_decay", "label_smoothing")
        if len({getattr(trial, name) for trial in summary.trials}) > 1
    ]
    columns = ("trial", "size_inner", "learning_rate", *varied, "status", "epochs", "val_accuracy", "")
    show_table(
        {name: "left" if name in ("status", "") else "right" for name in columns},
        [
            (
                trial.trial_id,
                str(trial.size_inner),
                *(f"{getattr(trial, name):.4g}" for name in ("learning_rate", *varied)),
                trial.status,
                str(trial.epochs),
                f"{trial.val_accuracy:.4f}",
                "<- best" if trial == summary.best else "",
            )
            for trial in summary.trials
        ],
        marked={place for place, trial in enumerate(summary.trials) if trial == summary.best},
    )
    click.echo(f"The largest class alone would score {summary.largest_class_share:.4f}.")
    if (report := summary.run / "report.html").exists():  # Else it has been said why there is none.
        click.echo(f"The report: {report}")
    click.echo(f"Next: rayml serve {summary.bundle}")
