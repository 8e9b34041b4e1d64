"""Work on many items by a pool of threads, in memory that does not grow with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

_IN_FLIGHT = 256  # Results that wait at most: enough to keep every core busy.
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def few_at_a_time(
    pool: ThreadPoolExecutor, work: Callable[[_Item], _Result], items: Iterable[_Item]
) -> Iterator[_Result]:
    """`pool.map`, which takes kilobytes for each item that waits, in pieces.

    What `work` raises, or Ctrl-C, ends it when the piece is done.
    """
    waiting = iter(items)
    while chunk := list(islice(waiting, _IN_FLIGHT)):
        yield from pool.map(work, chunk)
