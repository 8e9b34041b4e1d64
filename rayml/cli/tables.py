"""Tables on stdout: as wide as the terminal, whole lines and no colours where it is none."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal

import click

_LINE = 100_000  # A program that reads the table gets a row a line, however long.


def show_table(
    columns: Mapping[str, Literal["left", "right"]], rows: Iterable[Sequence[str]], marked: Collection[int] = ()
) -> None:
    """Print a table.

    Arguments:
        columns: title -> to which side its cells are set.
        rows: their cells; shown as they are, without markup.
        marked: places of rows that stand out.
    """
    import rich.console  # A fifth of a second that the help of a command need not wait for.
    import rich.table
    import rich.text

    console = rich.console.Console(highlight=False)
    table = rich.table.Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for title, side in columns.items():
        table.add_column(rich.text.Text(title), justify=side, overflow="fold")
    for place, row in enumerate(rows):
        table.add_row(*map(rich.text.Text, row), style="bold green" if place in marked else None)
    if console.is_terminal:
        console.print(table)
        return
    console.width = _LINE
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        click.echo(line.rstrip())
