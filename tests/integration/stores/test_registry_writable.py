"""A registry that cannot be written is doubt: nobody acts on what is read there."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
import sqlalchemy as sa

from dagster_amoro.core.errors import StoreUnavailableError
from dagster_amoro.stores.dry_run import DryRunRegistry
from dagster_amoro.stores.registry import Registry
from tests.helpers.databases import administering
from tests.integration.stores.helpers import TIMEOUT, OpenDatabase, a_resource, register

Look = Callable[[Registry], object]
TO_ACT: Final[dict[str, Look]] = {
    "survey": lambda registry: registry.read_snapshot(to_act=True),
    "group": lambda registry: registry.read_group_snapshot("g", to_act=True),
    "look": lambda registry: registry.read_resource("r-1", to_act=True),
    "rehearsal": lambda registry: registry.rehearse("r-1", "{}"),
}
TO_SHOW: Final[dict[str, Look]] = {
    "survey": lambda registry: registry.read_snapshot(),
    "group": lambda registry: registry.read_group_snapshot("g"),
    "look": lambda registry: registry.read_resource("r-1"),
}
ALL_TO_ACT: Final = pytest.mark.parametrize("look", TO_ACT.values(), ids=TO_ACT)


@pytest.fixture
def filled(registry: Registry) -> Registry:
    """A registry with one orphan, seen by a keeper whose heartbeats AMS removes."""
    registry.add_group("g", "local")
    registry.add_resource(a_resource())
    return Registry(registry.database, None)


# --- Where all is well --------------------------------------------------------------------------


@ALL_TO_ACT
def test_where_it_can_be_written_it_is_read_as_ever(filled: Registry, look: Look) -> None:
    """Nothing is changed, and nothing stays locked."""
    before = filled.read_resource("r-1")
    assert look(filled)
    assert filled.read_resource("r-1") == before
    assert filled.save_startup("r-1", "{}", {"pid": "1"})
    filled.ensure_writable()
    assert filled.read_snapshot(to_act=True).orphans == filled.read_snapshot().orphans


def test_a_rehearsal_says_whether_both_would_be_possible(filled: Registry) -> None:
    """It is of no use where the row was changed, is gone, or has an optimizer by now."""
    assert filled.rehearse("r-1", "{}")
    assert not filled.rehearse("r-1", '{"changed":"1"}')
    assert not filled.rehearse("gone", "{}")
    register(filled, "r-1")
    assert not filled.rehearse("r-1", "{}")
    assert filled.read_resource("r-1").registered


# --- Where it is not ----------------------------------------------------------------------------


def refused(registry: Registry, looks: dict[str, Look], reason: str) -> None:
    """Nothing to act on is read, for this reason; what is only shown, is."""
    for look in looks.values():
        with pytest.raises(StoreUnavailableError, match=reason) as caught:
            look(registry)
        assert str(caught.value).startswith("the registry cannot be written: ")
    with pytest.raises(StoreUnavailableError, match=reason):
        registry.ensure_writable()
    for look in TO_SHOW.values():
        look(registry)
    dry = DryRunRegistry(registry.database, TIMEOUT, set)  # it writes nothing anyway
    dry.ensure_writable()
    for look in TO_ACT.values():
        assert look(dry)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_read_only_default_of_postgresql_is_doubt(
    filled: Registry, open_database: OpenDatabase
) -> None:
    """As on a standby; where a DBA, or the URL itself, has set it."""
    options = {"options": "-c default_transaction_read_only=on"}
    read_only = open_database(filled.database.url.update_query_dict(options))
    refused(Registry(read_only, None), TO_ACT, "read-only transaction")


@pytest.mark.parametrize("database_url", ["mariadb"], indirect=True)
def test_a_read_only_default_of_mariadb_is_doubt(filled: Registry, mariadb_server: sa.URL) -> None:
    """Of its transactions, whoever begins them."""
    filled.database.close()
    with administering(mariadb_server) as connection:
        connection.exec_driver_sql("SET GLOBAL tx_read_only = 1")
        try:
            refused(filled, TO_ACT, "READ ONLY transaction")
        finally:
            connection.exec_driver_sql("SET GLOBAL tx_read_only = 0")
    filled.database.close()


@pytest.mark.parametrize("database_url", ["mariadb"], indirect=True)
def test_a_read_only_mariadb_is_doubt(
    filled: Registry, mariadb_server: sa.URL, open_database: OpenDatabase
) -> None:
    """A replica; for all but those who may write there all the same."""
    name = filled.database.url.database
    with administering(mariadb_server) as connection:
        connection.exec_driver_sql("CREATE USER reader@localhost")
        connection.exec_driver_sql(f"GRANT ALL ON {name}.* TO reader@localhost")
        connection.exec_driver_sql("SET GLOBAL read_only = 1")
        try:
            url = filled.database.url.set(username="reader")
            refused(Registry(open_database(url), None), TO_ACT, "--read-only option")
        finally:
            connection.exec_driver_sql("SET GLOBAL read_only = 0")
            connection.exec_driver_sql("DROP USER reader@localhost")


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that everybody may write to; pytest's own are root's alone where root tests."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)


@contextmanager
def nobody() -> Iterator[None]:
    """Root may write to every file."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_file_without_the_right_to_write_is_doubt(
    public_folder: Path, open_database: OpenDatabase
) -> None:
    """Read it can be."""
    file = public_folder / "registry.db"
    url = sa.URL.create("sqlite", database=str(file))
    made = Registry(open_database(url), TIMEOUT)
    made.create()
    made.add_resource(a_resource())
    made.database.close()
    file.chmod(0o444)
    looks = {name: look for name, look in TO_ACT.items() if name != "look"}  # a file has no standby
    with nobody():
        refused(Registry(open_database(url), None), looks, "readonly database")
