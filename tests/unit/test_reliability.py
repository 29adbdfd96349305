"""The reliability figures, against a computation that counts every second by hand."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from math import isnan, nan

import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dagster_amoro.stores.day_sums import Sums
from dagster_amoro_audit.columns import RELIABILITY
from dagster_amoro_audit.reliability import WINDOWS, causes_of_death, reliability
from dagster_amoro_audit.settling import MOST_CAUSES, Settled, added, known_by, settled_from, summed

ORIGIN = datetime(2026, 10, 25, 0, 59, tzinfo=UTC)  # a minute before a clock change
NOW = 120  # s after it
SPANS: Mapping[str, int | None] = {"short": 20, "long": 90, "all": None}  # s
LONGEST = 90  # s
NOTHING = settled_from(Sums(None, [], []))
MOMENT = timedelta(microseconds=1)
OUTCOMES = ["recovered", "exhausted", "released", "superseded"]
SKEW = 0.25  # s that a closing host's clock is behind, where it matters


@dataclass(frozen=True)
class One:
    """An incident in seconds after `ORIGIN`; closed at None: open."""

    group: str
    container: str
    resource: str
    threads: int
    detected: int
    closed: float | None
    outcome: str
    attempts: int
    error: str | None
    cause: str | None = None


@dataclass(frozen=True)
class Noted:
    """What a tick noted of a group's threads."""

    group: str
    at: int
    wanted: int | None


def incidents_frame(incidents: Sequence[One]) -> pd.DataFrame:
    """The frame of some incidents, with the types of the audit."""
    rows = [
        {
            "group": one.group,
            "incident": number,
            "resource": one.resource,
            "container": one.container,
            "threads": one.threads,
            "detected": ORIGIN + timedelta(seconds=one.detected),
            "attempts": one.attempts,
            "last_error": one.error,
            "cause": one.cause,
            "outcome": None if one.closed is None else one.outcome,
            "closed": None if one.closed is None else ORIGIN + timedelta(seconds=one.closed),
        }
        for number, one in enumerate(incidents)
    ]
    types = {
        **dict.fromkeys(
            ("group", "resource", "container", "last_error", "outcome", "cause"), "string"
        ),
        **dict.fromkeys(("incident", "threads", "attempts"), "int64"),
        **dict.fromkeys(("detected", "closed"), "datetime64[us, UTC]"),
    }
    return pd.DataFrame(rows, columns=list(types)).astype(types)


def capacity_frame(noted: Sequence[Noted]) -> pd.DataFrame:
    """The frame of what ticks noted."""
    rows = [(one.group, ORIGIN + timedelta(seconds=one.at), one.wanted, None) for one in noted]
    frame = pd.DataFrame(rows, columns=["group", "at", "wanted", "live"])
    types = {"at": "datetime64[us, UTC]", "wanted": "Int64", "live": "Int64", "group": "string"}
    return frame.astype(types)


def computed(
    incidents: Sequence[One],
    noted: Sequence[Noted],
    now: int = NOW,
    settled: Settled = NOTHING,
) -> dict[tuple[str, str, str], dict[str, object]]:
    """What `reliability` says, by group, container and window."""
    windows = {name: timedelta(seconds=s) for name, s in SPANS.items() if s is not None}
    at = ORIGIN + timedelta(seconds=now)
    notes = capacity_frame(noted).dropna(subset=["wanted"])
    frame = reliability(incidents_frame(incidents), notes, settled, at, windows)
    assert {name: str(kind) for name, kind in frame.dtypes.items()} == {
        column.name: column.type for column in RELIABILITY
    }
    rows: list[dict[str, object]] = frame.to_dict("records")  # type: ignore[assignment]
    return {(str(row["group"]), str(row["container"]), str(row["window"])): row for row in rows}


