"""A newborn is no orphan: what is young and never registered is starting."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from dagster_amoro.core.limits import Limits
from dagster_amoro.core.model import State
from dagster_amoro.core.policy import OnExhausted, RestartPolicy, is_starting
from dagster_amoro.healing.preflight import _groups
from dagster_amoro.healing.status_table import render
from dagster_amoro.stores.database import Database
from dagster_amoro.stores.registry import Registry, instant
from tests.helpers.amoro_schema import create_amoro
from tests.helpers.databases import administering
from tests.helpers.fleet import GRACE, START, Fleet, fleet

MICROSECOND = timedelta(microseconds=1)


@pytest.fixture
def world(tmp_path: Path, database_url: sa.URL) -> Iterator[Fleet]:
    """A fleet with one resource that was recorded just now and whose worker never registered."""
    with fleet(tmp_path, url=database_url) as made:
        made.worker()
        made.born(made.now)
        yield made


def test_a_newborn_is_starting_until_the_grace_period_is_over(world: Fleet) -> None:
    """No incident until then; from then on it is an orphan with all its grace period to come."""
    for span in (timedelta(0), GRACE - MICROSECOND):
        assert world.later(span).tick() == []
        assert world.message == "1 resource, 0 orphans, 1 starting"
    assert world.incidents() == []
    assert world.later(MICROSECOND).tick() == []
    assert world.message.startswith("1 resource, 1 orphan: 1 in grace for 30 s. New: 1 detected")
    (request,) = world.later().tick()
    assert world.launch(request).success


def test_a_newborn_that_registers_was_never_an_orphan(world: Fleet) -> None:
    """A plain scale-out leaves no incident, so that nothing is concluded from it either."""
    world.tick()
    world.register()
    world.later().tick()
    assert world.message == "1 resource, 0 orphans"
    assert world.incidents() == []


def test_a_start_in_the_future_says_nothing(world: Fleet) -> None:
    """Whoever wrote it has another clock, or another zone."""
    world.born(world.now + MICROSECOND)
    world.tick()
    assert [incident.state for incident in world.incidents()] == [State.WAITING]


def test_what_registered_before_is_an_orphan_however_young_it_is(world: Fleet) -> None:
    """The ledger knows that it was back."""
    world.born(START - GRACE)
    world.tick()
    world.register()
    world.tick()
    world.dies()
    world.born(world.now)
    world.later(GRACE - MICROSECOND).tick()
    assert [incident.is_open for incident in world.incidents()] == [False, True]


def test_what_is_starting_is_shown_apart_from_the_orphans(
    world: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By status and preflight, in which only what is older is an orphan."""
    world.worker("w-2")
    world.born(START - GRACE, "w-2")
    status = world.services.status.read()
    ((group),) = status.groups
    assert (group.resources, group.orphans, group.starting) == (2, 1, 1)
    assert [orphan.resource_id for orphan in status.orphans] == ["w-2"]
    monkeypatch.setenv("COLUMNS", "200")
    assert "starting" in render(status)
    (checked,) = _groups(world.services)
    assert (checked.orphans, checked.starting) == (1, 1)


def test_what_is_starting_is_no_part_of_a_catastrophe(world: Fleet) -> None:
    """Half of a group may be orphaned: with those that start it would be more."""
    world.services = replace(world.services, limits=Limits(max_orphaned=0.5))
    world.worker("dead")
    world.born(START - GRACE, "dead")
    world.tick()
    world.later()
    world.born(world.now)
    (request,) = world.tick()
    assert world.launch(request).success
    assert world.container.requested == ["dead"]


def test_what_is_starting_is_counted_on(world: Fleet) -> None:
    """A group that will reach its min-parallelism with it gets no other resource."""
    world.group(min_parallelism="2")
    assert world.tick() == []
    assert world.services.ledger.scale_ups() == {}


@pytest.mark.parametrize("backend", ["postgresql", "mariadb"])
def test_the_age_is_that_of_the_registrys_own_clock_in_any_zone(
    backend: str, request: pytest.FixtureRequest, open_database: Callable[..., Database]
) -> None:
    """AMS's tables, in a database whose wall clock is eight hours ahead."""
    url: sa.URL = request.getfixturevalue(f"{backend}_url")
    create_amoro(url)
    zone = {
        "postgresql": "ALTER DATABASE postgres SET timezone = 'Asia/Shanghai'",
        "mariadb": "SET GLOBAL time_zone = '+08:00'",
    }
    with administering(url) as connection:
        connection.exec_driver_sql(zone[backend])
    try:
        with administering(url) as connection:
            connection.exec_driver_sql("INSERT INTO resource (resource_id) VALUES ('new')")
        for attached in (None, timedelta(minutes=1)):
            snapshot = Registry(open_database(url), attached).read_snapshot()
            born = instant(snapshot.start_times["new"])
            assert born is not None
            if attached is None:
                assert abs(datetime.now(UTC) - born) < timedelta(minutes=1)
    finally:
        if backend == "mariadb":
            with administering(url) as connection:
                connection.exec_driver_sql("SET GLOBAL time_zone = 'SYSTEM'")


@pytest.mark.parametrize("value", [None, "", "0000-00-00 00:00:00", b"x", "yesterday", 10**30])
def test_a_start_that_makes_no_sense_says_nothing(value: object) -> None:
    """SQLite takes any text for a time."""
    policy = RestartPolicy(
        enabled=True, max_retries=1, grace_period=GRACE, on_exhausted=OnExhausted.KEEP
    )
    assert instant(value) is None
    assert not is_starting(instant(value), policy, START)
