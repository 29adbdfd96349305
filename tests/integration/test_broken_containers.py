"""Runs of the job with orphans whose containers are broken: each harms its own orphan alone."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytest

from dagster_amoro.containers.isolated import IsolatedContainers
from dagster_amoro.core.model import EventKind, Incident, State
from tests.helpers.breaking import (
    ANYWHERE,
    RETURNS,
    BreakingContainer,
    forks_and_vanishes,
    returns_other_things,
    shouts,
)
from tests.helpers.fleet import Fleet, fleet
from tests.helpers.hangs import marked, processes_of, settings
from tests.helpers.waiting import wait_until

pytestmark = pytest.mark.long
SECRET: Final = "hunter2222"  # noqa: S105 - of the test's own containers
NO_ANSWER: Final = "its process ended without an answer"
# What is said of a start that breaks; of the others, none has failed.
SAID: Final = {
    "exits": "SystemExit: 0",
    "interrupts": "KeyboardInterrupt",
    "vanishes": NO_ANSWER,
    "kills_its_group": NO_ANSWER,
    "closes_everything": NO_ANSWER,
    "forks_and_vanishes": NO_ANSWER,
    "raises_in_disarray": "RuntimeError: cannot log in as ***",
    "returns_nothing": "its start returned NoneType, not a mapping of texts to texts",
    "returns_a_number": "its start returned int, not a mapping",
    "returns_without_an_end": "its start returned generator, not a mapping",
    "returns_far_too_much": "its answer has 10,000,",
}
# What is said of one that worked, and whose worker was ended again.
SAID_OF_NO_USE: Final = {
    "returns_too_much": "start-up properties have 100,003 characters; accepted are 16,384",
    "returns_half_a_character": "start-up properties hold half a character",
}
Way = Callable[..., Any]


@contextmanager
def world_with(
    folder: Path, at: str, ways: tuple[Way, ...], **options: object
) -> Iterator[tuple[Fleet, list[str]]]:
    """A fleet with an orphan for each way to break at a place, and one of which all is well.

    At its end nothing of all that is running, and no secret was told.
    """
    names = [way.__name__ for way in ways]
    own = {"folder": str(folder), "password": SECRET, "breaks": "returns_nothing"}
    entries = {
        name: settings(BreakingContainer, {**own, "breaks-at": at, "breaks": name}, name)
        for name in names
    }
    entries["well"] = settings(BreakingContainer, {**own, "breaks-at": "never"}, "well")
    made = IsolatedContainers(entries)
    with marked(folder) as mark, _silenced(), fleet(folder, max_retries=1, **options) as world:
        with closing(made):
            world.services = replace(world.services, containers=made)
            for name in entries:
                world.worker(name, container_name=name, properties={"token": SECRET})
            yield world, names
        (folder / "over").touch()
        wait_until(lambda: not processes_of(mark))
        assert SECRET not in told(world)


@contextmanager
def _silenced() -> Iterator[None]:
    """What containers print goes nowhere."""
    own = os.dup(1)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    try:
        yield
    finally:
        os.dup2(own, 1)
        os.close(own)


def told(world: Fleet) -> str:
    """All that the ledger has, and all that Dagster was told."""
    ledger = [
        f"{incident} {world.services.ledger.events(incident.incident_id)}"
        for incident in world.incidents()
    ]
    runs = [
        str(entry)
        for run in world.instance.get_runs()
        for entry in world.instance.all_logs(run.run_id)
    ]
    return "\n".join([*ledger, *runs, *world.messages])


def incidents(world: Fleet) -> dict[str, Incident]:
    """By resource."""
    return {each.resource_id: each for each in world.incidents()}


def said(world: Fleet, name: str, kind: EventKind) -> str:
    """The only event of this kind, in a resource's story."""
    events = world.services.ledger.events(incidents(world)[name].incident_id)
    (found,) = [event for event in events if event.kind is kind]
    return f"{found.message} {found.details}"


def test_starts_that_break_are_given_up(tmp_path: Path) -> None:
    """With the name of the container, what it did, and none of its secrets."""
    ways = (*ANYWHERE, forks_and_vanishes, *RETURNS)
    with world_with(tmp_path, "start", ways, grace=timedelta(0)) as (world, names):
        (request,) = world.tick()
        assert not world.launch(request).success  # it gives up
        assert (tmp_path / "well").exists()
        found = incidents(world)
        for name in SAID:
            failed = said(world, name, EventKind.ATTEMPT_FAILED)
            assert f"container '{name}': " in failed
            assert SAID[name] in failed
            assert found[name].state is State.EXHAUSTED
        for name, why in SAID_OF_NO_USE.items():
            failed = said(world, name, EventKind.ATTEMPT_FAILED)
            assert f"released again, since its {why}" in failed
            assert found[name].state is State.EXHAUSTED
        for name in {"well", *names} - SAID.keys() - SAID_OF_NO_USE.keys():
            assert found[name].state is State.WAITING
            row = world.services.registry.read_resource(name).row
            assert row is not None
            saved = {"token": SECRET}
            if name == returns_other_things.__name__:
                saved |= {"1": "2", "list": "[None, {'a': 1.5}]"}
            assert json.loads(row["properties"]) == saved
            world.register(name)
        world.tick()
        assert incidents(world)["well"].state is State.RECOVERED


def test_stops_that_break_keep_no_start_from_being_tried(tmp_path: Path) -> None:
    """What they did is told with the attempt, and once more when it is given up."""
    with world_with(tmp_path, "stop", ANYWHERE) as (world, names):
        world.tick()
        (request,) = world.later().tick()
        assert world.launch(request).success
        for name in names:
            assert (tmp_path / name).exists()
            note = f"could not stop what an earlier start may have left: container '{name}': "
            assert note in said(world, name, EventKind.STARTED)
            assert SAID[name] in said(world, name, EventKind.STARTED)
        world.register("well")
        for request in world.later().tick():
            world.launch(request)
        found = incidents(world)
        assert found.pop("well").state is State.RECOVERED
        assert {each.state for each in found.values()} == {State.EXHAUSTED}


@pytest.mark.parametrize("at", ["constructor", "supports"])
def test_containers_that_cannot_be_asked_are_reported(tmp_path: Path, at: str) -> None:
    """Once, with their names; their orphans are not touched, in case somebody mends them."""
    with world_with(tmp_path, at, ANYWHERE) as (world, names):
        world.tick()
        (request,) = world.later().tick()
        assert world.launch(request).success
        assert (tmp_path / "well").exists()
        found = incidents(world)
        for name in names:
            assert not (tmp_path / name).exists()
            assert found[name].state is State.UNSUPPORTED
            assert f"container '{name}'" in str(found[name].note)
            assert SAID[name] in str(found[name].note)


def test_post_mortems_that_break_keep_no_start_from_being_tried(tmp_path: Path) -> None:
    """How the worker ended stays unknown."""
    ways = tuple(way for way in (*ANYWHERE, *RETURNS) if way is not shouts)
    with world_with(tmp_path, "post_mortem", ways) as (world, names):
        world.tick()
        (request,) = world.later().tick()
        assert world.launch(request).success
        for name in ("well", *names):
            assert (tmp_path / name).exists()
            assert incidents(world)[name].cause in {None, "unknown"}
