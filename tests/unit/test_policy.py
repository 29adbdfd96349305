"""The decision table, against a second reading of it, and its boundaries as sentences."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Final, NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dagster_amoro.core.model import Incident, OperatorRequest, State
from dagster_amoro.core.policy import (
    NEARLY,
    NOT_CLAIMED,
    Backoff,
    Decision,
    OnExhausted,
    Replacement,
    RestartPolicy,
    RunState,
    Verdict,
    decide,
    due_at,
    holds_claim,
    next_dispatch_at,
)
from dagster_amoro.core.registrations import DOUBTFUL

NOW: Final = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
MOST_LOST: Final = 5
MICROSECOND: Final = timedelta(microseconds=1)
GRACE: Final = timedelta(minutes=5)
HOUR: Final = timedelta(hours=1)
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


def decided(  # noqa: PLR0913 - what the tests vary
    value: Incident,
    policy: RestartPolicy,
    *,
    obstacle: str | None = None,
    claimed: bool = False,
    paused: str | None = None,
    not_before: datetime | None = None,
    replacement: Replacement = Replacement.NONE,
    doubtful: bool = False,
) -> Decision:
    """The decision at `NOW`."""
    return decide(
        value,
        obstacle=obstacle,
        policy=policy,
        claimed=claimed,
        now=NOW,
        paused=paused,
        not_before=not_before,
        replacement=lambda: replacement,
        doubtful=doubtful,
    )


class Case(NamedTuple):
    """Everything that a decision can depend on."""

    incident: Incident
    obstacle: str | None
    policy: RestartPolicy
    claimed: bool
    paused: str | None = None
    replacement: Replacement = Replacement.NONE
    not_before: datetime | None = None
    doubtful: bool = False

    @property
    def left(self) -> int:
        """The attempts that are left of its budget; not above zero: none.

        One of which nobody knows what came of it does not count.
        """
        ended = self.incident.attempts - self.lost
        return self.policy.max_retries - self.incident.prior_attempts - ended

    @property
    def lost(self) -> int:
        """The attempts that were interrupted, the last one included."""
        return self.incident.interrupted + self.incident.is_attempting

    @property
    def is_over(self) -> bool:
        """Whether no more is tried."""
        return self.left <= 0 or self.lost >= MOST_LOST

    @property
    def is_left_to_a_person(self) -> bool:
        """Whether it is kept where no more is tried."""
        keeps = self.policy.on_exhausted is OnExhausted.KEEP
        return keeps or self.left > 0 or self.incident.prior_attempts > 0

    @property
    def grace_ends(self) -> datetime:
        """The last attempt's end, else the detection, plus the pause, without anything random."""
        attempted = self.incident.attempt_ends_at or self.incident.attempted_at
        since = self.incident.detected_at if attempted is None else attempted
        if self.policy.backoff is Backoff.CONSTANT:
            return since + self.policy.grace_period
        own = self.incident.attempts - self.incident.interrupted
        used_up = own + self.incident.prior_attempts
        return since + pauses(self.policy.grace_period, self.policy.backoff_cap, used_up)[-1]

    def decided(self) -> Decision:
        """What the code under test decides."""
        return decided(
            self.incident,
            self.policy,
            obstacle=self.obstacle,
            claimed=self.claimed,
            paused=self.paused,
            not_before=self.not_before,
            replacement=self.replacement,
            doubtful=self.doubtful,
        )


def pauses(grace: timedelta, cap: timedelta, attempts: int) -> list[timedelta]:
    """The exponential pauses after the detection and after each attempt, by doubling them."""
    found = [min(grace, cap)]
    for _ in range(attempts):
        found.append(min(found[-1] + found[-1], cap))
    return found


def removing(case: Case) -> bool:
    """Whether the incident's removal has begun."""
    return case.incident.state in {State.GIVING_UP, State.SUPERSEDING, State.RELEASING}


def is_kept(case: Case) -> bool:
    """Whether its attempts were used up before, and still are, and it is to be kept."""
    return case.incident.state is State.KEPT and case.is_over and case.is_left_to_a_person


