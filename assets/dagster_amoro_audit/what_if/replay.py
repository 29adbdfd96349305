"""What would another policy have done? Recorded incidents, run again through the real policy.

Two things are taken from the record, whatever the policy:

* The world. A worker that came back without an attempt, or after a last attempt that failed to
  start it, came back by itself, at the recorded moment. Otherwise the last attempt of an incident
  that recovered brought it back, as long after it began as recorded; every attempt before it, and
  every one of an incident that did not recover, did not help. A release, a replacement, or the
  end of the record comes at the recorded moment to every incident that is open then.
* The latency: how much later than due each step was taken, through the interval of the ticks and
  the queue of the runs. A step that was due and not taken before the end comes at that end at the
  earliest; the end wins. A step that was not due before the end has no latency.

What the record cannot tell is not made up. An attempt beyond those recorded has an unknown result,
and so has its incident, unless the worker came back by itself: then that attempt was not needed,
it is the last, and the worker is back at the recorded moment at the latest. A worker that needs
longer to register than the grace period is such a case too: the next attempt would have cut it off.

Limits. Where a worker was restarted, nobody knows when it would have come back by itself, so a
record under a short grace period says little about longer ones. A policy that changed in the middle
of an incident counts as it was at the detection. Clocks of several hosts differ: an end before the
detection or before the last attempt counts as simultaneous.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import NamedTuple

from dagster_amoro.core.model import Incident, State
from dagster_amoro.core.policy import RestartPolicy, Verdict, decide, due_at


class Begun(NamedTuple):
    """An attempt as it is recorded."""

    at: datetime
    failed: bool  # the start itself; False: it was accepted, or nobody knows


@dataclass(frozen=True, kw_only=True, slots=True)
class Recorded:
    """An incident as it is recorded; all times aware UTC."""

    detected_at: datetime
    ended_at: datetime  # when its outcome was seen; of an open one, until when the record goes
    outcome: State | None  # None: open
    attempts: tuple[Begun, ...]  # in their order
    policy: RestartPolicy  # at its detection
    obstacle: str | None = None  # why it could not be restarted at all; None: it could


@dataclass(frozen=True, kw_only=True, slots=True)
class Replayed:
    """What would have come of an incident."""

    outcome: State | None  # None: open at the end of the record, or not known
    attempts: int  # starts, as far as they are known
    closed_at: datetime | None  # None: open or not known
    waited: timedelta | None  # from the detection to the first attempt; None: there is none
    is_known: bool = True  # False: the record does not say how it would have ended
    is_unneeded: bool = False  # restarted, though the worker was coming back by itself


def replay(recorded: Recorded, policy: RestartPolicy) -> Replayed:
    """Runs an incident again under another policy.

    Under the recorded policy the result is what is recorded: outcome, attempts and closing time.
    """
    first: datetime | None = None
    incident = _after(recorded, 0)
    while True:
        now = due_at(incident, policy) + _latency(recorded, incident)
        end = _end(recorded, incident)
        if end is not None and (end < now or (end == now and _is_beyond(recorded, incident))):
            return _result(recorded, incident, first, recorded.outcome, end)
        verdict = decide(
            incident, obstacle=recorded.obstacle, policy=policy, claimed=False, now=now
        ).verdict
        if verdict is Verdict.GIVE_UP:
            return _result(recorded, incident, first, State.EXHAUSTED, now)
        if verdict is not Verdict.RESTART:  # and it never will be
            return _result(recorded, incident, first, recorded.outcome, end)
        first = first or now
        if _is_beyond(recorded, incident):
            return _one_more(recorded, incident, first)
        incident = incident.evolve(attempts=incident.attempts + 1, attempted_at=now)


def _after(recorded: Recorded, attempts: int) -> Incident:
    """The incident after its first so many attempts, as recorded."""
    return Incident(
        incident_id=0,
        resource_id="",
        group_name="",
        container_name="",
        thread_count=0,
        detected_at=recorded.detected_at,
        attempts=attempts,
        attempted_at=recorded.attempts[attempts - 1].at if attempts else None,
    )


def _is_beyond(recorded: Recorded, incident: Incident) -> bool:
    """Whether its next attempt is none of those recorded."""
    return incident.attempts == len(recorded.attempts)


def _latency(recorded: Recorded, incident: Incident) -> timedelta:
    """How much later than due the step after so many attempts was taken."""
    done = incident.attempts
    is_beyond = _is_beyond(recorded, incident)
    taken = _recorded_end(recorded) if is_beyond else recorded.attempts[done].at
    return max(taken - due_at(_after(recorded, done), recorded.policy), timedelta(0))


def _recorded_end(recorded: Recorded) -> datetime:
    began = recorded.attempts[-1].at if recorded.attempts else recorded.detected_at
    return max(recorded.ended_at, began)


def _came_back_by_itself(recorded: Recorded) -> bool:
    helped = bool(recorded.attempts) and not recorded.attempts[-1].failed
    return recorded.outcome is State.RECOVERED and not helped


def _end(recorded: Recorded, incident: Incident) -> datetime | None:
    """When the incident ends if nothing more is done about it; None: it does not."""
    if recorded.outcome is State.EXHAUSTED:
        return None
    if recorded.outcome is not State.RECOVERED or _came_back_by_itself(recorded):
        return _recorded_end(recorded)
    if incident.attempts < len(recorded.attempts) or incident.attempted_at is None:
        return None
    return incident.attempted_at + (_recorded_end(recorded) - recorded.attempts[-1].at)


def _result(
    recorded: Recorded,
    incident: Incident,
    first: datetime | None,
    outcome: State | None,
    end: datetime | None,
) -> Replayed:
    return Replayed(
        outcome=outcome if end else None,
        attempts=incident.attempts,
        closed_at=end if outcome else None,
        waited=first - recorded.detected_at if first else None,
        is_known=end is not None,
    )


def _one_more(recorded: Recorded, incident: Incident, first: datetime) -> Replayed:
    """The result of an attempt that the record does not have."""
    is_unneeded = _came_back_by_itself(recorded)
    end = _recorded_end(recorded) if is_unneeded else None
    tried = incident.evolve(attempts=incident.attempts + 1)
    return replace(_result(recorded, tried, first, State.RECOVERED, end), is_unneeded=is_unneeded)
