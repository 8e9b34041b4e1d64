"""From a run's folder to its page."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rayml.errors import UsageError
from rayml.page_file import check_page_file, write_page_file
from rayml.report import facts, photos, plots
from rayml.report.run import Run, is_abandoned, read_run
from rayml.report.svg import SERIES

PAGE = "report.html"
WATCH_S = 5.0


def write_report(folder: Path, out: Path | None = None, *, data: Path | None = None) -> Path:
    """Write the page of a run.

    Arguments:
        folder: RUN.
        out: the file; RUN/report.html by default. It is there whole or stays as it was.
        data: the folder of photos that RUN was searched on, for the pictures; without it those kept in RUN are shown.

    Returns:
        The page's path.

    Raises:
        UsageError: no such folder, one in which no search was begun, or a file that cannot be written.
        DataError, BundleError: something in RUN is damaged.
    """
    run = read_run(folder)
    if not run.record:
        raise UsageError(
            f"RUN must be the folder of a search. Received: {folder}, which holds no run.json",
            "A search writes it when it begins; --watch waits for it.",
        )
    return _write(run, out or folder / PAGE, data, refresh_s=None)


def keep_report(folder: Path, data: Path) -> Path:
    """Write RUN/report.html at a search's end, and the pictures that it shows to RUN/pictures for every later page."""
    run = read_run(folder)
    photos.keep_pictures(run, photos.find_pictures(run, data))
    return _write(run, folder / PAGE, data, refresh_s=None)


def watch_run(
    folder: Path,
    out: Path | None = None,
    *,
    data: Path | None = None,
    written: Callable[[Path, str], None] = lambda page, status: None,
    every_s: float = WATCH_S,
) -> Path:
    """Write the page again and again, reloading itself, until the search is over; then once more as `write_report`.

    A search whose driver was killed is over as well, though RUN says that it goes on.

    Arguments:
        folder, out, data: as in `write_report`; a search that has not begun is waited for.
        written: told of each page and of how the run stands: its status, or that no process searches in it.
        every_s: the time between two pages, which is also when a browser loads the next one.

    Raises:
        As `write_report`.
    """
    target = out or folder / PAGE
    while True:
        run = read_run(folder)
        if run.over:
            break
        if run.status == "searching" and is_abandoned(folder):
            run = read_run(folder)  # It may have come to its end since RUN was read.
            break
        written(_write(run, target, data, refresh_s=every_s), run.status)
        time.sleep(every_s)
    said = run.status if run.over else "no process searches here: `rayml tune --resume` goes on"
    written(_write(run, target, data, refresh_s=None), said)
    return target


def render(run: Run, *, data: Path | None = None, refresh_s: float | None = None) -> str:
    """The page as text. Everything in it that comes from data, class and file names above all, is escaped.

    Arguments:
        data: as in `write_report`.
        refresh_s: reload after so long; None for a page that stays.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("rayml.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "seconds": _seconds, "svg": Markup, "value": _value}
    environment.globals |= {"status_words": facts.status_words, "dashes": plots.DASHES, "colours": len(SERIES)}
    return environment.get_template("page.html").render(**_content(run, data), refresh_s=refresh_s)


def _content(run: Run, data: Path | None) -> dict[str, Any]:
    """Everything the template names."""
    figures = facts.metrics(run)
    found, bundle, leader = run.predictions, run.bundle, run.leader
    foremost = facts.foremost(run)
    grid = facts.grid(foremost)
    classes = bundle.classes if bundle else tuple(facts.counts_by_split(run).get("train", {}))
    pictures = photos.find_pictures(run, data)
    mistakes, unsure = photos.shown_photos(run)
    timings: dict[str, float] = dict(run.record.get("timings", {}))
    table = facts.classes_table(figures)
    return {
        "run": run,
        "name": bundle.name if bundle else run.record.get("settings", {}).get("data", run.folder.absolute().name),
        "bundle": bundle,
        "leader": leader,
        "figures": figures,
        "reasons": facts.reasons(run),
        "baseline": facts.baseline(run),
        "photos": facts.validation_photos(run),
        "grid": grid,
        "grid_trials": len(foremost.trials),
        "panels": plots.learning_curves(foremost, grid.rates),
        "winner_svg": plots.winner_curves(leader) if run.over and leader and leader.epochs else None,
        "classes": classes,
        "matrix": figures.get("confusion"),
        "pairs": facts.confused_pairs(figures, classes),
        "class_rows": table[: facts.MAX_TABLE_CLASSES],
        "classes_left_out": max(0, len(table) - facts.MAX_TABLE_CLASSES),
        "calibration_svg": plots.calibration(found, bundle.temperature) if found and bundle else None,
        "pictures": {digest: base64.b64encode(image).decode() for digest, image in pictures.items()},
        "galleries": (
            ("Worst mistakes", "The wrong answers that the classifier was surest of.", mistakes),
            ("Least sure", "The answers, right or wrong, that it was least sure of.", unsure),
        ),
        "timings": [(key, facts.STAGES.get(key, key), seconds) for key, seconds in timings.items()],
        "total_s": sum(timings.values()),
        "counts": facts.counts_by_split(run),
        "settings": run.record.get("settings", {}),
        "versions": run.record.get("versions", {}),
        "data": run.record.get("data", {}),
        "backbone": run.record.get("backbone", {}),
        "features": run.record.get("features", {}),
    }


def _write(run: Run, target: Path, data: Path | None, refresh_s: float | None) -> Path:
    check_page_file(target, "--out")
    # A file's name may hold bytes that are no UTF-8; they are shown as question marks.
    text = render(run, data=data, refresh_s=refresh_s).encode("utf-8", "replace")
    # What lies in a run from elsewhere may be a link to any file of whoever reads it.
    write_page_file(target, "--out", text, follow=target != run.folder / PAGE)
    return target


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def _seconds(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _value(value: object) -> str:
    """A setting in words."""
    if value is None:
        return "default"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_value, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_value(entry)}" for key, entry in value.items())
    return str(value)
