"""Long random histories of a fleet: whatever happens in whatever order, the rules hold.

README.md beside this file says how to read a failure and how to play it again. More histories
than by default, or others:

    DAGSTER_AMORO_HISTORIES=20000 DAGSTER_AMORO_SEED=1000 pytest tests/simulation
"""

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.simulation.databases import Stores
from tests.simulation.known import KNOWN
from tests.simulation.playing import invented, simulate
from tests.simulation.shrinking import shortest

HISTORIES: Final = int(os.environ.get("DAGSTER_AMORO_HISTORIES", "300"))
SEED: Final = int(os.environ.get("DAGSTER_AMORO_SEED", "0"))
AT_ONCE: Final = 30  # histories of one test; several tests can run side by side
# The first ones are the developer's, the others are left to `make test-all`.
SEEDS: Final = [
    pytest.param(range(first, min(first + AT_ONCE, SEED + HISTORIES)), id=f"from {first}")
    for first in range(SEED, SEED + HISTORIES, AT_ONCE)
]


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[Stores]:
    """A database file with all tables."""
    found = Stores(tmp_path / "fleet.db")
    yield found
    found.close()


@pytest.mark.parametrize("name", KNOWN)
def test_what_broke_a_rule_once_does_not_do_so_again(name: str, stores: Stores) -> None:
    """A known history happens just as it is told, and breaks no rule."""
    happened, error = simulate(stores, lambda _: KNOWN[name])
    if error is not None:
        raise error
    assert happened == KNOWN[name]


@pytest.mark.long
@pytest.mark.parametrize("seeds", SEEDS)
def test_whatever_happens_the_rules_hold(seeds: range, stores: Stores) -> None:
    """No history breaks a rule, and when the world goes quiet nothing is stuck."""
    for seed in seeds:
        deeds, error = simulate(stores, invented(random.Random(seed)))  # noqa: S311 - no secret
        if error is not None:
            deeds, error = shortest(stores, deeds, error)
            shown = "".join(f"    {deed},\n" for deed in deeds)
            raise AssertionError(f"history {seed}: {error}\n[\n{shown}]") from error
