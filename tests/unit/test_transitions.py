"""Each step of an incident: what it changes, what it leaves, and what its event says."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest

from dagster_amoro.core import transitions
from dagster_amoro.core.model import (
    RUN_KEY,
    EventKind,
    Incident,
    OperatorRequest,
    Orphan,
    State,
    Transition,
)
from dagster_amoro.core.policy import RestartPolicy

NOW: Final = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
LATER: Final = NOW + timedelta(minutes=5)
CLAIMED: Final = Incident(
    incident_id=7,
    resource_id="r1",
    group_name="g",
    container_name="c",
    thread_count=2,
    detected_at=NOW - timedelta(hours=1),
    state=State.CLAIMED,
    attempts=2,
    attempted_at=NOW - timedelta(minutes=20),
    dispatches=3,
    claimed_by="run-1",
    claimed_until=NOW + timedelta(minutes=1),
    last_error="it failed",
    version=9,
    prior_attempts=1,
    operator_request=OperatorRequest.RESTART,
    newest_start="2026-03-01 10:59:00",
    fence=3,
)
DISPATCHED: Final = CLAIMED._replace(state=State.DISPATCHED, claimed_by="key-1")
GIVING_UP: Final = CLAIMED._replace(state=State.GIVING_UP)
KEPT: Final = CLAIMED._replace(state=State.KEPT, claimed_by=None, claimed_until=None)
BY: Final = {"author": "ann", "reason": "the node is back"}
ATTEMPTING: Final = CLAIMED._replace(is_attempting=True)
OVER: Final = {"attempt_ends_at": NOW, "is_attempting": False}
FREE: Final = {"claimed_by": None, "claimed_until": None}

# A step, what it changes besides the version, and the kind, attempt and run id of its event.
STEPS: Final[dict[str, tuple[Transition, dict[str, Any], tuple[object, ...]]]] = {
    "report": (
        transitions.report(CLAIMED, "opts out", NOW),
        {"state": State.UNSUPPORTED, "note": "opts out", **FREE},
        (EventKind.REPORTED, None, None),
    ),
    "hand over": (
        transitions.dispatch(
            CLAIMED._replace(state=State.UNSUPPORTED, note="opted out"), "key-2", LATER, NOW
        ),
        {
            "state": State.DISPATCHED,
            "note": None,
            "dispatches": 4,
            "claimed_by": "key-2",
            "claimed_until": LATER,
            "fence": None,
        },
        (EventKind.DISPATCHED, None, None),
    ),
    "hand over under a lease": (
        transitions.dispatch(CLAIMED, "key-2", LATER, NOW, 4),
        {
            "state": State.DISPATCHED,
            "dispatches": 4,
            "claimed_by": "key-2",
            "claimed_until": LATER,
            "fence": 4,
        },
        (EventKind.DISPATCHED, None, None),
    ),
    "claim": (
        transitions.claim(DISPATCHED._replace(unused_dispatches=3), "run-2", LATER, NOW),
        {
            "state": State.CLAIMED,
            "claimed_by": "run-2",
            "claimed_until": LATER,
            "unused_dispatches": 0,
        },
        (EventKind.CLAIMED, None, "run-2"),
    ),
    "begin attempt": (
        transitions.begin_attempt(CLAIMED, LATER, NOW),
        {
            "attempts": 3,
            "attempted_at": NOW,
            "attempt_ends_at": NOW,
            "is_attempting": True,
            "claimed_until": LATER,
            "last_error": None,
            "operator_request": None,
        },
        (EventKind.ATTEMPT, 3, "run-1"),
    ),
    "begin attempt after one that was lost": (
        transitions.begin_attempt(
            CLAIMED._replace(is_attempting=True), LATER, NOW, timedelta(minutes=2)
        ),
        {
            "attempts": 3,
            "attempted_at": NOW,
            "attempt_ends_at": NOW + timedelta(minutes=2),
            "is_attempting": True,
            "interrupted": 1,
            "claimed_until": LATER,
            "last_error": None,
            "operator_request": None,
        },
        (EventKind.ATTEMPT, 3, "run-1"),
    ),
    "started": (
        transitions.started(ATTEMPTING, {"pid": "1"}, ["a note"], NOW),
        {"state": State.WAITING, **FREE, **OVER},
        (EventKind.STARTED, 2, "run-1"),
    ),
    "attempt failed": (
        transitions.attempt_failed(ATTEMPTING, "again", LATER, NOW),
        {"last_error": "again", "claimed_until": LATER, **OVER},
        (EventKind.ATTEMPT_FAILED, 2, "run-1"),
    ),
    "attempt failed in a run that was taken for lost": (
        transitions.attempt_failed(CLAIMED._replace(interrupted=2), "again", LATER, NOW),
        {
            "last_error": "again",
            "claimed_until": LATER,
            "interrupted": 1,
            "attempt_ends_at": NOW,
        },
        (EventKind.ATTEMPT_FAILED, 2, "run-1"),
    ),
    "attempt overdue": (
        transitions.attempt_failed(CLAIMED, "too slow", LATER, NOW, overdue=True),
        {"last_error": "too slow", "claimed_until": LATER, "setbacks": 1, "attempt_ends_at": NOW},
        (EventKind.ATTEMPT_FAILED, 2, "run-1"),
    ),
    "give back": (
        transitions.give_back(CLAIMED, "not due", NOW),
        {"state": State.WAITING, **FREE},
        (EventKind.GIVEN_BACK, 2, "run-1"),
    ),
    "begin giving up": (
        transitions.begin_removal(CLAIMED, State.GIVING_UP, {"resource_id": "r1"}, LATER, NOW),
        {"state": State.GIVING_UP, "claimed_until": LATER},
        (EventKind.GIVING_UP, 2, "run-1"),
    ),
    "begin superseding": (
        transitions.begin_removal(CLAIMED, State.SUPERSEDING, {"resource_id": "r1"}, LATER, NOW),
        {"state": State.SUPERSEDING, "claimed_until": LATER},
        (EventKind.SUPERSEDING, 2, "run-1"),
    ),
    "keep": (
        transitions.keep(CLAIMED, "it does not help", NOW),
        {"state": State.KEPT, **FREE},
        (EventKind.KEPT, 2, "run-1"),
    ),
    "stand in": (
        transitions.replacement(CLAIMED, "r2", NOW),
        {"state": State.WAITING, **FREE},
        (EventKind.REPLACED, None, None),
    ),
    "enforce": (
        transitions.enforce(CLAIMED._replace(note="opted out"), NOW),
        {"state": State.WAITING, "prior_attempts": -2, "note": None, "last_error": None, **FREE},
        (EventKind.ENFORCED, None, None),
    ),
    "restart now": (
        transitions.order(
            CLAIMED._replace(operator_request=None), OperatorRequest.RESTART, BY, NOW
        ),
        {"state": State.WAITING, "operator_request": OperatorRequest.RESTART, **FREE},
        (EventKind.RESTART_NOW, None, None),
    ),
    "give up": (
        transitions.order(KEPT, OperatorRequest.GIVE_UP, BY, NOW),
        {"state": State.WAITING, "operator_request": OperatorRequest.GIVE_UP},
        (EventKind.GIVE_UP, None, None),
    ),
    "reset": (
        transitions.reset(CLAIMED._replace(interrupted=1), BY, NOW),
        {"prior_attempts": -2, "interrupted": 0},
        (EventKind.RESET, None, None),
    ),
    "reset what is kept": (
        transitions.reset(KEPT, BY, NOW),
        {"state": State.WAITING, "prior_attempts": -2},
        (EventKind.RESET, None, None),
    ),
    "close by a tick": (
        transitions.close(CLAIMED, State.RECOVERED, "back", NOW),
        {"state": State.RECOVERED, "closed_at": NOW, **FREE},
        (EventKind.RECOVERED, 2, None),
    ),
    "close by a run": (
        transitions.close(GIVING_UP, State.EXHAUSTED, "gone", NOW, run_id="run-1"),
        {"state": State.EXHAUSTED, "closed_at": NOW, **FREE},
        (EventKind.EXHAUSTED, 2, "run-1"),
    ),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_changes_this_and_nothing_else(name: str) -> None:
    """Everything that a step does not name stays, and its version counts on by one."""
    step, changes, _ = STEPS[name]
    assert step.before is not None
    assert step.after == step.before._replace(version=step.before.version + 1, **changes)


@pytest.mark.parametrize("name", STEPS)
def test_a_step_has_its_event(name: str) -> None:
    """The event says what happened when, in which attempt and by which run."""
    step, _, expected = STEPS[name]
    assert (step.event.kind, step.event.attempt, step.event.run_id) == expected
    assert step.event.at == NOW
    assert step.event.message


def test_only_a_removal_keeps_the_row_and_no_event_shows_it() -> None:
    """The row may hold secrets, and events are shown to people."""
    kept = {name: step.row for name, (step, _, _) in STEPS.items() if step.row is not None}
    row = {"resource_id": "r1"}
    assert kept == {"begin giving up": row, "begin superseding": row}


def test_details_hold_what_the_columns_do_not() -> None:
    """The run key, the start-up properties and notes, and who wanted it and why."""
    details = {name: dict(step.event.details) for name, (step, _, _) in STEPS.items()}
    assert {name: value for name, value in details.items() if value} == {
        "hand over": {"run_key": "key-2"},
        "hand over under a lease": {"run_key": "key-2"},
        "started": {"startup": {"pid": "1"}, "notes": ["a note"]},
        **dict.fromkeys(("restart now", "give up", "reset", "reset what is kept"), BY),
    }


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("begin attempt", "attempt 4 begins"),  # two of its own before it, and one that it carries
        ("started", "attempt 3 started it (pid 1)"),
        ("attempt failed", "attempt 3 failed: again"),
        # Of its own, one was interrupted, and the last one counts all the same.
        ("attempt failed in a run that was taken for lost", "attempt 2 failed: again"),
        ("begin giving up", "giving up after 3 attempts; its row is kept in the ledger"),
        ("restart now", "to be restarted without further waiting, by ann: the node is back"),
        ("give up", "to be given up, by ann: the node is back"),
        ("reset", "a fresh budget: 2 attempts counted until now, by ann: the node is back"),
        (
            "stand in",
            "r2, a new resource, is to take its place",
        ),
    ],
)
def test_messages_count_what_is_carried_and_say_who_and_why(name: str, message: str) -> None:
    """The budget is what its reader has in mind, and an operator's word is signed."""
    assert STEPS[name][0].event.message == message


