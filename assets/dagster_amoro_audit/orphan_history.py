"""The asset `orphan_history`: a group's incidents and events, brought up to date by what is new."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from numbers import Integral
from typing import Any, Final

import dagster as dg
import pandas as pd
import sqlalchemy as sa

from dagster_amoro.asset_keys import AUDIT, EVENTS, GROUPS, HISTORY, group_name
from dagster_amoro.core.clock import Clock
from dagster_amoro.core.errors import shorten
from dagster_amoro.core.secrets import hide_assigned
from dagster_amoro.stores import audit_queries
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro_audit import charts
from dagster_amoro_audit.automation import whenever
from dagster_amoro_audit.frames import (
    EVENT_COLUMNS,
    INCIDENT_COLUMNS,
    History,
    events_frame,
    incidents_frame,
)
from dagster_amoro_audit.history_store import (
    OPEN,
    HistoryFolder,
    HistoryIOManager,
    Position,
    first_day,
)

STORE: Final = "history_io_manager"  # the resource that keeps the frames
_ROWS_AT_ONCE: Final = 20_000  # events that a refresh holds in memory
_LONGEST_CELL: Final = 300  # characters of an error in the table
_TABLE_ROWS: Final = 100  # newest incidents that the UI shows as a table
_SHOWN: Final = ("resource", "outcome", "detected", "time_to_recover", "attempts", "last_error")
_DESCRIPTION: Final = """\
What happened to the orphans of an optimizer group: which resource was orphaned when, what was
tried, and how it ended. One partition per group; a refresh adds what is new in the ledger.

Two tables: `incidents`, a row per incident, and `events`, the story of each and of the group: when
it was refilled, paused or resumed. Events of a dry run are there too, and say so. Both tables are
Parquet files by UTC day, in the folder that the metadata name:
`pandas.read_parquet("<folder>/incidents")`, or `SELECT * FROM '<folder>/events/*.parquet'` in
DuckDB.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Refreshed:
    """What a refresh of one group did."""

    position: Position  # how far the history goes now
    new_incidents: int = 0
    new_events: int = 0
    is_another_ledger: bool = False  # the older history was set aside


