"""The decision table, against a second reading of it, and its boundaries as sentences."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Final, NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from orchestration.keeping.model import Incident, State
from orchestration.keeping.policy import (
    Decision,
    RestartPolicy,
    RunState,
    Verdict,
    decide,
    due_at,
    holds_claim,
)

NOW: Final = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
MICROSECOND: Final = timedelta(microseconds=1)
GRACE: Final = timedelta(minutes=5)
OPEN_STATES: Final = [state for state in State if state.is_open]


def policy(
    *, enabled: bool = True, max_retries: int = 5, grace: timedelta = GRACE
) -> RestartPolicy:
    """Amoro's defaults, unless told otherwise."""
    return RestartPolicy(enabled=enabled, max_retries=max_retries, grace_period=grace)


def incident(
    detected: timedelta = timedelta(0),
    attempted: timedelta | None = None,
    attempts: int = 0,
    state: State = State.WAITING,
) -> Incident:
    """An incident whose times are given as how long ago they were."""
    return Incident(
        incident_id=1,
        resource_id="r1",
        group_name="g",
        container_name="c",
        thread_count=1,
        detected_at=NOW - detected,
        state=state,
        attempts=attempts,
        attempted_at=None if attempted is None else NOW - attempted,
    )


def decided(
    value: Incident,
    policy: RestartPolicy,
    *,
    obstacle: str | None = None,
    claimed: bool = False,
) -> Decision:
    """The decision at `NOW`."""
    return decide(value, obstacle=obstacle, policy=policy, claimed=claimed, now=NOW)


class Case(NamedTuple):
    """Everything that a decision can depend on."""

    incident: Incident
    obstacle: str | None
    policy: RestartPolicy
    claimed: bool

    @property
    def grace_ends(self) -> datetime:
        """The last attempt, else the detection, plus the grace period."""
        attempted = self.incident.attempted_at
        return (self.incident.detected_at if attempted is None else attempted) + (
            self.policy.grace_period
        )


def removing(case: Case) -> bool:
    """Whether the incident's removal has begun."""
    return case.incident.state is State.GIVING_UP


# The documented table, row by row and in its order, not the code's: each row says when it applies
# and what is then decided. The fourth row is the documented addition, with the exception that it
# makes to the second one.
TABLE: Final[list[tuple[Callable[[Case], bool], Verdict]]] = [
    (lambda case: not case.policy.enabled, Verdict.HOLD),
    (lambda case: case.obstacle is not None and not removing(case), Verdict.REPORT),
    (lambda case: case.claimed, Verdict.WAIT),
    (removing, Verdict.GIVE_UP),
    (lambda case: case.grace_ends > NOW, Verdict.WAIT),
    (lambda case: case.incident.attempts < case.policy.max_retries, Verdict.RESTART),
    (lambda _: True, Verdict.GIVE_UP),
]


def verdict_of_table(case: Case) -> Verdict:
    """The verdict of the first row that applies."""
    return next(verdict for applies, verdict in TABLE if applies(case))


graces: Final = st.sampled_from([timedelta(0), MICROSECOND, GRACE]) | st.timedeltas(
    timedelta(0), timedelta(days=400)
)