def test_a_word_without_a_reason_is_signed_all_the_same() -> None:
    """Nobody has to give one."""
    assert transitions.signed("reset", {"author": "ann"}) == "reset, by ann"
    assert transitions.signed("reset", {"author": "ann", "reason": ""}) == "reset, by ann"


KEY: Final = f"{RUN_KEY} 7.2.3"


@pytest.mark.parametrize(
    ("state", "claimed_by", "counted"),
    [
        (State.WAITING, None, (0, 0)),
        (State.UNSUPPORTED, None, (0, 0)),
        (State.DISPATCHED, None, (0, 0)),
        (State.DISPATCHED, KEY, (0, 1)),
        (State.CLAIMED, None, (0, 0)),
        (State.CLAIMED, "run-1", (1, 0)),
        (State.GIVING_UP, None, (0, 0)),
        (State.GIVING_UP, KEY, (0, 1)),
        (State.GIVING_UP, "run-1", (1, 0)),
        (State.SUPERSEDING, KEY, (0, 1)),
        (State.SUPERSEDING, "run-1", (1, 0)),
    ],
)
def test_a_dispatch_counts_what_became_of_the_one_before(
    state: State, claimed_by: str | None, counted: tuple[int, int]
) -> None:
    """A run that was lost is a setback, one that never came an unused dispatch.

    One that let go of it, or that acted under another lease, is neither.
    """
    before = CLAIMED._replace(state=state, claimed_by=claimed_by, setbacks=4, unused_dispatches=6)
    for fence, changes in ((None, counted), (3, counted), (4, (0, 0))):
        after = transitions.dispatch(before, "key-2", LATER, NOW, fence).after
        assert (after.setbacks - 4, after.unused_dispatches - 6) == changes


