"""The page's plots, drawn by Matplotlib. Only numbers and rayml's own words are drawn: names stand in the HTML."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from rayml.metrics import reliability, wilson_interval
from rayml.predictions import Predictions
from rayml.report.facts import status_words
from rayml.report.run import Run, Trial
from rayml.report.svg import GRID, INK, MUTED, PAPER, SERIES, WRONG, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BINS = 15  # as in metrics.expected_calibration_error
# Colours of Okabe and Ito, told apart by the colour-blind; the dashes tell them apart without any colour.
DASHES = ("none", "7 2.5", "2 2", "8 2 2 2", "4 4", "10 3 2 3 2 3", "1 3")
_STYLE: dict[str, Any] = {
    "font.size": 9.5,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "text.color": INK,
    "lines.linewidth": 1.8,
    "lines.dash_capstyle": "butt",
}


P = ParamSpec("P")
T = TypeVar("T")


def _styled(draw: Callable[P, T]) -> Callable[P, T]:
    """Draw in rayml's style, whatever the user's matplotlibrc says."""

    @functools.wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> T:
        logging.getLogger("matplotlib").setLevel(logging.ERROR)  # It says when it lists the fonts, once a machine.
        from matplotlib import style

        with style.context(["default", _STYLE]):
            return draw(*args, **kwargs)

    return styled


@dataclass(frozen=True)
class Panel:
    """The learning curves of the trials of one size."""

    size_inner: int
    svg: str


@_styled
def learning_curves(run: Run, rates: Sequence[float]) -> list[Panel]:
    """A panel for each size with a line for each learning rate, all on the same scale."""
    reached = [epoch.val_accuracy for trial in run.trials for epoch in trial.epochs]
    if not reached:
        return []
    epochs = max(int(run.record.get("settings", {}).get("epochs", 1)), *(len(trial.epochs) for trial in run.trials))
    low, high = min(reached), max(reached)
    room = max(high - low, 0.02) * 0.08
    panels = []
    for size in sorted({trial.size_inner for trial in run.trials}):
        here = [trial for trial in run.trials if trial.size_inner == size and trial.epochs]
        figure, axes = _figure(4.2, 3.3)
        titles = {}
        for trial in here:
            titles[_gid(trial)] = _curve(axes, trial, rates.index(trial.learning_rate), leads=trial is run.leader)
        axes.set(xlim=(0.7, epochs + 0.5), ylim=(low - room, high + room), xlabel="epoch", ylabel="validation accuracy")
        _whole_epochs(axes, epochs)
        axes.set_title(f"size_inner {size}")
        words = "; ".join(titles.values()) or "no epoch yet"
        description = f"Validation accuracy by epoch, size_inner {size}: {words}."
        panels.append(Panel(size, to_svg(figure, f"curves-{size}", description, titles)))
    return panels


def _curve(axes: Axes, trial: Trial, place: int, *, leads: bool) -> str:
    """One trial's line, and what is to be said about it."""
    best = trial.best
    assert best is not None
    colour, dash = SERIES[place % len(SERIES)], DASHES[place % len(DASHES)]
    pattern: Any = "solid" if dash == "none" else (0, [float(x) / (2.6 if leads else 1.8) for x in dash.split()])
    x, y = [epoch.number for epoch in trial.epochs], [epoch.val_accuracy for epoch in trial.epochs]
    axes.plot(x, y, color=colour, linestyle=pattern, linewidth=2.6 if leads else 1.8, gid=_gid(trial),
              zorder=3 if leads else 2)  # fmt: skip
    if trial.status in ("stopped", "failed"):
        axes.plot(x[-1:], y[-1:], marker="X", markersize=9, color=WRONG, markeredgecolor=PAPER, linestyle="none")
    else:
        axes.plot(x[-1:], y[-1:], marker="o", markersize=4, color=colour, linestyle="none")
    if leads:
        axes.plot([best.number], [best.val_accuracy], marker="o", markersize=10, markerfacecolor="none",
                  markeredgecolor=INK, markeredgewidth=1.6, linestyle="none")  # fmt: skip
    return (
        f"learning rate {trial.learning_rate:g}: best {best.val_accuracy:.3f} at epoch {best.number}, "
        f"{status_words(trial)}"
    )