# The documented table, row by row and in its order, not the code's: each row says when it applies
# and what is then decided. Removing is the exception that it makes to the obstacles: finishing it,
# or doing it because an operator wants it.
TABLE: Final[list[tuple[Callable[[Case], bool], Verdict]]] = [
    (lambda case: not case.policy.enabled, Verdict.HOLD),
    (lambda case: case.paused is not None, Verdict.HOLD),
    (
        lambda case: (
            case.obstacle is not None
            and not removing(case)
            and case.incident.operator_request is not OperatorRequest.GIVE_UP
        ),
        Verdict.REPORT,
    ),
    (lambda case: case.claimed, Verdict.WAIT),
    (
        lambda case: (
            case.not_before is not None
            and case.not_before > NOW + NEARLY
            and case.incident.operator_request is None
        ),
        Verdict.WAIT,
    ),
    (lambda case: case.incident.state is State.GIVING_UP, Verdict.GIVE_UP),
    (lambda case: case.incident.state is State.SUPERSEDING, Verdict.SUPERSEDE),
    (lambda case: case.incident.state is State.RELEASING, Verdict.RELEASE),
    (lambda case: case.doubtful, Verdict.WAIT),
    (lambda case: case.incident.operator_request is OperatorRequest.GIVE_UP, Verdict.GIVE_UP),
    (lambda case: case.incident.operator_request is OperatorRequest.RESTART, Verdict.RESTART),
    (is_kept, Verdict.HOLD),
    (lambda case: case.grace_ends > NOW, Verdict.WAIT),
    (lambda case: case.replacement is Replacement.LIVE, Verdict.SUPERSEDE),
    (lambda case: case.replacement is Replacement.COMING, Verdict.WAIT),
    (lambda case: not case.is_over, Verdict.RESTART),
    (lambda case: case.is_left_to_a_person, Verdict.KEEP),
    (lambda _: True, Verdict.GIVE_UP),
]


def verdict_of_table(case: Case) -> Verdict:
    """The verdict of the first row that applies."""
    return next(verdict for applies, verdict in TABLE if applies(case))


graces: Final = st.sampled_from([timedelta(0), MICROSECOND, GRACE]) | st.timedeltas(
    timedelta(0), timedelta(days=400)
)


moments: Final = st.sampled_from(
    [near + off for near in (NOW, NOW + NEARLY) for off in (-MICROSECOND, MICROSECOND, 0 * HOUR)]
) | st.datetimes(timezones=st.just(UTC))


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
            attempt_ends_at=NOW - draw(ages(grace)) if attempts and draw(st.booleans()) else None,
            is_attempting=bool(attempts) and draw(st.booleans()),
            interrupted=draw(st.integers(0, max(attempts - 1, 0))),
            prior_attempts=draw(st.integers(-attempts, 4)),
            operator_request=draw(st.none() | st.sampled_from(OperatorRequest)),
        ),
        obstacle=draw(st.none() | st.sampled_from(["", "as before", "unknown container"])),
        policy=replace(
            policy(enabled=draw(st.booleans()), max_retries=max_retries, grace=grace),
            backoff=draw(st.sampled_from(Backoff)),
            backoff_cap=draw(st.sampled_from([grace, grace * 5, HOUR])),
            backoff_jitter=0.0,
            on_exhausted=draw(st.sampled_from(OnExhausted)),
        ),
        claimed=draw(st.booleans()),
        paused=draw(st.none() | st.sampled_from(["", "etl is paused by ann"])),
        replacement=draw(st.sampled_from(Replacement)),
        not_before=draw(st.none() | moments),
        doubtful=draw(st.booleans()),
    )


@given(cases())
def test_decides_what_the_table_says(case: Case) -> None:
    """On any incident, the decision is that of the first row that applies."""
    assert case.decided().verdict is verdict_of_table(case)


