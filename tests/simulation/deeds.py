"""What can happen in a history, how often, and with which arguments."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from tests.simulation.actors import StartOutcome

if TYPE_CHECKING:
    from tests.simulation.history import History


class Mishap(Enum):
    """What Dagster can do to a run."""

    ENDED = auto()  # cancelled in the queue, seen dead, or ended by force while it lives on
    DELETED = auto()  # or never there: the daemon died before it had made it
    EXECUTED_AGAIN = auto()  # with its key and another id


class Act(Enum):
    """What an operator can do to a resource.

    Whatever else was meant, a broken one is mended and one that is gone is declared again.
    """

    EDIT = auto()
    BREAK = auto()
    REMOVE = auto()


WHICH: Final = range(6)  # of the things there are, counted round


BOTH: Final = (False, True)


MOSTLY: Final = (True, True, True, False)


OUTCOMES: Final = (*[StartOutcome.STARTS] * 6, *StartOutcome)


@dataclass(frozen=True)
class Possibility:
    """Something that can happen in a history."""

    weight: Callable[["History"], int]  # how often, compared to others; 0: it cannot happen now
    options: Mapping[str, Sequence[Any]]  # what it can happen with, the simplest first


POSSIBILITIES: Final[dict[str, Possibility]] = {}


def _always(_: "History") -> bool:
    return True


_Method = TypeVar("_Method", bound=Callable[..., None])


def can_happen(
    idle: int,
    busy: int,
    when: Callable[["History"], object] = _always,
    **options: Sequence[Any],
) -> Callable[[_Method], _Method]:
    """Makes a method of `History` one of the things that can happen.

    Args:
        idle: How often, compared to others, when nobody is at work.
        busy: How often when a tick or a run is under way.
        when: Where it can happen at all.
        options: What it can happen with.
    """

    def registered(method: _Method) -> _Method:
        def weight(history: "History") -> int:
            return (busy if history.awake() else idle) if when(history) else 0

        POSSIBILITIES[method.__name__] = Possibility(weight, options)
        return method

    return registered


class Deed(NamedTuple):
    """Something that happened, and with what; what there is none of is left out."""

    name: str
    arguments: dict[str, Any]

    def __repr__(self) -> str:
        arguments = ", ".join(f"{key}={_shown(value)}" for key, value in self.arguments.items())
        return f"Deed({self.name!r}, dict({arguments}))"


def _shown(value: object) -> str:
    return str(value) if isinstance(value, Enum) else repr(value)
