"""A group has a min-parallelism: what the keeper starts to reach it, and what it leaves alone.

Real ticks of the sensor and real runs of its jobs.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa

from dagster_amoro.core import replacement as core_replacement
from dagster_amoro.core.model import Incident, Orphan, Resource, ScaleUpState, State
from dagster_amoro.core.pauses import EVERYTHING, Pause, Scope, Target
from dagster_amoro.core.policy import Replacement, RestartPolicy, is_coming
from dagster_amoro.core.replacement import Replacements
from dagster_amoro.core.transitions import detect
from dagster_amoro.healing.reading import newcomers_of
from tests.helpers.fleet import GRACE, Fleet, fleet, with_settings

INTERVAL = timedelta(seconds=5)  # between two ticks of the fleet's keeper, and two rounds
LONG = timedelta(hours=1)


@pytest.fixture
def anywhere(tmp_path: Path, database_url: sa.URL) -> Iterator[Fleet]:
    """A fleet on each database."""
    with fleet(tmp_path, url=database_url) as found:
        yield found


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Fleet]:
    """A fleet on SQLite."""
    with fleet(tmp_path) as found:
        yield found


# What a group needs.


def test_a_group_that_has_its_threads_is_left_alone(anywhere: Fleet) -> None:
    """Optimizers that were started from outside count too."""
    anywhere.group(min_parallelism="4")
    anywhere.register(None, "g", 1)
    anywhere.register("unknown", "g", 3)
    assert anywhere.tick() == []
    assert anywhere.message == "0 resources, 0 orphans"
    assert anywhere.notes() == []


def test_a_group_below_its_floor_gets_one_resource_of_what_is_missing(anywhere: Fleet) -> None:
    """It is recorded once it was started, with the group's properties; then all is quiet."""
    world = anywhere
    world.group(min_parallelism="5", memory="64")
    world.register(None, "g", 2)
    world.container.during_request = lambda _: _assert_unrecorded(world)
    (request,) = world.tick()
    assert request.job_name == "scale_up_groups"
    assert request.tags.items() >= {"amoro/groups": "1", "amoro/group": "g"}.items()
    assert world.launch(request).success
    ((new, group, container, threads, properties),) = world.resources()
    assert (group, container, threads) == ("g", "recording", 3)
    assert json.loads(properties) == {
        "memory": "64",
        "min-parallelism": "5",
        "recording-launch": "1",
    }
    assert world.container.running == {new}
    assert [kind for kind, _ in world.notes()] == ["scale-up", "scaled-up"]

    world.tick()  # its grace period begins, in which it is expected
    assert world.later(INTERVAL).tick() == []
    world.register(new, "g", 3)
    for _ in range(3):
        assert world.later().tick() == []
    assert world.container.requested == [new]
    assert world.services.ledger.scale_ups() == {}
    (incident,) = world.incidents()
    assert (incident.state, incident.attempts) == (State.RECOVERED, 0)


def _assert_unrecorded(world: Fleet) -> None:
    assert world.resources() == []


def test_the_key_of_dynamic_allocation_counts_first(world: Fleet) -> None:
    """Amoro's new name of the min-parallelism wins; the operator's text stays as it is."""
    world.group(min_parallelism="9", **{"dynamic-allocation.min-parallelism": " 2 "})
    _launch_all(world)
    assert [row[3] for row in world.resources()] == [2]
    (told,) = _group_properties(world)
    assert told == {"min-parallelism": "9", "dynamic-allocation.min-parallelism": " 2 "}


@pytest.mark.parametrize("text", ["0", "-3", "many", ""])
def test_a_floor_that_asks_for_nothing_gets_nothing(world: Fleet, text: str) -> None:
    """As AMS reads it."""
    world.group(min_parallelism=text)
    assert world.tick() == []
    assert world.notes() == []


def test_several_groups_are_refilled_by_one_run(world: Fleet) -> None:
    """Each gets a resource of its own size; one that fails does not keep others from theirs."""
    world.group("a", min_parallelism="1")
    world.group("b", min_parallelism="2")
    world.group("c")
    world.container.fail_starts(times=1)
    (request,) = world.tick()
    assert request.tags["amoro/groups"] == "2"
    result = world.launch(request)
    assert not result.success
    assert [(row[1], row[3]) for row in world.resources()] == [("b", 2)]
    assert [kind for kind, _ in world.notes("a")] == ["scale-up", "scale-up-failed"]
    assert [kind for kind, _ in world.notes("b")] == ["scale-up", "scaled-up"]


# Rounds.


