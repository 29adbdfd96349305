"""A ledger with a past: many incidents that are over, written by the database itself.

By the names of the columns and without numbers of its own, so that it follows the schema.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles

from dagster_amoro.core.model import EventKind, State
from dagster_amoro.stores.database import is_mysql
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro.stores.schema import UtcDateTime, event, incident, removed_row

Expression = sa.ColumnElement[Any]

EVENTS: Final = 10
"""How many events each incident of the past has."""
LONGEST: Final = timedelta(seconds=240)
"""How long an incident of the past lasts at most; a minute at least."""
_WORKERS: Final = 50  # of each group, of which one after the other has its incident
_AT_ONCE: Final = 100_000  # incidents that one statement writes: what it sorts stays in memory
_RUN: Final = "0b7e9a3c-6d0f-4a53-9a0e-4f5c2d1e8b77"
# The event, the second of its incident, its message, the attempt that it is of, its details.
_STORY: Final = (
    (
        *(EventKind.DETECTED, 0, "no optimizer stands for this resource", None),
        '{"wanted": 8, "live": 6, "grace_seconds": 30.0, "max_retries": 5}',
    ),
    (EventKind.DISPATCHED, 30, "given to a run (dispatch 1)", None, "{}"),
    (EventKind.CLAIMED, 31, "claimed by its run", None, "{}"),
    (EventKind.ATTEMPT, 32, "attempt 1 begins", 1, "{}"),
    (EventKind.ATTEMPT_FAILED, 33, "attempt 1 failed: port 4711 is in use", 1, "{}"),
    (EventKind.ATTEMPT, 43, "attempt 2 begins", 2, "{}"),
    (EventKind.ATTEMPT_FAILED, 44, "attempt 2 failed: port 4711 is in use", 2, "{}"),
    (EventKind.ATTEMPT, 54, "attempt 3 begins", 3, "{}"),
    (
        *(EventKind.STARTED, 55, "attempt 3 started it (job-id 17)", 3),
        '{"startup": {"job-id": "17"}}',
    ),
    (
        *(EventKind.RECOVERED, None, "an optimizer registered for it after attempt 3", 3),
        '{"wanted": 8, "live": 8}',
    ),
)


def fill(ledger: Ledger, incidents: int, *, groups: int, over: timedelta, before: datetime) -> None:
    """Gives a ledger so many incidents, with ten events each, in the groups `group-0` and so on.

    All have ended before a moment; they began evenly over the time until then.
    """
    with rebuilding(ledger) as connection:
        pace = (over - LONGEST) / max(incidents, 1)
        add_incidents(connection, incidents, start=before - over, pace=pace, groups=groups)


@contextmanager
def rebuilding(ledger: Ledger) -> Iterator[sa.Connection]:
    """A transaction in which much is added: the indexes are made anew at its end, at once.

    A server's planner then knows what is there, as it would after years.
    """
    ledger.open_incidents()  # makes the tables
    indexes = [*incident.indexes, *event.indexes, *removed_row.indexes]
    with ledger.database.writing() as connection:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("PRAGMA cache_size = -500000")  # of this connection; KiB
        for index in indexes:
            index.drop(connection)
        yield connection
        for index in indexes:
            index.create(connection)
        analyse(connection)
    engine = ledger.database.engine
    if engine.dialect.name == "postgresql":  # else it does so by itself, beside what is measured
        with engine.connect() as connection:
            connection.execution_options(isolation_level="AUTOCOMMIT").exec_driver_sql("VACUUM")
    ledger.database.close()  # in SQLite, its log goes into the file


def analyse(connection: sa.Connection) -> None:
    """Lets a server's planner know what is there; nobody does so for an SQLite file."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("ANALYZE")
    elif is_mysql(connection.dialect):
        connection.exec_driver_sql(
            "ANALYZE TABLE keeper_incident, keeper_event, keeper_removed_row"
        )


def add_incidents(
    connection: sa.Connection,
    number: int,
    *,
    start: datetime,
    pace: timedelta,
    groups: int | str,
) -> None:
    """Adds incidents that are over, one each `pace` from `start` on, with their events.

    They are of so many groups in turn, or all of the one with this name.
    """
    first = 0
    while first < number:
        some = min(_AT_ONCE, number - first)
        newest = sa.select(sa.func.coalesce(sa.func.max(incident.c.incident_id), 0))
        before = connection.scalars(newest).one()
        connection.execute(_incidents(first, some, start, pace, groups))
        connection.execute(_events(before))
        connection.execute(_kept_rows(before))
        first += some


