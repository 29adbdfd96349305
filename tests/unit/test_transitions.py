"""Each step of an incident: what it changes, what it leaves, and what its event says."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest

from orchestration.keeping import transitions
from orchestration.keeping.model import EventKind, Incident, Orphan, State, Transition
from orchestration.keeping.policy import RestartPolicy

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
    hand_overs=3,
    claimed_by="run-1",
    claimed_until=NOW + timedelta(minutes=1),
    last_error="it failed",
    version=9,
)
HANDED_OVER: Final = CLAIMED._replace(state=State.HANDED_OVER, claimed_by="key-1")
GIVING_UP: Final = CLAIMED._replace(state=State.GIVING_UP)
FREE: Final = {"claimed_by": None, "claimed_until": None}

# A step, what it changes besides the version, and the kind, attempt and run id of its event.
STEPS: Final[dict[str, tuple[Transition, dict[str, Any], tuple[object, ...]]]] = {
    "report": (
        transitions.report(CLAIMED, "opts out", NOW),
        {"state": State.UNSUPPORTED, "note": "opts out", **FREE},
        (EventKind.REPORTED, None, None),
    ),
    "hand over": (
        transitions.hand_over(
            CLAIMED._replace(state=State.UNSUPPORTED, note="opted out"), "key-2", LATER, NOW
        ),
        {
            "state": State.HANDED_OVER,
            "note": None,
            "hand_overs": 4,
            "claimed_by": "key-2",
            "claimed_until": LATER,
        },
        (EventKind.HANDED_OVER, None, None),
    ),
    "claim": (
        transitions.claim(HANDED_OVER, "run-2", LATER, NOW),
        {"state": State.CLAIMED, "claimed_by": "run-2", "claimed_until": LATER},
        (EventKind.CLAIMED, None, "run-2"),
    ),
    "begin attempt": (
        transitions.begin_attempt(CLAIMED, LATER, NOW),
        {"attempts": 3, "attempted_at": NOW, "claimed_until": LATER},
        (EventKind.ATTEMPT, 3, "run-1"),
    ),
    "started": (
        transitions.started(CLAIMED, {"pid": "1"}, ["a note"], NOW),
        {"state": State.WAITING, "last_error": None, **FREE},
        (EventKind.STARTED, 2, "run-1"),
    ),
    "attempt failed": (
        transitions.attempt_failed(CLAIMED, "again", LATER, NOW),
        {"last_error": "again", "claimed_until": LATER},
        (EventKind.ATTEMPT_FAILED, 2, "run-1"),
    ),
    "give back": (
        transitions.give_back(CLAIMED, "not due", NOW),
        {"state": State.WAITING, **FREE},
        (EventKind.GIVEN_BACK, 2, "run-1"),
    ),
    "begin giving up": (
        transitions.begin_giving_up(CLAIMED, {"resource_id": "r1"}, LATER, NOW),
        {"state": State.GIVING_UP, "claimed_until": LATER},
        (EventKind.GIVING_UP, 2, "run-1"),
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


def test_only_giving_up_keeps_the_row_and_no_event_shows_it() -> None:
    """The row may hold secrets, and events are shown to people."""
    kept = {name: step.row for name, (step, _, _) in STEPS.items() if step.row is not None}
    assert kept == {"begin giving up": {"resource_id": "r1"}}


def test_details_hold_what_the_columns_do_not() -> None:
    """The run key, the start-up properties and notes, and the whole row."""
    details = {name: dict(step.event.details) for name, (step, _, _) in STEPS.items()}
    assert {name: value for name, value in details.items() if value} == {
        "hand over": {"run_key": "key-2"},
        "started": {"startup": {"pid": "1"}, "notes": ["a note"]},
    }


@pytest.mark.parametrize(
    "step",
    [
        lambda incident: transitions.hand_over(incident, "key-2", LATER, NOW),
        lambda incident: transitions.claim(incident, "run-2", LATER, NOW),
        lambda incident: transitions.give_back(incident, "held", NOW),
        lambda incident: transitions.begin_giving_up(incident, {}, LATER, NOW),
    ],
)
def test_a_removal_that_has_begun_stays_one(step: Callable[[Incident], Transition]) -> None:
    """Whoever holds the incident meanwhile, it does not go back to waiting."""
    assert step(GIVING_UP).after.state is State.GIVING_UP


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
