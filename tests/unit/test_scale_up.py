"""When a group gets a new resource, how often in a row, and when that ends."""

from datetime import UTC, datetime, timedelta
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagster_amoro.core.model import Incident, Orphan, ScaleUp, ScaleUpState, State
from dagster_amoro.core.policy import NEARLY, RestartPolicy, is_coming
from dagster_amoro.core.scale_up import ScaleDecision, coming, next_round, scale_decision

NOW: Final = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
MICROSECOND: Final = timedelta(microseconds=1)
GRACE: Final = timedelta(minutes=5)
POLICY: Final = RestartPolicy(enabled=True, max_retries=3, grace_period=GRACE)
ROUND: Final = ScaleUp("g", 8, rounds=1, state=ScaleUpState.STARTED, next_at=NOW)


NEVER: Final = datetime.max.replace(tzinfo=UTC)


def chosen(  # noqa: PLR0913 - what the table depends on
    scale_up: ScaleUp | None = None,
    *,
    min_parallelism: int = 8,
    live: int = 0,
    on_its_way: int = 0,
    claimed: bool = False,
    most: int = 3,
    latest: datetime = NEVER,
    now: datetime = NOW,
) -> ScaleDecision:
    """What is to be done for a group that has nothing of eight threads, unless told otherwise."""
    return scale_decision(
        scale_up,
        min_parallelism=min_parallelism,
        live=live,
        coming=on_its_way,
        claimed=claimed,
        max_rounds=most,
        latest=latest,
        now=now,
    )


# --- The table -----------------------------------------------------------------------------------


def test_a_group_that_misses_a_thread_gets_a_resource() -> None:
    """Exactly at its min-parallelism it gets none; orphans that come back count."""
    assert chosen(live=7) is ScaleDecision.START
    assert chosen(live=8) is ScaleDecision.REST
    assert chosen(live=5, on_its_way=2) is ScaleDecision.START
    assert chosen(live=5, on_its_way=3) is ScaleDecision.REST


def test_rounds_are_forgotten_only_once_the_threads_are_there() -> None:
    """An orphan in its grace period may still be lost."""
    assert chosen(ROUND, live=8) is ScaleDecision.SETTLE
    assert chosen(ROUND, live=7, on_its_way=1) is ScaleDecision.REST


def test_a_group_without_a_floor_is_settled() -> None:
    """It was removed after a round; nothing is missing any more."""
    for state in ScaleUpState:
        assert chosen(ROUND._replace(state=state), min_parallelism=0) is ScaleDecision.SETTLE


def test_the_next_round_begins_on_the_microsecond() -> None:
    """Not one before."""
    assert chosen(ROUND, now=NOW - NEARLY - MICROSECOND) is ScaleDecision.WAIT
    assert chosen(ROUND, now=NOW - NEARLY) is not ScaleDecision.WAIT
    assert chosen(ROUND) is ScaleDecision.START


def test_the_last_round_gets_its_pause_before_it_is_said_that_it_did_not_help() -> None:
    """And it is said once."""
    last = ROUND._replace(rounds=3)
    assert chosen(last, now=NOW - NEARLY - MICROSECOND) is ScaleDecision.WAIT
    assert chosen(last) is ScaleDecision.STOP
    assert chosen(last._replace(state=ScaleUpState.STOPPED)) is ScaleDecision.STOPPED


def test_another_floor_is_another_matter() -> None:
    """A person looked at it: neither a pause nor an end of the old rounds counts."""
    waiting = ROUND._replace(next_at=NOW + GRACE)
    stopped = ROUND._replace(rounds=3, state=ScaleUpState.STOPPED)
    for scale_up in (waiting, stopped):
        assert chosen(scale_up, min_parallelism=9) is ScaleDecision.START
        assert chosen(scale_up, min_parallelism=7) is ScaleDecision.START


def test_a_run_that_is_at_it_is_waited_for() -> None:
    """Whatever was counted meanwhile, it writes down how it ends."""
    for live in (0, 8):
        assert chosen(ROUND, live=live, claimed=True) is ScaleDecision.WAIT


