"""Rows of the registry that are put back as they were."""

import json
from datetime import datetime, timedelta
from typing import Final

import pytest
import sqlalchemy as sa

from dagster_amoro.stores.registry import Registry, optimizer, resource
from tests.integration.stores.helpers import (
    HOSTILE,
    ODD_TEXT,
    START,
    a_resource,
    a_row,
    execute,
    register,
    rows_as_stored,
)

NULLS: Final = dict.fromkeys(
    ("resource_type", "container_name", "group_name", "thread_count", "total_memory", "properties")
)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        NULLS,
        {"resource_id": "x" * 100, "container_name": "\U0001f600" * 100, "group_name": ODD_TEXT},
        {"resource_type": 1, "thread_count": 0, "total_memory": 2**62},
        {"resource_type": -1, "thread_count": -1, "total_memory": -1},
        {"properties": ""},
        {"properties": "[ not what it should be"},
        {"properties": '{ "memory" : 64, "a": "\\u0000 ' + ODD_TEXT.replace('"', "") + '" }'},
        {"properties": json.dumps({"long": "é" * 1_000_000})},
        {"start_time": START + timedelta(microseconds=1)},
        {"start_time": datetime(2000, 2, 29, 23, 59, 59)},  # noqa: DTZ001 - as above
        *({"resource_id": name, "properties": name} for name in HOSTILE),
    ],
    ids=lambda changes: ",".join(changes)[:30],
)
def test_a_row_is_put_back_as_it_was(registry: Registry, changes: dict[str, object]) -> None:
    """Every column, by way of the JSON that the ledger keeps of it; beside all the others."""
    registry.add_resource(a_resource("another"))
    values = a_row() | {"start_time": START} | changes
    execute(registry.database, sa.insert(resource).values(values))
    before = rows_as_stored(registry)
    name = str(values["resource_id"])
    row = registry.read_resource(name).row
    assert row is not None
    kept = json.loads(json.dumps(dict(row), ensure_ascii=False))
    execute(registry.database, sa.delete(resource).where(resource.c.resource_id == name))
    assert registry.restore(kept)
    assert rows_as_stored(registry) == before
    assert registry.read_resource(name).row == row


def test_a_row_is_not_put_back_where_one_is(registry: Registry) -> None:
    """The one that is there stays as it is, whether it is registered or not."""
    registry.add_resource(a_resource(properties={"k": "mine"}))
    before = rows_as_stored(registry)
    assert not registry.restore(a_row())
    register(registry, "r-1")
    assert not registry.restore(a_row())
    assert rows_as_stored(registry) == before
    assert registry.restore(a_row("r-2"))


def test_columns_that_are_only_on_one_side_are_no_obstacle(registry: Registry) -> None:
    """What is kept and has no column is left out; a column that AMS got since has its default."""
    execute(registry.database, "ALTER TABLE resource ADD COLUMN colour VARCHAR(10) DEFAULT 'red'")
    assert registry.restore(a_row(size="large"))
    (stored,) = rows_as_stored(registry)
    assert stored[:2] == ("r-1", 0)
    assert stored[-1] == "red"


def test_witnesses_are_tokens_that_are_there(registry: Registry) -> None:
    """Those of before that are left, and some of now."""
    for token in ("a", "b", "c"):
        execute(registry.database, sa.insert(optimizer).values(token=token))
    assert registry.sample_tokens(["b", "gone"], 2) == ({"b"}, ["a", "b"])
    assert registry.sample_tokens([], 5) == (set(), ["a", "b", "c"])
