"""What a tick leaves to the next one about the groups that AMS refills."""

from dagster_amoro.core.looks import Look
from dagster_amoro.stores.ledger import Ledger
from tests.integration.stores.helpers import HOSTILE

OLD, NEW, NEWER = "2026-03-01 11:00:00", "2026-03-01 11:30:00.000001", "2026-03-01 11:45:00"


def move(ledger: Ledger, before: Look | None, after: Look) -> None:
    """In a transaction of its own."""
    with ledger.transaction() as transaction:
        transaction.move_look(before, after)


def test_a_look_comes_back_as_it_was_written(ledger: Ledger) -> None:
    """Each by the name of its group, exactly."""
    written = {name: Look(name, NEW, number) for number, name in enumerate(HOSTILE)}
    assert ledger.looks() == {}
    for each in written.values():
        move(ledger, None, each)
    assert ledger.looks() == written


def test_a_look_is_moved_from_where_it_is_expected(ledger: Ledger) -> None:
    """Of two ticks side by side, the one that read it last has it."""
    first, second = Look("g", OLD), Look("g", NEW, 2)
    move(ledger, None, first)
    move(ledger, None, Look("g", NEWER))
    move(ledger, second, Look("g", NEWER))
    move(ledger, Look("h", OLD), Look("h", NEW))
    assert ledger.looks() == {"g": first}
    move(ledger, first, second)
    move(ledger, first, Look("g", NEWER))
    assert ledger.looks() == {"g": second}


def test_a_look_is_forgotten_as_it_is_expected(ledger: Ledger) -> None:
    """Not where another tick has seen something else meanwhile."""
    first, second = Look("g", OLD), Look("g", NEW, 2)
    move(ledger, None, second)
    move(ledger, None, Look("h", OLD))
    with ledger.transaction() as transaction:
        transaction.forget_look(first)
    assert ledger.looks() == {"g": second, "h": Look("h", OLD)}
    with ledger.transaction() as transaction:
        transaction.forget_look(second)
    assert ledger.looks() == {"h": Look("h", OLD)}
