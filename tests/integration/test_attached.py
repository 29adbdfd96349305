"""Attached to an Amoro: its own schema on real databases, its AMS, its configuration."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
import sqlalchemy as sa

from dagster_amoro.containers.amoro.local import processes_of
from dagster_amoro.core.model import Resource, State
from dagster_amoro.stores.registry import optimizer, resource, resource_group
from tests.helpers.ams import Behaviour, register
from tests.helpers.attached import Amoro, amoro
from tests.helpers.databases import BACKENDS
from tests.helpers.fleet import GRACE, Fleet
from tests.helpers.waiting import wait_until

SERVERS = [each for each in BACKENDS if each != "sqlite"]
MINUTE = timedelta(minutes=1)


@pytest.fixture(params=SERVERS)
def attach(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Callable[..., AbstractContextManager[Amoro]]:
    """Attaches to a new Amoro, on each database that Amoro can use."""
    url: sa.URL = request.getfixturevalue(f"{request.param}_url")
    return lambda **settings: amoro(url, tmp_path, **settings)


@pytest.fixture
def running(attach: Callable[..., AbstractContextManager[Amoro]]) -> Iterator[Amoro]:
    """An Amoro that a keeper is attached to."""
    with attach() as found:
        yield found


def test_an_optimizer_that_died_comes_back_under_its_own_id(running: Amoro) -> None:
    """From the sensor to the recovery: a real process that registers with AMS."""
    world, name = running.world, uuid4().hex  # its process is found by its id on the whole machine
    running.resources(name, "healthy")
    running.optimizers(name, "healthy")
    before = running.rows("resource")
    assert world.tick() == []
    assert world.message == "2 resources, 0 orphans"

    running.forget(name)
    assert world.tick() == []
    assert "2 resources, 1 orphan: 1 in grace for 30 s" in world.message
    (request,) = world.later(GRACE).tick()
    result = world.launch(request)
    assert result.success
    try:
        wait_until(lambda: bool(running.ams.registrations))
        (registered,) = running.ams.registrations
        assert registered.resource_id == name
        assert (registered.group, registered.threads) == ("g", 2)
        assert world.later().tick() == []
        assert "1 recovered" in world.message
        (incident,) = world.incidents()
        assert (incident.state, incident.attempts) == (State.RECOVERED, 1)
        assert running.rows("resource") == before
    finally:
        container = world.services.containers.get("local")
        container.release_resource(_resource(name))


def boots_for_ever(running: Amoro) -> str:
    """Optimizers register no sooner than they are told to end; returns the program before."""
    program = running.folder / "optimizer.py"
    before = program.read_text()
    boots = "while not ends_at:\n    time.sleep(0.05)\ntoken = register("
    program.write_text(before.replace("token = register(", boots))
    return before


@pytest.mark.long
def test_an_optimizer_that_registers_while_it_is_stopped_has_not_recovered(running: Amoro) -> None:
    """A real process: it boots for too long, completes its registration as it ends, and is gone."""
    world, name = running.world, uuid4().hex
    running.resources(name)
    world.tick()
    program = boots_for_ever(running)
    container = world.services.containers.get("local")
    try:
        for _ in range(2):
            (request,) = world.later().tick()
            assert world.launch(request).success
        assert len(running.ams.registrations) == 1
        assert processes_of(_resource(name)) == []
        assert world.later().tick() == []
        assert "an optimizer registered that may have been stopped" in world.message
        assert world.incidents()[0].is_open
        running.forget(name)  # its heartbeats expire
        (running.folder / "optimizer.py").write_text(program)
        (request,) = world.tick()
        assert world.launch(request).success
        wait_until(lambda: len(running.ams.registrations) == 2)
        world.tick()
        (incident,) = world.incidents()
        assert (incident.state, incident.attempts_used) == (State.RECOVERED, 2)
        assert len(processes_of(_resource(name))) == 1
    finally:
        container.release_resource(_resource(name))


@pytest.mark.long
def test_a_row_that_is_removed_while_its_optimizer_boots_leaves_no_process(running: Amoro) -> None:
    """AMS has forgotten it, and would let it register and work for ever."""
    world, name = running.world, uuid4().hex
    running.resources(name)
    world.tick()
    boots_for_ever(running)
    container = world.services.containers.get("local")
    try:
        (request,) = world.later().tick()
        assert world.launch(request).success
        assert len(processes_of(_resource(name))) == 1
        running.execute(sa.delete(resource).where(resource.c.resource_id == name))
        (request,) = world.tick()
        assert world.launch(request).success
        assert processes_of(_resource(name)) == []
        assert [incident.state for incident in world.incidents()] == [State.RELEASED]
    finally:
        container.release_resource(_resource(name))


@pytest.mark.long
def test_a_resource_that_cannot_be_helped_is_given_up(running: Amoro) -> None:
    """Its row is removed and kept; nothing else of Amoro's is written."""
    world = running.world
    (running.folder / "bin/optimizer.sh").write_text("#!/bin/sh\necho no jars >&2\nexit 1\n")
    running.resources("hopeless", "healthy")
    running.optimizers("healthy")
    optimizers = running.rows("optimizer")
    world.tick()
    for _ in range(4):
        for request in world.later(timedelta(hours=1)).tick():
            for incident in world.claim(request, f"run-{world.now}"):
                _turns(world, incident.incident_id)
    (incident,) = world.incidents()
    assert (incident.state, incident.attempts) == (State.EXHAUSTED, 3)
    assert "optimizer.sh ended with exit code 1" in str(incident.last_error)
    assert [row[0] for row in running.rows("resource")] == ["healthy"]
    kept = world.services.ledger.removed_row(incident.incident_id)
    assert kept is not None
    assert kept["properties"] == '{"memory":"64"}'
    assert running.rows("optimizer") == optimizers


