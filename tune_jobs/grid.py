"""The cells that a search tries, each with its number: the same list on every machine and in every resumed run."""

from __future__ import annotations

from itertools import product
from typing import Any

from tune_jobs.config import SearchSettings


def cells(settings: SearchSettings) -> tuple[dict[str, Any], ...]:
    """One dictionary a trial, in the order of the grid.

    Returns:
        `trial` (its number, five digits) and what it is trained with: `size_inner`, `learning_rate`, `dropout`,
        `batch_size`. A trial that is run again later keeps its number, its files and its lines.
    """
    grid = product(settings.size_inner, settings.learning_rate)
    return tuple(
        {
            "trial": f"{number:05}",
            "size_inner": size_inner,
            "learning_rate": learning_rate,
            "dropout": settings.dropout,
            "batch_size": settings.batch_size,
        }
        for number, (size_inner, learning_rate) in enumerate(grid)
    )
