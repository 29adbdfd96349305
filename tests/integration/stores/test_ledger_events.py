"""Events of incidents, of groups and of everything; times and texts of any kind."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING

import pytest

from dagster_amoro.core import transitions
from dagster_amoro.core.errors import StoreUnavailableError
from dagster_amoro.core.model import EventKind, State
from dagster_amoro.core.texts import harmless
from dagster_amoro.stores import audit_queries
from dagster_amoro.stores import ledger as ledgers
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro.stores.schema import event as event_table
from dagster_amoro.stores.schema import incident as incident_table
from tests.integration.stores.helpers import (
    NOW,
    ODD_TEXT,
    UNTIL,
    claimed,
    closed,
    detected,
    from_dry_run,
    note,
    opened,
    rows,
    taken,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import SettableClock


def test_events_are_told_in_the_order_of_writing(ledger: Ledger, clock: "SettableClock") -> None:
    """Not in that of their times, for clocks differ between hosts."""
    incident = taken(ledger, detected(at=clock()))
    kinds = [EventKind.DETECTED]
    for number in range(20):
        at = clock.advance(timedelta(seconds=-1))
        claim = transitions.claim(incident, f"run-{number}", UNTIL, at)
        back = transitions.give_back(claim.after, "not now", at)
        with ledger.transaction() as transaction:
            assert None not in transaction.apply([claim, back])
        incident = back.after
        kinds += [EventKind.CLAIMED, EventKind.GIVEN_BACK]
    events = ledger.events(incident.incident_id)
    assert [event.kind for event in events] == kinds
    assert [event.run_id for event in events[-2:]] == ["run-19", "run-19"]


def test_changed_groups_are_those_with_new_events(ledger: Ledger) -> None:
    """By kind and number, since an event; the answer says where to go on."""
    first = opened(ledger, "r-1", "a")
    opened(ledger, "r-2", "a")
    opened(ledger, "r-3", "b")
    changed, newest = ledger.changed_groups(0)
    assert changed == {"a": {"detected": 2}, "b": {"detected": 1}}
    assert ledger.changed_groups(newest) == ({}, newest)
    closed(ledger, first)
    changed, last = ledger.changed_groups(newest)
    assert changed == {"a": {"recovered": 1}}
    assert last > newest
    assert ledger.changed_groups(last + 1000) == ({}, last + 1000)


@pytest.mark.parametrize(
    "at",
    [
        NOW,
        NOW.replace(microsecond=0),
        NOW.replace(microsecond=1),
        datetime(2026, 10, 25, 2, 30, tzinfo=timezone(timedelta(hours=2))),
        datetime(2026, 10, 25, 2, 30, 0, 1, tzinfo=timezone(timedelta(hours=-9, minutes=-30))),
        datetime(1999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        datetime(2099, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
    ],
    ids=str,
)
def test_times_come_back_to_the_microsecond(ledger: Ledger, at: datetime) -> None:
    """The same moment, as aware UTC, whatever zone it was said in."""
    incident = taken(ledger, detected(at=at))
    taken(ledger, transitions.claim(incident, "run", at, at))
    (read,) = ledger.open_incidents()
    (event, _) = ledger.events(incident.incident_id)
    for time in (incident.detected_at, read.detected_at, read.claimed_until, event.at):
        assert time is not None
        assert (time, time.tzinfo) == (at, UTC)


def test_naive_times_are_refused(ledger: Ledger) -> None:
    """Nobody could say which hour they mean; nothing is written."""
    naive = NOW.replace(tzinfo=None)
    incident = claimed(ledger)
    uses: list[Callable[[], object]] = [
        lambda: ledger.apply(detected("r-2", at=naive)),
        lambda: ledger.apply(transitions.close(incident, State.RELEASED, "", naive)),
        lambda: ledger.apply(transitions.begin_attempt(incident, naive, NOW)),
        lambda: ledger.renew("run", naive),
    ]
    for use in uses:
        with pytest.raises(StoreUnavailableError, match=r"ValueError: .* has no time zone"):
            use()
    assert ledger.open_incidents() == [incident]
    assert len(rows(ledger.database, event_table)) == 2


def test_details_and_removed_rows_are_any_json(ledger: Ledger) -> None:
    """Texts of every kind and nested values come back as they were."""
    incident = claimed(ledger)
    values = {
        "text": ODD_TEXT,
        "nul": "a\0b",
        "half a pair": "\udc80",
        "properties": '{"k":"\\u0000 \\ud83d"}',
        "numbers": [0, -1, 2**63, 0.1],
        "others": {"true": True, "none": None, "empty": {}},
        ODD_TEXT: "x" * 100_000,
    }
    step = transitions.begin_removal(incident, State.GIVING_UP, values, UNTIL, NOW)
    taken(ledger, replace(step, event=replace(step.event, details=values)))
    assert ledger.removed_row(incident.incident_id) == values
    assert ledger.events(incident.incident_id)[-1].details == values


def test_an_error_may_say_anything(ledger: Ledger) -> None:
    """Also what no database stores, and what acts on a terminal: they are written as escapes."""
    incident = claimed(ledger)
    error = f"{ODD_TEXT} a\0b \udc80 {'é' * 100_000}"
    kept = harmless(error)
    assert r"\x1b[31m é 世" in kept
    assert r"a\x00b \udc80 éé" in kept
    taken(ledger, transitions.attempt_failed(incident, error, UNTIL, NOW))
    (read,) = ledger.open_incidents()
    assert read.last_error == kept
    assert ledger.events(read.incident_id)[-1].message == f"attempt 0 failed: {kept}"
    taken(ledger, transitions.report(read, error, NOW))
    (read,) = ledger.open_incidents()
    assert read.note == kept


def test_a_history_is_that_of_one_group(ledger: Ledger) -> None:
    """All its incidents, open or not, oldest first."""
    first = closed(ledger, opened(ledger, "r-1", "a"))
    opened(ledger, "r-2", "b")
    opened(ledger, "r-1", "a")
    with ledger.reading() as connection:
        found = connection.execute(audit_queries.incident_history("a")).all()
    assert [(row.resource, row.state) for row in found] == [
        ("r-1", State.RECOVERED),
        ("r-1", State.WAITING),
    ]
    assert found[0].closed.replace(tzinfo=UTC) == first.closed_at


def test_a_note_is_an_event_without_an_incident(ledger: Ledger) -> None:
    """Of a group, or of every group; it comes back as it was written."""
    for group_name in ("g", "another", None):
        note(ledger, group_name)
    assert [
        (row["incident_id"], row["group_name"], row["kind"], row["at"], row["message"])
        for row in rows(ledger.database, event_table)
    ] == [(None, name, "scale-up", NOW, f"about {name}") for name in ("g", "another", None)]
    assert {row["details"] for row in rows(ledger.database, event_table)} == {
        json.dumps({"k": ODD_TEXT}, ensure_ascii=False).replace("\u2028", "\\u2028")
    }
    assert rows(ledger.database, incident_table) == []


def test_events_that_are_too_many_are_not_counted(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for the newest of them; that a group has others before, and since the event, is told."""
    monkeypatch.setattr(ledgers, "MOST_COUNTED", 2)
    for group in ("before", "b", "a", "", "", "c"):
        note(ledger, group)
    first = ledger.changed_groups(0)[1] - 5
    more, one = {"uncounted": 0}, {"scale-up": 1}
    assert ledger.changed_groups(first) == (
        {"a": more, "b": more, "": more | one, "c": one},
        first + 5,
    )
    assert ledger.changed_groups(first + 3) == ({"": one, "c": one}, first + 5)


