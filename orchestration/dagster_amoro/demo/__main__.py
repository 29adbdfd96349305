"""`python -m dagster_amoro.demo run`: a fleet, Dagster's UI and daemon, until Ctrl-C."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Final

import click
import sqlalchemy as sa

from dagster_amoro.config import load_settings
from dagster_amoro.core import pages
from dagster_amoro.core.formatting import duration
from dagster_amoro.core.policy import RestartPolicy
from dagster_amoro.core.texts import shown, shown_lines
from dagster_amoro.demo import fleet
from dagster_amoro.healing.assembly import Services
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro.stores.schema import event, incident

_HOST: Final = "127.0.0.1"  # never reachable from outside this machine
_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_START_SECONDS: Final = 120
_STOP_SECONDS: Final = 30


@click.command()
@click.argument("command", type=click.Choice(["run", "chaos"]))
@click.option(
    "--folder",
    type=click.Path(path_type=Path, resolve_path=True),
    default=".dagster-amoro",
    help="Holds everything it makes.",
)
@click.option("--port", default=3000, help="Of the UI, if it is free.")
def main(command: str, folder: Path, port: int) -> None:
    """Runs a small fleet that is kept alive by Dagster, or kills one of its workers (chaos)."""
    if command == "chaos":
        _say(fleet.kill_one(folder))
        return
    for number in _ENDING:
        signal.signal(number, _stop)
    with suppress(KeyboardInterrupt):
        _run(folder, port)


def _run(folder: Path, port: int) -> None:
    services = _prepare(folder)
    try:
        _say(f"Starting the fleet and Dagster, all of it under {folder} …")
        applied = fleet.start_fleet(services)
        _say(f"The fleet: {shown_lines(applied.lines())}")
        with _dagster(folder, port) as (dagster, address):
            _wait_until_up(dagster, address)
            _introduce(services.policy, folder, address, len(applied.done))
            _follow(services.ledger, dagster)
    finally:
        for number in _ENDING:
            signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C must not leave workers behind
        _say(f"Stopped {fleet.stop_all(folder)} processes. Bye.")
        services.close()


def _prepare(folder: Path) -> Services:
    """Makes the folder, ends what an earlier demo left, and wires this demo's parts."""
    home = folder / "dagster"
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "dagster.yaml").exists():  # a user's own stays as it is
        shutil.copy(fleet.CONF / "dagster.yaml", home)
    if left := fleet.stop_all(folder):
        _say(f"Stopped {left} processes of a demo that did not end in order.")
    os.environ.update(fleet.environment(folder))
    # The fleet's commands say "python": it is to be the one that runs this.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    _end_runs()
    return Services.connect(load_settings())


def _end_runs() -> None:
    """Ends the runs that an earlier demo left; their assets would wait for them for ever."""
    import dagster as dg  # noqa: PLC0415 - chaos does without

    status = dg.DagsterRunStatus
    under_way = [status.NOT_STARTED, status.STARTING, status.STARTED, status.CANCELING]
    with dg.DagsterInstance.get() as instance:
        for run in instance.get_runs(dg.RunsFilter(statuses=under_way)):
            instance.report_run_canceled(run, message="The demo was stopped before its end.")


@contextmanager
def _dagster(folder: Path, port: int) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Dagster's web server and daemon, and their address; stopped at the end."""
    port = _free_port(port)
    command = [sys.executable, "-m", "dagster", "dev", "-w", str(fleet.CONF / "workspace.yaml")]
    with (folder / "dagster.log").open("ab") as log:
        process = subprocess.Popen(  # noqa: S603 - our own argv, nothing from outside
            [*command, "-h", _HOST, "-p", str(port)],
            cwd=folder,  # not the caller's, from which Python could import something else
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C reaches it through us, after which workers stop
        )
    try:
        yield process, f"http://{_HOST}:{port}"
    finally:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)


def _free_port(wanted: int) -> int:
    """The port wanted, or another one where it is taken."""
    for port in (wanted, 0):
        with socket.socket() as probe, suppress(OSError):
            probe.bind((_HOST, port))
            return int(probe.getsockname()[1])
    raise OSError("no free port on this machine")


def _wait_until_up(dagster: subprocess.Popen[bytes], address: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and dagster.poll() is None:
        ready = f"{address}/server_info"  # on this machine, http
        with suppress(OSError), urllib.request.urlopen(ready, timeout=5):  # noqa: S310
            return
        time.sleep(0.5)
    raise SystemExit("Dagster did not start; its log, dagster.log, says why.")


def _introduce(policy: RestartPolicy, folder: Path, address: str, started: int) -> None:
    grace = duration(policy.grace_period)
    text = f"""
A fleet of {started} workers is kept alive by Dagster: {address}

  look    {address}{pages.FLEET}
  watch   {address}/locations/dagster-amoro/sensors/orphan_sensor
          {address}/runs
          {address}/assets/orphan_history
  try     make chaos    in another terminal: kills a worker with SIGKILL. Its heartbeat expires
                        after 5 s, its grace period of {grace} follows, then it is restarted.
          {fleet.HOPELESS} never registers, whatever is tried: it is given up after
                        {policy.max_retries} attempts.
          Group {fleet.SIZED} has no worker and a min-parallelism of 2: a run starts one.
  logs    {folder / "dagster" / "workers"} and {folder / "dagster.log"}
  stop    Ctrl-C

What is written into the ledger, as it happens:
"""
    _say(shown_lines(text.split("\n")))


def _follow(ledger: Ledger, dagster: subprocess.Popen[bytes]) -> None:
    """Prints each new event of the ledger until Dagster ends."""
    about = sa.func.coalesce(incident.c.resource_id, event.c.group_name, "everything")
    query = (
        sa.select(event.c.event_id, event.c.at, event.c.message, about.label("about"))
        .join(incident, incident.c.incident_id == event.c.incident_id, isouter=True)
        .order_by(event.c.event_id)
    )
    last = 0
    while dagster.poll() is None:
        with ledger.reading() as connection:
            for row in connection.execute(query.where(event.c.event_id > last)):
                _say(f"{row.at:%H:%M:%S} UTC  {row.about}: {row.message}")
                last = row.event_id
        time.sleep(1)
    raise SystemExit("Dagster ended by itself; its log, dagster.log, says why.")


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _say(text: str) -> None:
    print(shown(text), flush=True)  # noqa: T201 - a program for a terminal


if __name__ == "__main__":
    main(prog_name="python -m dagster_amoro.demo")
