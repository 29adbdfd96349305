"""A worker of the demo: registers, keeps its heartbeat going and pretends to compact files."""

import argparse
import itertools
import signal
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from types import FrameType

from dagster_amoro.config import load_settings
from dagster_amoro.worker import Heartbeat

_BEAT = timedelta(seconds=1)
_PAUSE_SECONDS = 5.0  # between two lines of the log


def main(arguments: Sequence[str]) -> None:
    """Works until it is killed; SIGTERM ends it in order."""
    signal.signal(signal.SIGTERM, _leave)
    options = _parser().parse_args(arguments)
    if options.never_register:
        print("cannot find its licence, will never register", flush=True)  # noqa: T201 - its log
        _work()
        return
    with Heartbeat(
        load_settings().database_url,
        resource_id=options.resource_id,
        group_name=options.group_name,
        container_name=options.container_name,
        thread_count=options.thread_count,
        interval=_BEAT,
    ):
        _work()


def _leave(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)  # leaves the heartbeat's block, which unregisters


def _work() -> None:
    for number in itertools.count(1):
        print(f"compacted {number} files", flush=True)  # noqa: T201 - its log file
        time.sleep(_PAUSE_SECONDS)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--resource-id", default="")
    parser.add_argument("--group-name", default="")
    parser.add_argument("--container-name", default="")
    parser.add_argument("--thread-count", type=int, default=1)
    parser.add_argument("--never-register", action="store_true")
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
