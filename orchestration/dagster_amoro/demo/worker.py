"""A worker of the demo: registers, keeps its heartbeat going and pretends to compact files."""

import itertools
import signal
import time
from datetime import timedelta
from types import FrameType
from typing import Any

import click

from dagster_amoro.config import load_settings
from dagster_amoro.worker import Heartbeat

_BEAT = timedelta(seconds=1)
_PAUSE_SECONDS = 5.0  # between two lines of the log


@click.command()
@click.option("--resource-id", default="")
@click.option("--group-name", default="")
@click.option("--container-name", default="")
@click.option("--thread-count", default=1)
@click.option("--never-register", is_flag=True)
def main(*, never_register: bool, **worker: Any) -> None:  # noqa: ANN401 - what a heartbeat says
    """Works until it is killed; SIGTERM ends it in order."""
    signal.signal(signal.SIGTERM, _leave)
    if never_register:
        print("cannot find its licence, will never register", flush=True)  # noqa: T201 - its log
        _work()
        return
    with Heartbeat(load_settings().database_url, interval=_BEAT, **worker):
        _work()


def _leave(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)  # leaves the heartbeat's block, which unregisters


def _work() -> None:
    for number in itertools.count(1):
        print(f"compacted {number} files", flush=True)  # noqa: T201 - its log file
        time.sleep(_PAUSE_SECONDS)


if __name__ == "__main__":
    main()
