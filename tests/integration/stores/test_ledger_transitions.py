"""Steps of incidents: taken once, by one of several, or not at all."""

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from threading import Barrier

import pytest
import sqlalchemy as sa

from dagster_amoro.core import transitions
from dagster_amoro.core.errors import StoreUnavailableError
from dagster_amoro.core.model import EventKind, State
from dagster_amoro.core.post_mortem import PostMortem
from dagster_amoro.stores import audit_queries
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro.stores.schema import event as event_table
from dagster_amoro.stores.schema import incident as incident_table
from tests.helpers.waiting import PATIENCE
from tests.integration.stores.helpers import (
    HOSTILE,
    NOW,
    UNTIL,
    closed,
    detected,
    execute,
    opened,
    rows,
    taken,
)
from tests.integration.stores.racing import Racers

KILLED = PostMortem("killed", "by \x1b nobody")


def test_a_transition_is_written_with_its_event(ledger: Ledger) -> None:
    """The incident gets a number, and reads back as it was returned."""
    incident = opened(ledger, "r-1", "a group")
    assert incident == detected("r-1", "a group").after._replace(incident_id=incident.incident_id)
    assert incident.incident_id > 0
    assert ledger.incident(incident.incident_id) == incident
    assert ledger.open_incidents() == [incident]
    assert ledger.events(incident.incident_id) == [detected().event]


def test_what_is_not_there_is_none(ledger: Ledger) -> None:
    """No incident, no events, no claims, no changes."""
    assert ledger.incident(1) is None
    assert ledger.events(1) == []
    assert ledger.claimed_by("run") == []
    assert ledger.open_incidents() == []
    assert ledger.changed_groups(7) == ({}, 7)


def test_a_lost_race_writes_nothing(ledger: Ledger) -> None:
    """A step from a state that holds no more returns None, and tells no event."""
    incident = opened(ledger)
    won = taken(ledger, transitions.claim(incident, "run-1", UNTIL, NOW))
    assert ledger.apply(transitions.claim(incident, "run-2", UNTIL, NOW)) is None
    assert ledger.apply(transitions.close(incident, State.RELEASED, "", NOW)) is None
    assert ledger.incident(incident.incident_id) == won
    kinds = [event.kind for event in ledger.events(incident.incident_id)]
    assert kinds == [EventKind.DETECTED, EventKind.CLAIMED]


def test_an_expected_state_counts_too(ledger: Ledger) -> None:
    """Somebody who changed the state, but not the version, wins as well."""
    incident = opened(ledger)
    execute(ledger.database, sa.update(incident_table).values(state=State.UNSUPPORTED))
    assert ledger.apply(transitions.claim(incident, "run", UNTIL, NOW)) is None


def test_an_incident_that_does_not_exist_cannot_be_moved(ledger: Ledger) -> None:
    """It is a race that was lost long ago."""
    never = opened(ledger)._replace(incident_id=10**12)
    assert ledger.apply(transitions.claim(never, "run", UNTIL, NOW)) is None


def test_each_transition_of_a_batch_stands_for_itself(ledger: Ledger) -> None:
    """Races that are lost do not keep the others from being taken."""
    first, second = opened(ledger, "r-1"), opened(ledger, "r-2")
    closed(ledger, first)
    with ledger.transaction() as transaction:
        results = transaction.apply(
            [
                transitions.claim(first, "run", UNTIL, NOW),
                transitions.claim(second, "run", UNTIL, NOW),
                detected("r-2"),
                detected("r-3"),
                detected("r-3"),
            ]
        )
        assert transaction.apply([]) == []
    moved = [None if result is None else result.resource_id for result in results]
    assert moved == [None, "r-2", None, "r-3", None]
    assert [i.resource_id for i in ledger.open_incidents()] == ["r-2", "r-3"]
    assert len(rows(ledger.database, event_table)) == 5


def test_a_block_that_raises_writes_nothing(ledger: Ledger) -> None:
    """All transitions of a transaction, or none; the error is the caller's own."""
    incident = opened(ledger)
    before = ledger.incident(incident.incident_id)

    def fail() -> None:
        with ledger.transaction() as transaction:
            assert transaction.apply([transitions.claim(incident, "run", UNTIL, NOW)]) != [None]
            assert transaction.apply([detected("r-2")]) != [None]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert ledger.open_incidents() == [before]
    assert len(rows(ledger.database, event_table)) == 1


def test_a_batch_with_a_step_that_cannot_be_written_writes_nothing(ledger: Ledger) -> None:
    """The steps before it are undone."""
    naive = datetime(2026, 1, 1)  # noqa: DTZ001 - that is what is wrong with it
    with (
        pytest.raises(StoreUnavailableError, match="has no time zone"),
        ledger.transaction() as transaction,
    ):
        transaction.apply([detected("r-1"), detected("r-2", at=naive)])
    assert rows(ledger.database, incident_table) == rows(ledger.database, event_table) == []


def test_the_database_allows_one_open_incident_per_resource(ledger: Ledger) -> None:
    """A row that comes past the ledger's own code is refused; closed ones do not count."""
    incident = opened(ledger)
    columns = {c.name: c for c in incident_table.columns if c.name != "incident_id"}
    copy = sa.insert(incident_table).from_select(list(columns), sa.select(*columns.values()))
    with pytest.raises(StoreUnavailableError, match="the ledger cannot be written"):
        execute(ledger.database, copy)
    closed(ledger, incident)
    execute(ledger.database, copy)
    execute(ledger.database, copy)
    assert len(rows(ledger.database, incident_table)) == 4