def test_what_does_not_help_is_stopped_after_so_many_rounds_and_said(anywhere: Fleet) -> None:
    """The pauses grow as AMS's do, the end is an event once, and the setting stays."""
    world = anywhere
    world.group(min_parallelism="4")
    world.container.fail_starts("no room")
    began = world.now
    starts = []
    for _ in range(20):
        if _launch_all(world):
            starts.append(world.now - began)
        world.later(INTERVAL)
    assert starts == [INTERVAL * 0, INTERVAL * 2, INTERVAL * 5]
    kinds = [kind for kind, _ in world.notes()]
    assert kinds == ["scale-up", "scale-up-failed"] * 3 + ["scale-up-stopped"]
    said = world.notes()[-1][1]
    assert said.startswith("0 of 4 threads are there, and 3 rounds in a row did not help")
    assert "no room" in said
    assert world.message.endswith(
        "g has 0 of 4 threads, and 3 rounds did not help: a person is needed"
    )
    assert len(world.container.requested) == 3
    assert _group_properties(world) == [{"min-parallelism": "4"}]


def test_the_tick_tells_of_the_pause_between_two_rounds(world: Fleet) -> None:
    """Whoever reads it knows that something is under way."""
    world.group(min_parallelism="4")
    world.container.fail_starts()
    _launch_all(world)
    world.later(INTERVAL).tick()
    assert world.message.endswith("g has 0 of 4 threads, round 1 of 3 was begun")


def test_looking_more_often_does_not_shorten_the_pauses_between_rounds(world: Fleet) -> None:
    """What a round started needs its time to register, however often the sensor looks."""
    world.services = with_settings(world.services, check_interval=timedelta(seconds=1))
    world.group(min_parallelism="1")
    world.tick()
    assert world.services.ledger.scale_ups()["g"].next_at == world.now + 2 * INTERVAL


def test_another_floor_begins_anew(world: Fleet) -> None:
    """What was stopped for the old one is tried for the new one."""
    world.group(min_parallelism="4")
    _exhaust(world)
    world.container.fail_starts(times=0)
    assert world.later(LONG).tick() == []
    world.group(min_parallelism="3")
    assert _launch_all(world) == 1
    assert [row[3] for row in world.resources()] == [3]
    assert world.services.ledger.scale_ups()["g"].rounds == 1


def test_threads_that_came_back_and_left_begin_anew(world: Fleet) -> None:
    """A group that had its threads again has all its rounds again."""
    world.group(min_parallelism="4")
    _exhaust(world)
    world.register("helper", "g", 4)
    assert world.tick() == []
    assert world.services.ledger.scale_ups() == {}
    world.dies("helper")
    world.container.fail_starts(times=0)
    assert _launch_all(world) == 1
    assert [row[3] for row in world.resources()] == [4]


def test_a_start_that_never_registers_is_restarted_and_not_started_again(world: Fleet) -> None:
    """It is an orphan like any other while attempts are left: in the end one runs, and one row."""
    world.group(min_parallelism="4")
    _launch_all(world)
    (new,) = {row[0] for row in world.resources()}
    for _ in range(3):
        world.container.end(new)
        assert [r.job_name for r in _tick_and_launch(world.later())] in (
            [],
            ["restart_orphans"],
        )
    assert set(world.container.requested) == {new}
    assert world.container.running <= {new}
    world.register(new, "g", 4)
    assert world.later().tick() == []
    assert [row[0] for row in world.resources()] == [new]


# What is left alone.


def test_a_group_under_dynamic_allocation_is_sized_by_that_alone(world: Fleet) -> None:
    """Whatever its min-parallelism says."""
    world.group(
        **{
            "dynamic-allocation.enabled": "true",
            "dynamic-allocation.min-parallelism": "2",
            "dynamic-allocation.max-parallelism": "8",
        }
    )
    assert world.tick() == []
    assert world.notes() == []


@pytest.mark.parametrize("target", [EVERYTHING, Target(scope=Scope.GROUP, name="g")])
def test_a_paused_group_is_left_alone_until_it_is_resumed(world: Fleet, target: Target) -> None:
    """Nothing is started, nothing is counted."""
    world.group(min_parallelism="2")
    _pause(world, target)
    assert world.tick() == []
    assert world.notes() == []
    with world.services.ledger.transaction() as ledger:
        ledger.end_pause(target)
    assert len(world.tick()) == 1


def test_a_group_that_is_paused_before_its_run_begins_is_left_alone(world: Fleet) -> None:
    """The run looks again."""
    world.group(min_parallelism="2")
    (request,) = world.tick()
    _pause(world, EVERYTHING)
    assert world.launch(request).success
    assert world.container.calls == ()
    assert "everything is paused by somebody" in world.notes()[-1][1]


def test_auto_restart_off_starts_nothing(tmp_path: Path) -> None:
    """The one switch is for all that the keeper does by itself."""
    with fleet(tmp_path, enabled=False) as world:
        world.group(min_parallelism="2")
        assert world.tick() == []
        assert world.notes() == []