def test_decides_what_the_table_says_in_every_corner() -> None:
    """No combination of the conditions is left to chance."""
    corners = product(
        [False, True],  # enabled
        [None, "paused"],
        [None, "an obstacle"],
        [False, True],  # claimed
        OPEN_STATES,
        [None, *OperatorRequest],
        [-MICROSECOND, timedelta(0)],  # from the end of the grace period
        # Attempts, carried, max retries, interrupted.
        [*((0, 0, 0, 0), (0, 0, 1, 0), (0, 1, 1, 0), (1, 0, 1, 0), (1, -1, 1, 0)), (9, 0, 5, 5)],
        list(Replacement),
        list(OnExhausted),
        [None, NOW + NEARLY, NOW + NEARLY + MICROSECOND],  # not before
    )
    for (
        enabled,
        paused,
        obstacle,
        claimed,
        state,
        operator_request,
        over,
        budget,
        came,
        after,
        not_before,
    ) in corners:
        attempts, prior_attempts, most, interrupted = budget
        age = GRACE + over
        value = incident(GRACE * 9, age, attempts) if attempts else incident(age)
        case = Case(
            value._replace(
                state=state,
                prior_attempts=prior_attempts,
                operator_request=operator_request,
                interrupted=interrupted,
            ),
            obstacle,
            replace(policy(enabled=enabled, max_retries=most), on_exhausted=after),
            claimed,
            paused,
            came,
            not_before,
        )
        assert case.decided().verdict is verdict_of_table(case), case


@given(cases())
def test_says_why_and_until_when(case: Case) -> None:
    """A report gives the obstacle, a wait the moment at which it is worth looking again."""
    decision = case.decided()
    if decision.verdict is Verdict.REPORT:
        assert decision.reason == case.obstacle
    elif case.paused is not None and case.policy.enabled:
        assert decision == Decision(Verdict.HOLD, case.paused)
    else:
        assert decision.reason
    if decision.verdict is not Verdict.WAIT:
        assert decision.until is None
    elif case.claimed:
        assert decision.until == case.incident.claimed_until
    elif decision.reason == NOT_CLAIMED:
        assert decision.until == case.not_before
    elif decision.until is None:  # nobody knows how long AMS takes
        assert case.doubtful or case.replacement is Replacement.COMING
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
    """Neither reports nor removals, nor what operators want, happen while it is off."""
    for state, claimed, operator_request in product(
        OPEN_STATES, (False, True), (None, *OperatorRequest)
    ):
        value = incident(GRACE, GRACE, 9, state)._replace(operator_request=operator_request)
        decision = decided(value, policy(enabled=False), obstacle="opts out", claimed=claimed)
        assert decision == Decision(Verdict.HOLD, "auto-restart is off")


@pytest.mark.parametrize(
    ("state", "end"),
    [
        (State.GIVING_UP, Verdict.GIVE_UP),
        (State.SUPERSEDING, Verdict.SUPERSEDE),
        (State.RELEASING, Verdict.RELEASE),
    ],
)
@given(case=cases())
def test_a_removal_that_has_begun_is_finished(case: Case, state: State, end: Verdict) -> None:
    """No obstacle, grace period, attempt left or order stops it; a claim, a pause or a hold do.

    So does the pause between dispatches.
    """
    verdict = case._replace(incident=case.incident._replace(state=state)).decided().verdict
    is_early = case.not_before is not None and case.not_before > NOW + NEARLY
    waits = case.claimed or (is_early and not case.incident.operator_request)
    expected = end if not waits else Verdict.WAIT
    is_held = case.paused is not None or not case.policy.enabled
    assert verdict is (Verdict.HOLD if is_held else expected)


# --- What operators want -------------------------------------------------------------------------


def test_what_an_operator_paused_is_left_alone_whatever_else_holds() -> None:
    """Not even a removal that was begun, or what another operator wants, is done meanwhile."""
    for state, operator_request in product(OPEN_STATES, (None, *OperatorRequest)):
        value = incident(GRACE, state=state)._replace(operator_request=operator_request)
        decision = decided(value, policy(), obstacle="opts out", paused="ann paused it")
        assert decision == Decision(Verdict.HOLD, "ann paused it")


def test_what_an_operator_wants_restarted_waits_for_nothing_and_has_no_budget() -> None:
    """Neither the grace period, nor the attempts, nor a refilled group stand in its way."""
    for attempts, after in product((0, 5), OnExhausted):
        value = incident(attempts=attempts)._replace(operator_request=OperatorRequest.RESTART)
        decision = decided(
            value, replace(policy(), on_exhausted=after), replacement=Replacement.LIVE
        )
        assert decision.verdict is Verdict.RESTART


