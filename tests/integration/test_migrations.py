"""The ledger's schema: what the migrations create is what the code works with."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from pkgutil import iter_modules

import sqlalchemy as sa
from alembic.script import ScriptDirectory

from dagster_amoro import stores
from dagster_amoro.stores.database import Database
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro.stores.migrations import HEAD, VERSION_TABLE, alembic_config
from dagster_amoro.stores.schema import metadata


def test_an_empty_ledger_is_what_the_code_thinks_it_is(
    database_url: sa.URL, open_database: Callable[..., Database]
) -> None:
    """The tables, their columns with whether they may be NULL, and their indexes."""
    database = open_database(database_url)
    assert Ledger(database).open_incidents() == []
    with database.reading() as connection:
        inspector = sa.inspect(connection)
        assert {*inspector.get_table_names()} == {*metadata.tables, VERSION_TABLE}
        for name, table in metadata.tables.items():
            columns = {c["name"]: c["nullable"] for c in inspector.get_columns(name)}
            assert columns == {c.name: c.nullable for c in table.columns}
            indexes = {i["name"]: i["column_names"] for i in inspector.get_indexes(name)}
            declared = {i.name: [c.name for c in i.columns] for i in table.indexes}
            assert {key: indexes.get(key) for key in declared} == declared


def test_the_head_is_that_of_the_scripts(
    sqlite_url: sa.URL, open_database: Callable[..., Database]
) -> None:
    """What the code takes for the newest version is the one that Alembic upgrades to."""
    with open_database(sqlite_url).reading() as connection:
        scripts = ScriptDirectory.from_config(alembic_config(connection))
    assert scripts.get_current_head() == HEAD


def test_the_page_on_upgrades_names_it() -> None:
    """So that whoever goes back a version knows whether the ledger goes along."""
    page = (Path(__file__).parents[2] / "docs" / "upgrade.md").read_text(encoding="utf-8")
    assert f"This version writes `{HEAD}`" in page


def test_alembic_is_imported_for_a_migration_only(sqlite_url: sa.URL) -> None:
    """Neither it nor a driver by an import of the stores; by a new ledger; not by an old one."""
    modules = [name for _, name, _ in iter_modules(stores.__path__, "dagster_amoro.stores.")]
    code = (
        f"import sys, sqlalchemy, {', '.join(modules)}\n"
        "assert not {'alembic', 'psycopg', 'psycopg2', 'pymysql'} & sys.modules.keys()\n"
        "database = dagster_amoro.stores.database.Database(sqlalchemy.make_url(sys.argv[1]), 'l')\n"
        "assert dagster_amoro.stores.ledger.Ledger(database).open_incidents() == []\n"
        "database.close()\n"
        "print('alembic' in sys.modules)\n"
    )
    url = sqlite_url.render_as_string()
    for migrates in (True, False):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code, url],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.stdout, done.stderr) == (f"{migrates}\n", "")
