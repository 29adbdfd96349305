"""What `take_status` finds in real stores, and that it writes nothing and the next tick agrees."""

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from dagster_amoro.config import Mode
from dagster_amoro.core.errors import StoreUnavailableError, UnknownTargetError
from dagster_amoro.core.formatting import clock_time
from dagster_amoro.core.limits import Limits
from dagster_amoro.core.model import (
    Incident,
    OperatorRequest,
    ScaleUp,
    ScaleUpState,
    State,
    Transition,
)
from dagster_amoro.core.pauses import EVERYTHING, Pause, Scope, Target
from dagster_amoro.core.policy import OnExhausted
from dagster_amoro.core.transitions import attempt_failed, begin_attempt, claim, give_back, order
from dagster_amoro.healing.status import OrphanStatus, Status, as_json
from dagster_amoro.healing.status_table import render
from dagster_amoro.stores.database import Database
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro.stores.registry import Registry, optimizer, resource_group
from tests.helpers.attached import amoro
from tests.helpers.fleet import GRACE, START, Fleet, fleet

DUE = clock_time(START + GRACE)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Fleet]:
    """A fleet without workers."""
    with fleet(tmp_path) as found:
        yield found


def stored(folder: Path) -> list[str]:
    """All that is in the database, as SQL."""
    with closing(sqlite3.connect(folder / "registry.db")) as connection:
        return list(connection.iterdump())


def look(world: Fleet, group: str | None = None) -> Status:
    """The status; it changes nothing, and both its forms can be made."""
    folder = Path(world.services.ledger.database.url.database or "").parent
    before = stored(folder)
    status = world.services.status.read(group)
    assert stored(folder) == before
    assert render(status)
    assert json.loads(as_json(status))["at"]
    return status


def only(world: Fleet) -> OrphanStatus:
    """The one orphan that there is."""
    (orphan,) = look(world).orphans
    return orphan


def change(world: Fleet, **settings: Any) -> None:  # noqa: ANN401 - of the keeper, or its policy
    """The operator edits the configuration."""
    keeper, policy = world.services, world.services.policy
    of_policy = {key: settings.pop(key) for key in [*settings] if hasattr(policy, key)}
    world.services = replace(keeper, policy=replace(policy, **of_policy), **settings)


def min_parallelism(world: Fleet, threads: int, group: str = "g") -> None:
    """The operator sets a minimum parallelism."""
    properties = json.dumps({"min-parallelism": str(threads)})
    chosen = resource_group.c.group_name == group
    world.execute(sa.update(resource_group).where(chosen).values(properties=properties))


def threads(world: Fleet, group: str = "g") -> None:
    """The optimizers say what they have."""
    world.execute(sa.update(optimizer).values(group_name=group, thread_count=2))


def pause(world: Fleet, target: Target, until: timedelta | None = None) -> Pause:
    """An operator pauses something."""
    end = world.now + until if until else None
    reason = "upgrade, password=hunter2"
    new = Pause(target=target, author="ann", reason=reason, paused_at=world.now, until=end)
    with world.services.ledger.transaction() as ledger:
        ledger.add_pause(new)
    return new


def exhaust(world: Fleet) -> None:
    """All attempts are made and fail."""
    for _ in range(world.services.policy.max_retries):
        world.tick()
        for request in world.later().tick():
            world.launch(request)


def fail(world: Fleet, error: str) -> None:
    """A run makes an attempt that fails, and lets go."""
    until = world.now + GRACE
    steps: list[Callable[[Incident], Transition]] = [
        lambda each: claim(each, "run", until, world.now),
        lambda each: begin_attempt(each, until, world.now),
        lambda each: attempt_failed(each, error, until, world.now),
        lambda each: give_back(each, "the run was ended", world.now),
    ]
    for step in steps:
        (incident,) = world.services.ledger.open_incidents()
        assert world.services.ledger.apply(step(incident))


