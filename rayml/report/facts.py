"""What the page says, as plain values: sentences, tables and the choice of photos. No HTML, no plots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayml.bundle_json import RECORD
from rayml.errors import DataError
from rayml.evaluation import scores
from rayml.metrics import wilson_interval
from rayml.predictions import PREDICTIONS_FILE, Predictions
from rayml.report.run import Run, Trial, rank

MAX_TABLE_CLASSES = 300
MAX_GRID = 12  # Rows and columns of the grid; a search in ranges has as many as trials.
MAX_PAIRS = 12
STAGES = {
    "data": "reading and hashing the photos",
    "ray": "starting Ray",
    "backbone": "freezing the backbone",
    "features": "feature pass over the photos",
    "pixels": "decoding the photos",
    "search": "trials",
    "bundle": "choosing, exporting and sealing the bundle",
}


@dataclass(frozen=True)
class GridCell:
    """A trial's place in the heat map; `share` 0..1 from the worst trial's accuracy to the best one's."""

    trial: Trial
    accuracy: float | None
    share: float
    best: bool


@dataclass(frozen=True)
class Grid:
    """The heat map: a row for each size, a column for each rate; a missing cell is None."""

    sizes: tuple[int, ...]
    rates: tuple[float, ...]
    rows: tuple[tuple[GridCell | None, ...], ...]
    lowest: float
    highest: float


def foremost(run: Run) -> Run:
    """The run with the trials that a grid and its curves can show: all, or the best where sizes or rates are many."""
    sizes, rates = ({getattr(trial, name) for trial in run.trials} for name in ("size_inner", "learning_rate"))
    if max(len(sizes), len(rates)) <= MAX_GRID:
        return run
    ranked = sorted((trial for trial in run.trials if trial.best and trial.status != "failed"), key=rank)
    best = {trial.trial_id for trial in ranked[:MAX_GRID]}
    return replace(run, trials=tuple(trial for trial in run.trials if trial.trial_id in best))


def grid(run: Run) -> Grid:
    """Best validation accuracy by size and learning rate."""
    sizes = tuple(sorted({trial.size_inner for trial in run.trials}))
    rates = tuple(sorted({trial.learning_rate for trial in run.trials}))
    reached = [trial.best.val_accuracy for trial in run.trials if trial.best]
    low, high = min(reached, default=0.0), max(reached, default=0.0)
    leader = run.leader

    def order(trial: Trial) -> tuple[bool, bool, bool, tuple[float, float, str]]:
        """Of one size and rate, which differ in other settings: the leader, else as ranked, failed ones last."""
        place = rank(trial) if trial.best else (0.0, 0.0, trial.trial_id)
        return trial is not leader, trial.status == "failed", not trial.best, place

    def cell(size: int, rate: float) -> GridCell | None:
        here = [trial for trial in run.trials if (trial.size_inner, trial.learning_rate) == (size, rate)]
        if not here:
            return None
        trial = min(here, key=order)
        accuracy = trial.best.val_accuracy if trial.best else None
        share = (accuracy - low) / (high - low) if accuracy is not None and high > low else 1.0
        return GridCell(trial, accuracy, share, leader is not None and trial.trial_id == leader.trial_id)

    rows = tuple(tuple(cell(size, rate) for rate in rates) for size in sizes)
    return Grid(sizes, rates, rows, low, high)


def status_words(trial: Trial) -> str:
    """A trial's state in a few words."""
    done = len(trial.epochs)
    epochs = f"{done} epoch{'' if done == 1 else 's'}"
    return {
        "finished": epochs,
        "stopped": f"stopped at {done}",
        "failed": f"failed at {done}",
        "running": f"{epochs} so far",
        "waiting": "waiting",
    }.get(trial.status, f"{trial.status}, {epochs}")


def baseline(run: Run) -> float | None:
    """What answering with the largest class alone would score on validation."""
    counts = counts_by_split(run).get("validation", {})
    total = sum(counts.values())
    return max(counts.values()) / total if total else None


def counts_by_split(run: Run) -> dict[str, dict[str, int]]:
    """Photos by split and class, as run.json has them."""
    counts = run.record.get("data", {}).get("counts", {})
    return {str(split): {str(k): int(v) for k, v in by_class.items()} for split, by_class in counts.items()}


def validation_photos(run: Run) -> int:
    """How many photos the accuracies are of."""
    if run.predictions is not None:
        return len(run.predictions.labels)
    return sum(counts_by_split(run).get("validation", {}).values())


