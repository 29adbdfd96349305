"""Which steps an incident can take: each a copy of it one version on, with its event."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from dagster_amoro.core import texts
from dagster_amoro.core.errors import KeeperError
from dagster_amoro.core.formatting import counted
from dagster_amoro.core.model import (
    Event,
    EventKind,
    Incident,
    OperatorRequest,
    Orphan,
    State,
    Transition,
)
from dagster_amoro.core.policy import RestartPolicy
from dagster_amoro.core.post_mortem import PostMortem, tells_more
from dagster_amoro.core.registrations import Registrations
from dagster_amoro.core.secrets import without_secrets

_UNCLAIMED: Final[Mapping[str, Any]] = {"claimed_by": None, "claimed_until": None}


class Hold(NamedTuple):
    """By whom a resource is taken in hand for whom, to be given a worker now."""

    owner: str  # the process, see `APPLY`
    by: Mapping[str, str]  # who wants it (`author`) and why (`reason`)
    now: datetime
    until: datetime  # its right to act ends then, or with the lease of `fence`
    fence: int | None = None

    @property
    def changes(self) -> dict[str, Any]:
        """What it makes of an incident."""
        held = {"claimed_by": self.owner, "claimed_until": self.until, "fence": self.fence}
        wanted = {"operator_request": OperatorRequest.RESTART, "unused_dispatches": 0}
        return {"state": State.CLAIMED, "note": None, **held, **wanted}


def detect(
    orphan: Orphan, now: datetime, *, prior_attempts: int = 0, newest_start: str | None = None
) -> Transition:
    """A resource was found orphaned: its incident opens, with what `Incident` says of these."""
    incident = Incident(
        incident_id=0,
        resource_id=orphan.resource_id,
        group_name=orphan.group_name or "",
        container_name=orphan.container_name or "",
        thread_count=orphan.thread_count or 0,
        detected_at=now,
        prior_attempts=prior_attempts,
        newest_start=newest_start,
    )
    message = "no optimizer stands for this resource"
    if prior_attempts:
        counts = "counts" if prior_attempts == 1 else "count"
        message += (
            "; it was not stable since its last recovery, and "
            f"{counted(prior_attempts, 'attempt')} before {counts}"
        )
    event = Event(kind=EventKind.DETECTED, at=now, message=message)
    return Transition(before=None, after=incident, event=event)


def take_up(
    orphan: Orphan, hold: Hold, why: str, *, cause: str | None, newest_start: str | None
) -> Transition:
    """A resource is to get a worker now, or another one: its incident opens in whose hands it is.

    `cause` says how the worker that it has will end, as `Incident` does; None: it has none.
    """
    opened = detect(orphan, hold.now, newest_start=newest_start)
    after = opened.after._replace(**hold.changes, cause=cause, death=why if cause else None)
    event = replace(opened.event, message=signed(why, hold.by), details=dict(hold.by))
    return replace(opened, after=after, event=event)


def take_over(incident: Incident, hold: Hold, why: str) -> Transition:
    """The same for a resource that has an incident, which is in nobody's hands any more."""
    message, details = signed(why, hold.by), dict(hold.by)
    event = Event(kind=EventKind.CLAIMED, at=hold.now, message=message, details=details)
    return _step(incident, event, **hold.changes)


def observed(
    step: Transition, capacity: tuple[int, int] | None, policy: RestartPolicy
) -> Transition:
    """The step of a tick with what was true of its group then, for the audit.

    Its event gets the group's threads, `wanted` and `live`, and one that opens an incident the
    policy that it is treated by: `grace_seconds` and `max_retries`, the attempts that are left.
    """
    details: dict[str, Any] = dict(step.event.details)
    if capacity is not None:
        details |= {"wanted": capacity[0], "live": capacity[1]}
    if step.before is None:
        details |= {
            "grace_seconds": policy.grace_period.total_seconds(),
            "max_retries": max(policy.max_retries - step.after.prior_attempts, 0),
        }
    return replace(step, event=replace(step.event, details=details))


