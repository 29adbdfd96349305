"""The restarts of a run, side by side."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from dagster_amoro.core.model import Resource, State
from dagster_amoro.core.pauses import Scope, Target
from dagster_amoro.healing.restart import Outcome
from dagster_amoro.healing.restart_pool import RestartPool
from tests.helpers.fleet import Fleet, fleet, watched

NAMES = [f"w-{number}" for number in range(4)]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Fleet]:
    """A fleet with four orphans that were just detected."""
    with fleet(tmp_path) as made:
        for name in NAMES:
            made.worker(name)
        made.tick()
        yield made


def test_as_many_as_may_are_started_at_once(world: Fleet) -> None:
    """Not one more, and not one after the other."""
    (request,) = world.later().tick()
    under_way = threading.Semaphore(3)
    meeting = threading.Barrier(2)
    crowds = []

    def together(_resource: Resource) -> None:
        crowds.append(under_way.acquire(blocking=False))
        meeting.wait(60)  # broken, and so an error, unless there are two
        under_way.release()

    world.container.during_request = together
    restarter = replace(world.services.restarter, max_concurrent_starts=2)
    pool = RestartPool(restarter, "run")
    incidents = world.claim(request, "run")
    pool.begin(incidents)
    results = [pool.collect(incident.incident_id) for incident in incidents]
    pool.close()
    assert [result.outcome for result in results] == [Outcome.STARTED] * 4
    assert crowds == [True] * 4


def test_what_is_dispatched_ahead_is_started_when_it_is_due(world: Fleet) -> None:
    """Its run waits for the rest of the pause; a run that is closed waits for nothing."""
    grace, lead = world.services.policy.grace_period, timedelta(seconds=5)
    world.services = replace(world.services, settings=replace(world.services.settings, lead=lead))
    assert world.later(grace - lead - timedelta(microseconds=1)).tick() == []
    (request,) = world.later(timedelta(microseconds=1)).tick()
    (_, *rest) = incidents = world.claim(request, "run")
    pool = RestartPool(world.services.restarter, "run")
    pool.begin(incidents)
    assert not world.container.requested
    pool.close()  # they look again and see that it is too early
    assert not world.container.requested
    pool = RestartPool(world.services.restarter, "run")
    world.now += lead
    (request,) = world.tick()
    again = world.claim(request, "run")
    pool.begin(again)
    assert {pool.collect(each.incident_id).outcome for each in again} == {Outcome.STARTED}
    assert len(rest) + 1 == len(world.container.requested)
    pool.close()


def test_a_retry_takes_all_others_along(world: Fleet) -> None:
    """Whoever is asked for first brings back all whose pause is over, side by side."""
    (request,) = world.later().tick()
    incidents = world.claim(request, "run")
    pool = RestartPool(world.services.restarter, "run")
    world.container.fail_starts(times=len(incidents))
    pool.begin(incidents)
    failed = [pool.collect(incident.incident_id) for incident in incidents]
    assert [result.outcome for result in failed] == [Outcome.FAILED] * 4
    world.later()
    assert pool.collect(incidents[0].incident_id).outcome is Outcome.STARTED
    others = [pool.collect(incident.incident_id).outcome for incident in incidents[1:]]
    pool.close()
    assert others == [Outcome.STARTED] * 3
    assert len(world.container.requested) == 8


def test_a_renewal_by_another_thread_takes_nothing_from_a_restart(world: Fleet) -> None:
    """It extends all claims of the run, between another one's last look and its attempt."""
    (request,) = world.later().tick()
    first, *_ = world.claim(request, "run")
    until = world.now + 2 * world.services.settings.claim_timeout

    def renew(place: str) -> None:
        if place == "before ledger.apply" and not world.container.requested:
            world.services.ledger.renew("run", until)

    result = watched(world.services, renew).restarter.restart(first.incident_id, "run")
    assert result.outcome is Outcome.STARTED
    assert [i.attempts for i in world.incidents() if i.attempts] == [1]


@pytest.mark.parametrize("works", [True, False])
def test_what_came_of_an_attempt_is_kept_whatever_moved_it_meanwhile(
    world: Fleet, *, works: bool
) -> None:
    """Another thread renews its claim, and an operator gives it a fresh budget."""
    (request,) = world.later().tick()
    first, *_ = world.claim(request, "run")
    until = world.now + 2 * world.services.settings.claim_timeout

    def meanwhile(_resource: Resource) -> None:
        world.services.ledger.renew("run", until)
        target = Target(scope=Scope.RESOURCE, name=first.resource_id)
        world.services.operations.reset(target, author="ann", reason="it was the disk")

    world.container.during_request = meanwhile
    world.container.fail_starts(times=0 if works else 1)
    result = world.services.restarter.restart(first.incident_id, "run")
    assert result.outcome is (Outcome.STARTED if works else Outcome.FAILED)
    (found,) = (each for each in world.incidents() if each.attempts)
    assert found == result.incident
    assert not found.is_attempting
    assert found.attempt_ends_at == world.now
    assert (found.state is State.WAITING, found.last_error is None) == (works, works)
    assert (found.attempts, found.attempts_used) == (1, 1)