def test_an_open_incident_is_not_opened_again(ledger: Ledger) -> None:
    """The second detection returns None and tells no event."""
    incident = opened(ledger)
    assert ledger.apply(detected()) is None
    assert ledger.open_incidents() == [incident]
    assert len(rows(ledger.database, event_table)) == 1


@pytest.mark.parametrize(
    "outcome", [State.RECOVERED, State.EXHAUSTED, State.RELEASED, State.SUPERSEDED]
)
def test_a_closed_incident_makes_room_for_the_next(ledger: Ledger, outcome: State) -> None:
    """The same resource can be an orphan again; that is another incident."""
    first = opened(ledger)
    taken(ledger, transitions.close(first, outcome, "over", NOW))
    assert ledger.open_incidents() == []
    second = opened(ledger)
    assert second.incident_id > first.incident_id
    assert ledger.open_incidents() == [second]
    kept = ledger.incident(first.incident_id)
    assert kept is not None
    assert (kept.state, kept.closed_at) == (outcome, NOW)


def test_numbers_are_not_used_again(ledger: Ledger) -> None:
    """An incident that was deleted by hand does not lend its number, and its events, to another."""
    first = opened(ledger)
    execute(ledger.database, sa.delete(incident_table))
    assert opened(ledger).incident_id > first.incident_id


def test_ids_that_look_alike_are_different_resources(ledger: Ledger) -> None:
    """By case, by a space or by an accent."""
    names = ["worker", "Worker", "WORKER", "worker ", " worker", "wörker", "worker\t"]
    incidents = [opened(ledger, name, group_name=name) for name in names]
    assert [incident.resource_id for incident in ledger.open_incidents()] == names
    changed, _ = ledger.changed_groups(0)
    assert changed == {name: {"detected": 1} for name in names}
    for name, incident in zip(names, incidents, strict=True):
        with ledger.reading() as connection:
            assert [
                row.resource for row in connection.execute(audit_queries.incident_history(name))
            ] == [name]
        closed(ledger, incident)
    assert ledger.open_incidents() == []


def test_ids_names_and_runs_may_hold_anything(ledger: Ledger) -> None:
    """What looks like SQL, a command or a format is a text like any other."""
    names = [*HOSTILE, "x" * 100, "\U0001f600" * 100]
    incidents = [opened(ledger, name, group_name=name) for name in names]
    steps = [transitions.claim(i, i.resource_id, UNTIL, NOW) for i in incidents]
    with ledger.transaction() as transaction:
        assert None not in transaction.apply(steps)
    for name, step in zip(names, steps, strict=True):
        assert ledger.claimed_by(name) == [step.after]
        assert ledger.events(step.after.incident_id)[1].run_id == name
    told = {"detected": 1, "claimed": 1}
    assert ledger.changed_groups(0)[0] == dict.fromkeys(names, told)


def test_exactly_one_of_two_processes_opens_an_incident(
    ledger: Ledger, database_url: sa.URL, racers: Racers
) -> None:
    """The other one sees that it lost, and the incident has one event."""
    for number in range(1, 4):
        assert sorted(map(str, racers.race("detect", database_url))) == ["False", "True"]
        (incident,) = ledger.open_incidents()
        closed(ledger, incident)
        assert len(rows(ledger.database, event_table)) == 2 * number


def test_exactly_one_of_two_processes_moves_an_incident(
    ledger: Ledger, database_url: sa.URL, racers: Racers
) -> None:
    """The other one sees that it lost, and the incident has one event more."""
    for _ in range(3):
        incident = opened(ledger)
        assert sorted(map(str, racers.race("claim", database_url))) == ["False", "True"]
        assert len(ledger.events(incident.incident_id)) == 2
        (moved,) = ledger.open_incidents()
        assert moved.version == incident.version + 1
        closed(ledger, moved)


def test_exactly_one_of_many_threads_moves_an_incident(ledger: Ledger) -> None:
    """With one ledger for all of them, as in a code server."""
    incident = opened(ledger)
    barrier = Barrier(8, timeout=PATIENCE)

    def act(number: int) -> bool:
        barrier.wait()
        return ledger.apply(transitions.claim(incident, f"run-{number}", UNTIL, NOW)) is not None

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(act, range(8)))
    assert sum(results) == 1
    assert ledger.claimed_by(f"run-{results.index(True)}") == ledger.open_incidents()


def test_a_cause_that_is_learned_is_no_step(ledger: Ledger) -> None:
    """Only what is open, untried and without a cause gets one, whoever has it in hand."""
    first, second, tried, over = (opened(ledger, f"r-{number}", "a") for number in range(4))
    opened(ledger, "r-4", "b")
    taken(ledger, transitions.begin_attempt(tried, UNTIL, NOW))
    closed(ledger, over)
    assert ledger.causeless(["a"], 5) == [second, first]
    assert ledger.causeless(["a"], 1) == [second]
    assert len(ledger.causeless(["a", "b"], 5)) == len(ledger.causeless(None, 5)) == 3
    found = {each.incident_id: KILLED for each in (first, tried, over)}
    assert ledger.note_causes(found) == 1
    assert ledger.note_causes(found) == 0
    assert ledger.causeless(["a"], 5) == [second]
    known = first._replace(cause="killed", death="by \\x1b nobody")
    assert ledger.open_incident("r-0") == known
    assert ledger.apply(transitions.claim(first, "run", UNTIL, NOW)) == known.evolve(
        state=State.CLAIMED, claimed_by="run", claimed_until=UNTIL
    )
    begun = transitions.begin_attempt(second, UNTIL, NOW, found=KILLED)
    assert ledger.note_causes({second.incident_id: KILLED._replace(cause="unknown")}) == 1
    assert taken(ledger, begun).cause == "killed"
