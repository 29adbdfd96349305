"""Does a database read a table, or an index of it, from end to end? Its own plans say so."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import sqlalchemy as sa

from dagster_amoro.stores.database import Database, is_mysql

# Tables of ours that hold what there is now, not what there was: they may be read as a whole.
OF_NOW: Final = (
    *("keeper_pause", "keeper_scale_up", "keeper_look", "keeper_capacity"),
    *("keeper_ledger", "keeper_lease", "keeper_schema_version"),
)
_OURS: Final = re.compile("keeper_[a-z_]+")
_SCAN: Final = re.compile(r"^SCAN (?:TABLE )?(keeper_\w+)")
_WHOLE: Final = {"ALL", "index"}  # what MariaDB calls them


@contextmanager
def bounded(database: Database) -> Iterator[None]:
    """Every statement that reads a ledger in this block is bounded by an index.

    The ledger has to be filled, and its servers have to know (`benchmarks.ledgers.fill`): the plan
    for a small table is to read it. Tables whose rows do not grow in number with time do not count.
    """
    sent: dict[str, Any] = {}

    def note(*arguments: Any) -> None:  # noqa: ANN401 - of SQLAlchemy's hook
        _, _, statement, parameters, _, _ = arguments
        sent.setdefault(statement, parameters[0] if isinstance(parameters, list) else parameters)

    sa.event.listen(database.engine, "before_cursor_execute", note)
    try:
        yield
    finally:
        sa.event.remove(database.engine, "before_cursor_execute", note)
    asked = {each: values for each, values in sent.items() if _reads(each)}
    assert asked, "nothing was read"
    found = {
        each: read for each, values in asked.items() if (read := _whole(database, each, values))
    }
    assert not found, json.dumps(found, indent=1, default=list)


def whole_reads(database: Database, statement: str) -> list[str]:
    """What one statement reads from end to end, through whatever views."""
    return _whole(database, statement, ())


def _reads(statement: str) -> bool:
    """Whether it looks for rows of a ledger; what only adds rows has no plan."""
    verb = statement.lstrip().partition(" ")[0].upper()
    looks = verb in {"SELECT", "WITH", "UPDATE", "DELETE"}
    return bool(_growing(statement)) and (looks or (verb == "INSERT" and " SELECT " in statement))


def _growing(text: str) -> set[str]:
    return {name for name in _OURS.findall(text) if not name.startswith(OF_NOW)}


def _whole(database: Database, statement: str, parameters: Any) -> list[str]:  # noqa: ANN401
    """What it reads from end to end, as the database's plan calls it."""
    dialect = database.engine.dialect
    explain, read = "EXPLAIN QUERY PLAN ", _of_sqlite
    if is_mysql(dialect):
        explain, read = "EXPLAIN FORMAT=JSON ", _of_mariadb
    elif dialect.name == "postgresql":
        explain, read = "EXPLAIN (FORMAT JSON) ", _of_postgresql
    with database.reading() as connection:
        rows = connection.exec_driver_sql(explain + statement, parameters).all()
    return [each for each in read(rows) if _growing(each)]


def _of_sqlite(rows: Any) -> Iterator[str]:  # noqa: ANN401 - of the driver, like the next two
    for *_, detail in rows:
        if _SCAN.match(detail):
            yield detail


def _of_postgresql(rows: Any) -> Iterator[str]:  # noqa: ANN401
    first_only = []
    for node in _nodes(rows[0][0]):
        kind, table = str(node.get("Node Type", "")), str(node.get("Relation Name", ""))
        if kind == "Limit":  # of an order that the index has: it ends where it began
            first_only += [each for each in node["Plans"] if "Filter" not in each]
        by_index = "Index Cond" in node or node in first_only
        if kind == "Seq Scan" or (kind.startswith("Index") and not by_index):
            yield f"{kind} {table} {node.get('Index Name', '')}"


def _of_mariadb(rows: Any) -> Iterator[str]:  # noqa: ANN401
    for node in _nodes(json.loads(rows[0][0])):
        if node.get("access_type") in _WHOLE:
            yield f"{node['access_type']} {node.get('table_name')} {node.get('key', '')}"


def _nodes(plan: Any) -> Iterator[Mapping[str, Any]]:  # noqa: ANN401 - JSON
    """All parts of a plan, however deep."""
    if isinstance(plan, Mapping):
        yield plan
    children = (
        plan.values() if isinstance(plan, Mapping) else plan if isinstance(plan, list) else ()
    )
    for child in children:
        yield from _nodes(child)
