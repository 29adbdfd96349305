"""Two Dagster deployments on one registry: real daemons, and a book of what they start."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple
from uuid import uuid4

import dagster as dg
import psutil
import sqlalchemy as sa
from dagster._core.scheduler.instigation import InstigatorTick

from dagster_amoro.core.model import Resource
from dagster_amoro.demo.fleet import MARKER, processes

_BOOK: Final = "book"  # the file that every start and release is written to
_CHECKOUT: Final = Path(__file__).parents[2]
# Only what is tested: no audit; the queue of runs is looked at every second.
_DAGSTER_YAML: Final = """\
telemetry:
  enabled: false
auto_materialize:
  enabled: false
  use_sensors: false
run_coordinator:
  module: dagster.core.run_coordinator
  class: QueuedRunCoordinator
  config:
    dequeue_interval_seconds: 1
"""
# Dagster looks at its sensors every 5 s; with this, every second. A code server that was frozen
# for 20 s would end, and take a minute to come back.
_DAEMON: Final = """
from dagster._daemon import cli, controller, sensor
sensor.MIN_INTERVAL_LOOP_TIME = 1
controller.DAEMON_GRPC_SERVER_HEARTBEAT_TTL = 600
cli.main()
"""


class Line(NamedTuple):
    """A line of the book."""

    at: float  # seconds since the epoch
    what: str  # start or release
    resource_id: str
    deployment: str
    launch: str  # what was started, or is to be released; empty: nothing is known to be


class BookContainer:
    """Writes each start and release into a book, and lets a test hold a deployment there.

    Its property `folder` says where the book is. While there is a file `hold-<what>-<deployment>`
    in that folder, that deployment does not come back from there.
    """

    supports_auto_restart = True

    def __init__(self, name: str, properties: Mapping[str, str]) -> None:
        self.name = name
        self._folder = Path(properties["folder"])

    def request_resource(self, resource: Resource) -> Mapping[str, str]:
        """A start, each with a number of its own."""
        launch = uuid4().hex
        self._write("start", resource, launch)
        return {"launch": launch}

    def release_resource(self, resource: Resource) -> None:
        """The end of a start."""
        self._write("release", resource, resource.properties.get("launch", ""))

    def _write(self, what: str, resource: Resource, launch: str) -> None:
        deployment = os.environ["KEEPER_DEPLOYMENT"]
        line = json.dumps([time.time(), what, resource.resource_id, deployment, launch])
        with (self._folder / _BOOK).open("a") as book:
            book.write(f"{line}\n")
        while (self._folder / f"hold-{what}-{deployment}").exists():
            (self._folder / f"held-{what}-{deployment}").touch()
            time.sleep(0.02)


def read_book(folder: Path) -> list[Line]:
    """What was started and released, oldest first."""
    book = folder / _BOOK
    return [Line(*json.loads(text)) for text in book.read_text().splitlines() if text]


@dataclass
class Deployment:
    """A Dagster daemon of its own, with its code server and its runs."""

    name: str
    folder: Path
    database: sa.URL
    directory: Path = _CHECKOUT  # that its processes are started in
    instance: dg.DagsterInstance = field(init=False)
    _daemon: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.home.mkdir()
        (self.home / "dagster.yaml").write_text(_DAGSTER_YAML)
        self.instance = dg.DagsterInstance.from_config(str(self.home))
        with (self.folder / f"{self.name}.log").open("wb") as log:
            self._daemon = subprocess.Popen(
                [sys.executable, "-c", _DAEMON, "run", "-w", str(_CHECKOUT / "workspace.yaml")],
                cwd=self.directory,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def home(self) -> Path:
        """Its `DAGSTER_HOME`, which also marks its processes."""
        return self.folder / self.name

    @property
    def log(self) -> str:
        """What its daemon printed."""
        return (self.folder / f"{self.name}.log").read_text()

    def hold(self, what: str) -> None:
        """Holds it at its next start or release."""
        (self.folder / f"hold-{what}-{self.name}").touch()

    def is_held(self, what: str) -> bool:
        """Whether it is held there."""
        return (self.folder / f"held-{what}-{self.name}").exists()

    def let_go(self, what: str) -> None:
        """Lets it go on, as soon as it runs."""
        (self.folder / f"hold-{what}-{self.name}").unlink()

    def freeze(self) -> None:
        """Stops all of its processes where they are, as a host that is paused does."""
        stopped: set[int] = set()
        while found := {process.pid for process in processes(self.home)} - stopped:
            for pid in found:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
            stopped |= found

    def thaw(self) -> None:
        """Lets them go on."""
        for process in processes(self.home):
            with suppress(psutil.NoSuchProcess):
                process.resume()

    def ticks(self, since: float = 0) -> list[InstigatorTick]:
        """Its sensor's ticks that began at or after a time and are over, oldest first."""
        found = [
            tick
            for state in self.instance.all_instigator_state()
            if state.name == "orphan_sensor"
            for tick in self.instance.get_ticks(state.instigator_origin_id, state.selector_id)
        ]
        done = [tick for tick in found if tick.timestamp >= since and tick.end_timestamp]
        return sorted(done, key=lambda tick: tick.timestamp)

    def has_no_run_under_way(self) -> bool:
        """Whether all runs that it ever had have ended."""
        return all(run.is_finished for run in self.instance.get_runs())

    def stop(self) -> None:
        """Ends all of it, wherever it is."""
        for process in processes(self.home):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._daemon.wait()
        self.instance.dispose()

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            MARKER: str(self.home),
            "DAGSTER_HOME": str(self.home),
            "AMORO_CONF_DIR": str(self.folder),
            "AMS_DATABASE_URL": self.database.render_as_string(hide_password=False),
            "KEEPER_DEPLOYMENT": self.name,
            "PYTHONPATH": os.pathsep.join([str(_CHECKOUT), os.environ.get("PYTHONPATH", "")]),
        }
