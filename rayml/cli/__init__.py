"""The `rayml` command. This package alone may open every room: it imports tune_jobs and serving, inside commands."""

from __future__ import annotations

import io
import sys
import traceback

import click

from rayml.cli.completion import completion
from rayml.cli.data import data
from rayml.cli.demo import demo
from rayml.cli.deploy import deploy
from rayml.cli.doctor import doctor
from rayml.cli.help import Commands, is_verbose, set_verbose
from rayml.cli.model import evaluate, predict, verify
from rayml.cli.report import report
from rayml.cli.serve import serve
from rayml.cli.tune import tune
from rayml.cli.versions import models, promote, rollback
from rayml.errors import RaymlError, install_hint
from rayml.folders import printable

INTERRUPTED = 130  # 128 + SIGINT, as shells have it.
# Packages that a command may need, and the extra that brings each.
EXTRAS = {
    "fsspec": "tune",
    "imagehash": "check",
    "jinja2": "report",
    "keras": "tune",
    "matplotlib": "report",
    "onnx": "all",
    "pandas": "tune",
    "pyarrow": "tune",
    "ray": "all",
    "tensorflow": "tune",
}


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="rayml")
def rayml() -> None:
    """Labelled photos in, an HTTP image classifier out.

    \b
    rayml demo                                    see all of it on a built-in sample
    rayml tune PHOTOS --out RUN                   search for the best classifier
    rayml evaluate RUN/best PHOTOS/validation     see how good it is
    rayml serve RUN/best                          answer over HTTP
    rayml promote RUN MODELS                      number it, and make it the live one

    `rayml COMMAND --help` says more, with examples. Commands end with 0 when they did what they are for, with 2 where
    the usage or the input was wrong, with 1 where something failed, with 130 after Ctrl-C (`serve`: 0).
    """


VERSIONS = (promote, models, rollback, deploy)
for command in (demo, data, tune, report, evaluate, verify, predict, serve, *VERSIONS, doctor, completion):
    rayml.add_command(command)


def main() -> None:
    """Run the command line; errors that a person can act on are one line, with what to do in a second."""
    set_verbose(False)
    for stream in (sys.stdout, sys.stderr):
        # A file's name may hold bytes that are no text: shown as an escape, it costs nobody the answer.
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
    try:
        code = rayml.main(prog_name="rayml", standalone_mode=False)
        if isinstance(code, int):  # what `Context.exit` was called with
            sys.exit(code)
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(file=shown)
        for line in shown.getvalue().splitlines():
            click.echo(printable(line.expandtabs()), err=True)
        sys.exit(error.exit_code)
    except RaymlError as error:
        if is_verbose():
            traceback.print_exc()
        click.echo(f"Error: {printable(error.message)}", err=True)
        if error.hint:
            click.echo(printable(error.hint), err=True)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.exceptions.Abort):
        click.echo("Interrupted.", err=True)
        sys.exit(INTERRUPTED)
    except ImportError as error:
        # Ray names the package that it misses in the cause of an error of its own.
        missing = error if isinstance(error, ModuleNotFoundError) else error.__cause__
        name = str(missing.name) if isinstance(missing, ModuleNotFoundError) else ""
        extra = EXTRAS.get(name.split(".")[0])
        if extra is None:
            raise
        click.echo(f"Error: this command needs the package {name}, which is not installed", err=True)
        click.echo(install_hint(extra), err=True)
        sys.exit(1)
    except OSError as error:
        # A full disk, a folder that may not be written: no bug, and no traceback's business.
        if error.strerror is None or is_verbose():
            raise
        where = f": {error.filename}" if error.filename else ""
        click.echo(f"Error: {printable(error.strerror + where)}", err=True)
        click.echo("Mend that and run the command again; -v shows where it happened.", err=True)
        sys.exit(1)