def test_changed_groups_are_not_those_of_events_of_everything(ledger: Ledger) -> None:
    """These change no group's history; one of a group does, be it of no incident."""
    note(ledger, None, EventKind.LEASE_TAKEN)
    assert ledger.changed_groups(0) == ({}, 1)
    note(ledger, "g")
    note(ledger, None, EventKind.PAUSED)
    changed, newest = ledger.changed_groups(0)
    assert (changed, newest) == ({"g": {"scale-up": 1}}, 3)
    assert ledger.changed_groups(newest) == ({}, newest)


def test_what_a_dry_run_writes_says_so(ledger: Ledger) -> None:
    """In each event and in the incident; and what is no dry run takes the mark off again."""
    dry = from_dry_run(ledger)
    incident = opened(dry)
    note(dry, "g")
    told = dry.events(incident.incident_id)[0]
    assert incident.dry_run
    assert ledger.open_incidents() == dry.open_incidents() == [incident]
    assert told.message == f"dry run, nothing is done: {detected().event.message}"
    assert all('"dry_run": true' in row["details"] for row in rows(ledger.database, event_table))
    assert all("dry run, " in row["message"] for row in rows(ledger.database, event_table))
    moved = taken(ledger, transitions.enforce(incident, NOW))
    assert not moved.dry_run
    assert ledger.open_incidents() == [moved]
    told = ledger.events(incident.incident_id)[1]
    assert told == transitions.enforce(incident, NOW).event