def test_what_an_operator_wants_given_up_is_removed_though_others_are_kept() -> None:
    """`on-exhausted: keep` is about attempts that are used up, not about a person's word."""
    value = incident(state=State.KEPT)._replace(operator_request=OperatorRequest.GIVE_UP)
    keeping = replace(policy(), on_exhausted=OnExhausted.KEEP)
    assert decided(value, keeping).verdict is Verdict.GIVE_UP
    assert decided(value, keeping, obstacle="opts out").verdict is Verdict.GIVE_UP


def test_an_operator_cannot_order_what_cannot_be_done() -> None:
    """What cannot be restarted is not, and a run that has it is waited for."""
    value = incident(GRACE)._replace(operator_request=OperatorRequest.RESTART)
    assert decided(value, policy(), obstacle="opts out").verdict is Verdict.REPORT
    for operator_request in OperatorRequest:
        value = incident(GRACE)._replace(operator_request=operator_request)
        assert decided(value, policy(), claimed=True).verdict is Verdict.WAIT


# --- Budgets -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attempts", "prior_attempts", "verdict"),
    [
        (0, 4, Verdict.RESTART),
        (0, 5, Verdict.KEEP),  # a crash loop ends; but it did come back
        (2, 3, Verdict.KEEP),
        (5, -5, Verdict.RESTART),  # after a reset
        (9, -5, Verdict.RESTART),
        (10, -5, Verdict.GIVE_UP),
    ],
)
def test_attempts_of_earlier_incidents_count_and_those_before_a_reset_do_not(
    attempts: int, prior_attempts: int, verdict: Verdict
) -> None:
    """Five of its budget are used up by its own and by those that it carries."""
    value = incident(GRACE * 9, GRACE if attempts else None, attempts)._replace(
        prior_attempts=prior_attempts
    )
    assert decided(value, policy()).verdict is verdict


@pytest.mark.parametrize(("lost", "verdict"), [(4, Verdict.RESTART), (5, Verdict.KEEP)])
def test_an_attempt_that_was_interrupted_does_not_count(lost: int, verdict: Verdict) -> None:
    """However few are allowed; but what ends its run again and again is left to a person."""
    for is_attempting in (False, True):
        value = incident(GRACE * 9, GRACE, lost)._replace(
            interrupted=lost - is_attempting, is_attempting=is_attempting
        )
        assert decided(value, policy(max_retries=1)).verdict is verdict
    ended = value._replace(attempts=lost + 1)
    assert decided(ended, policy(max_retries=1)).verdict is Verdict.GIVE_UP


def test_what_may_have_been_stopped_is_waited_for_whatever_anybody_wants() -> None:
    """Nobody can say yet whether it is back: it is neither started a second time nor removed."""
    for request in (None, *OperatorRequest):
        value = incident(GRACE * 9, GRACE, 5)._replace(operator_request=request)
        assert decided(value, policy(), doubtful=True) == Decision(Verdict.WAIT, DOUBTFUL)


def test_the_pause_after_an_attempt_begins_when_its_start_ended() -> None:
    """However long that took; and of one that was lost, when it is over at the latest."""
    value = incident(GRACE * 9, GRACE * 2, 1)._replace(attempt_ends_at=NOW - GRACE + MICROSECOND)
    for is_attempting in (False, True):
        found = decided(value._replace(is_attempting=is_attempting), policy())
        assert found == Decision(Verdict.WAIT, "in its grace period", NOW + MICROSECOND)
    over = value._replace(attempt_ends_at=NOW - GRACE)
    assert decided(over, policy()).verdict is Verdict.RESTART


def test_what_is_kept_is_told_once_and_then_held() -> None:
    """A second look at it finds nothing to say."""
    keeping = replace(policy(), on_exhausted=OnExhausted.KEEP)
    value = incident(GRACE * 9, GRACE, 5)
    assert decided(value, keeping).verdict is Verdict.KEEP
    kept = value._replace(state=State.KEPT)
    assert decided(kept, keeping).verdict is Verdict.HOLD
    assert decided(kept, keeping, replacement=Replacement.LIVE).verdict is Verdict.HOLD


def test_what_is_kept_goes_on_when_its_budget_or_the_policy_changes() -> None:
    """More attempts are made, or it is cleaned up, without anybody's word."""
    kept = incident(GRACE * 9, GRACE, 5, State.KEPT)
    more = replace(policy(max_retries=6), on_exhausted=OnExhausted.KEEP)
    assert decided(kept, more).verdict is Verdict.RESTART
    assert decided(kept, policy()).verdict is Verdict.GIVE_UP


