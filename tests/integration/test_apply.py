"""A declared fleet is applied: what is done, what is left, and what the keeper makes of it."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import sqlalchemy as sa

from dagster_amoro.core.errors import ConfigError, StartFailedError
from dagster_amoro.core.fleet_plan import DECLARED, Action, DeclaredGroup, FleetPlan
from dagster_amoro.core.model import EventKind, Resource
from dagster_amoro.core.pauses import Pause, Scope, Target
from dagster_amoro.core.properties import parse_properties
from dagster_amoro.healing.apply import Applied, Applier
from dagster_amoro.stores.leases import acquire
from dagster_amoro.testing import RecordingContainer
from tests.helpers.declared import a_group
from tests.helpers.fleet import GRACE, Fleet, Shelf, fleet, watched

BY = {"author": "ann", "reason": "a move"}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Fleet]:
    """A fleet with nothing in it."""
    with fleet(tmp_path) as found:
        yield found


def applier(world: Fleet, *groups: DeclaredGroup) -> Applier:
    """What applies these groups."""
    return replace(world.services, fleet=groups).applier


def apply(world: Fleet, *groups: DeclaredGroup, release: bool = False) -> Applied:
    """They are applied once."""
    doing = applier(world, *groups)
    return doing.apply(doing.plan().to_do(release=release), **BY)


def difference(world: Fleet, *groups: DeclaredGroup) -> list[tuple[str, str]]:
    """What is still to be done about which resource."""
    return [(str(step.action), step.resource_id) for step in applier(world, *groups).plan().steps]


def properties_of(world: Fleet, resource_id: str) -> dict[str, str]:
    """The properties of a row, as texts."""
    row = world.services.registry.read_resource(resource_id).row
    return parse_properties(row["properties"]) if row else {}


def running(world: Fleet) -> set[str]:
    """The workers that run."""
    return set(world.container.running)


# --- What is done --------------------------------------------------------------------------------


def test_what_is_missing_is_added_and_started(world: Fleet) -> None:
    """Once: the second time there is nothing to do, before and after the workers register."""
    group = a_group(["w-1", "w-2"], properties={"queue": "low", "min-parallelism": "4"})
    assert apply(world, group).is_good
    assert running(world) == {"w-1", "w-2"}
    assert [row[:4] for row in world.resources()] == [
        ("w-1", "g", "recording", 2),
        ("w-2", "g", "recording", 2),
    ]
    properties = properties_of(world, "w-1")
    assert properties[DECLARED] == '{"queue":"low"}'
    assert properties["recording-launch"]
    assert difference(world, group) == []
    world.register("w-1", "g", 2)
    world.register("w-2", "g", 2)
    calls = world.container.calls
    assert list(apply(world, group).lines()) == ["Done."]
    assert world.container.calls == calls


def test_the_keeper_sees_its_workers_come(world: Fleet) -> None:
    """While they are young they are starting; there is no incident, and nothing is filled up."""
    apply(world, a_group(["w-1"], properties={"min-parallelism": "2"}))
    world.born(world.now)
    assert world.tick() == []
    assert world.message == "1 resource, 0 orphans, 1 starting"
    world.register("w-1", "g", 2)
    world.later(GRACE * 2)
    assert world.tick() == []
    assert world.incidents() == []


def test_who_wanted_it_is_kept(world: Fleet) -> None:
    """With the group, and with each worker that was started anew."""
    apply(world, a_group(["w-1"]))
    (note,) = world.notes()
    assert note == ("applied", "made what config.yaml declares: 1 to add, by ann: a move")
    apply(world, a_group(["w-1"], thread_count=4))
    first, *_ = world.services.ledger.events(1)
    assert first.message == "its declaration changed (threads 2 → 4), by ann: a move"
    assert first.details.items() >= BY.items()


def test_what_is_declared_otherwise_is_started_anew(world: Fleet) -> None:
    """The old worker is stopped as it was started, and the new one is another."""
    apply(world, a_group(["w-1"], properties={"queue": "low"}))
    world.register("w-1", "g", 2)
    before = properties_of(world, "w-1")
    changed = a_group(["w-1"], thread_count=4, memory_mb=64)
    assert apply(world, changed).is_good
    (row,) = world.resources()
    assert row[:4] == ("w-1", "g", "recording", 4)
    after = properties_of(world, "w-1")
    assert "queue" not in after
    assert after["recording-launch"] != before["recording-launch"]
    assert world.container.released == ["w-1", "w-1"]  # and once more, before the new one starts
    assert world.container.calls[-1].resource.thread_count == 4
    assert difference(world, changed) == []
    assert world.incidents()[-1].cause == "changed"


def test_a_worker_that_moves_is_stopped_where_it_was(world: Fleet) -> None:
    """By its old container, before it is started in the new one."""
    other = RecordingContainer()
    both = Shelf(recording=world.container, other=other)
    world.services = replace(world.services, containers=both)
    apply(world, a_group(["w-1"]))
    apply(world, a_group(["w-1"], container="other"))
    assert (world.container.running, other.running) == (frozenset(), frozenset({"w-1"}))
    assert [row[2] for row in world.resources()] == ["other"]


def test_a_running_worker_that_is_as_declared_is_adopted(world: Fleet) -> None:
    """Its row belongs to the declaration from then on, and its worker is not touched."""
    world.worker("w-1")
    world.register("w-1", "g", 2)
    group = a_group(["w-1"])
    assert difference(world, group) == [("adopt", "w-1")]
    assert apply(world, group).is_good
    assert world.container.calls == ()
    assert difference(world, group) == []
    assert difference(world) == [("release", "w-1")]


def test_what_is_declared_no_longer_is_released_if_told_so(world: Fleet) -> None:
    """And nothing that came another way, in whatever group."""
    apply(world, a_group(["w-1", "w-2"], properties={"min-parallelism": "4"}))
    world.worker("own")
    rest = a_group(["w-1"], properties={"min-parallelism": "2"})
    apply(world, rest)
    assert running(world) == {"w-1", "w-2"}
    assert apply(world, rest, release=True).is_good
    assert running(world) == {"w-1"}
    assert [row[0] for row in world.resources()] == ["own", "w-1"] or [
        row[0] for row in world.resources()
    ] == ["w-1", "own"]
    apply(world, release=True)
    assert running(world) == set()
    group = world.services.registry.group("g")
    assert group is not None
    assert parse_properties(group.properties) == {}
    assert difference(world) == []


def test_a_hundred_workers_of_several_groups(world: Fleet) -> None:
    """Side by side, each once."""
    groups = [a_group([f"{name}-{n}" for n in range(25)], name=name) for name in "abcd"]
    applied = apply(world, *groups)
    assert list(applied.lines()) == ["100 added."]
    assert len(running(world)) == 100
    assert sorted(world.container.requested) == sorted(running(world))


def test_the_same_on_every_database(tmp_path: Path, database_url: sa.URL) -> None:
    """Added, changed, adopted and released; two at once fail on none."""
    with fleet(tmp_path, url=database_url) as world:
        both = [applier(world, a_group([f"w-{n}" for n in range(20)])) for _ in range(2)]
        plans = [each.plan().to_do() for each in both]
        pairs = zip(both, plans, strict=True)
        threads = [Thread(target=one.apply, args=(plan,), kwargs=BY) for one, plan in pairs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(running(world)) == len(world.container.requested) == 20
        world.worker("own")
        after = a_group(["w-1", "own"], thread_count=4), a_group(["w-2"], name="h")
        assert apply(world, *after, release=True).is_good
        assert running(world) == {"w-1", "w-2", "own"}
        assert {row[0]: row[1:4] for row in world.resources()} == {
            "w-1": ("g", "recording", 4),
            "w-2": ("h", "recording", 2),
            "own": ("g", "recording", 4),
        }
        assert difference(world, *after) == []


# --- What is left --------------------------------------------------------------------------------


def test_a_start_that_fails_is_said_and_left_to_the_keeper(world: Fleet) -> None:
    """It is an orphan as any other; or the next apply tries again, whichever comes first."""
    group = a_group(["w-1", "w-2"])
    world.container.fail_starts("no room", times=1)
    world.services = replace(world.services, max_concurrent_starts=1)
    applied = apply(world, group)
    assert not applied.is_good
    assert list(applied.lines()) == [
        "w-1 was left: no room.",
        "1 added, 1 left, which the next apply goes on with.",
    ]
    assert difference(world, group) == [("start", "w-1")]
    world.register("w-2", "g", 2)
    world.aged()
    world.tick()
    assert difference(world, group) == []
    (request,) = world.later(GRACE * 2).tick()
    assert world.launch(request).success
    assert running(world) == {"w-1", "w-2"}
    assert difference(world, group) == []


def test_a_start_whose_properties_no_row_can_hold_has_failed(
    world: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it started is ended, and the next apply tries again."""
    start, group = world.container.request_resource, a_group(["w-1"])
    with monkeypatch.context() as patch:
        returned = {"name": "\ud800"}
        patch.setattr(world.container, "request_resource", lambda of: {**start(of), **returned})
        applied = apply(world, group)
    said = "w-1 was left: released again, since its start-up properties hold half a character"
    assert next(applied.lines()).startswith(said)
    assert running(world) == set()
    assert difference(world, group) == [("start", "w-1")]
    assert apply(world, group).is_good
    assert running(world) == {"w-1"}


