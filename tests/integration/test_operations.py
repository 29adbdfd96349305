"""The operator verbs: what each does, what it leaves in the ledger, and what it refuses."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypedDict

import pytest
import sqlalchemy as sa

from dagster_amoro.core.errors import KeeperError, UnknownTargetError
from dagster_amoro.core.model import (
    EventKind,
    Incident,
    OperatorRequest,
    ScaleUp,
    ScaleUpState,
    State,
)
from dagster_amoro.core.pauses import EVERYTHING, Scope, Target
from dagster_amoro.core.policy import OnExhausted
from dagster_amoro.healing.operations import Operations
from dagster_amoro.healing.verbs import end_of, target_of
from dagster_amoro.stores.schema import event
from tests.helpers.attached import amoro
from tests.helpers.fleet import GRACE, START, Fleet, fleet, watched


class By(TypedDict):
    """Who and why."""

    author: str
    reason: str


BY: By = {"author": "ann", "reason": "a move"}
GROUP = Target(scope=Scope.GROUP, name="g")
W1 = Target(scope=Scope.RESOURCE, name="w-1")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Fleet]:
    """A fleet of none."""
    with fleet(tmp_path) as found:
        yield found


def orphaned(world: Fleet, *names: str) -> None:
    """Workers that a tick saw as orphans."""
    for name in names:
        world.worker(name)
    world.tick()


def healed(world: Fleet) -> None:
    """A tick, and all that it requests."""
    for request in world.tick():
        world.launch(request)


def notes(world: Fleet) -> list[tuple[str, str | None]]:
    """Kind and group of the events that are no step of an incident."""
    query = sa.select(event.c.kind, event.c.group_name).where(event.c.incident_id.is_(None))
    with world.services.ledger.reading() as connection:
        return [(row.kind, row.group_name) for row in connection.execute(query)]


def last_event(world: Fleet, resource_id: str = "w-1") -> tuple[str, dict[str, Any]]:
    """Kind and details of the last event in the story of a resource's last incident."""
    last = [i for i in world.incidents() if i.resource_id == resource_id][-1]
    told = world.services.ledger.events(last.incident_id)[-1]
    return str(told.kind), dict(told.details)


def raw(world: Fleet) -> list[tuple[object, ...]]:
    """Every resource row as it is stored."""
    return world.dump()["resource"]


# What is named, and until when.


def test_what_is_named_is_a_group_a_resource_or_everything() -> None:
    """But not two of them, nor one without a name."""
    assert target_of(None, None) == EVERYTHING
    assert target_of("g", None) == GROUP
    assert target_of(None, "w-1") == W1
    for both in (("g", "w-1"), ("", None), (None, "")):
        with pytest.raises(UnknownTargetError):
            target_of(*both)


@pytest.mark.parametrize(
    ("until", "span", "expected"),
    [
        (None, None, None),
        ("2026-03-29T08:00:00+02:00", None, datetime(2026, 3, 29, 6, tzinfo=UTC)),
        ("2026-03-29T08:00Z", None, datetime(2026, 3, 29, 8, tzinfo=UTC)),
        (None, "90min", START + timedelta(minutes=90)),
    ],
)
def test_an_end_is_a_moment_or_a_span(
    until: str | None, span: str | None, expected: datetime | None
) -> None:
    """It is UTC, whatever zone was typed."""
    assert end_of(START, until, span) == expected


def test_a_time_without_a_zone_is_local() -> None:
    """As this machine's wall clock says it."""
    local = datetime(2026, 6, 1, 12).astimezone()
    assert end_of(START, "2026-06-01T12:00") == local


@pytest.mark.parametrize(
    ("until", "span"),
    [
        ("tomorrow", None),
        ("", None),
        (None, ""),
        (None, "soon"),
        (None, "9999999999d"),
        ("2126-01-01", "1h"),
    ],
)
def test_an_end_that_cannot_be_read_is_refused(until: str | None, span: str | None) -> None:
    """With what was typed, or since both were."""
    with pytest.raises(KeeperError, match=r"does not say|not both"):
        end_of(START, until, span)


# pause and resume


