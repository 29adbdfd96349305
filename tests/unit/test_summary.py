"""What a reader of the UI is told, in the words of the sentences below."""

from datetime import UTC, datetime, timedelta
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestration.keeping import transitions
from orchestration.keeping.model import Event, EventKind, Incident, Orphan, State, Transition
from orchestration.keeping.policy import RestartPolicy, RunState
from orchestration.keeping.summary import next_step, story, summarize
from orchestration.keeping.wording import clock_time, duration
from orchestration.keeping.survey import Surroundings, Survey, assess, orders

NOW: Final = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
GRACE: Final = timedelta(minutes=5)
POLICY: Final = RestartPolicy(enabled=True, max_retries=5, grace_period=GRACE)


def incident(number: int, age: timedelta = GRACE, attempts: int = 0) -> Incident:
    """The incident of resource `r<number>`, detected or attempted so long ago."""
    return Incident(
        incident_id=number,
        resource_id=f"r{number}",
        group_name="g",
        container_name="c",
        thread_count=1,
        detected_at=NOW - age,
        attempts=attempts,
        attempted_at=NOW - age if attempts else None,
    )


def claimed(number: int, attempts: int, state: State = State.CLAIMED) -> Incident:
    """An incident that a run has."""
    return incident(number, attempts=attempts)._replace(
        state=state, claimed_by="run", claimed_until=NOW + GRACE
    )


def line(
    *incidents: Incident,
    resources: int = 120,
    expired: int = 0,
    applied: tuple[Transition, ...] = (),
    obstacle: str | None = None,
    policy: RestartPolicy = POLICY,
) -> str:
    """The line of a tick that saw these incidents and handed over what was due."""
    orphans = {i.resource_id: Orphan(i.resource_id, "g", "c", 1, 0, "{}") for i in incidents}
    seen = Survey(resources=resources, groups=("g",), orphans=orphans, expired=expired)
    around = Surroundings(
        policy=policy, obstacle=lambda _: obstacle, runs={"run": RunState.ACTIVE}, now=NOW
    )
    assessment = assess(seen, incidents, around)
    return summarize(
        seen,
        assessment,
        handed_over=orders(assessment.due, 100),
        applied=applied,
        surroundings=around,
    )


def test_a_healthy_fleet_is_two_numbers() -> None:
    """There is nothing else to say."""
    assert line() == "120 resources, 0 orphans"
    assert line(resources=1) == "1 resource, 0 orphans"
    assert line(resources=1_000_000) == "1,000,000 resources, 0 orphans"


def test_says_what_the_orphans_wait_for() -> None:
    """How long the grace period still is, and which attempt a run makes."""
    young, busy = incident(1, GRACE - timedelta(seconds=42)), claimed(2, attempts=2)
    assert (
        line(young, busy) == "120 resources, 2 orphans: 1 in grace for 42 s, 1 restarting (2 of 5)"
    )


def test_of_several_in_grace_the_first_is_told() -> None:
    """That is when something happens next."""
    ages = [GRACE - timedelta(seconds=seconds) for seconds in (50, 30, 40)]
    young = [incident(number, age) for number, age in enumerate(ages)]
    assert line(*young) == "120 resources, 3 orphans: 3 in grace, first 30 s"


def test_says_what_is_handed_over() -> None:
    """Restarts with their attempt where it is one, and what is given up."""
    assert line(incident(1)) == "120 resources, 1 orphan: 1 due for a restart (1 of 5)"
    assert line(incident(1, attempts=3)).endswith("1 due for a restart (4 of 5)")
    assert line(incident(1), incident(2)).endswith("2 orphans: 2 due for a restart")
    assert line(incident(1), incident(2, attempts=5)).endswith(
        "1 due for a restart (1 of 5), 1 to be given up"
    )
    assert line(incident(1, attempts=5)).endswith("1 orphan: 1 to be given up")


def test_a_removal_that_is_finished_is_no_restart() -> None:
    """Also where the limit was raised since: its removal has begun."""
    removing = incident(1, attempts=2)._replace(state=State.GIVING_UP)
    assert line(removing).endswith("1 orphan: 1 to be given up")


def test_says_what_is_left_alone_and_why() -> None:
    """Those with the same reason are told together."""
    assert line(incident(1), incident(2), obstacle="container 'c' opts out").endswith(
        "2 orphans: 2 left alone (container 'c' opts out)"
    )


