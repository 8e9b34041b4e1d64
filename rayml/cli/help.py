"""How help is laid out, and the option that every command has: commands and long lists of options under headings."""

from __future__ import annotations

import logging
import platform
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

SECTIONS: dict[str, tuple[str, ...]] = {
    "Begin here": ("demo", "doctor"),
    "Photos": ("data",),
    "Search": ("tune", "report"),
    "A classifier": ("evaluate", "verify", "predict"),
    "Versions": ("promote", "models", "rollback"),
    "Serving": ("serve", "deploy"),
    "This command": ("completion",),
}
_PACKAGES = ("rayml", "tune_jobs", "serving")
_FORMAT = "%(asctime)s %(name)s: %(message)s"


class Commands(click.Group):
    """A group whose help lists its commands under the headings of `SECTIONS`, others at the end."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _add_verbose(self)

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Add a command, and to it and those below it `-v`."""
        _add_verbose(cmd)
        super().add_command(cmd, name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands of each heading with the first sentence of their help."""
        listed = {name for names in SECTIONS.values() for name in names}
        others = tuple(name for name in self.list_commands(ctx) if name not in listed)
        width = max(map(len, self.commands))
        for heading, names in {**SECTIONS, "Others": others}.items():
            found = [(name, self.commands[name]) for name in names if name in self.commands]
            if found:
                with formatter.section(heading):
                    limit = formatter.width - width - 6
                    formatter.write_dl(
                        [(f"{name:{width}}", command.get_short_help_str(limit)) for name, command in found]
                    )


class SectionedCommand(click.Command):
    """A command with so many options that they stand under headings.

    Arguments:
        sections: heading -> the names of its options' variables; others stand under "Options".
    """

    def __init__(self, *args: Any, sections: Mapping[str, Sequence[str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sections = sections

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options of each heading."""
        listed = {name for names in self.sections.values() for name in names}
        options = [option for option in self.get_params(ctx) if isinstance(option, click.Option)]
        records = {str(option.name): option.get_help_record(ctx) for option in options}
        others = [name for name in records if name not in listed]
        for heading, names in {**self.sections, "Options": others}.items():
            rows = [record for name in names if (record := records.get(name))]
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows)


def is_verbose() -> bool:
    """Whether `-v` was given."""
    return logging.getLogger("rayml").isEnabledFor(logging.DEBUG)


def set_verbose(verbose: bool) -> None:
    """Let the packages' debug lines through to stderr, or hold them back, as at the start."""
    for name in _PACKAGES:
        logger = logging.getLogger(name)
        logger.setLevel(logging.DEBUG if verbose else logging.NOTSET)
        logger.propagate = not verbose
        logger.handlers = []
        if verbose:
            handler = logging.StreamHandler()
            handler.setFormatter(logging.Formatter(_FORMAT))
            logger.addHandler(handler)


def _add_verbose(command: click.Command) -> None:
    if any(parameter.name == "verbose" for parameter in command.params):
        return
    command.params.append(
        click.Option(
            ["-v", "--verbose"],
            is_flag=True,
            expose_value=False,
            callback=_be_verbose,
            help="Details on stderr, and where an error comes from.",
        )
    )
    if isinstance(command, click.Group):
        for below in command.commands.values():
            _add_verbose(below)


def _be_verbose(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value and not is_verbose():
        set_verbose(True)
        where = f"Python {platform.python_version()}, {platform.platform()}"
        logging.getLogger("rayml.cli").debug("%s; %s; %s", where, context.command_path, sys.argv[1:])
