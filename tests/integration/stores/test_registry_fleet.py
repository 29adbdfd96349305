"""Rows of a declared fleet: read and added together, changed and removed with what they had."""

from datetime import timedelta

import pytest
import sqlalchemy as sa

from dagster_amoro.core.errors import StoreUnavailableError
from dagster_amoro.core.fleet_plan import DECLARED, FleetRows, GroupStep, declared_row
from dagster_amoro.core.model import Resource
from dagster_amoro.stores.leases import acquire
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro.stores.registry import Registry, optimizer
from tests.integration.stores.helpers import (
    HOSTILE,
    TIMEOUT,
    a_resource,
    execute,
    register,
    rows,
    statements,
)
from tests.integration.stores.racing import Racers

GROUP = GroupStep("g", "local", {"min-parallelism": "4"}, "new")


def declared(resource_id: str = "r-1", **properties: str) -> Resource:
    """A resource as its row has it, with its mark."""
    return declared_row(a_resource(resource_id, properties=properties))


def stored(registry: Registry, resource_id: str = "r-1") -> str | None:
    """The properties of a row, as they are stored."""
    row = registry.read_resource(resource_id).row
    return None if row is None else row["properties"]


def test_groups_and_resources_are_recorded_together(registry: Registry) -> None:
    """Those that are there already stay as they are, and that is said."""
    registry.add_resource(a_resource("r-2", thread_count=9))
    added = registry.declare([GROUP], [declared(name) for name in ("r-1", "r-2", "r-3")])
    assert added == {"r-1", "r-3"}
    found = registry.read_fleet(["r-1", "r-2", "r-3"])
    assert [found.rows[name].thread_count for name in ("r-1", "r-2", "r-3")] == [2, 9, 2]
    assert found.groups["g"].properties == '{"min-parallelism":"4"}'
    assert registry.declare([GROUP._replace(properties={})], [declared()]) == set()
    assert registry.read_fleet([]).groups["g"].properties == "{}"


def test_what_cannot_be_recorded_leaves_nothing_behind(registry: Registry) -> None:
    """Neither the group nor the others: all or none."""
    with pytest.raises(StoreUnavailableError):
        registry.declare([GROUP], [declared(), declared("half \udc80 of a pair")])
    assert registry.read_fleet(["r-1"]) == FleetRows(registered=set())


def test_many_are_recorded_and_read_in_few_statements(registry: Registry) -> None:
    """A fleet of thousands costs a handful of them."""
    names = [f"r-{n}" for n in range(2500)]
    registry.read_fleet([])
    with statements(registry.database) as sent:
        assert len(registry.declare([GROUP], [declared(name) for name in names])) == 2500
        assert len(registry.read_fleet(names).rows) == 2500
    assert len(sent) < 40


def test_declared_rows_are_found_by_their_mark(registry: Registry) -> None:
    """Whoever declares them no longer finds them all the same; others only if they are named."""
    registry.declare([], [declared()])
    registry.add_resource(a_resource("own"))
    assert registry.read_fleet([]).rows.keys() == {"r-1"}
    assert registry.read_fleet(["own", "nobody"]).rows.keys() == {"r-1", "own"}
    assert DECLARED in (registry.read_fleet([]).rows["r-1"].properties or "")


def test_whoever_stands_for_them_is_told(registry: Registry) -> None:
    """But for those whose heartbeats are too old, which are removed first."""
    registry.declare([], [declared(), declared("r-2"), declared("r-3")])
    register(registry, "r-1")
    register(registry, "r-2", silent=TIMEOUT * 2)
    assert registry.read_fleet([]).registered == {"r-1"}
    assert [row["resource_id"] for row in rows(registry.database, optimizer)] == ["r-1"]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_and_properties_of_any_kind(registry: Registry, name: str) -> None:
    """They come back as they were given."""
    new = declared(name, **{name: name})
    assert registry.declare([GroupStep(name, name, {name: name}, "")], [new]) == {name}
    row = registry.read_fleet([name]).rows[name]
    assert registry.redeclare(name, row.properties, declared(name, other=name))
    assert registry.remove_resource(name, stored(registry, name))
    assert stored(registry, name) is None


def test_a_row_is_changed_if_it_is_as_it_was_read(registry: Registry) -> None:
    """All of it, but when it was recorded; and nobody stands for it any more."""
    registry.declare([], [declared(k="1")])
    register(registry, "r-1")
    before = stored(registry)
    new = declared_row(a_resource(group_name="h", thread_count=7, memory_mb=1))
    assert not registry.redeclare("r-1", '{"k":"1"}', new)
    assert not registry.redeclare("r-9", before, new)
    assert registry.read_resource("r-1").registered
    assert registry.redeclare("r-1", before, new)
    found = registry.read_resource("r-1")
    assert not found.registered
    assert found.row is not None
    assert (found.row["group_name"], found.row["thread_count"]) == ("h", 7)
    assert not registry.redeclare("r-1", before, new)


def test_a_row_is_removed_if_it_is_as_it_was_read(registry: Registry) -> None:
    """With what stands for it, and nothing of others."""
    registry.declare([], [declared(), declared("r-2")])
    for name in ("r-1", "r-2"):
        register(registry, name)
    before = stored(registry)
    assert not registry.remove_resource("r-1", "{}")
    assert registry.remove_resource("r-1", before)
    assert not registry.remove_resource("r-1", before)
    assert [row["resource_id"] for row in rows(registry.database, optimizer)] == ["r-2"]


def test_two_that_declare_at_once_record_everything_once(
    registry: Registry, database_url: sa.URL, racers: Racers
) -> None:
    """Each row is added by one of them, and neither fails."""
    for _ in range(10):
        first, second = racers.race("declare", database_url)
        assert isinstance(first, int)
        assert isinstance(second, int)
        assert first + second == len(registry.read_fleet([f"r-{n}" for n in range(10)]).rows) == 10
        execute(registry.database, "DELETE FROM resource")
        execute(registry.database, "DELETE FROM resource_group")


def test_the_fence_of_the_lease_in_force(ledger: Ledger) -> None:
    """None before there is one, and once it has run out."""
    assert ledger.fence() is None
    with ledger.transaction() as transaction:
        acquire(transaction.connection, "here", timedelta(hours=1))
    assert ledger.fence() == 1
    execute(ledger.database, "UPDATE keeper_lease SET expires_at = '2020-01-01 00:00:00'")
    assert ledger.fence() is None