def test_a_start_that_failed_is_tried_again_by_the_next_apply(world: Fleet) -> None:
    """As a restart, which has an incident: it may have left something."""
    world.container.fail_starts(times=1)
    assert not apply(world, a_group(["w-1"])).is_good
    assert apply(world, a_group(["w-1"])).is_good
    assert running(world) == {"w-1"}
    assert world.kinds() == ["detected", "attempt", "started"]
    assert difference(world, a_group(["w-1"])) == []


def test_where_nobody_heals_the_next_apply_tries_again(world: Fleet) -> None:
    """With auto-restart off there is no keeper to leave it to."""
    policy = replace(world.services.policy, enabled=False)
    world.services = replace(world.services, policy=policy)
    group = a_group(["w-1"])
    world.container.fail_starts(times=1)
    assert not apply(world, group).is_good
    assert difference(world, group) == [("start", "w-1")]
    assert apply(world, group).is_good
    assert running(world) == {"w-1"}
    assert difference(world, group) == []


def test_an_orphan_that_a_run_has_in_hand_is_left(world: Fleet) -> None:
    """The next apply changes it."""
    apply(world, a_group(["w-1"]))
    world.aged()
    world.register("w-1", "g", 2)
    world.tick()
    world.dies()
    world.tick()
    (request,) = world.later().tick()
    (incident,) = world.claim(request, "a-run")
    changed = a_group(["w-1"], thread_count=9)
    (step,) = applier(world, changed).plan().steps
    assert (step.action, step.what) == (Action.LEAVE, "a run has it in hand")
    assert world.services.restarter.restart(incident.incident_id, "a-run").outcome == "started"
    assert apply(world, changed).is_good
    assert running(world) == {"w-1"}
    assert difference(world, changed) == []


