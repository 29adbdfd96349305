"""A run that is held up while another takes over, with real worker processes, at every place.

Whatever it does when it goes on: the worker that the other run has started lives, and no second
one beside it.
"""

import json
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from threading import Event
from typing import Any
from uuid import uuid4

import psutil
import pytest
import sqlalchemy as sa

from dagster_amoro.config import ContainerSettings
from dagster_amoro.containers.isolated import IsolatedContainers
from dagster_amoro.containers.processes import LAUNCH_VARIABLE
from dagster_amoro.core.ams_restart import AmsRestartDetector
from dagster_amoro.core.model import Incident, Resource, State
from dagster_amoro.core.policy import RunState
from dagster_amoro.healing.assembly import Services
from dagster_amoro.healing.fleet import add
from dagster_amoro.healing.restart import RestartResult
from dagster_amoro.stores.registry import optimizer
from tests.helpers.fleet import GRACE, START, fleet_services, watched
from tests.helpers.waiting import PATIENCE, wait_until
from tests.integration.test_faults import PLACES

pytestmark = pytest.mark.long

WORKER = Resource(
    resource_id="w-1", group_name="g", container_name="local", thread_count=1, memory_mb=0
)


def keeper_at(folder: Path, max_retries: int, start_check: str) -> Services:
    """The keeper of one process, with a process for its container."""
    properties = {
        "command": '["sleep", "600"]',
        "log-dir": str(folder / "workers"),
        "start-check": start_check,
        "termination-grace-period": "5s",
        "export.FOLDER_OF_THIS_TEST": str(folder),
    }
    entry = ContainerSettings(
        name="local", implementation="dagster_amoro.CommandContainer", properties=properties
    )
    services = fleet_services(folder, max_retries=max_retries)
    return replace(services, containers=IsolatedContainers({"local": entry}))


@dataclass
class World:
    """One orphan, two processes that restart it one after the other, and the clock."""

    folder: Path
    late: Services
    other: Services
    now: datetime = START
    runs: int = 0
    most: int = field(default=0, init=False)  # workers that were seen at once

    def __post_init__(self) -> None:
        self.late, self.other = (
            replace(each, clock=lambda: self.now) for each in (self.late, self.other)
        )

    def tick(self, later: timedelta = timedelta(0)) -> str | None:
        """The run key under which the tick hands over the orphan, if it does."""
        self.now += later
        dispatches = self.other.ticker.tick(_no_runs, AmsRestartDetector()).dispatches
        return dispatches[0].run_key if dispatches else None

    def takes_over(self) -> RestartResult:
        """The claim lapses, and the other process restarts it, or gives it up."""
        run_key = self.tick(timedelta(hours=1))
        return self.restarts(run_key)

    def restarts(self, run_key: str | None) -> RestartResult:
        """The other process does what the run of this key is for."""
        self.runs += 1
        (incident,) = self.other.restarter.claim(run_key or "", f"run-{self.runs}")
        return self.other.restarter.restart(incident.incident_id, f"run-{self.runs}")

    def register(self) -> None:
        """The worker that lives now registers."""
        with self.other.registry.database.writing() as connection:
            row = {"token": str(uuid4()), "resource_id": WORKER.resource_id, "group_name": "g"}
            connection.execute(sa.insert(optimizer).values(row))

    def incident(self, number: int) -> Incident:
        """The incident of this number."""
        found = self.other.ledger.incident(number)
        assert found is not None
        return found

    def workers(self) -> set[int]:
        """The process ids of the workers that live."""
        found = set()
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                environment = process.environ()
                mine = environment.get("FOLDER_OF_THIS_TEST") == str(self.folder)
                is_dead = process.status() == psutil.STATUS_ZOMBIE
                if mine and LAUNCH_VARIABLE in environment and not is_dead:
                    found.add(process.pid)
        self.most = max(self.most, len(found))
        return found

    def hosts(self) -> list[psutil.Process]:
        """The processes of containers; children of other tests may end meanwhile."""
        found = []
        for process in psutil.Process().children():
            with suppress(psutil.Error):
                if process.environ().get("DAGSTER_HOME") == str(self.folder):
                    found.append(process)
        return found

    def named(self) -> int:
        """The process id that the resource's row names."""
        row = self.other.registry.read_resource(WORKER.resource_id).row
        assert row is not None
        return int(json.loads(row["properties"])["command-pid"])

    def restart_late(self, at: int, places: Sequence[str], act: Callable[[], None]) -> None:
        """The late run restarts it, and is held up at one place while something happens."""
        passed: list[str] = []

        def announce(place: str) -> None:
            passed.append(place)
            self.workers()
            if len(passed) == at + 1:
                act()

        watched(self.late, announce).restarter.restart(1, "late")
        assert passed[: at + 1] == list(places[: at + 1])


def _no_runs(_owners: Sequence[str]) -> Mapping[str, RunState]:
    return {}