def test_a_reset_gives_the_whole_budget_back() -> None:
    """Whatever was spent and carried, and whether or not it was reset before."""
    for attempts, prior_attempts in ((0, 0), (0, 3), (2, 3), (7, -5)):
        value = CLAIMED._replace(attempts=attempts, prior_attempts=prior_attempts)
        for step in (transitions.reset(value, BY, NOW), transitions.enforce(value, NOW)):
            assert step.after.attempts_used == 0


@pytest.mark.parametrize("state", [State.GIVING_UP, State.SUPERSEDING])
def test_what_is_removed_and_reset_is_removed_all_the_same(state: State) -> None:
    """A removal that was begun has to be finished, whatever its budget."""
    assert transitions.reset(CLAIMED._replace(state=state), BY, NOW).after.state is state


@pytest.mark.parametrize(
    "step",
    [
        lambda incident: transitions.dispatch(incident, "key-2", LATER, NOW),
        lambda incident: transitions.claim(incident, "run-2", LATER, NOW),
        lambda incident: transitions.give_back(incident, "held", NOW),
        lambda incident: transitions.order(incident, OperatorRequest.RESTART, BY, NOW),
        lambda incident: transitions.order(incident, OperatorRequest.GIVE_UP, BY, NOW),
    ],
)
def test_a_removal_that_has_begun_stays_one(step: Callable[[Incident], Transition]) -> None:
    """Whoever holds the incident meanwhile, it does not go back to waiting."""
    for state in (State.GIVING_UP, State.SUPERSEDING):
        assert step(GIVING_UP._replace(state=state)).after.state is state


