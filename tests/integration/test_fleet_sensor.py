"""The sensor that has a declaration carried out, and the job that it requests."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa

from dagster_amoro.core.fleet_plan import DeclaredGroup
from tests.helpers.declared import a_group
from tests.helpers.fleet import GRACE, Fleet, fleet

JOB = "keeper_apply"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Fleet]:
    """A fleet with nothing in it; the clock is that of Dagster, which dates runs by its own."""
    with fleet(tmp_path) as found:
        found.now = datetime.now(UTC)
        yield found


def declare(world: Fleet, *groups: DeclaredGroup) -> None:
    """What config.yaml says from now on."""
    world.services = replace(world.services, fleet=groups, applies_fleet=True)


def evaluate(world: Fleet) -> tuple[list[dg.RunRequest], str]:
    """What the sensor requests, and why it requests nothing."""
    context = dg.build_sensor_context(instance=world.instance, definitions=world.definitions)
    result = world.definitions.resolve_sensor_def("fleet_sensor").evaluate_tick(context)
    return list(result.run_requests or []), result.skip_message or ""


def launched(world: Fleet, request: dg.RunRequest) -> dg.ExecuteInProcessResult:
    """A real run for a request."""
    return world.launch(request._replace(job_name=JOB))


def test_what_is_missing_is_requested_and_made(world: Fleet) -> None:
    """Then the sensor has nothing to say but that."""
    declare(world, a_group(["w-1", "w-2"]))
    (request,), _ = evaluate(world)
    assert launched(world, request).success
    assert world.container.running == {"w-1", "w-2"}
    assert evaluate(world) == ([], "the fleet is as declared.")
    (note,) = world.notes()
    assert note[1].startswith("made what config.yaml declares: 2 to add, by fleet_sensor (")
    assert note[1].endswith("): config.yaml declares it")


def test_a_change_of_the_declaration_is_carried_out(world: Fleet) -> None:
    """As soon as the code location has read it."""
    declare(world, a_group(["w-1"]))
    launched(world, evaluate(world)[0][0])
    declare(world, a_group(["w-1"], thread_count=4))
    (request,), _ = evaluate(world)
    assert launched(world, request).success
    assert [row[3] for row in world.resources()] == [4]


def test_nothing_is_released_and_what_was_given_up_stays_so(
    world: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are for a person; the sensor tells. However many were given up since, too."""
    monkeypatch.setattr("dagster_amoro.stores.ledger._NEWEST_REMOVED", 1)
    policy = replace(world.services.policy, max_retries=1)
    world.services = replace(world.services, policy=policy)
    declare(world, a_group(["w-1", "w-2"]))
    launched(world, evaluate(world)[0][0])
    for _ in range(6):
        for request in world.later(GRACE * 2).tick():
            world.launch(request)
    assert world.resources() == []
    requests, said = evaluate(world)
    assert requests == []
    assert "! w-1 of group g: it was given up, and comes back by restore, or by apply" in said
    declare(world, a_group(["w-1"]))
    world.worker("w-9")
    assert evaluate(world)[0] == []


def test_what_a_run_could_not_do_is_not_requested_at_each_tick(world: Fleet) -> None:
    """After a while it is tried again; another difference is not held up by it."""
    world.worker("w-1", container_name="gone")
    declare(world, a_group(["w-1"]))
    (request,), _ = evaluate(world)
    assert not launched(world, request).success
    requests, said = evaluate(world)
    assert requests == []
    assert "~ w-1 of group g: container gone" in said
    world.later(timedelta(minutes=11))
    assert len(evaluate(world)[0]) == 1
    world.now = datetime.now(UTC)
    declare(world, a_group(["w-1", "w-2"]))
    assert len(evaluate(world)[0]) == 1


def test_a_dry_run_says_what_would_be_done(world: Fleet) -> None:
    """It requests no runs, which would have nothing to do."""
    declare(world, a_group(["w-1"]))
    world.services = world.services.in_dry_run()
    requests, said = evaluate(world)
    assert requests == []
    assert said.startswith("Dry run, nothing is done:\n")
    assert "+ w-1 of group " in said


def test_a_store_that_is_away_is_said(world: Fleet) -> None:
    """And nothing is requested."""
    declare(world, a_group(["w-1"]))
    world.services.registry.create()
    world.execute(sa.text("DROP TABLE resource"))
    requests, said = evaluate(world)
    assert requests == []
    assert said.startswith("the registry cannot be read: OperationalError")


def test_there_is_no_such_sensor_unless_it_is_wanted(world: Fleet) -> None:
    """A declaration is applied by hand, where nobody says otherwise."""
    world.services = replace(world.services, fleet=(a_group(["w-1"]),))
    names = {sensor.name for sensor in world.definitions.sensors or ()}
    assert "fleet_sensor" not in names
    declare(world, a_group(["w-1"]))
    names = {sensor.name for sensor in world.definitions.sensors or ()}
    assert "fleet_sensor" in names
