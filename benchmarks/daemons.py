"""Dagster's own daemon, with code locations that restart orphans."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

import dagster as dg
import sqlalchemy as sa

from benchmarks import empty_location, locations
from benchmarks.world import close, neglect, services_of, stamps
from dagster_amoro.core.model import EventKind
from dagster_amoro.stores.schema import event

QUICK_QUEUE: Final = {"run_queue": {"dequeue_interval_seconds": 1}}
"""What the demo's `dagster.yaml` says, and the docs advise; Dagster's default is 5."""

_CHECKOUT: Final = Path(__file__).parents[1]
_DAEMON: Final = Path(sys.executable).with_name("dagster-daemon")
_LIMIT_SECONDS: Final = 300
_STOP_SECONDS: Final = 30


class Place(NamedTuple):
    """Where the definitions of a code location are."""

    module: str
    attribute: str  # which is also what the location is called


RUN_PER_ORPHAN: Final = Place(locations.__name__, locations.RUN_PER_ORPHAN)
DEFAULT: Final = Place(locations.__name__, locations.DEFAULT)
DEFINITIONS: Final = Place("dagster_amoro.definitions", "defs")
EMPTY: Final = Place(empty_location.__name__, "empty")


class Location:
    """A code location that restarts, with the registry that is configured in its folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._services = services_of(folder)
        self._orphans = 0

    def outage(self, orphans: int) -> float:
        """Seconds from the tick that sees these orphans due to the start of the last of them."""
        neglect(self._services, self._orphans, orphans)
        self._orphans += orphans
        what = f"the restart of {orphans} orphans of {self._folder.name}"
        wait_for(lambda: len(stamps(self._folder)) >= self._orphans, what)
        return stamps(self._folder)[-1] - self._last_tick()

    def close(self) -> None:
        """Closes its stores."""
        close(self._services)

    def _last_tick(self) -> float:
        """When the last dispatch was; a tick reads the clock once, before it writes."""
        query = sa.select(sa.func.max(event.c.at)).where(event.c.kind == EventKind.DISPATCHED)
        with self._services.ledger.reading() as connection:
            return float(connection.execute(query).scalar_one().timestamp())


@contextmanager
def daemon(
    folder: Path, places: Sequence[Place], *, settings: Mapping[str, object] | None = None
) -> Iterator[dg.DagsterInstance]:
    """Dagster's daemon with these code locations, which are configured in this folder.

    Args:
        folder: Where its home is made, which is that of the instance that comes out.
        places: Where the definitions are.
        settings: What differs from Dagster's own defaults.
    """
    home = folder / "dagster"
    home.mkdir()
    (home / "dagster.yaml").write_text(
        json.dumps({"telemetry": {"enabled": False}, **(settings or {})})
    )
    (home / "workspace.yaml").write_text(json.dumps(_workspace(places)))
    environment = {
        "DAGSTER_HOME": str(home),
        "AMORO_CONF_DIR": str(folder),
        locations.FOLDER: str(folder),
        empty_location.FOLDER: str(folder),
    }
    instance = dg.DagsterInstance.from_config(str(home))  # makes its tables, before the daemon
    log = home / "daemon.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [_DAEMON, "run", "-w", home / "workspace.yaml"],
            cwd=_CHECKOUT,
            env=os.environ | environment,
            stdout=output,
            stderr=output,
            start_new_session=True,  # so that all of it can be ended
        )
    try:
        yield instance
    except TimeoutError as error:
        raise SystemExit(
            f"{error}; the end of the daemon's log:\n{log.read_text()[-3000:]}"
        ) from None
    finally:
        _stop(process)
        instance.dispose()


def _workspace(places: Sequence[Place]) -> dict[str, object]:
    return {
        "load_from": [
            {
                "python_module": {
                    "module_name": place.module,
                    "attribute": place.attribute,
                    "location_name": place.attribute,
                    "working_directory": str(_CHECKOUT),
                }
            }
            for place in places
        ]
    }


def wait_for(holds: Callable[[], bool], what: str) -> None:
    """Waits until it holds; a TimeoutError says that it took too long."""
    deadline = time.monotonic() + _LIMIT_SECONDS
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited for {what} for {_LIMIT_SECONDS} s")
        time.sleep(0.1)


def _stop(daemon: subprocess.Popen[bytes]) -> None:
    daemon.send_signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        daemon.wait(_STOP_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(daemon.pid, signal.SIGKILL)
