"""How is the history of a group brought up to date? By what its ledger has that is new."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

import pandas as pd
import sqlalchemy as sa

from dagster_amoro.stores import audit_queries
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro_audit.frames import History, events_frame, incidents_frame
from dagster_amoro_audit.history_store import HistoryFolder, Position, first_day

_ROWS_AT_ONCE: Final = 20_000  # events that a refresh holds in memory


class Refreshed(NamedTuple):
    """What a refresh of one group did."""

    position: Position  # how far the history goes now
    new_incidents: int
    new_events: int
    is_another_ledger: bool  # the older history was set aside


def refresh(
    ledger: Ledger,
    folder: HistoryFolder,
    group: str,
    now: datetime,
    retention: timedelta | None = None,
) -> Refreshed:
    """Brings the files of a group up to date with the ledger.

    Reads what is newer than the stored position, and a little before it, where events can have
    come to light since. If the event at the position is not in this ledger, the files are those of
    another ledger: they are set aside, and the history begins anew. Incidents and events that are
    older than the retention are not kept; None: all are.

    Raises:
        StoreUnavailableError: The ledger did not answer. What was read before is stored.
    """
    position = folder.position()
    is_ours = not position.event or audit_queries.may_have_had(
        ledger, group, position.event, datetime.fromisoformat(position.event_at)
    )
    if not is_ours:
        folder.set_aside(position)
        position = Position()
    oldest = first_day(now, retention)
    new_incidents = new_events = 0
    for increment in increments(ledger, group, position.settled):
        position, incidents, events = folder.merge(increment, position, now=now, oldest=oldest)
        new_incidents += incidents
        new_events += events
    position = folder.expire(position, oldest)
    return Refreshed(position, new_incidents, new_events, is_another_ledger=not is_ours)


def increments(ledger: Ledger, group: str, after_event: int) -> Iterator[History]:
    """The events of a group after one, in parts that fit into memory, each with its incidents."""
    while True:
        with ledger.reading() as connection:
            query = audit_queries.event_history(group, after_event, _ROWS_AT_ONCE)
            events = events_frame(_read(query, connection))
            if events.empty:
                return
            first, last = int(events["event"].iloc[0]), int(events["event"].iloc[-1])
            query = audit_queries.incident_history(group, (first, last))
            incidents = incidents_frame(_read(query, connection))
        yield History(incidents, events)
        if len(events) < _ROWS_AT_ONCE:
            return
        after_event = last


def _read(query: sa.Select[Any], connection: sa.Connection) -> pd.DataFrame:
    try:
        # In the types of the frames from the start: a conversion would take as long as the reading.
        return pd.read_sql(query, connection, dtype_backend="numpy_nullable")
    except pd.errors.DatabaseError as error:  # it shows the statement; the ledger knows its cause
        raise error.__cause__ or error from None
