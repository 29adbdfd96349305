"""No statement on a ledger with a past reads a table, or an index, from end to end."""

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Final

import pytest
import sqlalchemy as sa

from benchmarks.ledgers import analyse, fill
from dagster_amoro.core import transitions
from dagster_amoro.core.model import State
from dagster_amoro.core.post_mortem import PostMortem
from dagster_amoro.stores import audit_queries
from dagster_amoro.stores import ledger as ledgers
from dagster_amoro.stores.ledger import Ledger, count_open
from dagster_amoro.stores.schema import event
from tests.helpers.plans import bounded
from tests.integration.stores.helpers import (
    NOW,
    UNTIL,
    a_pause,
    add_pause,
    claimed,
    detected,
    ended,
    execute,
    from_dry_run,
    opened,
)

RECENTLY: Final = NOW - timedelta(minutes=30)


def moved(ledger: Ledger) -> None:
    """Opens, moves and closes incidents, and loses races for both."""
    first = opened(ledger, "moved")
    step = transitions.claim(first, "run-2", UNTIL, NOW)
    with ledger.transaction() as transaction:
        (taken, _) = transaction.apply([step, detected("other")])
        assert taken is not None
        closing = transitions.close(taken, State.RECOVERED, "back", NOW)
        assert None not in transaction.apply([closing])
        assert transaction.apply([step, detected("other")]) == [None, None]


def audit(query: Callable[[], sa.Select[object]]) -> Callable[[Ledger], object]:
    """A query of the audit, as it is asked."""

    def ask(ledger: Ledger) -> object:
        with ledger.reading() as connection:
            return connection.execute(query()).all()

    return ask


def newest_event(ledger: Ledger) -> int:
    """The number of the newest event."""
    with ledger.reading() as connection:
        newest: int = connection.scalars(sa.select(sa.func.max(event.c.event_id))).one()
        return newest


CALLS: Final[Mapping[str, Callable[[Ledger], object]]] = {
    "open_incidents": lambda ledger: ledger.open_incidents(),
    "open_incidents of a group": lambda ledger: ledger.open_incidents("group-3"),
    "count_open": lambda ledger: count_open(ledger.database),
    "causeless": lambda ledger: ledger.causeless(["group-3", "group-4"], 100),
    "causeless of all": lambda ledger: ledger.causeless(None, 100),
    "note_causes": lambda ledger: ledger.note_causes({7: PostMortem("killed", "it was killed")}),
    "claimed_by": lambda ledger: ledger.claimed_by("run"),
    "open_incident": lambda ledger: ledger.open_incident("worker-3"),
    "incident": lambda ledger: ledger.incident(7),
    "newest_incident": lambda ledger: ledger.newest_incident("worker-3"),
    "recovered": lambda ledger: ledger.recovered(RECENTLY),
    "unstable": lambda ledger: ledger.unstable(RECENTLY),
    "last_removed": lambda ledger: ledger.last_removed("worker-3"),
    "removed_resources": lambda ledger: ledger.removed_resources(),
    "removed_of": lambda ledger: ledger.removed_of(["worker-3", "worker-4", "worker-5"]),
    "removed_in_dry_run": lambda ledger: ledger.removed_in_dry_run(),
    "removed_row": lambda ledger: ledger.removed_row(7),
    "events": lambda ledger: ledger.events(7),
    "changed_groups": lambda ledger: ledger.changed_groups(newest_event(ledger) - 100),
    "changed_groups up to an event": lambda ledger: ledger.changed_groups(
        newest_event(ledger) - 200, newest_event(ledger) - 100
    ),
    "changed_groups of a lost cursor": lambda ledger: ledger.changed_groups(0),
    "mark": lambda ledger: ledger.mark(7),
    "renew": lambda ledger: ledger.renew("run", UNTIL + timedelta(hours=1)),
    "moved": moved,
    "may_have_had": lambda ledger: audit_queries.may_have_had(ledger, "group-3", 31, NOW),
    "incident_history": audit(lambda: audit_queries.incident_history("group-3", (9_001, 9_900))),
    "event_history": audit(lambda: audit_queries.event_history("group-3", 9_000, 100)),
}


@pytest.fixture
def past(ledger: Ledger) -> Ledger:
    """A ledger with a past, and some incidents of each kind."""
    fill(ledger, 4_000, groups=20, over=timedelta(days=100), before=NOW)
    dry = from_dry_run(ledger)
    for number, outcome in enumerate((State.EXHAUSTED, State.SUPERSEDED, State.RECOVERED)):
        ended(ledger, f"ended-{number}", outcome)
        ended(dry, f"dry-{number}", outcome)
    opened(ledger, "worker-3", "group-3")
    claimed(ledger, "claimed")
    add_pause(ledger, a_pause())
    with ledger.database.writing() as connection:
        analyse(connection)
    return ledger


def test_every_statement_is_bounded_by_an_index(
    past: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the ledger and of what the audit asks of it, by the database's own plan."""
    monkeypatch.setattr(ledgers, "MOST_COUNTED", 1_000)
    found = {}
    for name, call in CALLS.items():
        try:
            with bounded(past.database):
                call(past)
        except AssertionError as error:
            found[name] = str(error)
    assert not found, "\n".join(f"{name}: {why}" for name, why in found.items())


def test_what_reads_all_is_found(past: Ledger) -> None:
    """The test's own test."""
    for statement in (
        sa.select(event.c.kind).where(event.c.message == "none"),
        sa.select(sa.func.count()).select_from(event),
        sa.update(event).where(event.c.message == "none").values(attempt=1),
    ):
        with pytest.raises(AssertionError, match="keeper_event"), bounded(past.database):
            execute(past.database, statement)