@pytest.mark.parametrize("target", [EVERYTHING, GROUP, W1])
def test_what_is_paused_is_held_until_it_is_resumed(world: Fleet, target: Target) -> None:
    """The tick says so; afterwards it is restarted as if nothing had been."""
    orphaned(world, "w-1")
    told = world.services.operations.pause(target, **BY)
    assert told.startswith(f"{target} is paused until somebody resumes it, by ann: a move. ")
    assert world.later().tick() == []
    assert f"1 held ({target} is paused by ann: a move)" in world.message
    told = world.services.operations.resume(target, author="bob", reason="moved")
    assert told.startswith(f"{target} is resumed, by bob: moved; before, {target} is paused by ann")
    assert told.endswith(". The next tick goes on, at most 5 s from now.")
    healed(world)
    assert world.container.requested == ["w-1"]


def test_a_pause_ends_by_itself(world: Fleet) -> None:
    """At its moment, in UTC; then it is not there to be resumed."""
    orphaned(world, "w-1")
    told = world.services.operations.pause(GROUP, **BY, until=START + 2 * GRACE)
    assert "is paused until 2026-03-29 01:00:30 UTC, by ann" in told
    assert world.later().tick() == []
    assert len(world.later().tick()) == 1
    with pytest.raises(UnknownTargetError, match="group g is not paused by itself, nor is any"):
        world.services.operations.resume(GROUP, **BY)


def test_pausing_again_says_whose_pause_it_replaces(world: Fleet) -> None:
    """There is one pause, the later."""
    orphaned(world, "w-1")
    world.services.operations.pause(GROUP, **BY)
    told = world.services.operations.pause(GROUP, author="bob", reason="longer")
    assert "by bob: longer; before, group g is paused by ann: a move." in told
    assert [each.author for each in world.services.ledger.pauses()] == ["bob"]


def test_pauses_are_told_where_they_belong(world: Fleet) -> None:
    """In an orphan's own story, else in that of its group, or of everything."""
    orphaned(world, "w-1")
    world.worker("alive", "h")
    world.register("alive")
    alive = Target(scope=Scope.RESOURCE, name="alive")
    for target in (EVERYTHING, GROUP, W1, alive):
        world.services.operations.pause(target, **BY)
    assert notes(world) == [("paused", None), ("paused", "g"), ("paused", "h")]
    assert last_event(world) == ("paused", {**BY, "target": "resource w-1", "until": None})
    for target in (EVERYTHING, GROUP, W1, alive):
        world.services.operations.resume(target, **BY)
    assert notes(world)[3:] == [("resumed", None), ("resumed", "g"), ("resumed", "h")]
    assert last_event(world) == ("resumed", {**BY, "target": "resource w-1", "until": None})


def test_what_is_resumed_and_still_paused_says_so(world: Fleet) -> None:
    """By its group, or by a pause of everything."""
    orphaned(world, "w-1")
    for target in (EVERYTHING, GROUP, W1):
        world.services.operations.pause(target, **BY)
    told = world.services.operations.resume(W1, **BY)
    assert told.endswith(". But everything is paused by ann: a move.")
    world.services.operations.resume(EVERYTHING, **BY)
    with pytest.raises(UnknownTargetError, match="w-1 is not paused by itself, but group g is pau"):
        world.services.operations.resume(W1, **BY)


def test_a_pause_of_what_is_gone_can_be_ended(world: Fleet) -> None:
    """A resource may have been removed meanwhile."""
    world.worker("w-1")
    world.services.operations.pause(W1, **BY)
    world.release("w-1")
    world.services.operations.resume(W1, **BY)
    assert world.services.ledger.pauses() == []


def test_a_pause_of_the_past_or_of_nothing_is_refused(world: Fleet) -> None:
    """With what there is."""
    orphaned(world, *(f"w-{number:02}" for number in range(12)))
    world.worker("x", "h")
    with pytest.raises(KeeperError, match=r"a pause until 2026-03-29 00:59:30 UTC is over: it is"):
        world.services.operations.pause(GROUP, **BY, until=START)
    with pytest.raises(UnknownTargetError, match=r"^there is no group 'gg'; there are g, h$"):
        world.services.operations.pause(Target(scope=Scope.GROUP, name="gg"), **BY)
    listed = ", ".join(f"w-{number:02}" for number in range(10))
    refusal = f"^there is no resource 'w'; orphans are {listed} and 3 more$"
    with pytest.raises(UnknownTargetError, match=refusal):
        world.services.operations.pause(Target(scope=Scope.RESOURCE, name="w"), **BY)
    assert world.services.ledger.pauses() == []