def expected(
    incidents: Sequence[One], noted: Sequence[Noted], group: str, container: str, window: str
) -> dict[str, object]:
    """The same for one row, second by second in plain Python."""
    span = SPANS[window]
    ours = [one for one in incidents if one.group == group and one.detected <= NOW]
    steps = [(n.at, n.wanted) for n in noted if n.group == group and n.at <= NOW]
    steps = [step for step in steps if step[1] is not None]
    begin = min([one.detected for one in ours] + [at for at, _ in steps])
    begin = begin if span is None else NOW - span
    rows = [one for one in ours if one.container == container]
    rows = [one for one in rows if span is None or is_after(closing(one), begin)]
    seconds = range(begin, NOW)
    missing = [sum(one.threads for one in rows if is_open(one, second)) for second in seconds]
    wanted = sum(wanted_at(steps, second) for second in seconds)
    ended = [one for one in rows if closing(one) is not None]
    took = sorted((closing(o) or 0) - o.detected for o in ended if o.outcome == "recovered")
    tried = Counter(min(one.attempts, 2) for one in ended if one.outcome == "recovered")
    outcomes = Counter(one.outcome for one in ended)
    shown = rows
    if span is None:
        ends = [closing(one) for one in rows]
        shown = [one for one, end in zip(rows, ends, strict=True) if is_after(end, NOW - LONGEST)]
    strength = min(1, max(0, 1 - sum(missing) / wanted)) if wanted else nan
    if wanted == 0 and steps and sum(missing):
        strength = 0.0  # something is missing where nothing is wanted
    return {
        "incidents": len(rows),
        "self_recovered": tried[0],
        "recovered_first": tried[1],
        "recovered_later": tried[2],
        "given_up": outcomes["exhausted"],
        "released": outcomes["released"],
        "superseded": outcomes["superseded"],
        "open": len(rows) - len(ended),
        "median_seconds": quantile(took, 0.5),
        "p95_seconds": quantile(took, 0.95),
        "full_strength": missing.count(0) / len(missing) if missing else nan,
        "strength": strength,
        "causes": top([one.cause or "unknown" for one in rows], 1, 10, ", "),
        "last_errors": top([one.error for one in shown if one.error], 1, 3, "; "),
        "flapping": top([one.resource for one in shown], 3, 10, ", "),
    }


def is_after(end: float | None, moment: float) -> bool:
    """Whether it ended after a moment, or is open."""
    return end is None or end > moment


def closing(one: One) -> float | None:
    """When it closed, if it did by now; never before its detection."""
    closed = None if one.closed is None else max(one.closed, one.detected)
    return closed if closed is not None and closed <= NOW else None


def is_open(one: One, second: int) -> bool:
    """Whether it is open in the second that begins then."""
    closed = closing(one)
    return one.detected <= second and (closed is None or closed > second)


def wanted_at(steps: Sequence[tuple[int, int | None]], second: int) -> int:
    """The last value noted by then, else the first of all."""
    by_time = sorted(steps, key=lambda step: step[0])
    past = [wanted for at, wanted in by_time if at <= second]
    return (past[-1] if past else by_time[0][1] if by_time else 0) or 0


