"""What does it cost to bring a group's history up to date, and does it grow with what is past?"""

import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from time import process_time
from typing import Final

import pandas as pd
import sqlalchemy as sa
from upath import UPath

from benchmarks.figures import Figure, Figures, interleaved, seconds
from dagster_amoro.stores.database import Database
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro.stores.schema import event, incident
from dagster_amoro_audit.history_store import HistoryFolder
from dagster_amoro_audit.refresh import refresh

_GROUPS: Final = 1_000
_INCIDENTS: Final = 2_000_000  # of these groups, with five events each
_LONG: Final = 20_000  # incidents of the group with the long past, at the same pace
_PAST: Final = timedelta(days=30)  # of a group; ten times that for the one with the long past
_START: Final = datetime(2026, 1, 1, tzinfo=UTC)
_BOUND: Final = 2.0
_GROWTH_BOUND: Final = 1.25

# Incidents from :first on, of the group :group or, without one, of all groups in turn.
_NEW_INCIDENTS: Final = """
    WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < :number)
    INSERT INTO keeper_incident (incident_id, resource_id, group_name, container_name,
        thread_count, state, detected_at, attempts, dispatches, closed_at, version)
    SELECT :first + i, 'worker-' || (i % 50), coalesce(:group, 'group-' || (i % 1000)), 'local',
        2, 'recovered', strftime('%Y-%m-%d %H:%M:%f000', :start, (i * :pace) || ' seconds'), 1, 1,
        strftime('%Y-%m-%d %H:%M:%f000', :start, (i * :pace + 120) || ' seconds'), 5
    FROM n"""
_NEW_EVENTS: Final = """
    WITH kinds(k, kind, after, message, details) AS (VALUES
        (1, 'detected', 0, 'no optimizer stands for this resource',
            '{"wanted": 8, "live": 6, "grace_seconds": 30.0, "max_retries": 5}'),
        (2, 'dispatched', 30, 'handed to a run (dispatch 1)', '{}'),
        (3, 'attempt', 32, 'attempt 1 begins', '{}'),
        (4, 'started', 33, 'attempt 1 started it (job-id 17)', '{"startup": {"job-id": "17"}}'),
        (5, 'recovered', 120, 'registered after attempt 1', '{"wanted": 8, "live": 8}'))
    INSERT INTO keeper_event (event_id, incident_id, group_name, kind, at, message, attempt,
        run_id, details)
    SELECT (incident_id - 1) * 5 + k, incident_id, group_name, kind,
        strftime('%Y-%m-%d %H:%M:%f000', detected_at, after || ' seconds'), message,
        CASE WHEN k > 2 THEN 1 END,
        CASE WHEN k IN (3, 4) THEN '0b7e9a3c-6d0f-4a53-9a0e-4f5c2d1e8b77' END, details
    FROM keeper_incident CROSS JOIN kinds WHERE incident_id >= :first ORDER BY incident_id, k"""


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
    ours, bare = (_peak(work) for work in works)
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
            _add_events(ledger, group, 2, then - timedelta(minutes=30))
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


def _peak(work: Callable[[], object]) -> float:
    """What Python holds at most during some work, in MiB."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()


def _fill(ledger: Ledger) -> None:
    """Ten million events of a month; a group with ten such months, and one with all in ten days."""
    with ledger.reading():  # makes the tables
        pass
    with ledger.database.writing() as connection:
        indexes = [*event.indexes, *(i for i in incident.indexes if not i.unique)]
        for index in indexes:
            index.drop(connection)  # to make them at once is faster
        pace = _PAST.total_seconds() / (_INCIDENTS / _GROUPS)
        _insert(connection, _LONG, pace, _START, "long")
        _insert(connection, _INCIDENTS // _GROUPS, pace / 3, _START, "busy")
        _insert(connection, _INCIDENTS, pace / _GROUPS, _START)
        for index in indexes:
            index.create(connection)


def _add_events(ledger: Ledger, group: str, number: int, at: datetime) -> None:
    """Some more incidents of a group, with five events each."""
    with ledger.database.writing() as connection:
        _insert(connection, number, 1.0, at, group)


def _insert(
    connection: sa.Connection, number: int, pace: float, at: datetime, group: str | None = None
) -> None:
    newest = connection.scalar(sa.select(sa.func.max(incident.c.incident_id))) or 0
    values = {"first": newest + 1, "number": number, "pace": pace, "group": group}
    start = f"{at:%Y-%m-%d %H:%M:%S}"
    connection.execute(sa.text(_NEW_INCIDENTS), {**values, "start": start})
    connection.execute(sa.text(_NEW_EVENTS), {"first": newest + 1})
