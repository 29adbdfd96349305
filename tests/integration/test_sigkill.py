"""A run that is killed with SIGKILL, with real worker processes, at every place of a turn."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import psutil
import pytest

from dagster_amoro.config import ContainerSettings
from dagster_amoro.containers.resolve import Containers
from dagster_amoro.core.ams_restart import AmsRestartDetector
from dagster_amoro.core.model import Resource, State
from dagster_amoro.core.policy import RunState
from dagster_amoro.healing.assembly import Services
from dagster_amoro.healing.fleet import add
from tests.helpers.fleet import START, fleet_services, watched

pytestmark = pytest.mark.crash_loop
GRACE = timedelta(seconds=30)
WORKER = "w-1"
TURN_CALLS = 14  # that a turn makes on the registry, the ledger and the container
TICK_CALLS = 7  # that the tick makes which hands the orphan over


def keeper_at(folder: Path, later: timedelta) -> Services:
    """The keeper of a process that was started at some time, with real worker processes."""
    command = ["sleep", "600"]
    settings = ContainerSettings(
        name="local",
        implementation="dagster_amoro.CommandContainer",
        properties={
            "command": str(command).replace("'", '"'),
            "log-dir": str(folder / "workers"),
            "start-check": "0s",
            "termination-grace-period": "5s",
            "export.FOLDER_OF_THIS_TEST": str(folder),
        },
    )
    keeper = fleet_services(folder, max_retries=3, grace=GRACE)
    return replace(keeper, containers=Containers({"local": settings}), clock=lambda: START + later)


def die_before(number: int, folder: Path, what: str) -> None:
    """Does one thing, and is killed before the call of that number; in a process of its own."""
    calls = 0

    def announce(place: str) -> None:
        nonlocal calls
        calls += place.startswith("before ")
        if calls == number or (calls == number - 1 and place == "the end"):
            os.kill(os.getpid(), signal.SIGKILL)

    keeper = keeper_at(folder, GRACE)
    if what == "tick":
        watched(keeper, announce).ticker.tick(no_runs, AmsRestartDetector())
        announce("the end")
        return
    (order,) = keeper.ticker.tick(no_runs, AmsRestartDetector()).dispatches
    (incident,) = keeper.restarter.claim(order.run_key, "first-run")
    watched(keeper, announce).restarter.restart(incident.incident_id, "first-run")
    announce("the end")


def no_runs(_owners: Sequence[str]) -> Mapping[str, RunState]:
    """Dagster knows nothing of the run: its record is gone with it."""
    return {}


def workers(folder: Path) -> list[psutil.Process]:
    """The worker processes of this test that are alive."""
    found = []
    for process in psutil.process_iter():
        try:
            marked = process.environ().get("FOLDER_OF_THIS_TEST") == str(folder)
            if marked and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


@contextmanager
def stopped_at_the_end(folder: Path) -> Iterator[None]:
    """Leaves no process behind."""
    try:
        yield
    finally:
        for process in workers(folder):
            process.kill()


@pytest.mark.parametrize(
    ("what", "number"),
    [("turn", number) for number in range(1, TURN_CALLS + 2)]
    + [("tick", number) for number in range(1, TICK_CALLS + 2)],
)
def test_killed_anywhere_it_is_started_once_per_attempt(
    tmp_path: Path, what: str, number: int
) -> None:
    """Killed before each call, and after the last: one process at a time, no attempt lost."""
    with stopped_at_the_end(tmp_path):
        keeper = keeper_at(tmp_path, timedelta(0))
        add(
            keeper.registry,
            Resource(
                resource_id=WORKER,
                group_name="g",
                container_name="local",
                thread_count=1,
                memory_mb=0,
            ),
        )
        keeper.ticker.tick(no_runs, AmsRestartDetector())
        died = subprocess.run(
            [sys.executable, __file__, str(number), str(tmp_path), what],
            check=False,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        assert died.returncode == -signal.SIGKILL
        assert len(workers(tmp_path)) <= 1
        seen = {process.pid for process in workers(tmp_path)}
        for again in range(1, 6):
            later = keeper_at(tmp_path, GRACE + again * (keeper.settings.claim_timeout + GRACE))
            for order in later.ticker.tick(no_runs, AmsRestartDetector()).dispatches:
                for each in later.restarter.claim(order.run_key, f"run-{again}"):
                    later.restarter.restart(each.incident_id, f"run-{again}")
            alive = {process.pid for process in workers(tmp_path)}
            assert len(alive) <= 1
            seen |= alive
            close(later)
        incident = keeper.ledger.incident(1)
        assert incident is not None
        assert (incident.state, incident.attempts - incident.interrupted) == (State.EXHAUSTED, 3)
        assert workers(tmp_path) == []
        events = [str(event.kind) for event in keeper.ledger.events(1)]
        assert events.count("attempt") == incident.attempts
        assert events.count("started") <= len(seen) <= incident.attempts
        assert incident.interrupted <= 1  # the attempt that was killed on its way
        close(keeper)


def close(keeper: Services) -> None:
    """Closes what a keeper had open."""
    keeper.registry.database.close()
    keeper.ledger.database.close()


if __name__ == "__main__":
    die_before(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
