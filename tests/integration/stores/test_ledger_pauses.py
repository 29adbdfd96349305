"""What operators paused."""

from datetime import timedelta

from dagster_amoro.core.pauses import EVERYTHING, Scope, Target
from dagster_amoro.stores.ledger import Ledger
from tests.integration.stores.helpers import HOSTILE, NOW, ODD_TEXT, a_pause, add_pause


def test_a_pause_comes_back_as_it_was_written(ledger: Ledger) -> None:
    """Of everything, a group and a resource; with an end and without, whatever was said."""
    pauses = [
        a_pause(target=EVERYTHING, reason=ODD_TEXT, author=ODD_TEXT, until=None),
        a_pause(target=Target(scope=Scope.GROUP, name="r-1")),
        a_pause(),
        *(a_pause(name, reason=name, author=name) for name in HOSTILE),
        a_pause(until=NOW - timedelta(days=1), target=Target(scope=Scope.GROUP, name="over")),
    ]
    for each in pauses:
        add_pause(ledger, each)
    assert ledger.pauses() == pauses


def test_a_target_is_paused_once(ledger: Ledger) -> None:
    """The newer pause takes the place of the older one; others, though alike, stay."""
    names = ["worker", "Worker", "worker ", "wörker"]
    for name in names:
        add_pause(ledger, a_pause(name))
    newer = a_pause("worker", reason="longer", until=None)
    add_pause(ledger, newer)
    assert sorted(ledger.pauses(), key=str) == sorted([newer, *map(a_pause, names[1:])], key=str)


def test_a_pause_is_ended_once(ledger: Ledger) -> None:
    """The second time there is nothing to end, and others stay."""
    group = a_pause(target=Target(scope=Scope.GROUP, name="r-1"))
    for each in (group, a_pause()):
        add_pause(ledger, each)
    with ledger.transaction() as transaction:
        assert [transaction.end_pause(a_pause().target) for _ in range(2)] == [True, False]
        assert not transaction.end_pause(EVERYTHING)
    assert ledger.pauses() == [group]
