"""The registry's snapshots: who is an orphan, and what groups have and want."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa

from dagster_amoro.core.groups import Group
from dagster_amoro.core.model import Orphan
from dagster_amoro.core.properties import dump_properties
from dagster_amoro.core.tick_inputs import RegistrySnapshot
from dagster_amoro.stores.database import Database, is_mysql
from dagster_amoro.stores.registry import Registry, optimizer, resource, resource_group
from tests.integration.stores.helpers import (
    ODD_TEXT,
    TIMEOUT,
    OpenDatabase,
    a_resource,
    execute,
    is_write,
    register,
    rows,
    statements,
)


def test_a_snapshot_counts_and_finds_orphans(registry: Registry) -> None:
    """Resources, groups, and each resource that no optimizer names, with its row."""
    for resource_id in ("r-1", "r-2", "r-3"):
        registry.add_resource(a_resource(resource_id, properties={"k": resource_id}))
    registry.add_group("g", "local")
    registry.add_group("empty", "local")
    register(registry, "r-2")
    snapshot = registry.read_snapshot()
    assert (snapshot.resources, sorted(snapshot.groups), snapshot.expired) == (3, ["empty", "g"], 0)
    assert snapshot.orphans == {
        name: Orphan(name, "g", "local", 2, 1024, f'{{"k":"{name}"}}') for name in ("r-1", "r-3")
    }


def test_an_empty_registry_has_no_orphans(registry: Registry) -> None:
    """Nothing is nothing."""
    snapshot = registry.read_snapshot()
    assert (snapshot.resources, snapshot.groups, snapshot.orphans) == (0, (), {})


def test_optimizers_without_a_resource_are_harmless(registry: Registry) -> None:
    """Those that were started from outside hide no orphan, as NULL in a NOT IN would."""
    registry.add_resource(a_resource())
    register(registry, None, None, "a resource that is gone")
    assert list(registry.read_snapshot().orphans) == ["r-1"]


def test_several_optimizers_may_stand_for_one_resource(registry: Registry) -> None:
    """It is no orphan, counts once, and is one as soon as the last of them is gone."""
    registry.add_resource(a_resource())
    register(registry, "r-1", "r-1", "r-1")
    snapshot = registry.read_snapshot()
    assert (snapshot.resources, snapshot.orphans) == (1, {})
    execute(registry.database, sa.delete(optimizer))
    assert list(registry.read_snapshot().orphans) == ["r-1"]


def test_rows_of_old_upgraded_registries_are_tolerated(
    database_url: sa.URL, open_database: OpenDatabase
) -> None:
    """Those have no primary key: an id may be NULL, or stand in several rows."""
    attached = Registry(open_database(database_url), None)
    loose = sa.MetaData()
    sa.Table("resource", loose, *(sa.Column(c.name, c.type) for c in resource.columns))
    with attached.database.writing() as connection:
        loose.create_all(connection)
        optimizer.create(connection)
        resource_group.create(connection)
        ids = [{"resource_id": found} for found in (None, "twice", "twice")]
        connection.execute(sa.insert(loose.tables["resource"]), ids)
    twice = Orphan("twice", None, None, None, None, None, copies=2)
    assert attached.read_snapshot().orphans == {"twice": twice}
    assert attached.read_resource("twice").orphan == twice
    assert not attached.save_startup("twice", None, {"job-id": "1"})
    assert not attached.remove_orphan("twice", None)
    assert [row["properties"] for row in rows(attached.database, resource)] == [None] * 3


def test_heartbeats_expire_by_the_databases_clock(registry: Registry) -> None:
    """Older than the timeout: removed; younger: kept."""
    for resource_id in ("outside", "inside", "now"):
        registry.add_resource(a_resource(resource_id))
    register(registry, "outside", silent=TIMEOUT + timedelta(seconds=1))
    register(registry, "outside", silent=timedelta(days=400))
    register(registry, "inside", silent=TIMEOUT - timedelta(seconds=20))
    register(registry, "now")
    snapshot = registry.read_snapshot()
    assert (snapshot.expired, list(snapshot.orphans)) == (2, ["outside"])
    assert registry.read_snapshot().expired == 0


def test_a_heartbeat_may_be_exactly_as_old_as_the_timeout(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the boundary it is kept; a second later it is removed."""
    at = datetime(2026, 3, 29, 1, 0, 0)  # noqa: DTZ001 - UTC, as the database has it
    execute(registry.database, sa.insert(optimizer).values({"token": "t", "touch_time": at}))
    for now, expired in ((at + TIMEOUT, 0), (at + TIMEOUT + timedelta(seconds=1), 1)):
        clock: sa.ColumnElement[datetime] = sa.literal(now, sa.DateTime)
        if is_mysql(registry.database.engine.dialect):
            clock = sa.cast(clock, sa.DateTime)
        monkeypatch.setattr("dagster_amoro.stores.registry.utc_now", lambda clock=clock: clock)
        assert registry.read_snapshot().expired == expired


