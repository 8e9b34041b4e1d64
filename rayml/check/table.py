"""A report on the terminal."""

from __future__ import annotations

from itertools import groupby

import rich.box
import rich.console
import rich.table
import rich.text

from rayml.check.findings import SEVERITIES, Finding, Report, Severity
from rayml.folders import printable

SHOWN_OF_A_KIND = 4  # A folder may have thousands of one kind; --json and --html show more.
_LINE = 100_000  # A program that reads the table gets a row a line, however long.
_STYLES: dict[Severity, str] = {"error": "bold red", "warning": "yellow", "note": "dim"}


def print_report(report: Report, console: rich.console.Console | None = None) -> None:
    """Print photos by class and split, then what was found, the worst first.

    Arguments:
        console: where to; by default stdout, without colours where it is no terminal or NO_COLOR is set.
    """
    console = console or rich.console.Console(highlight=False)
    if console.is_terminal:
        console.print(_photos(report))
    else:
        console.width = _LINE
        with console.capture() as captured:
            console.print(_photos(report))
        for line in captured.get().splitlines():
            console.print(rich.text.Text(line.rstrip()), soft_wrap=True)
    for kind, group in groupby(report.findings, key=lambda finding: finding.kind):
        findings = list(group)
        severity = findings[0].severity
        heading = rich.text.Text(f"{severity}: {kind.replace('_', ' ')} ({len(findings)})", _STYLES[severity])
        console.print(heading)
        # Lines are left to the terminal to break: a path that was cut in two could not be copied.
        for finding in findings[:SHOWN_OF_A_KIND]:
            console.print(rich.text.Text(_lines(finding)), soft_wrap=True)
        if len(findings) > SHOWN_OF_A_KIND:
            console.print(f"  and {len(findings) - SHOWN_OF_A_KIND} more; --json names them, --html shows them")
    parts = [f"{report.count(severity)} {severity}s" for severity in SEVERITIES]
    console.print(f"{report.n} photos in {len(report.classes)} classes: {', '.join(parts)}.", soft_wrap=True)


def _photos(report: Report) -> rich.table.Table:
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("class", overflow="fold")
    for split in report.splits:
        table.add_column(split, justify="right")
    for label in report.classes:
        table.add_row(
            rich.text.Text(printable(label)), *(str(counts.get(label, 0)) for counts in report.splits.values())
        )
    return table


def _lines(finding: Finding) -> str:
    """One path and its detail on one line; several below their detail."""
    detail, paths = printable(finding.detail), [printable(path) for path in finding.paths[:SHOWN_OF_A_KIND]]
    if len(finding.paths) < 2:
        return "  " + ": ".join((*paths, detail))
    lines = [f"  {detail}:", *(f"    {path}" for path in paths)]
    if len(finding.paths) > SHOWN_OF_A_KIND:
        lines.append(f"    and {len(finding.paths) - SHOWN_OF_A_KIND} more")
    return "\n".join(lines)
