"""AMS refills a group by itself: an orphan whose threads came anew is removed, not restarted.

Attached: the registry is AMS's, which keeps min-parallelism. Real ticks and runs on AMS's own
tables; the container only remembers.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa

from dagster_amoro.ams.client import Ams
from dagster_amoro.ams.leader import Server, always
from dagster_amoro.core.model import Incident, State
from dagster_amoro.core.properties import dump_properties
from dagster_amoro.stores.registry import Registry, resource_group
from tests.helpers.amoro_schema import create_amoro, insert_group, insert_optimizer, insert_resource
from tests.helpers.ams import AmsLookAlike
from tests.helpers.fleet import Fleet, fleet, with_settings

MINUTE = timedelta(minutes=1)
GRACE = 6 * MINUTE  # longer than AMS's first check takes, 5 minutes
LONG_AGO = datetime(2020, 1, 1)  # noqa: DTZ001 - the registry's times have no zone
DYNAMIC: Mapping[str, str] = {
    "dynamic-allocation.enabled": "true",
    "dynamic-allocation.min-parallelism": "2",
    "dynamic-allocation.max-parallelism": "8",
}


@dataclass
class Attached:
    """A fleet that AMS keeps, in the group `g`, and a keeper beside it."""

    url: sa.URL
    world: Fleet

    def group(self, properties: Mapping[str, str]) -> None:
        """Somebody writes the group's properties; AMS does, when it resets a min-parallelism."""
        text = dump_properties(properties)
        self.world.execute(sa.update(resource_group).values(properties=text))

    def starts(self, resource_id: str, threads: int = 2, *, years: int = 0) -> None:
        """AMS starts a resource, and records it; so many years after the others."""
        insert_resource(
            self.url,
            resource_id,
            container_name="recording",
            thread_count=threads,
            start_time=LONG_AGO.replace(year=2020 + years),
        )

    def registers(self, resource_id: str, threads: int = 2) -> None:
        """Its optimizer registers."""
        insert_optimizer(self.url, resource_id, thread_count=threads)

    def scale_ups(self, resource_id: str, threads: int = 2) -> None:
        """AMS starts a resource for what its group lacks, and it registers."""
        self.starts(resource_id, threads, years=1)
        self.registers(resource_id, threads)

    def tick_and_launch(self, span: timedelta = MINUTE) -> list[dg.RunRequest]:
        """A tick after a while, and the runs that it requests."""
        requests = self.world.later(span).tick()
        for request in requests:
            assert request.job_name == "restart_orphans"
            self.world.launch(request)
        return requests

    def of(self, resource_id: str) -> Incident:
        """The resource's last incident."""
        return [i for i in self.world.incidents() if i.resource_id == resource_id][-1]


@pytest.fixture
def attached(tmp_path: Path, database_url: sa.URL) -> Iterator[Attached]:
    """A group with a min-parallelism of 4 threads that has them, two of each of its resources."""
    create_amoro(database_url)
    address = ("127.0.0.1",)
    with (
        AmsLookAlike(database_url) as ams,
        fleet(tmp_path, url=database_url, grace=GRACE) as world,
    ):
        world.services = replace(
            world.services,
            registry=Registry(world.services.registry.database, None),
            ams=Ams(always(Server(*address, ams.thrift_port, ams.http_port))),
        )
        insert_group(database_url, "g", {"min-parallelism": "4"})
        found = Attached(url=database_url, world=world)
        for each in ("first", "second"):
            found.starts(each)
            found.registers(each)
        world.tick()
        yield found


def _dies(attached: Attached, resource_id: str = "first") -> Incident:
    """It dies, and that is noticed."""
    attached.world.dies(resource_id)
    assert attached.tick_and_launch() == []
    return attached.of(resource_id)