@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Tokyo"])
def test_the_time_zone_of_the_server_does_not_matter(
    database_url: sa.URL, open_database: OpenDatabase, zone: str
) -> None:
    """A row without a touch_time was touched now, wherever the server stands."""
    with server_in(zone, database_url):
        registry = Registry(open_database(database_url), TIMEOUT)
        registry.create()
        execute(registry.database, sa.insert(optimizer).values({"token": "new"}))
        register(registry, "old", silent=TIMEOUT * 1.5)
        assert registry.read_snapshot().expired == 1
        assert [row["token"] for row in rows(registry.database, optimizer)] == ["new"]


@contextmanager
def server_in(zone: str, url: sa.URL) -> Iterator[None]:
    """A server whose sessions have this time zone; SQLite has none."""
    offset = {"America/New_York": "-05:00", "Asia/Tokyo": "+09:00"}[zone]
    statements = {
        "sqlite": ("SELECT 1", "SELECT 1"),
        "postgresql": (f"ALTER DATABASE {url.database} SET timezone = '{zone}'", "SELECT 1"),
        "mysql": (f"SET GLOBAL time_zone = '{offset}'", "SET GLOBAL time_zone = 'SYSTEM'"),
    }
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    before, after = statements[url.get_backend_name()]
    with engine.begin() as connection:
        connection.exec_driver_sql(before)
    yield
    with engine.begin() as connection:
        connection.exec_driver_sql(after)


def test_a_snapshot_with_nothing_to_expire_writes_nothing(registry: Registry) -> None:
    """It only reads, whatever the database."""
    registry.add_resource(a_resource())
    register(registry, "r-1", silent=TIMEOUT / 2)
    with statements(registry.database) as sent:
        assert registry.read_snapshot().expired == 0
    assert sent
    assert not any(map(is_write, sent))


def test_a_snapshot_with_nothing_to_expire_leaves_the_file_alone(
    sqlite_url: sa.URL, open_database: OpenDatabase
) -> None:
    """Not a byte of it, nor of its write-ahead log, changes."""
    registry = Registry(open_database(sqlite_url), TIMEOUT)
    registry.create()
    register(registry, "r-1")
    path = Path(sqlite_url.database or "")
    files = (path, path.with_name(path.name + "-wal"))
    with closing(sqlite3.connect(path)) as watching:

        def look() -> tuple[object, ...]:
            version = watching.execute("PRAGMA data_version").fetchone()
            return version, *(file.read_bytes() for file in files)

        before = look()
        registry.read_snapshot()
        assert look() == before
        register(registry, "r-2")
        assert look() != before


def test_heartbeats_of_an_attached_registry_never_expire(
    registry: Registry, open_database: OpenDatabase
) -> None:
    """They are AMS's."""
    registry.add_resource(a_resource())
    register(registry, "r-1", silent=timedelta(days=400))
    attached = Registry(open_database(registry.database.url), None)
    with statements(attached.database) as sent:
        snapshot = attached.read_snapshot()
    assert (snapshot.expired, snapshot.orphans) == (0, {})
    assert not any(map(is_write, sent))


@pytest.mark.parametrize("others", [0, 30])
def test_capacity_counts_the_threads_of_groups(registry: Registry, others: int) -> None:
    """Wanted and live; of few groups or many, whether they have rows or not."""
    for resource_id, group_name, threads in (("a", "g", 2), ("b", "g", 3), ("c", "h", 4)):
        registry.add_resource(a_resource(resource_id, group_name=group_name, thread_count=threads))
    for row in ({"group_name": "g", "thread_count": 5}, {"group_name": None}):
        execute(registry.database, sa.insert(optimizer).values({"token": str(uuid4()), **row}))
    empty = {f"empty-{number}": (0, 0) for number in range(others)}
    assert registry.capacity({"g", "h", *empty}) == {"g": (5, 5), "h": (4, 0), **empty}


def sized(
    registry: Registry, name: str, properties: str | None = '{"min-parallelism":"8"}'
) -> None:
    """A group that says something about its size."""
    values = {"group_name": name, "container_name": "local", "properties": properties}
    execute(registry.database, sa.insert(resource_group).values(values))


def live(registry: Registry, resource_id: str | None, threads: int, group_name: str = "g") -> None:
    """An optimizer with threads."""
    values = {"resource_id": resource_id, "group_name": group_name, "thread_count": threads}
    execute(registry.database, sa.insert(optimizer).values({"token": str(uuid4()), **values}))


def test_a_snapshot_tells_the_groups_that_have_a_size(registry: Registry) -> None:
    """With the threads that live there, in groups of any other kind too if it is the one."""
    sized(registry, "g", '{"a":"b", "dynamic-allocation.enabled":"true"}')
    sized(registry, "h")
    for name, properties in (("plain", "{}"), ("empty", ""), ("none", None), ("bad", "[")):
        sized(registry, name, properties)
    for group_name, threads in (("g", 2), ("g", 3), ("h", 4), ("plain", 5)):
        live(registry, None, threads, group_name)
    snapshot = registry.read_snapshot()
    assert {name: each.name for name, each in snapshot.sized.items()} == {"g": "g", "h": "h"}
    assert snapshot.sized == registry.sized_groups()
    assert snapshot.sized["h"] == Group(
        name="h", container_name="local", properties='{"min-parallelism":"8"}'
    )
    assert {name: snapshot.live[name] for name in ("g", "h")} == {"g": 5, "h": 4}
    assert registry.group("plain") == Group(name="plain", container_name="local", properties="{}")
    assert registry.group("gone") is None