def test_an_empty_registry_has_nothing_to_pause(world: Fleet) -> None:
    """Not even tables, before the first tick."""
    with pytest.raises(UnknownTargetError, match="there is no group 'g'; there is none"):
        world.services.operations.pause(GROUP, **BY)
    with pytest.raises(UnknownTargetError, match="there are no orphans now"):
        world.services.operations.pause(W1, **BY)


@pytest.mark.parametrize("by", [{"author": " ", "reason": "x"}, {"author": "ann", "reason": ""}])
def test_who_and_why_are_required(world: Fleet, by: dict[str, str]) -> None:
    """By every verb, before anything else."""
    verbs: list[Callable[..., str]] = [Operations.pause, Operations.resume, Operations.reset]
    for verb in verbs:
        with pytest.raises(KeeperError, match=r"who wants it .author. and why .reason."):
            verb(world.services.operations, EVERYTHING, **by)
    for verb in (Operations.restart_now, Operations.give_up, Operations.restore):
        with pytest.raises(KeeperError, match=r"who wants it .author. and why .reason."):
            verb(world.services.operations, "w-1", **by)


# restart-now


def test_restart_now_skips_the_grace_period_and_counts(world: Fleet) -> None:
    """The next tick hands it over; the one after waits as after any attempt."""
    orphaned(world, "w-1", "w-2")
    told = world.services.operations.restart_now("w-1", **BY)
    assert told == (
        "w-1 is to be restarted (attempt 1 of 3): the next tick hands it to a run, at most 5 s "
        "from now."
    )
    assert last_event(world) == ("restart-now", BY)
    healed(world)
    assert world.container.requested == ["w-1"]
    assert [each.attempts for each in world.incidents()] == [1, 0]
    assert world.tick() == []


def test_restart_now_allows_one_more_than_the_budget(world: Fleet) -> None:
    """A kept one is tried once more, and is kept again."""
    policy = replace(world.services.policy, max_retries=1, on_exhausted=OnExhausted.KEEP)
    world.services = replace(world.services, policy=policy)
    orphaned(world, "w-1")
    for _ in range(2):
        healed(world.later())
    assert world.incidents()[0].state is State.KEPT
    assert "(attempt 2, beyond the 1 allowed)" in world.services.operations.restart_now("w-1", **BY)
    healed(world)
    assert world.container.requested == ["w-1", "w-1"]
    healed(world.later())
    assert (world.incidents()[0].state, world.incidents()[0].attempts) == (State.KEPT, 2)


def test_restart_now_takes_it_from_a_run_that_has_not_begun(world: Fleet) -> None:
    """It is handed to another one; the first finds nothing to do."""
    orphaned(world, "w-1")
    (late,) = world.later().tick()
    world.services.operations.restart_now("w-1", **BY)
    (request,) = world.tick()
    world.launch(late)
    assert world.container.requested == []
    world.launch(request)
    assert world.container.requested == ["w-1"]


def test_what_is_left_alone_can_be_given_up(world: Fleet) -> None:
    """An unknown container, or properties that nobody can read, are no reason to keep it."""
    world.worker("odd", container_name="else")
    world.worker("spoilt")
    world.properties("[]", "spoilt")
    world.tick()
    for name in ("odd", "spoilt"):
        world.services.operations.give_up(name, **BY)
    (request,) = world.tick()
    assert world.launch(request).success
    assert {each.state for each in world.incidents()} == {State.EXHAUSTED}
    assert world.services.registry.read_snapshot().resources == 0
    assert world.services.operations.restore("odd", **BY)


def test_what_cannot_be_restarted_is_refused_with_the_reason(world: Fleet) -> None:
    """Unknown, healthy, not noticed yet, or unsupported."""
    orphaned(world, "w-1")
    world.worker("odd", container_name="else")
    world.tick()
    world.worker("alive")
    world.register("alive")
    world.worker("new")
    blocked_groups = {
        "nobody": "^there is no resource 'nobody'; orphans are new, odd, w-1$",
        "alive": "^alive is no orphan: an optimizer stands for it$",
        "new": "^new was not noticed as an orphan yet: the next tick opens its incident, at most 5",
    }
    for verb in (Operations.restart_now, Operations.give_up):
        for name, refusal in blocked_groups.items():
            with pytest.raises(UnknownTargetError, match=refusal):
                verb(world.services.operations, name, **BY)
    with pytest.raises(UnknownTargetError, match=r"^odd is left alone: container 'else' is not co"):
        world.services.operations.restart_now("odd", **BY)
    assert all(incident.operator_request is None for incident in world.incidents())