# --- What came in its place ----------------------------------------------------------------------


def test_who_came_in_its_place_is_asked_only_when_it_is_due() -> None:
    """It costs a look at the registry."""

    def must_not_be_asked() -> Replacement:
        raise AssertionError

    def ask(value: Incident, *, paused: str | None = None, claimed: bool = False) -> Verdict:
        return decide(
            value,
            obstacle=None,
            policy=policy(),
            claimed=claimed,
            now=NOW,
            paused=paused,
            replacement=must_not_be_asked,
        ).verdict

    assert ask(incident(GRACE - MICROSECOND)) is Verdict.WAIT
    assert ask(incident(GRACE), claimed=True) is Verdict.WAIT
    assert ask(incident(GRACE), paused="by ann") is Verdict.HOLD
    for state in (State.GIVING_UP, State.SUPERSEDING):
        assert ask(incident(GRACE, state=state)) in {Verdict.GIVE_UP, Verdict.SUPERSEDE}
    for operator_request in OperatorRequest:
        assert ask(incident(GRACE)._replace(operator_request=operator_request)) in {
            Verdict.GIVE_UP,
            Verdict.RESTART,
        }
    with pytest.raises(AssertionError):
        ask(incident(GRACE))


@pytest.mark.parametrize("attempts", [0, 5])
def test_an_orphan_whose_group_was_refilled_is_neither_restarted_nor_given_up(
    attempts: int,
) -> None:
    """Its attempts may be used up or not: others do its work."""
    value = incident(GRACE * 9, GRACE if attempts else None, attempts)
    assert decided(value, policy(), replacement=Replacement.LIVE).verdict is Verdict.SUPERSEDE
    coming = decided(value, policy(), replacement=Replacement.COMING)
    assert coming == Decision(Verdict.WAIT, "its group is being scaled up")


# --- How the pauses grow -------------------------------------------------------------------------


def growing(grace: timedelta = GRACE, cap: timedelta = HOUR, jitter: float = 0.0) -> RestartPolicy:
    """A policy whose pauses double."""
    return replace(
        policy(grace=grace), backoff=Backoff.EXPONENTIAL, backoff_cap=cap, backoff_jitter=jitter
    )


def pause(value: Incident, policy: RestartPolicy) -> timedelta:
    """How long after the last attempt, or after the detection, it is due."""
    return due_at(value, policy) - (value.attempted_at or value.detected_at)


def test_each_pause_is_twice_the_one_before_up_to_the_cap() -> None:
    """Five minutes, ten, twenty, forty, and an hour from then on."""
    found = [pause(incident(GRACE, GRACE if n else None, n), growing()) for n in range(7)]
    assert found == [timedelta(minutes=m) for m in (5, 10, 20, 40, 60, 60, 60)]


@given(
    grace=st.timedeltas(MICROSECOND, timedelta(days=400)),
    cap=st.timedeltas(MICROSECOND, timedelta(days=400)),
    attempts=st.integers(0, 100),
    prior_attempts=st.integers(0, 100),
)
@example(grace=GRACE, cap=HOUR, attempts=39, prior_attempts=0)
@example(grace=timedelta(days=400), cap=timedelta(days=400), attempts=100, prior_attempts=100)
def test_pauses_are_those_of_doubling_however_many_attempts_there_are(
    grace: timedelta, cap: timedelta, attempts: int, prior_attempts: int
) -> None:
    """Those that are carried count; none is longer than the cap, and none is too long to reckon."""
    value = incident(GRACE, GRACE if attempts else None, attempts)._replace(
        prior_attempts=prior_attempts
    )
    found = pause(value, growing(grace, cap))
    assert found == pauses(grace, cap, attempts + prior_attempts)[-1]


