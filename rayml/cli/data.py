"""`rayml data`: folders of photos."""

from __future__ import annotations

from pathlib import Path

import click


@click.group()
def data() -> None:
    """Folders of labelled photos."""


@data.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--seed", type=click.IntRange(0), help="Draw other pictures than the usual ones.")
def sample(directory: Path, seed: int | None) -> None:
    """Write the built-in sample into DIR: drawn garments of ten classes, 60 + 20 pictures each.

    \b
    rayml data sample photos
    rayml tune photos --backbone tiny --out run
    """
    from rayml.sample import SAMPLE_SEED, write_sample

    written = write_sample(directory, seed=SAMPLE_SEED if seed is None else seed)
    click.echo(f"Wrote {written} drawings to {directory}/train and {directory}/validation.")