@pytest.mark.parametrize("target", [EVERYTHING, GROUP, W1])
def test_what_is_paused_is_not_restarted_now(world: Fleet, target: Target) -> None:
    """It says how to resume."""
    orphaned(world, "w-1")
    world.services.operations.pause(target, **BY)
    refusal = f"left alone: {target} is paused by ann: a move; resume {target} first"
    with pytest.raises(UnknownTargetError, match=refusal):
        world.services.operations.restart_now("w-1", **BY)
    with pytest.raises(UnknownTargetError, match=refusal):
        world.services.operations.give_up("w-1", **BY)


def test_nothing_is_ordered_where_auto_restart_is_off(tmp_path: Path) -> None:
    """It would never be done."""
    with fleet(tmp_path, enabled=False) as world:
        orphaned(world, "w-1")
        with pytest.raises(UnknownTargetError, match="auto-restart is off"):
            world.services.operations.restart_now("w-1", **BY)


def test_what_a_run_is_starting_is_not_restarted_now(world: Fleet) -> None:
    """A second start would follow the first."""
    blocked_groups: list[str] = []

    def order(_: object) -> None:
        with pytest.raises(UnknownTargetError) as refused:
            world.services.operations.restart_now("w-1", **BY)
        blocked_groups.append(str(refused.value))

    world.container.during_request = order
    orphaned(world, "w-1")
    healed(world.later())
    assert blocked_groups == ["a run is starting w-1 at this moment; wait what comes of it"]
    assert last_event(world)[0] == "started"


def test_what_waits_for_its_next_attempt_in_a_run_is_restarted_now(world: Fleet) -> None:
    """And so is what a dead run left behind."""
    orphaned(world, "w-1")
    (request,) = world.later().tick()
    world.claim(request, "dead")
    world.later(world.services.settings.claim_timeout)
    world.services.operations.restart_now("w-1", **BY)
    (request,) = world.tick()
    assert world.incidents()[0].operator_request == OperatorRequest.RESTART
    world.launch(request)
    assert world.container.requested == ["w-1"]


# give-up


def test_give_up_removes_it_and_keeps_its_row(world: Fleet) -> None:
    """Whatever is left of its budget; the story says who wanted it and why."""
    orphaned(world, "w-1")
    told = world.services.operations.give_up("w-1", **BY)
    assert told.startswith("w-1 is to be given up: the next tick hands it to a run, at most 5 s ")
    assert last_event(world) == ("give-up", BY)
    healed(world)
    assert raw(world) == []
    (incident,) = world.incidents()
    assert (incident.state, incident.attempts) == (State.EXHAUSTED, 0)
    assert "to be given up, by ann: a move" in world.services.ledger.events(1)[-1].message
    assert world.container.requested == []


def test_a_removal_under_way_is_not_ordered_again(world: Fleet) -> None:
    """It is finished; until then nothing is restored either."""
    orphaned(world, "w-1")
    world.services.operations.give_up("w-1", **BY)
    begin_removal(world)
    for verb in (Operations.restart_now, Operations.give_up, Operations.restore):
        with pytest.raises(UnknownTargetError, match="removal of w-1 is under way"):
            verb(world.services.operations, "w-1", **BY)


def begin_removal(world: Fleet) -> None:
    """A run dies when it has taken the row away."""

    def die(place: str) -> None:
        if place == "after registry.remove_orphan":
            raise KeyboardInterrupt

    (request,) = world.tick()
    (incident,) = world.claim(request, "dies")
    with pytest.raises(KeyboardInterrupt):
        watched(world.services, die).restarter.restart(incident.incident_id, "dies")


# reset


def test_reset_gives_an_orphan_a_fresh_budget(world: Fleet) -> None:
    """The attempts stay in the story and count no longer."""
    orphaned(world, "w-1", "w-2")
    for _ in range(3):
        healed(world.later())
    told = world.services.operations.reset(W1, **BY)
    assert (
        told
        == "w-1 has all 3 attempts again. The next tick goes on with that, at most 5 s from now."
    )
    assert last_event(world) == ("reset", BY)
    assert [(i.attempts, i.attempts_used) for i in world.incidents()] == [(3, 0), (3, 3)]
    healed(world.later())
    assert [i.state for i in world.incidents()] == [State.WAITING, State.EXHAUSTED]


