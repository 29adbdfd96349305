"""What does a group's history look like? Two frames: its incidents and their events."""

import json
from dataclasses import dataclass
from typing import Any, Final

import pandas as pd
import pyarrow as pa

from dagster_amoro.core.model import State
from dagster_amoro_audit.columns import EVENTS, INCIDENTS, Columns, types_of


@dataclass(frozen=True)
class History:
    """What happened to the orphans of a group, with the columns `INCIDENTS` and `EVENTS`."""

    incidents: pd.DataFrame  # a row per incident, by number
    events: pd.DataFrame  # a row per event, in the order they were written


def incidents_frame(rows: pd.DataFrame) -> pd.DataFrame:
    """The incidents in the rows of `audit_queries.incident_history`."""
    closed = pd.to_datetime(rows["closed"], utc=True)
    detected = pd.to_datetime(rows["detected"], utc=True)
    outcome = rows["state"].where(closed.notna())
    took = (closed - detected).where(outcome == State.RECOVERED)
    frame = rows.assign(
        closed=closed,
        detected=detected,
        outcome=outcome,
        time_to_recover=took,
        seconds_to_recover=took.dt.total_seconds(),
    )
    return typed(with_details(frame, "grace_seconds", "max_retries"), INCIDENTS)


def events_frame(rows: pd.DataFrame) -> pd.DataFrame:
    """The events in the rows of `audit_queries.event_history`."""
    frame = rows.assign(at=pd.to_datetime(rows["at"], utc=True))
    return typed(with_details(frame, "wanted", "live"), EVENTS)


def with_details(rows: pd.DataFrame, *names: str) -> pd.DataFrame:
    """Adds these numbers from the JSON objects in column `details`; NaN where there is none."""
    codes, texts = pd.factorize(rows["details"])  # few differ; -1 is none, and takes the last one
    objects = [*map(json.loads, texts), {}]
    numbers = {name: [details.get(name) for details in objects] for name in names}
    found = pd.DataFrame(numbers, dtype="float64").iloc[codes].set_axis(rows.index)
    return rows.assign(**{name: found[name] for name in names})


def typed(frame: pd.DataFrame, columns: Columns) -> pd.DataFrame:
    """A frame with exactly these columns, in their types."""
    types: dict[str, Any] = types_of(columns)
    return frame[list(types)].astype(types)


def _schema(columns: Columns) -> pa.Schema:
    """The schema of every file, whatever is empty in it; it notes the types of pandas too."""
    empty = pd.DataFrame({name: pd.Series([], dtype=t) for name, t in types_of(columns).items()})
    return pa.Schema.from_pandas(empty, preserve_index=False)


INCIDENT_SCHEMA: Final = _schema(INCIDENTS)
EVENT_SCHEMA: Final = _schema(EVENTS)
