"""What an operator wants to know of the databases before trusting them with anything.

Nothing here changes a row, creates a table or makes a file.
"""

from pathlib import Path
from typing import Final

import sqlalchemy as sa

from dagster_amoro.core.errors import StoreUnavailableError
from dagster_amoro.core.model import Orphan
from dagster_amoro.stores.database import Database
from dagster_amoro.stores.registry import ORPHAN_COLUMNS, optimizer, resource, resource_group
from dagster_amoro.stores.schema import incident

_NOBODY: Final = resource.c.resource_id.is_(None) & resource.c.resource_id.is_not(None)
_RIGHTS: Final[dict[str, sa.Executable]] = {
    "read resource": sa.select(resource).where(_NOBODY),
    "read optimizer": sa.select(
        optimizer.c.token, optimizer.c.resource_id, optimizer.c.group_name
    ).where(optimizer.c.token.is_(None)),
    "read resource_group": sa.select(resource_group.c.group_name).limit(0),
    "lock rows of resource": sa.select(resource.c.resource_id).where(_NOBODY).with_for_update(),
    "save properties of resource": sa.update(resource).where(_NOBODY).values(properties="{}"),
    "remove rows of resource": sa.delete(resource).where(_NOBODY),
    "restore rows of resource": sa.insert(resource).from_select(
        resource.columns.keys(), sa.select(resource).where(_NOBODY)
    ),
}


def has_tables(database: Database, table: sa.Table) -> bool:
    """Whether a table of ours, or of Amoro's, is there; an SQLite file is not made to find out."""
    file = database.url.database if database.url.get_backend_name() == "sqlite" else None
    if file is not None and not Path(file).exists():
        return False
    with database.reading() as connection:
        return sa.inspect(connection).has_table(table.name)


def missing_rights(database: Database) -> dict[str, str]:
    """What the keeper has to do to the registry and may not, with the database's reasons.

    Every statement is one that the keeper runs, on no row at all, and is rolled back.
    """
    refused = {}
    for name, statement in _RIGHTS.items():
        try:
            with database.reading() as connection:
                connection.execute(statement)
                connection.rollback()
        except StoreUnavailableError as error:
            refused[name] = str(error)
    return refused


def resource_counts(database: Database) -> dict[str, int]:
    """How many resources each group has, groups without any included."""
    groups = sa.select(resource_group.c.group_name)
    counts = sa.select(resource.c.group_name, sa.func.count()).group_by(resource.c.group_name)
    with database.reading() as connection:
        found = dict.fromkeys(connection.scalars(groups), 0)
        return found | {name or "": number for name, number in connection.execute(counts)}


def examples(database: Database) -> dict[str, Orphan]:
    """One resource of each group, as a restart would see it."""
    first = sa.select(sa.func.min(resource.c.resource_id)).group_by(resource.c.group_name)
    query = sa.select(*ORPHAN_COLUMNS).where(resource.c.resource_id.in_(first))
    with database.reading() as connection:
        rows = [Orphan(*row) for row in connection.execute(query)]
    return {row.group_name or "": row for row in rows}


def open_incidents(database: Database) -> int:
    """How many incidents of the ledger wait for their outcome."""
    query = sa.select(sa.func.count()).where(incident.c.open_resource_id.is_not(None))
    with database.reading() as connection:
        return connection.scalar(query) or 0
