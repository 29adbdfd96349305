"""What `status` says is what the next tick does, and what one counts in the tables oneself."""

import random
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
import sqlalchemy as sa

from dagster_amoro.core.ams_restart import AmsRestartDetector
from dagster_amoro.core.errors import UnknownTargetError
from dagster_amoro.core.limits import Limits
from dagster_amoro.core.model import EventKind, Incident, OperatorRequest, State
from dagster_amoro.core.pauses import Pause, Scope, Target
from dagster_amoro.core.policy import OnExhausted
from dagster_amoro.core.transitions import order
from dagster_amoro.healing.status import OrphanStatus
from dagster_amoro.healing.tick import TickResult
from dagster_amoro.stores.registry import optimizer
from dagster_amoro_audit.findings import Finding
from dagster_amoro_audit.fleet_status import metadata_of
from dagster_amoro_audit.summaries import Links
from tests.helpers.fleet import GRACE, Fleet, fleet

pytestmark = pytest.mark.long

GROUPS: Final = ("a", "b", "sized", "paused")
GROUP_ROWS: Final = "SELECT group_name FROM resource_group"
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


def sees_to(world: Fleet, chance: random.Random) -> None:
    """An operator restores or acknowledges some of what was lost, as far as that is allowed."""
    for each in chance.sample([*world.services.status.read().losses], k=1):
        verbs = world.services.operations
        verb = chance.choice([verbs.restore, verbs.acknowledge])
        with suppress(UnknownTargetError):
            verb(each.resource_id, author="ann", reason="why not")


def rows(world: Fleet, query: str) -> list[dict[str, Any]]:
    """The rows of a query in the words of the database."""
    with world.services.registry.database.reading() as connection:
        return [dict(row) for row in connection.execute(sa.text(query)).mappings()]


def threads(world: Fleet, table: str) -> Counter[str]:
    """The threads of each group in a table."""
    found: Counter[str] = Counter()
    for row in rows(world, f"SELECT group_name, thread_count FROM {table}"):  # noqa: S608 - ours
        found[row["group_name"]] += row["thread_count"]
    return found


def lost_by_hand(world: Fleet) -> dict[str, list[Incident]]:
    """What was given up or is kept of each group and nobody has seen to, told by its story."""
    there = {row["resource_id"] for row in rows(world, "SELECT resource_id FROM resource")}
    found: dict[str, list[Incident]] = {}
    for each in world.incidents():
        kinds = {event.kind for event in world.services.ledger.events(each.incident_id)}
        is_gone = each.state is State.EXHAUSTED and each.resource_id not in there
        if (is_gone or each.state is State.KEPT) and EventKind.ACKNOWLEDGED not in kinds:
            found.setdefault(each.group_name, []).append(each)
    return found


@pytest.mark.parametrize("seed", range(6))
def test_each_number_is_what_one_counts_oneself(tmp_path: Path, seed: int) -> None:
    """Of `status`, and of the page of the fleet, which is made of it."""
    chance, seen = random.Random(seed), Counter[str]()  # noqa: S311 - a story, told again by its seed
    with fleet(tmp_path) as world:
        begins(world, chance)
        for _ in range(10):
            status, lost = world.services.status.read(), lost_by_hand(world)
            wanted, live = threads(world, "resource"), threads(world, "optimizer")
            # An optimizer may say that it is of a group that nobody knows.
            there_are = {*wanted, *lost, *(row["group_name"] for row in rows(world, GROUP_ROWS))}
            assert {group.name for group in status.groups} == there_are
            for group in status.groups:
                mine = lost.pop(group.name, [])
                kept = [each for each in mine if each.state is State.KEPT]
                numbers = (group.wanted, group.live, group.given_up, group.kept, group.lost_threads)
                gone, gone_threads = len(mine) - len(kept), sum(each.thread_count for each in mine)
                by_hand = (wanted[group.name], live[group.name], gone, len(kept), gone_threads)
                assert numbers == by_hand, group
                assert group.condition != "ok" or not mine
                seen.update(given_up=gone, kept=len(kept))
            assert lost == {}
            shown = metadata_of(status, Links(), Finding(passed=True, description=""))
            totals = {
                "threads wanted": sum(wanted.values()),
                "threads live": sum(live[name] for name in there_are),
                "threads lost": sum(each.thread_count for each in all_of(lost_by_hand(world))),
                "open orphans": len(status.orphans),
                "resources lost": len(all_of(lost_by_hand(world))),
            }
            assert {name: shown[name].value for name in totals} == totals
            runs(world, world.services.ticker.tick(lambda _: {}, AmsRestartDetector()), chance)
            if status.losses and chance.random() < 0.3:
                sees_to(world, chance)
                seen["seen to"] += 1
            happens(world, chance)
    assert seen["given_up"] + seen["kept"] > 0


def all_of(lost: Mapping[str, list[Incident]]) -> list[Incident]:
    """The losses of all groups."""
    return [each for found in lost.values() for each in found]


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
