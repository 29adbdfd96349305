"""What does the UI show of a refresh? Numbers, tables and charts, as metadata for Dagster."""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final

import dagster as dg
import pandas as pd

from dagster_amoro.core.errors import shorten
from dagster_amoro.core.formatting import duration
from dagster_amoro.core.model import State
from dagster_amoro.core.policy import RestartPolicy
from dagster_amoro_audit import charts
from dagster_amoro_audit.columns import ADVICE, INCIDENTS, RELIABILITY
from dagster_amoro_audit.frames import History
from dagster_amoro_audit.history_store import OPEN
from dagster_amoro_audit.refresh import Refreshed
from dagster_amoro_audit.what_if.advice import recommend

Metadata = dict[str, dg.MetadataValue]

_LONGEST_CELL: Final = 300  # characters of an error in a table
_TABLE_ROWS: Final = 100
_SHOWN: Final = [
    next(column for column in INCIDENTS if column.name == name)
    for name in ("resource", "outcome", "detected", "time_to_recover", "attempts", "last_error")
]


def of_history(done: Refreshed, tail: History, now: datetime, grace: timedelta) -> Metadata:
    """What is shown of a group after a refresh, with charts of the tail of its history."""
    outcomes = done.position.outcomes
    numbers = {
        "dagster/row_count": sum(outcomes.values()),
        **dict.fromkeys([OPEN, "recovered", "exhausted", "released", "superseded"], 0),
        **outcomes,
        "new incidents": done.new_incidents,
        "new events": done.new_events,
    }
    newest = tail.incidents.tail(_TABLE_ROWS).iloc[::-1].fillna({"outcome": OPEN})
    return {
        "incidents": table(newest, _SHOWN),
        **_drawn({
            "chart: timeline": charts.timeline(tail.incidents, tail.events, now),
            "chart: live and wanted threads": charts.capacity(tail.events, now),
            "chart: time to recover": charts.recovery_times(tail.incidents, grace),
            "chart: outcomes per day": charts.outcomes_per_day(tail.incidents, now),
        }),
        **{name: dg.MetadataValue.int(number) for name, number in numbers.items()},
        **_recovery(tail.incidents),
    }  # fmt: skip


def of_reliability(
    figures: pd.DataFrame,
    incidents: pd.DataFrame,
    advice: pd.DataFrame,
    policy: RestartPolicy,
    now: datetime,
) -> Metadata:
    """What is shown of all groups: what is read first comes first, the long tables come last."""
    recovered = incidents["outcome"] == State.RECOVERED
    took = (incidents["closed"] - incidents["detected"]).where(recovered)
    timed = incidents.assign(time_to_recover=took)
    order = ["strength", "full_strength", "given_up"]
    worst = figures[figures["incidents"] > 0].sort_values(order, ascending=[True, True, False])
    return {
        "recommendation": dg.MetadataValue.text(recommend(advice)),
        "policy in force": policy_in_force(policy),
        **_drawn({
            "chart: grace periods compared": charts.advice_chart(advice[advice["group"].isna()]),
            "chart: time to recover": charts.recovery_times(timed, policy.grace_period),
            "chart: outcomes per day": charts.outcomes_per_day(timed, now),
        }),
        "dagster/row_count": dg.MetadataValue.int(len(figures)),
        "reliability": table(worst, RELIABILITY),
        "other grace periods": table(advice, ADVICE),
    }  # fmt: skip


def policy_in_force(policy: RestartPolicy) -> dg.MetadataValue:
    """How many attempts orphans have, and their grace period."""
    text = f"{policy.max_retries} attempts, grace period {duration(policy.grace_period)}"
    is_off = "" if policy.enabled else "auto-restart is off; otherwise "
    return dg.MetadataValue.text(is_off + text)


def table(frame: pd.DataFrame, columns: Iterable[dg.TableColumn]) -> dg.MetadataValue:
    """These columns of the first rows of a frame, each cell as a text."""
    shown = [dg.TableColumn(column.name, "string", column.description) for column in columns]
    names = [column.name for column in shown]
    records = [
        dg.TableRecord(dict(zip(names, map(_cell, row), strict=True)))
        for row in frame.head(_TABLE_ROWS)[names].itertuples(index=False)
    ]
    return dg.MetadataValue.table(records, dg.TableSchema(columns=shown))


def _cell(value: Any) -> str:  # noqa: ANN401 - any value of a frame
    if pd.isna(value):
        return ""
    if isinstance(value, pd.Timestamp):
        return f"{value:%m-%d %H:%M:%S}"
    if isinstance(value, pd.Timedelta):
        return f"{value.total_seconds():.0f} s"
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    return shorten(str(value), _LONGEST_CELL)


def _drawn(images: Mapping[str, bytes | None]) -> Metadata:
    return {name: charts.markdown(name, image) for name, image in images.items()}


def _recovery(incidents: pd.DataFrame) -> Metadata:
    """How long recovery took of late; nothing where nothing recovered."""
    seconds = incidents["time_to_recover"].dropna().dt.total_seconds()
    if seconds.empty:
        return {}
    median, p95 = (round(float(seconds.quantile(share)), 3) for share in (0.5, 0.95))
    return {
        "median seconds to recover": dg.MetadataValue.float(median),
        "p95 seconds to recover": dg.MetadataValue.float(p95),
    }
