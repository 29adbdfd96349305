"""Cuts a history that broke a rule down to the deeds that it takes."""

import re
import traceback
from collections.abc import Iterator
from itertools import combinations
from typing import Final

from tests.simulation.databases import Stores
from tests.simulation.deeds import POSSIBILITIES, Deed
from tests.simulation.playing import simulate

FEW: Final = 25  # deeds, of which every pair is tried to be left out


def shortest(stores: Stores, deeds: list[Deed], error: Exception) -> tuple[list[Deed], Exception]:
    """The history without what can be left out or be simpler, and still with the same end."""
    rule = _rule(error)
    progress = True
    while progress:
        progress = False
        for simpler in (_with_less, _without_two, _with_simpler_arguments):
            for candidate in simpler(deeds):
                happened, found = simulate(stores, lambda _, told=candidate: told)  # type: ignore[misc]
                if found is not None and _rule(found) == rule and happened != deeds:
                    deeds, error, progress = happened, found, True
                    break
    return deeds, error


def _with_less(deeds: list[Deed]) -> Iterator[list[Deed]]:
    """Without some deeds in a row, as many as possible; the beginning stays."""
    size = len(deeds) // 2
    while size:
        for at in range(1, len(deeds), size):
            yield deeds[:at] + deeds[at + size :]
        size //= 2


def _without_two(deeds: list[Deed]) -> Iterator[list[Deed]]:
    """Without two deeds of which one undoes the other."""
    for one, two in combinations(range(1, len(deeds)), 2) if len(deeds) <= FEW else ():
        yield [deed for at, deed in enumerate(deeds) if at not in {one, two}]


def _with_simpler_arguments(deeds: list[Deed]) -> Iterator[list[Deed]]:
    """With one argument of one deed that is simpler, the simplest first."""
    for at, deed in enumerate(deeds):
        for key, value in deed.arguments.items():
            options = POSSIBILITIES[deed.name].options[key]
            for option in options[: options.index(value)]:
                simpler = deed._replace(arguments={**deed.arguments, key: option})
                yield [*deeds[:at], simpler, *deeds[at + 1 :]]


def _rule(error: Exception) -> tuple[object, ...]:
    """Which rule was broken: what was raised, where, and how its message begins."""
    frames = traceback.extract_tb(error.__traceback__)
    message = re.sub(r"\d+", "", str(error))[:40]
    return type(error), frames[-1].filename, frames[-1].lineno, message
