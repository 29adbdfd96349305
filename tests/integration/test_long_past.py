"""A deployment after years: whatever it does, no statement reads what is past from end to end."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from benchmarks.ledgers import fill
from dagster_amoro.core.ams_restart import AmsRestartDetector
from dagster_amoro.core.errors import UnknownTargetError
from dagster_amoro.core.model import State
from dagster_amoro.healing import tick
from tests.helpers.fleet import GRACE, START, Fleet, fleet
from tests.helpers.plans import bounded

pytestmark = pytest.mark.long


@pytest.fixture
def world(tmp_path: Path, database_url: sa.URL) -> Iterator[Fleet]:
    """A fleet whose ledger has 40,000 events of a year, on every backend."""
    with fleet(tmp_path, url=database_url) as made:
        ledger = made.services.ledger
        fill(ledger, 4_000, groups=20, over=timedelta(days=365), before=START)
        yield made


def test_a_heal_reads_nothing_from_end_to_end(world: Fleet) -> None:
    """From the detection over a run to the recovery; and the sensor's news of it."""
    world.tick()  # its cursor is at the last event from then on
    world.worker(group="group-3")
    with bounded(world.services.ledger.database):
        world.tick()
        world.later(GRACE)
        (request,) = world.tick()
        assert world.launch(request).success
        world.register()
        world.tick()
    assert [incident.state for incident in world.incidents()][-1] is State.RECOVERED


def test_status_and_a_refused_restore_read_nothing_from_end_to_end(world: Fleet) -> None:
    """What operators ask for, with the list of what could be restored."""
    world.worker(group="group-3")
    world.tick()
    with bounded(world.services.ledger.database):
        assert [orphan.resource_id for orphan in world.services.status.read().orphans] == ["w-1"]
        with pytest.raises(UnknownTargetError, match="nor has any other one"):
            world.services.operations.restore("never", author="ann", reason="moved")


def test_a_cursor_that_is_lost_reads_nothing_from_end_to_end(
    world: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All groups have news then, though most of it is not counted."""
    monkeypatch.setattr("dagster_amoro.stores.ledger.MOST_COUNTED", 100)
    with bounded(world.services.ledger.database):
        world.tick()
    assert len(world.instance.get_dynamic_partitions("optimizer_group")) == 20


def test_what_does_not_fit_into_a_tick_is_left_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest first; the line of the tick says how far it is."""
    monkeypatch.setattr(tick, "ROWS", 2)
    with fleet(tmp_path) as world:
        for number in range(7):
            world.worker(f"w-{number}")
            world.born(START - timedelta(days=number + 1), f"w-{number}")
        steps = iter(range(0, 1_000, 6))  # each look at the clock takes 6 s of the 15
        ticker = tick.Ticker(
            preconditions=world.services.preconditions,
            reader=world.services.reader,
            stopwatch=lambda: next(steps),
        )
        told = [ticker.tick(lambda _: {}, AmsRestartDetector()).summary for _ in range(2)]
        assert told[0].endswith("6 of 7 changes are written down; the next tick goes on")
        assert told[1] == "7 resources, 7 orphans: 7 in grace, first 30 s. New: 1 detected"
        found = [incident.resource_id for incident in world.incidents()]
    assert found == [f"w-{number}" for number in reversed(range(7))]
