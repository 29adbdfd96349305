"""Replaying incidents: exact under the recorded policy, honest under another."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dagster_amoro.core.model import State
from dagster_amoro.core.policy import Backoff, OnExhausted, RestartPolicy
from dagster_amoro_audit.what_if.replay import Begun, Recorded, Replayed, replay

START = datetime(2026, 3, 29, 0, 59, 30, tzinfo=UTC)  # half a minute before a clock change
LONG = 10**9  # ms; later than anything that happens in these histories


def policy(minutes: float = 5, max_retries: int = 3, *, enabled: bool = True) -> RestartPolicy:
    """A policy with its grace period in minutes."""
    grace = timedelta(minutes=minutes)
    return RestartPolicy(enabled=enabled, max_retries=max_retries, grace_period=grace)


def at(minutes: float) -> datetime:
    """So many minutes after the detection."""
    return START + timedelta(minutes=minutes)


def recorded(
    outcome: State | None, ended: float, *begun: float, failed: bool = False, retries: int = 3
) -> Recorded:
    """An incident under a grace period of five minutes; only its last attempt may have failed."""
    attempts = [Begun(at(minutes), failed=False) for minutes in begun]
    if attempts and failed:
        attempts[-1] = attempts[-1]._replace(failed=True)
    return Recorded(
        detected_at=START,
        ended_at=at(ended),
        outcome=outcome,
        attempts=tuple(attempts),
        policy=policy(5, retries),
    )


def simulated(
    random: Random, grace: int, max_retries: int, cap: int | None = None, *, keep: bool = False
) -> Recorded:
    """A history made by a little loop of its own, in milliseconds; open after 40 ticks.

    With a cap its pauses double up to it; with `keep` it stays open when its attempts are used up.
    """
    now, begun = 0, list[Begun]()
    back_at = random.choice([LONG, random.randrange(3 * grace + 1000)])
    gone_at = random.choice([LONG, LONG, random.randrange(3 * grace + 1000)])
    skew = random.choice([0, 0, random.randrange(8)])  # of the host that closes incidents
    outcome, ended = None, 0
    while outcome is None and (tick := ended + 1) < 41:
        now, ended = now + random.choice([0, 1, 500, 5000, 60_000]), tick
        last = round((begun[-1].at - START) / timedelta(milliseconds=1)) if begun else 0
        if back_at <= now:
            outcome, now = State.RECOVERED, now - skew
        elif gone_at <= now:
            outcome, now = random.choice([State.RELEASED, State.SUPERSEDED]), now - skew
        elif now >= last + (grace if cap is None else min(grace * 2 ** len(begun), cap)):
            now += random.choice([0, 0, 700, 90_000])  # in the queue
            if back_at <= now:
                outcome = State.RECOVERED
            elif len(begun) == max_retries:
                outcome = None if keep else State.EXHAUSTED
            else:
                failed = random.random() < 0.3
                begun.append(Begun(START + timedelta(milliseconds=now), failed))
                takes = random.choice([0, 20, 4000, 100_000, LONG])
                back_at = back_at if failed else min(back_at, now + takes)
    return Recorded(
        detected_at=START,
        ended_at=START + timedelta(milliseconds=now),
        outcome=outcome,
        attempts=tuple(begun),
        policy=replace(
            policy(grace / 60_000, max_retries),
            backoff=Backoff.CONSTANT if cap is None else Backoff.EXPONENTIAL,
            backoff_cap=timedelta(milliseconds=cap or 0),
            backoff_jitter=0.0,
            on_exhausted=OnExhausted.KEEP if keep else OnExhausted.CLEAN_UP,
        ),
    )


made = (
    simulated,
    st.integers(0, 2**32).map(Random),
    st.sampled_from([0, 1, 1000, 30_000, 120_000]),
    st.integers(0, 4),
    st.none() | st.sampled_from([120_000, 300_000]),
)
histories = st.builds(*made)
policies = st.builds(
    policy, st.sampled_from([0, 0.5, 1, 2, 5, 30]), st.integers(0, 6), enabled=st.booleans()
)


@settings(max_examples=1000, deadline=None)
@given(st.builds(*made, keep=st.booleans()))
def test_under_the_recorded_policy_it_gives_what_is_recorded(history: Recorded) -> None:
    """Outcome, attempts, closing time and first wait, for any ticks, queues and skewed clocks."""
    end = max([history.ended_at, history.detected_at, *(begun.at for begun in history.attempts)])
    assert replay(history, history.policy) == Replayed(
        outcome=history.outcome,
        attempts=len(history.attempts),
        closed_at=end if history.outcome else None,
        waited=history.attempts[0].at - START if history.attempts else None,
    )


@settings(deadline=None)
@given(histories, policies)
def test_under_any_policy_it_keeps_to_that_policy(history: Recorded, other: RestartPolicy) -> None:
    """No more attempts than allowed, none in the first grace period, no end before the start."""
    result = replay(history, other)
    assert result.attempts <= (other.max_retries if other.enabled else 0)
    assert (result.waited is None) == (result.attempts == 0)
    assert result.waited is None or result.waited >= other.grace_period
    assert result.closed_at is None or result.closed_at >= START
    assert (result.closed_at is None) == (result.outcome is None)
    assert result.is_known or result.outcome is None
    assert not result.is_unneeded or history.outcome is State.RECOVERED


@settings(deadline=None)
@given(histories, st.integers(0, 4))
def test_fewer_retries_never_make_more_attempts(history: Recorded, fewer: int) -> None:
    """With the recorded grace period every result is known where no retry is added."""
    less = replace(history.policy, max_retries=min(fewer, history.policy.max_retries))
    result = replay(history, less)
    assert result.is_known
    assert result.attempts == min(len(history.attempts), less.max_retries)


@pytest.mark.parametrize(("grace", "attempts"), [(2, 1), (3, 0), (5, 0)])
def test_what_came_back_by_itself_is_restarted_in_vain_by_the_impatient(
    grace: float, attempts: int
) -> None:
    """It was back after three minutes; at the very moment, coming back wins."""
    result = replay(recorded(State.RECOVERED, 3), policy(grace))
    assert (result.attempts, result.is_unneeded) == (attempts, attempts == 1)
    assert (result.outcome, result.closed_at) == (State.RECOVERED, at(3))


def test_what_an_attempt_brought_back_is_back_as_much_sooner_as_the_attempt() -> None:
    """Two minutes of patience instead of five: the half minute of latency and start-up stays."""
    result = replay(recorded(State.RECOVERED, 6, 5.5), policy(2))
    assert result.closed_at == at(3)
    assert result.waited == timedelta(minutes=2.5)
    assert (result.attempts, result.is_unneeded) == (1, False)


def test_later_attempts_follow_the_earlier_ones() -> None:
    """Each keeps its latency: 5.5, 11, 17 become 2.5, 5, 8."""
    result = replay(recorded(State.RECOVERED, 18, 5.5, 11, 17), policy(2))
    assert (result.attempts, result.closed_at) == (3, at(9))


def test_a_failed_last_attempt_did_not_bring_it_back() -> None:
    """It came by itself, at its own time."""
    result = replay(recorded(State.RECOVERED, 7, 5, failed=True), policy(4))
    assert (result.outcome, result.closed_at, result.attempts) == (State.RECOVERED, at(7), 1)
    assert replay(recorded(State.RECOVERED, 7, 5, failed=True), policy(1)).is_unneeded


def test_with_fewer_retries_it_is_given_up_before_the_attempt_that_helped() -> None:
    """Recovered by the third attempt; with two it is given up when the third was due."""
    result = replay(recorded(State.RECOVERED, 18, 5, 10, 17), policy(5, 2))
    assert (result.outcome, result.attempts, result.closed_at) == (State.EXHAUSTED, 2, at(17))


def test_without_retries_it_is_given_up_though_it_was_coming_back() -> None:
    """Two minutes of patience, back after three."""
    result = replay(recorded(State.RECOVERED, 3), policy(2, 0))
    assert (result.outcome, result.attempts, result.closed_at) == (State.EXHAUSTED, 0, at(2))
    assert result.waited is None


def test_with_more_retries_nobody_knows() -> None:
    """Given up after one attempt; what a second had done is not recorded."""
    result = replay(recorded(State.EXHAUSTED, 10, 5, retries=1), policy(5, 2))
    assert (result.is_known, result.outcome, result.closed_at) == (False, None, None)


def test_a_grace_period_shorter_than_the_start_up_has_no_known_result() -> None:
    """It needs three minutes to register, and the next attempt cuts it off after two."""
    assert not replay(recorded(State.RECOVERED, 8, 5), policy(2)).is_known
    given_up = replay(recorded(State.RECOVERED, 8, 5), policy(2, 1))
    assert (given_up.outcome, given_up.closed_at) == (State.EXHAUSTED, at(4))


@pytest.mark.parametrize("outcome", [State.RELEASED, State.SUPERSEDED, None])
def test_the_end_from_outside_comes_when_it_came(outcome: State | None) -> None:
    """To what is open then; what was given up before is closed, what was tried more is unknown."""
    record = recorded(outcome, 12, 5)
    patient = replay(record, policy(20))
    assert (patient.outcome, patient.attempts) == (outcome, 0)
    assert patient.closed_at == (at(12) if outcome else None)
    assert patient.is_known
    assert replay(record, policy(4, 1)).outcome is State.EXHAUSTED
    assert not replay(record, policy(1)).is_known


def test_what_cannot_be_restarted_never_is() -> None:
    """An obstacle, or auto-restart switched off: it comes back by itself, or nobody knows."""
    record = recorded(State.RECOVERED, 30)
    blocked = replay(replace(record, obstacle="its container opts out"), policy(1))
    assert blocked == replay(record, policy(1, enabled=False))
    assert (blocked.attempts, blocked.closed_at) == (0, at(30))
    assert not replay(recorded(State.RECOVERED, 6, 5), policy(enabled=False)).is_known


def test_doubled_pauses_are_replayed_with_their_latency() -> None:
    """Attempts at 5.5, 16 and 37 minutes, not at 5.5, 11 and 17: 5 + 10 + 20, and the latency."""
    doubling = replace(policy(), backoff=Backoff.EXPONENTIAL, backoff_jitter=0.0)
    result = replay(recorded(State.RECOVERED, 18, 5.5, 11, 17), doubling)
    assert (result.attempts, result.closed_at) == (3, at(38))


def test_what_is_kept_is_never_given_up() -> None:
    """With fewer attempts than brought it back nobody knows; it may have come back all the same."""
    keeping = replace(policy(5, 2), on_exhausted=OnExhausted.KEEP)
    result = replay(recorded(State.RECOVERED, 18, 5, 10, 17), keeping)
    assert (result.is_known, result.outcome, result.attempts) == (False, None, 2)
    by_itself = replay(recorded(State.RECOVERED, 30), replace(keeping, max_retries=0))
    assert (by_itself.outcome, by_itself.closed_at) == (State.RECOVERED, at(30))