def test_a_fleet_that_never_ran_stays_as_it_is(tmp_path: Path) -> None:
    """No file and no folder comes to be."""
    with fleet(tmp_path, url=sa.URL.create("sqlite", database=str(tmp_path / "x/r.db"))) as world:
        before = sorted(tmp_path.rglob("*"))
        status = world.services.status.read()
        assert (status.groups, status.orphans, status.pauses) == ((), (), ())
        assert status.at == START
        with pytest.raises(UnknownTargetError, match="no group 'g'; there is none yet"):
            world.services.status.read("g")
        assert sorted(tmp_path.rglob("*")) == before


def test_a_ledger_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    """The registry has orphans already, which the next tick finds."""
    with fleet(tmp_path) as world:
        ledger = Ledger(Database(sa.URL.create("sqlite", database=str(tmp_path / "l.db")), "l"))
        world.services = replace(world.services, ledger=ledger)
        world.worker()
        assert only(world).next == "found by the next tick"
        world.services = world.services.in_dry_run()
        assert only(world).next == "found by the next tick"
        assert look(world).mode is Mode.DRY_RUN
        assert not (tmp_path / "l.db").exists()
        ledger.database.close()


def test_tables_are_not_made_beside_the_registry(world: Fleet) -> None:
    """Neither are they where ledger and registry share a database."""
    world.worker()
    new = only(world)
    assert (new.incident_id, new.state, new.orphaned_since, new.attempts_used) == (None,) * 4
    assert (new.group_name, new.next_at) == ("g", START)
    with world.services.registry.database.reading() as connection:
        assert not sa.inspect(connection).has_table("keeper_incident")


def test_a_ledger_of_an_older_version_is_left_to_the_next_tick(world: Fleet) -> None:
    """To bring it up to date would be to write."""
    world.worker()
    world.execute(sa.text("CREATE TABLE keeper_incident (incident_id INTEGER)"))
    with pytest.raises(StoreUnavailableError, match="the ledger is of an older version"):
        world.services.status.read()


def test_a_store_that_does_not_answer_is_an_error(world: Fleet) -> None:
    """Nobody is told that all is well."""
    url = sa.make_url("postgresql+psycopg://127.0.0.1:1/nowhere")
    world.services = replace(world.services, registry=Registry(Database(url, "registry"), GRACE))
    with pytest.raises(StoreUnavailableError, match="the registry cannot be read"):
        world.services.status.read()


def test_a_group_has_its_numbers(world: Fleet) -> None:
    """Threads that are wanted, live and asked for, and orphans."""
    for name in ("w-1", "w-2", "w-3"):
        world.worker(name)
    world.worker("other", group="h")
    for name in ("w-1", "w-2"):
        world.register(name)
    threads(world)
    min_parallelism(world, 3)
    world.tick()
    g, h = look(world).groups
    assert (g.name, g.resources, g.wanted, g.live, g.min_parallelism, g.orphans) == (
        "g",
        3,
        6,
        4,
        3,
        1,
    )
    assert (g.trouble, g.message, g.scale_up) == ("orphans", None, None)
    assert (h.name, h.resources, h.wanted, h.live, h.min_parallelism, h.orphans) == (
        "h",
        1,
        2,
        0,
        None,
        1,
    )
    world.register("w-3")
    g, h = look(world).groups
    assert (g.orphans, g.trouble) == (0, None)


def test_a_heartbeat_that_is_too_old_does_not_count(world: Fleet) -> None:
    """It is not removed either, which is for the next tick."""
    world.worker()
    world.register()
    threads(world)
    assert look(world).groups[0].live == 2
    world.execute(sa.update(optimizer).values(touch_time=sa.text("'2020-01-01 00:00:00.000000'")))
    (group,) = look(world).groups
    assert (group.live, group.orphans) == (0, 1)