@_styled
def winner_curves(trial: Trial) -> str:
    """The winner's accuracy and loss in training and in validation, one below the other."""
    figure, (accuracy, loss) = _figure(5.2, 5.0, heights=(1, 1))
    x = [epoch.number for epoch in trial.epochs]
    best = trial.best
    assert best is not None
    for axes, name, training, validation in (
        (accuracy, "accuracy", [e.accuracy for e in trial.epochs], [e.val_accuracy for e in trial.epochs]),
        (loss, "loss", [e.loss for e in trial.epochs], [e.val_loss for e in trial.epochs]),
    ):
        axes.plot(x, training, color=SERIES[1], linestyle=(0, (3, 1.5)), label="training")
        axes.plot(x, validation, color=SERIES[0], label="validation")
        axes.axvline(best.number, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
        axes.set(xlim=(min(x) - 0.3, max(x) + 0.3))
        axes.set_title(name)
        axes.legend(frameon=False, loc="best", labelcolor=INK)
        _whole_epochs(axes, max(x))
    loss.set_xlabel("epoch")
    last = trial.epochs[-1]
    return to_svg(
        figure,
        "winner",
        f"The winner's curves over {len(x)} epochs. Accuracy ends at {last.accuracy:.3f} in training and "
        f"{last.val_accuracy:.3f} in validation, loss at {last.loss:.3f} and {last.val_loss:.3f}. The dotted line is "
        f"epoch {best.number}, whose weights were taken.",
    )


@_styled
def calibration(found: Predictions, temperature: float) -> str:
    """Reliability before and after the temperature, and below it how many photos had which confidence."""
    figure, (upper, lower) = _figure(5.2, 5.0, heights=(3, 1))
    upper.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (2, 2)))
    shares = found.probabilities(temperature)
    drawn = (
        (found.probabilities(1.0), "before", {"color": SERIES[1], "marker": "s", "linestyle": (0, (3, 1.5))}),
        (shares, "after the temperature", {"color": SERIES[0], "marker": "o", "linestyle": "solid"}),
    )
    said = []
    for probabilities, name, look in drawn:
        counts, confidence, right = reliability(probabilities, found.labels, BINS)
        filled = counts > 0
        upper.plot(confidence[filled], right[filled], markersize=4.5, label=name, **look)
        said.append(f"{name}: " + ", ".join(_points(counts, confidence, right)))
    reach = [wilson_interval(round(share * n), n) for n, share in zip(counts[filled], right[filled], strict=True)]
    upper.vlines(confidence[filled], *zip(*reach, strict=True), color=SERIES[0], linewidth=0.9, alpha=0.55)
    upper.set(xlim=(0, 1.02), ylim=(0, 1.03), ylabel="share that is right")
    upper.legend(frameon=False, loc="upper left", labelcolor=INK)
    correct = shares.argmax(axis=1) == found.labels
    highest = shares.max(axis=1)
    lower.hist(
        [highest[correct], highest[~correct]],
        bins=BINS,
        range=(0, 1),
        stacked=True,
        color=[SERIES[0], WRONG],
        label=["right", "wrong"],
        rwidth=0.9,
    )
    lower.set(xlim=(0, 1.02), xlabel="confidence", ylabel="photos")
    lower.legend(frameon=False, loc="upper left", labelcolor=INK)
    description = "Confidence against the share that is right, in bins. " + "; ".join(said) + "."
    return to_svg(figure, "calibration", description)


def _points(counts: NDArray[np.int64], confidence: NDArray[np.float64], right: NDArray[np.float64]) -> list[str]:
    rows = zip(counts.tolist(), confidence.tolist(), right.tolist(), strict=True)
    return [f"{sure:.2f} sure {share:.2f} right ({count} photos)" for count, sure, share in rows if count]


def _figure(width: float, height: float, heights: Sequence[float] = (1,)) -> Any:
    """A figure and its axes, below each other; without pyplot, which keeps figures alive and asks for a display."""
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout="constrained")
    return figure, figure.subplots(len(heights), height_ratios=heights)


def _whole_epochs(axes: Axes, epochs: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(min(epochs, 10), integer=True, min_n_ticks=1))


def _gid(trial: Trial) -> str:
    return f"trial-{trial.trial_id}"