def test_an_orphan_is_superseded_when_its_grace_period_is_over(attached: Attached) -> None:
    """AMS refilled meanwhile: the orphan is released and removed, and its row is kept."""
    incident = _dies(attached)
    attached.scale_ups("new")
    assert attached.tick_and_launch(MINUTE) == []  # it still may come back by itself
    (request,) = attached.world.later(GRACE).tick()
    assert attached.world.launch(request).success
    ended = attached.of("first")
    assert (ended.state, ended.attempts) == (State.SUPERSEDED, 0)
    assert attached.world.kinds("first")[-2:] == ["superseding", "superseded"]
    assert [row[0] for row in attached.world.resources()] == ["second", "new"]
    assert attached.world.container.requested == []
    assert attached.world.container.released == ["first"]
    kept = attached.world.services.ledger.removed_row(incident.incident_id)
    assert kept is not None
    assert (kept["resource_id"], kept["thread_count"]) == ("first", 2)
    assert attached.tick_and_launch() == []


def test_an_orphan_that_comes_back_by_itself_is_not_superseded(attached: Attached) -> None:
    """Somebody stands for it: both stay."""
    _dies(attached)
    attached.scale_ups("new")
    attached.registers("first")
    assert attached.tick_and_launch(GRACE) == []
    assert attached.of("first").state is State.RECOVERED
    assert len(attached.world.resources()) == 3


def test_an_orphan_waits_for_a_refill_that_has_not_registered(attached: Attached) -> None:
    """Two of them would be one too many."""
    _dies(attached)
    attached.starts("new", years=1)
    attached.tick_and_launch(MINUTE)  # "new" is an orphan in its grace period now
    assert attached.tick_and_launch(GRACE - MINUTE) == []
    assert attached.of("first").state is State.WAITING
    assert "its group is being scaled up" in attached.world.message
    attached.registers("new")
    assert len(attached.tick_and_launch()) == 1
    assert attached.of("first").state is State.SUPERSEDED
    assert attached.of("new").state is State.RECOVERED


def test_a_refill_that_never_registers_is_restarted_in_the_orphans_place(
    attached: Attached,
) -> None:
    """It is an orphan itself; in the end one of the two runs, and one row is there."""
    _dies(attached)
    attached.starts("new", years=1)
    for _ in range(2):
        attached.tick_and_launch(GRACE)
    assert attached.world.container.requested == ["new"]
    attached.registers("new")
    attached.tick_and_launch()
    assert attached.of("first").state is State.SUPERSEDED
    assert attached.world.container.running == {"new"}
    assert [row[0] for row in attached.world.resources()] == ["second", "new"]


def test_a_refill_that_cannot_be_started_at_all_gives_the_orphan_its_turn(
    attached: Attached,
) -> None:
    """It is given up after its attempts; then nothing stands in for the orphan any more."""
    _dies(attached)
    attached.starts("new", years=1)
    attached.world.container.fail_starts()
    attached.tick_and_launch()
    (request,) = attached.world.later(GRACE).tick()
    _turns(attached.world, request)
    assert attached.of("new").state is State.EXHAUSTED
    assert set(attached.world.container.requested) == {"new"}
    attached.world.container.fail_starts(times=0)
    attached.tick_and_launch(GRACE)
    assert attached.world.container.requested[-1] == "first"
    assert attached.world.container.running == {"first"}


def test_a_refill_that_is_smaller_than_the_orphan_does_not_take_its_place(
    attached: Attached,
) -> None:
    """Threads were lost that nobody brought."""
    _dies(attached)
    attached.scale_ups("new", threads=1)
    assert len(attached.tick_and_launch(GRACE)) == 1
    assert attached.world.container.requested == ["first"]


def test_a_group_below_its_floor_gets_its_orphan_back(attached: Attached) -> None:
    """As much came as was lost, but not as much as the group must have."""
    attached.group({"min-parallelism": "6"})
    _dies(attached)
    attached.scale_ups("new")
    assert len(attached.tick_and_launch(GRACE)) == 1
    assert attached.world.container.requested == ["first"]


@pytest.mark.parametrize("properties", [{}, {"memory": "64"}, {"min-parallelism-x": "4"}])
def test_in_a_group_without_a_floor_nobody_takes_anybodys_place(
    attached: Attached, properties: Mapping[str, str]
) -> None:
    """AMS does not refill it: what came newly was wanted by a person."""
    attached.group(properties)
    _dies(attached)
    attached.scale_ups("new")
    assert len(attached.tick_and_launch(GRACE)) == 1
    assert attached.world.container.requested == ["first"]


