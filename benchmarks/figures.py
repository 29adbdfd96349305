"""How a figure is taken, what it says and how it is printed."""

import gc
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Final

_WIDTHS: Final = (66, 10, 10, 5, 8, 7, 5)
_FEW: Final = 0.01  # smaller ratios are shown with the digits that they have


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One ratio: what we take to what our bare counterpart takes."""

    name: str
    ours: float
    bare: float
    unit: str = "s"
    bound: float | None = None  # the largest ratio that holds; None: the figure is only shown

    @property
    def ratio(self) -> float:
        """Ours to bare."""
        return self.ours / self.bare

    @property
    def held(self) -> bool:
        """Whether the ratio is within its bound."""
        return self.bound is None or self.ratio <= self.bound

    def __str__(self) -> str:
        """A line of the table."""
        values = (_shown(self.ours), _shown(self.bare), self.unit, _shown(self.ratio))
        if self.bound is None:
            return _line(self.name, *values)
        return _line(self.name, *values, _shown(self.bound), "yes" if self.held else "NO")


def heading() -> str:
    """The first lines of the table."""
    titles = _line("figure", "ours", "bare", "", "ratio", "bound", "held")
    return f"{titles}\n{'-' * len(titles)}"


def interleaved(*sides: Callable[[], float], repetitions: int, warm_up: bool = True) -> list[float]:
    """Runs all sides in turn, `repetitions` times and, to warm up, once before.

    Returns:
        For each side the median of the values that it returned.
    """
    for side in sides if warm_up else ():
        side()
    rounds = [[side() for side in sides] for _ in range(repetitions)]
    return [median(values) for values in zip(*rounds, strict=True)]


def seconds(
    work: Callable[[], object], clock: Callable[[], float] = time.perf_counter
) -> Callable[[], float]:
    """The same work, returning how long it took by a clock."""

    def timed() -> float:
        start = clock()
        work()
        return clock() - start

    return timed


def peak(work: Callable[[], object]) -> float:
    """What Python holds at most during some work, in MiB."""
    gc.collect()  # what was left in cycles before would be counted, or not
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()


Figures = Iterator[Figure]


def _shown(value: float) -> str:
    return f"{value:.2g}" if 0 < abs(value) < _FEW else f"{value:,.3f}".rstrip("0").rstrip(".")


def _line(*cells: str) -> str:
    first, *rest = zip(cells, _WIDTHS, strict=False)
    return " ".join([f"{first[0]:<{first[1]}}", *(f"{cell:>{width}}" for cell, width in rest)])
