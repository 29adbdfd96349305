"""What of the ledger's past may be deleted, and how is that done without holding anybody up?

In batches, by index, each in a transaction of its own: whoever is killed in the middle has deleted
whole incidents only, and of two that prune at once the later one finds nothing left to do.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

import sqlalchemy as sa

from dagster_amoro.core.model import State
from dagster_amoro.stores import schema
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro.stores.schema import event, incident, removed_row

_REMOVED: Final = incident.c.state.in_([State.EXHAUSTED, State.SUPERSEDED])
_BEGINNING: Final = datetime(1970, 1, 1, tzinfo=UTC)
_BATCH: Final = 500  # incidents of one transaction, or events of no incident


class Past(NamedTuple):
    """An incident that is over, or an event that belongs to none."""

    incident: int | None
    group: str | None  # None: it concerns every group
    event: int  # the newest of the incident, or the event
    events: int = 1  # how many
    is_needed: bool = False  # it removed its resource, which was never seen again


def settled_before(ledger: Ledger, until: datetime) -> datetime:
    """The moment, or the end of the last day in the sums if that is earlier."""
    with ledger.reading() as connection:
        settled = connection.scalar(sa.select(schema.ledger.c.settled))
    if settled is None:
        return _BEGINNING
    return min(until, datetime.fromisoformat(settled).replace(tzinfo=UTC) + timedelta(days=1))


def newest_event(ledger: Ledger) -> int:
    """The newest event of a group: from it on, all stay, since readers know the ledger by it.

    0 where it is so far back, behind events of no group, that it is not worth looking for.
    """
    newest = sa.select(sa.func.max(event.c.event_id))
    with ledger.reading() as connection:
        last: int = connection.scalar(newest) or 0
        near = event.c.event_id > last - _BATCH, event.c.group_name.is_not(None)
        return connection.scalar(newest.where(*near)) or 0


def incidents(ledger: Ledger, until: datetime) -> Iterator[list[Past]]:
    """The incidents that ended before a moment, the oldest first, in batches.

    So the earlier incidents of a resource go before its later ones.
    """
    later = incident.alias()
    again = sa.exists().where(
        later.c.resource_id == incident.c.resource_id,
        later.c.incident_id > incident.c.incident_id,
    )
    needed = sa.and_(_REMOVED, ~again).label("is_needed")
    columns = incident.c
    order = columns["closed_at", "group_name", "incident_id"]  # that of the index
    at, group, number = _BEGINNING, "", 0
    while True:
        same = sa.and_(columns.group_name == group, columns.incident_id > number)
        follows = sa.or_(columns.closed_at > at, columns.group_name > group, same)
        query = (
            sa.select(*order, needed)
            .where(columns.closed_at >= at, columns.closed_at < until, follows)
            .order_by(*order)
            .limit(_BATCH)
        )
        with ledger.reading() as connection:
            found = connection.execute(query).all()
            stories = _stories(connection, [row.incident_id for row in found])
        if not found:
            return
        yield [
            Past(row.incident_id, row.group_name, *stories[row.incident_id], bool(row.is_needed))
            for row in found
        ]
        last = found[-1]
        at, group, number = last.closed_at, last.group_name, last.incident_id


def events(ledger: Ledger, until: datetime) -> Iterator[list[Past]]:
    """The events before a moment that belong to no incident, in batches, the oldest first."""
    query = sa.select(event.c.event_id, event.c.group_name)
    query = query.where(event.c.incident_id.is_(None), event.c.at < until)
    after = 0
    while True:
        following = query.where(event.c.event_id > after).order_by(event.c.event_id)
        with ledger.reading() as connection:
            found = connection.execute(following.limit(_BATCH)).all()
        if not found:
            return
        yield [Past(None, group, number) for number, group in found]
        after = found[-1].event_id


def delete(ledger: Ledger, past: Sequence[Past]) -> None:
    """Deletes incidents with their events and the rows that are kept with them, or events."""
    with ledger.transaction() as transaction:
        connection = transaction.connection
        numbers = [each.incident for each in past if each.incident is not None]
        # Whoever deletes the same at this moment waits here, and finds nothing afterwards.
        there = sa.select(incident.c.incident_id).where(incident.c.incident_id.in_(numbers))
        numbers = [*connection.scalars(there.order_by(incident.c.incident_id).with_for_update())]
        for table in (event, removed_row, incident) if numbers else ():
            connection.execute(sa.delete(table).where(table.c.incident_id.in_(numbers)))
        alone = [each.event for each in past if each.incident is None]
        if alone:
            connection.execute(sa.delete(event).where(event.c.event_id.in_(alone)))


def _stories(connection: sa.Connection, numbers: Sequence[int]) -> dict[int, tuple[int, int]]:
    """By incident: its newest event, and how many it has."""
    query = sa.select(event.c.incident_id, sa.func.max(event.c.event_id), sa.func.count())
    query = query.where(event.c.incident_id.in_(numbers)).group_by(event.c.incident_id)
    found = {number: (newest, many) for number, newest, many in connection.execute(query)}
    return {number: found.get(number, (0, 0)) for number in numbers}