def test_reset_of_what_recovered_lately_lets_nothing_be_carried(
    tmp_path: Path, database_url: sa.URL
) -> None:
    """It would have continued its old count when it died again."""
    with fleet(tmp_path, url=database_url) as world:
        stable = replace(world.services.policy, stable_after=timedelta(hours=1))
        world.services = replace(world.services, policy=stable)
        orphaned(world, "w-1", "w-2")
        healed(world.later())
        for name in ("w-1", "w-2"):
            world.register(name)
        world.later().tick()
        world.services.operations.reset(W1, **BY)
        for name in ("w-1", "w-2"):
            world.dies(name)
        world.later().tick()
        assert {i.resource_id: i.attempts_used for i in world.incidents() if i.is_open} == {
            "w-1": 0,
            "w-2": 1,
        }


def test_reset_of_a_group_takes_all_of_it(world: Fleet) -> None:
    """Open incidents and scale-up rounds; other groups keep theirs."""
    orphaned(world, "w-1", "w-2")
    world.worker("x", "h")
    world.tick()
    healed(world.later())
    rounds(world, "g", 3)
    rounds(world, "h", 2)
    told = world.services.operations.reset(GROUP, **BY)
    assert told.startswith(
        "w-1, w-2 have all 3 attempts again; 3 scale-up rounds of group g no long"
    )
    assert {i.resource_id: i.attempts_used for i in world.incidents()} == {
        "w-1": 0,
        "w-2": 0,
        "x": 1,
    }
    assert notes(world) == [("reset", "g")]
    with pytest.raises(UnknownTargetError) as refused:
        world.services.operations.reset(GROUP, **BY)
    assert str(refused.value) == (
        "there is nothing to reset: nothing of group g counts now, only of x (1 attempt), group h "
        "(2 scale-up rounds)"
    )


def rounds(world: Fleet, group: str, number: int) -> None:
    """A group was refilled in vain."""
    with world.services.ledger.transaction() as ledger:
        ledger.move_scale_up(None, ScaleUp(group, 8, rounds=number, state=ScaleUpState.STOPPED))


def test_a_group_that_was_stopped_is_refilled_again_after_a_reset(world: Fleet) -> None:
    """The next tick begins with round one."""
    world.group("g", min_parallelism="8")
    rounds(world, "g", 3)
    assert world.tick() == []
    world.services.operations.reset(GROUP, **BY)
    assert len(world.tick()) == 1
    assert world.services.ledger.scale_ups()["g"].rounds == 1


def test_reset_of_nothing_lists_what_there_is(world: Fleet) -> None:
    """Of what is unknown, and where nothing counts."""
    orphaned(world, "w-1")
    with pytest.raises(UnknownTargetError, match="nothing of resource w-1 counts now, nor any"):
        world.services.operations.reset(W1, **BY)
    with pytest.raises(UnknownTargetError, match="there is no group 'x'; there are g"):
        world.services.operations.reset(Target(scope=Scope.GROUP, name="x"), **BY)
    with pytest.raises(UnknownTargetError, match="there is no resource 'x'; orphans are w-1"):
        world.services.operations.reset(Target(scope=Scope.RESOURCE, name="x"), **BY)


def test_a_kept_one_goes_on_after_a_reset(world: Fleet) -> None:
    """With a whole budget."""
    policy = replace(world.services.policy, max_retries=1, on_exhausted=OnExhausted.KEEP)
    world.services = replace(world.services, policy=policy)
    orphaned(world, "w-1")
    for _ in range(2):
        healed(world.later())
    world.services.operations.reset(W1, **BY)
    healed(world)
    assert world.container.requested == ["w-1", "w-1"]


# restore


