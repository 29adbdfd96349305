"""What of the ledger is counted for metrics, however long its past is?

The sums of the days that are settled, and the incidents that are in none of them yet: those of a
day or two, found by index.
"""

import json
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from dagster_amoro.core.counters import Counters, Seen
from dagster_amoro.stores import schema
from dagster_amoro.stores.database import Database, has_tables
from dagster_amoro.stores.day_sums import ALL_DAYS
from dagster_amoro.stores.schema import IS_OPEN, incident

_SEEN: Final = [incident.c[name] for name in Seen._fields]
_CHUNK: Final = 2_000  # rows that are held at once, should nobody have settled anything


class Counted(NamedTuple):
    """What the ledger counts up to one moment."""

    counters: Counters
    surveyed_at: datetime | None  # when the last survey was completed; None: none ever was


def read(database: Database) -> Counted:
    """Counts what a ledger has of all times, as it is at one moment; nothing where there is none.

    Raises:
        StoreUnavailableError: It does not answer, or an older version wrote it.
    """
    counters = Counters()
    if not has_tables(database, schema.ledger):
        return Counted(counters, None)
    with database.snapshot() as connection:
        columns = schema.ledger.c
        row = connection.execute(sa.select(columns.settled, columns.surveyed_at)).one()
        _add_sums(connection, counters)
        found = connection.execution_options(yield_per=_CHUNK).execute(_later(row.settled))
        for each in found:
            counters.add(Seen._make(each))
    return Counted(counters, row.surveyed_at)


def _add_sums(connection: sa.Connection, counters: Counters) -> None:
    of, names = schema.day.c, ("group_name", "attempts", "recovery", "causes")
    sums = sa.select(*(of[name] for name in names)).where(of.day == ALL_DAYS)
    for row in connection.execute(sums):
        took = {int(bucket): number for bucket, number in json.loads(row.recovery).items()}
        counters.add_sums(row.group_name, row.attempts, took, json.loads(row.causes))
    capacity = schema.capacity.c
    for group, first in connection.execute(sa.select(capacity.group_name, capacity.first_at)):
        counters.note_first(group, first)


def _later(settled: str | None) -> "sa.Select[Any] | sa.CompoundSelect[Any]":
    """The incidents that are in no sum: open by the end of the last settled day, or begun later.

    But those of a dry run, in which nothing was done.
    """
    query = sa.select(*_SEEN).where(incident.c.dry_run == 0)
    if settled is None:
        return query
    end = datetime.combine(date.fromisoformat(settled), time(), UTC) + timedelta(days=1)
    return sa.union_all(*_parts(query, end))


def _parts(query: "sa.Select[Any]", end: datetime) -> Iterator["sa.Select[Any]"]:
    earlier = query.where(incident.c.detected_at < end)
    yield query.where(incident.c.detected_at >= end)
    yield earlier.where(incident.c.closed_at >= end)
    yield earlier.where(IS_OPEN)
