"""What to do about an orphan now: leave it, restart it or give it up?"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, StrEnum
from typing import Final, NamedTuple

from orchestration.keeping.model import Incident, State


@dataclass(frozen=True, kw_only=True, slots=True)
class RestartPolicy:
    """How often and how patiently orphans are restarted."""

    enabled: bool  # False: incidents are recorded, nothing is started or removed
    max_retries: int  # attempts per incident before it is given up; 0: none at all
    grace_period: timedelta  # after the detection, and after each attempt


class Verdict(StrEnum):
    """What is to be done."""

    HOLD = "hold"  # nothing, by order
    REPORT = "report"  # nothing but saying so, once
    WAIT = "wait"  # nothing yet
    RESTART = "restart"
    GIVE_UP = "give-up"


class Decision(NamedTuple):
    """A verdict with its reason."""

    verdict: Verdict
    reason: str
    until: datetime | None = None  # WAIT: when it is worth looking again; None: unknown


IN_A_RUN: Final = "in the hands of a run"
IN_GRACE: Final = "in its grace period"


class RunState(Enum):
    """What Dagster knows of a run that holds a claim."""

    QUEUED = "queued"  # accepted, not launched: it will come, however long that takes
    ACTIVE = "active"  # launched; its process may be dead all the same
    ENDED = "ended"


def holds_claim(incident: Incident, runs: Mapping[str, RunState], now: datetime) -> bool:
    """Whether the incident is in the hands of a run that can still be expected to act.

    `runs` has the state of runs by run id, and by run key for hand-overs. A run that ended has no
    claim, one that waits in the queue keeps it; otherwise, a run that died unnoticed included, a
    claim holds until it lapses.
    """
    if incident.claimed_by is None or incident.claimed_until is None:
        return False
    run = runs.get(incident.claimed_by)
    return run is RunState.QUEUED or (run is not RunState.ENDED and now < incident.claimed_until)


def due_at(incident: Incident, policy: RestartPolicy) -> datetime:
    """When the grace period of the detection, or of the last attempt, is over."""
    return (incident.attempted_at or incident.detected_at) + policy.grace_period


def decide(  # noqa: PLR0911 - a return for each row of the table
    incident: Incident,
    *,
    obstacle: str | None,
    policy: RestartPolicy,
    claimed: bool,
    now: datetime,
) -> Decision:
    """The decision on an open incident; the first row that applies.

    | when | decision |
    |---|---|
    | auto-restart is off | hold |
    | `obstacle`: the resource cannot be restarted | report |
    | `claimed`: another run has it | wait |
    | its removal has begun | give up, to finish it |
    | now < (last attempt, else detection) + grace period | wait until then |
    | attempts < max retries | restart |
    | else | give up |

    Args:
        incident: An open incident.
        obstacle: Why the resource cannot be restarted at all: unknown container, a container that
            opts out, properties that cannot be read. None: it can.
        policy: The policy of its group.
        claimed: Whether another run holds it (see `holds_claim`).
        now: Aware UTC.
    """
    removing = incident.state is State.GIVING_UP
    if not policy.enabled:
        return Decision(Verdict.HOLD, "auto-restart is off")
    if obstacle is not None and not removing:
        return Decision(Verdict.REPORT, obstacle)
    if claimed:
        return Decision(Verdict.WAIT, IN_A_RUN, incident.claimed_until)
    if removing:
        return Decision(Verdict.GIVE_UP, "its removal was begun and not finished")
    due = due_at(incident, policy)
    if now < due:
        return Decision(Verdict.WAIT, IN_GRACE, due)
    if incident.attempts < policy.max_retries:
        return Decision(Verdict.RESTART, "its grace period is over")
    return Decision(Verdict.GIVE_UP, "its attempts are used up")
