"""The page of the fleet: what it says on real stores, and when it is made anew."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from dagster_amoro.asset_keys import FLEET, HISTORY
from dagster_amoro.core.pauses import EVERYTHING
from dagster_amoro.core.policy import OnExhausted
from dagster_amoro_audit.group_reliability import KEY
from tests.helpers.fleet import GRACE, Fleet, fleet

pytestmark = pytest.mark.long

MINUTE = timedelta(minutes=1)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Fleet]:
    """One worker that is well, of a fleet whose page was made."""
    with fleet(tmp_path, max_retries=1) as made:
        made.worker("well")
        made.register("well", group="g", threads=2)
        made.tick()
        refresh(made)
        yield made


def refresh(world: Fleet) -> list[set[dg.AssetKey]]:
    """What one evaluation of the audit's sensor has refreshed, by runs; they are made."""
    _, requests = world.audit()
    for request in requests:
        assert world.refreshed(request).success
    return [set(request.asset_selection or ()) for request in requests]


def page(world: Fleet) -> Mapping[str, Any]:
    """What the page shows."""
    (record,) = world.instance.fetch_materializations(FLEET, limit=1).records
    assert record.asset_materialization is not None
    return {name: each.value for name, each in record.asset_materialization.metadata.items()}


def test_what_is_read_first_comes_first(world: Fleet) -> None:
    """A page that was never made tells nobody anything; so it is made before anything happens."""
    shown = page(world)
    assert next(iter(shown)) == "now"
    assert shown["now"].startswith("**all is well; 2 of 2 threads live**, at 2026-03-29")
    assert (shown["threads wanted"], shown["threads live"]) == (2, 2)
    assert [record.data["state"] for record in shown["groups"].records] == ["ok"]


def test_it_is_made_anew_when_something_happens_and_not_otherwise(world: Fleet) -> None:
    """With the history that is refreshed anyway, in a run that there is anyway."""
    assert refresh(world) == []
    world.dies("well")
    world.tick()
    assert refresh(world) == [{FLEET, HISTORY, KEY}]
    assert refresh(world.later(timedelta(seconds=5))) == []
    shown = page(world)
    assert "**well**" in shown["now"]
    assert "attempt 1 of 1 after 2026-03-29 01:00:00 UTC" in shown["now"].replace("\\", "")
    assert shown["open orphans"] == 1
    (orphan,) = (record.data for record in shown["orphans"].records)
    assert (orphan["orphan"], orphan["attempts"]) == ("well", "0 of 1")


def test_what_was_given_up_is_told_until_it_is_acknowledged(world: Fleet) -> None:
    """A red check that changes is a reason to make the page anew, by itself if need be."""
    world.worker("lost")
    world.tick()
    for _ in range(2):
        for request in world.later().tick():
            world.launch(request)
    world.tick()
    refresh(world)
    shown = page(world)
    assert "1 given up, 2 threads fewer than declared" in shown["now"]
    assert [record.data["resource"] for record in shown["given up"].records] == ["lost"]
    (run,) = {e.run_id for e in world.services.ledger.events(1) if e.kind == "giving-up"}
    assert f"/runs/{run}" in shown["now"]
    (group,) = (record.data for record in shown["groups"].records)
    assert group["state"] == "1 given up, 2 threads fewer than declared"
    world.services.operations.acknowledge("lost", author="ann", reason="looking into it")
    world.tick()
    assert any(FLEET in assets for assets in refresh(world.later(MINUTE)))
    assert "given up" not in page(world)["now"]
    assert page(world)["resources lost"] == 0


def test_what_is_kept_is_told_with_a_way_out(tmp_path: Path) -> None:
    """A reset gives it attempts again."""
    with fleet(tmp_path, max_retries=0) as world:
        policy = replace(world.services.policy, on_exhausted=OnExhausted.KEEP)
        world.services = replace(world.services, policy=policy)
        world.worker("stuck")
        world.tick()
        for request in world.later().tick():
            world.launch(request)
        refresh(world)
        shown = page(world)["now"]
    assert "1 out of attempts and kept, 2 threads fewer than declared" in shown
    assert "/guess/keeper_reset/playground/setup?config=" in shown


def test_an_answer_that_changes_by_time_makes_it_anew(world: Fleet) -> None:
    """Nobody restarts an orphan: the check of it turns red without any event."""
    world.dies("well")
    world.tick()
    refresh(world)
    assert refresh(world.later(GRACE)) == []
    assert refresh(world.later(3 * MINUTE)) == [{FLEET}]
    assert refresh(world.later(timedelta(seconds=5))) == []


def test_who_paused_what_is_on_it(world: Fleet) -> None:
    """In the lines that are read first, and in full below."""
    operations = world.services.operations
    operations.pause(EVERYTHING, author="ann", reason="an upgrade", until=None)
    world.tick()
    refresh(world)
    shown = page(world)
    assert "everything is paused by ann" in shown["now"]
    assert shown["paused"] == "everything is paused by ann: an upgrade"


def test_it_says_when_the_last_survey_was(world: Fleet) -> None:
    """Where no daemon runs, as here, that nobody looks after the fleet."""
    assert page(world)["last survey"].startswith("orphan_sensor completed no survey")
