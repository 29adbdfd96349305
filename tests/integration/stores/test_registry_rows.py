"""Single rows of the registry: read, changed and removed under conditions."""

import json
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from dagster_amoro.core.errors import PropertiesError, StoreUnavailableError
from dagster_amoro.core.model import Orphan
from dagster_amoro.core.properties import dump_properties
from dagster_amoro.stores.database import is_mysql
from dagster_amoro.stores.registry import (
    Registry,
    ResourceSnapshot,
    orphan_of,
    resource,
    resource_group,
)
from tests.integration.stores.helpers import (
    HOSTILE,
    ODD_TEXT,
    TIMEOUT,
    OpenDatabase,
    a_resource,
    execute,
    register,
    rows,
)
from tests.integration.stores.racing import Racers


@pytest.mark.parametrize("number", [0, 1, 2500])
def test_present_takes_any_number_of_ids(registry: Registry, number: int) -> None:
    """Those that have a row, whether registered or not; also more than one statement takes."""
    ids = [f"r-{n}" for n in range(number)]
    with registry.database.writing() as connection:
        for resource_id in ids[::2]:
            connection.execute(sa.insert(resource).values(resource_id=resource_id))
    assert registry.present(iter(ids)) == set(ids[::2])
    assert registry.present(["another"]) == set()


def test_a_look_shows_the_whole_row(registry: Registry) -> None:
    """Every column, in a form that JSON keeps, and whether an optimizer names it."""
    registry.add_resource(a_resource(properties={"k": ODD_TEXT}))
    seen_resource = registry.read_resource("r-1")
    assert seen_resource.row is not None
    assert list(seen_resource.row) == [column.name for column in resource.columns]
    kept = json.loads(json.dumps(dict(seen_resource.row)))
    assert kept == seen_resource.row
    start_time = datetime.fromisoformat(kept.pop("start_time")).replace(tzinfo=UTC)
    assert abs(datetime.now(UTC) - start_time) < timedelta(minutes=10)
    assert kept == {
        "resource_id": "r-1",
        "resource_type": 0,
        "container_name": "local",
        "group_name": "g",
        "thread_count": 2,
        "total_memory": 1024,
        "properties": dump_properties({"k": ODD_TEXT}),
    }
    assert (
        seen_resource.orphan
        == orphan_of(seen_resource.row)
        == registry.read_snapshot().orphans["r-1"]
    )


def test_a_look_says_whether_it_is_registered(registry: Registry) -> None:
    """By one optimizer or several; a resource that is gone is neither there nor registered."""
    registry.add_resource(a_resource())
    assert not registry.read_resource("r-1").registered
    register(registry, "r-1", "r-1", "gone")
    seen_resource = registry.read_resource("r-1")
    assert (seen_resource.registered, seen_resource.orphan) == (True, None)
    assert registry.read_resource("gone") == ResourceSnapshot()


def test_a_look_shows_a_time_that_is_none(sqlite_url: sa.URL, open_database: OpenDatabase) -> None:
    """In SQLite a time can be any text: it is shown, and stops nobody."""
    registry = Registry(open_database(sqlite_url), TIMEOUT)
    registry.create()
    execute(
        registry.database, "INSERT INTO resource (resource_id, start_time) VALUES ('r', 'soon')"
    )
    row = registry.read_resource("r").row
    assert row is not None
    assert row["start_time"] == "soon"


@pytest.mark.parametrize("stored", [None, "", " ", "{}", '{"a":"X","b":null}', '{ "a": 1.50 }'])
def test_startup_properties_are_merged_into_what_was_read(
    registry: Registry, stored: str | None
) -> None:
    """If the row has just the text that the caller has seen, start-up keys go into it."""
    registry.add_resource(a_resource())
    execute(registry.database, sa.update(resource).values(properties=stored))
    assert registry.save_startup("r-1", stored, {"job-id": ODD_TEXT})
    row = registry.read_resource("r-1").row
    assert row is not None
    before = json.loads(stored, parse_float=str) if stored and stored.strip() else {}
    assert json.loads(row["properties"]) == {**before, "job-id": ODD_TEXT}


@pytest.mark.parametrize(
    ("stored", "seen"),
    [
        (None, ""),
        (None, "{}"),
        ("", None),
        ("", " "),
        ("{}", None),
        ('{"a":"x"}', '{"a":"X"}'),
        ('{"a":"x"}', '{"a":"x"} '),
        ('{"a":"e"}', '{"a":"é"}'),
    ],
)
def test_a_row_that_was_changed_stays_as_it_is(
    registry: Registry, stored: str | None, seen: str | None
) -> None:
    """It is neither overwritten nor removed, be the change one of a letter's case."""
    registry.add_resource(a_resource())
    execute(registry.database, sa.update(resource).values(properties=stored))
    # As AMS makes its tables, where MySQL takes these texts for equal ones.
    if is_mysql(registry.database.engine.dialect):
        execute(registry.database, "ALTER TABLE resource CONVERT TO CHARACTER SET utf8mb4")
    assert not registry.save_startup("r-1", seen, {"job-id": "1"})
    assert not registry.remove_orphan("r-1", seen)
    assert [row["properties"] for row in rows(registry.database, resource)] == [stored]


