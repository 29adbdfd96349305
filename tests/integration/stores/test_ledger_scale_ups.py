"""Rounds in which groups are brought to their min-parallelism."""

import pytest
import sqlalchemy as sa

from dagster_amoro.core.model import ScaleUpState
from dagster_amoro.stores import schema
from dagster_amoro.stores.ledger import Ledger
from tests.integration.stores.helpers import (
    HOSTILE,
    NOW,
    ODD_TEXT,
    UNTIL,
    a_scale_up,
    execute,
    move_scale_up,
)
from tests.integration.stores.racing import Racers


def test_a_scale_up_comes_back_as_it_was_written(ledger: Ledger) -> None:
    """Every field of it, by the name of its group."""
    full = a_scale_up(
        group_name=ODD_TEXT,
        state=ScaleUpState.FAILED,
        claimed_by="run",
        claimed_until=UNTIL,
        next_at=NOW,
        last_error=ODD_TEXT,
        fence=7,
        version=3,
    )
    assert ledger.scale_ups() == {}
    for each in (full, a_scale_up(), *(a_scale_up(group_name=name) for name in HOSTILE)):
        assert move_scale_up(ledger, None, each)
    kept = {name: a_scale_up(group_name=name) for name in HOSTILE}
    assert ledger.scale_ups() == {ODD_TEXT: full, "g": a_scale_up(), **kept}


def test_a_scale_up_is_moved_from_where_it_is_expected(ledger: Ledger) -> None:
    """Whoever saw it earlier, or believes that there is none, writes nothing."""
    first = a_scale_up()
    second = first.evolve(state=ScaleUpState.STARTED)
    assert move_scale_up(ledger, None, first)
    assert not move_scale_up(ledger, None, a_scale_up(resource_id="another"))
    assert ledger.scale_ups() == {"g": first}
    assert move_scale_up(ledger, first, second)
    assert not move_scale_up(ledger, first, first.evolve(state=ScaleUpState.FAILED))
    assert not move_scale_up(ledger, a_scale_up(group_name="h"), a_scale_up(group_name="h"))
    assert ledger.scale_ups() == {"g": second}


def test_a_scale_up_is_forgotten_as_it_is_expected(ledger: Ledger) -> None:
    """Not if it went on meanwhile, and not twice; then the group can begin anew."""
    first = a_scale_up()
    second = first.evolve(state=ScaleUpState.STARTED)
    move_scale_up(ledger, None, first)
    move_scale_up(ledger, first, second)
    move_scale_up(ledger, None, a_scale_up(group_name="h"))
    with ledger.transaction() as transaction:
        found = [transaction.forget_scale_up(each) for each in (first, second, second)]
    assert found == [False, True, False]
    assert ledger.scale_ups() == {"h": a_scale_up(group_name="h")}
    assert move_scale_up(ledger, None, first)


@pytest.mark.long
@pytest.mark.parametrize("action", ["scale_up", "scale_up_again"])
def test_exactly_one_of_two_processes_begins_a_scale_up(
    ledger: Ledger, database_url: sa.URL, racers: Racers, action: str
) -> None:
    """The other one sees that it lost."""
    ledger.open_incidents()
    for number in range(3):
        if action == "scale_up_again" and not number:
            move_scale_up(ledger, None, a_scale_up())
        assert sorted(map(str, racers.race(action, database_url))) == ["False", "True"]
        (moved,) = ledger.scale_ups().values()
        assert moved.version == (number + 1 if action == "scale_up_again" else 0)
        if action == "scale_up":
            execute(ledger.database, sa.delete(schema.scale_up))


def test_exactly_one_of_two_processes_takes_the_lease(
    ledger: Ledger, database_url: sa.URL, racers: Racers
) -> None:
    """When nobody ever had it, and when it ran out; the other one is told who has it."""
    ledger.open_incidents()
    for fence in range(1, 4):
        first, second = racers.race("lease", database_url)
        assert isinstance(first, list)
        assert isinstance(second, list)
        assert first[:2] == second[:2] == [first[0], fence]
        assert sorted([first[2], second[2]]) == [False, True]
        execute(ledger.database, sa.update(schema.lease).values(expires_at=NOW))
