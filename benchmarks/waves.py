"""What does it cost to restart a thousand orphans in waves of fifty?"""

import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from time import process_time
from typing import Final, NamedTuple

import sqlalchemy as sa

from benchmarks.figures import Figure, Figures, peak, seconds
from benchmarks.world import close, configure, fill, no_runs, services_of
from dagster_amoro.core.ams_restart import AmsRestartDetector
from dagster_amoro.core.limits import Limits
from dagster_amoro.healing.assembly import Services
from dagster_amoro.stores.schema import incident

_ORPHANS: Final = 1_000
_WAVE: Final = 50
_WAVES: Final = _ORPHANS // _WAVE
_BOUND: Final = 1.1
_BOUND_OF_EACH: Final = 1.5  # one tick of 40 ms is disturbed more easily than twenty
_MEMORY_BOUND: Final = 1.2
_GROWTH_BOUND: Final = 1.2
_REPETITIONS: Final = 5
_LATER: Final = timedelta(days=2)  # by when every grace period is over

Measure = Callable[[Callable[[], object]], float]
"""What a piece of work takes."""


class _Rounds(NamedTuple):
    """One value for each of the twenty waves."""

    guarded: list[float]
    bare: list[float]


class _Fleet:
    """A thousand orphans whose incidents are open, and a services that ticks two days later."""

    def __init__(self, template: Path, folder: Path, limits: Limits) -> None:
        shutil.copytree(template, folder)
        later = datetime.now(UTC) + _LATER
        self._last_served: str | None = None
        self._services = replace(services_of(folder), clock=lambda: later, limits=limits)
        self._services.ledger.open_incidents()  # connects
        self._services.registry.read_snapshot()
        self._dispatched: set[int] = set()

    def tick(self) -> None:
        """The next tick of a sensor whose runs wait in the queue."""
        done = self._services.ticker.tick(
            no_runs, AmsRestartDetector(), last_served_group=self._last_served
        )
        self._last_served = done.plan.last_served_group
        self._dispatched = {i.incident_id for run in done.dispatches for i in run.incidents}

    def dispatched(self) -> set[int]:
        """The numbers of what the last tick gave to runs."""
        return self._dispatched

    def spare(self, but: Collection[int] = ()) -> None:
        """Nothing that is waiting is due, but for these."""
        number = incident.c.incident_id
        self._detect(number.not_in(but), _LATER)
        self._detect(number.in_(but), -_LATER)

    def close(self) -> None:
        """Closes its stores."""
        close(self._services)

    def _detect(self, chosen: sa.ColumnElement[bool], after: timedelta) -> None:
        at = self._services.clock() + after
        statement = sa.update(incident).where(chosen).values(detected_at=at)
        with self._services.ledger.database.writing() as connection:
            connection.execute(statement)


def figures(folder: Path) -> Figures:
    """Each wave, to a tick that dispatches as many, when no more are due and there is no limit."""
    template = folder / "template"
    configure(template)
    _open(services_of(template))
    times = _medians(template, folder / "times", _seconds, _REPETITIONS)
    peaks = _medians(template, folder / "peaks", peak, 1)
    for number, (ours, bare) in enumerate(zip(*times, strict=True), start=1):
        name = f"tick with wave {number} of {_WAVES}"
        yield Figure(name=name, ours=ours, bare=bare, unit="s CPU", bound=_BOUND_OF_EACH)
    yield _total(times)
    yield _largest(peaks)
    yield _growth("last five of these ticks, to the first five", times, "s CPU")
    yield _growth("memory of the last five, to the first five", peaks, "MiB")
    at_once = median(_at_once(template, folder / f"at once {n}") for n in range(_REPETITIONS))
    name = f"ticks of all waves, to one that dispatches {_ORPHANS:,}"
    yield Figure(name=name, ours=sum(times.guarded), bare=at_once, unit="s CPU")


def _open(services: Services) -> None:
    fill(services, _ORPHANS, one_in=1, in_order=True)
    services.ticker.tick(no_runs, AmsRestartDetector())
    close(services)


def _medians(template: Path, folder: Path, measure: Measure, repetitions: int) -> _Rounds:
    """Of each wave, and of its counterpart."""
    found = [_waves(template, folder / str(n), measure) for n in range(repetitions)]
    sides = zip(*(zip(*each, strict=True) for each in found), strict=True)
    waves = [tuple(map(median, zip(*pairs, strict=True))) for pairs in sides]
    guarded, bare = zip(*waves, strict=True)
    return _Rounds(list(guarded), list(bare))


def _waves(template: Path, folder: Path, measure: Measure) -> _Rounds:
    """Twenty ticks of each side in turn; both dispatch the same orphans."""
    limited = Limits(max_restarts=_WAVE)
    with (
        closing(_Fleet(template, folder / "guarded", limited)) as guarded,
        closing(_Fleet(template, folder / "bare", Limits())) as bare,
    ):
        return _Rounds(*map(list, zip(*_rounds(guarded, bare, measure), strict=True)))


def _rounds(guarded: _Fleet, bare: _Fleet, measure: Measure) -> Iterator[tuple[float, float]]:
    for _ in range(_WAVES):
        ours = measure(guarded.tick)
        chosen = guarded.dispatched()
        bare.spare(but=chosen)
        theirs = measure(bare.tick)
        if not len(chosen) == _WAVE == len(bare.dispatched()):
            raise SystemExit("a wave is not what it should be")
        yield ours, theirs


def _at_once(template: Path, folder: Path) -> float:
    with closing(_Fleet(template, folder, Limits())) as fleet:
        return _seconds(fleet.tick)


def _total(times: _Rounds) -> Figure:
    name = "ticks of all waves, to as many that have no more to do"
    ours, bare = map(sum, times)
    return Figure(name=name, ours=ours, bare=bare, unit="s CPU", bound=_BOUND)


def _largest(peaks: _Rounds) -> Figure:
    ours, bare = map(max, peaks)
    name = "memory of the largest of them"
    return Figure(name=name, ours=ours, bare=bare, unit="MiB", bound=_MEMORY_BOUND)


def _growth(name: str, rounds: _Rounds, unit: str) -> Figure:
    first, last = median(rounds.guarded[:5]), median(rounds.guarded[-5:])
    return Figure(name=name, ours=last, bare=first, unit=unit, bound=_GROWTH_BOUND)


def _seconds(work: Callable[[], object]) -> float:
    return seconds(work, process_time)()
