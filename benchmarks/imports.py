"""What does it cost to load us? CPU seconds of whole processes, to those that load less."""

import resource
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from os import environ
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from benchmarks.figures import Figure, Figures, interleaved
from benchmarks.world import close, no_runs
from dagster_amoro.config import load_settings
from dagster_amoro.core.ams_restart import AmsRestartDetector
from dagster_amoro.core.model import Resource
from dagster_amoro.demo.fleet import environment
from dagster_amoro.healing.assembly import Services
from dagster_amoro.healing.fleet import add
from dagster_amoro.stores.registry import optimizer

_REPETITIONS: Final = 9
_WORKERS: Final = 5  # one of which is dead
_STATUS: Final = str(Path(sys.executable).with_name("dagster-amoro"))


def figures(folder: Path) -> Figures:
    """The code location, `dagster-amoro status`, and what a worker loads."""
    variables = {**environ, **environment(folder)}
    variables.pop("PYTHONDONTWRITEBYTECODE", None)  # what is compiled at each start is not measured
    _make_fleet(folder)
    definitions, dagster, status, heartbeat, sqlalchemy = interleaved(
        _seconds(variables, sys.executable, "-c", "import dagster_amoro.definitions"),
        _seconds(variables, sys.executable, "-c", "import dagster"),
        _seconds(variables, _STATUS, "status"),
        _seconds(variables, sys.executable, "-c", "from dagster_amoro import Heartbeat"),
        _seconds(variables, sys.executable, "-c", "import sqlalchemy"),
        repetitions=_REPETITIONS,
    )
    yield Figure(
        name="import of the definitions, to that of Dagster",
        ours=definitions,
        bare=dagster,
        bound=1.25,
    )
    yield Figure(
        name="dagster-amoro status on the demo's fleet, to import sqlalchemy",
        ours=status,
        bare=sqlalchemy,
        bound=2.5,
    )
    yield Figure(
        name="import of Heartbeat, to import sqlalchemy",
        ours=heartbeat,
        bare=sqlalchemy,
        bound=1.3,
    )


def _seconds(variables: Mapping[str, str], *command: str) -> Callable[[], float]:
    """CPU seconds of a process, in user and system mode."""

    def run() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, env=variables, stdout=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    return run


def _make_fleet(folder: Path) -> None:
    """The demo's registry and ledger after a tick; nothing is started."""
    variables = environment(folder)
    services = Services.connect(load_settings(Path(variables["AMORO_CONF_DIR"]), variables))
    for number in range(1, _WORKERS + 1):
        add(services.registry, _worker(f"ingest-{number}"))
    add(
        services.registry,
        replace(_worker("legacy-1"), group_name="legacy", container_name="hopeless"),
    )
    alive = [
        {"token": str(number), "resource_id": f"ingest-{number}", "group_name": "ingest"}
        for number in range(1, _WORKERS)
    ]
    with services.registry.database.writing() as connection:
        connection.execute(sa.insert(optimizer), alive)
    services.ticker.tick(no_runs, AmsRestartDetector())
    close(services)


def _worker(resource_id: str) -> Resource:
    return Resource(
        resource_id=resource_id,
        group_name="ingest",
        container_name="local",
        thread_count=2,
        memory_mb=0,
    )
