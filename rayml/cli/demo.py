"""`rayml demo`: the whole way on the built-in sample."""

from __future__ import annotations

import contextlib
import itertools
import signal
import time
from pathlib import Path

import click

NAME = "rayml-demo"


@click.command(short_help="See all of it on a built-in sample.")
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="Port to serve on.")
@click.option("--keep-serving", is_flag=True, help="Serve on until Ctrl-C.")
def demo(port: int, keep_serving: bool) -> None:
    """Draw a sample, search for its best classifier, serve it, and classify pictures over HTTP.

    Everything is written to a new folder rayml-demo here. One to two minutes on two cores, no network.

    \b
    rayml demo
    rayml demo --port 9000 --keep-serving
    """
    from rayml.progress import Progress
    from rayml.sample import write_sample
    from serving.client import Client
    from serving.config import ServeSettings
    from serving.environment import temporary_folder
    from serving.run import check_address_free, running
    from tune_jobs.config import SearchSettings
    from tune_jobs.run import run_tune

    settings = ServeSettings(port=port)
    # Rather now than after the search.
    check_address_free(settings)
    temporary_folder()
    start = time.monotonic()
    folder = _new_folder()

    def step(what: str) -> None:
        click.echo(f"\n[{time.monotonic() - start:.0f} s] {what}")

    step(f"rayml data sample {folder}/photos")
    written = write_sample(folder / "photos")
    click.echo(f"{written} drawings of garments in ten classes: a sample, not photos.")

    step(f"rayml tune {folder}/photos --backbone tiny --out {folder}/run")
    summary = run_tune(SearchSettings(data=folder / "photos", out=folder / "run", backbone="tiny"), Progress())
    best = summary.best
    click.echo(
        f"Best of {len(summary.trials)} trials: size_inner {best.size_inner}, learning rate {best.learning_rate:g}, "
        f"epoch {best.best_epoch}: validation accuracy {best.val_accuracy:.3f} "
        f"(always the largest class: {summary.largest_class_share:.3f})."
    )

    step(f"rayml serve {summary.bundle} --port {port}")
    with running(summary.bundle, settings) as url:
        click.echo(f"Ray Serve answers on {url}; its golden pictures came back right.")
        pictures = sorted((folder / "photos" / "validation").glob("*/*.jpg"))
        firsts = [next(group) for _, group in itertools.groupby(pictures, lambda path: path.parent.name)]

        step(f"rayml predict PICTURE --server {url}")
        client = Client(url)
        right = 0
        for picture in pictures:
            answer = client.predict(picture)
            right += answer["label"] == picture.parent.name
            if picture in firsts:
                click.echo(f"  {picture.name:19} {answer['label']:10} {answer['confidence']:.2f}")
        click.echo(f"Over HTTP {right} of {len(pictures)} validation pictures were classified right.")

        step(f"Done. Everything lies in {folder}/. Next:")
        click.echo(f"  rayml serve {summary.bundle}      serve this classifier")
        click.echo("  rayml tune PHOTOS --out RUN          search on your own PHOTOS/{train,validation}/CLASS/*.jpg")
        if keep_serving:
            click.echo(f"Serving on {url}; Ctrl-C ends it.")
            with contextlib.suppress(KeyboardInterrupt):
                signal.pause()


def _new_folder() -> Path:
    for number in itertools.count(1):
        folder = Path(NAME if number == 1 else f"{NAME}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise AssertionError("itertools.count never ends")