@given(
    jitter=st.floats(0, 1),
    attempts=st.integers(0, 12),
    number=st.integers(0, 2**40),
    resource_id=st.text(max_size=100),
)
def test_jitter_lengthens_a_pause_by_no_more_than_its_share_and_always_by_the_same(
    jitter: float, attempts: int, number: int, resource_id: str
) -> None:
    """A restarted process, another host and another transition of the incident reckon the same."""
    value = incident(GRACE, GRACE if attempts else None, attempts)._replace(
        incident_id=number, resource_id=resource_id
    )
    least, found = pauses(GRACE, HOUR, attempts)[-1], pause(value, growing(jitter=jitter))
    assert least <= found <= least * (1 + jitter) + MICROSECOND
    moved = value._replace(version=9, state=State.CLAIMED, claimed_by="run", last_error="no")
    assert pause(moved, growing(jitter=jitter)) == found


def test_jitter_parts_those_that_died_together() -> None:
    """A thousand orphans of one moment are spread evenly over the tenth that is added."""
    many = [incident()._replace(incident_id=n, resource_id=f"r{n}") for n in range(1000)]
    found = [pause(value, growing(jitter=0.1)) / GRACE - 1 for value in many]
    tenths = [sum(n / 100 <= extra < (n + 1) / 100 for extra in found) for n in range(10)]
    assert sum(tenths) == 1000
    assert min(tenths) > 50


def test_jitter_differs_from_attempt_to_attempt() -> None:
    """Two that came close to each other once do not stay together."""
    many = [incident(GRACE, GRACE, attempts) for attempts in range(6, 16)]
    assert len({pause(value, growing(jitter=0.1)) for value in many}) == len(many)


@given(
    grace=graces,
    attempts=st.integers(0, 50),
    prior_attempts=st.integers(-50, 50),
    jitter=st.floats(0, 1),
)
def test_constant_pauses_are_the_grace_period_exactly(
    grace: timedelta, attempts: int, prior_attempts: int, jitter: float
) -> None:
    """Neither the number of attempts, nor cap, nor jitter change them."""
    value = incident(GRACE, GRACE if attempts else None, attempts)._replace(
        prior_attempts=prior_attempts
    )
    constant = replace(policy(grace=grace), backoff_cap=MICROSECOND, backoff_jitter=jitter)
    assert pause(value, constant) == grace


# --- Who has it in hand --------------------------------------------------------------------------


class Claim(NamedTuple):
    """What the documented sentence on claims depends on."""

    claimed_by: str | None
    claimed_until: datetime | None
    runs: dict[str, RunState]
    given_under: int | None = None  # the lease of the claim
    in_force: int | None = None  # the lease of now


claims: Final = st.builds(
    Claim,
    claimed_by=st.sampled_from([None, "run", "key"]),
    claimed_until=st.none() | moments,
    runs=st.dictionaries(st.sampled_from(["run", "key", "other"]), st.sampled_from(RunState)),
    given_under=st.none() | st.integers(1, 3),
    in_force=st.none() | st.integers(1, 3),
)


@given(claims)
@example(Claim("run", NOW - GRACE, {"run": RunState.QUEUED}))
@example(Claim("run", NOW + GRACE, {"run": RunState.ENDED}))
@example(Claim("run", NOW, {"run": RunState.ACTIVE}))
@example(Claim("run", NOW - HOUR, {"run": RunState.STARTING}))
@example(Claim("run", NOW - HOUR + MICROSECOND, {"run": RunState.STARTING}))
@example(Claim("run", NOW, {"other": RunState.QUEUED}))
@example(Claim("run", NOW + GRACE, {"run": RunState.QUEUED}, given_under=1, in_force=2))
@example(Claim("run", NOW + GRACE, {"run": RunState.QUEUED}, given_under=None, in_force=2))
@example(Claim("run", NOW + GRACE, {"run": RunState.ACTIVE}, given_under=1, in_force=None))
def test_a_claim_holds_until_it_lapses_or_its_run_or_its_lease_ends(claim: Claim) -> None:
    """A queued run keeps its claim, an ended one loses it, any other has it until it lapses.

    One that is being launched has an hour more, since Dagster may not watch over that.
    None has it under another lease than the one in force; without leases that does not matter.
    """
    value = incident()._replace(
        claimed_by=claim.claimed_by, claimed_until=claim.claimed_until, fence=claim.given_under
    )
    is_fenced = claim.in_force is not None and claim.in_force != claim.given_under
    if claim.claimed_by is None or claim.claimed_until is None or is_fenced:
        expected = False
    else:
        lapsed = claim.claimed_until <= NOW + NEARLY
        expected = {
            RunState.QUEUED: True,
            RunState.STARTING: NOW + NEARLY - claim.claimed_until < HOUR,
            RunState.ACTIVE: not lapsed,
            RunState.ENDED: False,
            None: not lapsed,  # Dagster does not know the run
        }[claim.runs.get(claim.claimed_by)]
    assert holds_claim(value, claim.runs, NOW, claim.in_force) is expected


