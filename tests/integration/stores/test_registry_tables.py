"""The registry's tables: created once, by whoever comes first."""

from pathlib import Path

import pytest
import sqlalchemy as sa

from dagster_amoro.core.errors import StoreUnavailableError
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro.stores.registry import Registry
from tests.integration.stores.helpers import TIMEOUT, OpenDatabase, a_resource
from tests.integration.stores.racing import Racers


def test_creating_again_changes_nothing(registry: Registry, open_database: OpenDatabase) -> None:
    """Rows survive, in this process and in the next."""
    registry.add_resource(a_resource())
    registry.create()
    Registry(open_database(registry.database.url), TIMEOUT).create()
    assert registry.read_snapshot().resources == 1


def test_two_processes_create_the_tables_at_once(
    database_url: sa.URL, open_database: OpenDatabase, racers: Racers
) -> None:
    """Both succeed: one waits for the other."""
    assert racers.race("create", database_url) == [None, None]
    assert Registry(open_database(database_url), TIMEOUT).read_snapshot().resources == 0


def test_two_processes_create_a_file_at_once(tmp_path: Path, racers: Racers) -> None:
    """Nobody is refused while the other one switches the new file to WAL."""
    for number in range(20):
        url = sa.URL.create("sqlite", database=str(tmp_path / str(number) / "registry.db"))
        assert racers.race("create", url) == [None, None]


def test_a_folder_that_is_missing_is_made(tmp_path: Path, open_database: OpenDatabase) -> None:
    """Registry and ledger both make the folder of their file."""
    for name in ("registry", "ledger"):
        path = tmp_path / name / "deep" / "keeper.db"
        database = open_database(sa.URL.create("sqlite", database=str(path)))
        if name == "registry":
            Registry(database, TIMEOUT).create()
        else:
            Ledger(database).open_incidents()
        assert path.is_file()


def test_an_attached_registry_is_never_created(
    database_url: sa.URL, open_database: OpenDatabase
) -> None:
    """Tables that AMS did not make are missing, and stay so."""
    attached = Registry(open_database(database_url), None)
    with pytest.raises(StoreUnavailableError, match="the registry cannot be read"):
        attached.read_snapshot()
    assert sa.inspect(attached.database.engine).get_table_names() == []
