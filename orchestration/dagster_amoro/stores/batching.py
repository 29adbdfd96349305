"""How do many threads write what they want in few transactions?"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


@dataclass
class _Order(Generic[T, R]):
    """What one thread wants, and what came of it."""

    item: T
    results: list[R] = field(default_factory=list)  # one, once it is done
    error: BaseException | None = None


class Batches(Generic[T, R]):
    """Does what several threads want at once in one go.

    A thread that finds nobody at work takes what all others are waiting for with its own. Alone, it
    waits for nobody. A database that is written by one thread at a time is not fought for.
    """

    def __init__(self, work: Callable[[Sequence[T]], Sequence[R]]) -> None:
        """`work` does several things and returns a result for each."""
        self._work: Final = work
        self._working: Final = threading.Lock()
        self._waiting: Final[list[_Order[T, R]]] = []  # added to and emptied in single steps

    def do(self, item: T) -> R:
        """The result of one item; raises what `work` raises for it and those it came with."""
        order = _Order[T, R](item)
        self._waiting.append(order)
        with self._working:
            if not order.results and order.error is None:
                batch = self._waiting[:]
                del self._waiting[: len(batch)]
                self._complete(batch)
        if order.error is not None:
            raise order.error
        return order.results[0]

    def _complete(self, batch: Sequence[_Order[T, R]]) -> None:
        try:
            for order, result in zip(batch, self._work([o.item for o in batch]), strict=True):
                order.results.append(result)
        except BaseException as error:  # noqa: BLE001 - it is raised where it belongs
            for order in batch:  # not tried one by one: nobody knows whether it was committed
                order.error = error
