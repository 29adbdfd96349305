"""How reliable was each group lately: what died, what came back, how fast, and what did not?"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final, TypeAlias

import pandas as pd

from dagster_amoro.core.model import State
from dagster_amoro_audit.columns import RELIABILITY
from dagster_amoro_audit.frames import typed

WINDOWS: Final[Mapping[str, timedelta | None]] = {  # None: since the first record of the group
    "hour": timedelta(hours=1),
    "day": timedelta(days=1),
    "week": timedelta(weeks=1),
    "all": None,
}
FLAPPING: Final = 3  # incidents of one resource in a window
_Times: TypeAlias = "pd.Series[pd.Timestamp]"
_KEYS: Final = ["group", "container"]
_OUTCOMES: Final = {
    State.EXHAUSTED: "given_up",
    State.RELEASED: "released",
    State.SUPERSEDED: "superseded",
}
_MOST_ERRORS: Final = 3
_MOST_RESOURCES: Final = 10
_LONGEST_ERROR: Final = 120  # characters; those that agree so far count as one


def reliability(
    incidents: pd.DataFrame,
    capacity: pd.DataFrame,
    now: datetime,
    windows: Mapping[str, timedelta | None] = WINDOWS,
) -> pd.DataFrame:
    """The figures of `RELIABILITY`, a row per group, container and window.

    An incident belongs to a window if it overlaps it: detected by `now`, and open or closed after
    the window's start. Its outcome counts if it closed by `now`; else it is open. One that seems to
    have closed before its detection (clocks of two hosts) took no time.

    Incidents and capacity, which is what ticks saw, are those of all groups, as in `fleet_history`.
    What a tick saw holds until the next one, and what the first one saw holds before it too.
    Nothing later than `now` is counted, from which the windows go back.
    """
    until = pd.Timestamp(now).tz_convert("UTC")
    known = _known(incidents, until)
    if known.empty:
        return typed(pd.DataFrame(columns=[column.name for column in RELIABILITY]), RELIABILITY)
    wanted = capacity.dropna(subset=["wanted"])
    wanted = wanted[wanted["at"] <= until].sort_values("at", kind="stable")
    frames = [
        _window(known, wanted, span, until).assign(window=name, nth=nth)
        for nth, (name, span) in enumerate(windows.items())
    ]
    rows = pd.concat(frames).reset_index()
    return typed(rows.sort_values([*_KEYS, "nth"], ignore_index=True), RELIABILITY)


def _known(incidents: pd.DataFrame, until: pd.Timestamp) -> pd.DataFrame:
    """What is known by `until`, with when each `end`s and how many `seconds` it takes by then."""
    rows = incidents[incidents["detected"] <= until]
    closed = rows["closed"].where(~(rows["closed"] < rows["detected"]), rows["detected"])
    closed = closed.where(closed <= until)
    end = closed.fillna(until)
    outcome = rows["outcome"].where(closed.notna())
    seconds = (end - rows["detected"]).dt.total_seconds()
    return rows.assign(closed=closed, end=end, outcome=outcome, seconds=seconds)


def _window(
    known: pd.DataFrame, wanted: pd.DataFrame, span: timedelta | None, until: pd.Timestamp
) -> pd.DataFrame:
    since = _since(known, wanted, span, until)
    rows = known if span is None else known[~(known["closed"] <= until - span)]
    every = pd.MultiIndex.from_frame(known[_KEYS].drop_duplicates())
    errors = rows.assign(last_error=rows["last_error"].str.slice(0, _LONGEST_ERROR))
    figures: list[pd.DataFrame] = [
        _counts(rows).reindex(every, fill_value=0),
        _recovery(rows),
        _strength(rows, wanted, since, until, every),
        _most(errors, "last_error", 1, _MOST_ERRORS, "; ").to_frame("last_errors"),
        _most(rows, "resource", FLAPPING, _MOST_RESOURCES, ", ").to_frame("flapping"),
    ]
    frame = pd.concat([part.reindex(every) for part in figures], axis="columns")
    return frame.fillna({"last_errors": "", "flapping": ""})


def _since(
    known: pd.DataFrame, wanted: pd.DataFrame, span: timedelta | None, until: pd.Timestamp
) -> _Times:
    """When the window begins for each group."""
    detected = known.groupby("group")["detected"].min()
    noted = wanted.groupby("group")["at"].min().reindex(detected.index)
    first = noted.where(noted < detected, detected)
    return first if span is None else first.where(first.isna(), until - span)


def _counts(rows: pd.DataFrame) -> pd.DataFrame:
    recovered = rows["outcome"] == State.RECOVERED
    attempts = rows["attempts"]
    flags = pd.DataFrame({
        "incidents": True,
        "self_recovered": recovered & (attempts == 0),
        "recovered_first": recovered & (attempts == 1),
        "recovered_later": recovered & (attempts > 1),
        **{name: rows["outcome"] == outcome for outcome, name in _OUTCOMES.items()},
        "open": rows["outcome"].isna(),
    }, index=rows.index)  # fmt: skip
    flags = flags.fillna(value=False).astype("int64")
    return flags.groupby([rows[key] for key in _KEYS]).sum()


def _recovery(rows: pd.DataFrame) -> pd.DataFrame:
    recovered = rows[rows["outcome"].eq(State.RECOVERED).fillna(value=False)]
    by_key = recovered.groupby(_KEYS)["seconds"]
    median, p95 = by_key.quantile(0.5), by_key.quantile(0.95)
    return pd.DataFrame({"median_seconds": median, "p95_seconds": p95})


def _strength(
    rows: pd.DataFrame,
    wanted: pd.DataFrame,
    since: _Times,
    until: pd.Timestamp,
    every: pd.MultiIndex,
) -> pd.DataFrame:
    lacking = rows[rows["threads"] > 0].sort_values("detected")
    start = _later(lacking["detected"], lacking["group"].map(since))
    spans = lacking[[*_KEYS, "threads"]].assign(start=start, end=lacking["end"])
    groups = every.get_level_values("group")
    missing = _missing(spans).reindex(every, fill_value=0.0)
    all_wanted = _thread_seconds(wanted, since, until).reindex(groups).to_numpy()
    length = (until - since).dt.total_seconds().reindex(groups).to_numpy()
    strength = (1 - missing["thread_seconds"] / all_wanted).clip(0, 1)
    return pd.DataFrame({"full_strength": 1 - missing["seconds"] / length, "strength": strength})


def _missing(spans: pd.DataFrame) -> pd.DataFrame:
    """By group and container: thread-seconds that were missing, and seconds in which any were.

    Args:
        spans: From `start` to `end` so many `threads` were missing; in the order of `start`.
    """
    latest = spans.groupby(_KEYS)["end"].cummax()
    before = latest.groupby([spans[key] for key in _KEYS]).shift()
    fresh = _later(spans["start"], before.fillna(spans["start"]))
    alone = (spans["end"] - fresh).dt.total_seconds().clip(lower=0)
    each = (spans["end"] - spans["start"]).dt.total_seconds() * spans["threads"]
    sums = spans[_KEYS].assign(seconds=alone, thread_seconds=each)
    return sums.groupby(_KEYS)[["seconds", "thread_seconds"]].sum()


def _thread_seconds(wanted: pd.DataFrame, since: _Times, until: pd.Timestamp) -> "pd.Series[float]":
    """By group: the integral of `wanted` over the window; `wanted` in the order of `at`."""
    rows = wanted[wanted["group"].isin(since.index)]
    by_group = rows.groupby("group")
    begins = rows["group"].map(since)
    start = rows["at"].where(by_group.cumcount() > 0, begins)
    end = by_group["at"].shift(-1).fillna(until)
    seconds = (_later(end, begins) - _later(start, begins)).dt.total_seconds()
    return (seconds * rows["wanted"].astype("float64")).groupby(rows["group"]).sum()


def _later(one: _Times, other: _Times) -> _Times:
    return one.where(one > other, other)


def _most(
    rows: pd.DataFrame, column: str, least: int, most: int, separator: str
) -> "pd.Series[str]":
    """By group and container: the most frequent values, each with its number, as one text."""
    counts = rows.groupby([*_KEYS, column]).size().rename("number").reset_index()
    counts = counts[counts["number"] >= least]
    counts = counts.sort_values(["number", column], ascending=[False, True])
    top = counts.groupby(_KEYS).head(most)
    texts = top[column] + " (" + top["number"].astype("string") + ")"
    return texts.groupby([top[key] for key in _KEYS]).agg(separator.join)