@given(
    scale_up=st.none()
    | st.builds(
        ScaleUp,
        st.just("g"),
        st.integers(0, 3),
        rounds=st.integers(0, 4),
        state=st.sampled_from(ScaleUpState),
        next_at=st.none() | st.sampled_from([NOW, NOW + NEARLY, NOW + NEARLY + MICROSECOND]),
    ),
    min_parallelism=st.integers(0, 3),
    live=st.integers(0, 4),
    on_its_way=st.integers(0, 3),
    claimed=st.booleans(),
    most=st.integers(0, 3),
)
def test_follows_the_table(  # noqa: PLR0913 - what the table depends on
    scale_up: ScaleUp | None,
    min_parallelism: int,
    live: int,
    on_its_way: int,
    most: int,
    *,
    claimed: bool,
) -> None:
    """The first row that applies, as the table has them."""
    known = scale_up or ScaleUp("g", -1)  # none has this min-parallelism
    table = [
        (scale_up is not None and claimed, ScaleDecision.WAIT),
        (min_parallelism <= live, ScaleDecision.REST if scale_up is None else ScaleDecision.SETTLE),
        (min_parallelism <= live + on_its_way, ScaleDecision.REST),
        (min_parallelism != known.min_parallelism, ScaleDecision.START),
        (known.state is ScaleUpState.STOPPED, ScaleDecision.STOPPED),
        (known.next_at == NOW + NEARLY + MICROSECOND, ScaleDecision.WAIT),
        (known.rounds < most, ScaleDecision.START),
        (True, ScaleDecision.STOP),
    ]
    expected = next(what for applies, what in table if applies)
    found = chosen(
        scale_up,
        min_parallelism=min_parallelism,
        live=live,
        on_its_way=on_its_way,
        claimed=claimed,
        most=most,
    )
    assert found is expected


# --- The rounds ----------------------------------------------------------------------------------


def begun(
    scale_up: ScaleUp | None, now: datetime, min_parallelism: int = 8, interval: timedelta = GRACE
) -> ScaleUp:
    """The next round of a group, begun now."""
    return next_round(
        scale_up,
        "g",
        min_parallelism=min_parallelism,
        threads=min_parallelism,
        resource_id="r",
        interval=interval,
        now=now,
    )


@given(
    most=st.integers(1, 8),
    interval=st.timedeltas(timedelta(seconds=1), timedelta(days=1)),
)
def test_rounds_are_those_of_amoro(most: int, interval: timedelta) -> None:
    """Each is followed by a pause of one interval more than the one before; then it stops.

    Amoro queues a group again after `interval x attempts`, where attempts is one higher after each
    resource that it started, and says that it did not help where attempts exceeds the most.
    """
    scale_up: ScaleUp | None = None
    now, found = NOW, list[tuple[str, timedelta]]()
    while (what := chosen(scale_up, most=most, now=now)) not in {
        ScaleDecision.STOP,
        ScaleDecision.STOPPED,
    }:
        if what is ScaleDecision.START:
            found.append(("start", now - NOW))
            scale_up = begun(scale_up, now, interval=interval)
        assert scale_up is not None
        assert scale_up.next_at is not None
        now = scale_up.next_at
        almost = now - NEARLY - MICROSECOND
        assert chosen(scale_up, most=most, now=almost) is ScaleDecision.WAIT
        assert chosen(scale_up, most=most, now=now - NEARLY) is not ScaleDecision.WAIT
    attempts, at, expected = 1, timedelta(0), list[tuple[str, timedelta]]()
    while attempts <= most:
        expected.append(("start", at))
        attempts += 1
        at += interval * attempts
    assert found == expected
    assert now - NOW == at


def test_with_amoros_defaults_there_are_rounds_at_0_2_and_5_intervals_and_an_end_at_9() -> None:
    """Amoro's 5, 15, 30 and 50 minutes: it looks first an interval after its start."""
    scale_up: ScaleUp | None = None
    for at in (0, 2, 5):
        now = NOW + GRACE * at
        assert chosen(scale_up, now=now) is ScaleDecision.START
        scale_up = begun(scale_up, now)
    assert chosen(scale_up, now=NOW + GRACE * 9 - NEARLY - MICROSECOND) is ScaleDecision.WAIT
    assert chosen(scale_up, now=NOW + GRACE * 9) is ScaleDecision.STOP