def test_says_what_is_held() -> None:
    """By order, until it is switched on."""
    off = RestartPolicy(enabled=False, max_retries=5, grace_period=GRACE)
    assert line(incident(1), policy=off).endswith("1 orphan: 1 held (auto-restart is off)")


def test_says_which_attempt_a_run_makes() -> None:
    """Taken up, it is the attempt that was counted; handed over, the one that follows."""
    assert line(claimed(1, 1, State.HANDED_OVER)).endswith("1 restarting (2 of 5)")
    assert line(claimed(1, 5)).endswith("1 restarting (5 of 5)")
    assert line(claimed(1, 1), claimed(2, 2)).endswith("2 orphans: 2 restarting")


def test_says_what_is_new() -> None:
    """What was found, and how incidents ended."""
    orphan = Orphan("r1", "g", "c", 1, 0, "{}")
    applied = (
        transitions.detect(orphan, NOW),
        transitions.detect(orphan, NOW),
        transitions.close(incident(3), State.RECOVERED, "back", NOW),
        transitions.close(incident(4), State.RELEASED, "gone", NOW),
    )
    assert line(applied=applied, expired=2) == (
        "120 resources, 0 orphans. New: 2 detected, 1 recovered, 1 released, 2 heartbeats expired"
    )
    assert line(expired=1).endswith(". New: 1 heartbeat expired")


def test_says_what_follows_an_attempt() -> None:
    """Another one, or the end of it."""
    attempted = incident(1, timedelta(0), attempts=2)
    assert next_step(attempted, POLICY) == (
        "If no optimizer registers for it, attempt 3 of 5 follows after 2026-03-01 12:05:00 UTC."
    )
    assert next_step(attempted._replace(attempts=5), POLICY) == (
        "If no optimizer registers for it, it is given up after 2026-03-01 12:05:00 UTC."
    )


def event(kind: EventKind, message: str) -> Event:
    """Something that happened at `NOW`."""
    return Event(kind=kind, at=NOW, message=message)


def test_the_story_of_what_is_given_up_has_every_attempt() -> None:
    """Whoever gets the alert reads what was tried, and where the row went."""
    events = [
        event(EventKind.DETECTED, "no optimizer stands for this resource"),
        event(EventKind.ATTEMPT, "attempt 1 begins"),
        event(EventKind.ATTEMPT_FAILED, "attempt 1 failed: no memory"),
        event(EventKind.STARTED, "attempt 2 started it"),
        event(EventKind.GIVING_UP, "giving up"),
    ]
    assert story(incident(1, timedelta(0), attempts=2), events, POLICY) == (
        "orphaned since 2026-03-01 12:00:00 UTC; 2 attempts, at least 5 min apart, did not bring "
        "it back; 2026-03-01 12:00:00 UTC attempt 1 failed: no memory; 2026-03-01 12:00:00 UTC "
        "attempt 2 started it; its row was removed from the registry and is kept in the ledger"
    )


def test_the_story_without_attempts_has_no_list() -> None:
    """With zero retries nothing was tried."""
    assert ", and no attempts are allowed; its row" in story(incident(1), [], POLICY)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0 s"),
        (0, "0 s"),
        (0.4, "0 s"),
        (42, "42 s"),
        (119, "119 s"),
        (119.6, "2 min"),
        (120, "2 min"),
        (121, "2 min 1 s"),
        (300, "5 min"),
        (3599, "59 min 59 s"),
        (3600, "1 h"),
        (3659, "1 h"),
        (3900, "1 h 5 min"),
        (86_400, "24 h"),
    ],
)
def test_a_span_is_told_as_a_person_says_it(seconds: float, text: str) -> None:
    """Seconds while they matter, and never a part that is zero."""
    assert duration(timedelta(seconds=seconds)) == text


@given(st.timedeltas())
def test_every_span_can_be_told(span: timedelta) -> None:
    """It is never empty, and off by no more than what it leaves out."""
    text = duration(span)
    units = {"s": 1, "min": 60, "h": 3600}
    words = text.split()
    told = sum(int(n) * units[unit] for n, unit in zip(words[::2], words[1::2], strict=True))
    off = max(span, timedelta(0)).total_seconds() - told
    assert -0.5 <= off <= (60 if "h" in text else 0.5)


def test_a_moment_has_its_zone() -> None:
    """Without the microseconds, which nobody reads."""
    assert clock_time(NOW.replace(microsecond=999_999)) == "2026-03-01 12:00:00 UTC"
