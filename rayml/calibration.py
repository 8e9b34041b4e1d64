"""Temperature scaling: one number that makes the confidences honest and leaves every label as it was."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from rayml.metrics import cross_entropy

# A head that needs more than these is not badly calibrated but broken, or was scored on too few pictures. They also
# keep the answer finite where none exists: all right pushes the best temperature to 0, all wrong to infinity.
MIN_TEMPERATURE = 0.05
MAX_TEMPERATURE = 20.0


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """The temperature T that minimises the cross-entropy of `softmax(logits / T)` (Guo et al. 2017, ICML, section 4.2).

    The loss is convex in 1/T, hence has one minimum in log T, which a bounded Brent search
    (`scipy.optimize.minimize_scalar`) finds. Fitted on pictures that the head was not trained on.

    Arguments:
        logits: (N, C), finite, N >= 1.
        labels: (N,), the true classes' positions 0..C-1.

    Returns:
        `MIN_TEMPERATURE`..`MAX_TEMPERATURE`: above 1 for an overconfident head, below 1 for a timid one. An optimum
        outside is cut to the bound. Exactly 1.0 where temperature changes nothing: one class, or equal logits in
        every row.

    Raises:
        ValueError: the shapes do not belong together, a label is not one of the classes, or a logit is not finite.
    """
    from scipy.optimize import minimize_scalar  # half a second and 50 MB that only a search's end needs

    values = np.asarray(logits, np.float64)
    cross_entropy(values, labels)  # The shapes and labels are checked there.
    if not np.isfinite(values).all():
        raise ValueError("logits must be finite numbers. Received: NaN or infinity among them")
    if np.ptp(values, axis=-1).max() == 0:
        return 1.0

    def loss(log_temperature: float) -> float:
        return cross_entropy(values / math.exp(log_temperature), labels)

    bounds = (math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE))
    found = minimize_scalar(loss, bounds=bounds, args=(), method="bounded", options={"xatol": 1e-6})
    # The bounded search never lands on a bound itself: where a bound is better, it is the answer.
    best = min((float(found.x), *bounds), key=loss)
    return float(min(max(math.exp(best), MIN_TEMPERATURE), MAX_TEMPERATURE))
