"""Starts that take longer than the grace period: what they started is not stopped by the next one.

The pause after an attempt begins when its start has ended, so that each worker has all of it to
register in.
"""

import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from textwrap import dedent

import dagster as dg
import pytest
import sqlalchemy as sa
import yaml

from dagster_amoro.config import load_settings
from dagster_amoro.core.clock import utc_clock
from dagster_amoro.core.container_settings import CallLimits, ContainerSettings
from dagster_amoro.core.model import Resource, State
from dagster_amoro.demo.fleet import MARKER, processes, stop_all
from dagster_amoro.healing.assembly import Services
from dagster_amoro.testing import RecordingContainer
from tests.helpers.fleet import GRACE, Fleet, fleet

KINDS = (
    "org.apache.amoro.server.manager.LocalOptimizerContainer",
    "org.apache.amoro.server.manager.FlinkOptimizerContainer",
    "org.apache.amoro.server.manager.SparkOptimizerContainer",
    "org.apache.amoro.server.manager.KubernetesOptimizerContainer",
    "dagster_amoro.CommandContainer",
    "somebody.elses.Container",
)


def limits_of_kind(implementation: str) -> CallLimits:
    """What a container of this kind may take where its properties do not say it."""
    return ContainerSettings(name="c", implementation=implementation, properties={}).limits


@pytest.fixture
def world(tmp_path: Path, database_url: sa.URL) -> Iterator[Fleet]:
    """A fleet with three attempts and a grace period of 30 s, on every backend."""
    with fleet(tmp_path, url=database_url) as made:
        yield made


@pytest.mark.parametrize("implementation", KINDS)
def test_a_start_of_one_and_a_half_grace_periods_is_one_attempt(
    world: Fleet, implementation: str
) -> None:
    """One attempt, one recovery, the row stays; nothing is stopped after the start."""
    limits = limits_of_kind(implementation)
    grace = limits.start_timeout / 1.5
    world.services = replace(
        world.services, policy=replace(world.services.policy, grace_period=grace)
    )
    world.container.limits = limits  # type: ignore[attr-defined]
    world.worker()
    world.tick()
    (request,) = world.later(grace).tick()

    def takes_long(_: Resource) -> None:
        world.later(grace * 1.5)
        assert world.tick() == []  # the run has it

    world.container.during_request = takes_long
    assert world.launch(request).success
    assert world.tick() == []  # what was just started is left alone
    assert world.later(grace - timedelta(microseconds=1)).tick() == []
    world.register()
    assert world.tick() == []
    (incident,) = world.incidents()
    assert (incident.state, incident.attempts) == (State.RECOVERED, 1)
    assert world.container.requested == ["w-1"]
    assert world.container.running == {"w-1"}
    assert [row[0] for row in world.resources()] == ["w-1"]


@pytest.mark.parametrize("implementation", KINDS)
def test_a_start_of_which_nobody_knows_the_end_is_waited_for(
    tmp_path: Path, implementation: str
) -> None:
    """Its run died: the pause begins when the calls of the container must be over."""
    limits = limits_of_kind(implementation)
    with fleet(tmp_path) as world:
        world.container.limits = limits  # type: ignore[attr-defined]
        world.worker()
        world.tick()
        (request,) = world.later().tick()
        run = world.submit(request, dg.DagsterRunStatus.STARTED)
        (incident,) = world.claim(request, run.run_id)

        def is_killed(_: Resource) -> None:
            raise KeyboardInterrupt

        world.container.during_request = is_killed
        with pytest.raises(KeyboardInterrupt):
            world.services.restarter.restart(incident.incident_id, run.run_id)
        world.instance.report_run_failed(run)
        almost = limits.longest_restart + GRACE - timedelta(microseconds=1)
        assert world.later(almost).tick() == []
        (again,) = world.later(timedelta(microseconds=1)).tick()
        world.container.during_request = None
        assert world.launch(again).success
        assert world.incidents()[0].attempts_used == 1


WORKER = """
    import sys, time
    from datetime import timedelta

    from dagster_amoro.config import load_settings
    from dagster_amoro.worker import Heartbeat

    time.sleep(8)  # it boots
    with Heartbeat(
        load_settings().database_url,
        resource_id=sys.argv[1],
        group_name="g",
        container_name="slow",
        interval=timedelta(milliseconds=200),
    ):
        time.sleep(600)
"""


def configuration(folder: Path) -> str:
    """A container that looks for 9 s whether its worker runs; the grace period is 6 s."""
    properties = {
        "command": [sys.executable, str(folder / "worker.py"), "{resource_id}"],
        "log-dir": str(folder / "logs"),
        "start-check": "9s",
        f"export.{MARKER}": str(folder),
        "export.AMORO_CONF_DIR": str(folder),
    }
    container = {"container-impl": "dagster_amoro.CommandContainer", "properties": properties}
    optimizer = {
        "auto-restart-enabled": True,
        "auto-restart-grace-period": "6s",
        "heart-beat-timeout": "2s",
    }
    database = {"type": "sqlite", "url": "jdbc:sqlite:registry.db"}
    ams = {"database": database, "optimizer": optimizer}
    keeper = {"registry": "standalone", "stable-after": "0"}
    return yaml.safe_dump(
        {"ams": ams, "keeper": keeper, "containers": [{"name": "slow", **container}]}
    )


@pytest.fixture
def real_world(tmp_path: Path) -> Iterator[Fleet]:
    """A fleet of one real worker that nobody has started yet, in real time."""
    (tmp_path / "worker.py").write_text(dedent(WORKER))
    (tmp_path / "config.yaml").write_text(configuration(tmp_path))
    keeper = Services.connect(load_settings(tmp_path, {}))
    with dg.DagsterInstance.ephemeral(tempdir=str(tmp_path)) as instance:
        made = Fleet(services=keeper, container=RecordingContainer(), instance=instance)
        made.services = replace(made.services, clock=utc_clock)
        made.worker("w-1", container_name="slow", thread_count=1)
        try:
            yield made
        finally:
            stop_all(tmp_path)
    keeper.close()


@pytest.mark.crash_loop
def test_a_real_worker_that_starts_slowly_is_started_once(
    real_world: Fleet, tmp_path: Path
) -> None:
    """Its start takes one and a half grace periods, and it registers a second later."""
    deadline = time.monotonic() + 120
    while not real_world.incidents() or real_world.incidents()[-1].is_open:
        assert time.monotonic() < deadline
        for request in real_world.tick():
            assert real_world.launch(request).success
        time.sleep(0.1)
    (incident,) = real_world.incidents()
    assert (incident.state, incident.attempts) == (State.RECOVERED, 1)
    assert len(list(processes(tmp_path))) == 1
    assert [row[0] for row in real_world.resources()] == ["w-1"]
