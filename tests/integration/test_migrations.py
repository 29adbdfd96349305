"""From one version of the ledger's schema to the next, with what is in it."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

import pytest
import sqlalchemy as sa
from alembic import command

from dagster_amoro.core.model import Event, EventKind, Note, Orphan
from dagster_amoro.core.pauses import EVERYTHING, Pause
from dagster_amoro.core.transitions import detect
from dagster_amoro.stores import ledger as ledger_module
from dagster_amoro.stores.database import Database
from dagster_amoro.stores.leases import acquire
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro.stores.schema import event, incident, removed_row

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
ROW = {"resource_id": "r-1", "properties": '{"password":"x"}', "thread_count": 2}


def at_version(database: Database, revision: str) -> None:
    """The ledger as that version of its schema was created."""
    config = ledger_module._alembic_config()
    with database.creating() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def told(number: int, kind: str, details: object) -> dict[str, object]:
    """An event of the first version."""
    return {
        "event_id": number,
        "incident_id": 1,
        "group_name": "g",
        "kind": kind,
        "at": NOW,
        "message": "m",
        "details": json.dumps(details),
    }


def test_rows_that_events_held_are_moved(
    database_url: sa.URL, open_database: Callable[..., Database]
) -> None:
    """A removal that was under way goes on after the upgrade, and no event shows the row."""
    database = open_database(database_url)
    at_version(database, "0001")
    with database.writing() as connection:
        connection.execute(
            sa.insert(event),
            [
                told(1, "started", {"startup": {"pid": "1"}}),
                told(2, "giving-up", {"row": {**ROW, "thread_count": 1}}),
                told(3, "giving-up", {"row": ROW}),
            ],
        )
    ledger = Ledger(database)
    assert ledger.removed_row(1) == ROW
    assert ledger.removed_row(2) is None
    assert [dict(each.details) for each in ledger.events(1)] == [{"startup": {"pid": "1"}}, {}, {}]


def test_an_empty_ledger_is_upgraded(
    database_url: sa.URL, open_database: Callable[..., Database]
) -> None:
    """From any version, to what the code thinks it has."""
    database = open_database(database_url)
    at_version(database, "0001")
    assert Ledger(database).open_incidents() == []
    with database.reading() as connection:
        inspector = sa.inspect(connection)
        for table in (incident, event, removed_row):
            columns = {column["name"] for column in inspector.get_columns(table.name)}
            assert columns == set(table.columns.keys())


# --- From the second version to the third -----------------------------------------------------

OF_SECOND: Final = {  # what an incident had then; the rest is new
    "resource_id": "r-1",
    "group_name": "g",
    "container_name": "local",
    "thread_count": 2,
    "state": "claimed",
    "detected_at": NOW,
    "attempts": 2,
    "attempted_at": NOW,
    "hand_overs": 3,
    "claimed_by": "run",
    "claimed_until": NOW,
    "note": None,
    "last_error": "it's\n\U0001f600",
    "closed_at": None,
    "version": 7,
    "open_resource_id": "r-1",
}
NEW: Final = {
    "carried": 0,
    "ordered": None,
    "newest_start": None,
    "fence": None,
    "dry_run": 0,
}


def fill(database: Database) -> None:
    """Incidents and events with gaps between their numbers, the highest of which were deleted."""
    over = {"state": "recovered", "closed_at": NOW, "open_resource_id": None}
    incidents = [
        OF_SECOND | {"incident_id": 3},
        OF_SECOND | {"incident_id": 5, "resource_id": "r-2", "group_name": "g ", **over},
        OF_SECOND | {"incident_id": 1000, **over},
    ]
    events = [told(number, "started", {"ä": number}) for number in (2, 7, 11, 2000)]
    for each, incident_id in zip(events, (3, 3, 5, 1000), strict=True):
        each |= {"incident_id": incident_id, "attempt": 1, "run_id": "run", "group_name": "g "}
    last = sa.column("incident_id") == 1000
    with database.writing() as connection:
        connection.execute(sa.insert(as_in_second(incident)), incidents)
        connection.execute(sa.insert(event), events)
        values = {"removal_id": 4, "incident_id": 3, "kept_at": NOW, "content": json.dumps(ROW)}
        connection.execute(sa.insert(removed_row), values)
        for name in ("keeper_incident", "keeper_event"):
            connection.execute(sa.delete(sa.table(name)).where(last))
        if connection.dialect.name == "postgresql":  # which goes on from the numbers that it gave
            for table in (incident, event):
                (key,) = table.primary_key.columns
                sequence = sa.func.pg_get_serial_sequence(table.name, key.name)
                connection.execute(sa.select(sa.func.setval(sequence, 2000)))


def as_in_second(table: sa.Table) -> sa.Table:
    """The table with the columns that it had then, by which alone its rows are written."""
    columns = [sa.Column(c.name, c.type) for c in table.columns if c.name not in NEW]
    return sa.Table(table.name, sa.MetaData(), *columns)


def dump(database: Database) -> dict[str, list[dict[str, object]]]:
    """Every row of the tables of the second version, by its number."""
    with database.reading() as connection:
        return {
            name: [
                dict(row)
                for row in connection.execute(
                    sa.select(sa.text("*")).select_from(sa.table(name)).order_by(sa.text(number))
                ).mappings()
            ]
            for name, number in {
                "keeper_incident": "incident_id",
                "keeper_event": "event_id",
                "keeper_removed_row": "removal_id",
            }.items()
        }


def to_version(database: Database, revision: str) -> None:
    """The ledger taken back to an earlier version of its schema."""
    config = ledger_module._alembic_config()
    with database.creating() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, revision)


def indexes(database: Database) -> dict[str, list[str]]:
    """The names of the indexes of the two tables."""
    with database.reading() as connection:
        inspector = sa.inspect(connection)
        names = ("keeper_incident", "keeper_event")
        return {n: sorted(str(i["name"]) for i in inspector.get_indexes(n)) for n in names}


@pytest.fixture
def second(database_url: sa.URL, open_database: Callable[..., Database]) -> Database:
    """A ledger of the second version with something in it."""
    database = open_database(database_url)
    at_version(database, "0002")
    fill(database)
    return database


def test_the_third_version_keeps_every_row_and_number(second: Database) -> None:
    """What is new says that there was nothing of the kind; all else is as it was."""
    before = dump(second)
    found = Ledger(second).incident(3)
    after = dump(second)
    assert found is not None
    assert (found.spent, found.attempts, found.dry_run, found.ordered) == (2, 2, False, None)
    assert after["keeper_incident"] == [row | NEW for row in before["keeper_incident"]]
    assert [row["incident_id"] for row in after["keeper_incident"]] == [3, 5]
    assert after["keeper_event"] == before["keeper_event"]
    assert [row["event_id"] for row in after["keeper_event"]] == [2, 7, 11]
    assert after["keeper_removed_row"] == before["keeper_removed_row"]
    assert Ledger(second).removed_row(3) == ROW
    assert indexes(second)["keeper_event"] == ["keeper_event_group", "keeper_event_incident"]


def test_no_number_is_used_again_after_the_upgrade(second: Database) -> None:
    """Neither one that is there nor one that was deleted, of an incident or of an event.

    Whoever has seen an event's number asks for what came after it.
    """
    ledger = Ledger(second)
    opened = ledger.apply(detect(Orphan("r-9", "g", "local", 2, 0, "{}"), NOW))
    assert opened is not None
    assert opened.incident_id > 1000
    with ledger.writing() as writing:
        writing.note(Note(event=Event(kind=EventKind.PAUSED, at=NOW, message="m")))
    numbers = [row["event_id"] for row in dump(second)["keeper_event"]]
    assert numbers[:3] == [2, 7, 11]
    assert all(isinstance(number, int) and number > 2000 for number in numbers[3:])
    assert len(numbers) == 5


def test_the_third_version_can_be_taken_back_and_made_again(second: Database) -> None:
    """Incidents and their events survive both ways; events that are of no incident do not."""
    before, old_indexes = dump(second), indexes(second)
    ledger = Ledger(second)
    ledger.open_incidents()
    newer = dump(second), indexes(second)
    with ledger.writing() as writing:
        for name in ("g", None):
            kind = EventKind.REFILL
            writing.note(Note(event=Event(kind=kind, at=NOW, message="m"), group_name=name))
        acquire(writing.connection, "one", timedelta(hours=1))
        writing.add_pause(
            Pause(target=EVERYTHING, author="ann", reason="why", paused_at=NOW, until=None)
        )
    told_last = max(row["event_id"] for row in dump(second)["keeper_event"])  # type: ignore[type-var]
    to_version(second, "0002")
    assert (dump(second), indexes(second)) == (before, old_indexes)
    tables = sa.inspect(second.engine).get_table_names()
    assert not {"keeper_lease", "keeper_pause", "keeper_refill"} & set(tables)
    again = Ledger(second)
    assert again.pauses() == []
    assert (dump(second), indexes(second)) == newer
    again.apply(detect(Orphan("r-9", "g", "local", 2, 0, "{}"), NOW))
    assert dump(second)["keeper_event"][-1]["event_id"] > told_last  # type: ignore[operator]
