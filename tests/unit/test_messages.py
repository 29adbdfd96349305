"""What a reader of the UI is told, in the words of the sentences below."""

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final

from dagster_amoro.core import transitions
from dagster_amoro.core.limits import Limits
from dagster_amoro.core.messages import next_step, summarize, tell_story
from dagster_amoro.core.model import (
    Event,
    EventKind,
    Incident,
    OperatorRequest,
    Orphan,
    State,
    Transition,
)
from dagster_amoro.core.policy import OnExhausted, Replacement, RestartPolicy, RunState
from dagster_amoro.core.tick_inputs import RegistrySnapshot
from dagster_amoro.core.tick_plan import plan_tick
from tests.helpers.inputs import group, inputs_of, refilled

NOW: Final = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
GRACE: Final = timedelta(minutes=5)
POLICY: Final = RestartPolicy(enabled=True, max_retries=5, grace_period=GRACE)
KEEPING: Final = replace(POLICY, on_exhausted=OnExhausted.KEEP)


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


def line(  # noqa: PLR0913 - all that a tick can tell of
    *incidents: Incident,
    resources: int = 120,
    expired: int = 0,
    applied: tuple[Transition, ...] = (),
    obstacle: str | None = None,
    policy: RestartPolicy = POLICY,
    limits: Limits | None = None,
    replacement: Replacement = Replacement.NONE,
    token: str | None = None,
) -> str:
    """The line of a tick that saw these incidents and handed over what was due."""
    orphans = {i.resource_id: Orphan(i.resource_id, "g", "c", 1, 0, "{}") for i in incidents}
    seen = RegistrySnapshot(resources=resources, groups=("g",), orphans=orphans, expired=expired)
    around = inputs_of(
        seen,
        incidents,
        policy=policy,
        obstacle=lambda _: obstacle,
        runs={"run": RunState.ACTIVE},
        limits=limits or Limits(),
        token=token,
        count=lambda: {"g": len(incidents)},
    )
    around = refilled(around, replacement)
    plan = plan_tick(around)
    kinds = Counter(step.event.kind for step in applied)
    return summarize(around, plan, dispatched=plan.dispatches, applied=kinds)


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


def test_says_what_the_guards_hold_back() -> None:
    """In the words of the limit, or of the wave that was full."""
    two = incident(1), incident(2)
    assert line(*two, limits=Limits(max_orphaned=0.5)).endswith(
        "2 orphans: 2 held (2 of 2 orphaned, allowed 50%)"
    )
    assert line(*two, limits=Limits(max_restarts=1)).endswith(
        "2 orphans: 1 due for a restart (1 of 5), "
        "1 waiting (due, and left for the next tick (keeper.max-restarts-per-tick))"
    )


def test_says_what_is_kept_and_that_it_is_held_from_then_on() -> None:
    """Its attempts are used up, and a person has to look."""
    exhausted = incident(1, attempts=5)
    assert line(exhausted, policy=KEEPING).endswith("1 orphan: 1 out of attempts, to be kept")
    assert line(exhausted._replace(state=State.KEPT), policy=KEEPING).endswith(
        "1 held (5 attempts did not help, and keeper.on-exhausted is keep)"
    )


def test_says_that_no_run_comes_and_when_the_next_is_requested() -> None:
    """Dagster is too busy to launch what it was asked for."""
    waiting = incident(1)._replace(
        state=State.DISPATCHED, claimed_by="key", claimed_until=NOW, unused_dispatches=2
    )
    assert line(waiting).endswith(
        "1 orphan: 1 waiting (no run claimed it, several times in a row), the next run follows "
        "in 30 min"
    )


def test_says_which_runs_are_requested_again_and_why() -> None:
    """Each run is one, however many orphans it has."""
    mark = "0123456789abcdef"
    lost = [
        claimed(number, 0, State.DISPATCHED)._replace(claimed_by=f"{key} {mark}")
        for number, key in ((1, "k"), (2, "k"), (3, "l"))
    ]
    assert line(*lost[:2], token=mark) == (
        "120 resources, 2 orphans: 2 restarting. 1 run is requested again: the tick before was cut "
        "off when it had given out its work"
    )
    assert ". 2 runs are requested again: the tick before" in line(*lost, token=mark)


def test_says_what_others_took_the_place_of() -> None:
    """Or are about to."""
    assert line(incident(1), replacement=Replacement.LIVE).endswith(
        "1 orphan: 1 to be removed, since others took its place"
    )
    assert line(incident(1), replacement=Replacement.COMING).endswith(
        "1 orphan: 1 waiting (its group is being scaled up)"
    )