@pytest.mark.long
@pytest.mark.parametrize("behaviour", ["refuses", "hangs", "talks nonsense"])
def test_nothing_is_concluded_while_ams_does_not_answer(
    running: Amoro, behaviour: Behaviour
) -> None:
    """No incident opens, none is handed over; the message says whom it asked."""
    world = running.world
    running.resources("a", "b")
    running.optimizers("a")
    world.tick()
    before = world.dump()
    running.ams.behaviour = behaviour
    running.forget("a")
    assert world.later(GRACE).tick() == []
    assert "Abstained, nothing was changed: " in world.message
    assert f"127.0.0.1:{running.ams.thrift_port}" in world.message
    assert {k: v for k, v in world.dump().items() if k != "optimizer"} == {
        k: v for k, v in before.items() if k != "optimizer"
    }


def test_a_run_starts_nothing_while_ams_does_not_answer(running: Amoro) -> None:
    """It lets go without an attempt; the next tick that gets an answer hands over again."""
    world = running.world
    running.resources("a")
    world.tick()
    (request,) = world.later(GRACE).tick()
    running.ams.stop()
    result = world.launch(request)
    assert result.success
    (incident,) = world.incidents()
    assert (incident.state, incident.attempts) == (State.WAITING, 0)
    assert world.kinds("a")[-1] == "given-back"
    assert world.tick() == []
    running.ams.start()
    assert len(world.tick()) == 0  # it settles: AMS was seen away
    assert len(world.later(timedelta(minutes=2)).tick()) == 1


def test_ams_is_away_for_ten_minutes_and_comes_back_without_its_optimizers(
    running: Amoro,
) -> None:
    """1,000 rows vanish and return: no attempt, no event, nothing but abstentions."""
    world = running.world
    ids = [f"r{number}" for number in range(1000)]
    running.resources(*ids)
    running.optimizers(*ids)
    world.tick()
    assert "1,000 resources, 0 orphans" in world.message
    running.ams.stop()
    for _ in range(10):
        assert world.later(MINUTE).tick() == []
        assert world.message.startswith("Abstained")
    running.forget()
    running.ams.start()
    for registered in (0, 400, 999):
        running.forget()
        if registered:
            running.optimizers(*(f"{each}" for each in ids[:registered]))
        assert world.later(timedelta(seconds=20)).tick() == []
        assert world.message.startswith("Abstained")
    running.optimizers(ids[-1])
    for _ in range(10):
        assert world.later(MINUTE).tick() == []
    assert world.message == "1,000 resources, 0 orphans"
    assert world.incidents() == []
    assert running.rows("keeper_event") == []


def test_ams_restarts_between_two_ticks(running: Amoro) -> None:
    """Nobody saw it away; that all optimizers are gone at once tells."""
    world = running.world
    ids = [f"r{number}" for number in range(50)]
    running.resources(*ids)
    running.optimizers(*ids)
    world.tick()
    running.forget()
    assert world.later(MINUTE).tick() == []
    assert "gone at once, as after a restart of AMS" in world.message
    running.execute(
        sa.insert(optimizer), [{"token": f"new-{each}", "resource_id": each} for each in ids]
    )
    assert world.later(timedelta(minutes=5)).tick() == []
    assert world.message == "50 resources, 0 orphans"
    assert world.incidents() == []


def test_a_fleet_that_is_really_dead_is_restarted_all_the_same(running: Amoro) -> None:
    """One settling time later."""
    world = running.world
    ids = [f"r{number}" for number in range(5)]
    running.resources(*ids)
    running.optimizers(*ids)
    world.tick()
    running.forget()
    world.later(MINUTE).tick()
    world.later(timedelta(minutes=5)).tick()
    assert "5 in grace" in world.message
    (request,) = world.later(GRACE).tick()
    assert request.tags["amoro/orphans"] == "5"


