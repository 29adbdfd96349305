"""What does a history look like? Two frames: its incidents, and the events of their story."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import dagster as dg
import pandas as pd
import pyarrow as pa
from upath import UPath

from dagster_amoro.core.model import State

_MOMENT: Final = "datetime64[us, UTC]"
_SPAN: Final = "timedelta64[us]"

INCIDENT_COLUMNS: Final = (
    dg.TableColumn("incident", "int64", "The ledger's number of the incident."),
    dg.TableColumn("resource", "string", "The id of the resource that was orphaned."),
    dg.TableColumn("container", "string", "The container that starts it."),
    dg.TableColumn("threads", "int64", "Its thread count: the capacity that was missing."),
    dg.TableColumn("detected", _MOMENT, "When it was first seen orphaned."),
    dg.TableColumn("attempts", "int64", "Starts that were decided on."),
    dg.TableColumn("last_error", "string", "Why the last attempt failed; empty if it did not."),
    dg.TableColumn(
        "outcome",
        "string",
        "recovered, exhausted (given up), released or superseded; empty while it is open.",
    ),
    dg.TableColumn("closed", _MOMENT, "When the outcome was seen; empty while it is open."),
    dg.TableColumn(
        "time_to_recover",
        _SPAN,
        "From detection to recovery; empty otherwise. Outside pandas: whole microseconds.",
    ),
    dg.TableColumn(
        "grace_seconds",
        "float64",
        "The grace period in force at its detection, in seconds; empty where it was not noted.",
    ),
    dg.TableColumn(
        "max_retries", "Int64", "Attempts it was allowed at its detection; empty: not noted."
    ),
)
EVENT_COLUMNS: Final = (
    dg.TableColumn("event", "int64", "The ledger's number of the event; a story's order."),
    dg.TableColumn(
        "incident",
        "Int64",
        "The incident whose story it belongs to; empty: it is the group's, such as a pause.",
    ),
    dg.TableColumn(
        "resource", "string", "The id of the resource that was orphaned; empty where none was."
    ),
    dg.TableColumn(
        "kind", "string", "What happened: detected, attempt, recovered, refill, paused, …"
    ),
    dg.TableColumn("at", _MOMENT, "When it happened."),
    dg.TableColumn("attempt", "Int64", "The number of the attempt; empty where there was none."),
    dg.TableColumn("run", "string", "The id of the Dagster run that did it; empty: a tick."),
    dg.TableColumn("message", "string", "One sentence for a person."),
    dg.TableColumn(
        "wanted", "Int64", "Threads that the group should have had then; empty: not noted."
    ),
    dg.TableColumn("live", "Int64", "Threads that the group had then; empty: not noted."),
)


@dataclass(frozen=True)
class History:
    """What happened to the orphans of a group; columns and types as in `*_COLUMNS`."""

    incidents: pd.DataFrame  # a row per incident, by number
    events: pd.DataFrame  # a row per event, in the order they were written


def incidents_frame(rows: pd.DataFrame) -> pd.DataFrame:
    """The incidents in the rows of `Ledger.history`."""
    closed = pd.to_datetime(rows["closed"], utc=True)
    detected = pd.to_datetime(rows["detected"], utc=True)
    outcome = rows["state"].where(closed.notna())
    policies = _noted(rows["details"], "grace_seconds", "max_retries")
    frame = rows.assign(
        closed=closed,
        detected=detected,
        outcome=outcome,
        time_to_recover=(closed - detected).where(outcome == State.RECOVERED),
        grace_seconds=policies["grace_seconds"],
        max_retries=policies["max_retries"],
    )
    return _typed(frame, INCIDENT_COLUMNS)


def events_frame(rows: pd.DataFrame) -> pd.DataFrame:
    """The events in the rows of `Ledger.story`."""
    threads = _noted(rows["details"], "wanted", "live")
    frame = rows.assign(
        at=pd.to_datetime(rows["at"], utc=True),
        wanted=threads["wanted"],
        live=threads["live"],
    )
    return _typed(frame, EVENT_COLUMNS)


def _noted(details: "pd.Series[Any]", *names: str) -> pd.DataFrame:
    """Numbers of these names in JSON objects; NaN where there is none, or no object."""
    codes, texts = pd.factorize(details)  # few differ; -1 is none, and takes the last number
    objects = [*map(json.loads, texts), {}]
    numbers = {name: [message.get(name) for message in objects] for name in names}
    return pd.DataFrame(numbers, dtype="float64").iloc[codes].set_axis(details.index)


def _typed(frame: pd.DataFrame, columns: Iterable[dg.TableColumn]) -> pd.DataFrame:
    types = {column.name: column.type for column in columns}
    return frame[list(types)].astype(types)


def _no_rows(columns: Iterable[dg.TableColumn]) -> pd.DataFrame:
    return pd.DataFrame({c.name: pd.Series([], dtype=c.type) for c in columns})


# Every file has the same schema, whatever is empty in it; pandas' types are noted there too.
INCIDENT_SCHEMA: Final = pa.Schema.from_pandas(_no_rows(INCIDENT_COLUMNS), preserve_index=False)
EVENT_SCHEMA: Final = pa.Schema.from_pandas(_no_rows(EVENT_COLUMNS), preserve_index=False)


class FrameIOManager(dg.UPathIOManager):
    """Stores a pandas frame as one Parquet file, in a folder or an object store."""

    extension = ".parquet"

    def dump_to_path(self, context: dg.OutputContext, obj: pd.DataFrame, path: UPath) -> None:
        """Writes one frame."""
        with path.open("wb") as file:
            obj.to_parquet(file)

    def load_from_path(self, context: dg.InputContext, path: UPath) -> pd.DataFrame:
        """Reads one frame."""
        with path.open("rb") as file:
            return pd.read_parquet(file)
