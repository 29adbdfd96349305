"""Runs of the job with orphans whose containers hang: the others do not wait for them."""

import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest

from dagster_amoro.containers.isolated import IsolatedContainers
from dagster_amoro.core.model import EventKind, Incident, State
from tests.helpers.fleet import Fleet, fleet
from tests.helpers.hanging import HangingContainer
from tests.helpers.hangs import WAYS, marked, processes_of, settings
from tests.helpers.waiting import wait_until

pytestmark = pytest.mark.long
TIMEOUT = 4  # seconds of the call that hangs; long, so that the others are started before its end
MAX_RETRIES = 3


def sick(world: Fleet) -> list[Incident]:
    """The incidents of those that hang."""
    return [each for each in world.incidents() if each.resource_id.startswith("sick")]


def containers(folder: Path, hangs_at: str, timeout: str) -> IsolatedContainers:
    """One for each way to hang at a place, each of whose calls there has this timeout."""
    own = {"hangs-at": hangs_at, "folder": str(folder), timeout: f"{TIMEOUT}s"}
    return IsolatedContainers(
        {how: settings(HangingContainer, {**own, "hangs": how}, how) for how in WAYS}
    )


@contextmanager
def world_with(folder: Path, made: IsolatedContainers, **options: object) -> Iterator[Fleet]:
    """A group with two orphans in each container, one of which is sick: these came first."""
    with marked(folder) as mark, fleet(folder, max_retries=MAX_RETRIES, **options) as world:
        with closing(made):
            world.services = replace(world.services, containers=made)
            for name in ("sick", "well"):
                for how in WAYS:
                    world.worker(f"{name}-{how}", container_name=how)
            yield world
            wait_until(lambda: len(processes_of(mark)) <= len(WAYS))  # the containers' own
        wait_until(lambda: not processes_of(mark))
        assert_nothing_is_left(world)


def assert_nothing_is_left(world: Fleet) -> None:
    """No thread that restarts, and no run that is not over."""
    assert not [each for each in threading.enumerate() if each.name.startswith("restart")]
    assert all(run.is_finished for run in world.instance.get_runs())


def register_well(world: Fleet) -> None:
    """An optimizer registers for each of the others."""
    for how in WAYS:
        world.register(f"well-{how}")


def order_of(result: dg.ExecuteInProcessResult) -> list[str]:
    """The resources of a run, in the order in which it takes them up."""
    outputs = [event for event in result.all_events if event.is_successful_output]
    keys = [event.step_output_data.step_output_handle.mapping_key or "" for event in outputs]
    return [key.partition("_")[0] for key in keys if key]


def messages(world: Fleet, incident: Incident, kind: EventKind) -> list[str]:
    """What the events of an incident say that are of this kind."""
    events = world.services.ledger.events(incident.incident_id)
    return [f"{event.message} {event.details}" for event in events if event.kind is kind]


def assert_none_waited(folder: Path) -> None:
    """The others were started before the first call that hung could be over."""
    began = min(path.stat().st_mtime for path in folder.glob("*.hangs"))
    started = [(folder / f"well-{how}").stat().st_mtime for how in WAYS]
    assert max(started) < began + TIMEOUT


def test_starts_that_hang_are_given_up_and_no_other_waits(tmp_path: Path) -> None:
    """In every way; each try of a start is ended in time, which counts as a setback."""
    made = containers(tmp_path, "start", "start-timeout")
    with world_with(tmp_path, made, grace=timedelta(0)) as world:
        (request,) = world.tick()
        assert not world.launch(request).success  # it gives up
        assert_none_waited(tmp_path)
        assert not list(tmp_path.glob("sick-*[!s]"))
        for incident in sick(world):
            failed = messages(world, incident, EventKind.ATTEMPT_FAILED)
            assert len(failed) == incident.attempts == MAX_RETRIES
            why = f"the start was not over within {TIMEOUT} s and was ended"
            assert all(why in message for message in failed)
            assert (incident.state, incident.setbacks) == (State.EXHAUSTED, MAX_RETRIES)
            assert world.services.registry.read_resource(incident.resource_id).row is None
        register_well(world)
        world.tick()
        assert {each.state for each in world.incidents()} == {State.EXHAUSTED, State.RECOVERED}


