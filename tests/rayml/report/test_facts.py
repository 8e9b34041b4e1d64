from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayml.errors import DataError
from rayml.report import facts
from rayml.report.run import Epoch, Run, Trial, read_run
from tests.rayml.report import made


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return read_run(made.finished(tmp_path / "run", made.photos(tmp_path / "photos")))


def test_the_grid_has_a_place_for_each_trial(run: Run) -> None:
    grid = facts.grid(run)
    assert (grid.sizes, grid.rates) == (made.SIZES, made.RATES)
    assert (grid.lowest, grid.highest) == (0.2, 0.75)
    cells = [cell for row in grid.rows for cell in row if cell]
    assert [cell.accuracy for cell in cells] == [0.6, 0.6, 0.75, 0.2]
    assert [cell.best for cell in cells] == [False, False, True, False]
    assert [cell.share for cell in cells] == pytest.approx([0.4 / 0.55, 0.4 / 0.55, 1.0, 0.0])


def _trial(number: str, accuracy: float, loss: float, status: str = "finished") -> Trial:
    return Trial(number, 8, 0.01, status, (Epoch(1, 1.0, 0.5, loss, accuracy),), "")


def test_trials_of_one_size_and_rate_share_a_cell_that_shows_the_leader() -> None:
    """They differ in what else was searched: dropout, say."""
    failed = _trial("00000", 0.95, 0.1, "failed")
    behind, leader, tied = (_trial(f"0000{place}", 0.9, loss) for place, loss in ((1, 0.5), (2, 0.3), (3, 0.4)))
    record = {"data": {"counts": {"validation": {"hat": 10}}}}
    run = Run(Path("run"), record, (failed, behind, leader, tied), None, None)
    ((cell,),) = facts.grid(run).rows
    assert cell is not None and (cell.trial, cell.best, cell.accuracy) == (leader, True, 0.9)
    assert facts.reasons(run)[1].startswith("The next best, trial 00003 ")
    ((cell,),) = facts.grid(Run(Path("run"), record, (failed,), None, None)).rows
    assert cell is not None and (cell.trial, cell.best) == (failed, False)


def test_a_grid_before_the_first_epoch(tmp_path: Path) -> None:
    grid = facts.grid(read_run(made.searching(tmp_path / "run", {})))
    assert [[cell and cell.accuracy for cell in row] for row in grid.rows] == [[None, None], [None, None]]


def test_why_the_winner_won(run: Run) -> None:
    said = facts.reasons(run)
    assert said[0] == (
        "Trial 00002 (size_inner 8, learning rate 0.001) had 9 of 12 validation photos right after epoch 2: 0.7500."
    )
    assert said[1] == "The next best, trial 00000 (size_inner 4, learning rate 0.001), had 2 fewer right."
    assert "0.468 - 0.911 (95 % interval), within which 2 of the 3 other trials" in said[2]
    assert "after epoch 2, not those after the last one, 3, which had 0.7000" in said[3]


def test_a_winner_by_loss_alone_is_said_to_be_one(tmp_path: Path) -> None:
    run = read_run(made.searching(tmp_path / "run", {"00000": (0.5,), "00001": (0.5,)}))
    assert "had as many right; the lower validation loss decided" in facts.reasons(run)[1]


def test_the_baseline_is_the_largest_class(run: Run) -> None:
    assert facts.baseline(run) == pytest.approx(1 / 3)


def test_the_figures_are_those_of_the_bundle(run: Run) -> None:
    assert run.bundle is not None
    assert facts.metrics(run) == run.bundle.metrics
    assert facts.metrics(run)["accuracy"] == 0.75


@pytest.mark.parametrize(
    "strange",
    [
        {"per_class": None},
        {"per_class": {"hat": {"precision": "high", "recall": 0.5, "n": 4}}},
        {"per_class": {}},
        {"confusion": [[1, 2], "none"]},
        {"ece": 0.1, "ece_uncalibrated": None},
    ],
)
def test_a_bundle_of_another_maker_is_refused_where_its_figures_would_be_shown(
    run: Run, strange: dict[str, Any]
) -> None:
    assert run.bundle is not None
    recorded = {**run.bundle.metrics, **strange}
    alone = replace(run, predictions=None, bundle=replace(run.bundle, metrics=recorded))
    with pytest.raises(DataError, match="must be those that a search writes"):
        facts.metrics(alone)


def test_a_bundle_without_figures_shows_none(run: Run) -> None:
    assert run.bundle is not None
    alone = replace(run, predictions=None, bundle=replace(run.bundle, metrics={"accuracy": 0.5}))
    assert facts.classes_table(facts.metrics(alone)) == []


def test_pairs_are_counted_from_the_confusion() -> None:
    counts = {"per_class": {name: {"n": count} for name, count in (("a", 8), ("b", 10), ("c", 4))}}
    pairs = [("a", "b", 3, 3 / 8), ("c", "a", 2, 0.5), ("c", "b", 2, 0.5), ("b", "a", 1, 0.1)]
    matrix = [[5, 3, 0], [1, 9, 0], [2, 2, 0]]
    assert facts.confused_pairs({**counts, "confusion": matrix}, ("a", "b", "c")) == pairs
    assert facts.confused_pairs({**counts, "mistaken": [pair[:3] for pair in pairs]}, ("a", "b", "c")) == pairs


def test_the_worst_mistakes_are_the_surest_wrong_ones(run: Run) -> None:
    assert run.predictions is not None
    worst = facts.worst_mistakes(run.predictions, 1.5, 10)
    assert [(photo.label, photo.answer) for photo in worst] == [
        ("shoes", "dress"),
        ("hat", "shoes"),
        ("dress", "hat"),
    ]
    assert worst[0].confidence > worst[1].confidence > worst[2].confidence
    logits = np.array([4.2, 0, 0]) / 1.5
    assert worst[0].confidence == pytest.approx(np.exp(logits[0]) / np.exp(logits).sum())
    assert worst[0].label_probability == pytest.approx(1 / np.exp(logits).sum(), rel=1e-5)


def test_the_least_sure_are_right_or_wrong(run: Run) -> None:
    assert run.predictions is not None
    unsure = facts.least_sure(run.predictions, 1.5, 2)
    assert [photo.path for photo in unsure] == ["validation/0/0.png", "validation/1/0.png"]
