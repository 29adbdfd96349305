"""How long does it take to have real workers back, and what does the run take that does it?"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

import sqlalchemy as sa

from benchmarks.figures import Figure, Figures
from benchmarks.world import CONTAINER, configure, no_runs, services_of
from dagster_amoro.core.ams_restart import AmsRestartDetector
from dagster_amoro.core.model import Resource
from dagster_amoro.core.tick_plan import RunPlan
from dagster_amoro.healing.fleet import add
from dagster_amoro.stores.registry import optimizer

_CHECKOUT: Final = Path(__file__).parents[1]
_WORKERS: Final = 200
_FEW: Final = 10
_GROUPS: Final = 4
_BOUND: Final = 3.0
_MEMORY_BOUND: Final = 1.5
_REPETITIONS: Final = 2
_LIMIT_SECONDS: Final = 300
_WORKER: Final = (sys.executable, "-m", "benchmarks.worker")


class _Healing(NamedTuple):
    """What it took to have workers back."""

    seconds: float  # from the tick that hands over to the last registration
    peaks: Sequence[float]  # of the run's process and of the container's, in MiB


def figures(folder: Path) -> Figures:
    """The time of a run of real workers, to that of spawning them; and the memory of that run."""
    with closing(_Fleet(folder / "ours")) as ours, closing(_Fleet(folder / "bare")) as bare:
        ours.heal(_WORKERS)  # starts them
        healed = [ours.heal(_WORKERS) for _ in range(_REPETITIONS)]
        spawned = median(bare.spawn() for _ in range(_REPETITIONS))
        few = ours.heal(_FEW)
    name = f"{_WORKERS} real workers back, to a loop that spawns them"
    seconds = median(each.seconds for each in healed)
    yield Figure(name=name, ours=seconds, bare=spawned, bound=_BOUND)
    kinds = ("its run", "its container's process")
    for kind, *peaks in zip(kinds, healed[-1].peaks, few.peaks, strict=True):
        name = f"memory of {kind}, to that with {_FEW} workers"
        yield Figure(name=name, ours=peaks[0], bare=peaks[1], unit="MiB", bound=_MEMORY_BOUND)


class _Fleet:
    """Workers of which none runs yet, in a registry of their own."""

    def __init__(self, folder: Path) -> None:
        self._folder: Final = folder
        self._url: Final = f"sqlite:///{folder / 'registry.db'}"
        command = [*_WORKER, self._url, "{resource_id}", "{group_name}", CONTAINER]
        container = {
            "container-impl": "dagster_amoro.CommandContainer",
            "properties": {"command": command},
        }
        ams = {"optimizer.auto-restart-grace-period": "0 s"}
        settings = {"ams": ams, "keeper": {"stable-after": "0 s"}}
        configure(folder, settings=settings, container=container)
        self._services: Final = services_of(folder)
        self._names: Final = [(f"worker-{n:03}", f"group-{n % _GROUPS}") for n in range(_WORKERS)]
        self._spawned: Final[list[subprocess.Popen[bytes]]] = []
        for resource_id, group_name in self._names:
            worker = Resource(
                resource_id=resource_id,
                group_name=group_name,
                container_name=CONTAINER,
                thread_count=1,
                memory_mb=0,
            )
            add(self._services.registry, worker)

    def heal(self, count: int) -> _Healing:
        """Kills so many workers, and has them back by a run in a process of its own."""
        self._kill(count)
        begun = time.monotonic()
        (dispatch,) = self._dispatches()
        environment = {**os.environ, "DAGSTER_HOME": str(self._folder / "home")}
        module = [sys.executable, "-m", "benchmarks.run_process"]
        command = [*module, str(self._folder), dispatch.run_key]
        run = subprocess.Popen(command, cwd=_CHECKOUT, env=environment, stdout=subprocess.PIPE)
        self._wait_for_all()
        seconds = time.monotonic() - begun
        peaks = json.loads(run.communicate()[0])
        self._dispatches()  # sees that they are back
        return _Healing(seconds, peaks)

    def spawn(self) -> float:
        """Seconds until workers that a loop spawns have registered."""
        self._kill(_WORKERS)
        with self._services.registry.database.writing() as connection:
            connection.execute(sa.delete(optimizer))
        begun = time.monotonic()
        for names in self._names:
            command = [*_WORKER, self._url, *names, CONTAINER]
            self._spawned.append(subprocess.Popen(command, cwd=_CHECKOUT))
        self._wait_for_all()
        return time.monotonic() - begun

    def close(self) -> None:
        """Ends all workers."""
        self._kill(_WORKERS)
        for process in self._spawned:
            process.wait()
        self._services.close()

    def _dispatches(self) -> Sequence[RunPlan]:
        return self._services.ticker.tick(no_runs, AmsRestartDetector()).dispatches

    def _kill(self, count: int) -> None:
        """Kills the first of the workers with SIGKILL; their last heartbeats are old at once."""
        chosen = optimizer.c.resource_id.in_([name for name, _ in self._names[:count]])
        with self._services.registry.database.writing() as connection:
            for properties in connection.scalars(sa.select(optimizer.c.properties).where(chosen)):
                with suppress(ProcessLookupError):
                    os.kill(int(json.loads(properties)["job-id"]), signal.SIGKILL)
            old = datetime(2000, 1, 1)  # noqa: DTZ001 - as the registry has it
            connection.execute(sa.update(optimizer).where(chosen).values(touch_time=old))

    def _wait_for_all(self) -> None:
        registered = sa.select(sa.func.count()).select_from(optimizer)
        deadline = time.monotonic() + _LIMIT_SECONDS
        while time.monotonic() < deadline:
            with self._services.registry.database.reading() as connection:
                if connection.scalar(registered) == _WORKERS:
                    return
            time.sleep(0.1)
        raise TimeoutError(f"not all of {_WORKERS} workers registered")
