"""What should be changed? The recorded incidents under other grace periods, and a sentence on it.

`dagster_amoro_audit.what_if.replay` says how another policy is replayed, and what the record
cannot tell.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final

import pandas as pd

from dagster_amoro.core.formatting import counted, duration
from dagster_amoro.core.model import EventKind, State
from dagster_amoro.core.policy import RestartPolicy
from dagster_amoro_audit.columns import ADVICE
from dagster_amoro_audit.frames import typed
from dagster_amoro_audit.what_if.replay import Begun, Recorded, Replayed, replay

GRACES: Final = tuple(timedelta(seconds=s) for s in (0, 30, 60, 120, 300, 600, 900, 1800))
KINDS: Final = (EventKind.ATTEMPT, EventKind.ATTEMPT_FAILED, EventKind.REPORTED)
"""The events that advice needs."""
_LEAST_HISTORY: Final = 10  # closed incidents; fewer say nothing
_ENDS: Final = (
    *("by_itself", "restarted", "unneeded_restarts", "given_up", "otherwise", "open", "unknown"),
)
_OBSTACLE: Final = "it was reported and left alone"
_TOLERATED: Final = 0.1  # share of the orphans that a better policy may restart in vain

Row = Mapping[str, Any]
"""One row of `advice`, by column."""


def grid(policy: RestartPolicy) -> list[RestartPolicy]:
    """The policies to try: the one in force first, then others that only differ in patience."""
    in_force = replace(policy, enabled=True)
    others = [replace(in_force, grace_period=grace) for grace in GRACES]
    return [in_force, *(other for other in others if other != in_force)]


def advice(
    incidents: pd.DataFrame,
    events: pd.DataFrame,
    policies: Sequence[RestartPolicy],
    now: datetime,
) -> pd.DataFrame:
    """What each policy would have done: the figures of `ADVICE`, per group and for all together.

    The six endings from `by_itself` to `unknown` add up to `orphans`. Incidents and events, of
    which the `KINDS` matter, are those of `fleet_history.read_record`; the record goes until `now`.
    The first policy is in force; it is also taken for those at detection that were not recorded.
    """
    recorded = records(incidents, events, policies[0], now)
    frame = pd.concat([
        _tried(recorded, policy).assign(in_force=_settings(policy) == _settings(policies[0]))
        for policy in policies
    ])  # fmt: skip
    order = ["group", "grace_seconds", "max_retries"]
    return typed(frame, ADVICE).sort_values(order, na_position="first", ignore_index=True)


def records(
    incidents: pd.DataFrame, events: pd.DataFrame, fallback: RestartPolicy, now: datetime
) -> list[tuple[str, Recorded]]:
    """The incidents of two frames, with the columns that `advice` needs, as records.

    The fallback is the policy of those whose own was not recorded.
    """
    attempts = _attempts(events)
    reported = set(events.loc[events["kind"] == EventKind.REPORTED, "incident"])
    names = "group", "incident", "detected", "outcome", "closed", "grace_seconds", "max_retries"
    rows = zip(*(_plain(incidents[name]) for name in names), strict=True)
    return [
        (
            group,
            Recorded(
                detected_at=detected,
                ended_at=closed or now,
                outcome=State(outcome) if outcome else None,
                attempts=attempts.get(number, ()),
                policy=_policy(grace, retries, fallback),
                obstacle=_OBSTACLE if number in reported and number not in attempts else None,
            ),
        )
        for group, number, detected, outcome, closed, grace, retries in rows
    ]


def has_ground(frame: pd.DataFrame) -> bool:
    """Whether an `advice` rests on enough incidents to say anything."""
    return _closed(frame) >= _LEAST_HISTORY


def recommend(frame: pd.DataFrame) -> str:
    """What an operator should know of an `advice`, in a sentence or two.

    The better policy is the one with the shortest grace period that gives up no more orphans than
    the one in force, and that has little to be said against it: those it restarts in vain, and
    those that the record knows nothing about, unlike for the one in force, are one in ten at most.
    """
    rows, closed = _of_all_groups(frame), _closed(frame)
    if closed < _LEAST_HISTORY:
        return f"Too little history: {counted(closed, 'closed incident')}, {_LEAST_HISTORY} needed."
    current = next(row for row in rows if row["in_force"])
    good = [
        row
        for row in rows
        if row["given_up"] <= current["given_up"]
        and _objections(row, current) <= _TOLERATED * row["orphans"]
    ]
    best = good[0] if good else min(rows, key=lambda row: _objections(row, current))
    return _confirmed(current) if best["in_force"] else compare(best, current)


def answer(frame: pd.DataFrame, wished: RestartPolicy) -> str:
    """What the wished policy would have meant next to the one in force, both in an `advice`."""
    rows = _of_all_groups(frame)
    other = next(
        row for row in rows if (row["grace_seconds"], row["max_retries"]) == _settings(wished)
    )
    current = next(row for row in rows if row["in_force"])
    few = current["closed"] < _LEAST_HISTORY
    return ("From little history: " if few else "") + compare(other, current)


def compare(other: Row, current: Row) -> str:
    """What another policy would have meant next to the one in force, by their rows of `advice`."""
    orphans = counted(other["orphans"], "orphan")
    in_vain = f"{other['unneeded_restarts']} of {orphans} would have been restarted though they"
    parts = [f"{in_vain} came back by themselves", _sooner(other, current)]
    if other["given_up"] != current["given_up"]:
        parts.append(f"{other['given_up']} instead of {current['given_up']} would be given up")
    sentence = f"With {_difference(other, current)}, {', and '.join(filter(None, parts))}."
    if other["unknown"]:
        sentence += f" Of {other['unknown']} the record does not say how they would have ended."
    return sentence


def _confirmed(current: Row) -> str:
    return (
        f"The grace period of {_grace(current)} suits this history: of "
        f"{counted(current['orphans'], 'orphan')}, {current['by_itself']} came back by themselves "
        f"and {current['restarted']} after a restart. A shorter one would have restarted too many "
        "in vain, or cut them off while they started."
    )


def _difference(other: Row, current: Row) -> str:
    parts = []
    if other["grace_seconds"] != current["grace_seconds"]:
        parts.append(f"a grace period of {_grace(other)} instead of {_grace(current)}")
    if other["max_retries"] != current["max_retries"]:
        attempts = counted(other["max_retries"], "attempt")
        parts.append(f"{attempts} instead of {current['max_retries']}")
    return " and ".join(parts) or "the policy in force"


def _sooner(other: Row, current: Row) -> str:
    """How much sooner those restarted would have been back; "" where there is nothing to say."""
    gain = current["median_recovery"] - other["median_recovery"]
    if pd.isna(gain):
        return ""
    when = f"{duration(timedelta(seconds=abs(gain)))} {'sooner' if gain > 0 else 'later'}"
    return (
        f"the {other['restarted']} that needed a restart would have been back "
        f"{when if round(gain) else 'as soon as they were'} (median)"
    )


def _grace(row: Row) -> str:
    return duration(timedelta(seconds=row["grace_seconds"]))


def _closed(frame: pd.DataFrame) -> int:
    return max((row["closed"] for row in _of_all_groups(frame)), default=0)


def _of_all_groups(frame: pd.DataFrame) -> list[Row]:
    return frame[frame["group"].isna()].to_dict("records")  # type: ignore[return-value]


def _settings(policy: RestartPolicy) -> tuple[float, int]:
    """By which the rows of a policy are known."""
    return policy.grace_period.total_seconds(), policy.max_retries


def _objections(row: Row, current: Row) -> int:
    return int(row["unneeded_restarts"] + max(0, row["unknown"] - current["unknown"]))


def _tried(recorded: Sequence[tuple[str, Recorded]], policy: RestartPolicy) -> pd.DataFrame:
    """The figures of one policy: of all groups together, and of each."""
    even = _even(policy)
    rows = [
        (group, *_figures(each, replay(replace(each, policy=_even(each.policy)), even)))
        for group, each in recorded
    ]
    names = ["group", "ending", "closed", "attempts", "wait", "recovery"]
    frame = pd.DataFrame(rows, columns=names).astype({"wait": float, "recovery": float})
    every = _summed(frame.assign(group="")).assign(group=None)
    grace, retries = _settings(policy)
    return pd.concat([every, _summed(frame)]).assign(grace_seconds=grace, max_retries=retries)


def _figures(recorded: Recorded, result: Replayed) -> tuple[object, ...]:
    ending, closed = _ending(result), result.closed_at
    took = closed - recorded.detected_at if closed and ending == "restarted" else None
    spans = (None if span is None else span.total_seconds() for span in (result.waited, took))
    return ending, recorded.outcome is not None, result.attempts, *spans


def _ending(result: Replayed) -> str:
    if not result.is_known:
        return "unknown"
    if result.outcome is State.EXHAUSTED:
        return "given_up"
    if result.outcome is not State.RECOVERED:
        return "otherwise" if result.outcome else "open"
    if result.is_unneeded:
        return "unneeded_restarts"
    return "restarted" if result.attempts else "by_itself"


def _summed(results: pd.DataFrame) -> pd.DataFrame:
    by_group = results.groupby("group")
    endings = pd.crosstab(results["group"], results["ending"])
    figures = pd.DataFrame({
        "orphans": by_group.size(),
        "closed": by_group["closed"].sum(),
        "attempts": by_group["attempts"].sum(),
        "median_wait": by_group["wait"].quantile(0.5),
        "p95_wait": by_group["wait"].quantile(0.95),
        "median_recovery": by_group["recovery"].quantile(0.5),
        "p95_recovery": by_group["recovery"].quantile(0.95),
    })  # fmt: skip
    return figures.join(endings.reindex(columns=_ENDS, fill_value=0)).reset_index()


def _attempts(events: pd.DataFrame) -> dict[int, tuple[Begun, ...]]:
    """The attempts of each incident, in their order."""
    failures = events[events["kind"] == EventKind.ATTEMPT_FAILED]
    failed = set(zip(failures["incident"], failures["attempt"], strict=True))
    begun = events[events["kind"] == EventKind.ATTEMPT]
    found: dict[int, list[Begun]] = {}
    rows = zip(begun["incident"], _plain(begun["at"]), begun["attempt"], strict=True)
    for number, at, attempt in rows:
        found.setdefault(number, []).append(Begun(at, (number, attempt) in failed))
    return {number: tuple(attempts) for number, attempts in found.items()}


def _even(policy: RestartPolicy) -> RestartPolicy:
    """The policy without jitter: what it added is part of the recorded latency."""
    return replace(policy, backoff_jitter=0.0)


def _policy(grace: float | None, retries: int | None, fallback: RestartPolicy) -> RestartPolicy:
    if grace is None or retries is None:
        return fallback
    return replace(fallback, max_retries=int(retries), grace_period=timedelta(seconds=grace))


def _plain(column: "pd.Series[Any]") -> list[Any]:
    """The values as Python's own, None where there is none."""
    return [
        None if missing else value.to_pydatetime() if isinstance(value, pd.Timestamp) else value
        for value, missing in zip(column, column.isna(), strict=True)
    ]