def report(incident: Incident, obstacle: str, now: datetime) -> Transition:
    """It cannot be restarted, which is said once and then left to a person."""
    event = Event(kind=EventKind.REPORTED, at=now, message=f"left alone: {obstacle}")
    note = str(texts.shown(obstacle))
    return _step(incident, event, state=State.UNSUPPORTED, note=note, **_UNCLAIMED)


def dispatch(
    incident: Incident, run_key: str, until: datetime, now: datetime, fence: int | None = None
) -> Transition:
    """A run is requested for it; its right to act ends at `until`, or with the lease of `fence`.

    That the run before it was lost, or never came, is counted; not where its lease was.
    """
    number = incident.dispatches + 1
    counts = fence is None or incident.fence == fence
    setbacks = incident.setbacks_if_lost if counts else incident.setbacks
    unused = incident.unused_dispatches + (counts and incident.awaits_run)
    message = f"given to a run (dispatch {number})"
    event = Event(kind=EventKind.DISPATCHED, at=now, message=message, details={"run_key": run_key})
    return _step(
        incident,
        event,
        state=_working(incident, State.DISPATCHED),
        note=None,
        dispatches=number,
        claimed_by=run_key,
        claimed_until=until,
        fence=fence,
        setbacks=setbacks,
        unused_dispatches=unused,
    )


def claim(incident: Incident, run_id: str, until: datetime, now: datetime) -> Transition:
    """The run claims it."""
    event = Event(kind=EventKind.CLAIMED, at=now, message="claimed by its run", run_id=run_id)
    changes = {"claimed_by": run_id, "claimed_until": until, "unused_dispatches": 0}
    return _step(incident, event, state=_working(incident, State.CLAIMED), **changes)


def begin_attempt(
    incident: Incident,
    until: datetime,
    now: datetime,
    longest: timedelta = timedelta(0),
    found: PostMortem | None = None,
) -> Transition:
    """The attempt is counted, before the container is called; its calls take `longest` at most.

    The one before it does not count, where nobody knows what came of it: its run was lost. `found`
    says how the worker before it ended. That is why there is an incident where it is the first
    attempt, and tells more than what is known by then.
    """
    after = incident.evolve(
        attempts=incident.attempts + 1,
        attempted_at=now,
        attempt_ends_at=now + longest,
        is_attempting=True,
        interrupted=incident.interrupted + incident.is_attempting,
        claimed_until=until,
        last_error=None,
        operator_request=None,
    )
    if found and not incident.attempts:
        after, found = _with_cause(after, found)
    message = f"attempt {after.attempts_used} begins"
    if incident.is_attempting:
        message += "; the one before was interrupted and does not count"
    message += f"; {found.text}" if found else ""
    event = _in_run(after, EventKind.ATTEMPT, message, now)
    if found:
        event = replace(event, details={**event.details, **found._asdict()})
    return Transition(before=incident, after=after, event=event)


def _with_cause(incident: Incident, found: PostMortem) -> tuple[Incident, PostMortem]:
    """The incident with why its worker ended, and that, by what is known and what was found now."""
    if tells_more(found.cause, incident.cause):
        return incident._replace(cause=found.cause, death=found.text), found
    known = PostMortem(incident.cause or "", incident.death or "", found.log)
    return incident, known


def started(  # noqa: PLR0913 - what is known of a start
    incident: Incident,
    startup: Mapping[str, str],
    notes: Sequence[str],
    now: datetime,
    *,
    overdue: bool = False,
    row: Mapping[str, Any] | None = None,
) -> Transition:
    """The container accepted the start; the run lets go and registration decides.

    `overdue`: the stop before it ran into its deadline. `row` is its resource row as it was
    started: nobody else has it, should somebody remove it now.
    """
    over = _attempt_over(incident, now)
    message = f"attempt {incident._replace(**over).attempts_used} started it{shown(startup)}"
    details = {"startup": without_secrets(startup), "notes": list(notes)}
    event = replace(_in_run(incident, EventKind.STARTED, message, now), details=details)
    changes = over | {"setbacks": incident.setbacks + overdue}
    step = _step(incident, event, state=State.WAITING, **changes, **_UNCLAIMED)
    return replace(step, row=row)


