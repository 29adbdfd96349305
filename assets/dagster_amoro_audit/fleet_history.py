"""What does the ledger record of all groups? Frames for the figures and the advice.

Whatever reads raises StoreUnavailableError where the ledger does not answer.
"""

from datetime import datetime, timedelta
from typing import Any, Final

import pandas as pd
import sqlalchemy as sa

from dagster_amoro.core.model import EventKind
from dagster_amoro.healing.tick import uncollected
from dagster_amoro.stores import audit_queries, day_sums
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro.stores.schema import event, incident
from dagster_amoro_audit.columns import EVENTS, INCIDENTS, types_of
from dagster_amoro_audit.frames import with_details
from dagster_amoro_audit.what_if.advice import KINDS

REPLAYED: Final = 20_000  # newest incidents that advice is based on: a second or two of work
MOMENT: Final = timedelta(microseconds=1)  # the shortest that the ledger knows
_MONTH: Final = timedelta(days=30)
_MOST_CHARTED: Final = 4_000  # newest incidents of a chart of all groups: a MiB to draw
_CHUNK: Final = 2_000  # rows that are held as the driver has them, which takes most memory
_TYPES: Final[dict[str, Any]] = types_of(EVENTS) | types_of(INCIDENTS)  # others are texts
_DETAILS: Final = sa.type_coerce(event.c.details, sa.Text).label("details")
_DRY_RUN: Final = "%dry_run_: true}"  # how the ledger ends the details of a dry run's events


def read_incidents(
    ledger: Ledger, *, group: str | None = None, newest: int | None = None
) -> pd.DataFrame:
    """The incidents of all groups or one, or the newest of them, in the order of their numbers.

    Those of a dry run are left out: what it did not do says nothing about a group.
    """
    query = day_sums.incidents().order_by(incident.c.incident_id.desc())
    if group is not None:
        query = query.where(incident.c.group_name == group)
    return read_found(ledger, query.limit(newest)).iloc[::-1].reset_index(drop=True)


def read_live(ledger: Ledger, since: datetime) -> pd.DataFrame:
    """The incidents that are open, or ended from a moment on."""
    return read_found(ledger, day_sums.live(since))


def read_recent(ledger: Ledger, now: datetime) -> pd.DataFrame:
    """How the incidents of the last month went, or of its newest days if they are many."""
    found = read_found(ledger, day_sums.newest(now - _MONTH, _MOST_CHARTED))
    whole = found[found["detected"] >= found["detected"].min().ceil("D")]
    return found if len(found) < _MOST_CHARTED or whole.empty else whole


def read_found(ledger: Ledger, query: "sa.Select[Any] | sa.CompoundSelect[Any]") -> pd.DataFrame:
    """The incidents that one of the queries of `day_sums` finds."""
    frame = _read(ledger, query)
    return frame.assign(outcome=frame.pop("state").where(frame["closed"].notna()))


def read_notes(ledger: Ledger, since: datetime, until: datetime) -> pd.DataFrame:
    """What ticks noted from a moment on, and before another: group, at, event, wanted and live."""
    notes = _read(ledger, day_sums.notes(since, until), "wanted", "live")
    notes = notes.dropna(subset=["wanted"]).astype({"wanted": "float64"})
    return notes.sort_values("event", ignore_index=True)


def read_standing_notes(
    ledger: Ledger, capacity: pd.DataFrame, since: datetime, until: datetime
) -> pd.DataFrame:
    """The same, after the notes that stood at the beginning, as if they were made just then.

    Those of the moment `until` are among them. `capacity` is what is settled of the groups, as in
    `keeper_capacity`.
    """
    notes = read_notes(ledger, since, until + MOMENT)
    first = int(notes["event"].min()) if len(notes) else 0
    settled = capacity[capacity["noted_at"] < since].reset_index()[["group", "wanted"]]
    before = _read(ledger, day_sums.noted_before(since, first), "wanted", "live")
    standing = pd.concat([settled, before[["group", "wanted"]].astype({"wanted": "float64"})])
    standing = standing.assign(at=pd.Timestamp(since)).dropna(subset=["wanted"])
    return pd.concat([standing, notes], ignore_index=True)


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
            event.c.event_id.label("event"),
            event.c.incident_id.label("incident"),
            event.c.kind,
            audit_queries.naive(event.c.at).label("at"),
            event.c.attempt,
            _DETAILS,
        )
        .where(event.c.incident_id >= first, event.c.kind.in_([EventKind.DETECTED, *KINDS]))
        .where(sa.or_(event.c.kind == EventKind.DETECTED, _DETAILS.not_like(_DRY_RUN)))
    )
    if group is not None:
        query = query.where(event.c.group_name == group)
    policy = ["grace_seconds", "max_retries"]
    events = _read(ledger, query, *policy).sort_values("event", ignore_index=True)
    detected = events[events["kind"] == EventKind.DETECTED].drop_duplicates("incident")
    return incidents.join(detected.set_index("incident")[policy], on="incident"), events


@uncollected()
def _read(
    ledger: Ledger, query: "sa.Select[Any] | sa.CompoundSelect[Any]", *details: str
) -> pd.DataFrame:
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
