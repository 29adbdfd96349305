"""How reliable was each group lately: what died, what came back, how fast, and what did not?"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final

import numpy as np
import pandas as pd

from dagster_amoro.core.model import State
from dagster_amoro.core.post_mortem import UNKNOWN
from dagster_amoro_audit.columns import RELIABILITY
from dagster_amoro_audit.frames import typed
from dagster_amoro_audit.settling import (
    BY_CAUSE,
    KEYS,
    Settled,
    added,
    by_cause,
    known_by,
    missing,
    most_frequent,
    not_before,
    seconds_of,
    spans_of,
    summed,
)

WINDOWS: Final[Mapping[str, timedelta]] = {
    "hour": timedelta(hours=1),
    "day": timedelta(days=1),
    "week": timedelta(weeks=1),
}
ALL: Final = "all"  # the window from the first record of a group on
FLAPPING: Final = 3  # incidents of one resource in a window
_MOST_ERRORS: Final = 3
_MOST_CAUSES: Final = 10
_MOST_RESOURCES: Final = 10
_LONGEST_ERROR: Final = 120  # characters; those that agree so far count as one


def reliability(
    incidents: pd.DataFrame,
    notes: pd.DataFrame,
    settled: Settled,
    now: datetime,
    windows: Mapping[str, timedelta] = WINDOWS,
) -> pd.DataFrame:
    """The figures of `RELIABILITY`, a row per group, container and window.

    An incident belongs to a window if it overlaps it: detected by `now`, and open or closed after
    the window's start. Its outcome counts if it closed by `now`; else it is open. One that seems to
    have closed before its detection (clocks of two hosts) took no time.

    The window `ALL` is the sum of what is settled and of what came later. Its percentiles are those
    of buckets, and its frequent errors and resources are those of the longest other window: what a
    long past has of them is not bounded.

    Args:
        incidents: Those that were open at the start of the longest window, or at the end of what is
            settled if that is earlier, and all later ones; as in `fleet_history`.
        notes: What ticks noted since then, after the last note before it.
        settled: The sums of the days that are over.
        now: From here the windows go back; nothing later is counted.
        windows: How far they go back.
    """
    until = pd.Timestamp(now).tz_convert("UTC")
    known, notes = known_by(incidents, until), notes[notes["at"] <= until]
    keys = [known[KEYS].drop_duplicates(), settled.incidents.index.to_frame(index=False)]
    every = pd.MultiIndex.from_frame(pd.concat(keys).drop_duplicates())
    if every.empty:
        return typed(pd.DataFrame(columns=[column.name for column in RELIABILITY]), RELIABILITY)
    frames = {
        name: _window(known, notes, until - span, until, every) for name, span in windows.items()
    }
    often = frames[max(windows, key=lambda name: windows[name])][["last_errors", "flapping"]]
    frames[ALL] = _ever(known, notes, settled, until, every).join(often)
    rows = pd.concat([
        frame.assign(window=name, nth=nth) for nth, (name, frame) in enumerate(frames.items())
    ])  # fmt: skip
    rows = rows.rename_axis(KEYS).reset_index()
    return typed(rows.sort_values([*KEYS, "nth"], ignore_index=True), RELIABILITY)


def reads_since(settled: Settled, now: datetime) -> datetime:
    """From which moment on `reliability` needs what the ledger has."""
    since = now - max(WINDOWS.values())
    return since if settled.until is None else min(since, settled.until.to_pydatetime())


def _window(
    known: pd.DataFrame,
    notes: pd.DataFrame,
    since: pd.Timestamp,
    until: pd.Timestamp,
    every: pd.MultiIndex,
) -> pd.DataFrame:
    rows = known[~(known["closed"] <= since)]
    errors = rows.assign(last_error=rows["last_error"].str.slice(0, _LONGEST_ERROR))
    groups = every.get_level_values("group")
    seconds = pd.Series((until - since).total_seconds(), index=every)
    wanted = _thread_seconds(notes, since, until).reindex(groups).set_axis(every)
    figures = [
        _counted(by_cause(rows), rows, every),
        _recovery(rows).reindex(every),
        _strength(missing(spans_of(rows, since, until)), seconds, wanted),
        _most(_numbers(errors, "last_error"), 1, _MOST_ERRORS, "; ")
        .reindex(every)
        .to_frame("last_errors"),
        _most(_numbers(rows, "resource"), FLAPPING, _MOST_RESOURCES, ", ")
        .reindex(every)
        .to_frame("flapping"),
    ]
    return pd.concat(figures, axis="columns").fillna({"last_errors": "", "flapping": ""})


def _ever(
    known: pd.DataFrame,
    notes: pd.DataFrame,
    settled: Settled,
    until: pd.Timestamp,
    every: pd.MultiIndex,
) -> pd.DataFrame:
    rows = known
    if settled.until is not None:
        rows = known[~(known["closed"] < settled.until)]
        notes = notes[notes["at"] >= settled.until]
    sums = added(settled, summed(rows, notes, settled.capacity, settled.until, until))
    groups = every.get_level_values("group")
    capacity = sums.capacity.reindex(groups).set_axis(every)
    seconds = (until - capacity["first_at"]).dt.total_seconds()
    later = (until - capacity["noted_at"]).dt.total_seconds() * capacity["wanted"]
    figures = [
        _counted(sums.causes, rows, every),
        _percentiles(sums.recovery).reindex(every),
        _strength(sums.incidents, seconds, capacity["thread_seconds"] + later),
    ]
    return pd.concat(figures, axis="columns")


def _counted(ended: pd.DataFrame, rows: pd.DataFrame, every: pd.MultiIndex) -> pd.DataFrame:
    """How many ended how, how many of the rows are open, and why the workers of all of them died.

    Those that ended are counted by their causes.
    """
    counts = ended.groupby(level=KEYS).sum().reindex(every, fill_value=0)
    causes = with_open(ended, rows)
    going_on = causes["open"].groupby(level=KEYS).sum().reindex(every, fill_value=0)
    often = _most(causes.sum(axis="columns"), 1, _MOST_CAUSES, ", ").reindex(every).fillna("")
    number = counts.sum(axis="columns") + going_on
    return counts.assign(open=going_on, incidents=number, causes=often)


def with_open(ended: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """What `by_cause` counts of those that ended, beside those of the rows that are open."""
    going_on = rows[rows["outcome"].isna()]
    cause = going_on["cause"].fillna(UNKNOWN)
    number = going_on.groupby([*(going_on[key] for key in KEYS), cause]).size().rename("open")
    both = pd.concat([ended, number], axis="columns").fillna(0).astype("int64")
    return both.rename_axis(BY_CAUSE)


def causes_of_death(incidents: pd.DataFrame, settled: Settled, now: datetime) -> pd.DataFrame:
    """Why workers ever died: by group, container and cause how many ended how, or are open.

    The arguments are those of `reliability`. The most frequent come first.
    """
    known = known_by(incidents, pd.Timestamp(now).tz_convert("UTC"))
    rows = known if settled.until is None else known[~(known["closed"] < settled.until)]
    ended = most_frequent(settled.causes.add(by_cause(rows), fill_value=0))
    counts = with_open(ended, rows)
    number = counts.sum(axis="columns")
    frame = counts.assign(incidents=number).reset_index()
    return frame.sort_values("incidents", ascending=False, kind="stable", ignore_index=True)


def _recovery(rows: pd.DataFrame) -> pd.DataFrame:
    recovered = rows[rows["outcome"].eq(State.RECOVERED).fillna(value=False)]
    took = (recovered["closed"] - recovered["detected"]).dt.total_seconds()
    by_key = took.groupby([recovered[key] for key in KEYS])
    median, p95 = by_key.quantile(0.5), by_key.quantile(0.95)
    return pd.DataFrame({"median_seconds": median, "p95_seconds": p95})


def _percentiles(recovery: "pd.Series[Any]") -> pd.DataFrame:
    """The same from the numbers of times in buckets."""
    by_key = recovery.sort_index().groupby(level=KEYS)
    median, p95 = (by_key.agg(partial(_quantile, share=share)) for share in (0.5, 0.95))
    return pd.DataFrame({"median_seconds": median, "p95_seconds": p95})


def _quantile(numbers: "pd.Series[Any]", share: float) -> float:
    """Between the two times that are next to it, in proportion; of so many in each bucket."""
    up_to = numbers.cumsum().to_numpy()
    place = share * (up_to[-1] - 1)
    found = np.searchsorted(up_to, [np.floor(place), np.ceil(place)], side="right")
    low, high = seconds_of(numbers.index.get_level_values("bucket")[found])
    return float(low + (high - low) * (place % 1))


def _strength(
    lacking: pd.DataFrame, seconds: "pd.Series[float]", wanted: "pd.Series[float]"
) -> pd.DataFrame:
    lacking = lacking.reindex(seconds.index).fillna(0.0)
    strength = (1 - lacking["missing_thread_seconds"] / wanted).clip(0, 1)
    return pd.DataFrame({
        "full_strength": 1 - lacking["missing_seconds"] / seconds, "strength": strength
    })  # fmt: skip


def _thread_seconds(
    notes: pd.DataFrame, since: pd.Timestamp, until: pd.Timestamp
) -> "pd.Series[float]":
    """By group: the integral of what was wanted over the window."""
    rows = notes.sort_values("at", kind="stable")
    by_group = rows.groupby("group")["at"]
    start = not_before(rows["at"].where(by_group.cumcount() > 0, since), since)
    end = not_before(by_group.shift(-1).fillna(until), since)
    passed = (end - start).dt.total_seconds() * rows["wanted"].astype("float64")
    sums: pd.Series[float] = passed.groupby(rows["group"]).sum()
    return sums


def _numbers(rows: pd.DataFrame, column: str) -> "pd.Series[int]":
    """How often each value of a column is there, by group and container."""
    numbers: pd.Series[int] = rows.groupby([*KEYS, column]).size()
    return numbers


def _most(numbers: "pd.Series[int]", least: int, most: int, separator: str) -> "pd.Series[str]":
    """By group and container: the most frequent values, each with its number, as one text."""
    counts = numbers.rename_axis([*KEYS, "value"]).rename("number").reset_index()
    counts = counts[counts["number"] >= least]
    counts = counts.sort_values(["number", "value"], ascending=[False, True])
    top = counts.groupby(KEYS).head(most)
    texts = top["value"].astype("string") + " (" + top["number"].astype("string") + ")"
    return texts.groupby([top[key] for key in KEYS]).agg(separator.join)