def reasons(run: Run) -> list[str]:
    """Why the leader leads, in sentences."""
    leader, photos = run.leader, validation_photos(run)
    if leader is None or leader.best is None or not photos:
        return []
    best, hits = leader.best, round(leader.best.val_accuracy * photos)
    low, high = wilson_interval(hits, photos)
    others = [trial for trial in run.trials if trial.best and trial is not leader and trial.status != "failed"]
    said = [
        f"Trial {leader.trial_id} ({leader.described}) had "
        f"{hits} of {photos} validation photos right after epoch {best.number}: {best.val_accuracy:.4f}."
    ]
    if others:
        second = min(others, key=rank)
        gap = hits - round(_accuracy(second) * photos)
        name = f"trial {second.trial_id} ({second.described})"
        if gap:
            said.append(f"The next best, {name}, had {gap} fewer right.")
        else:
            said.append(f"The next best, {name}, had as many right; the lower validation loss decided.")
        near = sum(_accuracy(trial) >= low for trial in others)
        said.append(
            f"On {photos} photos such an accuracy is known to {low:.3f} - {high:.3f} (95 % interval), within which "
            f"{near} of the {len(others)} other trials lie as well: a smaller one of them may be as good."
            if near
            else f"On {photos} photos such an accuracy is known to {low:.3f} - {high:.3f} (95 % interval); no other "
            "trial comes near it."
        )
    last = leader.epochs[-1]
    if run.over and last.number > best.number:
        said.append(
            f"The weights are those after epoch {best.number}, not those after the last one, {last.number}, which had "
            f"{last.val_accuracy:.4f}."
        )
    said.append(
        "Trial and epoch were chosen by these very photos, so expect a little less on new ones. Running "
        "rayml evaluate on photos that took no part tells how much."
    )
    return said


def _accuracy(trial: Trial) -> float:
    return trial.best.val_accuracy if trial.best else -1.0


def metrics(run: Run) -> Mapping[str, Any]:
    """What `rayml.evaluation.scores` says of the winner: from its answers, else as the bundle recorded it.

    Raises:
        DataError: the bundle recorded something else, as one that somebody else wrote may.
    """
    if run.bundle is None:
        return {}
    if run.predictions is not None:
        found = run.predictions
        return scores(found.logits, found.labels, found.classes, run.bundle.temperature)
    recorded = run.bundle.metrics
    try:
        shown = [recorded[name] for name in ("ece", "ece_uncalibrated") if "ece" in recorded]
        shown += [figure for _, *figures in classes_table(recorded) for figure in figures]
        sum(shown)  # They are numbers.
        confused_pairs(recorded, run.bundle.classes)
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError):
        raise DataError(
            f"metrics of {RECORD} must be those that a search writes. Received: others",
            f"Without {PREDICTIONS_FILE} they are all there is of the winner.",
        ) from None
    return recorded


def classes_table(figures: Mapping[str, Any]) -> list[tuple[str, float, float, int]]:
    """(class, precision, recall, photos) of each class, those of lowest recall first."""
    rows = [(name, row["precision"], row["recall"], row["n"]) for name, row in figures.get("per_class", {}).items()]
    return sorted(rows, key=lambda row: (row[2], row[1]))


def confused_pairs(figures: Mapping[str, Any], classes: tuple[str, ...]) -> list[tuple[str, str, int, float]]:
    """(true class, answer, photos, share of the true class), the most frequent mistakes first."""
    mistaken = figures.get("mistaken", [])
    if "confusion" in figures:
        matrix = np.array(figures["confusion"])
        off = [(i, j) for i, j in zip(*np.nonzero(matrix), strict=True) if i != j]
        mistaken = [(classes[i], classes[j], int(matrix[i, j])) for i, j in off]
    seen = figures.get("per_class", {})
    wrong = [(true, answer, count, count / seen[true]["n"]) for true, answer, count in mistaken]
    return sorted(wrong, key=lambda pair: (-pair[2], -pair[3], pair[:2]))[:MAX_PAIRS]


@dataclass(frozen=True)
class ChosenPhoto:
    """A photo that the page shows, and what the winner said about it."""

    path: str
    sha256: str
    label: str
    answer: str
    confidence: float
    label_probability: float


def worst_mistakes(found: Predictions, temperature: float, count: int) -> list[ChosenPhoto]:
    """The wrong answers that the winner was surest of."""
    shares = found.probabilities(temperature)
    wrong = np.flatnonzero(shares.argmax(axis=1) != found.labels)
    return _chosen(found, shares, wrong[np.argsort(-shares[wrong].max(axis=1), kind="stable")][:count])


def least_sure(found: Predictions, temperature: float, count: int) -> list[ChosenPhoto]:
    """The answers, right or wrong, that the winner was least sure of."""
    shares = found.probabilities(temperature)
    return _chosen(found, shares, np.argsort(shares.max(axis=1), kind="stable")[:count])


def _chosen(found: Predictions, shares: NDArray[np.float32], places: NDArray[np.int64]) -> list[ChosenPhoto]:
    chosen = []
    for i in map(int, places):
        label, answer = int(found.labels[i]), int(shares[i].argmax())
        chosen.append(
            ChosenPhoto(
                path=found.paths[i],
                sha256=found.sha256[i],
                label=found.classes[label],
                answer=found.classes[answer],
                confidence=float(shares[i, answer]),
                label_probability=float(shares[i, label]),
            )
        )
    return chosen
