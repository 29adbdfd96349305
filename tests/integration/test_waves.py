"""A wave, not a stampede: the limits through real ticks and runs, and pauses that grow."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Final

import dagster as dg
import pytest
import sqlalchemy as sa

from dagster_amoro.core.clock import utc_clock
from dagster_amoro.core.limits import Limits
from dagster_amoro.core.model import EventKind, Incident, OperatorRequest, State
from dagster_amoro.core.policy import Backoff, RestartPolicy
from dagster_amoro.core.transitions import order
from dagster_amoro.stores.registry import resource, resource_group
from tests.helpers.fleet import GRACE, Fleet, fleet

pytestmark = pytest.mark.long

WAVE: Final = 50
GROUPS: Final = 100
WAVES: Final = 20
SECOND: Final = timedelta(seconds=1)
Batch = list[Incident]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Fleet]:
    """A fleet that restarts fifty at a time."""
    with fleet(tmp_path) as made:
        yield guarded(made, Limits(max_restarts=WAVE))


def guarded(made: Fleet, limits: Limits) -> Fleet:
    """The same fleet, with these limits."""
    made.services = replace(made.services, limits=limits)
    return made


def declare(made: Fleet, sizes: Sequence[int], batch: str = "") -> None:
    """Groups of so many orphans each, or as many more for them."""
    made.services.registry.create()
    names = [f"g-{number:02}" for number in range(len(sizes))]
    workers = [
        {
            "resource_id": f"{name} {batch}{number:02}",
            "group_name": name,
            "container_name": "recording",
            "thread_count": 2,
            "total_memory": 0,
            "properties": "{}",
        }
        for name, size in zip(names, sizes, strict=True)
        for number in range(size)
    ]
    known = sa.select(sa.func.count()).select_from(resource_group)
    with made.services.registry.database.writing() as connection:
        if not connection.scalar(known):
            groups = [{"group_name": name, "container_name": "recording"} for name in names]
            connection.execute(sa.insert(resource_group), groups)
        connection.execute(sa.insert(resource), workers)


def next_wave(made: Fleet) -> Batch:
    """What a tick hands over; nobody takes it up, and its claims hold for ten minutes."""
    requests = made.later(5 * SECOND).tick()
    return [
        incident
        for request in requests
        for incident in made.services.ledger.claimed_by(request.run_key or "")
    ]


def waves(made: Fleet, number: int) -> list[Batch]:
    """So many of them."""
    return [next_wave(made) for _ in range(number)]


def lead(dispatched: Sequence[Batch], sizes: Sequence[int]) -> int:
    """By how many restarts a group was ahead of another that still waited, at most."""
    served = Counter({f"g-{number:02}": 0 for number in range(len(sizes))})
    size = dict(zip(served, sizes, strict=True))
    most = 0
    for each in dispatched:
        served.update(incident.group_name for incident in each)
        waiting = [number for name, number in served.items() if number < size[name]]
        most = max([most, *(max(waiting) - number for number in waiting)])
    return most


@pytest.mark.parametrize("sizes", [[10] * GROUPS, [2, 18] * (GROUPS // 2)], ids=["even", "uneven"])
def test_a_thousand_orphans_are_restarted_in_twenty_waves(world: Fleet, sizes: list[int]) -> None:
    """Fifty a tick, groups in turn: none is more than one restart ahead of one that waits."""
    declare(world, sizes)
    assert next_wave(world) == []
    world.later()
    dispatched = waves(world, WAVES)
    assert [len(each) for each in dispatched] == [WAVE] * WAVES
    assert len({incident.resource_id for each in dispatched for incident in each}) == sum(sizes)
    assert lead(dispatched, sizes) == 1
    assert next_wave(world) == []
    assert re.search(r"orphans: 1,?000 restarting", world.message)


def test_the_oldest_of_a_group_go_first(world: Fleet) -> None:
    """Though ids and rows are in another order."""
    for batch in "edcba":
        declare(world, [2] * GROUPS, batch)
        assert next_wave(world) == []
    world.later()
    dispatched: dict[str, list[Incident]] = {}
    for incident in (incident for each in waves(world, WAVES) for incident in each):
        dispatched.setdefault(incident.group_name, []).append(incident)
    assert len(dispatched) == GROUPS
    for incidents in dispatched.values():
        assert [i.resource_id.split()[1][0] for i in incidents] == list("eeddccbbaa")
        assert all(a.detected_at <= b.detected_at for a, b in pairwise(incidents))


def test_the_tick_says_how_many_wait_for_the_next(
    world: Fleet, capfd: pytest.CaptureFixture[str]
) -> None:
    """In its log, since a tick that requests runs has no other message; the last leaves none."""
    declare(world, [2] * GROUPS)
    next_wave(world)
    world.later()
    for left in (150, 100, 50, 0):
        capfd.readouterr()
        world.later(5 * SECOND).tick()
        told = capfd.readouterr().err
        said = f"{left} waiting (due, and left for the next tick (keeper.max-restarts-per-tick))"
        assert "200 orphans: 50 due for a restart" in told
        assert (said in told) is (left > 0), told


@pytest.mark.parametrize("lost_after", [1, 7, 10])
def test_a_lost_cursor_costs_no_group_more_than_one_round(world: Fleet, lost_after: int) -> None:
    """The ring begins anew: some are served twice before others once; none is left out."""
    sizes = [10] * GROUPS
    declare(world, sizes)
    next_wave(world)
    world.later()
    dispatched = waves(world, lost_after)
    world.cursor = None
    dispatched += waves(world, WAVES - lost_after)
    assert lead(dispatched, sizes) <= 2
    assert len({i.resource_id for each in dispatched for i in each}) == sum(sizes)
    assert [len(each) for each in dispatched] == [WAVE] * WAVES


def test_a_wave_whose_runs_were_never_requested_comes_again(world: Fleet) -> None:
    """The daemon died between the dispatch and the request: its claims lapse, the rest goes on."""
    declare(world, [1] * GROUPS)
    next_wave(world)
    world.later()
    lost, second = waves(world, 2)
    assert not {i.resource_id for i in lost} & {i.resource_id for i in second}
    world.cursor = None
    world.later(world.services.settings.claim_timeout - 10 * SECOND)
    assert next_wave(world) != []
    again = next_wave(world)
    assert {i.dispatches for i in again} == {2}


def test_give_ups_are_not_held_back(tmp_path: Path) -> None:
    """Nine whose attempts are used up and one restart of five, though one a tick is the limit."""
    with fleet(tmp_path, max_retries=1) as made:
        declare(made, [9])
        next_wave(made)
        for request in made.later().tick():
            assert made.launch(request).success
        guarded(made, Limits(max_restarts=1))
        declare(made, [5], "new")
        next_wave(made)
        dispatched = next_wave(made.later())
        assert Counter(incident.attempts for incident in dispatched) == {1: 9, 0: 1}


def test_what_an_operator_ordered_is_not_held_back(world: Fleet) -> None:
    """Nor does it take the place of others in the wave, or wait for the end of a grace period."""
    guarded(world, Limits(max_restarts=1, max_orphaned=0.5))
    declare(world, [4])
    next_wave(world)
    by = {"author": "ann", "reason": "now"}
    operator_request = world.services.ledger.open_incidents()[:3]
    for incident in operator_request:
        world.services.ledger.apply(order(incident, OperatorRequest.RESTART, by, world.now))
    dispatched = next_wave(world)
    assert [i.resource_id for i in dispatched] == [i.resource_id for i in operator_request]
    assert next_wave(world.later()) == []
    assert "1 held (4 of 4 orphaned, allowed 50%)" in world.message


def test_above_the_allowed_share_nothing_is_restarted(world: Fleet) -> None:
    """Seven and five of nine are too many of a half, four are not; others are healed meanwhile."""
    guarded(world, Limits(max_orphaned=0.5))
    for number in range(9):
        world.worker(f"w-{number}")
    for number in range(3):
        world.worker(f"other-{number}", group="other")
    for resource_id in ("w-7", "w-8", "other-1", "other-2"):
        world.register(resource_id)
    world.tick()
    assert [i.resource_id for i in next_wave(world.later())] == ["other-0"]
    assert next_wave(world) == []
    assert "7 held (7 of 9 orphaned, allowed 50%)" in world.message
    world.register("w-0")
    world.register("w-1")
    assert next_wave(world) == []
    assert "5 held (5 of 9 orphaned, allowed 50%)" in world.message
    assert {i.dispatches for i in world.incidents() if i.group_name == "g"} == {0}
    world.register("w-2")
    assert [i.resource_id for i in next_wave(world)] == ["w-3", "w-4", "w-5", "w-6"]


def test_above_the_share_of_all_nothing_is_restarted_anywhere(world: Fleet) -> None:
    """Whatever a group's own share is; and nothing of it counts as an attempt."""
    guarded(world, Limits(max_orphaned_overall=0.25))
    declare(world, [2, 1, 1])
    for resource_id in ("g-00 00", "g-00 01"):
        world.register(resource_id)
    world.tick()
    assert next_wave(world.later()) == []
    assert "2 held (of all groups 2 of 4 orphaned, allowed 25%)" in world.message
    world.register("g-01 00")
    assert [i.resource_id for i in next_wave(world)] == ["g-02 00"]