def test_a_group_can_be_looked_at_alone(world: Fleet) -> None:
    """With the pauses that concern it; an unknown one is an error that lists those there are."""
    world.worker()
    world.worker("other", group="h")
    world.tick()
    everything = pause(world, EVERYTHING)
    pause(world, Target(scope=Scope.GROUP, name="h"))
    status = look(world, "g")
    assert [group.name for group in status.groups] == ["g"]
    assert [orphan.resource_id for orphan in status.orphans] == ["w-1"]
    assert [each.target for each in status.pauses] == [everything.target]
    with pytest.raises(UnknownTargetError, match="no group 'x'; there are g, h"):
        world.services.status.read("x")


def test_a_grace_period_has_an_end(world: Fleet) -> None:
    """Before it the attempt is waited for, and from then on the next tick makes it."""
    world.worker()
    world.tick()
    orphan = only(world)
    assert (orphan.state, orphan.orphaned_since, orphan.attempts_used) == (State.WAITING, START, 0)
    assert (orphan.next, orphan.next_at) == (f"attempt 1 of 3 after {DUE}", START + GRACE)
    assert only(world.later(GRACE - timedelta(microseconds=1))).next == orphan.next
    orphan = only(world.later(timedelta(microseconds=1)))
    assert (orphan.next, orphan.next_at) == ("attempt 1 of 3 at the next tick", START + GRACE)
    assert world.tick()


def test_a_run_has_a_claim_until_it_lapses(world: Fleet) -> None:
    """Dagster is not asked: the claim's time alone says it."""
    world.worker()
    world.tick()
    (request,) = world.later().tick()
    until = world.now + world.services.settings.claim_timeout
    orphan = only(world)
    assert (orphan.state, orphan.next_at) == (State.DISPATCHED, until)
    assert orphan.next == f"attempt 1 of 3 by a run until {clock_time(until)}"
    world.claim(request, "run")
    assert only(world).state is State.CLAIMED
    orphan = only(world.later(world.services.settings.claim_timeout))
    assert orphan.next == "attempt 1 of 3 at the next tick"


def test_attempts_are_counted_and_their_last_error_is_told(world: Fleet) -> None:
    """Without its secrets."""
    world.worker()
    world.tick()
    fail(world.later(), "no room, password=hunter2")
    orphan = only(world)
    assert (orphan.attempts_used, orphan.max_attempts) == (1, 3)
    assert orphan.next == f"attempt 2 of 3 after {clock_time(world.now + GRACE)}"
    assert orphan.last_error == "no room, password=***"
    assert "hunter2" not in as_json(look(world))


def test_what_follows_the_last_attempt_is_said(world: Fleet) -> None:
    """It is given up, or kept and left to a person."""
    change(world, max_retries=1)
    world.worker()
    exhaust(world)
    after = f"after {clock_time(world.now + GRACE)}"
    assert only(world).next == f"given up {after}: its row moves to the ledger"
    world.later()
    assert only(world).next == "given up at the next tick: its row moves to the ledger"
    change(world, on_exhausted=OnExhausted.KEEP)
    assert only(world).next == "left to a person at the next tick: no more attempts are made"
    for request in world.tick():
        world.launch(request)
    orphan = only(world)
    assert orphan.state is State.KEPT
    assert orphan.next == "held: 1 attempt did not help, and keeper.on-exhausted is keep"
    assert orphan.next_at is None


def test_what_cannot_be_restarted_is_left_alone(world: Fleet) -> None:
    """With the reason, before it was reported and after."""
    world.worker(container_name="unknown")
    world.tick()
    for _ in range(2):
        orphan = only(world)
        assert orphan.next == "left alone: container 'unknown' is not configured"
        assert orphan.next_at is None
        world.tick()
    assert orphan.state is State.UNSUPPORTED


def test_what_came_back_is_closed_by_the_next_tick(world: Fleet) -> None:
    """So is what somebody removed."""
    for name in ("w-1", "w-2"):
        world.worker(name)
    world.tick()
    world.register("w-1")
    world.release("w-2")
    one, two = look(world).orphans
    came_back = "an optimizer registered for it by itself"
    assert (one.state, one.next) == (State.WAITING, f"closed by the next tick: {came_back}")
    assert two.next == "closed by the next tick: somebody removed its resource row"
    world.tick()
    assert look(world).orphans == ()