def _incidents(
    first: int, number: int, start: datetime, pace: timedelta, groups: int | str
) -> sa.Insert:
    i = _numbers(first, number)
    group: Expression = sa.literal(groups, sa.String())
    worker = sa.literal("worker-", sa.String()) + _text(i % _WORKERS)
    if isinstance(groups, int):
        group = sa.literal("group-", sa.String()) + _text(i % groups)
        worker = sa.literal("worker-", sa.String()) + _text(i % (groups * _WORKERS))
    detected = i * pace.total_seconds()
    lasting = sa.literal(60) + (i * 37) % (LONGEST.seconds - 60)
    columns = incident.c
    values = {
        columns.resource_id: worker,
        columns.group_name: group,
        columns.container_name: sa.literal("local"),
        columns.thread_count: sa.literal(2),
        columns.state: sa.literal(State.RECOVERED, columns.state.type),
        columns.detected_at: shifted(sa.literal(start, UtcDateTime()), detected),
        columns.attempts: sa.literal(3),
        columns.dispatches: sa.literal(1),
        columns.closed_at: shifted(sa.literal(start, UtcDateTime()), detected + lasting),
        columns.version: sa.literal(EVENTS - 1),
    }
    return sa.insert(incident).from_select(list(values), sa.select(*values.values()).order_by(i))


def _events(after: int) -> sa.Insert:
    """The events of all incidents after that of this number."""
    story = sa.union_all(*(_line(number, *line) for number, line in enumerate(_STORY))).cte("story")
    columns, of = event.c, incident.c
    at = sa.case(
        (story.c.second.is_(None), of.closed_at),
        else_=shifted(of.detected_at, sa.func.coalesce(story.c.second, 0)),
    )
    values = {
        columns.incident_id: of.incident_id,
        columns.group_name: of.group_name,
        columns.kind: story.c.kind,
        columns.at: at,
        columns.message: story.c.message,
        columns.attempt: story.c.attempt,
        columns.run_id: story.c.run_id,
        columns.details: story.c.details,
    }
    query = sa.select(*values.values()).join_from(
        incident, story, of.incident_id + story.c.number > 0
    )
    query = query.where(of.incident_id > after).order_by(of.incident_id, story.c.number)
    return sa.insert(event).from_select(list(values), query)


def _kept_rows(after: int) -> sa.Insert:
    """The rows of their resources as they were started."""
    of, kept = incident.c, removed_row.c
    row = (
        '{"resource_id": "worker", "group_name": "group", "properties": "{\\"job-id\\": \\"17\\"}"}'
    )
    columns = [kept.incident_id, kept.kept_at, kept.content]
    query = sa.select(of.incident_id, of.closed_at, sa.literal(row)).order_by(of.incident_id)
    return sa.insert(removed_row).from_select(columns, query.where(of.incident_id > after))


def _line(  # noqa: PLR0913, PLR0917 - the columns of an event
    number: int, kind: str, second: int | None, message: str, attempt: int | None, details: str
) -> sa.Select[Any]:
    values: dict[str, Expression] = {
        "number": sa.literal(number),
        "kind": sa.literal(str(kind)),
        "second": sa.cast(sa.literal(second, sa.Integer()), sa.Integer),
        "message": sa.literal(message),
        "attempt": sa.cast(sa.literal(attempt, sa.Integer()), sa.Integer),
        "run_id": sa.cast(sa.literal(_RUN if attempt else None, sa.String()), sa.String(100)),
        "details": sa.literal(details),
    }
    return sa.select(*(value.label(name) for name, value in values.items()))


def _text(number: Expression) -> Expression:
    return sa.cast(number, sa.String(20))


def _numbers(first: int, number: int) -> Expression:
    """So many numbers from `first` on, as a column.

    Each gives those with a digit more: a recursive query may not go far in every database.
    """
    digits = sa.union_all(*(sa.select(sa.literal(each).label("digit")) for each in range(10)))
    start = digits.cte("digits")
    found = sa.select(start.c.digit.label("n")).where(start.c.digit.between(1, number))
    numbers = found.cte("numbers", recursive=True)
    longer = numbers.c.n * 10 + start.c.digit
    more = sa.select(longer).select_from(numbers.join(start, longer <= number))
    return numbers.union_all(more).c.n + (first - 1)


class shifted(sa.sql.functions.FunctionElement[datetime]):  # noqa: N801 - named like a function
    """A time of the ledger, so many seconds later."""

    type = UtcDateTime()
    inherit_cache = True


@compiles(shifted)
def _shifted(later: shifted, compiler: Any, **options: Any) -> str:  # noqa: ANN401 - SQLAlchemy's
    time, seconds = (compiler.process(each, **options) for each in later.clauses)
    return {
        "sqlite": f"strftime('%Y-%m-%d %H:%M:%f000', {time}, ({seconds}) || ' seconds')",
        "postgresql": f"CAST({time} AS timestamp) + ({seconds}) * interval '1 second'",
    }.get(compiler.dialect.name, f"timestampadd(microsecond, round(({seconds}) * 1000000), {time})")