def test_pauses_between_attempts_grow_up_to_their_cap(world: Fleet) -> None:
    """30 s, 60 s, and then no more than 90 s; a tick a moment earlier waits."""
    world.services = replace(world.services, policy=growing(GRACE, cap=3 * GRACE))
    world.worker()
    world.tick()
    for pause in (GRACE, 2 * GRACE, 3 * GRACE, 3 * GRACE):
        assert world.later(pause - SECOND / 1000).tick() == []
        (request,) = world.later(SECOND / 1000).tick()
        world.launch(request)
    (incident,) = world.incidents()
    assert (incident.state, incident.attempts) == (State.EXHAUSTED, 3)


def test_a_step_waits_for_its_retry_as_long_as_its_pause_is(world: Fleet) -> None:
    """Starts that fail are tried again in the same run, each after a longer time."""
    skipped = timedelta(0)
    grace, cap = timedelta(milliseconds=200), timedelta(milliseconds=500)
    policy = growing(grace, cap=cap)
    world.services = replace(world.services, policy=policy, clock=lambda: utc_clock() + skipped)
    world.worker()
    skipped = grace  # until then it is starting
    world.tick()
    skipped = 2 * grace
    (request,) = world.tick()
    world.container.fail_starts("no such file", times=2)
    result = world.launch(request)
    assert result.success
    waited = [seconds_to_wait(e) for e in result.all_events if e.is_step_up_for_retry]
    # What is left of the pause, which begins with the attempt, when the attempt has failed.
    assert len(waited) == 2
    assert 0.1 < waited[0] <= 0.4
    assert 0.2 < waited[1] <= 0.5
    told = world.services.ledger.events(1)
    first, second, third = [each.at for each in told if each.kind is EventKind.ATTEMPT]
    assert second - first >= 2 * grace
    assert third - second >= cap
    assert [str(each.kind) for each in told][-1] == "started"


def growing(grace: timedelta, *, cap: timedelta) -> RestartPolicy:
    """Three attempts, each pause twice as long as the one before."""
    return RestartPolicy(
        enabled=True,
        max_retries=3,
        grace_period=grace,
        backoff=Backoff.EXPONENTIAL,
        backoff_cap=cap,
        backoff_jitter=0,
    )


def seconds_to_wait(event: dg.DagsterEvent) -> float:
    """How long the step that is up for a retry is to wait."""
    return float(event.step_retry_data.seconds_to_wait or 0)
