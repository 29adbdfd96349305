"""The ledger is another one than the sensor's cursor knows: it is told all the same."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from dagster_amoro.asset_keys import EVENTS
from dagster_amoro.defs.cursor import dump_cursor, parse_cursor
from dagster_amoro.stores import schema
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro.stores.migrations import VERSION_TABLE
from tests.helpers.fleet import Fleet, fleet

ANEW = "The ledger is another one than before, or was restored"


@pytest.fixture
def world(tmp_path: Path, database_url: sa.URL) -> Iterator[Fleet]:
    """A fleet whose cursor knows some events."""
    with fleet(tmp_path, url=database_url) as made:
        for _ in range(2):
            made.worker()
            made.tick()
            made.register()
            made.later().tick()
            made.dies()
            made.release()
            made.later().tick()
        assert ANEW not in "".join(made.messages)
        yield made


def told(world: Fleet) -> int:
    """How many events the newest asset event counts."""
    (record,) = world.instance.fetch_materializations(EVENTS, limit=1).records
    assert record.asset_materialization is not None
    return int(record.asset_materialization.metadata["new events"].value)  # type: ignore[arg-type]


def emptied(world: Fleet) -> None:
    """Its tables are made anew."""
    with world.services.ledger.database.writing() as connection:
        schema.metadata.drop_all(connection)
        connection.execute(sa.text(f"DROP TABLE {VERSION_TABLE}"))
    database = world.services.ledger.database
    world.services = replace(world.services, ledger=Ledger(database))


def restored(world: Fleet) -> None:
    """An older state of it is there again."""
    world.later()
    with world.services.ledger.transaction() as ledger:
        ledger.connection.execute(sa.delete(schema.event).where(schema.event.c.event_id > 2))


def restored_and_gone_on(world: Fleet) -> None:
    """Since then as many events were written as it had: others have their numbers."""
    world.later()
    later = sa.update(schema.event).where(schema.event.c.event_id > 2).values(at=world.now)
    with world.services.ledger.transaction() as ledger:
        ledger.connection.execute(later)


@pytest.mark.parametrize("change", [emptied, restored, restored_and_gone_on])
def test_events_of_another_ledger_are_told_from_the_first_on(
    world: Fleet, change: Callable[[Fleet], None]
) -> None:
    """The tick says so, once; from then on each is told once."""
    before = parse_cursor(world.cursor)
    change(world)
    world.worker("new")
    world.tick()
    assert ANEW in world.message
    with world.services.ledger.reading() as connection:
        events = connection.scalar(sa.select(sa.func.count()).select_from(schema.event))
    assert told(world) == events
    after = parse_cursor(world.cursor)
    assert (after.event, after.event_at) != (before.event, before.event_at)
    assert (after.ledger == before.ledger) == (change is not emptied)
    world.later(timedelta(seconds=1)).tick()
    assert ANEW not in world.message
    world.register("new")
    world.tick()
    assert ANEW not in world.message
    assert told(world) == 1


def test_a_cursor_that_knows_no_ledger_goes_on(world: Fleet) -> None:
    """An older version wrote it: its number is all there is."""
    cursor = parse_cursor(world.cursor)
    world.cursor = dump_cursor(replace(cursor, ledger=None, event_at=None))
    world.worker("new")
    world.tick()
    assert ANEW not in world.message
    assert told(world) == 1
    assert parse_cursor(world.cursor).ledger == cursor.ledger