def test_attempts_that_it_carries_are_told_as_made() -> None:
    """It is the budget that its reader has in mind; after a reset it begins anew."""
    assert line(incident(1)._replace(prior_attempts=2)).endswith("1 due for a restart (3 of 5)")
    assert line(incident(1, attempts=4)._replace(prior_attempts=-4)).endswith("(1 of 5)")
    operator_request = incident(1, attempts=5)._replace(operator_request=OperatorRequest.RESTART)
    assert line(operator_request).endswith("1 due for a restart (5 of 5)")


def test_sizes_of_groups_come_last() -> None:
    """A sentence for all of them."""
    sized = {name: group(name, min_parallelism="2") for name in "ab"}
    seen = RegistrySnapshot(
        resources=120, groups=("a", "b"), orphans={}, sized=sized, live={"a": 1}
    )
    around = inputs_of(seen)
    assert summarize(around, plan_tick(around), dispatched=(), applied={}) == (
        "120 resources, 0 orphans. a has 1 of 2 threads, a new resource of 1 is started; "
        "b has 0 of 2 threads, a new resource of 2 is started"
    )


def test_says_which_attempt_a_run_makes() -> None:
    """Taken up, it is the attempt that was counted; handed over, the one that follows."""
    assert line(claimed(1, 1, State.DISPATCHED)).endswith("1 restarting (2 of 5)")
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


def test_says_how_far_it_is() -> None:
    """Where the time of a tick was over before all was written down."""
    around = inputs_of(RegistrySnapshot(resources=120, groups=(), orphans={}))
    plan = replace(plan_tick(around), left=80_000)
    told = summarize(around, plan, dispatched=(), applied={EventKind.DETECTED: 20_000})
    assert told == (
        "120 resources, 0 orphans. New: 20000 detected. "
        "20,000 of 100,000 changes are written down; the next tick goes on"
    )


def test_says_what_follows_an_attempt() -> None:
    """Another one, or the end of it."""
    attempted = incident(1, timedelta(0), attempts=2)
    assert next_step(attempted, POLICY) == (
        "If no optimizer registers for it, attempt 3 of 5 follows after 2026-03-01 12:05:00 UTC."
    )
    assert next_step(attempted._replace(attempts=5), POLICY) == (
        "If no optimizer registers for it, it is given up after 2026-03-01 12:05:00 UTC."
    )


def test_says_what_follows_the_last_attempt_where_it_is_kept() -> None:
    """Attempts that it carries are attempts."""
    attempted = incident(1, timedelta(0), attempts=2)._replace(prior_attempts=3)
    assert next_step(attempted, KEEPING) == (
        "If no optimizer registers for it, it is left to a person after 2026-03-01 12:05:00 UTC."
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
    assert tell_story(incident(1, timedelta(0), attempts=2), events, POLICY) == (
        "orphaned since 2026-03-01 12:00:00 UTC; 2 attempts, at least 5 min apart, did not bring "
        "it back; 2026-03-01 12:00:00 UTC attempt 1 failed: no memory; 2026-03-01 12:00:00 UTC "
        "attempt 2 started it; its row was removed from the registry and is kept in the ledger"
    )


def test_the_story_without_attempts_has_no_list() -> None:
    """With zero retries nothing was tried."""
    assert ", and no attempts are allowed; its row" in tell_story(incident(1), [], POLICY)


def test_the_story_of_what_is_kept_says_where_its_row_is() -> None:
    """Nothing was removed, and the attempts of a crash loop are told."""
    looping = incident(1, timedelta(0), attempts=2)._replace(prior_attempts=3)
    assert tell_story(looping, [], KEEPING, removed=False) == (
        "orphaned since 2026-03-01 12:00:00 UTC; 3 attempts before, after which it came back and "
        "was soon orphaned again; 2 attempts, at least 5 min apart, did not bring it back; its row "
        "is left where it is"
    )


def test_the_story_of_what_an_operator_gave_up_says_who_and_why() -> None:
    """Not that its attempts did not help."""
    operator_request = incident(1, timedelta(0), attempts=2)._replace(
        operator_request=OperatorRequest.GIVE_UP
    )
    events = [event(EventKind.GIVE_UP, "to be given up, by ann: the node is gone")]
    assert tell_story(operator_request, events, POLICY) == (
        "orphaned since 2026-03-01 12:00:00 UTC; 2026-03-01 12:00:00 UTC to be given up, by ann: "
        "the node is gone; its row was removed from the registry and is kept in the ledger"
    )


def test_the_story_after_a_reset_tells_of_all_its_attempts() -> None:
    """Those before the reset were made, though they do not count."""
    again = incident(1, timedelta(0), attempts=7)._replace(prior_attempts=-2)
    assert tell_story(again, [], POLICY).startswith(
        "orphaned since 2026-03-01 12:00:00 UTC; 7 attempts, at least 5 min apart, did not bring"
    )
