"""What does a survey of a running AMS cost, in a database that has no index for it?"""

from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from benchmarks.figures import Figure, Figures, interleaved, seconds
from benchmarks.servers import mariadb, mariadb_is_here, postgresql
from benchmarks.world import PROPERTIES
from dagster_amoro.stores.database import Database
from dagster_amoro.stores.registry import Registry

_RESOURCES: Final = 1_000_000
_ONE_IN: Final = 100  # is an orphan
_GROUPS: Final = 1_000
_GROUPS_ASKED: Final = 2  # from which all are extrapolated
_REPETITIONS: Final = 3
_BOUND: Final = 1.5
_BOUND_BY_GROUP: Final = 0.05

# Amoro's own tables, as far as they matter here. Its init scripts give `optimizer.resource_id` no
# index; AMS itself never looks for it.
_TABLES: Final = """
CREATE TABLE resource (
    resource_id varchar(100) NOT NULL PRIMARY KEY, resource_type smallint DEFAULT 0,
    container_name varchar(100), group_name varchar(50), thread_count int, total_memory bigint,
    start_time timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP, properties {text});
CREATE INDEX resource_by_group ON resource (group_name);
CREATE TABLE optimizer (
    token varchar(50) NOT NULL PRIMARY KEY, resource_id varchar(100), group_name varchar(50),
    container_name varchar(100), start_time timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP,
    touch_time timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP, thread_count int,
    total_memory bigint, properties {text});
CREATE INDEX optimizer_by_group ON optimizer (group_name);
CREATE TABLE resource_group (
    group_name varchar(50) NOT NULL PRIMARY KEY, container_name varchar(100), properties {text})
"""
_ROWS: Final = """
INSERT INTO resource_group
    SELECT concat('group-', n), 'flink', '{{}}' FROM {numbers} WHERE n <= {groups};
INSERT INTO resource
    (resource_id, container_name, group_name, thread_count, total_memory, properties)
    SELECT substr(md5(concat('', n)), 1, 26), 'flink', concat('group-', 1 + mod(n, {groups})),
        4, 0, '{properties}' FROM {numbers} ORDER BY 1;
INSERT INTO optimizer
    (token, resource_id, group_name, container_name, thread_count, total_memory, properties)
    SELECT md5(concat('token', n)), substr(md5(concat('', n)), 1, 26),
        concat('group-', 1 + mod(n, {groups})), 'flink', 4, 2048, '{{"job-id":"0"}}'
    FROM {numbers} WHERE mod(n, {one_in}) <> 0 ORDER BY 1
"""
_ORPHANS: Final = """
SELECT r.resource_id, r.group_name, r.container_name, r.thread_count, r.total_memory, r.properties
FROM resource r LEFT JOIN optimizer o ON o.resource_id = r.resource_id WHERE o.token IS NULL
"""
_RESOURCES_OF: Final = sa.text("SELECT * FROM resource WHERE group_name = :group_name")
_ALL_OPTIMIZERS: Final = sa.text("SELECT resource_id, group_name FROM optimizer")

_SHARED: Final = {"groups": str(_GROUPS), "one_in": str(_ONE_IN), "properties": PROPERTIES}
_POSTGRESQL: Final = _SHARED | {
    "text": "text",
    "numbers": "generate_series(1, {resources}) n",
    "analyze": "ANALYZE",
    "orphans": _ORPHANS,
}
_MARIADB: Final = _SHARED | {
    "text": "mediumtext",
    "numbers": "(SELECT seq AS n FROM seq_1_to_{resources}) numbers",
    "analyze": "ANALYZE TABLE resource, optimizer",
    "orphans": "SET STATEMENT join_cache_level = 4, join_buffer_size = 268435456, "
    f"join_buffer_space_limit = 268435456 FOR {_ORPHANS}",
}


def figures(folder: Path) -> Figures:
    """The survey of an attached registry, to the bare anti-join and to looking group by group."""
    with postgresql(folder / "postgresql") as url:
        yield from _on(url, "PostgreSQL", _POSTGRESQL)
    if not mariadb_is_here():
        print("There is no MariaDB here, so nothing is measured on it.")
        return
    with mariadb() as url:
        name = "amoro"
        with sa.create_engine(url, poolclass=sa.NullPool).connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
        yield from _on(url.set(database=name), "MariaDB", _MARIADB)


def _on(url: sa.URL, server: str, dialect: Mapping[str, str]) -> Figures:
    name = f"survey of AMS's tables, {_RESOURCES:,} resources, {server}"
    with closing(Database(url, "registry")) as database:
        _fill(database, dialect)
        registry = Registry(database, None)
        sides = (registry.read_snapshot, _fetch(database, dialect["orphans"]))
        ours, bare = interleaved(*map(seconds, sides), repetitions=_REPETITIONS)
        by_group = seconds(lambda: _by_group(database))() * _GROUPS / _GROUPS_ASKED
    yield Figure(name=name, ours=ours, bare=bare, bound=_BOUND)
    name = f"the same, to {_GROUPS:,} groups as AMS lists them, {server}"
    yield Figure(name=name, ours=ours, bare=by_group, bound=_BOUND_BY_GROUP)


def _fill(database: Database, dialect: Mapping[str, str]) -> None:
    numbers = dialect["numbers"].format(resources=_RESOURCES)
    for script in (_TABLES, _ROWS, dialect["analyze"]):
        with database.writing() as connection:
            for statement in script.format_map({**dialect, "numbers": numbers}).split(";"):
                connection.exec_driver_sql(statement)


def _fetch(database: Database, statement: str) -> Callable[[], object]:
    def fetch() -> object:
        with database.reading() as connection:
            return connection.exec_driver_sql(statement).all()

    return fetch


def _by_group(database: Database) -> None:
    """As AMS lists a group's resources and optimizers: the latter all, to be sorted out here.

    It reads all columns of the optimizers; two are enough to find orphans.
    """
    for number in range(1, _GROUPS_ASKED + 1):
        group = f"group-{number}"
        with database.reading() as connection:
            resources = connection.execute(_RESOURCES_OF, {"group_name": group}).all()
            optimizers = connection.execute(_ALL_OPTIMIZERS).all()
        registered = {row[0] for row in optimizers if row[1] == group}
        orphans = [row for row in resources if row[0] not in registered]
        if len(resources) != _RESOURCES // _GROUPS:
            raise AssertionError(f"{group} has {len(resources)} resources, {len(orphans)} orphans")