def test_what_a_run_takes_in_hand_meanwhile_is_left(world: Fleet) -> None:
    """Between the plan and the step; nothing is stopped."""
    apply(world, a_group(["w-1"]))
    world.aged()
    world.tick()
    doing = applier(world, a_group(["w-1"], thread_count=9))
    plan = doing.plan().to_do()
    (request,) = world.later(GRACE * 2).tick()
    (incident,) = world.claim(request, "a-run")
    (done,) = doing.apply(plan, **BY).done
    assert not done.is_good
    assert "a run or another apply has it in hand" in done.message
    assert world.services.ledger.incident(incident.incident_id) == incident


def test_what_is_paused_is_left(world: Fleet) -> None:
    """Neither added nor started, changed or released."""
    target = Target(scope=Scope.GROUP, name="g")
    pause = Pause(target=target, author="bob", reason="", paused_at=world.now, until=None)
    with world.services.ledger.transaction() as ledger:
        ledger.add_pause(pause)
    plan = applier(world, a_group(["w-1"])).plan()
    assert [step.what for step in plan.steps] == ["group g is paused by bob"]
    assert apply(world, a_group(["w-1"])).is_good
    assert world.resources() == []


def test_a_worker_that_cannot_be_stopped_is_left_as_it_is(world: Fleet) -> None:
    """Its row too, which says how it was started; the tick finds it alive."""
    apply(world, a_group(["w-1"]))
    world.register("w-1", "g", 2)
    world.tick()
    world.container.refuse_releases("it is on another host")
    changed = a_group(["w-1"], thread_count=9)
    (done,) = apply(world, changed).done
    assert "could not stop w-1: it is on another host" in done.message
    assert [row[3] for row in world.resources()] == [2]
    world.tick()
    assert world.services.ledger.open_incident("w-1") is None
    world.container.refuse_releases(times=0)
    assert apply(world, changed).is_good
    assert [row[3] for row in world.resources()] == [9]


