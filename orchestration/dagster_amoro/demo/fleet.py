"""The demo's workers: which there are, how they start, stop and are killed."""

import json
import os
import random
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil
import sqlalchemy as sa

from dagster_amoro.config import load_settings
from dagster_amoro.healing.apply import Applied
from dagster_amoro.healing.assembly import Services
from dagster_amoro.stores.registry import optimizer, resource

CONF: Final = Path(__file__).parent / "conf"
MARKER: Final = "DAGSTER_AMORO_DEMO"  # in the environment of all that a demo starts: its folder

_STOP_SECONDS: Final = 10
_BY: Final = {"author": "make run", "reason": "the demo begins"}
SIZED: Final = "reports"  # a group of which only the size is said
HOPELESS: Final = "legacy-1"  # a worker that never registers


def environment(folder: Path) -> dict[str, str]:
    """The environment of everything in a demo: where it finds its configuration."""
    return {
        MARKER: str(folder),
        "DAGSTER_HOME": str(folder / "dagster"),
        "AMORO_CONF_DIR": str(CONF),
        "AMS_DATABASE_URL": f"sqlite:///{folder / 'registry.db'}",
    }


def start_fleet(services: Services) -> Applied:
    """Starts all workers that the configuration declares anew; says what could not be started."""
    registry = services.registry
    registry.create()
    with registry.database.writing() as connection:  # of a demo that ended before
        connection.execute(sa.delete(optimizer))
        connection.execute(sa.delete(resource))
    return services.applier.apply(services.applier.plan().to_do(), **_BY)


def kill_one(folder: Path) -> str:
    """Kills a random worker that is registered, as a crash would; says which."""
    os.environ.update(environment(folder))
    registry = Services.connect(load_settings()).registry
    registry.create()
    with registry.database.reading() as connection:
        rows = connection.execute(sa.select(optimizer.c.resource_id, optimizer.c.properties)).all()
    ours = {process.pid for process in processes(folder)}
    workers = [(name, int(json.loads(message)["job-id"])) for name, message in rows]
    alive = [(name, pid) for name, pid in workers if pid in ours]
    if not alive:
        return "No worker is registered. Is `make run` running in another terminal?"
    name, pid = random.choice(alive)  # noqa: S311 - nothing here is a secret
    os.kill(pid, signal.SIGKILL)
    return f"Killed {name} (pid {pid}) with SIGKILL."


def processes(folder: Path) -> Iterator[psutil.Process]:
    """All processes that carry the demo's mark, this one excepted."""
    for process in psutil.process_iter():
        try:
            marked = process.environ().get(MARKER) == str(folder)
        except psutil.Error:
            continue
        if marked and process.pid != os.getpid():
            yield process


def stop_all(folder: Path) -> int:
    """Ends everything that carries the demo's mark; returns how many processes that were."""
    found = list(processes(folder))
    alive = found
    for send in (psutil.Process.terminate, psutil.Process.kill):
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                send(process)
        _, alive = psutil.wait_procs(alive, timeout=_STOP_SECONDS)
    return len(found)
