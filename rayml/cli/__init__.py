"""The `rayml` command. This package alone may open every room: it imports tune_jobs and serving, inside commands."""

from __future__ import annotations

import sys

import click

from rayml.cli.data import data
from rayml.cli.demo import demo
from rayml.cli.doctor import doctor
from rayml.cli.model import evaluate, predict, verify
from rayml.cli.report import report
from rayml.cli.serve import serve
from rayml.cli.tune import tune
from rayml.errors import RaymlError

INTERRUPTED = 130  # 128 + SIGINT, as shells have it.


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="rayml")
def rayml() -> None:
    """Labelled photos in, an HTTP image classifier out.

    \b
    rayml demo                             see all of it on a built-in sample
    rayml tune PHOTOS --out RUN            search for the best classifier
    rayml evaluate RUN/best PHOTOS/test    see how good it is
    rayml serve RUN/best                   answer over HTTP
    """


for command in (demo, data, tune, report, evaluate, verify, predict, serve, doctor):
    rayml.add_command(command)


def main() -> None:
    """Run the command line; errors that a person can act on are one line, with what to do in a second."""
    try:
        rayml.main(prog_name="rayml", standalone_mode=False)
    except click.exceptions.Exit as end:
        sys.exit(end.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except RaymlError as error:
        click.echo(f"Error: {error.message}", err=True)
        if error.hint:
            click.echo(error.hint, err=True)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.exceptions.Abort):
        click.echo("Interrupted.", err=True)
        sys.exit(INTERRUPTED)
    except ModuleNotFoundError as error:
        extra = {"ray": "all", "tensorflow": "tune", "keras": "tune", "onnx": "all", "imagehash": "check"}.get(
            str(error.name).split(".")[0]
        )
        if extra is None:
            raise
        click.echo(f"Error: this command needs the package {error.name}, which is not installed", err=True)
        click.echo(f'Install it with `pip install "rayml[{extra}]"`.', err=True)
        sys.exit(1)
