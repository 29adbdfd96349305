"""The asset `orphan_history`: every incident of a group, as a frame and as a table in the UI."""

from numbers import Integral
from typing import Final

import dagster as dg
import pandas as pd

from assets.names import EVENTS, GROUPS, HISTORY, group_name
from orchestration.errors import shorten
from orchestration.keeping.model import State
from orchestration.stores.ledger import Ledger

COLUMNS: Final = (
    dg.TableColumn("incident", "int64", "The ledger's number of the incident."),
    dg.TableColumn("resource", "string", "The id of the resource that was orphaned."),
    dg.TableColumn("container", "string", "The container that starts it."),
    dg.TableColumn("threads", "int64", "Its thread count: the capacity that was missing."),
    dg.TableColumn("detected", "datetime64[us, UTC]", "When it was first seen orphaned."),
    dg.TableColumn("attempts", "int64", "Starts that were decided on."),
    dg.TableColumn("last_error", "string", "Why the last attempt failed; empty if it did not."),
    dg.TableColumn(
        "outcome",
        "string",
        "recovered, exhausted (given up), released or superseded; empty while it is open.",
    ),
    dg.TableColumn("closed", "datetime64[us, UTC]", "When the outcome was seen."),
    dg.TableColumn(
        "time_to_recover", "timedelta64[us]", "From detection to recovery; empty otherwise."
    ),
)
_LONGEST_CELL: Final = 300  # characters of an error in that table
_TABLE_ROWS: Final = 100  # newest incidents that the UI shows as a table
_SHOWN: Final = ("resource", "outcome", "detected", "time_to_recover", "attempts", "last_error")


def build_orphan_history(ledger: Ledger) -> dg.AssetsDefinition:
    """The asset, which refreshes when the sensor reports that a group's history went on."""

    @dg.asset(
        key=HISTORY,
        partitions_def=GROUPS,
        deps=[EVENTS],
        automation_condition=dg.AutomationCondition.eager(),
        io_manager_key="frame_io_manager",
        retry_policy=dg.RetryPolicy(max_retries=3, delay=10, backoff=dg.Backoff.EXPONENTIAL),
        group_name="audit",
        kinds={"pandas", "parquet"},
        code_version="1",
        metadata={"dagster/column_schema": dg.TableSchema(columns=list(COLUMNS))},
        description=(
            "Every incident of an optimizer group: which resource was orphaned when, what was "
            "tried, and how it ended. One row per incident, one partition per group."
        ),
    )
    def orphan_history(context: dg.AssetExecutionContext) -> dg.MaterializeResult[pd.DataFrame]:
        frame = history_frame(ledger, group_name(context.partition_key))
        return dg.MaterializeResult(value=frame, metadata=_metadata(frame))

    return orphan_history


def orphan_events() -> dg.AssetSpec:
    """The ledger's events as an external asset: its materializations say what is new per group."""
    return dg.AssetSpec(
        EVENTS,
        partitions_def=GROUPS,
        group_name="audit",
        kinds={"sql"},
        description=(
            "The ledger's append-only story of every incident. The sensor reports here how many "
            "events are new in each group."
        ),
    )


def history_frame(ledger: Ledger, group: str) -> pd.DataFrame:
    """All incidents of one group, oldest first; columns and types as in `COLUMNS`."""
    with ledger.reading() as connection:
        frame = pd.read_sql(ledger.history(group), connection)
    outcome = frame["state"].where(frame["closed"].notna())
    recovered = outcome == State.RECOVERED
    frame["outcome"] = outcome
    frame["closed"] = pd.to_datetime(frame["closed"], utc=True)
    frame["detected"] = pd.to_datetime(frame["detected"], utc=True)
    frame["time_to_recover"] = (frame["closed"] - frame["detected"]).where(recovered)
    return frame.astype({column.name: column.type for column in COLUMNS})[_NAMES]


_NAMES: Final = [column.name for column in COLUMNS]


def _metadata(frame: pd.DataFrame) -> dict[str, dg.MetadataValue]:
    outcomes = frame["outcome"].value_counts()
    recoveries = frame["time_to_recover"].dropna().dt.total_seconds()
    numbers = {
        "dagster/row_count": len(frame),
        "open": int(frame["outcome"].isna().sum()),
        **{str(outcome): int(number) for outcome, number in outcomes.items()},
    }
    metadata: dict[str, dg.MetadataValue] = {k: dg.MetadataValue.int(n) for k, n in numbers.items()}
    if len(recoveries):
        metadata["median seconds to recover"] = dg.MetadataValue.float(float(recoveries.median()))
    return metadata | {"incidents": _table(frame)}


def _table(frame: pd.DataFrame) -> dg.MetadataValue:
    newest = frame.tail(_TABLE_ROWS).iloc[::-1][list(_SHOWN)].fillna({"outcome": "open"})
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
