"""Does what a tick, its news, `status`, the checks and the figures cost grow with what is past?

To the same on a ledger without a past, in the same kind of database.
"""

from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from benchmarks import past_checks, past_reliability
from benchmarks.figures import Figure, Figures, interleaved, peak, seconds
from benchmarks.ledgers import EVENTS
from benchmarks.pairs import Pair, pairs
from benchmarks.world import no_runs
from dagster_amoro.core.ams_restart import AmsRestartDetector
from dagster_amoro.defs.cursor import Cursor
from dagster_amoro.defs.sensor import read_news
from dagster_amoro.healing.assembly import Services
from dagster_amoro.stores.schema import event

_INCIDENTS: Final = 1_000_000  # with ten events each
_OVER: Final = timedelta(days=365)
_REPETITIONS: Final = 51
_TICK_BOUND: Final = 1.2
_STATUS_BOUND: Final = 2.0
_MEMORY_BOUND: Final = 1.2


def figures(folder: Path) -> Figures:
    """On SQLite, PostgreSQL and MariaDB; a database with a past is filled once for all of them."""
    for pair in pairs(folder, _INCIDENTS, _OVER):
        yield from _compared(pair)
        yield from past_checks.compared(pair, _INCIDENTS)
        yield from past_reliability.compared(pair, _INCIDENTS)


def _compared(pair: Pair) -> Figures:
    number = f"{_INCIDENTS * EVENTS:,} events, {pair.database}"
    for name, work, bound in (
        ("a tick with its news", _tick, _TICK_BOUND),
        ("status", _status, _STATUS_BOUND),
    ):
        sides = [seconds(partial(work, each), pair.clock) for each in pair.both]
        ours, bare = interleaved(*sides, repetitions=_REPETITIONS)
        yield Figure(name=f"{name}, {number}", ours=ours, bare=bare, unit=pair.unit, bound=bound)
    peaks = [partial(peak, partial(_status, each)) for each in pair.both]
    ours, bare = interleaved(*peaks, repetitions=_REPETITIONS)
    name = f"memory of status, {number}"
    yield Figure(name=name, ours=ours, bare=bare, unit="MiB", bound=_MEMORY_BOUND)
    lost = [seconds(partial(read_news, s.ledger, Cursor()), pair.clock)() for s in pair.both]
    ours, bare = lost
    yield Figure(name=f"news to a lost cursor, {number}", ours=ours, bare=bare, unit=pair.unit)


def _tick(services: Services) -> None:
    """As the sensor does; the last events of the ledger are its news."""
    services.ticker.tick(no_runs, AmsRestartDetector())
    with services.ledger.reading() as connection:
        newest = connection.scalars(sa.select(sa.func.max(event.c.event_id))).one()
    read_news(services.ledger, Cursor(event=newest - 3))


def _status(services: Services) -> None:
    services.status.read()
