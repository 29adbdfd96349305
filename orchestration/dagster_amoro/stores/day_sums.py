"""The audit's sums of the days that are over: in which rows they are kept, read and written.

What goes into them is the audit's to say, see `dagster_amoro_audit.settling`.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from dagster_amoro.core.model import EventKind
from dagster_amoro.stores import bulk, schema
from dagster_amoro.stores.audit_queries import INCIDENT, naive
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro.stores.schema import IS_OPEN, event, incident

ALL_DAYS: Final = ""  # the day of the rows that sum all settled days
Row = Mapping[str, Any]

_GROUP: Final = incident.c.group_name.label("group")
_LONGEST_ERROR: Final = 200  # characters that are read; fewer are shown
_COLUMNS: Final = (
    _GROUP,
    *INCIDENT,
    sa.func.substr(incident.c.last_error, 1, _LONGEST_ERROR).label("last_error"),
)
_ENDS: Final = (EventKind.RECOVERED, EventKind.RELEASED, EventKind.SUPERSEDED)
_NOTED: Final = (EventKind.DETECTED, *_ENDS)  # by ticks, with the threads of the group
_HAS_THREADS: Final = sa.type_coerce(event.c.details, sa.Text).like("%wanted%")


class Sums(NamedTuple):
    """Rows of sums, by the columns of their tables."""

    day: str | None  # the last day that is settled, `YYYY-MM-DD`; None: none is
    incidents: Sequence[Row]  # of `keeper_day`, a row per group and container
    capacity: Sequence[Row]  # of `keeper_capacity`, a row per group


def read(ledger: Ledger) -> Sums:
    """The sums of all days that are settled, as they are at one moment."""
    with ledger.reading():  # makes the tables
        pass
    every = sa.select(schema.day).where(schema.day.c.day == ALL_DAYS)
    with ledger.database.snapshot() as connection:
        return Sums(
            connection.scalar(sa.select(schema.ledger.c.settled)),
            [row._asdict() for row in connection.execute(every)],
            [row._asdict() for row in connection.execute(sa.select(schema.capacity))],
        )


def settle(ledger: Ledger, before: str | None, day: Sums, totals: Sums) -> bool:
    """Writes a day's rows, and the new totals of whatever it changes, in one transaction.

    The last settled day was `before`. False: another process settled one meanwhile, and nothing
    was written.
    """
    mark = schema.ledger.c.settled
    moved = sa.update(schema.ledger).where(mark.is_not_distinct_from(before))
    with ledger.transaction() as transaction:
        connection = transaction.connection
        if not connection.execute(moved.values(settled=day.day)).rowcount:
            return False
        new = [{**row, "day": ALL_DAYS} for row in totals.incidents]
        _put(connection, schema.day, new)
        _put(connection, schema.day, [{**row, "day": day.day} for row in day.incidents])
        _put(connection, schema.capacity, totals.capacity)
    return True


def _put(connection: sa.Connection, table: sa.Table, rows: Sequence[Row]) -> None:
    for first in range(0, len(rows), bulk.ROWS):
        bulk.rewrite(connection, table, rows[first : first + bulk.ROWS])


def first_detection(ledger: Ledger) -> datetime | None:
    """When the first incident of the ledger was detected, aware UTC; None: there is none."""
    with ledger.reading() as connection:
        found: datetime | None = connection.scalar(sa.select(sa.func.min(incident.c.detected_at)))
        return found


def incidents() -> sa.Select[Any]:
    """A query for incidents, but those of a dry run: they say nothing about a group."""
    return sa.select(*_COLUMNS).where(incident.c.dry_run == 0)


def detected(since: datetime, until: datetime) -> sa.Select[Any]:
    """The incidents that were detected from a moment on, and before another."""
    return incidents().where(incident.c.detected_at >= since, incident.c.detected_at < until)


def going_on(at: datetime) -> sa.CompoundSelect[Any]:
    """The incidents that were detected before a moment and were not over by then."""
    earlier = incidents().where(incident.c.detected_at < at)
    return earlier.where(incident.c.closed_at >= at).union_all(earlier.where(IS_OPEN))


def live(since: datetime) -> sa.CompoundSelect[Any]:
    """The incidents that are open, or ended from a moment on."""
    return incidents().where(incident.c.closed_at >= since).union_all(incidents().where(IS_OPEN))


def newest(since: datetime, limit: int) -> sa.Select[Any]:
    """How the last incidents went that were detected since then, the newest first."""
    names = ("detected", "attempts", "state", "closed")
    columns = [column for column in INCIDENT if column.name in names]
    recent = sa.select(*columns).where(incident.c.dry_run == 0, incident.c.detected_at >= since)
    return recent.order_by(incident.c.detected_at.desc()).limit(limit)


def notes(since: datetime, until: datetime) -> sa.CompoundSelect[Any]:
    """What ticks noted of groups' threads from a moment on, and before another, as JSON texts.

    With the incidents that they noted it for, since these are found by their time.
    """
    begun = _notes(incident.c.detected_at, [EventKind.DETECTED], since, until)
    return begun.union_all(_notes(incident.c.closed_at, _ENDS, since, until))


def noted_before(since: datetime, first_event: int) -> sa.Select[Any]:
    """The last note before a moment, of each group that was settled with a note after it.

    The events from the moment on begin with `first_event`.
    """
    last = (
        sa.select(event.c.details)
        .where(event.c.group_name == schema.capacity.c.group_name)
        .where(event.c.event_id < first_event, event.c.kind.in_(_NOTED), _HAS_THREADS)
        .order_by(event.c.event_id.desc())
        .limit(1)
    )
    details = sa.func.coalesce(last.scalar_subquery(), "{}").label("details")
    groups = sa.select(schema.capacity.c.group_name.label("group"), details)
    return groups.where(schema.capacity.c.noted_at >= since)


def _notes(
    at: "sa.Column[Any]", kinds: Iterable[EventKind], since: datetime, until: datetime
) -> sa.Select[Any]:
    number, details = event.c.event_id.label("event"), event.c.details.label("details")
    return (
        sa.select(_GROUP, naive(at).label("at"), number, details)
        .join_from(incident, event, event.c.incident_id == incident.c.incident_id)
        .where(at >= since, at < until, event.c.kind.in_(kinds))
    )
