"""What does it cost to bring a group's history up to date, and does it grow with what is past?"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from time import process_time
from typing import Final

import pandas as pd
import sqlalchemy as sa
from upath import UPath

from benchmarks.figures import Figure, Figures, interleaved, peak, seconds
from benchmarks.ledgers import add_incidents, rebuilding
from dagster_amoro.stores.database import Database
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro.stores.schema import event, incident
from dagster_amoro_audit.history_store import HistoryFolder
from dagster_amoro_audit.refresh import refresh

_GROUPS: Final = 1_000
_INCIDENTS: Final = 1_000_000  # of these groups, with ten events each
_LONG: Final = 10_000  # incidents of the group with the long past, at the same pace
_PAST: Final = timedelta(days=30)  # of a group; ten times that for the one with the long past
_START: Final = datetime(2026, 1, 1, tzinfo=UTC)
_BOUND: Final = 2.0
_GROWTH_BOUND: Final = 1.25


def figures(folder: Path) -> Figures:
    """A first refresh, one after ten new events, and the memory of both."""
    ledger = Ledger(Database(sa.URL.create("sqlite", database=str(folder / "l.db")), "ledger"))
    _fill(ledger)
    yield from _first(ledger, folder)
    yield from _next(ledger, folder)
    ledger.database.close()


def _first(ledger: Ledger, folder: Path) -> Figures:
    """Within 10 days, and shown only, within 30: every day costs two files besides its rows."""
    for group, days, bound in (("busy", 10, _BOUND), ("group-7", 30, None)):
        works = _works(ledger, folder, group)
        name = f"history, first refresh, 10,000 events of 10,000,000, in {days} days"
        # CPU seconds: SQLite is in this process.
        ours, bare = interleaved(*(seconds(work, process_time) for work in works), repetitions=7)
        yield Figure(name=name, ours=ours, bare=bare, unit="s CPU", bound=bound)
    ours, bare = (peak(work) for work in works)
    yield Figure(name="history, memory of it", ours=ours, bare=bare, unit="MiB", bound=_BOUND)


def _works(ledger: Ledger, folder: Path, group: str) -> tuple[Callable[[], object], ...]:
    folders = (HistoryFolder(UPath(folder / f"{group}-{number}")) for number in count())
    return lambda: _refresh(ledger, next(folders), group), lambda: _bare(ledger, group)


def _next(ledger: Ledger, folder: Path) -> Figures:
    def ten_more(group: str, days: int) -> Callable[[], float]:
        files = HistoryFolder(UPath(folder / group))
        now = _START + timedelta(days=days, hours=12)
        _refresh(ledger, files, group, now)
        hours = count(1)

        def once() -> float:
            then = now + timedelta(hours=next(hours))
            _add_events(ledger, group, 1, then - timedelta(minutes=30))
            return seconds(lambda: _refresh(ledger, files, group, then), process_time)()

        return once

    ours, bare = interleaved(
        ten_more("long", 10 * _PAST.days), ten_more("group-8", _PAST.days), repetitions=11
    )
    name = "history, refresh by 10 events after 100,000 and after 10,000"
    yield Figure(name=name, ours=ours, bare=bare, unit="s CPU", bound=_GROWTH_BOUND)


def _refresh(
    ledger: Ledger, files: HistoryFolder, group: str, now: datetime = _START + _PAST
) -> None:
    """What the asset does, apart from Dagster."""
    files.tail(refresh(ledger, files, group, now).position, now)


def _bare(ledger: Ledger, group: str) -> list[pd.DataFrame]:
    with ledger.reading() as connection:
        return [
            pd.read_sql(sa.select(table).where(table.c.group_name == group), connection)
            for table in (event, incident)
        ]


def _fill(ledger: Ledger) -> None:
    """Ten million events of a month; a group with ten such months, and one with all in ten days."""
    pace = _PAST * _GROUPS / _INCIDENTS
    with rebuilding(ledger) as connection:
        add_incidents(connection, _LONG, start=_START, pace=pace, groups="long")
        busy = _INCIDENTS // _GROUPS
        add_incidents(connection, busy, start=_START, pace=pace / 3, groups="busy")
        every = pace / _GROUPS
        add_incidents(connection, _INCIDENTS, start=_START, pace=every, groups=_GROUPS)


def _add_events(ledger: Ledger, group: str, number: int, at: datetime) -> None:
    """Some more incidents of a group."""
    with ledger.database.writing() as connection:
        pace = timedelta(seconds=1)
        add_incidents(connection, number, start=at, pace=pace, groups=group)
