"""How are days that are over summed up, once, so that nobody has to read their incidents again?

A day of UTC is settled when it is over by `LAG`. Its incidents are counted by how they ended on it,
their times to recover in buckets, and the threads that were missing by the parts of the day. Days
follow each other; each is written in one transaction, so a process can die anywhere, and of two
that settle at once one stops.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd

from dagster_amoro.core.counters import WIDTH
from dagster_amoro.core.model import State
from dagster_amoro.core.post_mortem import OTHER, UNKNOWN, class_of
from dagster_amoro.stores import day_sums
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro.stores.schema import COUNTS, OUTCOMES
from dagster_amoro_audit.fleet_history import MOMENT, read_found, read_notes

LAG: Final = timedelta(hours=1)  # clocks differ by minutes at most, and no tick takes longer
KEYS: Final = ["group", "container"]
BY_CAUSE: Final = [*KEYS, "cause"]
MOST_CAUSES: Final = 50
"""Causes that are counted apart, by group and container: the most frequent; others are `OTHER`."""
_DAY: Final = timedelta(days=1)
_NAMES: Final = {"group": "group_name", "container": "container_name"}  # in the ledger
_TEXTS: Final[dict[str, Any]] = dict.fromkeys(KEYS, "string")
_MISSING: Final = ["missing_seconds", "missing_thread_seconds"]
_ENDED: Final = {
    State.EXHAUSTED: "given_up",
    State.RELEASED: "released",
    State.SUPERSEDED: "superseded",
}


class Settled(NamedTuple):
    """What is known of all days that are settled."""

    until: pd.Timestamp | None  # the end of the last of them, UTC; None: none is settled
    incidents: pd.DataFrame  # by group and container: the `COUNTS`, and what was missing
    recovery: "pd.Series[Any]"  # how many recovered, by group, container and bucket of seconds
    causes: pd.DataFrame  # by group, container and cause of death: the `OUTCOMES`
    capacity: pd.DataFrame  # by group: as in the ledger's `keeper_capacity`


def settle(ledger: Ledger, now: datetime, log: Callable[[str], None]) -> Settled:
    """Settles the days that are over, one after the other, and returns what is settled then.

    An old ledger takes a while, of which the log hears; no more than a day is held in memory.
    """
    rows = day_sums.read(ledger)
    settled, before = settled_from(rows), rows.day
    start = settled.until
    if start is None:
        first = day_sums.first_detection(ledger)
        start = None if first is None else pd.Timestamp(first).floor("D")
    last = pd.Timestamp(now - LAG).tz_convert("UTC").floor("D")
    if start is None or start >= last:
        return settled
    going_on = read_found(ledger, day_sums.going_on(start.to_pydatetime()))
    for midnight in pd.date_range(start, last - _DAY, freq="D"):
        until, name = midnight + _DAY, f"{midnight:%Y-%m-%d}"
        span = midnight.to_pydatetime(), until.to_pydatetime()
        new = read_found(ledger, day_sums.detected(*span))
        incidents = pd.concat([going_on, new], ignore_index=True)
        if incidents.empty and until < last:
            continue  # the next day that has any settles it too
        known = known_by(incidents, until - MOMENT)
        of_day = summed(known, read_notes(ledger, *span), settled.capacity, midnight, until)
        settled = added(settled, of_day)
        touched = _touched(settled, of_day, midnight)
        if not day_sums.settle(ledger, before, _rows(of_day, name), _rows(touched, name)):
            return settled_from(day_sums.read(ledger))  # another process does it
        if midnight.day == 1 or until == last:
            log(f"{name} and the days before it are settled")
        before, going_on = name, incidents[known["closed"].isna()]
    return settled


def known_by(incidents: pd.DataFrame, moment: pd.Timestamp) -> pd.DataFrame:
    """What was known of incidents at a moment: later ones are left out, later ends are empty.

    None ended before its detection, as the clocks of two hosts may say it.
    """
    rows = incidents[incidents["detected"] <= moment]
    closed = rows["closed"].where(~(rows["closed"] < rows["detected"]), rows["detected"])
    closed = closed.where(closed <= moment)
    return rows.assign(closed=closed, outcome=rows["outcome"].where(closed.notna()))


def summed(
    known: pd.DataFrame,
    notes: pd.DataFrame,
    capacity: pd.DataFrame,
    since: pd.Timestamp | None,
    until: pd.Timestamp,
) -> Settled:
    """What a span of time adds to the sums.

    Args:
        known: The incidents that were not over at its beginning, or were detected in it, as they
            were known at its end.
        notes: What ticks noted in it.
        capacity: What was known of the groups at its beginning.
        since: Its beginning; None: it has none.
        until: Its end.
    """
    ended = known[known["outcome"].notna()]
    causes = by_cause(ended)
    tried = ended.groupby(KEYS)["attempts"].sum()
    counts = causes.groupby(level=KEYS).sum().assign(attempts=tried)
    every = pd.MultiIndex.from_frame(known[KEYS].drop_duplicates())
    lacking = missing(spans_of(known, since, until))
    figures = pd.concat([counts.reindex(every), lacking.reindex(every)], axis="columns").fillna(0)
    recovered = ended[ended["outcome"] == State.RECOVERED]
    took = (recovered["closed"] - recovered["detected"]).dt.total_seconds()
    recovery = recovered.assign(bucket=bucket(took)).groupby([*KEYS, "bucket"]).size()
    return Settled(until, figures, recovery, causes, advanced(capacity, known, notes))


def added(one: Settled, other: Settled) -> Settled:
    """The sums of a time and of the one that follows it."""
    return Settled(
        other.until,
        one.incidents.add(other.incidents, fill_value=0),
        one.recovery.add(other.recovery, fill_value=0),
        most_frequent(one.causes.add(other.causes, fill_value=0)),
        other.capacity,
    )


def spans_of(known: pd.DataFrame, since: pd.Timestamp | None, until: pd.Timestamp) -> pd.DataFrame:
    """From when until when the incidents were open, within a span of time."""
    start = known["detected"] if since is None else not_before(known["detected"], since)
    return known[[*KEYS, "threads"]].assign(start=start, end=known["closed"].fillna(until))


def not_before(times: "pd.Series[Any]", moment: pd.Timestamp) -> "pd.Series[Any]":
    """The later of each time and a moment."""
    return times.where(times > moment, moment)


def outcomes(ended: pd.DataFrame) -> pd.DataFrame:
    """The `OUTCOMES` of incidents, one of them 1 in each row, or none where it is open."""
    recovered, attempts = ended["outcome"] == State.RECOVERED, ended["attempts"]
    flags = pd.DataFrame({
        "self_recovered": recovered & (attempts == 0),
        "recovered_first": recovered & (attempts == 1),
        "recovered_later": recovered & (attempts > 1),
        **{name: ended["outcome"] == outcome for outcome, name in _ENDED.items()},
    }, index=ended.index)  # fmt: skip
    return flags.fillna(value=False).astype("int64")


def by_cause(incidents: pd.DataFrame) -> pd.DataFrame:
    """How many incidents had which of the `OUTCOMES`, by group, container and cause of death."""
    cause = incidents["cause"].fillna(UNKNOWN)
    counts = outcomes(incidents).groupby([*(incidents[key] for key in KEYS), cause]).sum()
    return most_frequent(counts)


def most_frequent(causes: pd.DataFrame) -> pd.DataFrame:
    """Of each group and container the most frequent causes; containers may have any number.

    Those that we know stay in any case, so that what was counted for one never falls.
    """
    if causes.empty or causes.groupby(level=KEYS).size().max() <= MOST_CAUSES:
        return causes
    place = causes.sum(axis="columns").groupby(level=KEYS).rank(method="first", ascending=False)
    names = causes.index.get_level_values("cause")
    is_ours = np.array([class_of(name) != OTHER for name in names])
    kept = names.where((place < MOST_CAUSES).to_numpy() | is_ours, OTHER)
    return causes.groupby([*map(causes.index.get_level_values, KEYS), kept]).sum()


def missing(spans: pd.DataFrame) -> pd.DataFrame:
    """By group and container: thread-seconds that were missing, and seconds in which any were.

    Args:
        spans: From `start` to `end` so many `threads` were missing.
    """
    spans = spans[spans["threads"] > 0].sort_values("start", kind="stable")
    latest = spans.groupby(KEYS)["end"].cummax()
    before = latest.groupby([spans[key] for key in KEYS]).shift()
    start = spans["start"]
    fresh = start.where(~(before > start), before)
    alone = (spans["end"] - fresh).dt.total_seconds().clip(lower=0)
    each = (spans["end"] - start).dt.total_seconds() * spans["threads"]
    sums = spans[KEYS].assign(missing_seconds=alone, missing_thread_seconds=each)
    return sums.groupby(KEYS)[_MISSING].sum()


def advanced(capacity: pd.DataFrame, incidents: pd.DataFrame, notes: pd.DataFrame) -> pd.DataFrame:
    """What is known of the groups after some more incidents and notes.

    What ticks noted holds until they note something else, and the first note of all before it too.
    """
    first = pd.concat([
        capacity["first_at"],
        incidents.groupby("group")["detected"].min(),
        notes.groupby("group")["at"].min(),
    ]).groupby(level="group").min()  # fmt: skip
    known = capacity.reindex(first.index)
    heads = known[["wanted"]].assign(at=known["noted_at"].fillna(first)).reset_index()
    noted = notes[["group", "at", "wanted"]].astype({"wanted": "float64"})
    steps = pd.concat([heads, noted], ignore_index=True)
    steps = steps.sort_values(["group", "at"], kind="stable")
    by_group = steps.groupby("group")
    wanted = by_group["wanted"].bfill()
    seconds = (by_group["at"].shift(-1) - steps["at"]).dt.total_seconds()
    passed = (wanted * seconds).groupby(steps["group"]).sum()
    last = steps.assign(wanted=wanted).dropna(subset=["wanted"]).groupby("group").tail(1)
    last = last.set_index("group").reindex(first.index)
    return pd.DataFrame({
        "first_at": first,
        "noted_at": last["at"],
        "wanted": last["wanted"],
        "thread_seconds": known["thread_seconds"].fillna(0.0) + passed,
    })  # fmt: skip


def bucket(seconds: "pd.Series[Any]") -> "np.ndarray[Any, Any]":
    """The numbers of the buckets that these times belong to."""
    numbers: np.ndarray[Any, Any] = np.rint(np.log1p(seconds.to_numpy()) / WIDTH).astype("int64")
    return numbers


def seconds_of(buckets: "pd.Index[Any]") -> "np.ndarray[Any, Any]":
    """The middle of each bucket: no time in it is further away than 1 %, and 0.01 s."""
    middles: np.ndarray[Any, Any] = np.expm1(buckets.to_numpy(float) * WIDTH)
    return middles


def _touched(settled: Settled, of_day: Settled, since: pd.Timestamp) -> Settled:
    """The sums of what a day, which began then, has changed."""
    keys, capacity = of_day.incidents.index, settled.capacity
    its = settled.recovery.reset_index("bucket").index.isin(keys)
    causes = settled.causes[settled.causes.reset_index("cause").index.isin(keys)]
    capacity = capacity[(capacity["first_at"] >= since) | (capacity["noted_at"] >= since)]
    incidents, recovery = settled.incidents.loc[keys], settled.recovery[its]
    return Settled(settled.until, incidents, recovery, causes, capacity)


def settled_from(rows: day_sums.Sums) -> Settled:
    """The sums in the rows of the ledger."""
    names = [*KEYS, *COUNTS, *_MISSING]
    ours = {name: key for key, name in _NAMES.items()}
    incidents = pd.DataFrame(map(dict, rows.incidents)).rename(columns=ours)
    incidents = incidents.reindex(columns=names).astype(_TEXTS).set_index(KEYS)
    found = [
        (row["group_name"], row["container_name"], int(name), number)
        for row in rows.incidents
        for name, number in json.loads(row["recovery"]).items()
    ]
    recovery = pd.DataFrame(found, columns=[*KEYS, "bucket", "number"])
    recovery = recovery.astype({**_TEXTS, "bucket": "int64", "number": "int64"})
    recovery = recovery.set_index([*KEYS, "bucket"])
    causes = _causes_from(rows)
    columns = ["group", "first_at", "noted_at", "wanted", "thread_seconds"]
    capacity = pd.DataFrame(map(dict, rows.capacity)).rename(columns=ours).reindex(columns=columns)
    times = dict.fromkeys(("first_at", "noted_at"), "datetime64[us, UTC]")
    capacity = capacity.astype({"group": "string", **times, "wanted": float}).set_index("group")
    until = None if rows.day is None else pd.Timestamp(rows.day, tz=UTC) + _DAY
    return Settled(until, incidents, recovery["number"], causes, capacity)


def _causes_from(rows: day_sums.Sums) -> pd.DataFrame:
    found = [
        {"group": row["group_name"], "container": row["container_name"], "cause": cause, **counts}
        for row in rows.incidents
        for cause, counts in json.loads(row["causes"]).items()
    ]
    frame = pd.DataFrame(found).reindex(columns=[*BY_CAUSE, *OUTCOMES])
    frame = frame.fillna(dict.fromkeys(OUTCOMES, 0))
    types: dict[str, Any] = dict.fromkeys(BY_CAUSE, "string") | dict.fromkeys(OUTCOMES, "int64")
    return frame.astype(types).set_index(BY_CAUSE)


def _rows(settled: Settled, name: str) -> day_sums.Sums:
    """The rows for the ledger."""
    recovery, causes = _buckets(settled.recovery), _counts(settled.causes)
    return day_sums.Sums(
        name,
        [
            {
                **dict(zip(_NAMES.values(), key, strict=True)),
                **{name: int(row[name]) for name in COUNTS},
                **{name: float(row[name]) for name in _MISSING},
                "recovery": json.dumps(recovery.get(key, {})),
                "causes": json.dumps(causes.get(key, {})),
            }
            for key, row in _records(settled.incidents)
        ],
        [
            {
                "group_name": group,
                "first_at": row["first_at"].to_pydatetime(),
                "noted_at": None if pd.isna(row["noted_at"]) else row["noted_at"].to_pydatetime(),
                "wanted": None if pd.isna(row["wanted"]) else int(row["wanted"]),
                "thread_seconds": float(row["thread_seconds"]),
            }
            for group, row in _records(settled.capacity)
        ],
    )


# Row by row: to split a frame by groups costs far more than to look at each of its few rows.
def _buckets(recovery: "pd.Series[Any]") -> dict[Any, dict[int, int]]:
    """How many recovered, by bucket; of each group and container."""
    found: dict[Any, dict[int, int]] = {}
    for (*key, place), number in zip(recovery.index, recovery.tolist(), strict=True):
        found.setdefault(tuple(key), {})[int(place)] = int(number)
    return found


def _counts(causes: pd.DataFrame) -> dict[Any, dict[str, dict[str, int]]]:
    """The counts that are not 0, by cause; of each group and container."""
    found: dict[Any, dict[str, dict[str, int]]] = {}
    for (*key, cause), row in _records(causes):
        numbers = {name: int(number) for name, number in row.items() if number}
        found.setdefault(tuple(key), {})[cause] = numbers
    return found


def _records(frame: pd.DataFrame) -> Iterator[tuple[Any, Mapping[Any, Any]]]:
    return zip(frame.index, frame.to_dict("records"), strict=True)
