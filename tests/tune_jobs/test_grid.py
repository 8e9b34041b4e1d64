from __future__ import annotations

from pathlib import Path

from tests.tune_jobs.small import settings
from tune_jobs.config import SEARCHED
from tune_jobs.grid import cells


def test_lists_are_a_grid(tmp_path: Path) -> None:
    found = cells(settings(tmp_path, dropout=(0.0, 0.5), weight_decay=0.01))
    assert [cell["trial"] for cell in found] == [f"{number:05}" for number in range(8)]
    assert [(cell["size_inner"], cell["learning_rate"], cell["dropout"]) for cell in found[:3]] == [
        (4, 0.001, 0.0),
        (4, 0.001, 0.5),
        (4, 0.05, 0.0),
    ]
    assert {(cell["batch_size"], cell["weight_decay"], cell["label_smoothing"]) for cell in found} == {(16, 0.01, 0.0)}
    assert list(found[0]) == ["trial", *SEARCHED]


def test_ranges_are_drawn_anew_for_each_trial_and_the_seed_decides(tmp_path: Path) -> None:
    space = {"learning_rate": {"loguniform": [1e-4, 1e-1]}, "batch_size": {"randint": [8, 64]}}
    chosen = settings(tmp_path, **space, num_samples=3)
    found = cells(chosen)
    assert chosen.trials == len(found) == 6
    assert [cell["size_inner"] for cell in found] == [4, 8, 4, 8, 4, 8]
    assert len({cell["learning_rate"] for cell in found}) == 6
    assert cells(settings(tmp_path, **space, num_samples=3)) == found
    # More samples add trials; those that were there stay what they are.
    assert cells(settings(tmp_path, **space, num_samples=5))[:6] == found
    assert cells(settings(tmp_path, **space, num_samples=3, seed=2)) != found
