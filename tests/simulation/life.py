"""What the events of one incident may say: which may follow which, and how often."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from dagster_amoro.core.model import EventKind, State
from dagster_amoro.core.policy import RestartPolicy
from tests.simulation.container import FakeContainer
from tests.simulation.databases import Row

LONGEST: Final = FakeContainer.limits.longest_restart
"""A restart whose end nobody knows is over by then."""


_ANY_OPEN: Final = frozenset(state for state in State if state.is_open)


_REMOVING: Final = frozenset(state for state in State if state.is_removing)


_NOT_REMOVING: Final = _ANY_OPEN - _REMOVING


WORKING: Final = frozenset({State.WAITING, State.DISPATCHED, State.CLAIMED})


_CLAIMED: Final = frozenset({State.CLAIMED})


# Which states each kind of event may follow, and the state that follows it.
LIFE: Final[dict[EventKind, tuple[frozenset[State], State]]] = {
    EventKind.REPORTED: (_NOT_REMOVING, State.UNSUPPORTED),
    EventKind.DISPATCHED: (_ANY_OPEN, State.DISPATCHED),
    EventKind.CLAIMED: (_REMOVING | {State.DISPATCHED}, State.CLAIMED),
    EventKind.ATTEMPT: (_CLAIMED, State.CLAIMED),
    EventKind.STARTED: (_CLAIMED | {State.RECOVERED}, State.WAITING),  # it registers at once
    EventKind.ATTEMPT_FAILED: (_CLAIMED, State.CLAIMED),
    EventKind.GIVEN_BACK: (_CLAIMED | _REMOVING, State.WAITING),
    EventKind.GIVING_UP: (_CLAIMED | {State.GIVING_UP}, State.GIVING_UP),
    EventKind.SUPERSEDING: (_CLAIMED | {State.SUPERSEDING}, State.SUPERSEDING),
    EventKind.REPLACED: (WORKING, State.WAITING),
    EventKind.KEPT: (_CLAIMED, State.KEPT),
    EventKind.RELEASING: (_NOT_REMOVING, State.RELEASING),
    EventKind.ROW_IS_BACK: (frozenset({State.RELEASING}), State.WAITING),
    EventKind.DOUBTED: (_ANY_OPEN, State.WAITING),  # but see `Story`
    EventKind.RECOVERED: (_ANY_OPEN, State.RECOVERED),
    EventKind.RELEASED: (_NOT_REMOVING | {State.RELEASING}, State.RELEASED),
    EventKind.EXHAUSTED: (frozenset({State.GIVING_UP}), State.EXHAUSTED),
    EventKind.SUPERSEDED: (frozenset({State.SUPERSEDING}), State.SUPERSEDED),
}


IN_A_RUN: Final = {
    EventKind.ATTEMPT,
    EventKind.STARTED,
    EventKind.ATTEMPT_FAILED,
    EventKind.GIVEN_BACK,
    EventKind.GIVING_UP,
    EventKind.EXHAUSTED,
    EventKind.SUPERSEDING,
    EventKind.SUPERSEDED,
    EventKind.KEPT,
}


@dataclass
class Story:
    """What the events of an incident say about it, read by somebody who knows nothing else."""

    policy: RestartPolicy
    detected_at: datetime
    state: State = State.WAITING
    attempts: int = 0
    ended_at: datetime | None = None  # of the last attempt, at the latest
    is_attempting: bool = False
    interrupted: int = 0
    dispatches: int = 0
    claims: int = 0
    run_id: str | None = None
    row: Row = field(default_factory=dict)  # as it is kept
    length: int = 1

    def go_on(self, event: Row) -> None:
        """Takes one more event, if it can follow."""
        kind = EventKind(event["kind"])
        may_follow, after = LIFE[kind]
        assert self.state in may_follow, f"{kind} follows {self.state}"
        if kind is EventKind.DOUBTED:
            after = self.state
        is_back = kind is EventKind.ROW_IS_BACK
        removing = self.state.is_removing and after.is_open and not is_back
        moves = self.state.is_open  # else its end was seen before that was written down
        self.state = after if moves and not removing else self.state
        self.length += moves
        if kind in IN_A_RUN:
            assert event["run_id"] == self.run_id, f"{kind} by a run that has no claim"
        if kind is EventKind.DISPATCHED:
            self.dispatches += 1
        elif kind is EventKind.CLAIMED:
            self.claims += 1
            self.run_id = event["run_id"]
            assert self.claims <= self.dispatches, "a dispatch was taken up twice"
        elif kind is EventKind.ATTEMPT:
            self._attempt(event)
        elif kind is EventKind.GIVING_UP:
            assert self.attempts - self.interrupted == self.policy.max_retries
            assert removing or moment(event["at"]) >= self._due_at()
        elif kind is EventKind.DOUBTED:
            self.interrupted += self.is_attempting
            self.ended_at, self.is_attempting = moment(event["at"]), False
        elif kind in {EventKind.STARTED, EventKind.ATTEMPT_FAILED} and moves:
            # What a tick took for interrupted was only slow.
            self.interrupted -= not self.is_attempting
            self.ended_at, self.is_attempting = moment(event["at"]), False

    def _attempt(self, event: Row) -> None:
        assert moment(event["at"]) >= self._due_at(), "an attempt within the grace period"
        self.attempts += 1
        self.interrupted += self.is_attempting
        assert event["attempt"] == self.attempts
        assert self.attempts - self.interrupted <= self.policy.max_retries
        self.ended_at, self.is_attempting = moment(event["at"]) + LONGEST, True

    def _due_at(self) -> datetime:
        return (self.ended_at or self.detected_at) + self.policy.grace_period


def moment(text: str) -> datetime:
    """A time as SQLite has it."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)