@pytest.mark.parametrize("run", [RunState.ACTIVE, None])
def test_a_claim_of_a_run_that_may_be_dead_lapses_nearly_at_its_time(run: RunState | None) -> None:
    """What lapses some milliseconds after a tick does not wait for the next one."""
    value = incident()._replace(claimed_by="run", claimed_until=NOW + NEARLY)
    runs = {"run": run} if run else {}
    assert holds_claim(value, runs, NOW - MICROSECOND)
    assert not holds_claim(value, runs, NOW)


def dispatched(unused: int, lapsed: timedelta = timedelta(0)) -> Incident:
    """A dispatch whose claim has lapsed for so long, after so many that no run has claimed."""
    return incident(GRACE, state=State.DISPATCHED)._replace(
        claimed_by="key", claimed_until=NOW - lapsed, unused_dispatches=unused
    )


@pytest.mark.parametrize(
    ("timeout", "minutes"),
    [
        (15, [15, 30, 60, 60, 60]),
        (1, [1, 2, 4, 8, 16, 32, 60, 60]),
        (60, [60, 60, 60]),
        (90, [90, 90, 90]),  # never sooner than its claim lapses
    ],
)
def test_from_dispatch_to_dispatch_it_takes_twice_as_long_up_to_an_hour(
    timeout: int, minutes: list[int]
) -> None:
    """In minutes, beginning with the first that no run has claimed."""
    span = timedelta(minutes=timeout)
    for unused, expected in enumerate(minutes):
        at = next_dispatch_at(dispatched(unused), span) or NOW
        assert at - (NOW - span) == timedelta(minutes=expected)


def test_the_first_dispatch_after_one_that_lapsed_comes_at_once() -> None:
    """One mishap is no overload; and what a run had claimed does not wait at all."""
    assert next_dispatch_at(dispatched(0), GRACE) is None
    for changes in ({"claimed_by": None}, {"state": State.CLAIMED}, {"state": State.GIVING_UP}):
        assert next_dispatch_at(dispatched(3)._replace(**changes), GRACE) is None


@given(st.integers(1, 10**9), st.timedeltas(MICROSECOND, timedelta(days=36_500)))
def test_no_number_of_unused_dispatches_is_too_large(unused: int, timeout: timedelta) -> None:
    """The wait has its end, and never ends before the claim."""
    at = next_dispatch_at(dispatched(unused), timeout)
    assert at is not None
    assert timedelta(0) <= at - NOW < HOUR


def test_an_operator_does_not_wait_for_the_next_dispatch() -> None:
    """In a removal as well; and what is nearly at its time does not wait either."""
    soon = NOW + NEARLY + MICROSECOND
    for value in (incident(GRACE), incident(GRACE, state=State.GIVING_UP)):
        assert decided(value, policy(), not_before=soon) == Decision(
            Verdict.WAIT, NOT_CLAIMED, soon
        )
        for request in OperatorRequest:
            ordered = value._replace(operator_request=request)
            assert decided(ordered, policy(), not_before=soon).verdict is not Verdict.WAIT
        assert decided(value, policy(), not_before=NOW + NEARLY).verdict is not Verdict.WAIT


def test_an_orphan_is_due_when_no_more_than_the_lead_is_left() -> None:
    """Not a microsecond before; the lead of a run itself is nothing."""
    lead = timedelta(seconds=30)
    left = {lead: Verdict.RESTART, lead + MICROSECOND: Verdict.WAIT}
    for until, verdict in left.items():
        one = incident(detected=GRACE - until)
        found = decide(one, obstacle=None, policy=policy(), claimed=False, now=NOW, lead=lead)
        assert found.verdict is verdict
        alone = decide(one, obstacle=None, policy=policy(), claimed=False, now=NOW)
        assert alone.verdict is Verdict.WAIT
