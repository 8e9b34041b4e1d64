"""docs/settings.md: every setting of a search, out of `tune_jobs.config` and the options of `rayml tune`.

python -m scripts.settings_page             # after a setting has changed
python -m scripts.settings_page --check     # ends with 1 where the page is not up to date
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import click

from rayml.cli.tune import tune
from tune_jobs.config import SEARCHED, SearchSettings
from tune_jobs.space import KINDS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "settings.md"

HEAD = """# Settings of a search

<!-- Written by `python -m scripts.settings_page` out of the code; change it there. -->

Each setting is an option of `rayml tune`, or a line of a YAML file for `--config FILE.yaml` and for
`python -m tune_jobs.run CONFIG.yaml`, as `ray job submit` starts it. What is said on the command line goes before the
file. `data` is the argument DATA of the command. What they are for is told in [search.md](search.md).

| setting | option | default | what it is |
|---|---|---|---|
"""

SPACE = """
## Values, lists and ranges

{searched} may each be

- a value: `dropout: 0.2`
- a list, whose values are tried with all those of every other list: `dropout: [0, 0.2, 0.5]`
- in a file, a range from which a value is drawn anew for each trial, `num_samples` times for each cell of the lists:
  `learning_rate: {{loguniform: [1.0e-5, 0.1]}}`

| range | its numbers | for |
|---|---|---|
{kinds}
What is drawn depends on `seed` and the trial's number alone: a search that goes on, or one with more samples, draws the
same. Whole numbers are {whole}.
"""


def page() -> str:
    """The page's text."""
    said = arguments(SearchSettings)
    options = {parameter.name: parameter for parameter in tune.params}
    rows = [
        f"| `{field.name}` | {_option(options.get(field.name))} | {_default(field)} | {_cell(said[field.name])} |\n"
        for field in dataclasses.fields(SearchSettings)
    ]
    kinds = {None: "numbers and whole numbers", True: "whole numbers", False: "numbers"}
    ranges = [f"| `{kind}` | {_cell(form)} | {kinds[whole]} |\n" for kind, (_, whole, form) in KINDS.items()]
    names = [f"`{name}`" for name in SEARCHED]
    whole = " and ".join(f"`{name}`" for name, integral in SEARCHED.items() if integral)
    searched = f"{', '.join(names[:-1])} and {names[-1]}"
    return HEAD + "".join(rows) + SPACE.format(searched=searched, kinds="".join(ranges), whole=whole)


def arguments(documented: type) -> dict[str, str]:
    """The part `Arguments:` of a docstring: name -> what is said, for each of names that stand together."""
    text = inspect.getdoc(documented) or ""
    part = text.split("Arguments:\n")[1].split("\nRaises:")[0]
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?=    \S)", "\n" + part.rstrip())[1:]:
        names, _, words = " ".join(entry.split()).partition(": ")
        found |= dict.fromkeys(names.split(", "), words)
    return found


def _option(parameter: Any) -> str:
    if not isinstance(parameter, click.Option):
        return ""
    metavar = "" if parameter.is_flag else f" {parameter.metavar}"
    return _cell(f"`{parameter.opts[-1]}{metavar}`")


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is dataclasses.MISSING:
        return "needed"
    value = field.default
    if value is None:
        return ""
    if isinstance(value, tuple):
        return f"`{', '.join(map(str, value))}`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`" if value != "" else "nothing"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> int:
    """Write the page, or check it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    if parser.parse_args().check:
        return int(PAGE.read_text(encoding="utf-8") != page())
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