def test_restore_gives_back_the_identical_row(tmp_path: Path, database_url: sa.URL) -> None:
    """Every column as it was, in a new incident with a whole budget, which is then healed."""
    with fleet(tmp_path, url=database_url) as world:
        world.worker("w-1", properties={"a": "é\n'\"", "password": "s3cret"}, memory_mb=1024)
        old = datetime(2025, 2, 3, 4, 5, 6)  # noqa: DTZ001 - the registry's have no zone
        world.execute(sa.text("UPDATE resource SET start_time = :old").bindparams(old=old))
        before = raw(world)
        world.tick()
        world.services.operations.give_up("w-1", **BY)
        healed(world)
        assert raw(world) == []
        told = world.services.operations.restore("w-1", **BY)
        assert raw(world) == before
        assert told == (
            "w-1: its resource row is back as it was when it was exhausted at 2026-03-29 00:59:30 "
            "UTC, by ann: a move. A new incident is open. If no optimizer registers for it, "
            "attempt 1 of 3 follows after 2026-03-29 01:00:00 UTC."
        )
        assert world.kinds() == ["detected", "restored"]
        assert last_event(world) == ("restored", {**BY, "removed_by_incident": 1})
        healed(world.later())
        assert world.container.requested == ["w-1"]
        for name in ("a", "b"):
            removed(world, name)
        with pytest.raises(UnknownTargetError, match=r"the last that can be are b, a$"):
            world.services.operations.restore("x", **BY)


def removed(world: Fleet, *names: str) -> list[tuple[object, ...]]:
    """Workers that were given up; the registry as it was before."""
    orphaned(world, *names)
    before = raw(world)
    for name in names:
        world.services.operations.give_up(name, **BY)
    healed(world)
    return before


def test_restore_of_what_is_there_is_refused(world: Fleet) -> None:
    """Restored already, or added anew by somebody."""
    removed(world, "w-1")
    world.services.operations.restore("w-1", **BY)
    with pytest.raises(UnknownTargetError, match="there is a resource w-1 already; nothing was do"):
        world.services.operations.restore("w-1", **BY)
    assert world.kinds().count("restored") == 1


def test_restore_of_nothing_lists_the_last_that_can_be(world: Fleet) -> None:
    """Ten of them, the newest first, and none that is there again."""
    with pytest.raises(UnknownTargetError, match="no removed row of it; nor has any other one"):
        world.services.operations.restore("x", **BY)
    for number in range(12):
        removed(world, f"w-{number:02}")
    world.services.operations.restore("w-11", **BY)
    with pytest.raises(UnknownTargetError) as refused:
        world.services.operations.restore("x", **BY)
    listed = ", ".join(f"w-{number:02}" for number in range(10, 0, -1))
    assert str(refused.value) == (
        "'x' cannot be restored: the ledger has no removed row of it; the last that can be are "
        f"{listed}"
    )


def test_a_restored_one_that_is_paused_says_so(world: Fleet) -> None:
    """It would not be restarted yet."""
    removed(world, "w-1")
    world.services.operations.pause(EVERYTHING, **BY)
    told = world.services.operations.restore("w-1", **BY)
    assert told.endswith("A new incident is open, but everything is paused by ann: a move.")


def test_the_newest_removal_is_restored(world: Fleet) -> None:
    """Not an older row of the same id."""
    removed(world, "w-1")
    world.worker("w-1", thread_count=7)
    world.later().tick()
    newest = raw(world)
    world.services.operations.give_up("w-1", **BY)
    healed(world)
    world.services.operations.restore("w-1", **BY)
    assert raw(world) == newest


def test_a_tick_that_is_faster_opens_the_incident(world: Fleet) -> None:
    """Then its story tells who restored it and why; there is one incident."""
    removed(world, "w-1")

    def tick(place: str) -> None:
        if place == "after registry.restore":
            world.tick()

    watched(world.services, tick).operations.restore("w-1", **BY)
    assert len([i for i in world.incidents() if i.is_open]) == 1
    assert world.kinds() == ["detected", "restored"]


@pytest.mark.long
@pytest.mark.parametrize("tick_first", [False, True])
@pytest.mark.parametrize("index", range(9, 18))
def test_a_restore_that_dies_after_the_row_is_completed(
    world: Fleet, index: int, *, tick_first: bool
) -> None:
    """The row and one incident are there after a tick; said again, who and why are told once."""
    before = removed(world, "w-1")
    places: list[str] = []

    def die(place: str) -> None:
        places.append(place)
        if len(places) == index + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watched(world.services, die).operations.restore("w-1", **BY)
    if tick_first:
        world.tick()
    world.services.operations.restore("w-1", **BY)
    world.tick()
    assert raw(world) == before
    assert len([i for i in world.incidents() if i.is_open]) == 1
    assert world.kinds() == ["detected", "restored"]


