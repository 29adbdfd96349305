"""The advice: recorded incidents under other policies, summed up, and said in a sentence."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from math import isnan
from statistics import median

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dagster_amoro.core.model import State
from dagster_amoro.core.policy import RestartPolicy
from dagster_amoro_audit.columns import ADVICE
from dagster_amoro_audit.what_if.advice import advice, compare, grid, recommend, records
from dagster_amoro_audit.what_if.replay import Begun, Recorded, replay

START = datetime(2026, 3, 29, 0, 59, 30, tzinfo=UTC)  # half a minute before a clock change
NOW = START + timedelta(days=1)
POLICY = RestartPolicy(enabled=True, max_retries=3, grace_period=timedelta(minutes=5))


def frames(message: Sequence[tuple[str, Recorded]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The frames of some records, as the audit has them."""
    incidents = [
        {
            "group": group,
            "incident": number,
            "detected": one.detected_at,
            "outcome": one.outcome and str(one.outcome),
            "closed": one.ended_at if one.outcome else None,
            "grace_seconds": one.policy.grace_period.total_seconds(),
            "max_retries": one.policy.max_retries,
        }
        for number, (group, one) in enumerate(message)
    ]
    types = {
        "group": "string",
        "incident": "int64",
        "detected": "datetime64[us, UTC]",
        "outcome": "string",
        "closed": "datetime64[us, UTC]",
        "grace_seconds": "float64",
        "max_retries": "Int64",
    }
    return pd.DataFrame(incidents, columns=list(types)).astype(types), events(message)


def events(message: Sequence[tuple[str, Recorded]]) -> pd.DataFrame:
    """The events of their attempts, and some that say nothing here."""
    rows: list[tuple[int, str, datetime, int | None]] = []
    for number, (_, one) in enumerate(message):
        rows.append((number, "detected", one.detected_at, None))
        if one.obstacle:
            rows.append((number, "reported", one.detected_at, None))
        for nth, begun in enumerate(one.attempts, start=1):
            rows.append((number, "attempt", begun.at, nth))
            rows.append((number, "attempt-failed" if begun.failed else "started", begun.at, nth))
    types = {
        "incident": "int64", "kind": "string", "at": "datetime64[us, UTC]", "attempt": "Int64"
    }  # fmt: skip
    return pd.DataFrame(rows, columns=list(types)).astype(types)


def recorded(
    minutes: float, outcome: State | None = State.RECOVERED, *begun: float, failed: bool = False
) -> Recorded:
    """An incident that ended after so many minutes, with attempts after these."""
    attempts = [Begun(START + timedelta(minutes=at), failed) for at in begun]
    return Recorded(
        detected_at=START,
        ended_at=START + timedelta(minutes=minutes) if outcome else NOW,
        outcome=outcome,
        attempts=tuple(attempts),
        policy=POLICY,
    )


def advised(message: Sequence[Recorded], *policies: RestartPolicy) -> pd.DataFrame:
    """The advice on incidents of one group."""
    return advice(*frames([("g", one) for one in message]), policies or grid(POLICY), NOW)


def row(frame: pd.DataFrame, grace: float, group: str | None = None) -> pd.Series:
    """The row of a grace period in seconds; group None: of all."""
    same = frame["group"].isna() if group is None else frame["group"] == group
    (found,) = [r for _, r in frame[same & (frame["grace_seconds"] == grace)].iterrows()]
    return found


histories = st.lists(
    st.tuples(
        st.sampled_from(["g", "h", ""]),
        st.builds(
            lambda minutes, outcome, begun, failed: recorded(
                max(minutes, *begun, 0), outcome, *sorted(begun), failed=failed
            ),
            st.integers(0, 60),
            st.sampled_from([*(s for s in State if not s.is_open), None]),
            st.lists(st.integers(5, 50), max_size=3),
            st.booleans(),
        ),
    ),
    max_size=8,
)


@settings(max_examples=50, deadline=None)
@given(histories)
def test_frames_and_records_are_the_same(message: list[tuple[str, Recorded]]) -> None:
    """What goes into the frames comes out of them."""
    assert records(*frames(message), POLICY, NOW) == message


@pytest.mark.long
@settings(max_examples=25, deadline=None)
@given(histories)
def test_the_figures_are_those_of_the_replayed_incidents(
    message: list[tuple[str, Recorded]],
) -> None:
    """Counted here by hand, for all and for each group."""
    frame = advice(*frames(message), grid(POLICY), NOW)
    assert {name: str(kind) for name, kind in frame.dtypes.items()} == {
        column.name: column.type for column in ADVICE
    }
    groups = {None, *(group for group, _ in message)} if message else set()
    assert len(frame) == len(groups) * len(grid(POLICY))
    for policy in grid(POLICY):
        for group in groups:
            chosen = [one for name, one in message if group in {None, name}]
            found = row(frame, policy.grace_period.total_seconds(), group)
            results = [replay(one, policy) for one in chosen]
            waits = [r.waited.total_seconds() for r in results if r.waited is not None]
            assert found["attempts"] == sum(result.attempts for result in results)
            assert found["orphans"] == len(chosen) == sum(found[name] for name in ENDINGS)
            assert found["unknown"] == sum(not result.is_known for result in results)
            assert found["given_up"] == Counter(r.outcome for r in results)[State.EXHAUSTED]
            assert found["in_force"] == (policy == POLICY)
            assert (
                isnan(found["median_wait"])
                if not waits
                else found["median_wait"] == (pytest.approx(median(waits)))
            )


