"""The cells that a search tries, each with its number: the same list on every machine and in every resumed run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np

from tune_jobs.config import SEARCHED, SearchSettings
from tune_jobs.space import Range


def cells(settings: SearchSettings) -> tuple[dict[str, Any], ...]:
    """One dictionary a trial: the grid of all lists, `num_samples` times over where there are ranges to draw from.

    What is drawn depends on the seed and the trial's number alone.

    Returns:
        `trial` (its number, five digits) and what it is trained with: a value of each of `SEARCHED`. A trial that is
        run again later keeps its number, its files and its lines.
    """
    choices = {name: getattr(settings, name) for name in SEARCHED}
    lists = {name: choice for name, choice in choices.items() if not isinstance(choice, Range)}
    grid = [dict(zip(lists, values, strict=True)) for values in product(*lists.values())]
    found = []
    for number, cell in enumerate(grid * (settings.num_samples or 1)):
        random = np.random.default_rng([settings.seed, number])
        drawn = {
            name: choice.draw(random) if isinstance(choice, Range) else cell[name] for name, choice in choices.items()
        }
        found.append({"trial": f"{number:05}", **drawn})
    return tuple(found)


def in_turns(listed: Sequence[dict[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """The cells with those that agree in `names` apart from each other: the first of each kind, the second, and so on.

    Ray begins with the first of a list, and processes that begin with different kinds of head compile each only once.
    """
    seen: Counter[tuple[Any, ...]] = Counter()
    turns = []
    for cell in listed:
        kind = tuple(cell[name] for name in names)
        turns.append(seen[kind])
        seen[kind] += 1
    return [cell for _, cell in sorted(zip(turns, listed, strict=True), key=lambda pair: pair[0])]
