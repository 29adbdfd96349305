"""One run in a process of its own: `python -m benchmarks.run_process FOLDER RUN_KEY`.

It prints how many MiB it and its container's process had at most, as a line of JSON.
"""

import json
import os
import re
import sys
from contextlib import closing
from pathlib import Path
from typing import Final

import psutil

from benchmarks.restart import instance_in, of, run
from benchmarks.world import services_of
from dagster_amoro.defs.restart_job import build_restart_job

_PEAK: Final = re.compile(r"VmHWM:\s+(\d+) kB")  # unlike getrusage's, it begins anew with a program


def main(folder: Path, run_key: str) -> None:
    """Executes what was dispatched under the key."""
    with closing(services_of(folder)) as services, instance_in(folder / run_key) as instance:
        run(build_restart_job(services.restarter), instance, of(run_key))
        hosts = psutil.Process().children()
        print(json.dumps([_peak(os.getpid()), sum(_peak(host.pid) for host in hosts)]))


def _peak(pid: int) -> float:
    (kilobytes,) = _PEAK.findall(Path(f"/proc/{pid}/status").read_text())
    return int(kilobytes) / 1024


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
