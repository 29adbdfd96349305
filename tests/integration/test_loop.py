"""The loop from detection to outcome: real ticks and real runs on a real instance."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa

from dagster_amoro.asset_keys import group_name
from dagster_amoro.core.errors import StartFailedError
from dagster_amoro.core.model import Resource, State
from dagster_amoro.core.pauses import Scope, Target
from dagster_amoro.healing.restart import Outcome
from tests.helpers.fleet import GRACE, Fleet, Shelf, fleet, watched


@pytest.fixture
def world(tmp_path: Path, database_url: sa.URL) -> Iterator[Fleet]:
    """A fleet with three attempts and a grace period of 30 s, on every backend."""
    with fleet(tmp_path, url=database_url) as made:
        yield made


def due(world: Fleet) -> list[dg.RunRequest]:
    """Detects what there is and lets its grace period pass."""
    world.tick()
    world.later()
    return world.tick()


def test_an_orphan_is_restarted_after_its_grace_period_and_recovers(world: Fleet) -> None:
    """Detection, one start, registration: the incident is closed as recovered."""
    world.worker(properties={"a": "1"})
    assert world.tick() == []
    assert world.message.startswith("1 resource, 1 orphan: 1 in grace for 30 s")
    world.later(GRACE - timedelta(microseconds=1))
    assert world.tick() == []
    world.later(timedelta(microseconds=1))
    (request,) = world.tick()
    result = world.launch(request)
    assert result.success
    assert world.container.requested == ["w-1"]
    row = world.services.registry.read_resource("w-1").row
    assert row is not None
    assert row["properties"] == '{"a":"1","recording-launch":"2"}'
    world.register()
    assert world.tick() == []
    (incident,) = world.incidents()
    assert (incident.state, incident.attempts) == (State.RECOVERED, 1)
    assert world.kinds() == [
        "detected", "dispatched", "claimed", "attempt", "started", "recovered",
    ]  # fmt: skip


def test_a_hopeless_one_is_given_up_after_its_attempts(world: Fleet) -> None:
    """max-retries starts, a grace period apart, then its row moves into the ledger."""
    world.worker(properties={"a": "1"})
    before = world.services.registry.read_resource("w-1").row
    world.tick()
    for attempt in range(1, 4):
        (request,) = world.later().tick()
        assert world.launch(request).success
        assert len(world.container.requested) == attempt
        assert world.tick() == []
    (request,) = world.later().tick()
    result = world.launch(request)
    assert not result.success
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    told = failure.step_failure_data.user_failure_data
    assert told is not None
    assert told.description is not None
    for part in ("w-1", "3 attempts", "30 s apart", "attempt 1 started it", "attempt 3 started it"):
        assert part in told.description
    (incident,) = world.incidents()
    assert (incident.state, incident.attempts) == (State.EXHAUSTED, 3)
    assert world.services.registry.read_resource("w-1").row is None
    kept = world.services.ledger.removed_row(1)
    assert before is not None
    assert kept is not None
    assert kept | {"properties": before["properties"]} == before
    assert len(world.container.requested) == 3
    assert world.later(timedelta(days=1)).tick() == []


def test_a_failing_start_is_retried_by_the_op_and_then_given_up(tmp_path: Path) -> None:
    """Failures within one run use the same budget: three starts, then the end."""
    with fleet(tmp_path, grace=timedelta(0)) as world:
        world.worker()
        world.container.fail_starts("no such file")
        (request,) = world.tick()
        result = world.launch(request)
        assert not result.success
        assert world.container.requested == ["w-1"] * 3
        retries = [e for e in result.all_events if e.event_type_value == "STEP_UP_FOR_RETRY"]
        assert len(retries) == 3
        (incident,) = world.incidents()
        assert (incident.state, incident.attempts) == (State.EXHAUSTED, 3)
        assert incident.last_error == "no such file"


def test_a_start_that_a_tick_sees_registered_before_its_end_is_written_down(world: Fleet) -> None:
    """The worker registers within its start check: the story still says what was started."""
    world.worker()
    (request,) = due(world)

    def registers(_: Resource) -> None:
        world.register()
        world.tick()
        assert world.incidents()[0].is_open  # it may be of what the attempt has stopped

    world.container.during_request = registers
    assert world.launch(request).success
    world.tick()
    (incident,) = world.incidents()
    assert (incident.state, incident.attempts) == (State.RECOVERED, 1)
    events = world.services.ledger.events(incident.incident_id)
    assert [(str(event.kind), event.attempt) for event in events[3:]] == [
        ("attempt", 1), ("started", 1), ("recovered", 1),
    ]  # fmt: skip
    assert "recording-launch 2" in events[4].message
    row = world.services.registry.read_resource("w-1").row
    assert row is not None
    assert row["properties"] == '{"recording-launch":"2"}'
    assert world.container.running == {"w-1"}
    assert world.later().tick() == []


def test_what_registers_while_it_is_stopped_is_no_recovery(world: Fleet) -> None:
    """A worker that boots for too long is told to stop, and registers; its row expires."""
    world.worker()
    (first,) = due(world)
    assert world.launch(first).success
    (second,) = world.later().tick()
    stops = watched(world.services, on_stop(world.register))
    (incident,) = stops.restarter.claim(second.run_key or "", "run")
    result = stops.restarter.restart(incident.incident_id, "run")
    assert result.outcome is Outcome.LEFT
    assert world.container.requested == ["w-1"]
    for _ in range(2):
        assert world.later().tick() == []
        assert "an optimizer registered that may have been stopped" in world.message
    world.dies()
    (third,) = world.tick()
    assert world.launch(third).success
    world.register()
    world.tick()
    (incident,) = world.incidents()
    assert (incident.state, incident.attempts, incident.attempts_used) == (State.RECOVERED, 3, 2)
    assert world.container.running == {"w-1"}


def test_what_registers_while_it_is_stopped_and_lives_on_has_recovered(world: Fleet) -> None:
    """It is touched again; it is not started a second time."""
    world.worker()
    (request,) = due(world)
    stops = watched(world.services, on_stop(world.register))
    (incident,) = stops.restarter.claim(request.run_key or "", "run")
    assert stops.restarter.restart(incident.incident_id, "run").outcome is Outcome.LEFT
    world.tick()
    assert world.incidents()[0].is_open
    world.touch()
    world.tick()
    assert world.incidents()[0].state is State.RECOVERED
    assert world.container.requested == []


def on_stop(act: Callable[[], object]) -> Callable[[str], None]:
    """Does something right after a run has stopped what an earlier start may have left."""

    def at(place: str) -> None:
        if place == "after container.release_resource":
            act()

    return at


def killed_within_its_attempt(world: Fleet, request: dg.RunRequest) -> None:
    """A run that dies in the middle of a start."""

    def is_killed(_: Resource) -> None:
        raise KeyboardInterrupt

    world.container.during_request = is_killed
    (incident,) = world.claim(request, "run")
    with pytest.raises(KeyboardInterrupt):
        world.services.restarter.restart(incident.incident_id, "run")
    world.container.during_request = None


def test_a_run_lost_within_its_attempt_leaves_doubt(world: Fleet) -> None:
    """Nobody knows whether it had stopped what registered: it counts when it is touched again."""
    world.worker()
    (request,) = due(world)
    killed_within_its_attempt(world, request)
    world.register()
    assert world.later(world.services.settings.claim_timeout).tick() == []
    assert world.later().tick() == []
    assert world.incidents()[0].is_open
    world.touch()
    assert world.tick() == []
    assert world.incidents()[0].state is State.RECOVERED


@pytest.mark.parametrize("within", [False, True], ids=["booting", "its run was killed"])
def test_a_row_removed_while_its_worker_boots_leaves_nothing_running(
    world: Fleet,
    within: bool,  # noqa: FBT001 - an attempt
) -> None:
    """Nobody but the ledger knows what was started; a run releases it, killed once on its way."""
    world.worker(properties={"a": "1"})
    (request,) = due(world)
    assert world.launch(request).success
    if within:
        (again,) = world.later().tick()
        (incident,) = world.claim(again, "run")
        with pytest.raises(KeyboardInterrupt):
            watched(world.services, killed).restarter.restart(incident.incident_id, "run")
        world.later(world.services.settings.claim_timeout)
    world.release()
    (release,) = world.tick()
    assert world.incidents()[0].state is State.RELEASING
    (incident,) = world.claim(release, "another run")
    with pytest.raises(KeyboardInterrupt):
        watched(world.services, killed).restarter.restart(incident.incident_id, "another run")
    assert world.container.running == {"w-1"}
    (again,) = world.later(world.services.settings.claim_timeout).tick()
    assert world.launch(again).success
    assert world.container.running == frozenset()
    last = world.container.calls[-1].resource
    assert (last.container_name, last.thread_count) == ("recording", 2)
    assert last.properties == {"a": "1", "recording-launch": "2"}
    assert [incident.state for incident in world.incidents()] == [State.RELEASED]
    assert world.later().tick() == []


def killed(place: str) -> None:
    """The process is killed right before it stops something."""
    if place == "before container.release_resource":
        raise KeyboardInterrupt


def test_a_row_that_is_removed_and_comes_back_is_an_orphan_as_before(world: Fleet) -> None:
    """Before anything was released: then nothing is."""
    world.worker()
    (request,) = due(world)
    assert world.launch(request).success
    row = world.services.registry.read_resource("w-1").row or {}
    world.release()
    (release,) = world.tick()
    assert world.services.registry.restore(row)
    before = len(world.container.released)
    assert world.launch(release).success
    assert len(world.container.released) == before
    (incident,) = world.incidents()
    assert (incident.state, incident.attempts) == (State.WAITING, 1)


def test_an_orphan_that_comes_back_by_itself_is_left_alone(world: Fleet) -> None:
    """Registration within the grace period: recovered without an attempt."""
    world.worker()
    world.tick()
    world.register()
    world.later().tick()
    (incident,) = world.incidents()
    assert (incident.state, incident.attempts) == (State.RECOVERED, 0)
    assert world.container.calls == ()


def test_a_second_death_is_a_second_incident_with_a_fresh_budget(world: Fleet) -> None:
    """Run keys do not repeat, so the second death is healed as the first was."""
    world.worker()
    (first,) = due(world)
    world.launch(first)
    world.register()
    world.tick()
    world.dies()
    (second,) = due(world)
    assert second.run_key != first.run_key
    assert world.launch(second).success
    assert [i.attempts for i in world.incidents()] == [1, 1]
    assert world.container.requested == ["w-1", "w-1"]


STABLE_AFTER = timedelta(hours=1)


def with_stability(world: Fleet) -> None:
    """An optimizer has to live for an hour before its attempts are forgotten."""
    policy = replace(world.services.policy, stable_after=STABLE_AFTER)
    world.services = replace(world.services, policy=policy)


def comes_back(world: Fleet) -> None:
    """Its restart is requested and made, it registers, and that is seen."""
    (request,) = due(world)
    assert world.launch(request).success
    world.register()
    world.tick()


@pytest.mark.parametrize("early", [timedelta(microseconds=1), timedelta(0)])
def test_a_second_death_soon_after_the_first_continues_its_count(
    world: Fleet, early: timedelta
) -> None:
    """Until it has lived for `stable-after`; from then on it has a fresh budget."""
    with_stability(world)
    world.worker()
    comes_back(world)
    world.dies()
    world.later(STABLE_AFTER - early)
    comes_back(world)
    first, second = world.incidents()
    assert (first.attempts, first.prior_attempts) == (1, 0)
    assert (second.attempts, second.prior_attempts) == (1, 1 if early else 0)
    assert second.state is State.RECOVERED


def test_a_crash_loop_is_left_to_a_person_after_its_attempts_in_total(world: Fleet) -> None:
    """Three starts, each of which helped for a while: nothing follows, and nothing is removed."""
    with_stability(world)
    world.worker()
    for _ in range(3):
        comes_back(world)
        world.later(STABLE_AFTER / 2)
        world.dies()
    (request,) = due(world)
    result = world.launch(request)
    assert not result.success
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    told = failure.step_failure_data.user_failure_data
    assert told is not None
    assert "3 attempts before, after which it came back" in (told.description or "")
    assert "did not bring it back" not in (told.description or "")
    assert world.container.requested == ["w-1"] * 3
    assert [(i.state, i.attempts, i.prior_attempts) for i in world.incidents()] == [
        (State.RECOVERED, 1, 0),
        (State.RECOVERED, 1, 1),
        (State.RECOVERED, 1, 2),
        (State.KEPT, 0, 3),
    ]
    assert world.services.registry.read_resource("w-1").row is not None
    for _ in range(3):
        assert world.later(STABLE_AFTER).tick() == []
    assert "it came back and was orphaned again" in world.message
    # Whoever resets it means it: it begins anew.
    target = Target(scope=Scope.RESOURCE, name="w-1")
    world.services.operations.reset(target, author="ann", reason="mended")
    (request,) = world.tick()
    assert world.launch(request).success


def test_an_attempt_that_a_restart_of_ours_interrupted_does_not_count(tmp_path: Path) -> None:
    """One is allowed, the run is killed within it, and another one is made."""
    with fleet(tmp_path, max_retries=1) as world:
        world.worker()
        (request,) = due(world)
        killed_within_its_attempt(world, request)
        (again,) = world.later(world.services.settings.claim_timeout).tick()
        assert world.launch(again).success
        (incident,) = world.incidents()
        assert (incident.attempts, incident.attempts_used) == (2, 1)
        (last,) = world.later().tick()
        assert not world.launch(last).success
        assert world.incidents()[0].state is State.EXHAUSTED


def test_grace_and_retries_of_zero_give_up_at_once(tmp_path: Path) -> None:
    """No patience, no attempts: the first tick hands over what is then given up."""
    with fleet(tmp_path, grace=timedelta(0), max_retries=0) as world:
        world.worker()
        (request,) = world.tick()
        assert not world.launch(request).success
        assert world.container.requested == []
        assert world.incidents()[0].state is State.EXHAUSTED


def test_off_means_that_nothing_is_started_or_removed(tmp_path: Path) -> None:
    """Incidents are recorded all the same."""
    with fleet(tmp_path, enabled=False) as world:
        world.worker()
        assert due(world) == []
        assert "1 held (auto-restart is off)" in world.message
        assert [i.state for i in world.incidents()] == [State.WAITING]


def test_a_tick_with_nothing_new_writes_nothing(world: Fleet) -> None:
    """The second look at an unchanged world changes no row and reports no event."""
    world.worker()
    world.worker("w-2")
    world.register("w-2")
    world.tick()
    before, cursor = world.dump(), world.cursor
    assert world.tick() == []
    assert world.dump() == before
    assert world.cursor == cursor


@pytest.mark.parametrize("status", ["QUEUED", "STARTING", "STARTED", "CANCELING"])
def test_an_orphan_in_the_hands_of_a_live_run_is_not_handed_out_again(
    world: Fleet, status: str
) -> None:
    """Queued or running: the next ticks wait."""
    world.worker()
    (request,) = due(world)
    world.submit(request, dg.DagsterRunStatus[status])
    assert world.later().tick() == []
    assert "1 restarting (1 of 3)" in world.message


def test_a_run_in_the_queue_keeps_its_orphans_however_long_it_waits(world: Fleet) -> None:
    """A full queue is no reason to request the same restart again."""
    world.worker()
    (request,) = due(world)
    world.submit(request, dg.DagsterRunStatus.QUEUED)
    assert world.later(timedelta(days=3)).tick() == []


@pytest.mark.parametrize("end", ["CANCELED", "FAILURE", "SUCCESS"])
def test_a_run_that_ended_without_acting_is_replaced_at_once(world: Fleet, end: str) -> None:
    """Cancelled in the queue, failed at launch, ended before it took anything up."""
    world.worker()
    (request,) = due(world)
    world.submit(request, dg.DagsterRunStatus[end])
    (again,) = world.tick()
    assert again.run_key != request.run_key
    assert world.launch(again).success
    assert world.container.requested == ["w-1"]


def test_a_run_that_was_deleted_or_never_created_lapses(world: Fleet) -> None:
    """Dagster does not know it: its orphans are handed out again after the claim timeout."""
    world.worker()
    due(world)
    assert world.later(world.services.settings.claim_timeout - timedelta(seconds=1)).tick() == []
    (again,) = world.later(timedelta(seconds=1)).tick()
    assert world.launch(again).success


def test_a_run_that_died_unnoticed_lapses(world: Fleet) -> None:
    """Its process was killed and Dagster still believes that it runs."""
    world.worker()
    (request,) = due(world)
    run = world.submit(request, dg.DagsterRunStatus.STARTED)
    world.claim(request, run.run_id)
    assert world.later().tick() == []
    (again,) = world.later(world.services.settings.claim_timeout).tick()
    assert world.launch(again).success
    assert world.container.requested == ["w-1"]


def test_a_run_terminated_midway_gives_its_orphans_back_at_once(world: Fleet) -> None:
    """What it had claimed and not begun is due again at the next tick."""
    world.worker()
    world.worker("w-2")
    (request,) = due(world)
    run = world.submit(request, dg.DagsterRunStatus.STARTED)
    first, _second = world.claim(request, run.run_id)
    world.services.restarter.restart(first.incident_id, run.run_id)
    world.instance.report_run_canceled(run)
    (again,) = world.tick()
    assert world.launch(again).success
    assert world.container.requested == ["w-1", "w-2"]


def test_a_run_executed_a_second_time_starts_nothing(world: Fleet) -> None:
    """From the UI, with the same configuration: the dispatch is used up."""
    world.worker()
    (request,) = due(world)
    assert world.launch(request).success
    again = world.launch(request)
    assert again.success
    assert not [e for e in again.all_events if (e.step_key or "").startswith("restart_orphan")]
    assert world.container.requested == ["w-1"]


def test_a_run_that_comes_after_its_hand_over_lapsed_starts_nothing(world: Fleet) -> None:
    """The other run has it by then."""
    world.worker()
    (late,) = due(world)
    (other,) = world.later(world.services.settings.claim_timeout).tick()
    assert world.launch(late).success
    assert world.container.requested == []
    assert world.launch(other).success
    assert world.container.requested == ["w-1"]


def test_two_daemons_on_one_registry_start_it_once(tmp_path: Path) -> None:
    """Each has its own Dagster; one of them hands it over, the other waits."""
    with fleet(tmp_path) as one:
        other = Fleet(one.services, one.container, dg.DagsterInstance.ephemeral())
        one.worker()
        one.tick()
        other.tick()
        assert len(one.incidents()) == 1
        requests = [*one.later().tick(), *other.later().tick()]
        assert len(requests) == 1
        assert one.launch(requests[0]).success
        assert other.launch(requests[0]).success
        assert one.container.requested == ["w-1"]


def test_runs_are_filled_across_groups(tmp_path: Path) -> None:
    """Five orphans of two groups, two at most in a run: three runs, one step per orphan."""
    with fleet(tmp_path, max_restarts_per_run=2) as world:
        for number in range(3):
            world.worker(f"a-{number}", "a")
        for number in range(2):
            world.worker(f"b-{number}", "b")
        requests = due(world)
        names = ("amoro/groups", "amoro/group", "amoro/orphans")
        assert [tuple(r.tags.get(name) for name in names) for r in requests] == [
            ("1", "a", "2"),
            ("2", None, "2"),
            ("1", "b", "1"),
        ]
        about = [request.tags["amoro/about"] for request in requests]
        assert about == ["2 orphans of a", "2 orphans of 2 groups", "b-1, attempt 1"]
        for request in requests:
            assert world.launch(request).success
        assert sorted(world.container.requested) == ["a-0", "a-1", "a-2", "b-0", "b-1"]


def test_one_failing_orphan_does_not_stop_the_others(tmp_path: Path) -> None:
    """Its step fails; the steps beside it go on."""
    with fleet(tmp_path, max_retries=1, grace=timedelta(0)) as world:
        for number in range(3):
            world.worker(f"w-{number}")
        world.container.fail_starts(times=1)
        (request,) = world.tick()
        assert not world.launch(request).success
        assert sorted(world.container.requested) == ["w-0", "w-1", "w-2"]
        outcomes = sorted(incident.state for incident in world.incidents())
        assert outcomes == [State.EXHAUSTED, State.WAITING, State.WAITING]


@pytest.mark.parametrize(
    "error",
    [
        StartFailedError("exit code 3"),
        RuntimeError("boom"),
        KeyError("name"),
        SystemExit(2),
        RecursionError(),
        type("Odd", (BaseException,), {"__str__": lambda _: 1 / 0})(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_a_start_raises_is_a_failed_attempt(world: Fleet, error: BaseException) -> None:
    """The attempt is counted, the error is kept, the run tries again later."""
    world.worker()
    world.container.fail_starts(error, times=1)
    (request,) = due(world)
    run = world.submit(request)
    (incident,) = world.claim(request, run.run_id)
    turn = world.services.restarter.restart(incident.incident_id, run.run_id)
    assert turn.outcome is Outcome.FAILED
    (incident,) = world.incidents()
    assert (incident.attempts, incident.state) == (1, State.CLAIMED)
    assert incident.last_error
    world.later()
    assert world.services.restarter.restart(1, run.run_id).outcome is Outcome.STARTED


@pytest.mark.parametrize("startup", [None, 3, [("a", "b", "c")]], ids=str)
def test_start_up_properties_that_are_none_are_a_failed_attempt(
    world: Fleet, startup: object
) -> None:
    """A container of one's own may return anything."""
    world.worker()
    (request,) = due(world)
    world.container.request_resource = lambda _resource: startup  # type: ignore[method-assign, assignment, return-value]
    run = world.submit(request)
    world.claim(request, run.run_id)
    assert world.services.restarter.restart(1, run.run_id).outcome is Outcome.FAILED


