"""Plays histories: those that are told, and those that are made up by chance."""

import random
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from tests.simulation.databases import Stores
from tests.simulation.deeds import POSSIBILITIES, Deed
from tests.simulation.history import History

LENGTH: Final = 60  # deeds of a history


Source = Callable[[History], Iterable[Deed]]
"""What happens, given what has happened so far."""


def simulate(stores: Stores, source: Source) -> tuple[list[Deed], Exception | None]:
    """Plays a history; returns what happened in it, and how it broke a rule if it did."""
    history = History(stores)
    happened: list[Deed] = []
    try:
        for deed in source(history):
            if not happened or POSSIBILITIES[deed.name].weight(history):
                happened.append(deed)
                getattr(history, deed.name)(**deed.arguments)
                history.rules_hold()
        history.ends()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is shown with its history
        return happened, error
    finally:
        history.clear()
    return happened, None


def invented(chance: random.Random) -> Source:
    """A history of its own for each state of the random number generator."""

    def deeds(history: History) -> Iterator[Deed]:
        mood = {name: chance.choice([0, 1, 1, 3]) for name in POSSIBILITIES}
        yield _any("begins", chance)
        for _ in range(LENGTH):
            usual = {name: what.weight(history) for name, what in POSSIBILITIES.items()}
            weights = {name: weight * mood[name] for name, weight in usual.items()}
            weights = weights if any(weights.values()) else usual
            (name,) = chance.choices(list(weights), list(weights.values()))
            yield _any(name, chance)

    return deeds


def _any(name: str, chance: random.Random) -> Deed:
    options = POSSIBILITIES[name].options
    return Deed(name, {key: chance.choice(values) for key, values in options.items()})
