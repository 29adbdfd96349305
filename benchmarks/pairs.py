"""Two deployments of which only one has a past, in each kind of database."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import perf_counter, process_time
from typing import Final

import sqlalchemy as sa

from benchmarks.ledgers import fill
from benchmarks.servers import of_each_kind
from benchmarks.world import close, fill_small, no_runs, services_on
from dagster_amoro.core.ams_restart import AmsRestartDetector
from dagster_amoro.healing.assembly import Services

GROUPS: Final = 20
_RESOURCES: Final = 500
_ONE_IN: Final = 100  # of them is an orphan, in its grace period
_QUIET: Final = timedelta(days=8)  # since the past: the windows of the figures are shorter


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """A deployment with a past and one without, with the same fleet and the same open incidents."""

    database: str  # the kind of both databases
    past: Services
    empty: Services
    now: datetime
    clock: Callable[[], float]  # the seconds that count
    unit: str  # of this clock
    folder: Path  # for what has to be kept

    @property
    def both(self) -> tuple[Services, Services]:
        """The one with a past, then the one without."""
        return self.past, self.empty


def pairs(folder: Path, incidents: int, over: timedelta) -> Iterator[Pair]:
    """On SQLite, PostgreSQL and MariaDB; one has a past of so many incidents over such a time."""
    for database, server in of_each_kind(folder):
        yield from _pair(folder / database, server, database, incidents, over)


def _pair(
    folder: Path, server: sa.URL | None, database: str, incidents: int, over: timedelta
) -> Iterator[Pair]:
    past, empty = (services_on(server, folder / name) for name in ("past", "empty"))
    now = datetime.now(UTC)
    fill(past.ledger, incidents, groups=GROUPS, over=over, before=now - _QUIET)
    for services in (past, empty):
        fill_small(services, _RESOURCES, groups=GROUPS, one_in=_ONE_IN)
        services.ticker.tick(no_runs, AmsRestartDetector())  # opens the incidents
    is_here = server is None  # SQLite works in the process that asks
    yield Pair(
        database=database,
        past=past,
        empty=empty,
        now=now,
        clock=process_time if is_here else perf_counter,
        unit="s CPU" if is_here else "s",
        folder=folder,
    )
    close(past)
    close(empty)
