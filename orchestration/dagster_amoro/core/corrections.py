"""What was written down while a clock was wrong, and what does it count as now?

A time that lies in the future says nothing: an orphan whose detection is a year ahead would be in
its grace period for that year.
"""

from datetime import datetime, timedelta
from typing import Any, Final

from dagster_amoro.core.formatting import clock_time
from dagster_amoro.core.model import Event, EventKind, Incident, Transition
from dagster_amoro.core.policy import RestartPolicy, TickSettings

TOLERANCE: Final = timedelta(minutes=5)
"""So much may the clocks of hosts and databases differ; what is farther ahead is doubted."""
LONGEST_CLAIM: Final = timedelta(days=1)
"""No lease, and no claim beside its timeout and the pauses of its policy, is given for longer."""


def is_doubtful(moment: datetime | None, now: datetime) -> bool:
    """Whether it should be past, and lies in the future."""
    return moment is not None and moment > now + TOLERANCE


def lies_ahead(incident: Incident, now: datetime) -> bool:
    """Whether one of its times does, and so may have to be corrected; a tick asks for thousands."""
    past = (incident.detected_at, incident.attempted_at, incident.attempt_ends_at)
    return is_doubtful(max(filter(None, (*past, incident.claimed_until))), now)


def correct(
    incident: Incident,
    *,
    policy: RestartPolicy,
    settings: TickSettings,
    claimed: bool,
    now: datetime,
) -> Transition | None:
    """The step that sets its future times back to now; None: there is nothing to correct.

    What a run has in hand it dates itself; but no claim holds for years.
    """
    changes: dict[str, Any] = {}
    pauses = max(policy.grace_period, policy.backoff_cap * (1 + policy.backoff_jitter))
    longest = settings.claim_timeout + pauses + LONGEST_CLAIM
    if incident.claimed_until is not None and incident.claimed_until > now + longest:
        changes["claimed_until"] = now + settings.claim_timeout
    if not claimed:
        past = ["detected_at", "attempted_at"]
        if is_doubtful(incident.attempted_at, now) or not incident.is_attempting:
            past.append("attempt_ends_at")  # else it is when the attempt ends at the latest
        changes |= {name: now for name in past if is_doubtful(getattr(incident, name), now)}
    if not changes:
        return None
    named = ", ".join(f"{name} ({clock_time(getattr(incident, name))})" for name in changes)
    message = f"a clock was wrong once: {named} lies ahead, and counts from now on"
    event = Event(kind=EventKind.CORRECTED, at=now, message=message)
    return Transition(before=incident, after=incident.evolve(**changes), event=event)


def difference(ours: datetime, theirs: datetime) -> timedelta | None:
    """How far a host's clock is ahead of the database's; None: near enough."""
    ahead = ours - theirs
    return ahead if abs(ahead) > TOLERANCE else None