def test_a_group_whose_container_is_unknown_is_named(world: Fleet) -> None:
    """Each tick says why it cannot be scaled up; no round is counted."""
    world.group(container="elsewhere", min_parallelism="2")
    for _ in range(2):
        assert world.tick() == []
        assert world.message.endswith(
            "g has 0 of 2 threads and cannot be scaled up (container 'elsewhere' is not configured)"
        )
    assert world.notes() == []


# Orphans.


def test_an_orphan_in_its_grace_period_counts(anywhere: Fleet) -> None:
    """Only what it will not bring back is started."""
    anywhere.group(min_parallelism="5")
    anywhere.worker()  # of 2 threads
    anywhere.aged()
    assert _launch_all(anywhere) == 1
    assert sorted(row[3] for row in anywhere.resources()) == [2, 3]


def test_an_orphan_that_is_restarted_counts(world: Fleet) -> None:
    """From its start until the pause after it is over, nothing else is started for it."""
    world.group(min_parallelism="2")
    world.worker()
    world.aged()
    assert world.tick() == []
    for _ in range(3):
        jobs = [request.job_name for request in _tick_and_launch(world.later())]
        assert jobs == ["restart_orphans"]
        assert world.later(INTERVAL).tick() == []
    assert world.container.requested == ["w-1"] * 3


def test_an_orphan_whose_restart_failed_is_replaced_and_superseded(anywhere: Fleet) -> None:
    """The new one is started in its place; once that registered, the old one is removed."""
    world = anywhere
    _failed_orphan(world)
    assert [r.job_name for r in _tick_and_launch(world)] == ["scale_up_groups"]
    assert world.kinds()[-1] == "replaced"
    (new,) = {row[0] for row in world.resources()} - {"w-1"}
    assert world.tick() == []  # the new one is an orphan too, of which much is to be expected
    assert world.later(GRACE - INTERVAL).tick() == []
    world.register(new, "g", 2)
    assert [r.job_name for r in _tick_and_launch(world.later(INTERVAL))] == ["restart_orphans"]
    old = _of(world, "w-1")
    assert (old.state, old.attempts) == (State.SUPERSEDED, 1)
    assert world.kinds()[-2:] == ["superseding", "superseded"]
    kept = world.services.ledger.removed_row(old.incident_id)
    assert kept is not None
    assert kept["resource_id"] == "w-1"
    assert [row[0] for row in world.resources()] == [new]
    assert world.container.requested == ["w-1", new]
    assert world.container.running == {new}


def test_a_replacement_that_failed_gives_the_orphan_back_to_its_own_attempts(world: Fleet) -> None:
    """Neither waits for the other for ever."""
    _failed_orphan(world)
    world.container.fail_starts(times=1)
    assert [r.job_name for r in _tick_and_launch(world)] == ["scale_up_groups"]
    assert [kind for kind, _ in world.notes()] == ["scale-up", "scale-up-failed"]
    world.container.fail_starts(times=0)
    jobs = [request.job_name for request in _tick_and_launch(world.later())]
    assert len(jobs) == 1  # one of them brings the threads back, never both
    assert len(world.container.running) == 1


def test_an_orphan_that_was_replaced_is_not_restarted_since_another_is_missing(
    world: Fleet,
) -> None:
    """The other one brings its own threads: in the end there are as many as the group must have."""
    _failed_orphan(world)
    world.group(min_parallelism="4")
    world.worker("w-2")
    world.aged()
    _tick_and_launch(world)  # w-2 is in its grace period, and something comes for w-1
    (new,) = {row[0] for row in world.resources()} - {"w-1", "w-2"}
    world.register(new, "g", 2)
    for _ in range(3):
        _tick_and_launch(world.later())
    world.register("w-2", "g", 2)
    _tick_and_launch(world.later())
    assert world.container.requested.count("w-1") == 1
    assert world.container.running == {new, "w-2"}


# Runs that die, come late, or come twice.


def test_a_run_that_dies_in_the_middle_is_followed_by_the_next_round(world: Fleet) -> None:
    """Its claim lapses; what it may have started was never recorded."""
    world.group(min_parallelism="2")
    world.container.fail_starts(KeyboardInterrupt(), times=1)
    (request,) = world.tick()
    world.services.scaler.claim(request.run_key or "", "run")
    with pytest.raises(KeyboardInterrupt):
        world.services.scaler.scale_up("g", "run")
    assert world.services.ledger.scale_ups()["g"].state is ScaleUpState.REQUESTED
    assert world.later(INTERVAL * 3).tick() == []
    assert [r.job_name for r in _tick_and_launch(world.later(LONG))] == ["scale_up_groups"]
    assert [row[3] for row in world.resources()] == [2]


def test_a_run_that_is_executed_twice_starts_one(world: Fleet) -> None:
    """A dispatch is good for one run."""
    world.group(min_parallelism="2")
    (request,) = world.tick()
    assert world.launch(request).success
    assert world.launch(request).success
    assert len(world.container.requested) == 1