@pytest.mark.parametrize("target", [EVERYTHING, Target(scope=Scope.GROUP, name="g")])
def test_a_pause_is_shown_and_holds(world: Fleet, target: Target) -> None:
    """Until its end, without what a person should not have written down."""
    world.worker()
    world.tick()
    given = pause(world, target, timedelta(hours=1))
    status = look(world.later())
    (shown,) = status.pauses
    assert shown == replace(given, reason="upgrade, password=***")
    (orphan,) = status.orphans
    assert orphan.next == f"held: {shown}"
    assert orphan.next_at == given.until
    assert status.groups[0].trouble == "paused"
    assert world.tick() == []
    world.later(timedelta(hours=1))
    assert look(world).pauses == ()
    assert only(world).next == "attempt 1 of 3 at the next tick"


def test_a_paused_resource_is_held_alone(world: Fleet) -> None:
    """Its group is not paused."""
    for name in ("w-1", "w-2"):
        world.worker(name)
    world.tick()
    pause(world, Target(scope=Scope.RESOURCE, name="w-2"))
    status = look(world.later())
    assert [each.next.partition(" ")[0] for each in status.orphans] == ["attempt", "held:"]
    assert status.groups[0].trouble == "orphans"


def test_too_many_orphans_are_held(world: Fleet) -> None:
    """The group says so before the first of them is due."""
    change(world, limits=Limits(max_orphaned=0.5))
    for number in range(3):
        world.worker(f"w-{number}")
    world.register("w-0")
    world.tick()
    (group,) = look(world).groups
    assert (group.trouble, group.message) == ("held", "2 of 3 orphaned, allowed 50%")
    for orphan in look(world.later()).orphans:
        assert orphan.next == "held: 2 of 3 orphaned, allowed 50%"
    assert world.tick() == []


def test_a_wave_does_not_say_who_comes_first(world: Fleet) -> None:
    """Whose turn it is only the sensor knows."""
    change(world, limits=Limits(max_restarts=1))
    for number in range(2):
        world.worker(f"w-{number}")
    world.tick()
    message = {orphan.next for orphan in look(world.later()).orphans}
    assert message == {
        "attempt 1 of 3 at one of the next ticks (keeper.max-restarts-per-tick)",
    }


def test_an_order_comes_before_the_end_of_the_grace_period(world: Fleet) -> None:
    """And does not wait for its turn in a wave."""
    change(world, limits=Limits(max_restarts=1))
    for number in range(3):
        world.worker(f"w-{number}")
    world.tick()
    by = {"author": "ann", "reason": ""}
    last = world.incidents()[-1]
    world.services.ledger.apply(order(last, OperatorRequest.RESTART, by, world.now))
    first, *_ = look(world).orphans
    assert first.resource_id == last.resource_id
    assert first.next == "attempt 1 of 3 at the next tick, by order of an operator"
    assert first.next_at == START


def test_restarts_that_are_off_are_said_to_be(world: Fleet) -> None:
    """Everything is held."""
    change(world, enabled=False)
    world.worker()
    world.tick()
    pause(world, EVERYTHING, timedelta(hours=1))
    status = look(world)
    assert not status.auto_restart
    assert (status.orphans[0].next, status.orphans[0].next_at) == (
        "held: auto-restart is off",
        None,
    )


def test_an_orphan_whose_start_failed_waits_for_the_round_that_is_due(world: Fleet) -> None:
    """As the tick does it, which starts a new resource in its place."""
    world.worker()
    min_parallelism(world, 2)
    world.tick()
    fail(world.later(), "no room")
    status = look(world.later())
    (group,) = status.groups
    assert (group.live, group.min_parallelism, group.trouble) == (0, 2, "below min-parallelism")
    assert group.message == "g has 0 of 2 threads, a new resource of 2 is started"
    assert status.orphans[0].next == "waits: its group is being scaled up"
    world.tick()
    (group,) = look(world).groups
    assert group.scale_up
    assert (group.scale_up.rounds, group.scale_up.most) == (1, 3)
    assert group.scale_up.state is ScaleUpState.REQUESTED
    assert group.message == "g has 0 of 2 threads, round 1 of 3 was begun"
    assert only(world).next == "waits: its group is being scaled up"


