"""What do the audit's checks cost, and does it grow with the past?"""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Final

import dagster as dg

from benchmarks.evaluating import Deployment
from benchmarks.figures import Figure, Figures, interleaved, peak, seconds
from benchmarks.pairs import Pair
from dagster_amoro.healing.assembly import Services

_REPETITIONS: Final = 11
_BOUND: Final = 2.0
_MEMORY_BOUND: Final = 1.2


def compared(pair: Pair, incidents: int) -> Figures:
    """An evaluation of the audit's sensor, with all checks, after years and without a past."""
    with ExitStack() as stack:
        evaluations = [
            _evaluation(pair, services, pair.folder / f"checks {number}", stack)
            for number, services in enumerate(pair.both)
        ]
        sides = [seconds(each, pair.clock) for each in evaluations]
        ours, bare = interleaved(*sides, repetitions=_REPETITIONS)
        name = f"all checks after {incidents:,} incidents, {pair.database}"
        yield Figure(name=name, ours=ours, bare=bare, unit=pair.unit, bound=_BOUND)
        peaks = [partial(peak, each) for each in evaluations]
        ours, bare = interleaved(*peaks, repetitions=_REPETITIONS)
        name = f"memory of all checks, {pair.database}"
        yield Figure(name=name, ours=ours, bare=bare, unit="MiB", bound=_MEMORY_BOUND)


def _evaluation(
    pair: Pair, services: Services, folder: Path, stack: ExitStack
) -> Callable[[], object]:
    folder.mkdir()
    instance = stack.enter_context(dg.DagsterInstance.ephemeral(tempdir=str(folder)))
    deployment = Deployment(services, instance, pair.now)
    return lambda: deployment.evaluate("audit_sensor", is_recorded=False)
