"""What does the UI show of a refresh? Numbers, tables and charts, as metadata for Dagster."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any, Final

import dagster as dg
import pandas as pd

from dagster_amoro import telling
from dagster_amoro.core.errors import shorten
from dagster_amoro.core.formatting import clock_time, duration
from dagster_amoro.core.model import State
from dagster_amoro.core.policy import RestartPolicy
from dagster_amoro.core.texts import in_one_line
from dagster_amoro_audit import charts, sketches
from dagster_amoro_audit.frames import History
from dagster_amoro_audit.history_store import OPEN
from dagster_amoro_audit.pictures import Pictures
from dagster_amoro_audit.refresh import Refreshed
from dagster_amoro_audit.what_if.advice import has_ground, recommend

Metadata = dict[str, dg.MetadataValue]

_LONGEST_CELL: Final = 300  # characters of an error in a table
_TABLE_ROWS: Final = 25  # what every refresh stores; the files have all
# The columns that are shown. Each is 200 bytes in every refresh, and the files have all.
_SHOWN: Final = (
    "resource",
    "outcome",
    "cause",
    "detected",
    "time_to_recover",
    "attempts",
    "last_error",
)
_FIGURES: Final = (
    *("group", "container", "window", "incidents", "given_up", "open"),
    *("median_seconds", "strength", "last_errors", "flapping"),
)
_CAUSES: Final = ("group", "container", "cause", "incidents", "recovered", "given_up", "open")
_RECOVERED: Final = ["self_recovered", "recovered_first", "recovered_later"]
_ADVISED: Final = (
    *("grace_seconds", "in_force", "orphans", "by_itself", "restarted"),
    *("unneeded_restarts", "given_up", "median_wait"),
)


def of_history(
    done: Refreshed, tail: History, now: datetime, grace: timedelta, pictures: Pictures
) -> Metadata:
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
    images = {
        "timeline": charts.timeline(tail.incidents, tail.events, now),
        "live and wanted threads": charts.capacity(tail.events, now),
        "time to recover": charts.recovery_times(tail.incidents, grace),
        "outcomes per day": charts.outcomes_per_day(tail.incidents, now),
    }
    return {
        "last day": _sketch(sketches.timeline(tail.incidents, now)),
        "threads of the last day": _sketch(sketches.capacity(tail.events, now)),
        "outcomes of two weeks": _sketch(sketches.outcomes(tail.incidents, now)),
        "incidents": table(newest, _SHOWN),
        "pictures": pictures.keep(images),
        **{name: dg.MetadataValue.int(number) for name, number in numbers.items()},
        **_recovery(tail.incidents),
    }  # fmt: skip


def of_reliability(  # noqa: PLR0913 - what is shown of all groups
    tables: tuple[pd.DataFrame, pd.DataFrame],
    incidents: pd.DataFrame,
    advice: pd.DataFrame,
    policy: RestartPolicy,
    now: datetime,
    *,
    pictures: Pictures,
) -> Metadata:
    """What is shown of all groups: what is read first comes first, the long tables come last.

    The tables are those of `reliability` and `causes_of_death`.
    """
    figures, causes = tables
    recovered = incidents["outcome"] == State.RECOVERED
    took = (incidents["closed"] - incidents["detected"]).where(recovered)
    timed = incidents.assign(time_to_recover=took)
    order = ["strength", "full_strength", "given_up"]
    of_all = advice[advice["group"].isna()]  # of one group, the job what_if tells
    images = {
        "grace periods compared": charts.advice_chart(of_all),
        "time to recover": charts.recovery_times(timed, policy.grace_period),
        "outcomes per day": charts.outcomes_per_day(timed, now),
    }
    by_cause = causes.assign(recovered=causes[_RECOVERED].sum(axis="columns"))
    advised = {"other grace periods": table(of_all, _ADVISED)} if has_ground(advice) else {}
    worst = figures[figures["incidents"] > 0].sort_values(order, ascending=[True, True, False])
    return {
        "recommendation": telling.text(recommend(advice)),
        "policy in force": policy_in_force(policy),
        "outcomes of two weeks": _sketch(sketches.outcomes(timed, now)),
        "pictures": pictures.keep(images),
        "dagster/row_count": dg.MetadataValue.int(len(figures)),
        "reliability": table(worst, _FIGURES),
        "causes of death": table(by_cause, _CAUSES),
        **advised,
    }  # fmt: skip


def policy_in_force(policy: RestartPolicy) -> dg.MetadataValue:
    """How many attempts orphans have, and their grace period."""
    text = f"{policy.max_retries} attempts, grace period {duration(policy.grace_period)}"
    is_off = "" if policy.enabled else "auto-restart is off; otherwise "
    return telling.text(is_off + text)


def table(frame: pd.DataFrame, names: Iterable[str]) -> dg.MetadataValue:
    """These columns of the first rows of a frame, each cell as a text."""
    shown = list(names)
    records = [
        dg.TableRecord(dict(zip(shown, map(_cell, row), strict=True)))
        for row in frame.head(_TABLE_ROWS)[shown].itertuples(index=False)
    ]
    return dg.MetadataValue.table(records, dg.TableSchema(columns=list(map(dg.TableColumn, shown))))


def _cell(value: Any) -> str:  # noqa: ANN401 - any value of a frame
    if pd.isna(value):
        return ""
    if isinstance(value, pd.Timestamp):
        return clock_time(value)
    if isinstance(value, pd.Timedelta):
        return f"{value.total_seconds():.0f} s"
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    return shorten(in_one_line(str(value)), _LONGEST_CELL)


def _sketch(markdown: str) -> dg.MetadataValue:
    """A small chart; names of others in it are quoted, and cannot act."""
    return dg.MetadataValue.md(markdown)


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