def test_stops_that_hang_come_last_then_alone_and_are_given_up(tmp_path: Path) -> None:
    """A stop that is ended does not keep the start from being tried, and is a setback."""
    made = containers(tmp_path, "stop", "stop-timeout")
    with world_with(tmp_path, made) as world:
        world.tick()
        (request,) = world.later().tick()
        result = world.launch(request)
        assert result.success
        assert order_of(result) == ["sick"] * len(WAYS) + ["well"] * len(WAYS)
        assert_none_waited(tmp_path)
        assert [each.setbacks for each in sick(world)] == [1] * len(WAYS)
        (request,) = world.later().tick()
        assert order_of(world.launch(request)) == ["well"] * len(WAYS) + ["sick"] * len(WAYS)
        assert [each.setbacks for each in sick(world)] == [2] * len(WAYS)
        register_well(world)
        for goes_well in (True, False):  # the last restart of each, and its removal
            requests = world.later().tick()
            assert len(requests) == len(WAYS)
            results = [world.launch(request) for request in requests]
            assert [result.success for result in results] == [goes_well] * len(WAYS)
            assert [order_of(result) for result in results] == [["sick"]] * len(WAYS)
        why = f"the stop was not over within {TIMEOUT} s and was ended"
        for incident in sick(world):
            told = messages(world, incident, EventKind.STARTED)
            assert len(told) == incident.attempts == incident.setbacks == MAX_RETRIES
            assert all(why in message for message in told)
            (end,) = messages(world, incident, EventKind.EXHAUSTED)
            assert why in end
        assert {each.state for each in world.incidents()} == {State.EXHAUSTED, State.RECOVERED}


@pytest.mark.parametrize("how", WAYS)
def test_a_constructor_that_hangs_holds_up_nothing_and_is_given_up(
    tmp_path: Path, how: str
) -> None:
    """Each try of a start is ended in time; the others are started meanwhile."""
    own = {"hangs": how, "folder": str(tmp_path)}
    limits = {f"{call}-timeout": "500ms" for call in ("start", "stop", "status")}
    sick_one = {**own, **limits, "hangs-at": "constructor"}
    entries = {
        "sick": settings(HangingContainer, sick_one, "sick"),
        "well": settings(HangingContainer, {**own, "hangs-at": "never"}, "well"),
    }
    with (
        marked(tmp_path) as mark,
        fleet(tmp_path, max_retries=MAX_RETRIES, grace=timedelta(0)) as world,
    ):
        for name in ("sick", "well-1", "well-2"):
            world.worker(name, container_name=name.partition("-")[0])
        with closing(IsolatedContainers(entries)) as made:
            world.services = replace(world.services, containers=made)
            (request,) = world.tick()
            began = time.time()
            assert not world.launch(request).success  # it gives up
            for name in ("well-1", "well-2"):
                assert (tmp_path / name).stat().st_mtime < began + TIMEOUT
            (incident,) = sick(world)
            failed = messages(world, incident, EventKind.ATTEMPT_FAILED)
            assert len(failed) == incident.attempts == MAX_RETRIES
            why = "the start was not over within 0.5 s and was ended"
            assert all(why in message for message in failed)
            assert (incident.state, incident.setbacks) == (State.EXHAUSTED, MAX_RETRIES)
        wait_until(lambda: not processes_of(mark))
        assert_nothing_is_left(world)


def test_constructors_that_hang_are_asked_side_by_side(tmp_path: Path) -> None:
    """However many they are, a tick waits for one of them; the next one waits for none."""
    made = containers(tmp_path, "constructor", "status-timeout")
    with marked(tmp_path) as mark, fleet(tmp_path) as world:
        for how in WAYS:
            world.worker(how, container_name=how)
        with closing(made):
            world.services = replace(world.services, containers=made)
            began = time.monotonic()
            world.tick()
            took = time.monotonic() - began
            assert TIMEOUT <= took < (len(WAYS) - 1) * TIMEOUT
            world.tick()
            assert time.monotonic() - began - took < TIMEOUT
        wait_until(lambda: not processes_of(mark))
