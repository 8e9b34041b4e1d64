"""`rayml data`: folders of photos."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from rayml.cli.model import engine_option, json_option


@click.group()
def data() -> None:
    """Folders of labelled photos."""


@data.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--seed", type=click.IntRange(0), help="Draw other pictures than the usual ones.")
def sample(directory: Path, seed: int | None) -> None:
    """Write the built-in sample into DIR.

    Drawn garments of ten classes, 60 pictures of each to train on and 20 to validate with.

    \b
    rayml data sample photos
    rayml tune photos --backbone tiny --out run
    """
    from rayml.sample import SAMPLE_SEED, write_sample

    written = write_sample(directory, seed=SAMPLE_SEED if seed is None else seed)
    click.echo(f"Wrote {written} drawings to {directory}/train and {directory}/validation.")


@data.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--bundle", type=click.Path(path_type=Path), help="Also name photos whose label this bundle disputes.")
@click.option("--html", metavar="FILE", type=click.Path(path_type=Path), help="Write a page with thumbnails.")
@click.option("--strict", is_flag=True, help="Fail on warnings too.")
@engine_option
@json_option
def check(directory: Path, bundle: Path | None, html: Path | None, strict: bool, engine: str, as_json: bool) -> None:
    """Find what is wrong with the photos in DIR.

    DIR holds train/, validation/ and test/ with class folders, or class folders alone. Every file is decoded as
    training would: damaged, tiny and wrongly named ones are found, pictures that come twice, and classes out of
    balance. Ends with 1 if there are errors (a search would refuse the photos, or measure what is not true), else
    with 0.

    \b
    rayml data check photos
    rayml data check photos --bundle RUN/best --html check.html
    rayml data check photos --json | jq '.findings[] | select(.severity == "error")'
    """
    from rayml.check.doctor import check_data
    from rayml.check.page import write_page
    from rayml.check.table import print_report
    from rayml.page_file import check_page_file
    from rayml.predictor import Predictor
    from rayml.progress import Progress

    if html:
        check_page_file(html, "--html")  # Rather now than after the check.
    predictor = Predictor(bundle, engine) if bundle else None
    report = check_data(directory, Progress(), predictor)
    if html:
        write_page(html, report, directory)
    if as_json:
        click.echo(json.dumps(report.to_json()))
    else:
        print_report(report)
        if html:
            click.echo(f"Page with pictures: {html}")
    if report.count("error") or (strict and report.count("warning")):
        sys.exit(1)


@data.command()
@click.argument("name", type=click.Choice(["clothing"]))
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--url", help="Fetch the archive from a mirror; its files are checked all the same.")
@click.option("--archive", metavar="FILE.zip", type=click.Path(path_type=Path), help="Use a downloaded archive.")
@json_option
def fetch(name: str, directory: Path, url: str | None, archive: Path | None, as_json: bool) -> None:
    """Download the lesson's clothing photos into DIR.

    3,781 photos of ten classes, CC0, about 110 MB. A download that broke off goes on when the command is run again.
    Every file is checked before DIR is there.

    \b
    rayml data fetch clothing photos
    rayml tune photos --out run
    """
    from rayml.cli.fetch import fetch_clothing
    from rayml.clothing import COMMIT, LICENCE, PHOTOS
    from rayml.progress import Progress

    if url and archive:
        raise click.UsageError("--url and --archive exclude each other.")
    fetched = fetch_clothing(directory, Progress(), url=url, archive=archive)
    if as_json:
        click.echo(json.dumps({"directory": str(directory), "fetched": fetched, "photos": PHOTOS, "commit": COMMIT}))
    elif fetched:
        click.echo(f"{PHOTOS} photos are in {directory}: train, validation, test; {LICENCE}. Next:")
        click.echo(f"  rayml tune {directory} --out run")
    else:
        click.echo(f"{directory} holds all {PHOTOS} photos already.")
