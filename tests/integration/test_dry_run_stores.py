"""What does a dry run see of the registry? As much as any; and it does nothing to it."""

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import pytest
import sqlalchemy as sa

from dagster_amoro.core.model import Resource, State
from dagster_amoro.stores.database import Database, utc_now
from dagster_amoro.stores.dry_run import DryRunRegistry
from dagster_amoro.stores.registry import (
    Registry,
    ResourceSnapshot,
    metadata,
    optimizer,
    resource,
    resource_group,
)
from tests.helpers.fleet import fleet

TIMEOUT: Final = timedelta(minutes=1)

OpenDatabase = Callable[..., Database]


@pytest.fixture
def registry(database_url: sa.URL, open_database: OpenDatabase) -> Registry:
    """A standalone registry: an orphan, one that is registered, and one that is silent."""
    made = Registry(open_database(database_url), TIMEOUT)
    made.create()
    for name in ("orphan", "silent", "alive"):
        made.add_resource(a_resource(name))
    values = {"group_name": "g", "container_name": "local", "properties": '{"min-parallelism":"8"}'}
    execute(made, sa.insert(resource_group).values(values))
    register(made, "silent", None, silent=TIMEOUT * 2, threads=3)
    register(made, "alive", silent=TIMEOUT / 2)
    return made


@pytest.fixture
def removed() -> set[str]:
    """What would have been removed; a test adds to it."""
    return set()


@pytest.fixture
def dry(registry: Registry, open_database: OpenDatabase, removed: set[str]) -> DryRunRegistry:
    """The same registry as a dry run has it."""
    return DryRunRegistry(open_database(registry.database.url), TIMEOUT, lambda: removed)


def a_resource(name: str) -> Resource:
    """A resource of group g."""
    return Resource(
        resource_id=name, group_name="g", container_name="local", thread_count=2, memory_mb=1024
    )


def a_row(name: str) -> dict[str, object]:
    """A whole resource row, as a look reads it."""
    none = dict.fromkeys(("resource_type", "container_name", "thread_count", "total_memory"))
    started = {"group_name": "g", "start_time": "2026-03-29 01:00:00", "properties": "{}"}
    return {"resource_id": name, **none, **started}


def execute(registry: Registry, statement: sa.Executable) -> None:
    """Any statement, as somebody else would run it."""
    with registry.database.writing() as connection:
        connection.execute(statement)


def now_of(registry: Registry) -> datetime:
    """What time it is, by the database's clock."""
    with registry.database.reading() as connection:
        return connection.scalars(sa.select(utc_now())).one()


def register(
    registry: Registry, *names: str | None, silent: timedelta = timedelta(), threads: int = 0
) -> None:
    """Optimizers that name these resources, their last heartbeat `silent` ago."""
    touched = now_of(registry) - silent
    for name in names:
        values = {"token": str(uuid4()), "resource_id": name, "touch_time": touched}
        counted = {"group_name": "g", "thread_count": threads}
        execute(registry, sa.insert(optimizer).values(values | counted))


def dump(registry: Registry) -> dict[str, list[tuple[object, ...]]]:
    """Every row of every table."""
    with registry.database.reading() as connection:
        return {
            table.name: sorted(
                (tuple(row) for row in connection.execute(sa.select(table))), key=repr
            )
            for table in metadata.sorted_tables
        }


# --- It does nothing ---------------------------------------------------------------------------

WRITES: Final[dict[str, Callable[[Registry], Any]]] = {
    "read_snapshot": Registry.read_snapshot,
    "read_group_snapshot": lambda registry: registry.read_group_snapshot("g"),
    "save_startup": lambda registry: registry.save_startup("orphan", "{}", {"pid": "7"}),
    "remove_orphan": lambda registry: registry.remove_orphan("orphan", "{}"),
    "restore": lambda registry: registry.restore(a_row("new")),
    "add_group": lambda registry: registry.add_group("new", "local"),
    "save_group": lambda registry: registry.save_group("g", "another", {"k": "v"}),
    "add_resource": lambda registry: registry.add_resource(a_resource("new")),
}


@pytest.mark.parametrize("call", WRITES)
def test_whatever_it_is_asked_to_do_it_changes_nothing(
    registry: Registry, dry: DryRunRegistry, call: str
) -> None:
    """Of things that are there, so that a registry would do it."""
    before = dump(registry)
    WRITES[call](dry)
    assert dump(registry) == before
    WRITES[call](registry)
    assert (dump(registry) == before) == (call == "read_group_snapshot")


