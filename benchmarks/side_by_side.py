"""What do starts side by side leave of the time in which they would come one after the other?"""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from benchmarks.daemons import DEFAULT, QUICK_QUEUE, Location, daemon
from benchmarks.figures import Figure, Figures, seconds
from benchmarks.restart import instance_in, of, run
from benchmarks.servers import postgresql
from benchmarks.world import configure, neglect, no_runs, services_of
from dagster_amoro.core.ams_restart import AmsRestartDetector
from dagster_amoro.defs.restart_job import build_restart_job

_ORPHANS: Final = 1_000
_SECONDS: Final = 5.0  # that a start takes
_CONCURRENCY: Final = 100
_BOUND: Final = 1.2
_TIMES: Final = 10  # as many orphans, whose starts take nothing
_GROWTH_BOUND: Final = 1.1  # for each of those times


def figures(folder: Path) -> Figures:
    """Starts that take long, to the shortest time; then ten times as many that take nothing."""
    yield _long_starts(folder / "SQLite", None)
    with postgresql(folder / "server") as url:
        yield _long_starts(folder / "PostgreSQL", url)
    yield _many_starts(folder)


def _long_starts(folder: Path, url: sa.URL | None) -> Figure:
    """From the hand-over to the last start, in one run under Dagster's daemon."""
    keeper = {"max-concurrent-starts": _CONCURRENCY, "max-restarts-per-run": _ORPHANS}
    place = folder / DEFAULT.attribute
    configure(place, url=url, settings={"keeper": keeper}, seconds=_SECONDS)
    location = Location(place)
    with closing(location), daemon(folder, [DEFAULT], settings=QUICK_QUEUE):
        location.outage(1)
        ours = location.outage(_ORPHANS)
    name = f"{_ORPHANS:,} starts of {_SECONDS:g} s, {_CONCURRENCY} at once, {folder.name}"
    shortest = _ORPHANS * _SECONDS / _CONCURRENCY
    return Figure(name=name, ours=ours, bare=shortest, bound=_BOUND)


def _many_starts(folder: Path) -> Figure:
    """The few once before the many and once after them, in case the machine changes its pace."""
    before = _heal(folder / "before", _ORPHANS)
    many = _heal(folder / "many", _TIMES * _ORPHANS)
    after = _heal(folder / "after", _ORPHANS)
    name = f"{_TIMES * _ORPHANS:,} orphans restarted, to {_ORPHANS:,}"
    bound = _GROWTH_BOUND * _TIMES
    return Figure(name=name, ours=many, bare=(before + after) / 2, bound=bound)


def _heal(folder: Path, orphans: int) -> float:
    """Seconds for all ticks and all runs of so many orphans, in this process."""
    configure(folder)
    with closing(services_of(folder)) as services, instance_in(folder / "dagster") as instance:
        job = build_restart_job(services.restarter)

        def dispatches() -> Iterator[str]:
            while done := services.ticker.tick(no_runs, AmsRestartDetector()).dispatches:
                yield from (each.run_key for each in done)

        def heal() -> None:
            for run_key in dispatches():
                run(job, instance, of(run_key))

        neglect(services, orphans, 1)
        heal()  # loads what is loaded once, and starts the container's process
        neglect(services, 0, orphans)
        return seconds(heal)()