def test_start_up_properties_are_saved_as_texts(world: Fleet) -> None:
    """A number that a container returns is one, for AMS too."""
    world.worker()
    (request,) = due(world)
    world.container.request_resource = lambda _resource: {"pid": 17}  # type: ignore[method-assign, assignment, dict-item]
    assert world.launch(request).success
    row = world.services.registry.read_resource("w-1").row
    assert row is not None
    assert row["properties"] == '{"pid":"17"}'


def test_a_container_that_is_unknown_is_reported_once(world: Fleet) -> None:
    """Never an attempt, never removed; and it is taken up when the container appears."""
    world.worker(container_name="elsewhere")
    world.worker("w-2")
    (request,) = due(world)
    assert world.launch(request).success
    assert world.container.requested == ["w-2"]
    world.tick()
    assert "1 left alone (container 'elsewhere' is not configured)" in world.message
    assert world.kinds() == ["detected", "reported"]
    assert State.UNSUPPORTED in {incident.state for incident in world.incidents()}
    world.services = replace(
        world.services, containers=Shelf(recording=world.container, elsewhere=world.container)
    )
    (request,) = world.tick()
    assert world.launch(request).success
    assert world.container.requested == ["w-2", "w-1"]


def test_a_container_that_opts_out_is_reported_once(world: Fleet) -> None:
    """Its orphans stay open and untouched."""
    world.container.opt_out()
    world.worker()
    assert due(world) == []
    assert world.later(timedelta(days=1)).tick() == []
    assert world.kinds() == ["detected", "reported"]
    assert world.container.calls == ()