def test_a_snapshot_of_an_attached_registry_counts_no_threads(
    registry: Registry, open_database: OpenDatabase
) -> None:
    """AMS keeps its groups at their size itself; that they have one is told all the same."""
    sized(registry, "g")
    live(registry, None, 5)
    snapshot = Registry(open_database(registry.database.url), None).read_snapshot()
    assert (list(snapshot.sized), snapshot.live) == (["g"], {})


def test_a_snapshot_of_a_group_tells_that_group_only(registry: Registry) -> None:
    """Its resources, orphans, size and live threads; it removes nothing first."""
    sized(registry, "g")
    sized(registry, "h")
    for name, group_name in (("a", "g"), ("b", "g"), ("c", "h")):
        registry.add_resource(a_resource(name, group_name=group_name))
    live(registry, "b", 3)
    live(registry, "outside", 4)
    register(registry, "old", silent=TIMEOUT * 2)
    snapshot = registry.read_group_snapshot("g")
    assert (snapshot.resources, snapshot.groups, list(snapshot.orphans)) == (2, ("g",), ["a"])
    assert (list(snapshot.sized), snapshot.live, snapshot.expired) == (["g"], {"g": 7}, 0)
    assert len(rows(registry.database, optimizer)) == 3
    empty = registry.read_group_snapshot("gone")
    assert (empty.resources, empty.orphans, empty.sized, empty.live) == (0, {}, {}, {})


@pytest.mark.parametrize(
    "read", [Registry.read_snapshot, lambda registry: registry.read_group_snapshot("g")]
)
def test_a_snapshot_sees_one_moment(
    registry: Registry, open_database: OpenDatabase, read: Callable[[Registry], RegistrySnapshot]
) -> None:
    """Whatever others commit between two of its statements, it shows all of that or nothing."""
    sized(registry, "g")
    registry.add_resource(a_resource("r-1"))
    live(registry, "r-2", 4)
    other = Registry(open_database(registry.database.url), TIMEOUT)
    before = read(registry)
    with statements(registry.database) as sent:
        read(registry)
    number, seen = len(sent), []

    def change() -> None:
        with other.database.writing() as connection:
            connection.execute(sa.delete(optimizer))
            connection.execute(sa.update(resource_group).values(properties='{"min-parallelism":1}'))
            values = {"group_name": "g", "thread_count": 2}
            connection.execute(sa.insert(resource).values(resource_id="r-2", **values))
            connection.execute(sa.insert(resource_group).values(group_name="new"))

    def undo() -> None:
        with other.database.writing() as connection:
            connection.execute(sa.delete(resource).where(resource.c.resource_id == "r-2"))
            connection.execute(
                sa.delete(resource_group).where(resource_group.c.group_name == "new")
            )
            connection.execute(
                sa.update(resource_group).values(properties='{"min-parallelism":"8"}')
            )
        live(other, "r-2", 4)

    for at in range(number):
        with after_statement(registry.database, at, change):
            seen.append(read(registry))
        after = read(registry)
        assert after != before
        assert seen[-1] in (before, after)
        undo()
    assert before in seen  # so something was committed in the midst of one


@contextmanager
def after_statement(database: Database, at: int, act: Callable[[], None]) -> Iterator[None]:
    """Lets something happen right after a statement of that number, counted from 0."""
    passed = iter(range(at + 1))

    def note(*_arguments: Any) -> None:  # noqa: ANN401 - of SQLAlchemy's hook
        if next(passed, None) == at:
            act()

    sa.event.listen(database.engine, "after_cursor_execute", note)
    yield
    sa.event.remove(database.engine, "after_cursor_execute", note)


def test_resources_are_counted_by_group(registry: Registry) -> None:
    """Those of no group under an empty name; a group without any is not told."""
    registry.add_group("empty", "local")
    for name, group_name in (("a", "g"), ("b", "g"), ("c", "h"), ("d", None)):
        execute(
            registry.database, sa.insert(resource).values(resource_id=name, group_name=group_name)
        )
    assert registry.resource_counts() == {"g": 2, "h": 1, "": 1}


def test_a_group_is_saved_as_it_is_to_be(registry: Registry) -> None:
    """Whether it was there or not; others stay."""
    registry.add_group("other", "local")
    registry.save_group("g", "local", {"min-parallelism": "8"})
    registry.save_group("g", "another", {"k": ODD_TEXT})
    properties = dump_properties({"k": ODD_TEXT})
    assert registry.group("g") == Group(name="g", container_name="another", properties=properties)
    assert registry.group("other") == Group(name="other", container_name="local", properties="{}")