def shown(startup: Mapping[str, str]) -> str:
    """What was started, by its first and most telling property, in parentheses; "" if by none."""
    known = without_secrets(startup)
    return next((f" ({key} {value})" for key, value in known.items()), "")


def attempt_failed(
    incident: Incident, error: str, until: datetime, now: datetime, *, overdue: bool = False
) -> Transition:
    """The start failed; the run keeps the incident for its next attempt.

    It is `overdue` where a call of its container ran into its deadline.
    """
    over = _attempt_over(incident, now)
    message = f"attempt {incident._replace(**over).attempts_used} failed: {error}"
    event = _in_run(incident, EventKind.ATTEMPT_FAILED, message, now)
    changes = over | {"setbacks": incident.setbacks + overdue}
    return _step(
        incident, event, last_error=str(texts.shown(error)), claimed_until=until, **changes
    )


def doubt(incident: Incident, registrations: Registrations, now: datetime) -> Transition:
    """An optimizer registered, and an attempt may have stopped it: so far that says nothing.

    What becomes of that attempt is not known, so it does not count.
    """
    message = (
        "an optimizer registered for it that may have been stopped by then; "
        "it counts once it is touched again"
    )
    event = _in_run(incident, EventKind.DOUBTED, message, now)
    return _step(
        incident,
        event,
        doubted=json.dumps(dict(registrations)),
        attempt_ends_at=now,
        is_attempting=False,
        interrupted=incident.interrupted + incident.is_attempting,
    )


def give_back(incident: Incident, reason: str, now: datetime) -> Transition:
    """The run lets go of it without an attempt; the next tick looks again."""
    event = _in_run(incident, EventKind.GIVEN_BACK, f"given back: {reason}", now)
    return _step(incident, event, state=_working(incident, State.WAITING), **_UNCLAIMED)


def begin_removal(
    incident: Incident, state: State, row: Mapping[str, Any], until: datetime, now: datetime
) -> Transition:
    """It is given up or superseded; its row goes into the ledger, whole, before it is removed."""
    why = "its group was scaled up without it"
    if state is State.GIVING_UP:
        why = f"giving up after {_attempts(incident)}"
    event = _in_run(incident, EventKind(state), f"{why}; its row is kept in the ledger", now)
    return replace(_step(incident, event, state=state, claimed_until=until), row=row)


def begin_release(incident: Incident, now: datetime) -> Transition:
    """Somebody removed its row after an attempt; what that started is to be released."""
    message = "somebody removed its resource row; what was started for it is released"
    event = Event(kind=EventKind.RELEASING, at=now, message=message)
    return _step(incident, event, state=State.RELEASING, **_UNCLAIMED)


def row_is_back(incident: Incident, now: datetime) -> Transition:
    """Its row was removed and is there again: it is an orphan as before."""
    message = "its resource row is there again, and nothing is released"
    event = Event(kind=EventKind.ROW_IS_BACK, at=now, message=message)
    return _step(incident, event, state=State.WAITING, **_UNCLAIMED)


def keep(incident: Incident, why: str, now: datetime) -> Transition:
    """No more is tried, which is said once, with the reason; then it is left to a person."""
    message = f"{why}; it is left as it is, and its row is kept"
    event = _in_run(incident, EventKind.KEPT, message, now)
    return _step(incident, event, state=State.KEPT, **_UNCLAIMED)


def replacement(incident: Incident, resource_id: str, now: datetime) -> Transition:
    """A new resource is started for its threads; a run that has it in hand loses it."""
    message = f"{resource_id}, a new resource, is to take its place"
    event = Event(kind=EventKind.REPLACED, at=now, message=message)
    return _step(incident, event, state=State.WAITING, **_UNCLAIMED)


