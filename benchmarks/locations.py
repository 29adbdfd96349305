"""The two code locations that `benchmarks.thousand` compares, as Dagster loads them."""

import os
from pathlib import Path
from typing import Final

import dagster as dg

from benchmarks.world import services_of
from dagster_amoro.defs.restart_job import build_restart_job
from dagster_amoro.defs.scale_up_job import build_scale_up_job
from dagster_amoro.defs.sensor import build_orphan_sensor

FOLDER: Final = "BENCHMARK_FOLDER"  # in the environment: where the folder of each location is
RUN_PER_ORPHAN: Final = "run_per_orphan"
DEFAULT: Final = "default"


@dg.definitions
def run_per_orphan() -> dg.Definitions:
    """The bare counterpart: a run for each orphan."""
    return _restarts(RUN_PER_ORPHAN)


@dg.definitions
def default() -> dg.Definitions:
    """The configuration's default."""
    return _restarts(DEFAULT)


def _restarts(name: str) -> dg.Definitions:
    """What restarts; the audit, which is refreshed beside it, is left out."""
    services = services_of(Path(os.environ[FOLDER]) / name)
    restart, scale_up = build_restart_job(services.restarter), build_scale_up_job(services.scaler)
    sensor = build_orphan_sensor(services.ticker, restart, scale_up)
    return dg.Definitions(jobs=[restart, scale_up], sensors=[sensor])
