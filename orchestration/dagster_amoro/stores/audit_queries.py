"""What only the audit asks of the ledger: whole histories, group by group, in the audit's words.

Times are UTC without a zone: to give one to each of many thousands takes as long as to read them.
"""

from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from dagster_amoro.core.model import EventKind
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro.stores.schema import event, incident

# The kinds of events whose details hold the threads of the group, as a tick counted them.
_WITH_THREADS: Final = (
    EventKind.DETECTED,
    EventKind.RECOVERED,
    EventKind.EXHAUSTED,
    EventKind.RELEASED,
    EventKind.SUPERSEDED,
)


def naive(time: sa.Column[Any]) -> sa.ColumnElement[datetime]:
    """A column of times without their zone."""
    return sa.type_coerce(time, sa.DateTime())


INCIDENT: Final = (  # what every frame of incidents has
    incident.c.incident_id.label("incident"),
    incident.c.resource_id.label("resource"),
    incident.c.container_name.label("container"),
    incident.c.thread_count.label("threads"),
    naive(incident.c.detected_at).label("detected"),
    incident.c.attempts,
    incident.c.cause,
    sa.type_coerce(incident.c.state, sa.String).label("state"),
    naive(incident.c.closed_at).label("closed"),
)


def incident_history(group_name: str, events: tuple[int, int] | None = None) -> sa.Select[Any]:
    """A query for incidents of a group, oldest first, or for those that some events are about.

    The details, a JSON text, are those of the event that opened the incident. Of `events`, the
    first and the last number are given, both included; None: all incidents.
    """
    opening = sa.and_(
        event.c.incident_id == incident.c.incident_id, event.c.kind == EventKind.DETECTED
    )
    query = (
        sa.select(
            incident.c.group_name.label("group"),
            *INCIDENT,
            incident.c.death,
            incident.c.last_error,
            event.c.details,
        )
        .join_from(incident, event, opening, isouter=True)
        .where(incident.c.group_name == group_name)
        .order_by(incident.c.incident_id)
    )
    if events is None:
        return query
    concerned = sa.select(event.c.incident_id).where(
        event.c.group_name == group_name, event.c.event_id.between(*events)
    )
    return query.where(incident.c.incident_id.in_(concerned))


def event_history(group_name: str, after_event: int, limit: int) -> sa.Select[Any]:
    """A query for the next events of a group, in the order they were written.

    Those that are no step of an incident have neither its number nor a resource. Details, a JSON
    text, are left out where they hold no threads of the group: they can be long.
    """
    details = sa.case((event.c.kind.in_(_WITH_THREADS), event.c.details), else_=None)
    return (
        sa.select(
            event.c.group_name.label("group"),
            event.c.event_id.label("event"),
            event.c.incident_id.label("incident"),
            incident.c.resource_id.label("resource"),
            event.c.kind,
            naive(event.c.at).label("at"),
            event.c.attempt,
            event.c.run_id.label("run"),
            event.c.message,
            details.label("details"),
        )
        .join_from(event, incident, event.c.incident_id == incident.c.incident_id, isouter=True)
        .where(event.c.group_name == group_name, event.c.event_id > after_event)
        .order_by(event.c.event_id)
        .limit(limit)
    )


def may_have_had(ledger: Ledger, group_name: str, event_id: int, at: datetime) -> bool:
    """Whether an event that the audit has read can be of this ledger.

    It is not where another event has its number, or where the ledger has not come to such numbers
    yet: then this ledger took the place of the one that the audit read. An event that is missing
    between others was deleted.
    """
    query = sa.select(event.c.event_id, event.c.group_name, event.c.at).order_by(event.c.event_id)
    with ledger.reading() as connection:
        found = connection.execute(query.where(event.c.event_id >= event_id).limit(1)).one_or_none()
    return found is not None and (
        found.event_id > event_id or (found.group_name, found.at) == (group_name, at)
    )