@pytest.mark.parametrize(
    "text", ["[]", '{"a":', '{"a":{"b":"c"}}', '{"a":"1","a":"2"}', "[" * 100_000, '"\\ud800"']
)
def test_properties_that_cannot_be_read_are_set_aside(world: Fleet, text: str) -> None:
    """Reported once; the others go on; mended, it is restarted."""
    world.worker()
    world.worker("w-2")
    world.properties(text)
    (request,) = due(world)
    assert world.launch(request).success
    assert world.container.requested == ["w-2"]
    assert world.kinds() == ["detected", "reported"]
    world.properties('{"a":"1"}')
    (request,) = world.tick()
    assert world.launch(request).success
    assert world.container.requested == ["w-2", "w-1"]


@pytest.mark.parametrize("text", [None, "", "  ", "null", "{}", '{"a":"' + "x" * 1_000_000 + '"}'])
def test_properties_that_are_empty_or_large_are_no_obstacle(world: Fleet, text: str | None) -> None:
    """What AMS takes for no properties is none; and never NULL or blank is written back."""
    world.worker()
    world.properties(text)
    (request,) = due(world)
    assert world.launch(request).success
    row = world.services.registry.read_resource("w-1").row
    assert row is not None
    assert '"recording-launch":"2"' in row["properties"]


@pytest.mark.long
@pytest.mark.parametrize(
    "name",
    [
        'it\'s "quoted"',
        "two  spaces",
        "line\nbreak",
        "semi;colon $(reboot) `id` && x",
        "🦀" * 50,
        "../../etc",
        "a/b\\c",
        ".",
        "100%",
        "x" * 100,
        "a...b",
        "{resource_id}",
        "-",
    ],
)
def test_any_id_and_group_name_goes_all_the_way(world: Fleet, name: str) -> None:
    """Through the sensor, tags, partitions, steps, and the asset and its file."""
    world.worker(name, name)
    (request,) = due(world)
    assert world.launch(request).success
    assert world.container.requested == [name]
    world.register(name)
    world.tick()
    (partition,) = world.instance.get_dynamic_partitions("optimizer_group")
    assert group_name(partition) == name
    assert world.refresh(partition).success
    assert world.history(partition).incidents["outcome"].tolist() == ["recovered"]
