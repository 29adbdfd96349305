"""`python -m benchmarks [name ...]`: prints the figures; 1 if one is not within its bound."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from benchmarks import (
    attached,
    hand_over,
    heal,
    history,
    idle_day,
    imports,
    mass,
    past,
    quiet_tick,
    restart,
    side_by_side,
    sizes,
    stored_events,
    survey,
    thousand,
    waves,
    workers,
)
from benchmarks.figures import Figures, heading

BENCHMARKS: Final[dict[str, Callable[[Path], Figures]]] = {
    "imports": imports.figures,
    "survey": survey.figures,
    "attached": attached.figures,
    "quiet_tick": quiet_tick.figures,
    "restart": restart.figures,
    "thousand": thousand.figures,
    "side_by_side": side_by_side.figures,
    "workers": workers.figures,
    "stored_events": stored_events.figures,
    "hand_over": hand_over.figures,
    "waves": waves.figures,
    "mass": mass.figures,
    "past": past.figures,
    "sizes": sizes.figures,
    "history": history.figures,
    "idle_day": idle_day.figures,
    "heal": heal.figures,
}


def main(names: Sequence[str]) -> int:
    """Runs the benchmarks of these names; without names, all."""
    unknown = sorted(set(names) - set(BENCHMARKS))
    if unknown:
        print(f"There is no {', '.join(unknown)}; there are: {', '.join(BENCHMARKS)}.")
        return 2
    print(heading(), flush=True)
    held = [_run(BENCHMARKS[name]) for name in names or BENCHMARKS]
    return 0 if all(held) else 1


def _run(benchmark: Callable[[Path], Figures]) -> bool:
    """Prints the figures as they are taken; returns whether all are within their bounds."""
    held = True
    # Who waits for a worker to end may write down how it did while the folder is removed.
    with TemporaryDirectory(prefix="benchmark-", ignore_cleanup_errors=True) as folder:
        os.environ["DAGSTER_HOME"] = folder  # where containers leave their files
        for figure in benchmark(Path(folder)):
            print(figure, flush=True)
            held &= figure.held
    return held


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
