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
from dagster_amoro.core.looks import NEVER, Look
from dagster_amoro.core.model import Incident, State
from dagster_amoro.core.properties import dump_properties
from dagster_amoro.stores.registry import Registry, resource_group
from tests.helpers.amoro_schema import create_amoro, insert_group, insert_optimizer, insert_resource
from tests.helpers.ams import AmsLookAlike
from tests.helpers.fleet import Fleet, fleet, with_settings

pytestmark = pytest.mark.long

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


# A refill that came before the death was seen.


@pytest.mark.parametrize("registered", [True, False])
def test_a_refill_that_came_before_its_death_was_seen_takes_its_place(
    attached: Attached, *, registered: bool
) -> None:
    """It is newer than all that the tick before saw; it may have registered by now."""
    attached.starts("new", years=1)
    if registered:
        attached.registers("new")
    _dies(attached)
    assert (attached.of("first").newest_start or "").startswith("2020")
    attached.registers("new")
    assert len(attached.tick_and_launch(GRACE)) == 1
    assert attached.of("first").state is State.SUPERSEDED
    assert attached.world.container.requested == []


def test_of_an_orphan_and_its_refill_that_both_died_one_comes_back(attached: Attached) -> None:
    """Also where one tick sees both deaths: the older one waits for the younger one."""
    attached.starts("a-new", years=1)
    _dies(attached)
    requests = attached.tick_and_launch(GRACE)
    assert attached.world.container.requested == ["a-new"]
    attached.registers("a-new")
    requests += attached.tick_and_launch(GRACE)
    assert len(requests) == 2
    assert attached.of("first").state is State.SUPERSEDED
    assert attached.world.container.requested == ["a-new"]


def test_what_was_there_when_it_lived_does_not_take_its_place(attached: Attached) -> None:
    """Somebody wants a larger group: what died of it is restarted."""
    attached.scale_ups("wanted")
    attached.tick_and_launch()
    _dies(attached)
    attached.tick_and_launch(GRACE)
    assert attached.world.container.requested == ["first"]


def test_what_a_person_started_in_a_group_that_had_its_floor_takes_nobodys_place(
    attached: Attached,
) -> None:
    """AMS had no reason to bring it."""
    attached.scale_ups("third")
    attached.tick_and_launch()
    attached.starts("fourth", years=2)
    attached.registers("fourth")
    _dies(attached)
    attached.tick_and_launch(GRACE)
    assert attached.world.container.requested == ["first"]


def test_the_newest_of_a_group_can_die_and_be_refilled(attached: Attached) -> None:
    """It was the newest one itself when it was alive last."""
    attached.starts("third", years=1)
    attached.registers("third")
    attached.group({"min-parallelism": "6"})
    attached.tick_and_launch()
    attached.starts("new", years=2)
    attached.registers("new")
    _dies(attached, "third")
    assert len(attached.tick_and_launch(GRACE)) == 1
    assert attached.of("third").state is State.SUPERSEDED


def test_a_refill_is_known_after_the_keeper_was_away_for_a_day(attached: Attached) -> None:
    """What it saw last is in the ledger, whatever became of its process and its cursor."""
    attached.scale_ups("new")
    attached.world.dies("first")
    attached.world.cursor = None
    assert attached.tick_and_launch(timedelta(days=1)) == []
    assert len(attached.tick_and_launch(GRACE)) == 1
    assert attached.of("first").state is State.SUPERSEDED


def test_what_is_known_of_a_group_is_written_where_it_changed(attached: Attached) -> None:
    """And forgotten with its min-parallelism."""
    ledger = attached.world.services.ledger
    assert ledger.looks()["g"].newest_start.startswith("2020-01-01 00:00:00")
    commits: list[object] = []
    sa.event.listen(ledger.database.engine, "commit", commits.append)
    attached.tick_and_launch()
    assert commits == []
    attached.scale_ups("third")
    attached.tick_and_launch()
    assert len(commits) == 1
    assert ledger.looks()["g"].newest_start.startswith("2021-01-01 00:00:00")
    attached.group({})
    attached.tick_and_launch()
    assert ledger.looks() == {}


def test_a_group_without_resources_has_been_seen_too(attached: Attached) -> None:
    """Whatever is there at the next look came since."""
    insert_group(attached.url, "empty", {"min-parallelism": "4"})
    attached.tick_and_launch()
    assert attached.world.services.ledger.looks()["empty"] == Look("empty", NEVER)
    for name, year in (("b", 1), ("a", 2)):
        insert_resource(
            attached.url,
            name,
            group_name="empty",
            container_name="recording",
            start_time=LONG_AGO.replace(year=2020 + year),
        )
    insert_optimizer(attached.url, "a", group_name="empty", thread_count=4)
    attached.tick_and_launch()
    attached.tick_and_launch(GRACE)
    assert attached.of("b").state is State.SUPERSEDED


# A refill that comes while an orphan is being restarted cannot be told from one that is needed.


def test_a_group_that_was_refilled_during_a_restart_is_shown_until_it_is_smaller(
    attached: Attached,
) -> None:
    """In the message of the tick, the status and a check; the next restart is one too few."""
    world = attached.world
    _dies(attached)
    world.container.during_request = lambda _: attached.scale_ups("new")
    attached.tick_and_launch(GRACE)
    attached.registers("first")
    for _ in range(2):
        attached.tick_and_launch()
        text = "g has 2 threads more than its min-parallelism"
        assert text in world.message
        (group,) = world.services.status.read().groups
        assert (group.live, group.trouble) == (6, "above min-parallelism")
        assert text in (group.message or "")
        told = world.check()["groups_not_doubled"]
        assert not told.passed
        assert "g (2 threads)" in (told.description or "")
    world.release("second")
    world.dies("second")
    attached.tick_and_launch()
    assert "more than" not in world.message
    assert world.services.status.read().groups[0].trouble is None
    assert world.check()["groups_not_doubled"].passed
