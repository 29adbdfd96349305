"""How long does it take to restart a thousand orphans?"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from benchmarks import locations
from benchmarks.figures import Figure, Figures, interleaved
from benchmarks.world import close, configure, neglect, services_of, stamps
from dagster_amoro.core.model import EventKind
from dagster_amoro.stores.schema import event

_CHECKOUT: Final = Path(__file__).parents[1]
_DAEMON: Final = Path(sys.executable).with_name("dagster-daemon")
_MANY: Final = 1_000
_FEW: Final = 20  # runs of one orphan each, from which a run for each of many is extrapolated
_BOUND: Final = 1 / 30
_REPETITIONS: Final = 2
_LIMIT_SECONDS: Final = 300
_STOP_SECONDS: Final = 30


class _Location:
    """A code location, with a registry of its own."""

    def __init__(self, folder: Path, *, max_restarts: int = 200) -> None:
        configure(folder, max_restarts=max_restarts)
        self._folder = folder
        self._services = services_of(folder)
        self._orphans = 0

    def outage(self, orphans: int) -> float:
        """Seconds from the tick that sees these orphans due to the start of the last of them."""
        neglect(self._services, self._orphans, orphans)
        self._orphans += orphans
        deadline = time.monotonic() + _LIMIT_SECONDS
        while len(stamps(self._folder)) < self._orphans:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self._folder.name} did not restart {orphans} orphans")
            time.sleep(0.1)
        return stamps(self._folder)[-1] - self._last_tick()

    def close(self) -> None:
        close(self._services)

    def _last_tick(self) -> float:
        """When the last dispatch was; a tick reads the clock once, before it writes."""
        query = sa.select(sa.func.max(event.c.at)).where(event.c.kind == EventKind.DISPATCHED)
        with self._services.ledger.reading() as connection:
            return float(connection.execute(query).scalar_one().timestamp())


def figures(folder: Path) -> Figures:
    """A thousand orphans in runs of 200, to a thousand runs of one orphan."""
    bare = _Location(folder / locations.RUN_PER_ORPHAN, max_restarts=1)
    ours = _Location(folder / locations.DEFAULT)
    with closing(bare), closing(ours), _daemon(folder):
        for location in (bare, ours):
            location.outage(1)
        sides = (lambda: ours.outage(_MANY), lambda: bare.outage(_FEW) * _MANY / _FEW)
        batched, extrapolated = interleaved(*sides, repetitions=_REPETITIONS, warm_up=False)
    name = f"{_MANY:,} orphans restarted, to a run for each"
    yield Figure(name=name, ours=batched, bare=extrapolated, bound=_BOUND)


@contextmanager
def _daemon(folder: Path) -> Iterator[None]:
    """Dagster's daemon, with its own defaults, and both code locations."""
    home = folder / "dagster"
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
    (home / "workspace.yaml").write_text(json.dumps(_workspace()))
    environment = {"DAGSTER_HOME": str(home), locations.FOLDER: str(folder)}
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
        yield
    except TimeoutError as error:
        raise SystemExit(
            f"{error}; the end of the daemon's log:\n{log.read_text()[-3000:]}"
        ) from None
    finally:
        _stop(process)


def _workspace() -> dict[str, object]:
    names = (locations.RUN_PER_ORPHAN, locations.DEFAULT)
    module = {"module_name": locations.__name__, "working_directory": str(_CHECKOUT)}
    return {
        "load_from": [
            {"python_module": {**module, "attribute": name, "location_name": name}}
            for name in names
        ]
    }


def _stop(daemon: subprocess.Popen[bytes]) -> None:
    daemon.send_signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        daemon.wait(_STOP_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(daemon.pid, signal.SIGKILL)
