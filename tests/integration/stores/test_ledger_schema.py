"""The ledger's schema: made at first use, once, and refused where it is unknown."""

import re
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from dagster_amoro.core.errors import StoreUnavailableError
from dagster_amoro.core.model import Incident
from dagster_amoro.stores import schema
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro.stores.migrations import HEAD, VERSION_TABLE, alembic_config
from dagster_amoro.stores.schema import incident as incident_table
from tests.helpers.waiting import PATIENCE
from tests.integration.stores.helpers import (
    OpenDatabase,
    detected,
    execute,
    is_write,
    opened,
    refused,
    rows,
    statements,
)
from tests.integration.stores.racing import Racers


def test_the_schema_is_made_at_first_use_and_once(
    ledger: Ledger, open_database: OpenDatabase
) -> None:
    """From nothing; whoever comes later writes nothing and sees what is there."""
    incident = opened(ledger)
    later = Ledger(open_database(ledger.database.url, "ledger"))
    with statements(later.database) as sent:
        assert later.open_incidents() == ledger.open_incidents() == [incident]
    assert not any(map(is_write, sent))


def test_a_ledger_has_an_identity_that_no_other_has(
    ledger: Ledger, open_database: OpenDatabase
) -> None:
    """Whoever opens it reads the same; once it is made anew, it is another."""
    first = ledger.identity
    assert re.fullmatch("[0-9a-f]{32}", first)
    assert Ledger(open_database(ledger.database.url, "ledger")).identity == first
    with statements(ledger.database) as sent:
        assert ledger.identity == first
    assert not sent
    with ledger.database.writing() as connection:
        command.downgrade(alembic_config(connection), "base")
    assert Ledger(ledger.database).identity != first


def test_two_processes_make_the_schema_at_once(
    ledger: Ledger, database_url: sa.URL, racers: Racers
) -> None:
    """Both succeed: one waits for the other, and there is one schema version afterwards."""
    for _ in range(3):
        assert racers.race("migrate", database_url) == [0, 0]
        assert versions(ledger) == [HEAD]
        with ledger.database.writing() as connection:
            schema.metadata.drop_all(connection)
            connection.execute(sa.text(f"DROP TABLE {VERSION_TABLE}"))


def test_several_threads_make_the_schema_at_once(
    database_url: sa.URL, open_database: OpenDatabase
) -> None:
    """Alembic knows one migration per process at a time; so they take turns."""
    ledgers = [Ledger(open_database(database_url, "ledger")) for _ in range(4)]
    barrier = Barrier(len(ledgers), timeout=PATIENCE)

    def use(ledger: Ledger) -> list[Incident]:
        barrier.wait()
        return ledger.open_incidents()

    with ThreadPoolExecutor(len(ledgers)) as pool:
        assert list(pool.map(use, ledgers)) == [[], [], [], []]


def test_the_migrations_make_what_the_code_expects(ledger: Ledger) -> None:
    """Alembic finds no difference between the tables and their description."""
    ledger.open_incidents()
    options = {"version_table": VERSION_TABLE, "compare_server_default": True}
    with ledger.database.reading() as connection:
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, schema.metadata) == []


def test_the_schema_can_be_taken_back(ledger: Ledger) -> None:
    """Down to nothing, and up again."""
    opened(ledger)
    with ledger.database.writing() as connection:
        command.downgrade(alembic_config(connection), "base")
    assert sa.inspect(ledger.database.engine).get_table_names() == [VERSION_TABLE]
    assert Ledger(ledger.database).open_incidents() == []


@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
def test_a_migration_that_fails_leaves_nothing(
    request: pytest.FixtureRequest, open_database: OpenDatabase, backend: str
) -> None:
    """Its first table is undone when its second one cannot be made; MySQL cannot undo it."""
    url: sa.URL = request.getfixturevalue(f"{backend}_url")
    ledger = Ledger(open_database(url, "ledger"))
    execute(ledger.database, "CREATE TABLE keeper_event (in_the_way INTEGER)")
    for _ in range(2):
        assert "already exists" in refused(ledger, Ledger.open_incidents)
        assert sa.inspect(ledger.database.engine).get_table_names() == ["keeper_event"]
    execute(ledger.database, "DROP TABLE keeper_event")
    assert ledger.open_incidents() == []


def test_the_schema_of_a_newer_version_is_refused(ledger: Ledger) -> None:
    """With what to do about it; nothing is changed."""
    opened(ledger)
    execute(ledger.database, f"UPDATE {VERSION_TABLE} SET version_num = '9999'")  # noqa: S608
    older = Ledger(ledger.database)
    message = "schema version '9999', which this dagster-amoro does not know .* a newer one wrote"
    for use in (older.open_incidents, lambda: older.apply(detected("r-2"))):
        with pytest.raises(StoreUnavailableError, match=message):
            use()
    assert versions(ledger) == ["9999"]
    assert len(rows(ledger.database, incident_table)) == 1


def test_a_schema_of_two_versions_is_refused(ledger: Ledger) -> None:
    """Alembic's own error does not get out."""
    ledger.open_incidents()
    execute(ledger.database, f"INSERT INTO {VERSION_TABLE} VALUES ('0000')")  # noqa: S608
    with pytest.raises(StoreUnavailableError, match="the ledger's schema version cannot be told"):
        Ledger(ledger.database).open_incidents()


def versions(ledger: Ledger) -> list[str]:
    """What the version table holds."""
    with ledger.database.reading() as connection:
        return list(connection.scalars(sa.text(f"SELECT version_num FROM {VERSION_TABLE}")))  # noqa: S608
