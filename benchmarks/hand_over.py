"""How long does it take from the hand-over to a run to the first call of a container?

The daemon looks into the queue every second, so how long a run waits there is chance, which would
outweigh what is measured. On both sides the mean of that wait stands for what it was.
"""

import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final

import dagster as dg

from benchmarks.daemons import DEFINITIONS, EMPTY, QUICK_QUEUE, Location, daemon, wait_for
from benchmarks.empty_location import REQUESTED, STARTED, WANTED
from benchmarks.figures import Figure, Figures, interleaved
from benchmarks.world import configure

_BOUND: Final = 1.2
_REPETITIONS: Final = 5
_MEAN_WAIT: Final = 0.5  # seconds in the queue, with QUICK_QUEUE
_QUIET_SECONDS: Final = 15.0  # without a run, so that the refresh of the audit is over


def figures(folder: Path) -> Figures:
    """One orphan of the whole code location, to an empty job of a location without us."""
    configure(folder)
    ours = Location(folder)
    with (
        closing(ours),
        daemon(folder, [DEFINITIONS, EMPTY], settings=QUICK_QUEUE) as instance,
    ):
        quiet = [
            _after_quiet(instance, lambda: ours.outage(1), "restart_orphans"),
            _after_quiet(instance, lambda: _empty_run(folder), "empty_job"),
        ]
        first_call, empty = interleaved(*quiet, repetitions=_REPETITIONS, warm_up=False)
    name = "hand-over to the first call of a container, to an empty job"
    yield Figure(name=name, ours=first_call, bare=empty, bound=_BOUND)


def _after_quiet(
    instance: dg.DagsterInstance, side: Callable[[], float], job: str
) -> Callable[[], float]:
    """The same side, once no run has been under way for a while; its job waited for the mean."""

    def quiet() -> bool:
        return all(run.is_finished for run in instance.get_runs())

    def measured() -> float:
        wait_for(quiet, "all runs to end")
        time.sleep(_QUIET_SECONDS)
        wait_for(quiet, "all runs to end")
        return side() - _waited(instance, job) + _MEAN_WAIT

    return measured


def _waited(instance: dg.DagsterInstance, job: str) -> float:
    """Seconds for which the newest run of this job was in the queue."""
    (newest,) = instance.get_runs(dg.RunsFilter(job_name=job), limit=1)
    stats = instance.get_run_stats(newest.run_id)
    return (stats.launch_time or 0) - (stats.enqueued_time or 0)


def _empty_run(folder: Path) -> float:
    """Seconds from the evaluation of the sensor to the work of the job."""
    started = folder / STARTED
    started.unlink(missing_ok=True)
    (folder / WANTED).touch()
    wait_for(lambda: started.exists() and started.read_text() != "", "an empty run")
    return float(started.read_text()) - float((folder / REQUESTED).read_text())
