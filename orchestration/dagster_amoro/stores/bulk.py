"""How are many rows written in a handful of statements, on each database?"""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.types import TypeDecorator

from dagster_amoro.stores.database import insert_unless_there, is_mysql

Row = Mapping[str, Any]

ROWS: Final = 1_000
"""How many rows are written, or looked for, at once: each database takes their values."""


def insert(connection: sa.Connection, table: sa.Table, rows: Sequence[Row]) -> None:
    """Adds rows."""
    if rows:
        _write(connection, _adding(table, tuple(rows[0]), _database(connection)), rows)


def insert_new(
    connection: sa.Connection, table: sa.Table, unique: sa.Column[Any], rows: Sequence[Row]
) -> dict[Any, int]:
    """Adds the rows whose value of a unique column is not there yet; their numbers by that value.

    No two of the rows have the same one, and there is nothing else that could be there already.
    """
    dialect, (number,) = connection.dialect, table.primary_key
    if not rows:
        return {}
    if is_mysql(dialect) or not dialect.insert_executemany_returning:
        added = _insert_missing(connection, table, unique, rows)
        query = sa.select(unique, number).where(unique.in_(added))
        return {row[0]: row[1] for row in connection.execute(query)}
    new = _adding_new(table, unique.name, tuple(rows[0]), _database(connection))
    inserted: Any = _write(connection, new, rows)
    return {row[0]: row[1] for row in inserted}


def rewrite(connection: sa.Connection, table: sa.Table, rows: Sequence[Row]) -> None:
    """Writes whole rows as they are from now on, in the place of those with their keys.

    As rows to insert that turn out to be there: of an update no database has a form for many.
    """
    if rows:
        _write(connection, _rewriting(table, tuple(rows[0]), _database(connection)), rows)


def _database(connection: sa.Connection) -> str:
    return "mysql" if is_mysql(connection.dialect) else connection.dialect.name


def _write(connection: sa.Connection, new: sa.Insert, rows: Sequence[Row]) -> sa.CursorResult[Any]:
    """Executes an insert of rows; drivers of SQLite and MySQL have their own way for many."""
    if _database(connection) == "postgresql":
        return connection.execute(new, {"rows": rows})
    return connection.execute(new, rows)


# The statements are kept: to build one takes longer than many a database takes for it.


@cache
def _adding(table: sa.Table, names: tuple[str, ...], database: str) -> sa.Insert:
    return _of_many(sa.insert(table), names, database)


@cache
def _adding_new(table: sa.Table, unique: str, names: tuple[str, ...], database: str) -> sa.Insert:
    (number,) = table.primary_key
    new = _insert_of(database)(table).on_conflict_do_nothing()
    return _of_many(new.returning(table.c[unique], number), names, database)


@cache
def _rewriting(table: sa.Table, names: tuple[str, ...], database: str) -> sa.Insert:
    keys = [column.name for column in table.primary_key]
    new = _insert_of(database)(table)
    rest = [name for name in names if name not in keys]
    if database == "mysql":
        values = {name: sa.func.values(sa.column(name)) for name in rest}
        return _of_many(new.on_duplicate_key_update(values), names, database)
    values = {name: new.excluded[name] for name in rest}
    new = new.on_conflict_do_update(index_elements=keys, set_=values)
    return _of_many(new, names, database)


def _insert_of(database: str) -> Any:  # noqa: ANN401 - of one of SQLAlchemy's dialects
    return import_module(f"sqlalchemy.dialects.{database}").insert  # slow to import


def _of_many(new: Any, names: tuple[str, ...], database: str) -> sa.Insert:  # noqa: ANN401
    """The insert of as many rows as are given.

    PostgreSQL is given them as one value: to name each value of each row costs ten times as much.
    """
    if database != "postgresql":
        return new  # type: ignore[no-any-return]
    # Not in the statement itself, which SQLAlchemy keeps for the next one of its kind.
    text = sa.cast(sa.bindparam("rows", type_=_Rows(new.table)), sa.JSON)
    columns = (sa.column(name, new.table.c[name].type) for name in names)
    given = sa.func.json_to_recordset(text).table_valued(*columns)
    given = given.render_derived(name="given", with_types=True)
    return new.from_select(names, sa.select(*given.c))  # type: ignore[no-any-return]


class _Rows(TypeDecorator[Sequence[Row]]):
    """Rows of a table as one JSON text, each value as the table's column sends it."""

    impl = sa.Text
    cache_ok = True

    def __init__(self, table: sa.Table) -> None:
        super().__init__()
        self.table = table

    def process_bind_param(self, value: Sequence[Row] | None, dialect: sa.Dialect) -> str:
        """The text; what a column refuses is refused."""
        rows = value or ()
        columns = [self.table.c[name] for name in (rows[0] if rows else ())]
        types = {column.name: column.type.dialect_impl(dialect) for column in columns}
        send = {name: each.bind_processor(dialect) for name, each in types.items()}
        sent = [
            {name: each(row[name]) if each else row[name] for name, each in send.items()}
            for row in rows
        ]
        return json.dumps(sent, ensure_ascii=False, default=str)


def _insert_missing(
    connection: sa.Connection, table: sa.Table, unique: sa.Column[Any], rows: Sequence[Row]
) -> list[Any]:
    """Adds the rows whose value is not there, without being told which; returns their values."""
    key = unique.name
    taken = sa.select(unique).where(unique.in_([row[key] for row in rows]))
    there = set(connection.scalars(taken))
    missing = [row for row in rows if row[key] not in there]
    try:
        with connection.begin_nested():
            insert(connection, table, missing)
    except sa.exc.IntegrityError:  # somebody else was faster with one of them
        missing = [row for row in missing if insert_unless_there(connection, table, row)]
    return [row[key] for row in missing]