@pytest.mark.long
@pytest.mark.parametrize("index", range(9))
def test_a_restore_that_dies_before_the_row_did_nothing(world: Fleet, index: int) -> None:
    """It can be said again."""
    before = removed(world, "w-1")
    places: list[str] = []

    def die(place: str) -> None:
        places.append(place)
        if len(places) == index + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watched(world.services, die).operations.restore("w-1", **BY)
    assert raw(world) == []
    world.services.operations.restore("w-1", **BY)
    assert raw(world) == before
    assert world.kinds() == ["detected", "restored"]


def test_a_dry_run_removed_nothing_to_restore(world: Fleet) -> None:
    """It says so, in the dry run and after it."""
    enforcing = world.services
    world.worker("w-1")
    world.services = enforcing.in_dry_run()
    world.tick()
    told = world.services.operations.give_up("w-1", **BY)
    assert "(dry run: nothing is started or removed)" in told
    healed(world)
    assert len(raw(world)) == 1
    for keeper in (world.services, enforcing):
        with pytest.raises(UnknownTargetError, match="its last removal was a dry run's, and its "):
            keeper.operations.restore("w-1", **BY)


def test_a_restore_in_a_dry_run_is_only_told(world: Fleet) -> None:
    """No row comes back, and no incident is opened about what is not there."""
    removed(world, "w-1")
    told = world.services.in_dry_run().operations.restore("w-1", **BY)
    assert told.endswith("by ann: a move (dry run: nothing is started or removed).")
    assert raw(world) == []
    assert notes(world) == [("restored", "g")]
    assert len(world.incidents()) == 1


def test_restore_works_beside_an_ams(postgresql_url: sa.URL, tmp_path: Path) -> None:
    """In its own tables, as it wrote them."""
    with amoro(postgresql_url, tmp_path) as running:
        running.resources("w-1")
        running.optimizers("alive")
        world = running.world
        before = running.rows("resource")
        world.tick()
        world.services.operations.give_up("w-1", **BY)
        healed(world)
        assert running.rows("resource") == []
        world.services.operations.restore("w-1", **BY)
        assert running.rows("resource") == before
        assert world.kinds() == ["detected", "restored"]


# Races


@pytest.mark.parametrize("verb", [Operations.restart_now, Operations.give_up])
def test_a_race_that_is_lost_to_a_tick_is_run_again(world: Fleet, verb: Callable[..., str]) -> None:
    """The tick had handed it to a run in the meantime; that run loses it."""
    orphaned(world, "w-1")
    world.later()
    requests: list[Any] = []

    def tick(place: str) -> None:
        if place == "before ledger.transaction" and not requests:
            requests.extend(world.tick())

    verb(watched(world.services, tick).operations, "w-1", **BY)
    (incident,) = world.incidents()
    assert incident.operator_request is not None
    assert incident.claimed_by is None
    world.launch(requests[0])
    assert world.container.requested == []


def test_a_race_that_is_lost_twice_is_reported(world: Fleet) -> None:
    """Nothing was done then."""
    orphaned(world, "w-1")

    def move(place: str) -> None:
        if place == "before ledger.transaction":
            (incident,) = world.incidents()
            bump(world, incident)

    with pytest.raises(KeeperError, match="nothing was done: ticks or runs moved w-1 at the same"):
        watched(world.services, move).operations.restart_now("w-1", **BY)
    assert world.kinds() == ["detected"]


def bump(world: Fleet, incident: Incident) -> None:
    """Somebody moves it."""
    text = "UPDATE keeper_incident SET version = version + 1 WHERE incident_id = :number"
    world.execute(sa.text(text).bindparams(number=incident.incident_id))


def test_a_reset_that_lost_a_race_is_made_again(world: Fleet) -> None:
    """Each that was moved meanwhile is reset as it then stands."""
    orphaned(world, "w-1", "w-2")
    healed(world.later())
    moved: list[Incident] = []

    def move(place: str) -> None:
        if place == "before ledger.transaction" and not moved:
            moved.append(world.incidents()[0])
            bump(world, moved[0])

    told = watched(world.services, move).operations.reset(GROUP, **BY)
    assert told.startswith("w-2, w-1 have all 3 attempts again.")
    assert [i.attempts_used for i in world.incidents()] == [0, 0]
    assert EventKind.RESET in world.kinds("w-1")