def build_orphan_history(
    ledger: Ledger, clock: Clock, grace: timedelta, retention: timedelta | None = None
) -> dg.AssetsDefinition:
    """The asset, which refreshes when the sensor reports that a group's history went on.

    Args:
        ledger: Where the history comes from.
        clock: Says what time it is.
        grace: The grace period in force, to show beside the times that recovery took.
        retention: How long the audit keeps its files. None: for ever. The ledger is not touched.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)  # its backfill policy is marked so
        return _asset(ledger, clock, grace, retention)


def _asset(
    ledger: Ledger, clock: Clock, grace: timedelta, retention: timedelta | None
) -> dg.AssetsDefinition:
    @dg.asset(
        key=HISTORY,
        partitions_def=GROUPS,
        deps=[EVENTS],
        automation_condition=whenever(
            dg.AutomationCondition.any_deps_updated(), "the group's history went on"
        ),
        # Whoever materializes a thousand groups by hand wants one run, not a thousand.
        backfill_policy=dg.BackfillPolicy.single_run(),
        io_manager_key=STORE,
        required_resource_keys={STORE},
        retry_policy=dg.RetryPolicy(max_retries=3, delay=10, backoff=dg.Backoff.EXPONENTIAL),
        group_name=AUDIT,
        kinds={"pandas", "parquet"},
        owners=["team:data-platform"],
        tags={"domain": "optimizers"},
        code_version="3",
        metadata={
            "dagster/column_schema": dg.TableSchema(columns=list(INCIDENT_COLUMNS)),
            "events: column schema": dg.TableSchema(columns=list(EVENT_COLUMNS)),
        },
        description=_DESCRIPTION,
    )
    def orphan_history(context: dg.AssetExecutionContext) -> dg.MaterializeResult:  # type: ignore[type-arg]
        store: HistoryIOManager = getattr(context.resources, STORE)
        for partition in context.partition_keys:
            folder = store.folder(HISTORY, partition)
            now = clock()
            done = refresh(ledger, folder, group_name(partition), now, retention)
            if done.is_another_ledger:
                context.log.warning("Another ledger: the history of %s was set aside.", partition)
            where = {"folder": hide_assigned(str(folder.path))}  # a URL may hold a password
            tail = folder.tail(done.position, now)
            looked_at = {"incidents": _table(tail.incidents)} | _charts(tail, now, grace)
            metadata = looked_at | _metadata(done, tail) | where
            context.add_asset_metadata(metadata, partition_key=partition)
        # Without a value: the rows are in the files already, and need not be in memory at once.
        return dg.MaterializeResult()

    return orphan_history


def refresh(
    ledger: Ledger,
    folder: HistoryFolder,
    group: str,
    now: datetime,
    retention: timedelta | None = None,
) -> Refreshed:
    """Brings the files of a group up to date with the ledger.

    Reads what is newer than the stored position, and a little before it: what can still have come
    to light there. A position that this ledger cannot have told is another's: its files are set
    aside and the history begins anew.

    Raises:
        StoreUnavailableError: The ledger did not answer. What was read before is stored.
    """
    position = folder.position()
    is_ours = not position.event or audit_queries.may_have_had(
        ledger, group, position.event, datetime.fromisoformat(position.told_at)
    )
    if not is_ours:
        folder.set_aside(position)
        position = Position()
    oldest = first_day(now, retention)
    incidents = events = 0
    for increment in increments(ledger, group, position.settled):
        position, *added = folder.merge(increment, position, now=now, oldest=oldest)
        incidents += added[0]
        events += added[1]
    return Refreshed(
        position=folder.expire(position, oldest),
        new_incidents=incidents,
        new_events=events,
        is_another_ledger=not is_ours,
    )


def increments(ledger: Ledger, group: str, after_event: int) -> Iterator[History]:
    """The events of a group after one, in parts that fit into memory, each with its incidents."""
    is_over = False
    while not is_over:
        with ledger.reading() as connection:
            query = audit_queries.event_history(group, after_event, _ROWS_AT_ONCE)
            events = events_frame(_read(query, connection))
            if events.empty:
                return
            message = (int(events["event"].iloc[0]), int(events["event"].iloc[-1]))
            incidents = incidents_frame(
                _read(audit_queries.incident_history(group, message), connection)
            )
        yield History(incidents, events)
        after_event = message[1]
        is_over = len(events) < _ROWS_AT_ONCE


def _read(query: sa.Select[Any], connection: sa.Connection) -> pd.DataFrame:
    try:
        # The frames' own types from the start: to convert them would take as long as to read them.
        return pd.read_sql(query, connection, dtype_backend="numpy_nullable")
    except pd.errors.DatabaseError as error:  # it shows the statement; what it wraps is understood
        raise error.__cause__ or error from None


def _metadata(done: Refreshed, history_tail: History) -> dict[str, dg.MetadataValue]:
    """What the UI shows of a refresh; `history_tail` is as `HistoryFolder.tail` gives it."""
    outcomes = done.position.outcomes
    numbers = {
        "dagster/row_count": sum(outcomes.values()),
        **dict.fromkeys([OPEN, "recovered", "exhausted", "released", "superseded"], 0),
        **outcomes,
        "new incidents": done.new_incidents,
        "new events": done.new_events,
    }
    return {
        **{name: dg.MetadataValue.int(number) for name, number in numbers.items()},
        **_recovery(history_tail.incidents),
    }


def _charts(tail: History, now: datetime, grace: timedelta) -> dict[str, dg.MetadataValue]:
    """What people would rather look at than read."""
    drawn = {
        "chart: timeline": charts.timeline(tail.incidents, tail.events, now),
        "chart: live and wanted threads": charts.capacity(tail.events, now),
        "chart: time to recover": charts.recovery_times(tail.incidents, grace),
        "chart: outcomes per day": charts.outcomes_per_day(tail.incidents, now),
    }
    return {name: charts.markdown(name, png) for name, png in drawn.items()}


def _recovery(incidents: pd.DataFrame) -> dict[str, dg.MetadataValue]:
    """How long recovery took of late; nothing where nothing recovered."""
    seconds = incidents["time_to_recover"].dropna().dt.total_seconds()
    if seconds.empty:
        return {}
    return {
        "median seconds to recover": dg.MetadataValue.float(float(seconds.median())),
        "p95 seconds to recover": dg.MetadataValue.float(float(seconds.quantile(0.95))),
    }


def _table(incidents: pd.DataFrame) -> dg.MetadataValue:
    newest = incidents.tail(_TABLE_ROWS).iloc[::-1][list(_SHOWN)].fillna({"outcome": OPEN})
    records = [
        dg.TableRecord(dict(zip(_SHOWN, map(_cell, row), strict=True)))
        for row in newest.itertuples(index=False)
    ]
    columns = [dg.TableColumn(name, "string") for name in _SHOWN]
    return dg.MetadataValue.table(records, dg.TableSchema(columns=columns))


def _cell(value: object) -> str | int:
    if isinstance(value, pd.Timestamp):
        return f"{value:%m-%d %H:%M:%S}"
    if isinstance(value, pd.Timedelta):
        return f"{value.total_seconds():.0f} s"
    if isinstance(value, Integral):
        return int(value)
    return shorten(value, _LONGEST_CELL) if isinstance(value, str) else ""  # NA and NaT
