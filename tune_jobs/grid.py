"""The cells that a search tries, each with its number: the same list on every machine and in every resumed run."""

from __future__ import annotations

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
