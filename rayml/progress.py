"""How long work shows itself on stderr: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import rich.console
import rich.progress
import rich.table

LINE_EVERY_S = 10.0  # Plain lines go into logs: often enough to see that it lives, seldom enough to be read.


class Advance(Protocol):
    """Told of what is done, and what to say beside it."""

    def __call__(self, count: int = 1, note: str = "") -> None: ...


class Progress:
    """Says on stderr what is going on.

    Arguments:
        quiet: say nothing.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._console = rich.console.Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)

    def say(self, line: str) -> None:
        """Print one line."""
        self._console.print(line, markup=False)

    @contextmanager
    def bar(self, what: str, total: int, unit: str, even: bool = True, lasting: bool = True) -> Iterator[Advance]:
        """Show a piece of work of a known size.

        Arguments:
            what: its name.
            total: how many `unit`s it has.
            unit: what is counted, in the plural.
            even: each takes about as long, so that the time left follows from those that are done.
            lasting: it stays to be read when the work is done; otherwise only work that takes long is seen at all.
        """
        show = self._bar if self._console.is_terminal else self._lines
        with show(what, total, unit, even, lasting) as advance:
            yield advance

    @contextmanager
    def _bar(self, what: str, total: int, unit: str, even: bool, lasting: bool) -> Iterator[Advance]:
        columns = (
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(bar_width=40 if even else 10),
            rich.progress.MofNCompleteColumn(),
            *((rich.progress.TextColumn("{task.fields[rate]}"), rich.progress.TimeRemainingColumn()) if even else ()),
            rich.progress.TextColumn("{task.fields[note]}", table_column=rich.table.Column(no_wrap=False)),
        )
        start = time.monotonic()
        with rich.progress.Progress(*columns, console=self._console, transient=not lasting) as bars:
            task = bars.add_task(what, total=total, rate="", note="")

            def advance(count: int = 1, note: str = "") -> None:
                bars.advance(task, count)
                rate = bars.tasks[0].completed / max(time.monotonic() - start, 1e-9)
                bars.update(task, rate=f"{rate:.1f} {unit}/s", note=note)

            yield advance

    @contextmanager
    def _lines(self, what: str, total: int, unit: str, even: bool, lasting: bool) -> Iterator[Advance]:
        start = said = time.monotonic()
        done = 0

        def advance(count: int = 1, note: str = "") -> None:
            nonlocal done, said
            done += count
            now = time.monotonic()
            if now - said >= LINE_EVERY_S or (lasting and done == total):
                said = now
                rate = done / max(now - start, 1e-9)
                pace = f", {rate:.1f} {unit}/s" if even else ""
                left = f", {(total - done) / rate:.0f} s left" if even and 0 < done < total else ""
                self.say(f"{what}: {done}/{total} {unit}{pace}{left}{', ' + note if note else ''}")

        yield advance