def quantile(values: Sequence[float], share: float) -> float:
    """Between the two values that are next to it, in proportion."""
    if not values:
        return nan
    place = share * (len(values) - 1)
    low = int(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (values[high] - values[low]) * (place - low)


def top(values: Sequence[str], least: int, most: int, separator: str) -> str:
    """The most frequent values as the reader sees them."""
    often = [(-n, value) for value, n in Counter(values).items() if n >= least]
    return separator.join(f"{value} ({-n})" for n, value in sorted(often)[:most])


def same(one: object, other: object, window: str, name: str) -> bool:
    """Equal, up to rounding; NaN is NaN. Percentiles of all times are those of buckets."""
    if isinstance(one, float) and isinstance(other, float) and isnan(one):
        return isnan(other)
    if window == "all" and name in {"median_seconds", "p95_seconds"} and isinstance(other, float):
        return one == pytest.approx(other, abs=0.01 * other + 0.0101)  # 1 %, and 0.01 s
    return one == (pytest.approx(other) if isinstance(other, float) else other)


def some_incident(detected: int, lasted: int | None, rest: tuple[object, ...]) -> One:
    """An incident that lasted so many seconds; -1: its closing clock was behind."""
    group, container, resource, threads, outcome, attempts, error, cause = rest
    closed = None if lasted is None else detected + lasted if lasted >= 0 else detected - SKEW
    return One(
        str(group),
        str(container),
        str(resource),
        int(str(threads)),
        detected,
        closed,
        str(outcome),
        int(str(attempts)),
        None if error is None else str(error),
        None if cause is None else str(cause),
    )


incidents_strategy = st.lists(
    st.builds(
        some_incident,
        st.integers(0, NOW + 10),
        st.none() | st.integers(-1, 60),
        st.tuples(
            st.sampled_from(["", "g", "h"]),
            st.sampled_from(["local", "flink"]),
            st.sampled_from(["w-1", "w-2", "w-3", "w-4"]),
            st.integers(0, 3),
            st.sampled_from(OUTCOMES),
            st.integers(0, 3),
            st.sampled_from([None, "timeout", "no such file", "exit code 3", "refused"]),
            st.sampled_from([None, "unknown", "killed", "exit 3", "out of memory"]),
        ),
    ),
    max_size=30,
)
noted_strategy = st.lists(
    st.builds(
        Noted,
        st.sampled_from(["", "g", "x"]),
        st.integers(0, NOW + 10),
        st.none() | st.integers(0, 9),
    ),
    max_size=12,
)


@pytest.mark.long
@settings(max_examples=50, deadline=None)
@given(incidents_strategy, noted_strategy)
@example([some_incident(0, 0, ("", "local", "w-1", 0, "recovered", 0, None, None))] * 6, [])
def test_every_figure_is_what_counting_by_hand_gives(
    incidents: list[One], noted: list[Noted]
) -> None:
    """For any overlap of incidents and windows, and any notes on the capacity."""
    rows = computed(incidents, noted)
    keys = {(one.group, one.container) for one in incidents if one.detected <= NOW}
    assert set(rows) == {(*key, window) for key in keys for window in SPANS}
    for (group, container, window), row in rows.items():
        for name, value in expected(incidents, noted, group, container, window).items():
            assert same(row[name], value, window, name), (group, container, window, name)


def settled_by(incidents: Sequence[One], noted: Sequence[Noted], days: Sequence[int]) -> Settled:
    """The sums of spans that end so many seconds after `ORIGIN`, one after the other."""
    frame, notes = incidents_frame(incidents), capacity_frame(noted).dropna(subset=["wanted"])
    settled, since = NOTHING, pd.Timestamp(ORIGIN)
    for end in days:
        until = pd.Timestamp(ORIGIN) + timedelta(seconds=end)
        known = known_by(frame, until - MOMENT)
        going_on = known[~(known["closed"] < since)]
        of_span = notes[(notes["at"] >= since) & (notes["at"] < until)]
        settled = added(settled, summed(going_on, of_span, settled.capacity, since, until))
        since = until
    return settled


@pytest.mark.long
@settings(max_examples=50, deadline=None)
@given(
    incidents_strategy,
    noted_strategy,
    st.lists(st.integers(1, NOW - 1), max_size=5, unique=True).map(sorted),
)
def test_sums_of_days_and_the_rest_give_what_all_incidents_give(
    incidents: list[One], noted: list[Noted], days: list[int]
) -> None:
    """Wherever the days end, and whatever spans them; so the figures of the whole time agree."""
    settled = settled_by(incidents, noted, days)
    rows, whole = computed(incidents, noted, settled=settled), computed(incidents, noted)
    assert rows.keys() == whole.keys()
    for key, row in rows.items():
        for name, value in row.items():
            assert value == pytest.approx(whole[key][name], nan_ok=True), (key, name)


@pytest.mark.long
@settings(max_examples=20, deadline=None)
@given(incidents_strategy)
def test_incidents_are_their_outcomes_and_those_open(incidents: list[One]) -> None:
    """Nothing is counted twice or forgotten."""
    parts = ["self_recovered", "recovered_first", "recovered_later", "given_up", "released"]
    for row in computed(incidents, []).values():
        counts = {name: int(str(row[name])) for name in ["incidents", "superseded", "open", *parts]}
        assert counts.pop("incidents") == sum(counts.values())


def incident(detected: int, closed: float | None, outcome: str = "recovered") -> One:
    """One of a single worker with two threads."""
    return One("g", "local", "w-1", 2, detected, closed, outcome, 0, None)


@pytest.mark.parametrize(
    ("detected", "closed", "now", "number", "still_open"),
    [
        (50, 99, 120, 0, 0),
        (50, 100, 120, 0, 0),  # closed as the window begins
        (50, 101, 120, 1, 0),
        (120, None, 120, 1, 1),  # detected this moment
        (121, None, 120, 0, 0),
        (50, 120, 120, 1, 0),  # closed this moment
        (50, 121, 120, 1, 1),  # not closed yet, as seen from now
        (101, 100.75, 120, 1, 0),  # closed by a clock that is behind
    ],
)
def test_which_incidents_belong_to_a_window(
    detected: int, closed: float | None, now: int, number: int, still_open: int
) -> None:
    """The last 20 seconds before second 120."""
    rows = computed([incident(detected, closed), incident(0, 1)], [], now)
    row = rows["g", "local", "short"]
    assert (row["incidents"], row["open"]) == (number, still_open)


def test_half_of_the_threads_for_half_of_the_time() -> None:
    """Two of four threads missing for ten of twenty seconds: three quarters of full strength."""
    row = computed([incident(90, 110)], [Noted("g", 95, 4)])["g", "local", "short"]
    assert (row["full_strength"], row["strength"]) == (0.5, 0.75)


def test_what_was_never_noted_is_not_known() -> None:
    """The share of time is known all the same."""
    row = computed([incident(110, None)], [Noted("other", 0, 4)])["g", "local", "short"]
    assert row["full_strength"] == 0.5
    assert isnan(float(str(row["strength"])))


def test_long_errors_are_cut_and_those_that_look_alike_are_one() -> None:
    """120 characters are shown."""
    errors = ["x" * 120 + "1", "x" * 120 + "2", "y"]
    ones = [One("g", "local", "w", 1, 100, None, "", 1, error) for error in errors]
    row = computed(ones, [])["g", "local", "all"]
    assert row["last_errors"] == "x" * 120 + " (2); y (1)"


def test_no_incidents_are_no_rows() -> None:
    """With the types of the others."""
    assert computed([], []) == {}
    assert list(WINDOWS) == ["hour", "day", "week"]


def test_of_very_many_causes_the_most_frequent_are_counted_apart() -> None:
    """The others together, so that a container with a cause of its own each time costs no more."""
    counts = Counter({f"pid {number}": 1 + number // 100 for number in range(120)})
    ones = [
        replace(incident(1, 2), cause=cause) for cause in counts.elements() for _ in ("one", "two")
    ]
    settled = settled_by(ones, [], [40, 80])
    numbers = settled.causes["self_recovered"].droplevel(["group", "container"]).to_dict()
    assert len(numbers) == MOST_CAUSES
    assert sum(numbers.values()) == len(ones)
    assert {f"pid {number}" for number in range(100, 120)} < set(numbers)
    others = settled_by([replace(each, detected=41, closed=42) for each in ones], [], [40, 80])
    twice = added(settled, others).causes
    assert len(twice) == MOST_CAUSES
    assert twice["self_recovered"].sum() == 2 * len(ones)


def test_causes_of_death_are_counted_by_how_it_ended() -> None:
    """Of all times: what is settled, what came later, and what is open."""
    ones = [
        replace(incident(1, 2), cause="killed"),
        replace(incident(3, 70, "exhausted"), cause="killed"),
        replace(incident(70, None), cause="exit 3"),
        incident(90, None),
    ]
    frame = incidents_frame(ones)
    at = ORIGIN + timedelta(seconds=NOW)
    for settled in (NOTHING, settled_by(ones, [], [40])):
        found = causes_of_death(frame, settled, at).set_index("cause")
        assert found["incidents"].to_dict() == {"killed": 2, "exit 3": 1, "unknown": 1}
        assert found["given_up"].to_dict() == {"killed": 1, "exit 3": 0, "unknown": 0}
        assert found["open"].to_dict() == {"killed": 0, "exit 3": 1, "unknown": 1}
