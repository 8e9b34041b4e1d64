from __future__ import annotations

import io

import rich.console

from rayml.check.findings import Finding, Report
from rayml.check.table import print_report
from rayml.folders import printable

PATHS = tuple(f"train/hat/{number}-{'x' * 80}.jpg" for number in range(7))


def printed(*findings: Finding) -> str:
    out = io.StringIO()
    report = Report("photos", ("hat", "shoes"), {"train": {"hat": 7, "shoes": 3}, "validation": {"hat": 1}}, findings)
    print_report(report, rich.console.Console(file=out, width=60))
    return out.getvalue()


def test_a_clean_folder() -> None:
    text = printed()
    assert text.endswith("11 photos in 2 classes: 0 errors, 0 warnings, 0 notes.\n")
    assert [line.split() for line in text.splitlines() if line.split()[:1] == ["shoes"]] == [["shoes", "3", "0"]]


def test_a_row_into_a_pipe_is_one_line() -> None:
    out = io.StringIO()
    label = "a long name " * 16 + "."
    print_report(Report("photos", (label,), {"train": {label: 7}}, ()), rich.console.Console(file=out, width=60))
    assert [*label.split(), "7"] in [line.split() for line in out.getvalue().splitlines()]


def test_paths_are_never_cut_and_many_are_counted() -> None:
    text = printed(*(Finding("tiny", (path,), "4 x 4") for path in PATHS), Finding("similar", PATHS, "alike"))
    lines = text.splitlines()
    assert "warning: tiny (7)" in lines and "note: similar (1)" in lines
    assert f"  {PATHS[0]}: 4 x 4" in lines
    assert "  and 3 more; --json names them, --html shows them" in lines
    assert lines[lines.index("  alike:") + 1] == f"    {PATHS[0]}"
    assert "    and 3 more" in lines


def test_a_name_cannot_speak_to_the_terminal() -> None:
    text = printed(Finding("tiny", ("a\x1b[31m\n[red]\udcff.jpg",), "x"))
    assert "  a\\x1b[31m\\n[red]\\udcff.jpg: x" in text.splitlines()
    assert printable("Größe 😀") == "Größe 😀"