ENDINGS = [
    *("by_itself", "restarted", "unneeded_restarts", "given_up", "otherwise", "open", "unknown")
]


def test_in_force_the_figures_are_those_of_the_record() -> None:
    """One of each ending."""
    message = [
        recorded(3),
        recorded(6, State.RECOVERED, 5.5),
        recorded(21, State.EXHAUSTED, 5, 10, 15.5),
        recorded(4, State.RELEASED),
        recorded(0, None, 1439),
    ]
    found = row(advised(message), 300)
    assert [found[name] for name in ENDINGS] == [1, 1, 0, 1, 1, 1, 0]
    assert (found["closed"], found["attempts"]) == (4, 5)
    assert (found["median_recovery"], found["p95_recovery"]) == (360, 360)
    assert found["median_wait"] == 330


def test_an_incident_without_a_recorded_policy_uses_the_one_in_force() -> None:
    """The first of those to try."""
    incidents, attempts = frames([("g", recorded(3))])
    incidents["grace_seconds"] = float("nan")
    incidents["max_retries"] = pd.array([pd.NA], dtype="Int64")
    other = replace(POLICY, grace_period=timedelta(minutes=1))
    assert records(incidents, attempts, other, NOW)[0][1].policy == other


def test_what_was_reported_and_left_alone_is_never_restarted() -> None:
    """Unless it was attempted later on."""
    blocked = replace(recorded(3), obstacle="it was reported and left alone")
    mended = replace(recorded(6, State.RECOVERED, 5), obstacle="it was reported and left alone")
    assert [row(advised([one]), 0)["attempts"] for one in (blocked, mended)] == [0, 2]


def test_the_grid_begins_with_the_policy_in_force() -> None:
    """And does not repeat it; one that is switched off is tried as if it were on."""
    minutes = [policy.grace_period / timedelta(minutes=1) for policy in grid(POLICY)]
    assert minutes == [5, 0, 0.5, 1, 2, 10, 15, 30]
    assert all(policy.enabled for policy in grid(replace(POLICY, enabled=False)))
    odd = replace(POLICY, grace_period=timedelta(minutes=7))
    assert len(grid(odd)) == 9


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ([], "Too little history: 0 closed incidents, 10 needed."),
        ([recorded(3)], "Too little history: 1 closed incident, 10 needed."),
        ([recorded(3)] * 9 + [recorded(0, None)] * 9, "Too little history: 9 closed incidents"),
    ],
)
def test_little_history_gives_no_advice(message: list[Recorded], says: str) -> None:
    """Ten closed incidents are the least."""
    assert recommend(advised(message)).startswith(says)


def test_impatience_is_recommended_where_little_speaks_against_it() -> None:
    """Three of forty came back within three minutes; the others needed their restart."""
    message = [recorded(2.5)] * 3 + [recorded(5.25, State.RECOVERED, 5)] * 37
    assert recommend(advised(message)) == (
        "With a grace period of 30 s instead of 5 min, 3 of 40 orphans would have been restarted "
        "though they came back by themselves, and the 37 that needed a restart would have been "
        "back 4 min 30 s sooner (median)."
    )


def test_a_grace_period_that_the_start_up_outlasts_is_not_recommended() -> None:
    """They need a minute and a half to register: what half a minute means, nobody knows."""
    message = [recorded(6.5, State.RECOVERED, 5)] * 10
    assert recommend(advised(message)).startswith("With a grace period of 2 min instead of 5 min")


def test_patience_that_pays_is_confirmed() -> None:
    """All but two came back by themselves after four minutes."""
    message = [recorded(4)] * 20 + [recorded(6, State.RECOVERED, 5)] * 2
    assert recommend(advised(message)) == (
        "The grace period of 5 min suits this history: of 22 orphans, 20 came back by themselves "
        "and 2 after a restart. A shorter one would have restarted too many in vain, or cut them "
        "off while they started."
    )


def test_a_comparison_says_what_is_not_known_and_what_is_given_up() -> None:
    """More attempts are unknown, fewer give up."""
    message = [recorded(11, State.RECOVERED, 5, 10)] * 4 + [
        recorded(20, State.EXHAUSTED, 5, 10, 15)
    ]
    less, more = (replace(POLICY, max_retries=retries) for retries in (1, 4))
    frame = advised(message, POLICY, less, more)
    every = frame[frame["group"].isna()].to_dict("records")
    assert compare(every[0], every[1]) == (  # type: ignore[arg-type]
        "With 1 attempt instead of 3, 0 of 5 orphans would have been restarted though they came "
        "back by themselves, and 5 instead of 1 would be given up."
    )
    assert compare(every[2], every[1]).endswith(  # type: ignore[arg-type]
        " and 0 instead of 1 would be given up. "
        "Of 1 the record does not say how they would have ended."
    )
