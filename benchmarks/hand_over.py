"""How long does it take from the hand-over to a run to the first call of a container?"""

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
_QUIET_SECONDS: Final = 15.0  # without a run, so that the refresh of the audit is over


def figures(folder: Path) -> Figures:
    """One orphan of the whole code location, to an empty job of a location without us."""
    configure(folder)
    ours = Location(folder)
    with (
        closing(ours),
        daemon(folder, [DEFINITIONS, EMPTY], settings=QUICK_QUEUE) as instance,
    ):
        sides = (lambda: ours.outage(1), lambda: _empty_run(folder))
        quiet = [_after_quiet(instance, side) for side in sides]
        first_call, empty = interleaved(*quiet, repetitions=_REPETITIONS, warm_up=False)
    name = "hand-over to the first call of a container, to an empty job"
    yield Figure(name=name, ours=first_call, bare=empty, bound=_BOUND)


def _after_quiet(instance: dg.DagsterInstance, side: Callable[[], float]) -> Callable[[], float]:
    """The same side, once no run has been under way for a while."""

    def quiet() -> bool:
        return all(run.is_finished for run in instance.get_runs())

    def measured() -> float:
        wait_for(quiet, "all runs to end")
        time.sleep(_QUIET_SECONDS)
        wait_for(quiet, "all runs to end")
        return side()

    return measured


def _empty_run(folder: Path) -> float:
    """Seconds from the evaluation of the sensor to the work of the job."""
    started = folder / STARTED
    started.unlink(missing_ok=True)
    (folder / WANTED).touch()
    wait_for(lambda: started.exists() and started.read_text() != "", "an empty run")
    return float(started.read_text()) - float((folder / REQUESTED).read_text())
