"""From one version of the ledger's schema to the next, with what is in it."""

import json
from collections.abc import Callable
from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import command

from orchestration.stores import ledger as ledger_module
from orchestration.stores.database import Database
from orchestration.stores.ledger import Ledger
from orchestration.stores.schema import event, incident, removed_row

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