def test_an_optimizer_registers_at_ams_while_its_restart_waits(running: Amoro) -> None:
    """It is recovered, and nothing was started."""
    world = running.world
    running.resources("late")
    world.tick()
    register(running.ams.thrift_port, "late", "g")
    assert world.later(GRACE).tick() == []
    (incident,) = world.incidents()
    assert (incident.state, incident.attempts) == (State.RECOVERED, 0)


def test_duplicate_and_missing_ids_harm_nobody(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """As MySQL databases have them that came from Amoro 0.4."""
    url: sa.URL = request.getfixturevalue("mariadb_url")
    with amoro(url, tmp_path, upgraded=True) as running:
        world = running.world
        running.resources("twice", "twice", "once")
        properties = {"properties": "{}", "group_name": "g", "container_name": "local"}
        running.execute(sa.insert(resource).values(resource_id=None, thread_count=1, **properties))
        before = running.rows("resource")
        world.tick()
        assert {i.resource_id: i.state for i in world.incidents()} == {
            "twice": State.UNSUPPORTED,
            "once": State.WAITING,
        }
        assert "its id stands in 2 rows of resource" in world.message
        assert [r.tags["amoro/resource"] for r in world.later(GRACE).tick()] == ["once"]
        assert running.rows("resource") == before


def test_a_row_that_jsonb_or_json_set_rewrote_is_understood(running: Amoro) -> None:
    """Order and blanks of the properties mean nothing."""
    running.resources("a")
    running.execute(
        sa.update(resource).values(properties='{ "memory" : 64, "spark-conf.x": "1 gb" }')
    )
    world = running.world
    world.tick()
    assert "1 in grace" in world.message


def test_a_group_that_ams_made_is_a_partition(running: Amoro) -> None:
    """Also where no resource of it ever died."""
    running.world.tick()
    assert running.world.instance.get_dynamic_partitions("optimizer_group") == ["g"]


def _resource(resource_id: str) -> Resource:
    return Resource(
        resource_id=resource_id,
        group_name="g",
        container_name="local",
        thread_count=2,
        memory_mb=0,
        properties={"memory": "64"},
    )


def _turns(world: Fleet, incident_id: int) -> None:
    """Turn after turn, a grace period apart, until the run lets go."""
    incident = world.services.ledger.incident(incident_id)
    while incident is not None and incident.claimed_by:
        world.services.restarter.restart(incident_id, incident.claimed_by)
        world.later(GRACE)
        incident = world.services.ledger.incident(incident_id)


# What AMS would refuse.


def drop_group(running: Amoro) -> None:
    """As AMS's REST does, while resources of it stay."""
    running.execute(sa.delete(resource_group).where(resource_group.c.group_name == "g"))


def test_resources_of_a_group_that_was_dropped_are_left_alone_until_it_is_back(
    running: Amoro,
) -> None:
    """Reported once, for as long as it takes; no start in vain, and no row is removed."""
    world = running.world
    running.resources("a")
    drop_group(running)
    before = running.rows("resource")
    for _ in range(10):
        assert world.tick() == []
        world.later(timedelta(hours=1))
    (incident,) = world.incidents()
    assert (incident.state, incident.attempts) == (State.UNSUPPORTED, 0)
    assert incident.note == (
        "its group g is not in resource_group, so that AMS would refuse its registration"
    )
    assert world.kinds("a") == ["detected", "reported"]
    assert running.rows("resource") == before
    running.execute(sa.insert(resource_group), {"group_name": "g", "container_name": "local"})
    assert len(world.tick()) == 1


def test_a_group_that_is_dropped_before_the_run_begins_is_no_attempt(running: Amoro) -> None:
    """The run looks again, and reports it."""
    world = running.world
    running.resources("a")
    world.tick()
    (request,) = world.later(GRACE).tick()
    drop_group(running)
    assert world.launch(request).success
    (incident,) = world.incidents()
    assert (incident.state, incident.attempts) == (State.UNSUPPORTED, 0)


@pytest.mark.long
@pytest.mark.parametrize(
    ("interval", "why"),
    [
        (
            "60000",
            "its heart-beat-interval, 60 s, is not below the heart-beat-timeout of AMS, 60 s",
        ),
        ("10s", "its heart-beat-interval is no number of milliseconds"),
        ("59999", None),
        (None, None),
    ],
)
def test_heartbeats_that_ams_refuses_are_no_attempt(
    running: Amoro, interval: str | None, why: str | None
) -> None:
    """AMS would not register such an optimizer, however often it is started."""
    world = running.world
    running.resources("a", **({"heart-beat-interval": interval} if interval else {}))
    world.tick()
    requests = world.later(GRACE).tick()
    (incident,) = world.incidents()
    assert len(requests) == (why is None)
    assert (incident.note or "").startswith(why or "")
    assert (incident.state is State.UNSUPPORTED) == (why is not None)