def test_a_run_that_comes_after_its_hand_over_lapsed_starts_nothing(world: Fleet) -> None:
    """The round that followed it has the group."""
    world.group(min_parallelism="2")
    (late,) = world.tick()
    (next_one,) = world.later(LONG).tick()
    assert world.launch(late).success
    assert world.container.calls == ()
    assert world.launch(next_one).success
    assert len(world.container.requested) == 1


def test_threads_that_came_back_before_the_run_need_no_new_ones(anywhere: Fleet) -> None:
    """The run looks again, says so, and the rounds are forgotten."""
    anywhere.group(min_parallelism="2")
    (request,) = anywhere.tick()
    anywhere.register("helper", "g", 2)
    assert anywhere.launch(request).success
    assert anywhere.container.calls == ()
    assert anywhere.notes()[-1] == (
        "given-back",
        "round 1 of 3 not needed: 2 of 2 threads are there and 0 on their way",
    )
    assert anywhere.tick() == []
    assert anywhere.services.ledger.scale_ups() == {}


def test_some_threads_that_came_back_make_the_new_resource_smaller(world: Fleet) -> None:
    """What is missing is counted at the start."""
    world.group(min_parallelism="5")
    (request,) = world.tick()
    world.register("helper", "g", 3)
    assert world.launch(request).success
    assert [row[3] for row in world.resources()] == [2]


def test_a_registry_that_fails_after_the_start_leaves_nothing_running(world: Fleet) -> None:
    """What cannot be recorded is released again, and the next round follows."""
    world.group(min_parallelism="2")
    (request,) = world.tick()
    world.container.during_request = lambda new: _take_id(world, new)
    assert not world.launch(request).success
    assert world.container.running == frozenset()
    assert len(world.container.released) == 1


def _take_id(world: Fleet, new: Resource) -> None:
    """Somebody else records a resource of the same id, so that ours cannot be."""
    world.worker(new.resource_id, "other")


# How it is done.


def _tick_and_launch(world: Fleet) -> list[dg.RunRequest]:
    requests = world.tick()
    for request in requests:
        world.launch(request)
    return requests


def _launch_all(world: Fleet) -> int:
    return len(_tick_and_launch(world))


def _exhaust(world: Fleet) -> None:
    world.container.fail_starts("no room")
    for _ in range(5):
        _launch_all(world)
        world.later(INTERVAL * 4)
    assert world.services.ledger.scale_ups()["g"].state is ScaleUpState.STOPPED


def _failed_orphan(world: Fleet) -> None:
    """A group of one, which died and whose restart failed; its run is gone."""
    world.services = replace(world.services, policy=replace(world.services.policy, max_retries=3))
    world.group(min_parallelism="2")
    world.worker()
    world.aged()
    assert world.tick() == []
    world.container.fail_starts(times=1)
    (request,) = world.later().tick()
    (incident,) = world.claim(request, "run")
    world.services.restarter.restart(incident.incident_id, "run")
    assert _of(world, "w-1").last_error == "set to fail"


def _of(world: Fleet, resource_id: str) -> Incident:
    return [i for i in world.incidents() if i.resource_id == resource_id][-1]


def _pause(world: Fleet, target: Target) -> None:
    pause = Pause(target=target, author="somebody", reason="", paused_at=world.now, until=None)
    with world.services.ledger.transaction() as ledger:
        ledger.add_pause(pause)


def _group_properties(world: Fleet) -> list[dict[str, str]]:
    with world.services.registry.database.reading() as connection:
        found = connection.scalars(sa.text("SELECT properties FROM resource_group"))
        return [json.loads(text) for text in found]


def test_many_orphans_are_looked_at_once_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Work grows with the orphans of a group, and not with their square."""
    looks: list[Incident] = []

    def counted(incident: Incident, policy: RestartPolicy, now: datetime) -> bool:
        looks.append(incident)
        return is_coming(incident, policy, now)

    monkeypatch.setattr(core_replacement, "is_coming", counted)
    with fleet(tmp_path) as world:
        world.group("g", min_parallelism="1000")
        steps = [detect(Orphan(f"w-{n}", "g", "c", 2, 0, "{}"), world.now) for n in range(200)]
        failed = [
            step.after._replace(incident_id=number, last_error="x", newest_start="2026-01-01")
            for number, step in enumerate(steps)
        ]
        sized = world.services.registry.sized_groups()
        others = Replacements(
            sized,
            failed,
            scaling_up=frozenset(),
            policy=world.services.policy,
            attached=False,
            now=world.now,
            newcomers=newcomers_of(world.services.registry),
        )
        assert {others.of(incident) for incident in failed} == {Replacement.NONE}
    assert len(looks) <= 2 * len(failed)