def test_a_container_that_is_gone_keeps_its_worker(world: Fleet) -> None:
    """Nobody knows how to stop it."""
    world.worker("w-1", container_name="gone")
    (done,) = apply(world, a_group(["w-1"])).done
    assert done.message == "w-1 was left: container 'gone' is not configured."
    assert world.services.ledger.open_incidents() == []


def test_what_nothing_would_start_again_is_not_stopped(world: Fleet) -> None:
    """A container that opts out of restarts, or is not there, or a group that AMS would size."""
    apply(world, a_group(["w-1"]))
    world.container.opt_out()
    (done,) = apply(world, a_group(["w-1"], thread_count=9)).done
    assert done.message == "w-1 was left: it opts out."
    (done,) = apply(world, a_group(["w-1"], container="gone")).done
    assert done.message == "w-1 was left: container 'gone' is not configured."
    world.container.supports_auto_restart = True
    sized = {"dynamic-allocation.enabled": "true", "dynamic-allocation.max-parallelism": "4"}
    (done,) = apply(world, a_group(["w-1"], properties=sized)).done
    assert "its group is under dynamic allocation" in done.message
    assert running(world) == {"w-1"}
    assert world.container.released == []


def test_a_tick_leaves_what_is_being_changed(world: Fleet) -> None:
    """While its worker stops it is registered still, which is no recovery."""
    apply(world, a_group(["w-1"]))
    world.register("w-1", "g", 2)
    world.tick()

    def meanwhile(_: Resource) -> None:
        assert world.tick() == []

    world.container.during_request = meanwhile
    release = world.container.release_resource
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            world.container, "release_resource", lambda each: (release(each), world.tick())
        )
        assert apply(world, a_group(["w-1"], thread_count=9)).is_good
    assert world.kinds() == ["detected", "attempt", "started"]


def test_a_tick_that_is_faster_loses_nothing(world: Fleet) -> None:
    """It has found the new row an orphan before the apply could take it in hand."""
    group = a_group(["w-1"])
    doing = applier(world, group)
    plan = doing.plan().to_do()
    registry = world.services.registry
    declare = registry.declare

    def declared(*arguments: Any) -> set[str]:  # noqa: ANN401 - those of the method
        added = declare(*arguments)
        world.aged()
        world.tick()
        return added

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "declare", declared)
        assert doing.apply(plan, **BY).is_good
    assert running(world) == {"w-1"}
    assert world.container.requested == ["w-1"]


def test_under_a_lease_its_claims_are_those_of_whoever_acts(world: Fleet) -> None:
    """A tick of the deployment that acts leaves them alone."""
    services = replace(world.services, deployment="here", lease_time=GRACE * 4)
    world.services = services
    with services.ledger.transaction() as ledger:
        acquire(ledger.connection, "elsewhere", GRACE * 4)
    apply(world, a_group(["w-1"]))
    apply(world, a_group(["w-1"], thread_count=9))
    (incident,) = world.incidents()
    assert incident.fence == 1


def test_a_declaration_that_is_not_there_is_refused(world: Fleet) -> None:
    """By an error that says what is missing."""
    with pytest.raises(ConfigError, match="declares no fleet"):
        world.services.applier.plan()


def test_an_attached_fleet_is_amss(world: Fleet) -> None:
    """There is nothing to be declared here."""
    doing = applier(world, a_group(["w-1"]))
    attached = replace(doing, releaser=replace(doing.releaser, attached=True))
    with pytest.raises(ConfigError, match="made in AMS, not here"):
        attached.plan()


def test_in_a_dry_run_nothing_is_done(world: Fleet) -> None:
    """Neither here nor there, and that is said."""
    world.services = world.services.in_dry_run()
    applied = apply(world, a_group(["w-1"]))
    assert list(applied.lines()) == ["Dry run, nothing is done: keeper.mode is dry-run."]
    assert world.container.calls == ()


# --- Cut off, twice, and two at once ------------------------------------------------------------


class CutOffError(KeyboardInterrupt):
    """The process is over; containers pass it on."""