def test_it_creates_no_tables(database_url: sa.URL, open_database: OpenDatabase) -> None:
    """A dry run on an empty database leaves it empty."""
    dry = DryRunRegistry(open_database(database_url), TIMEOUT, set)
    dry.create()
    assert sa.inspect(dry.database.engine).get_table_names() == []


def test_it_says_what_would_have_come_of_it(dry: DryRunRegistry, removed: set[str]) -> None:
    """As the registry itself would: by the row, its properties and who stands for it."""
    assert dry.save_startup("orphan", "{}", {"pid": "7"})
    assert dry.remove_orphan("orphan", "{}")
    assert dry.remove_orphan("silent", "{}")
    assert dry.restore(a_row("new"))
    assert not dry.restore(a_row("orphan"))
    for seen in (None, "", '{"changed":"meanwhile"}'):
        assert not dry.save_startup("orphan", seen, {"pid": "7"})
        assert not dry.remove_orphan("orphan", seen)
    assert not dry.remove_orphan("alive", "{}")
    for name in ("gone", "new"):
        assert not dry.save_startup(name, "{}", {"pid": "7"})
        assert not dry.remove_orphan(name, "{}")
    assert removed == set()


# --- Old heartbeats ----------------------------------------------------------------------------


def test_heartbeats_that_are_too_old_do_not_count(registry: Registry, dry: DryRunRegistry) -> None:
    """What a survey says is what one says that removes them; only, they are still there."""
    register(registry, None, threads=5)
    said = dry.read_snapshot()
    assert set(said.orphans) == {"orphan", "silent"}
    assert (said.expired, said.live) == (0, {"g": 5})
    assert not dry.read_resource("silent").registered
    assert dry.read_resource("alive").registered
    group = dry.read_group_snapshot("g")
    assert (set(group.orphans), group.live) == ({"orphan", "silent"}, {"g": 5})
    capacity = dry.capacity(["g"])
    before = registry.read_snapshot()
    assert before.expired == 2
    assert (before.orphans, before.live) == (said.orphans, said.live)
    assert registry.capacity(["g"]) == capacity == {"g": (6, 5)}


def test_newcomers_whose_heartbeats_are_too_old_are_not_registered(
    registry: Registry, dry: DryRunRegistry
) -> None:
    """Those of others are."""
    since = dry.newest_starts(["g"])
    soon = now_of(registry) + timedelta(seconds=10)
    for name, silent in (("new", TIMEOUT / 2), ("new and silent", TIMEOUT * 2)):
        values = {"group_name": "g", "start_time": soon}
        execute(registry, sa.insert(resource).values(resource_id=name, **values))
        register(registry, name, silent=silent)
    found = {each.resource_id: each.registered for each in dry.new_resources(since)}
    assert found == {"new": True, "new and silent": False}


def test_heartbeats_of_an_attached_registry_count_however_old(
    registry: Registry, open_database: OpenDatabase
) -> None:
    """They are AMS's."""
    attached = DryRunRegistry(open_database(registry.database.url), None, set)
    assert set(attached.read_snapshot().orphans) == {"orphan"}
    assert attached.read_resource("silent").registered


# --- What would have been removed ---------------------------------------------------------------


def test_what_would_have_been_removed_is_not_there(dry: DryRunRegistry, removed: set[str]) -> None:
    """For a survey, a look and a question; others are."""
    removed.add("orphan")
    assert (
        set(dry.read_snapshot().orphans) == set(dry.read_group_snapshot("g").orphans) == {"silent"}
    )
    assert dry.read_resource("orphan") == ResourceSnapshot()
    assert dry.present(["orphan", "silent", "alive", "gone"]) == {"silent", "alive"}


def test_a_keepers_own_ledger_says_what_would_have_been_removed(
    tmp_path: Path, database_url: sa.URL
) -> None:
    """From a dry run's giving up on; when the dry run is over, it is there and is kept alive."""
    with fleet(tmp_path, url=database_url, max_retries=0) as world:
        world.worker()
        real = world.services
        before = dump(real.registry)
        world.services = real.in_dry_run()
        world.tick()
        (request,) = world.later().tick()
        world.launch(request)
        assert world.incidents()[0].state is State.EXHAUSTED
        assert world.container.calls == ()
        assert dump(real.registry) == before
        assert world.services.registry.read_resource("w-1").row is None
        assert world.tick() == []
        assert len(world.incidents()) == 1
        world.services = real
        assert world.services.registry.read_resource("w-1").row is not None
        world.tick()
        assert [(each.dry_run, each.is_open) for each in world.incidents()] == [
            (True, False),
            (False, True),
        ]