def test_rounds_that_were_stopped_are_a_matter_for_a_person(world: Fleet) -> None:
    """They are not begun again by themselves."""
    world.worker()
    world.register()
    threads(world)
    min_parallelism(world, 4)
    rounds = ScaleUp("g", 4, rounds=3, state=ScaleUpState.STOPPED, last_error="token=hunter2")
    with world.services.ledger.transaction() as ledger:
        ledger.move_scale_up(None, rounds)
    (group,) = look(world).groups
    assert (group.live, group.min_parallelism, group.trouble) == (2, 4, "scale-up stopped")
    assert group.message == "g has 2 of 4 threads, and 3 rounds did not help: a person is needed"
    assert group.scale_up
    assert group.scale_up.last_error == "token=***"


def test_a_dry_run_shows_what_it_would_have_left(world: Fleet) -> None:
    """And once it is over, what the next tick makes of it."""
    change(world, max_retries=1)
    world.worker()
    enforcing = world.services
    world.services = enforcing.in_dry_run()
    assert look(world).mode is Mode.DRY_RUN
    exhaust(world)
    orphan = only(world)
    assert (orphan.attempts_used, orphan.next[:8]) == (1, "given up")
    world.services = enforcing
    status = look(world.later())
    assert status.mode is Mode.ENFORCE
    assert status.orphans[0].attempts_used == 0
    assert status.orphans[0].next == "attempt 1 of 1 at the next tick"
    assert world.tick()
    assert world.container.requested == []


def test_what_a_dry_run_gave_up_is_no_orphan_to_it(world: Fleet) -> None:
    """It would not be there any more."""
    change(world, max_retries=0)
    world.worker()
    enforcing = world.services
    world.services = enforcing.in_dry_run()
    world.tick()
    for request in world.later().tick():
        world.launch(request)
    assert look(world).orphans == ()
    world.services = enforcing
    assert only(world).next == "found by the next tick"


def test_the_lease_says_who_acts(world: Fleet) -> None:
    """Nobody, this deployment, another one, or nobody any more."""
    ours = replace(world.services, deployment="blue", lease_time=timedelta(hours=1))
    theirs = replace(ours, deployment="green")
    assert look(world).acting.message == "this deployment; it knows of no other (no lease)"
    world.worker()
    world.tick()
    world.services = ours
    acting = look(world).acting
    assert (acting.deployment, acting.holder, acting.until) == ("blue", None, None)
    assert acting.message == "nobody yet; whoever ticks first takes the lease"
    theirs.preconditions.hold_lease("0123456789")
    acting = look(world).acting
    assert acting.holder == "green (01234567)"
    assert acting.until
    until = f"; its lease runs until {clock_time(acting.until)}"
    assert acting.message == f"green (01234567), while blue watches{until}"
    world.services = theirs
    assert look(world).acting.message == f"green (01234567), this deployment{until}"
    late = replace(theirs, lease_time=timedelta(hours=-1))
    late.preconditions.hold_lease("0123456789")
    acting = look(world).acting
    assert acting.message.startswith("nobody; the lease of green (01234567) ran out at ")
    assert acting.until


def test_a_claim_of_an_earlier_lease_is_void(world: Fleet) -> None:
    """Its run cannot act any more, and the next tick hands over anew."""
    change(world, deployment="blue", lease_time=timedelta(hours=1))
    world.worker()
    world.tick()
    assert world.later().tick()
    assert only(world).next.startswith("attempt 1 of 3 by a run until ")
    with world.services.ledger.transaction() as ledger:
        ledger.connection.execute(sa.text("UPDATE keeper_lease SET fence = fence + 1"))
    assert only(world).next == "attempt 1 of 3 at the next tick"
    assert world.tick()