def cut(world: Fleet, number: int, groups: list[DeclaredGroup]) -> int:
    """An apply that ends before its call of that number; how many it has made."""
    calls = 0

    def announce(place: str) -> None:
        nonlocal calls
        calls += place.startswith("before ")
        if calls >= number:
            raise CutOffError

    services = replace(world.services, fleet=tuple(groups), max_concurrent_starts=1)
    doing = watched(services, announce).applier
    with suppress(CutOffError):
        doing.apply(doing.plan().to_do(release=True), **BY)
    return calls


def no_worker(_name: str) -> list[DeclaredGroup]:
    """A declaration of nothing."""
    return []


def one_worker(name: str, **changes: Any) -> list[DeclaredGroup]:  # noqa: ANN401 - of any field
    """A declaration of one."""
    return [a_group([name], **changes)]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (no_worker, one_worker),
        (one_worker, lambda name: one_worker(name, thread_count=9)),
        (one_worker, no_worker),
    ],
    ids=["add", "change", "release"],
)
def test_cut_off_anywhere_it_is_completed_by_the_next_one(
    world: Fleet,
    monkeypatch: pytest.MonkeyPatch,
    before: Callable[[str], list[DeclaredGroup]],
    after: Callable[[str], list[DeclaredGroup]],
) -> None:
    """Before each of its calls; real processes are killed in `test_apply_sigkill`."""
    monkeypatch.setattr("dagster_amoro.healing.apply.has_ended", lambda _: True)
    number, calls = 0, 0
    while calls >= number:
        number += 1
        name = f"w-{number}"
        apply(world, *before(name), release=True)
        calls = cut(world, number, after(name))
        apply(world, *after(name), release=True)
        wanted = {worker.resource_id for group in after(name) for worker in group.workers}
        assert running(world) == wanted, number
        assert {row[0] for row in world.resources()} == wanted, number
        assert difference(world, *after(name)) == [], number
        apply(world, release=True)
    assert number > 10


def test_two_at_once_do_no_harm(world: Fleet) -> None:
    """Each worker is started by one of them; the other says so, or finds it done."""
    for number in range(5):
        group = a_group([f"w-{number}-{n}" for n in range(6)])
        both = [applier(world, group), applier(world, group)]
        plans: list[FleetPlan] = [each.plan().to_do() for each in both]
        threads = [
            Thread(target=doing.apply, args=(plan,), kwargs=BY)
            for doing, plan in zip(both, plans, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        names = [worker.resource_id for worker in group.workers]
        started = [each for each in world.container.requested if each in names]
        assert sorted(started) == names
        assert difference(world, group) == []
        apply(world, release=True)


def test_an_error_of_the_store_ends_its_step_alone(world: Fleet) -> None:
    """The next apply does what is left."""
    apply(world, a_group(["w-1"]))
    world.execute(
        sa.text(
            "CREATE TRIGGER no BEFORE UPDATE ON resource WHEN NEW.thread_count = 9 "
            "BEGIN SELECT RAISE(FAIL, 'no'); END"
        )
    )
    applied = apply(world, a_group(["w-1"], thread_count=9), a_group(["x"], name="h"))
    assert [each.is_good for each in applied.done] == [False, True]
    assert "the registry cannot be written" in applied.done[0].message
    world.execute(sa.text("DROP TRIGGER no"))
    world.later(world.services.settings.claim_timeout * 2)
    assert apply(world, a_group(["w-1"], thread_count=9), a_group(["x"], name="h")).is_good
    assert running(world) == {"w-1", "x"}


def test_a_container_that_raises_anything_concerns_its_worker_alone(world: Fleet) -> None:
    """As in a run."""
    world.container.fail_starts(SystemExit("over"), times=1)
    world.services = replace(world.services, max_concurrent_starts=1)
    applied = apply(world, a_group(["w-1", "w-2"]))
    assert [each.is_good for each in applied.done] == [False, True]
    world.container.fail_starts(StartFailedError("no"), times=0)


def test_the_story_of_a_group_tells_each_apply(world: Fleet) -> None:
    """By kind and number."""
    apply(world, a_group(["w-1", "w-2"]))
    apply(world, a_group(["w-1"], thread_count=9), release=True)
    kinds = [message for kind, message in world.notes() if kind == EventKind.APPLIED]
    assert kinds == [
        "made what config.yaml declares: 2 to add, by ann: a move",
        "made what config.yaml declares: 1 to change, 1 to release, by ann: a move",
    ]