def test_startup_properties_of_a_row_that_is_gone_are_not_saved(registry: Registry) -> None:
    """There is nothing to save them in, and no other row is touched."""
    registry.add_resource(a_resource("r-2"))
    assert not registry.save_startup("r-1", "{}", {"job-id": "1"})
    assert not registry.save_startup("r-1", None, {"job-id": "1"})
    assert [row["properties"] for row in rows(registry.database, resource)] == ["{}"]


def test_properties_that_cannot_be_read_are_not_merged(registry: Registry) -> None:
    """The error is about the row, not about the store, and nothing is written."""
    registry.add_resource(a_resource())
    execute(registry.database, sa.update(resource).values(properties="[1]"))
    with pytest.raises(PropertiesError):
        registry.save_startup("r-1", "[1]", {"job-id": "1"})
    assert [row["properties"] for row in rows(registry.database, resource)] == ["[1]"]


def test_only_an_orphan_is_removed(registry: Registry) -> None:
    """One that is registered is kept, one that is gone is no error, others are not touched."""
    for resource_id in ("orphan", "registered", "other"):
        registry.add_resource(a_resource(resource_id))
    register(registry, "registered", None)
    assert not registry.remove_orphan("orphan", '{"changed":"meanwhile"}')
    assert not registry.remove_orphan("orphan", None)
    assert registry.remove_orphan("orphan", "{}")
    assert not registry.remove_orphan("orphan", "{}")
    assert not registry.remove_orphan("registered", "{}")
    assert {row["resource_id"] for row in rows(registry.database, resource)} == {
        "registered", "other",
    }  # fmt: skip


def test_an_id_is_given_once(registry: Registry) -> None:
    """Adding it again is an error, and the row stays as it is."""
    registry.add_resource(a_resource(properties={"k": "first"}))
    with pytest.raises(StoreUnavailableError, match="the registry cannot be written"):
        registry.add_resource(a_resource(properties={"k": "second"}))
    assert [row["properties"] for row in rows(registry.database, resource)] == ['{"k":"first"}']


def test_a_group_is_recorded_once(registry: Registry) -> None:
    """The second time nothing happens, whatever its container."""
    registry.add_group("g", "local")
    registry.add_group("g", "another")
    assert rows(registry.database, resource_group) == [
        {"group_name": "g", "container_name": "local", "properties": "{}"}
    ]


def test_two_processes_record_one_group(registry: Registry, racers: Racers) -> None:
    """One of them at least succeeds, the other one is told, and the group is there once."""
    results = racers.race("add_group", registry.database.url)
    assert None in results
    told = [str(result) for result in results if result is not None]
    assert all(text.startswith("StoreUnavailableError: the store cannot be") for text in told)
    assert registry.read_snapshot().groups == ("g",)


def test_ids_and_names_may_hold_anything(registry: Registry) -> None:
    """What looks like SQL, a command or a format is a text like any other."""
    names = [*HOSTILE, "x" * 100, "\U0001f600" * 100]
    for name in names:
        group = name[:50]
        registry.add_group(group, name)
        registry.add_resource(a_resource(name, group_name=group, container_name=name))
    snapshot = registry.read_snapshot()
    assert (snapshot.resources, set(snapshot.orphans)) == (len(names), set(names))
    assert set(snapshot.groups) == {name[:50] for name in names}
    assert registry.present(names) == set(names)
    for name in names:
        assert snapshot.orphans[name] == Orphan(name, name[:50], name, 2, 1024, "{}")
        assert registry.read_resource(name).orphan == snapshot.orphans[name]
        assert registry.save_startup(name, "{}", {name: name})
    register(registry, *names[::2])
    stored = {row["resource_id"]: row["properties"] for row in rows(registry.database, resource)}
    assert [registry.remove_orphan(name, stored[name]) for name in names] == [
        number % 2 == 1 for number in range(len(names))
    ]


def test_properties_may_be_long(registry: Registry) -> None:
    """A megabyte comes back as it went in, and is compared to its last character."""
    long = "é" * 500_000 + "z" * 500_000
    registry.add_resource(a_resource(properties={"long": long}))
    stored = registry.read_snapshot().orphans["r-1"].properties
    assert stored == f'{{"long":"{long}"}}'
    assert not registry.save_startup("r-1", stored.replace('z"}', 'Z"}'), {"k": "v"})
    assert registry.save_startup("r-1", stored, {"k": "v"})
