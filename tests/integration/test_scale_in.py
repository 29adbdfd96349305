"""A worker is stopped for good: by Python, by the command, and wherever it is cut off."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from dagster_amoro import Resource, load_settings, scale_in, scale_out
from dagster_amoro.core.errors import (
    ConfigError,
    ContainerError,
    KeeperError,
    ReleaseFailedError,
    UnknownTargetError,
)
from dagster_amoro.core.model import State
from dagster_amoro.core.pauses import Pause, Scope, Target
from dagster_amoro.healing.assembly import Services
from tests.helpers.fleet import GRACE, Fleet, fleet, watched

BY = {"author": "ann", "reason": "a move"}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Fleet]:
    """A fleet with one worker that was started and is alive."""
    with fleet(tmp_path) as found:
        started(found, "w-1")
        found.register("w-1", "g", 2)
        yield found


def started(world: Fleet, resource_id: str) -> None:
    """A worker with its row and its start-up properties."""
    world.worker(resource_id)
    registry = world.services.registry
    resource = Resource(
        resource_id=resource_id,
        group_name="g",
        container_name="recording",
        thread_count=2,
        memory_mb=0,
    )
    registry.save_startup(resource_id, "{}", world.container.request_resource(resource))


def release(world: Fleet, resource_id: str = "w-1") -> str:
    """It is scaled in."""
    return world.services.releaser.release(resource_id, **BY)


def test_a_worker_is_stopped_and_its_row_removed(world: Fleet) -> None:
    """And what stands for it: it is as if it had never been there."""
    told = release(world)
    assert told == "w-1: its worker was stopped and its row removed, by ann: a move."
    assert world.container.running == frozenset()
    assert world.resources() == []
    assert world.services.registry.read_snapshot().orphans == {}
    assert world.tick() == []
    assert world.incidents() == []
    assert world.notes() == [
        ("scaled-in", "its worker was stopped and its row removed, by ann: a move")
    ]


def test_its_incident_is_closed(world: Fleet) -> None:
    """As released, with who and why."""
    world.dies()
    world.later(GRACE * 2).aged()
    world.tick()
    release(world)
    (incident,) = world.incidents()
    assert incident.state is State.RELEASED
    assert world.kinds() == ["detected", "scaled-in", "released"]
    assert world.tick() == []


def test_a_run_that_has_it_in_hand_finds_its_row_gone(world: Fleet) -> None:
    """It releases what it has started, and closes the incident."""
    world.dies()
    world.aged()
    world.tick()
    (request,) = world.later().tick()
    world.container.during_request = lambda _: said.append(release(world))
    said: list[str] = []
    assert world.launch(request).success
    assert world.container.running == frozenset()
    assert world.resources() == []
    (incident,) = world.incidents()
    assert incident.state is State.RELEASED


def test_cut_off_anywhere_it_goes_on_where_it_was(world: Fleet) -> None:
    """Before each of its calls: what runs has a row, and the second time it is done."""

    class CutOffError(KeyboardInterrupt):
        """The process is over."""

    number, calls = 0, 1
    while calls > number:
        number, calls, name = number + 1, 0, f"x-{number + 1}"
        started(world, name)
        world.aged()
        world.tick()

        def announce(place: str, number: int = number) -> None:
            nonlocal calls
            calls += place.startswith("before ")
            if calls > number:
                raise CutOffError

        with suppress(CutOffError):
            watched(world.services, announce).releaser.release(name, **BY)
        has_row = name in {row[0] for row in world.resources()}
        assert has_row or name not in world.container.running
        with suppress(UnknownTargetError):  # it was over
            release(world, name)
        assert name not in world.container.running
        assert name not in {row[0] for row in world.resources()}
        assert world.services.ledger.open_incident(name) is None
    assert number > 5


def test_what_cannot_be_stopped_keeps_its_row(world: Fleet) -> None:
    """And it says why."""
    world.container.refuse_releases("it is on another host")
    with pytest.raises(ReleaseFailedError, match="could not stop w-1: it is on another host; its"):
        release(world)
    assert len(world.resources()) == 1
    world.worker("w-2", container_name="gone")
    with pytest.raises(ContainerError, match="container 'gone' is not configured"):
        release(world, "w-2")


def test_what_is_paused_is_not_scaled_in(world: Fleet) -> None:
    """Nothing is removed there."""
    target = Target(scope=Scope.RESOURCE, name="w-1")
    pause = Pause(target=target, author="bob", reason="", paused_at=world.now, until=None)
    with world.services.ledger.transaction() as ledger:
        ledger.add_pause(pause)
    with pytest.raises(UnknownTargetError, match="w-1 is left alone: resource w-1 is paused by b"):
        release(world)
    assert world.container.running == {"w-1"}


def test_what_is_started_anew_each_time_is_said(world: Fleet) -> None:
    """Its row stays, so that what runs has one."""
    registry = world.services.registry
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "remove_resource", lambda *_: False)
        with pytest.raises(KeeperError, match="3 times; its row stays"):
            release(world)


def test_who_and_why_have_to_be_said(world: Fleet) -> None:
    """And the resource has to be there."""
    with pytest.raises(KeeperError, match="say who wants it"):
        world.services.releaser.release("w-1", author=" ", reason="a move")
    with pytest.raises(UnknownTargetError, match="there is no resource 'w-9'"):
        release(world, "w-9")


def test_in_a_dry_run_it_is_only_told(world: Fleet) -> None:
    """The worker runs, and its row is there."""
    world.services = world.services.in_dry_run()
    assert release(world).startswith("Dry run, nothing is done: w-1: ")
    assert world.container.running == {"w-1"}
    assert len(world.resources()) == 1


def test_an_attached_registry_is_amss(world: Fleet) -> None:
    """Its resources are released in AMS."""
    releaser = replace(world.services.releaser, attached=True)
    with pytest.raises(ConfigError, match="released in AMS, not here"):
        releaser.release("w-1", **BY)
    assert world.container.running == {"w-1"}


def test_from_python(tmp_path: Path) -> None:
    """What was scaled out is scaled in."""
    (tmp_path / "config.yaml").write_text(
        "ams: {database: {type: sqlite, url: 'sqlite:///registry.db'}}\n"
        "containers: [{name: local, container-impl: dagster_amoro.testing.RecordingContainer}]\n"
    )
    settings = load_settings(tmp_path, {})
    fields = {"group_name": "g", "container_name": "local", "thread_count": 1, "memory_mb": 0}
    scale_out(settings, Resource(resource_id="w-1", **fields))  # type: ignore[arg-type]
    scale_in(settings, "w-1")
    services = Services.connect(settings)
    assert services.registry.read_resource("w-1").row is None
    services.close()
    with pytest.raises(UnknownTargetError):
        scale_in(settings, "w-1")