def enforce(incident: Incident, now: datetime) -> Transition:
    """A dry run is over: nothing that it did counts, since nothing was done."""
    message = "the dry run is over; what it did not do counts no longer"
    event = Event(kind=EventKind.ENFORCED, at=now, message=message)
    forgotten = _forgotten(incident) | {"note": None, "last_error": None}
    return _step(incident, event, state=State.WAITING, **forgotten, **_UNCLAIMED)


def order(
    incident: Incident, operator_request: OperatorRequest, by: Mapping[str, str], now: datetime
) -> Transition:
    """An operator wants it restarted or given up now; a run that has it in hand loses it.

    `by` says who (`author`) and why (`reason`).
    """
    kind, what = {
        OperatorRequest.RESTART: (EventKind.RESTART_NOW, "to be restarted without further waiting"),
        OperatorRequest.GIVE_UP: (EventKind.GIVE_UP, "to be given up"),
    }[operator_request]
    event = Event(kind=kind, at=now, message=signed(what, by), details=dict(by))
    state = _working(incident, State.WAITING)
    return _step(incident, event, state=state, operator_request=operator_request, **_UNCLAIMED)


def reset(incident: Incident, by: Mapping[str, str], now: datetime) -> Transition:
    """An operator gives it a fresh budget of attempts; `by` as in `order`."""
    message = signed(f"a fresh budget: {_attempts(incident)} counted until now", by)
    event = Event(kind=EventKind.RESET, at=now, message=message, details=dict(by))
    state = State.WAITING if incident.state is State.KEPT else incident.state
    return _step(incident, event, state=state, **_forgotten(incident))


def by_of(author: str, reason: str) -> Mapping[str, str]:
    """Who wants something and why, as it is kept and shown.

    Raises:
        KeeperError: One of them is not said.
    """
    if not author.strip() or not reason.strip():
        raise KeeperError("say who wants it (author) and why (reason)")
    # Hidden before they are stored: they are shown wherever the pause or the incident is.
    return {"author": texts.shown(author.strip()), "reason": texts.shown(reason.strip())}


def signed(what: str, by: Mapping[str, str]) -> str:
    """What an operator did, with who and why."""
    reason = f": {by['reason']}" if by.get("reason") else ""
    return f"{what}, by {by['author']}{reason}"


def close(
    incident: Incident, outcome: State, message: str, now: datetime, *, run_id: str | None = None
) -> Transition:
    """Its outcome is known: to a run, or to a tick where `run_id` is None."""
    event = replace(_in_run(incident, EventKind(outcome), message, now), run_id=run_id)
    return _step(incident, event, state=outcome, closed_at=now, **_UNCLAIMED)


def _forgotten(incident: Incident) -> dict[str, Any]:
    ended = incident.attempts - incident.is_attempting
    return {"prior_attempts": -ended, "interrupted": 0}


def _attempt_over(incident: Incident, now: datetime) -> dict[str, Any]:
    # Where a tick took its run for lost, and it was slow, the attempt counts all the same.
    mistaken = incident.interrupted > 0 and not incident.is_attempting
    interrupted = incident.interrupted - mistaken
    return {"attempt_ends_at": now, "is_attempting": False, "interrupted": interrupted}


def _attempts(incident: Incident) -> str:
    return counted(incident.attempts_used, "attempt")


def _step(before: Incident, event: Event, **changes: Any) -> Transition:  # noqa: ANN401 - as `evolve`
    return Transition(before=before, after=before.evolve(**changes), event=event)


def _in_run(incident: Incident, kind: EventKind, message: str, now: datetime) -> Event:
    """What happens to it in the run that has it in hand."""
    number = incident.attempts or None
    return Event(kind=kind, at=now, message=message, attempt=number, run_id=incident.claimed_by)


def _working(incident: Incident, state: State) -> State:
    # A removal that was begun must be finished, whoever holds it meanwhile.
    return incident.state if incident.state.is_removing else state
