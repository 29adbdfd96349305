"""The checks as Dagster makes them: on a real instance, over what really happened."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import dagster as dg
import sqlalchemy as sa

from dagster_amoro.core.model import State
from dagster_amoro.core.policy import OnExhausted
from dagster_amoro.stores.registry import resource_group
from tests.helpers.fleet import GRACE, Fleet, fleet

NAMES = {
    "nothing_given_up",
    "no_incident_overdue",
    "restarts_are_not_refused",
    "restarts_succeed",
    "no_resource_flaps",
    "groups_at_min_parallelism",
    "groups_not_doubled",
    "survey_is_fresh",
}


def failed(found: dict[str, dg.AssetCheckEvaluation]) -> dict[str, str]:
    """What each check that did not pass says."""
    assert set(found) == NAMES
    return {name: each.description or "" for name, each in found.items() if not each.passed}


def test_a_fleet_that_is_well_but_for_the_sensor_that_never_ran(tmp_path: Path) -> None:
    """In these tests nobody runs the daemon, which is what one check is for."""
    with fleet(tmp_path) as world:
        world.worker()
        world.register()
        world.tick()
        message = failed(world.check())
        assert list(message) == ["survey_is_fresh"]
        assert "is the sensor running, and the daemon?" in message["survey_is_fresh"]


def lose(world: Fleet, name: str) -> None:
    """A worker dies and is given up, or kept, without any attempt."""
    world.worker(name)
    world.tick()
    (request,) = world.later().tick()
    world.launch(request)


def test_what_was_given_up_is_red_until_somebody_has_seen_to_it(
    tmp_path: Path, database_url: sa.URL
) -> None:
    """It is restored, or acknowledged, or a day old."""
    by = {"author": "ann", "reason": "looking into it"}
    with fleet(tmp_path, url=database_url, max_retries=0) as world:
        for name in ("first", "second", "third"):
            lose(world, name)
        for _ in range(2):
            found = failed(world.check())["nothing_given_up"]
            assert found.startswith("3 resources given up and removed: ")
        assert world.check()["nothing_given_up"].severity is dg.AssetCheckSeverity.ERROR
        world.services.operations.acknowledge("first", **by)
        message = failed(world.check())["nothing_given_up"]
        assert message.startswith("2 resources given up and removed: second (group g), third (gro")
        world.services.operations.restore("second", **by)
        message = failed(world.check())["nothing_given_up"]
        assert message.startswith("1 resource given up and removed: third (group g). ")
        world.later(timedelta(days=1))
        assert world.check()["nothing_given_up"].passed


def test_what_is_given_up_again_is_red_again(tmp_path: Path) -> None:
    """Whoever has seen to it the first time may not know of the second."""
    by = {"author": "ann", "reason": "looking into it"}
    with fleet(tmp_path, max_retries=0) as world:
        lose(world, "lost")
        world.services.operations.acknowledge("lost", **by)
        world.services.operations.restore("lost", **by)
        assert world.check()["nothing_given_up"].passed
        (request,) = world.later().tick()
        world.launch(request)
        assert "lost (group g)" in failed(world.check())["nothing_given_up"]


def test_what_is_kept_without_attempts_left_is_red_until_somebody_has_seen_to_it(
    tmp_path: Path, database_url: sa.URL
) -> None:
    """It stays open, and a person is needed; it is not overdue, nor red once it is back."""
    with fleet(tmp_path, url=database_url, max_retries=1) as world:
        policy = replace(world.services.policy, on_exhausted=OnExhausted.KEEP)
        world.services = replace(world.services, policy=policy)
        for name in ("stuck", "other"):
            world.worker(name)
        world.tick()
        for _ in range(2):
            for request in world.later().tick():
                world.launch(request)
        assert {each.state for each in world.incidents()} == {State.KEPT}
        first = failed(world.check())
        assert first["nothing_given_up"].startswith("2 resources out of attempts and kept: ")
        assert "0% of 2 restarted resources" in first["restarts_succeed"]
        world.services.operations.acknowledge("other", author="ann", reason="it is old")
        message = failed(world.check())["nothing_given_up"]
        assert message.startswith("1 resource out of attempts and kept: stuck (group g). ")
        world.later(timedelta(hours=2)).tick()
        third = world.check()
        assert third["no_incident_overdue"].passed
        assert third["no_incident_overdue"].metadata["open incidents"].value == 2
        world.register("stuck")
        world.tick()
        assert world.check()["nothing_given_up"].passed


def test_what_a_dry_run_did_not_do_alarms_nobody(tmp_path: Path) -> None:
    """Nothing was given up, nothing flaps, and nothing is overdue that nobody may restart."""
    with fleet(tmp_path, max_retries=0) as world:
        world.worker("lost")
        world.services = world.services.in_dry_run()
        world.tick()
        for request in world.later().tick():
            world.launch(request)
        assert {each.state for each in world.incidents()} == {State.EXHAUSTED}
        world.later()
        assert list(failed(world.check(flapping=1))) == ["survey_is_fresh"]


def test_an_orphan_that_nobody_restarts_is_overdue(tmp_path: Path) -> None:
    """Its run was lost."""
    with fleet(tmp_path, max_retries=1) as world:
        world.worker("stuck")
        world.tick()
        world.later(GRACE * 2 + timedelta(seconds=1))
        assert "stuck (since " in failed(world.check())["no_incident_overdue"]


def test_a_resource_that_comes_and_goes_flaps(tmp_path: Path) -> None:
    """As often as the setting says."""
    with fleet(tmp_path) as world:
        world.worker("shaky")
        for _ in range(4):
            world.later().tick()
            world.register("shaky")
            world.later().tick()
            world.dies("shaky")
        assert "shaky (4 times)" in failed(world.check(flapping=4))["no_resource_flaps"]
        assert "no_resource_flaps" not in failed(world.check(flapping=5))


def test_a_group_below_its_min_parallelism_is_reported(tmp_path: Path) -> None:
    """By its own min-parallelism, and the threads of its optimizers."""
    with fleet(tmp_path) as world:
        world.worker()
        for name, text in (
            ("sized", '{"min-parallelism":" 3 "}'),
            ("odd", '{"min-parallelism":"x"}'),
        ):
            row = {"group_name": name, "container_name": "recording", "properties": text}
            world.execute(sa.insert(resource_group).values(row))
        world.tick()
        message = failed(world.check())["groups_at_min_parallelism"]
        assert message == "1 group below min-parallelism: sized (0 of 3 threads)"


def test_restarts_that_do_not_help_are_told(tmp_path: Path) -> None:
    """Of two that were restarted, one came back: half is enough, more is not."""
    with fleet(tmp_path, max_retries=1) as world:
        world.worker("good")
        world.worker("bad")
        world.tick()
        for request in world.later().tick():
            world.launch(request)
        world.register("good")
        for request in world.later().tick():
            world.launch(request)
        assert "restarts_succeed" not in failed(world.check(least_success=0.5))
        message = failed(world.check(least_success=0.6))["restarts_succeed"]
        assert (
            message
            == "50% of 2 restarted resources came back within a day, fewer than 60%; not bad"
        )
