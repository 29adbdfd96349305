"""What does the ledger record of all groups? Frames for the figures and the advice.

Whatever reads raises StoreUnavailableError where the ledger does not answer.
"""

from typing import Any, Final

import pandas as pd
import sqlalchemy as sa

from dagster_amoro.core.model import EventKind
from dagster_amoro.healing.tick import uncollected
from dagster_amoro.stores import audit_queries
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro.stores.schema import event, incident
from dagster_amoro_audit.columns import EVENTS, INCIDENTS, types_of
from dagster_amoro_audit.frames import with_details
from dagster_amoro_audit.what_if.advice import KINDS

REPLAYED: Final = 20_000  # newest incidents that advice is based on: a second or two of work
_CHUNK: Final = 100_000  # rows that are read at once
_LONGEST_ERROR: Final = 200  # characters that are read; fewer are shown
_TYPES: Final[dict[str, Any]] = types_of(EVENTS) | types_of(INCIDENTS)  # others are texts
_DETAILS: Final = sa.type_coerce(event.c.details, sa.Text).label("details")
_DRY_RUN: Final = '%"dry_run": true}'  # how the ledger ends the details of a dry run's events


def read_incidents(
    ledger: Ledger, *, group: str | None = None, newest: int | None = None
) -> pd.DataFrame:
    """The incidents of all groups or one, or the newest of them, in the order of their numbers.

    Those of a dry run are left out: what it did not do says nothing about a group.
    """
    error = sa.func.substr(incident.c.last_error, 1, _LONGEST_ERROR).label("last_error")
    columns = (incident.c.group_name.label("group"), *audit_queries.INCIDENT, error)
    newest_first = incident.c.incident_id.desc()
    query = sa.select(*columns).where(incident.c.dry_run == 0).order_by(newest_first)
    if group is not None:
        query = query.where(incident.c.group_name == group)
    frame = _read(ledger, query.limit(newest)).iloc[::-1].reset_index(drop=True)
    return frame.assign(outcome=frame.pop("state").where(frame["closed"].notna()))


def read_capacity(ledger: Ledger) -> pd.DataFrame:
    """The threads of the groups as ticks noted them: group, at, wanted and live."""
    kinds = EventKind.DETECTED, EventKind.RECOVERED, EventKind.RELEASED, EventKind.SUPERSEDED
    group, at = event.c.group_name.label("group"), audit_queries.naive(event.c.at).label("at")
    query = sa.select(group, at, _DETAILS).where(event.c.kind.in_(kinds)).order_by(event.c.event_id)
    return _read(ledger, query, "wanted", "live")


def read_record(
    ledger: Ledger, incidents: pd.DataFrame, *, group: str | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What advice needs of these incidents: each with its policy at the detection, and the events.

    The events are those of these incidents and of those between them. Attempts of a dry run are
    left out, since nothing was started.
    """
    first = int(incidents["incident"].min()) if len(incidents) else 0
    query = (
        sa.select(
            event.c.incident_id.label("incident"),
            event.c.kind,
            audit_queries.naive(event.c.at).label("at"),
            event.c.attempt,
            _DETAILS,
        )
        .where(event.c.incident_id >= first, event.c.kind.in_([EventKind.DETECTED, *KINDS]))
        .where(sa.or_(event.c.kind == EventKind.DETECTED, _DETAILS.not_like(_DRY_RUN)))
        .order_by(event.c.event_id)
    )
    if group is not None:
        query = query.where(event.c.group_name == group)
    policy = ["grace_seconds", "max_retries"]
    events = _read(ledger, query, *policy)
    detected = events[events["kind"] == EventKind.DETECTED].drop_duplicates("incident")
    return incidents.join(detected.set_index("incident")[policy], on="incident"), events


@uncollected()
def _read(ledger: Ledger, query: "sa.Select[Any]", *details: str) -> pd.DataFrame:
    """All rows of a query, in chunks: of their details only these numbers are held in memory."""
    names = [*(c.name for c in query.selected_columns if c.name != _DETAILS.name), *details]
    types = {name: _TYPES.get(name, "string") for name in names}
    parts = [pd.DataFrame(columns=names).astype(types)]
    with ledger.reading() as connection:
        found = connection.execution_options(yield_per=_CHUNK).execute(query)
        for chunk in found.partitions():  # not read_sql: its errors hold the statement
            rows = pd.DataFrame(map(tuple, chunk), columns=list(found.keys()), dtype=object)
            rows = with_details(rows, *details) if details else rows
            parts.append(rows[names].astype(types))
    return pd.concat(parts, ignore_index=True)