def test_a_new_incident_is_open_and_free() -> None:
    """It waits, with nothing tried, as the row describes the resource."""
    orphan = Orphan("r1", "g", "c", 4, 1024, "{}")
    step = transitions.detect(orphan, NOW)
    assert step.before is None
    assert step.after == Incident(
        incident_id=0,
        resource_id="r1",
        group_name="g",
        container_name="c",
        thread_count=4,
        detected_at=NOW,
    )
    assert step.event.kind is EventKind.DETECTED


def test_a_new_incident_knows_what_was_there_before_it() -> None:
    """The attempts that count, which are told, and the newest resource of its group."""
    orphan = Orphan("r1", "g", "c", 4, 1024, "{}")
    step = transitions.detect(orphan, NOW, prior_attempts=2, newest_start="2026-03-01 11:00:00")
    assert (step.after.prior_attempts, step.after.attempts_used) == (2, 2)
    assert step.after.newest_start == "2026-03-01 11:00:00"
    assert step.event.message == (
        "no optimizer stands for this resource; "
        "it was not stable since its last recovery, and 2 attempts before count"
    )


def test_a_row_full_of_nulls_has_an_incident_too() -> None:
    """Amoro's columns allow NULL in everything but the id."""
    after = transitions.detect(Orphan("r1", None, None, None, None, None), NOW).after
    assert (after.group_name, after.container_name, after.thread_count) == ("", "", 0)


@pytest.mark.parametrize("outcome", [state for state in State if not state.is_open])
def test_every_outcome_closes(outcome: State) -> None:
    """A closed incident is nobody's, says since when, and its event is called like the outcome."""
    step = transitions.close(CLAIMED, outcome, "over", NOW)
    assert not step.after.is_open
    assert step.after.closed_at == NOW
    assert str(step.event.kind) == str(outcome)


def test_an_incident_that_was_never_attempted_has_no_attempt_in_its_events() -> None:
    """There is no attempt number zero."""
    fresh = CLAIMED._replace(attempts=0, attempted_at=None)
    assert transitions.give_back(fresh, "held", NOW).event.attempt is None
    assert transitions.close(fresh, State.RECOVERED, "back", NOW).event.attempt is None


def test_a_tick_notes_the_threads_of_the_group_and_the_policy() -> None:
    """So that the audit can say what was missing, and replay what was decided."""
    policy = RestartPolicy(enabled=True, max_retries=5, grace_period=timedelta(seconds=90))
    opened = transitions.observed(
        transitions.detect(Orphan("r1", "g", "c", 2, 0, "{}"), NOW), (12, 10), policy
    )
    assert opened.event.details == {
        "wanted": 12,
        "live": 10,
        "grace_seconds": 90.0,
        "max_retries": 5,
    }
    closed = transitions.close(CLAIMED, State.RECOVERED, "back", NOW)
    assert transitions.observed(closed, (12, 12), policy).event.details == {
        "wanted": 12,
        "live": 12,
    }
    assert transitions.observed(closed, None, policy) == closed