def test_a_round_is_counted_before_it_is_made() -> None:
    """It is written down as requested, with its size, its id and nothing of the last error."""
    failed = ROUND._replace(rounds=2, state=ScaleUpState.FAILED, last_error="no", version=4)
    assert begun(failed, NOW) == failed._replace(
        rounds=3,
        resource_id="r",
        threads=8,
        state=ScaleUpState.REQUESTED,
        next_at=NOW + GRACE * 4,
        last_error=None,
        version=5,
    )


def test_rounds_of_another_floor_begin_at_one() -> None:
    """Those that did not help another min-parallelism say nothing about this one."""
    stopped = ROUND._replace(rounds=3, state=ScaleUpState.STOPPED)
    first = begun(stopped, NOW, min_parallelism=9)
    assert (first.rounds, first.min_parallelism, first.next_at) == (1, 9, NOW + GRACE * 2)
    assert begun(None, NOW)._replace(version=0) == first._replace(
        version=0, min_parallelism=8, threads=8
    )


# --- Which threads come back ---------------------------------------------------------------------


def incident(
    state: State = State.WAITING,
    age: timedelta = GRACE * 9,
    attempts: int = 0,
    prior_attempts: int = 0,
) -> Incident:
    """One that was detected, or attempted, so long ago."""
    return Incident(
        incident_id=1,
        resource_id="r1",
        group_name="g",
        container_name="c",
        thread_count=4,
        detected_at=NOW - age,
        state=state,
        attempts=attempts,
        attempted_at=NOW - age if attempts else None,
        prior_attempts=prior_attempts,
    )


def test_an_orphan_that_nobody_noticed_yet_is_waited_for() -> None:
    """It gets an incident first."""
    assert is_coming(None, POLICY, NOW)


@pytest.mark.parametrize("state", State)
def test_what_waits_or_is_in_hand_can_come_back(state: State) -> None:
    """What is removed, kept, left alone or over cannot."""
    expected = state in {State.WAITING, State.DISPATCHED, State.CLAIMED}
    assert is_coming(incident(state), POLICY, NOW) is expected


@pytest.mark.parametrize("state", [State.WAITING, State.DISPATCHED, State.CLAIMED])
def test_an_orphan_whose_restart_request_failed_does_not_count(state: State) -> None:
    """Whether or not it is tried again."""
    failed = incident(state, timedelta(0), 1)._replace(last_error="no such image")
    assert not is_coming(failed, POLICY, NOW)


def test_an_orphan_without_attempts_counts_to_the_end_of_its_last_pause() -> None:
    """On the microsecond, and earlier attempts that it carries are attempts."""
    for attempts, prior_attempts in ((3, 0), (1, 2), (0, 3)):
        almost = incident(age=GRACE - MICROSECOND, attempts=attempts, prior_attempts=prior_attempts)
        assert is_coming(almost, POLICY, NOW)
        over = incident(age=GRACE, attempts=attempts, prior_attempts=prior_attempts)
        assert not is_coming(over, POLICY, NOW)
    assert is_coming(incident(attempts=3, prior_attempts=-3), POLICY, NOW)
    assert is_coming(incident(attempts=2), POLICY, NOW)


def test_the_threads_of_those_that_can_come_back_are_added_up() -> None:
    """As their rows say it; NULL is none. Each is judged by its own incident."""
    orphans = [
        Orphan("unnoticed", "g", "c", 1, 0, "{}"),
        Orphan("waiting", "g", "c", 2, 0, "{}"),
        Orphan("failed", "g", "c", 4, 0, "{}"),
        Orphan("kept", "g", "c", 8, 0, "{}"),
        Orphan("null", "g", "c", None, 0, "{}"),
    ]
    incidents = {
        "waiting": incident(),
        "failed": incident(attempts=1)._replace(last_error="no"),
        "kept": incident(State.KEPT),
        "of another group": incident(),
    }
    assert coming(orphans, incidents, POLICY, NOW) == 3
