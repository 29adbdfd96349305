"""What `status` says of each orphan is what the next tick does, in many situations."""

import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest
import sqlalchemy as sa

from dagster_amoro.core.ams_restart import AmsRestartDetector
from dagster_amoro.core.limits import Limits
from dagster_amoro.core.model import Incident, OperatorRequest
from dagster_amoro.core.pauses import Pause, Scope, Target
from dagster_amoro.core.policy import OnExhausted
from dagster_amoro.core.transitions import order
from dagster_amoro.healing.status import OrphanStatus
from dagster_amoro.healing.tick import TickResult
from dagster_amoro.stores.registry import optimizer
from tests.helpers.fleet import GRACE, Fleet, fleet

GROUPS: Final = ("a", "b", "sized", "paused")
SOON: Final = "at one of the next ticks"


def begins(world: Fleet, chance: random.Random) -> None:
    """A fleet with a group of each kind; some of it lives."""
    limits = Limits(
        max_restarts=chance.choice([None, None, 2]),
        max_orphaned=chance.choice([1, 1, 0.9]),
    )
    policy = replace(
        world.services.policy,
        max_retries=chance.choice([1, 2]),
        on_exhausted=chance.choice([*OnExhausted]),
        stable_after=GRACE * chance.choice([0, 10]),
    )
    world.services = replace(world.services, limits=limits, policy=policy)
    world.group("sized", min_parallelism="6")
    for group in GROUPS:
        for number in range(3):
            world.worker(f"{group}-{number}", group)
    world.worker("unknown", "a", container_name="unknown")
    world.worker("unreadable", "b")
    world.properties("{", "unreadable")
    paused = Target(scope=Scope.GROUP, name="paused")
    pause = Pause(target=paused, author="ann", reason="", paused_at=world.now, until=None)
    with world.services.ledger.transaction() as ledger:
        ledger.add_pause(pause)


def happens(world: Fleet, chance: random.Random) -> None:
    """Workers come and go, operators ask for something, a container refuses, time passes."""
    names = [row[0] for row in world.resources()]
    for name in chance.sample(names, 3):
        match chance.choice(["registers", "dies", "released", "asked"]):
            case "registers":
                group = name.partition("-")[0]
                world.register(name, group=group, threads=2)
            case "dies":
                world.dies(name)
            case "released" if chance.random() < 0.3:
                world.execute(sa.delete(optimizer).where(optimizer.c.resource_id == name))
                world.release(name)
            case "asked":
                asks(world, name, chance.choice([*OperatorRequest]))
    if chance.random() < 0.5:
        world.container.fail_starts("no room", times=chance.choice([1, 3]))
    world.later(GRACE * chance.choice([0, 0.5, 1, 3]))


def runs(world: Fleet, done: TickResult, chance: random.Random) -> None:
    """What Dagster does with what a tick requested; some runs never come."""
    for run in done.dispatches:
        if chance.random() < 0.8:
            for incident in world.services.restarter.claim(run.run_key, run.run_key):
                world.services.restarter.restart(incident.incident_id, run.run_key)
    for key in [run.run_key for run in done.scale_ups if chance.random() < 0.8]:
        for scale_up in world.services.scaler.claim(key, key):
            world.services.scaler.scale_up(scale_up.group_name, key)


def asks(world: Fleet, name: str, request: OperatorRequest) -> None:
    """An operator asks, where there is somebody to ask about."""
    incident = world.services.ledger.open_incident(name)
    if incident is not None and not incident.state.is_removing:
        by = {"author": "ann", "reason": "why not"}
        world.services.ledger.apply(order(incident, request, by, world.now))


def opened(world: Fleet) -> Mapping[str, Incident]:
    """The open incidents by resource."""
    return {each.resource_id: each for each in world.services.ledger.open_incidents()}


def agrees(said: OrphanStatus, before: Incident | None, after: Incident | None) -> bool:
    """Whether a tick did what was said."""
    if said.next.startswith("closed by"):
        return before is not None and (after is None or after.incident_id != before.incident_id)
    if said.next == "found by the next tick":
        return before is None and after is not None
    if before is None or after is None or after.incident_id != before.incident_id:
        return False
    is_dispatched = after.dispatches == before.dispatches + 1
    if SOON in said.next:
        return after.dispatches - before.dispatches in {0, 1}
    if " at the next tick" in said.next:
        return is_dispatched
    return after.dispatches == before.dispatches


@pytest.mark.parametrize("seed", range(5))
def test_the_next_tick_does_what_was_said_of_each_orphan(tmp_path: Path, seed: int) -> None:
    """Found, closed, dispatched or left: for eight ticks in a row."""
    chance, seen = random.Random(seed), set[str]()  # noqa: S311 - a story, told again by its seed
    with fleet(tmp_path) as world:
        begins(world, chance)
        for _ in range(8):
            said, before = world.services.status.read().orphans, opened(world)
            done = world.services.ticker.tick(lambda _: {}, AmsRestartDetector())
            after = opened(world)
            assert {each.resource_id for each in said} == before.keys() | after.keys()
            for each in said:
                name = each.resource_id
                assert agrees(each, before.get(name), after.get(name)), (each, after.get(name))
                seen.add(each.next.partition(" ")[0])
            runs(world, done, chance)
            happens(world, chance)
    assert {"found", "attempt", "held:", "left"} <= seen
