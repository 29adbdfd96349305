"""A code location without us: a sensor that requests a run of an empty job when it is told to."""

import os
import time
from pathlib import Path
from typing import Final

import dagster as dg

FOLDER: Final = "BENCHMARK_EMPTY_FOLDER"  # in the environment: where it is told, and tells
WANTED: Final = "wanted"  # a file that asks for a run
REQUESTED: Final = "requested"  # the time at which the sensor was evaluated
STARTED: Final = "started"  # the time at which the job did its work


@dg.definitions
def empty() -> dg.Definitions:
    """The whole location."""
    folder = Path(os.environ[FOLDER])

    @dg.op
    def do_nothing() -> None:
        (folder / STARTED).write_text(f"{time.time()}")

    @dg.job(executor_def=dg.in_process_executor)
    def empty_job() -> None:
        do_nothing()

    @dg.sensor(
        job=empty_job,
        minimum_interval_seconds=5,
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    def empty_sensor() -> dg.RunRequest | dg.SkipReason:
        if not (folder / WANTED).exists():
            return dg.SkipReason("nobody wants a run")
        (folder / REQUESTED).write_text(f"{time.time()}")
        (folder / WANTED).unlink()
        return dg.RunRequest()

    return dg.Definitions(jobs=[empty_job], sensors=[empty_sensor])
