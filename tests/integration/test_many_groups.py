"""More groups have news than Dagster's daemon stores in good time: tick by tick they are told."""

from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from dagster_amoro.asset_keys import EVENTS
from dagster_amoro.defs import sensor
from dagster_amoro.defs.cursor import parse_cursor
from dagster_amoro.stores import schema
from tests.helpers.fleet import Fleet, fleet

AT_ONCE = 2
GROUPS = [f"group-{number}" for number in range(5)]


@pytest.fixture
def world(tmp_path: Path, database_url: sa.URL, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    """A worker in each of five groups, and a sensor that tells of two groups at once."""
    monkeypatch.setattr(sensor, "_GROUPS_AT_ONCE", AT_ONCE)
    with fleet(tmp_path, url=database_url) as made:
        for group in GROUPS:
            made.worker(f"worker of {group}", group)
        yield made


def told(world: Fleet) -> list[tuple[str, int]]:
    """Which partitions were told of, the oldest first, and how many events."""
    records = world.instance.fetch_materializations(EVENTS, limit=100, ascending=True).records
    found = [record.asset_materialization for record in records]
    return [(str(m.partition), int(m.metadata["new events"].value)) for m in found if m is not None]  # type: ignore[arg-type]


def counted(world: Fleet) -> Counter[str]:
    """How many events of each group the ledger has."""
    with world.services.ledger.reading() as connection:
        return Counter(connection.scalars(sa.select(schema.event.c.group_name)))


def soon(world: Fleet) -> None:
    """A tick before anything is due."""
    world.later(timedelta(seconds=1)).tick()


def test_each_group_is_told_of_once_in_the_order_of_their_names(world: Fleet) -> None:
    """The line of a tick says how far it is."""
    world.tick()
    assert [name for name, _ in told(world)] == GROUPS[:2]
    assert "the news of 2 groups are told, and those of 3 more by the next ticks" in world.message
    soon(world)
    assert "of 2 groups are told, and those of 1 more" in world.message
    soon(world)
    assert "are told" not in world.message
    assert told(world) == [(name, 1) for name in GROUPS]
    soon(world)
    assert len(told(world)) == len(GROUPS)


def test_what_happens_meanwhile_is_told_afterwards(world: Fleet) -> None:
    """Every event counts once, whether its group was told of before or not."""
    world.tick()
    world.register(f"worker of {GROUPS[0]}")
    world.register(f"worker of {GROUPS[4]}")
    for _ in range(4):
        soon(world)
    sums: Counter[str] = Counter()
    for name, number in told(world):
        sums[name] += number
    assert sums == counted(world)
    assert parse_cursor(world.cursor).until == 0


def test_another_ledger_meanwhile_is_told_from_its_first_event_on(world: Fleet) -> None:
    """Of that one too, each group is told of."""
    world.tick()
    with world.services.ledger.transaction() as ledger:
        identity = sa.update(schema.ledger).values(identity="0" * 32)
        ledger.connection.execute(identity)
    for _ in range(3):
        soon(world)
    assert [name for name, _ in told(world)] == [*GROUPS[:2], *GROUPS]


def test_a_cursor_of_an_event_that_is_not_there_any_more_gets_on(world: Fleet) -> None:
    """It is told anew once, not with each of the ticks that it takes."""
    for _ in range(3):
        world.tick()
    later = sa.update(schema.event).values(at=world.later(timedelta(seconds=1)).now)
    with world.services.ledger.transaction() as ledger:
        ledger.connection.execute(later)
    anew = []
    for _ in range(3):
        soon(world)
        anew.append("another one than before" in world.message)
    assert anew == [True, False, False]
    assert [name for name, _ in told(world)[len(GROUPS) :]] == GROUPS
