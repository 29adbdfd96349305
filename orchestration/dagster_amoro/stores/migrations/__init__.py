"""The ledger's schema, version by version, and how a database is brought to the newest one.

Alembic, which takes long to import, is imported only where a database is not at that version.
"""

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa

from dagster_amoro.core.errors import StoreUnavailableError
from dagster_amoro.stores.database import Database

if TYPE_CHECKING:
    from alembic.config import Config

VERSION_TABLE: Final = "keeper_schema_version"
HEAD: Final = "0001"  # the newest of `versions`
_VERSION: Final = sa.table(VERSION_TABLE, sa.column("version_num", sa.String()))
_ALEMBIC: Final = threading.Lock()  # Alembic's `op` and `context` are global to the process


def migrate(database: Database) -> None:
    """Brings the ledger's tables to the newest version; writes nothing where they are.

    A StoreUnavailableError may also say that they are of a version that this code does not know.
    """
    database.create_file()
    with database.reading() as connection:
        current = _read_version(database, connection)
    if current != HEAD:
        _upgrade(database, current)


def ensure_known(database: Database) -> None:
    """Makes sure that this code can work on the ledger's tables, upgraded or not; changes nothing.

    Raises:
        StoreUnavailableError: They are of a version that this code does not know.
    """
    with database.reading() as connection:
        current = _read_version(database, connection)
        if current != HEAD:
            _refuse_unknown(current, alembic_config(connection))


def alembic_config(connection: sa.Connection) -> "Config":
    """The configuration with which Alembic's commands run on a connection."""
    from alembic.config import Config  # noqa: PLC0415 - see the module

    config = Config()
    folder = str(Path(__file__).parent)
    config.set_main_option("script_location", folder.replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def _read_version(database: Database, connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return None
    versions: list[str] = [*connection.scalars(sa.select(_VERSION.c.version_num))]
    if len(versions) > 1:
        raise StoreUnavailableError(
            f"the {database.name}'s schema version cannot be told: "
            f"{VERSION_TABLE} has {' and '.join(sorted(versions))}"
        )
    return versions[0] if versions else None


def _upgrade(database: Database, current: str | None) -> None:
    from alembic import command  # noqa: PLC0415 - see the module

    with _ALEMBIC, database.creating() as connection:
        config = alembic_config(connection)
        _refuse_unknown(current, config)
        if _read_version(database, connection) == current:  # no other process was faster
            command.upgrade(config, "head")


def _refuse_unknown(current: str | None, config: "Config") -> None:
    from alembic.script import ScriptDirectory  # noqa: PLC0415 - see the module

    scripts = ScriptDirectory.from_config(config)
    known = {script.revision for script in scripts.walk_revisions()}
    if current is not None and current not in known:
        raise StoreUnavailableError(
            f"the ledger has schema version {current!r}, which this dagster-amoro does not "
            f"know (it knows {', '.join(sorted(known))}): a newer one wrote it, install that"
        )
