"""What a search varies: for each parameter the values of a grid, or a range that is drawn from.

learning_rate: [0.001, 0.01]             each value, with each of every other parameter
learning_rate: {loguniform: [1e-5, 0.1]} drawn anew for each of `num_samples` trials
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

# Kind -> how many numbers it takes, whether it gives whole numbers, and what they are.
KINDS = {
    "uniform": (2, False, "[lowest, highest]"),
    "loguniform": (2, False, "[lowest, highest]"),
    "quniform": (3, None, "[lowest, highest, step]"),
    "randint": (2, True, "[lowest, highest], both included"),
    "lograndint": (2, True, "[lowest, highest], both included"),
}
_MOST_STEPS = 2**63  # numpy draws whole numbers of 64 bits.


@dataclass(frozen=True)
class Range:
    """A range of a parameter.

    Arguments:
        kind: `uniform`: each value alike; `loguniform`: each factor alike; `quniform`: each multiple of `step` alike;
            `randint` and `lograndint`: the same of whole numbers.
        low, high: the ends, both included.
        step: of `quniform`.

    Raises:
        ValueError: says what the numbers must be.
    """

    kind: str
    low: float
    high: float
    step: float = 0.0

    def __post_init__(self) -> None:
        if not -math.inf < self.low < self.high < math.inf:
            raise ValueError(f"the ends of {self.kind} must be finite, the lower one first")
        if self.kind.startswith("log") and self.low <= 0:
            raise ValueError(f"the ends of {self.kind} must be over 0")
        if self.kind == "quniform" and not 0 < self.step <= self.high - self.low:
            raise ValueError("the step of quniform must be over 0 and at most what lies between its ends")
        if self.kind in ("randint", "quniform") and not max(-self.low, self.high) / (self.step or 1) < _MOST_STEPS:
            raise ValueError(f"the ends of {self.kind} must be less than 2**63 {'steps ' * bool(self.step)}from 0")

    def draw(self, random: np.random.Generator) -> float:
        """One value."""
        low, high = self.low, self.high
        if self.kind == "uniform":
            return float(random.uniform(low, high))
        if self.kind == "loguniform":
            return _within(math.exp(random.uniform(math.log(low), math.log(high))), low, high)
        if self.kind == "quniform":
            first, last = math.ceil(low / self.step - 1e-9), math.floor(high / self.step + 1e-9)
            value = int(random.integers(first, last, endpoint=True)) * self.step
            return round(value, 12)  # 0.30000000000000004 is no multiple that anyone would name.
        if self.kind == "randint":
            return int(random.integers(int(low), int(high), endpoint=True))
        # Each whole number has the share of the factors that round down to it.
        return int(_within(math.floor(math.exp(random.uniform(math.log(low), math.log(high + 1)))), low, high))

    def to_json(self) -> dict[str, list[float]]:
        """As it is written in a settings file."""
        return {self.kind: [self.low, self.high, *([self.step] if self.step else [])]}


Choice: TypeAlias = tuple[Any, ...] | Range


def parse_choice(given: Any, whole: bool) -> Choice:
    """Values or a range out of what a person wrote: a number, a list, or a mapping of one kind to its numbers.

    Arguments:
        whole: the parameter takes whole numbers alone.

    Raises:
        ValueError: says what was expected; the caller names the parameter and what came.
    """
    if isinstance(given, Range):
        return given
    if isinstance(given, Mapping):
        return _range(given, whole)
    if isinstance(given, str) or not isinstance(given, Sequence):
        given = (given,)
    values = tuple(number(value, whole) for value in given)
    if not values or len(set(values)) != len(values):
        raise ValueError("must be one or more values, each once")
    return values


def number(value: Any, whole: bool) -> Any:
    """A number out of a YAML value: YAML 1.1 takes 1e-3 for text.

    Raises:
        ValueError: it is none.
    """
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError
        if not whole:
            return float(value)
        if float(value) != int(float(value)):
            raise ValueError
        return int(float(value))
    except (ValueError, OverflowError):
        raise ValueError(f"input should be a valid {'integer' if whole else 'number'}, a list or a range") from None


def _range(given: Mapping[Any, Any], whole: bool) -> Range:
    known = [kind for kind, (_, integral, _) in KINDS.items() if integral is None or integral == whole]
    if len(given) != 1 or next(iter(given)) not in known:
        raise ValueError(f"a range must be one of {', '.join(known)}, with its numbers")
    ((kind, numbers),) = given.items()
    count, _, form = KINDS[kind]
    if not isinstance(numbers, Sequence) or isinstance(numbers, str) or len(numbers) != count:
        raise ValueError(f"{kind} needs {form}")
    return Range(kind, *(number(each, whole) for each in numbers))


def _within(value: float, low: float, high: float) -> float:
    """Rounding must not lead out of the range."""
    return min(max(value, low), high)