def test_others_that_took_its_place_are_seen(world: Fleet) -> None:
    """While they come it waits; once they are there the next tick removes it."""
    world.worker()
    min_parallelism(world, 2)
    world.tick()
    world.worker("new")
    world.later()
    _, orphan = look(world).orphans
    assert (orphan.next, orphan.next_at) == ("waits: its group is being scaled up", None)
    world.register("new")
    threads(world)
    assert only(world).next == "removed at the next tick: others took its place"
    (request,) = world.tick()
    assert world.launch(request).success
    assert world.incidents()[0].state is State.SUPERSEDED


def test_the_next_tick_does_what_was_said(world: Fleet) -> None:
    """Of a fleet in which everything happens at once."""
    change(world, limits=Limits(max_orphaned_of={"held": 0.5}))
    for group in ("a", "b", "held", "paused"):
        for number in range(2):
            world.worker(f"{group}-{number}", group=group)
    world.worker("lost", container_name="unknown")
    pause(world, Target(scope=Scope.GROUP, name="paused"))
    pause(world, Target(scope=Scope.RESOURCE, name="a-0"))
    world.tick()
    world.later(GRACE / 2)
    world.worker("b-new", group="b")
    world.tick()
    status = look(world.later(GRACE / 2))
    said = {each.resource_id for each in status.orphans if each.next.endswith("at the next tick")}
    assert said == {"a-1", "b-0", "b-1"}
    world.tick()
    done = [i for i in world.incidents() if i.state is State.DISPATCHED]
    assert {incident.resource_id for incident in done} == said


def test_many_orphans_are_counted_in_the_table(world: Fleet) -> None:
    """Programs get all of them."""
    for number in range(60):
        world.worker(f"w-{number}")
    world.tick()
    status = look(world)
    assert len(json.loads(as_json(status))["orphans"]) == 60
    assert "and 40 more" in render(status)


def test_an_ams_that_is_silent_is_waited_for(postgresql_url: sa.URL, tmp_path: Path) -> None:
    """Until it answers nothing is concluded, and what would be is told as such."""
    with amoro(postgresql_url, tmp_path) as running:
        running.resources("dead", "alive")
        running.optimizers("alive")
        status = running.world.services.status.read()
        assert (status.attached, status.silence) == (True, None)
        assert [orphan.next for orphan in status.orphans] == ["found by the next tick"]
        running.ams.stop()
        status = running.world.services.status.read()
        assert status.silence
        assert [orphan.next for orphan in status.orphans] == [
            "once AMS answers: found by the next tick"
        ]
        engine = sa.create_engine(running.url, poolclass=sa.NullPool)
        assert "keeper_incident" not in sa.inspect(engine).get_table_names()


def test_every_database_tells_the_same(tmp_path: Path, database_url: sa.URL) -> None:
    """Threads, heartbeats, the lease and its end, rounds and pauses."""
    with fleet(tmp_path, url=database_url) as world:
        assert world.services.status.read().groups == ()
        change(world, deployment="blue", lease_time=timedelta(hours=1))
        world.worker("w-1")
        world.worker("w-2")
        world.register("w-2")
        threads(world)
        min_parallelism(world, 8)
        world.tick()
        given = pause(world, Target(scope=Scope.RESOURCE, name="w-1"))
        status = world.services.status.read()
        assert status.acting.holder
        assert status.acting.holder.startswith("blue (")
        assert "this deployment; its lease runs until" in status.acting.message
        (group,) = status.groups
        assert (group.wanted, group.live, group.min_parallelism, group.orphans) == (4, 2, 8, 1)
        assert group.scale_up
        assert group.scale_up.rounds == 1
        (orphan,) = status.orphans
        assert orphan.next == f"held: {replace(given, reason='upgrade, password=***')}"
        assert orphan.orphaned_since == START
