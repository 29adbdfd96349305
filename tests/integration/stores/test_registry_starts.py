"""The registry's newest resources, by the database's own times."""

from datetime import datetime, timedelta

import pytest
import sqlalchemy as sa

from dagster_amoro.core.replacement import NewResource
from dagster_amoro.stores.registry import Registry, resource
from tests.integration.stores.helpers import (
    START,
    TIMEOUT,
    OpenDatabase,
    a_resource,
    execute,
    later,
    register,
    rows_as_stored,
)


@pytest.mark.parametrize("others", [0, 30])
def test_the_newest_start_is_that_of_each_group(registry: Registry, others: int) -> None:
    """Of few groups or many; a group without resources has none."""
    for number, (name, group) in enumerate((("a", "g"), ("b", "g"), ("c", "h"), ("d", "other"))):
        later(registry, name, START + timedelta(seconds=number), group_name=group)
    asked = {"g", "h", *(f"empty-{number}" for number in range(others))}
    found = registry.newest_starts(asked)
    assert found.keys() & asked == {"g", "h"}
    assert {name: datetime.fromisoformat(found[name]) for name in ("g", "h")} == {
        "g": START + timedelta(seconds=1),
        "h": START + timedelta(seconds=2),
    }


def test_newcomers_are_what_came_after_a_moment(registry: Registry) -> None:
    """With their threads, and whether they have registered; in their groups only."""
    for number, name in enumerate(("before", "newest")):
        later(registry, name, START + timedelta(seconds=number))
    later(registry, "elsewhere", START, group_name="h")
    since = registry.newest_starts(["g", "h"])
    assert registry.new_resources(since) == []
    later(registry, "new", START + timedelta(seconds=2), thread_count=3)
    later(registry, "there", START + timedelta(seconds=3), thread_count=None)
    later(registry, "in h", START + timedelta(seconds=4), group_name="h")
    later(registry, "in another", START + timedelta(days=4), group_name="another")
    register(registry, "there", "there", None)
    found = {each.resource_id: each for each in registry.new_resources(since)}
    assert set(found) == {"new", "there", "in h"}
    assert found["new"][1:3] == ("g", 3)
    assert found["there"][1:3] == ("g", 0)
    assert {name: each.registered for name, each in found.items()} == {
        "new": False, "there": True, "in h": False,
    }  # fmt: skip
    assert all(found[name].start_time > since[found[name].group_name] for name in found)
    assert registry.new_resources({}) == []


def test_times_are_compared_as_finely_as_the_database_has_them(registry: Registry) -> None:
    """To the fraction of a second, on every database."""
    later(registry, "newest", START)
    since = registry.newest_starts(["g"])
    later(registry, "at once", START + timedelta(milliseconds=300))
    later(registry, "a second later", START + timedelta(seconds=1))
    found = registry.new_resources(since)
    assert {each.resource_id for each in found} == {"at once", "a second later"}
    assert all(each.start_time > since["g"] for each in found)


def test_times_of_the_databases_own_can_be_compared(registry: Registry) -> None:
    """As it writes them by itself when a resource is recorded; texts are compared as times are."""
    later(registry, "long ago", datetime(2020, 1, 1))  # noqa: DTZ001 - as the database has it
    since = registry.newest_starts(["g"])
    registry.add_resource(a_resource("now"))
    (found,) = registry.new_resources(since)
    assert found == NewResource("now", "g", 2, registry.newest_starts(["g"])["g"], registered=False)
    assert found.start_time > since["g"]
    assert registry.new_resources({"g": found.start_time}) == []


@pytest.mark.parametrize("text", ["soon", "", "2026-03-29T01:00:00Z", "17"])
def test_a_time_that_is_none_stops_nobody(
    sqlite_url: sa.URL, open_database: OpenDatabase, text: str
) -> None:
    """In SQLite a time can be any text; it is compared as one."""
    registry = Registry(open_database(sqlite_url), TIMEOUT)
    registry.create()
    execute(
        registry.database,
        sa.text("INSERT INTO resource (resource_id, group_name, start_time) VALUES ('r', 'g', :t)")
        .bindparams(t=text),
    )  # fmt: skip
    since = registry.newest_starts(["g"])
    assert since == {"g": text}
    assert registry.new_resources(since) == []
    row = registry.read_resource("r").row
    assert row is not None
    before = rows_as_stored(registry)
    execute(registry.database, sa.delete(resource))
    assert registry.restore(row)
    assert rows_as_stored(registry) == before
