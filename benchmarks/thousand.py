"""How long does it take to restart a thousand orphans?"""

from contextlib import closing
from pathlib import Path
from typing import Final

from benchmarks.daemons import DEFAULT, RUN_PER_ORPHAN, Location, daemon
from benchmarks.figures import Figure, Figures, interleaved
from benchmarks.world import configure

_MANY: Final = 1_000
_FEW: Final = 20  # runs of one orphan each, from which a run for each of many is extrapolated
_BOUND: Final = 1 / 30
_REPETITIONS: Final = 2


def figures(folder: Path) -> Figures:
    """A thousand orphans in runs of 200, to a thousand runs of one orphan."""
    configure(folder / RUN_PER_ORPHAN.attribute, settings={"keeper": {"max-restarts-per-run": 1}})
    configure(folder / DEFAULT.attribute)
    places = (RUN_PER_ORPHAN, DEFAULT)
    bare, ours = (Location(folder / place.attribute) for place in places)
    with closing(bare), closing(ours), daemon(folder, places):
        for location in (bare, ours):
            location.outage(1)
        sides = (lambda: ours.outage(_MANY), lambda: bare.outage(_FEW) * _MANY / _FEW)
        batched, extrapolated = interleaved(*sides, repetitions=_REPETITIONS, warm_up=False)
    name = f"{_MANY:,} orphans restarted, to a run for each"
    yield Figure(name=name, ours=batched, bare=extrapolated, bound=_BOUND)