@contextmanager
def world_in(
    folder: Path, monkeypatch: pytest.MonkeyPatch, max_retries: int, start_check: str = "0s"
) -> Iterator[World]:
    """An orphan that was found, and no process that outlives the test."""
    monkeypatch.setenv("DAGSTER_HOME", str(folder))
    late, other = (keeper_at(folder, max_retries, start_check) for _ in range(2))
    world = World(folder, late, other)
    add(world.other.registry, WORKER)
    world.tick()
    try:
        yield world
    finally:
        for services in (world.late, world.other):
            services.close()
        for pid in world.workers():
            psutil.Process(pid).kill()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """An orphan that is due, claimed by the run that is going to be late."""
    with world_in(tmp_path, monkeypatch, max_retries=2) as made:
        made.late.restarter.claim(made.tick(GRACE) or "", "late")
        yield made


@pytest.mark.parametrize("is_seen", [False, True], ids=["not seen", "seen by a tick"])
@pytest.mark.parametrize("at", range(len(PLACES["restart"])), ids=PLACES["restart"].__getitem__)
def test_a_run_that_goes_on_leaves_the_worker_of_the_next_run(
    world: World, at: int, *, is_seen: bool
) -> None:
    """Held at any place between two of its calls; no attempt is made that was not counted."""
    healthy: set[int] = set()

    def overtaken() -> None:
        assert world.takes_over().outcome == "started"
        healthy.update(world.workers())
        world.register()
        if is_seen:
            world.tick()

    world.restart_late(at, PLACES["restart"], overtaken)
    assert len(healthy) == 1
    assert world.workers() == healthy
    assert world.most == 1
    world.tick()
    counted = at > PLACES["restart"].index("before ledger.apply")
    incident = world.incident(1)
    assert (incident.state, incident.attempts) == (State.RECOVERED, 1 + counted)
    assert {world.named()} == healthy


@pytest.mark.parametrize("at", range(len(PLACES["give up"])), ids=PLACES["give up"].__getitem__)
def test_a_run_that_goes_on_removes_nothing_that_came_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Another run has given it up, and an operator has restored it; it is healthy again."""
    with world_in(tmp_path, monkeypatch, max_retries=1) as world:
        assert world.restarts(world.tick(GRACE)).outcome == "started"
        world.late.restarter.claim(world.tick(GRACE) or "", "late")
        healthy: set[int] = set()

        def overtaken() -> None:
            if at < len(PLACES["give up"]) - 1:
                assert world.takes_over().outcome == "given up"
            assert world.workers() == set()
            world.other.registry.restore(world.other.ledger.removed_row(1) or {})
            world.tick()
            assert world.restarts(world.tick(GRACE)).outcome == "started"
            healthy.update(world.workers())
            world.register()

        world.restart_late(at, PLACES["give up"], overtaken)
        assert len(healthy) == 1
        assert world.workers() == healthy
        assert world.most == 1
        world.tick()
        first, second = world.incident(1), world.incident(2)
        assert (first.state, first.attempts) == (State.EXHAUSTED, 1)
        assert (second.state, second.attempts) == (State.RECOVERED, 1)
        assert {world.named()} == healthy


@pytest.mark.parametrize("call", ["release_resource", "request_resource"])
def test_a_call_that_is_made_late_is_refused(
    world: World, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """The late run has asked for it, and the container's process sleeps until all is healthy."""
    world.late.containers.get("local").status(WORKER)  # type: ignore[attr-defined]
    (host,) = world.hosts()
    is_asked = Event()
    send = socket.send_fds

    def noted(*arguments: Any, **options: Any) -> int:  # noqa: ANN401 - of send_fds
        sent = send(*arguments, **options)
        is_asked.set()
        return sent

    def announce(place: str) -> None:
        if place == f"before container.{call}":
            host.suspend()
            monkeypatch.setattr(socket, "send_fds", noted)

    with ThreadPoolExecutor() as pool:
        late = pool.submit(watched(world.late, announce).restarter.restart, 1, "late")
        assert is_asked.wait(PATIENCE)
        assert world.takes_over().outcome == "started"
        healthy = world.workers()
        world.register()
        host.resume()
        assert late.result().outcome == "left"
    assert len(healthy) == 1
    assert world.workers() == healthy
    assert {world.named()} == healthy
    world.tick()
    assert (world.incident(1).state, world.incident(1).attempts) == (State.RECOVERED, 2)


def test_a_start_under_way_keeps_the_next_run_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its claim has lapsed; what it started is stopped again, and a later attempt helps."""
    with world_in(tmp_path, monkeypatch, max_retries=3, start_check="3s") as world:
        world.late.restarter.claim(world.tick(GRACE) or "", "late")
        with ThreadPoolExecutor() as pool:
            late = pool.submit(world.late.restarter.restart, 1, "late")
            wait_until(lambda: bool(world.workers()))
            refused = world.takes_over()
            assert not late.done()
            assert len(world.workers()) == 1
            assert late.result().outcome == "left"
        assert refused.outcome == "failed"
        assert "another call for 'w-1' is under way" in refused.message
        assert world.workers() == set()
        assert world.takes_over().outcome == "started"
        assert world.incident(1).attempts == 3
        assert {world.named()} == world.workers()
        assert world.most == 1
