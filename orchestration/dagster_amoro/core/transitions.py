"""Which steps an incident can take: each a copy of it one version on, with its event."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

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
from dagster_amoro.core.secrets import without_secrets

_UNCLAIMED: Final[Mapping[str, Any]] = {"claimed_by": None, "claimed_until": None}


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
        message += (
            f"; it was not stable since its last recovery, and attempt {prior_attempts} counts"
        )
    event = Event(kind=EventKind.DETECTED, at=now, message=message)
    return Transition(before=None, after=incident, event=event)


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
    return _step(incident, event, state=State.UNSUPPORTED, note=obstacle, **_UNCLAIMED)


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


def begin_attempt(incident: Incident, until: datetime, now: datetime) -> Transition:
    """The attempt is counted, before the container is called."""
    after = incident.evolve(
        attempts=incident.attempts + 1,
        attempted_at=now,
        claimed_until=until,
        last_error=None,
        operator_request=None,
    )
    event = _in_run(after, EventKind.ATTEMPT, f"attempt {after.attempts_used} begins", now)
    return Transition(before=incident, after=after, event=event)


def started(
    incident: Incident,
    startup: Mapping[str, str],
    notes: Sequence[str],
    now: datetime,
    *,
    overdue: bool = False,
) -> Transition:
    """The container accepted the start; the run lets go and registration decides.

    `overdue`: the stop before it ran into its deadline.
    """
    message = f"attempt {incident.attempts_used} started it{shown(startup)}"
    details = {"startup": without_secrets(startup), "notes": list(notes)}
    event = replace(_in_run(incident, EventKind.STARTED, message, now), details=details)
    setbacks = incident.setbacks + overdue
    return _step(incident, event, state=State.WAITING, setbacks=setbacks, **_UNCLAIMED)


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
    message = f"attempt {incident.attempts_used} failed: {error}"
    event = _in_run(incident, EventKind.ATTEMPT_FAILED, message, now)
    setbacks = incident.setbacks + overdue
    return _step(incident, event, last_error=error, claimed_until=until, setbacks=setbacks)


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


def keep(incident: Incident, now: datetime) -> Transition:
    """Its attempts are used up, which is said once; then it is left to a person."""
    message = (
        f"{_attempts(incident)} did not help; it is left as it is, and its row is kept "
        "(keeper.on-exhausted)"
    )
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
    forgotten = {"prior_attempts": -incident.attempts, "note": None, "last_error": None}
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
    return _step(incident, event, state=state, prior_attempts=-incident.attempts)


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