@st.composite
def ages(draw: st.DrawFn, grace: timedelta) -> timedelta:
    """How long ago something was: around the grace period as often as anywhere, or still ahead.

    A clock that was set back makes things happen in the future.
    """
    near = st.sampled_from([-MICROSECOND, timedelta(0), MICROSECOND]).map(lambda off: grace + off)
    return draw(near | st.timedeltas(timedelta(days=-1), timedelta(days=800)))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any incident under any policy."""
    grace = draw(graces)
    max_retries = draw(st.integers(0, 6))
    attempts = draw(st.integers(0, 8))
    return Case(
        incident=incident(
            detected=draw(ages(grace)),
            attempted=draw(ages(grace)) if attempts else None,
            attempts=attempts,
            state=draw(st.sampled_from(OPEN_STATES)),
        )._replace(
            claimed_by=draw(st.none() | st.just("run")),
            claimed_until=draw(st.none() | st.just(NOW + GRACE)),
            note=draw(st.none() | st.just("as before")),
        ),
        obstacle=draw(st.none() | st.sampled_from(["", "as before", "unknown container"])),
        policy=policy(enabled=draw(st.booleans()), max_retries=max_retries, grace=grace),
        claimed=draw(st.booleans()),
    )


@given(cases())
def test_decides_what_the_table_says(case: Case) -> None:
    """On any incident, the decision is that of the first row that applies."""
    decision = decide(
        case.incident,
        obstacle=case.obstacle,
        policy=case.policy,
        claimed=case.claimed,
        now=NOW,
    )
    assert decision.verdict is verdict_of_table(case)


def test_decides_what_the_table_says_in_every_corner() -> None:
    """No combination of the conditions is left to chance."""
    corners = product(
        [False, True],  # enabled
        [None, "", "an obstacle"],
        [False, True],  # claimed
        OPEN_STATES,
        [timedelta(0), GRACE],  # grace period
        [-MICROSECOND, timedelta(0), MICROSECOND],  # from its end
        [(0, 0), (0, 1), (1, 1), (1, 2), (2, 1)],  # attempts and max retries
    )
    for enabled, obstacle, claimed, state, grace, over, (attempts, most) in corners:
        age = grace + over
        case = Case(
            incident(GRACE * 9, age, attempts, state) if attempts else incident(age, state=state),
            obstacle,
            policy(enabled=enabled, max_retries=most, grace=grace),
            claimed,
        )
        decision = decided(case.incident, case.policy, obstacle=obstacle, claimed=claimed)
        assert decision.verdict is verdict_of_table(case), case


@given(cases())
def test_says_why_and_until_when(case: Case) -> None:
    """A report gives the obstacle, a wait the moment at which it is worth looking again."""
    decision = decided(case.incident, case.policy, obstacle=case.obstacle, claimed=case.claimed)
    if decision.verdict is Verdict.REPORT:
        assert decision.reason == case.obstacle
    else:
        assert decision.reason
    if decision.verdict is not Verdict.WAIT:
        assert decision.until is None
    elif case.claimed:
        assert decision.until == case.incident.claimed_until
    else:
        assert decision.until == case.grace_ends == due_at(case.incident, case.policy)
        assert decision.until > NOW


@pytest.mark.parametrize("attempts", [0, 4])
def test_an_orphan_a_microsecond_before_the_end_of_its_grace_period_waits(attempts: int) -> None:
    """Detected, or last attempted, for a microsecond less than the grace period: not yet."""
    almost = GRACE - MICROSECOND
    value = incident(GRACE, almost, attempts) if attempts else incident(almost)
    assert decided(value, policy()) == Decision(
        Verdict.WAIT, "in its grace period", NOW + MICROSECOND
    )


@pytest.mark.parametrize("attempts", [0, 4])
def test_an_orphan_exactly_at_the_end_of_its_grace_period_is_due(attempts: int) -> None:
    """Detected, or last attempted, for exactly the grace period: now."""
    value = incident(GRACE * 2, GRACE, attempts) if attempts else incident(GRACE)
    assert decided(value, policy()).verdict is Verdict.RESTART


def test_an_orphan_without_a_grace_period_is_due_at_once() -> None:
    """A grace period of zero is over the moment it begins."""
    assert decided(incident(), policy(grace=timedelta(0))).verdict is Verdict.RESTART


def test_the_grace_period_of_an_attempt_follows_that_of_the_detection() -> None:
    """An orphan detected long ago and attempted just now waits."""
    value = incident(GRACE * 100, timedelta(0), 1)
    assert decided(value, policy()).until == NOW + GRACE


def test_an_orphan_with_one_attempt_left_is_restarted() -> None:
    """The fifth attempt of five is made."""
    assert decided(incident(GRACE, GRACE, 4), policy()).verdict is Verdict.RESTART


@pytest.mark.parametrize("attempts", [5, 6])
def test_an_orphan_with_no_attempt_left_is_given_up(attempts: int) -> None:
    """There is no sixth attempt of five, nor after the limit was lowered to less than were made."""
    assert decided(incident(GRACE, GRACE, attempts), policy()).verdict is Verdict.GIVE_UP


def test_an_orphan_with_no_attempt_left_waits_for_its_last_one() -> None:
    """The last attempt gets its grace period too before its orphan is given up."""
    value = incident(GRACE * 9, GRACE - MICROSECOND, 5)
    assert decided(value, policy()).verdict is Verdict.WAIT


def test_without_retries_an_orphan_is_given_up_after_its_grace_period() -> None:
    """Zero retries mean no attempt at all, but the grace period is waited for."""
    none = policy(max_retries=0)
    assert decided(incident(GRACE - MICROSECOND), none).verdict is Verdict.WAIT
    assert decided(incident(GRACE), none).verdict is Verdict.GIVE_UP


def test_an_orphan_that_cannot_be_restarted_is_never_given_up() -> None:
    """Its attempts may be used up: it is reported, not removed."""
    value = incident(GRACE, GRACE, 5)
    assert decided(value, policy(), obstacle="opts out").verdict is Verdict.REPORT


def test_auto_restart_off_comes_before_everything() -> None:
    """Neither reports nor removals happen while it is off."""
    for state in OPEN_STATES:
        for claimed in (False, True):
            value = incident(GRACE, GRACE, 9, state)
            decision = decided(value, policy(enabled=False), obstacle="opts out", claimed=claimed)
            assert decision == Decision(Verdict.HOLD, "auto-restart is off")


@given(cases())
def test_a_removal_that_has_begun_is_finished(case: Case) -> None:
    """Neither an obstacle, nor a grace period, nor attempts left stop it; a claim or a hold do."""
    value = case.incident._replace(state=State.GIVING_UP)
    verdict = decided(value, case.policy, obstacle=case.obstacle, claimed=case.claimed).verdict
    expected = Verdict.GIVE_UP if not case.claimed else Verdict.WAIT
    assert verdict is (expected if case.policy.enabled else Verdict.HOLD)


class Claim(NamedTuple):
    """What the documented sentence on claims depends on."""

    claimed_by: str | None
    claimed_until: datetime | None
    runs: dict[str, RunState]


moments: Final = st.sampled_from([NOW - MICROSECOND, NOW, NOW + MICROSECOND]) | st.datetimes(
    timezones=st.just(UTC)
)
claims: Final = st.builds(
    Claim,
    claimed_by=st.sampled_from([None, "run", "key"]),
    claimed_until=st.none() | moments,
    runs=st.dictionaries(st.sampled_from(["run", "key", "other"]), st.sampled_from(RunState)),
)


@given(claims)
@example(Claim("run", NOW - GRACE, {"run": RunState.QUEUED}))
@example(Claim("run", NOW + GRACE, {"run": RunState.ENDED}))
@example(Claim("run", NOW, {"run": RunState.ACTIVE}))
@example(Claim("run", NOW, {"other": RunState.QUEUED}))
def test_a_claim_holds_until_it_lapses_or_its_run_ends(claim: Claim) -> None:
    """A queued run keeps its claim, an ended one loses it, any other has it until it lapses."""
    value = incident()._replace(claimed_by=claim.claimed_by, claimed_until=claim.claimed_until)
    if claim.claimed_by is None or claim.claimed_until is None:
        expected = False
    else:
        lapsed = claim.claimed_until <= NOW
        expected = {
            RunState.QUEUED: True,
            RunState.ACTIVE: not lapsed,
            RunState.ENDED: False,
            None: not lapsed,  # Dagster does not know the run
        }[claim.runs.get(claim.claimed_by)]
    assert holds_claim(value, claim.runs, NOW) is expected


@pytest.mark.parametrize("run", [RunState.ACTIVE, None])
def test_a_claim_of_a_run_that_may_be_dead_lapses_on_the_microsecond(run: RunState | None) -> None:
    """A claim holds a microsecond before it lapses and no longer at that moment."""
    value = incident()._replace(claimed_by="run", claimed_until=NOW)
    runs = {"run": run} if run else {}
    assert holds_claim(value, runs, NOW - MICROSECOND)
    assert not holds_claim(value, runs, NOW)
