"""`rayml report`: a run as one page for people."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(short_help="A run as one HTML page.")
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--out", metavar="FILE.html", type=click.Path(path_type=Path), help="RUN/report.html by default.")
@click.option(
    "--data", metavar="DATA", type=click.Path(path_type=Path), help="Its photos, where RUN keeps no pictures of them."
)
@click.option(
    "--watch", is_flag=True, help="Write it anew every 5 s until the search is over; the page reloads itself."
)
def report(run: Path, out: Path | None, data: Path | None, watch: bool) -> None:
    """Write RUN as one HTML page that needs no network: winner, grid, curves, mistakes, calibration, time.

    `rayml tune` writes RUN/report.html at its end; this writes it again, elsewhere, or while the search goes on.

    \b
    rayml report run
    rayml report run --out report.html
    rayml report run --watch          in a second terminal, while `rayml tune` is at work
    """
    from rayml.report import watch_run, write_report

    def say(page: Path, status: str) -> None:
        click.echo(f"{page}: {status}", err=True)

    page = watch_run(run, out, data=data, written=say) if watch else write_report(run, out, data=data)
    click.echo(f"Wrote {page} ({page.stat().st_size / 1000:.0f} kB). Open it in a browser.")