def test_a_floor_that_ams_reset_is_reached(attached: Attached) -> None:
    """AMS writes down what is there when nothing helped, 0 at last; who came later still counts."""
    _dies(attached)
    attached.scale_ups("new")
    attached.group({"min-parallelism": "0"})
    assert len(attached.tick_and_launch(GRACE)) == 1
    assert attached.of("first").state is State.SUPERSEDED


def test_a_floor_that_ams_reset_without_a_refill_takes_nobodys_place(attached: Attached) -> None:
    """The orphan is wanted still: nobody came."""
    _dies(attached)
    attached.group({"min-parallelism": "0"})
    assert len(attached.tick_and_launch(GRACE)) == 1
    assert attached.world.container.requested == ["first"]


def test_orphans_of_a_group_under_dynamic_allocation_are_reported_once(attached: Attached) -> None:
    """AMS sizes it by its load; whatever is lost is not wanted back by anybody."""
    attached.group(DYNAMIC)
    _dies(attached)
    for _ in range(3):
        assert attached.tick_and_launch(GRACE) == []
    assert attached.of("first").state is State.UNSUPPORTED
    assert attached.world.kinds("first") == ["detected", "reported"]
    assert "dynamic allocation" in attached.world.message
    assert attached.world.container.calls == ()


def test_orphans_under_dynamic_allocation_are_restarted_where_that_is_wanted(
    attached: Attached,
) -> None:
    """`keeper.groups.<name>.dynamic-allocation: restart`."""
    world = attached.world
    world.services = with_settings(world.services, dynamic_groups=frozenset({"g"}))
    attached.group(DYNAMIC)
    _dies(attached)
    assert len(attached.tick_and_launch(GRACE)) == 1
    assert world.container.requested == ["first"]


def test_a_group_that_comes_under_dynamic_allocation_before_the_run_is_left_alone(
    attached: Attached,
) -> None:
    """The run looks again."""
    _dies(attached)
    (request,) = attached.world.later(GRACE).tick()
    attached.group(DYNAMIC)
    assert attached.world.launch(request).success
    assert attached.world.container.calls == ()
    assert attached.of("first").state is State.UNSUPPORTED


def test_a_refill_that_comes_between_a_tick_and_its_run_is_seen(attached: Attached) -> None:
    """The run that was to restart it waits, or removes it."""
    _dies(attached)
    (request,) = attached.world.later(GRACE).tick()
    attached.starts("new", years=1)
    assert attached.world.launch(request).success
    assert attached.of("first").state is State.WAITING
    attached.registers("new")
    assert len(attached.tick_and_launch()) == 1
    assert attached.of("first").state is State.SUPERSEDED
    assert attached.world.container.requested == []


@pytest.mark.parametrize("after", [5 * MINUTE, 15 * MINUTE, 30 * MINUTE])
def test_each_of_the_rounds_of_ams_counts(attached: Attached, after: timedelta) -> None:
    """Whenever it comes: an orphan that was restarted in vain before is superseded as well."""
    world = attached.world
    _dies(attached)
    began = world.now
    while world.now + MINUTE < began + after:
        attached.tick_and_launch()
    before = len(world.container.requested)
    attached.scale_ups("new")
    for _ in range(8):
        attached.tick_and_launch()
    assert attached.of("first").state in {State.SUPERSEDED, State.EXHAUSTED}
    assert len(world.container.requested) == before
    assert world.container.running <= {"new"}
    assert [row[0] for row in world.resources()] == ["second", "new"]


def test_in_attached_mode_no_group_is_refilled_by_us(attached: Attached) -> None:
    """AMS does it; a second one would be one too many."""
    attached.group({"min-parallelism": "40"})
    assert attached.tick_and_launch(GRACE) == []
    assert attached.world.notes() == []
    assert attached.world.message == "2 resources, 0 orphans"


def _turns(world: Fleet, request: dg.RunRequest) -> None:
    """A run, without the waiting between its turns, a grace period each."""
    for incident in world.claim(request, f"run-{world.now}"):
        current: Incident | None = incident
        while current is not None and current.claimed_by:
            world.services.restarter.restart(current.incident_id, current.claimed_by)
            world.later(GRACE)
            current = world.services.ledger.incident(current.incident_id)
