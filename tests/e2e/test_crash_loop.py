"""Workers that register and die soon after: real processes, real time, a real configuration."""

import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from textwrap import dedent

import dagster as dg
import pytest
import yaml

from dagster_amoro.config import load_settings
from dagster_amoro.core.clock import utc_clock
from dagster_amoro.core.model import Incident, State
from dagster_amoro.demo.fleet import MARKER, processes, stop_all
from dagster_amoro.healing.assembly import Services
from dagster_amoro.testing import RecordingContainer
from tests.helpers.fleet import Fleet

pytestmark = pytest.mark.crash_loop
RETRIES = 3
SECONDS = 120  # a deadline for what takes 25 s
# Its arguments: its resource, and how often it dies before it stays alive. It dies as from a
# crash, two seconds after its start, and leaves its row to expire.
WORKER = """
    import os, sys, time
    from datetime import timedelta
    from pathlib import Path

    from dagster_amoro.config import load_settings
    from dagster_amoro.worker import Heartbeat

    name, deaths = sys.argv[1], int(sys.argv[2])
    starts = Path(__file__).with_name(name)
    with starts.open("a") as file:
        file.write(f"{os.getpid()}\\n")
    with Heartbeat(
        load_settings().database_url,
        resource_id=name,
        group_name="g",
        container_name=name,
        interval=timedelta(milliseconds=200),
    ):
        time.sleep(2)
        if len(starts.read_text().splitlines()) <= deaths:
            os._exit(1)
        time.sleep(600)
"""


def configuration(folder: Path) -> str:
    """A fleet whose container `always` starts what always dies, and `once` what dies once."""
    containers = [
        {
            "name": name,
            "container-impl": "dagster_amoro.CommandContainer",
            "properties": {
                "command": [sys.executable, str(folder / "worker.py"), "{resource_id}", deaths],
                "log-dir": str(folder / "logs"),
                "start-check": "0s",
                f"export.{MARKER}": str(folder),
                "export.AMORO_CONF_DIR": str(folder),
            },
        }
        for name, deaths in (("always", "1000"), ("once", "1"))
    ]
    optimizer = {
        "auto-restart-enabled": True,
        "auto-restart-max-retries": RETRIES,
        "auto-restart-grace-period": "3s",  # time enough to register
        "heart-beat-timeout": "2s",
    }
    database = {"type": "sqlite", "url": "jdbc:sqlite:registry.db"}
    keeper = {"registry": "standalone", "stable-after": "1min", "claim-timeout": "1min"}
    ams = {"database": database, "optimizer": optimizer}
    return yaml.safe_dump({"ams": ams, "keeper": keeper, "containers": containers})


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Fleet]:
    """A fleet of two workers that nobody has started yet, kept as configured."""
    (tmp_path / "worker.py").write_text(dedent(WORKER))
    (tmp_path / "config.yaml").write_text(configuration(tmp_path))
    keeper = Services.connect(load_settings(tmp_path, {}))
    with dg.DagsterInstance.ephemeral(tempdir=str(tmp_path)) as instance:
        made = Fleet(services=keeper, container=RecordingContainer(), instance=instance)
        made.services = replace(made.services, clock=utc_clock)
        for name in ("always", "once"):
            made.worker(name, container_name=name, thread_count=1)
        try:
            yield made
        finally:
            stop_all(tmp_path)
    keeper.close()


def test_a_crash_loop_ends_and_a_single_crash_does_not_count(world: Fleet, tmp_path: Path) -> None:
    """As it registers after each start, it is left to a person when its attempts are used up."""
    end = time.monotonic() + SECONDS
    stories: list[str] = []
    while not stories:
        assert time.monotonic() < end
        stories = [told for request in world.tick() if (told := failure(world, request))]
        time.sleep(0.2)
    found = story(world, "always")
    assert found[-1].state is State.KEPT
    assert {incident.state for incident in found[:-1]} == {State.RECOVERED}
    assert len(found) > RETRIES
    assert carried_on(found)
    assert found[-1].attempts_used == RETRIES
    assert len(starts(tmp_path, "always")) == RETRIES
    assert "always" in stories[0]
    assert f"{RETRIES} attempts" in stories[0]
    assert world.kinds("always")[-1] == "kept"
    assert world.services.registry.read_resource("always").row is not None

    # The other one died once, came back, and is the only one that runs.
    (*_, last) = story(world, "once")
    assert last.state is State.RECOVERED
    assert carried_on(story(world, "once"))
    pids = starts(tmp_path, "once")
    assert len(pids) == 2
    assert [process.pid for process in processes(tmp_path)] == [pids[-1]]
    assert world.tick() == []
    assert world.message.startswith("2 resources, 1 orphan: 1 held (it came back and was orphaned")


def failure(world: Fleet, request: dg.RunRequest) -> str | None:
    """Runs what was requested; what its failed step says, or None."""
    result = world.launch(request)
    failed = [event for event in result.all_events if event.is_step_failure]
    told = [event.step_failure_data.user_failure_data for event in failed]
    return next((str(each.description) for each in told if each), None)


def story(world: Fleet, resource_id: str) -> list[Incident]:
    """The incidents of a resource, in order."""
    return [each for each in world.incidents() if each.resource_id == resource_id]


def carried_on(incidents: list[Incident]) -> bool:
    """Whether each of them counts all the attempts that were made before it."""
    before = [sum(each.attempts for each in incidents[:n]) for n in range(len(incidents))]
    return [each.prior_attempts for each in incidents] == before


def starts(folder: Path, name: str) -> list[int]:
    """The processes that were started for a resource, in order."""
    return [int(pid) for pid in (folder / name).read_text().split()]
