"""What to do about an orphan now: leave it, restart it or give it up?"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, StrEnum
from hashlib import sha256
from typing import Final, NamedTuple

from dagster_amoro.core.formatting import counted
from dagster_amoro.core.model import Incident, OperatorRequest, ScaleUp, State
from dagster_amoro.core.registrations import DOUBTFUL

ON_ITS_WAY: Final = frozenset({State.WAITING, State.DISPATCHED, State.CLAIMED})
"""In these states an incident can lead to a restart."""
NEARLY: Final = timedelta(seconds=0.5)
"""What is as near to its time is due: ticks do not come to the millisecond, nor do clocks agree.

The next tick may be minutes away.
"""
_MOST_DOUBLINGS: Final = 64  # more would be longer than any cap
_MOST_INTERRUPTED: Final = 5  # attempts of an incident: what they have in common may be its start
_LONGEST_LAUNCH: Final = timedelta(hours=1)
_LONGEST_PAUSE: Final = timedelta(hours=1)


class Backoff(StrEnum):
    """How the pauses between attempts grow."""

    CONSTANT = "constant"  # each is as long as the grace period
    EXPONENTIAL = "exponential"  # each is twice as long as the one before, up to a cap


class OnExhausted(StrEnum):
    """What becomes of a resource whose attempts are used up."""

    # It is released, and its row moves from the registry to the ledger; unless restarts did bring
    # it back before.
    CLEAN_UP = "clean-up"
    KEEP = "keep"  # nothing; that is said once, and it is left to a person


@dataclass(frozen=True, kw_only=True, slots=True)
class RestartPolicy:
    """How often and how patiently orphans are restarted."""

    enabled: bool  # False: incidents are recorded, nothing is started or removed
    max_retries: int  # attempts before it is given up; 0: none at all
    grace_period: timedelta  # after the detection, and after the end of each attempt
    # A resource that is orphaned again sooner after its recovery continues its old count of
    # attempts, so that a crash loop ends: with a person being told, since its restarts did help.
    # Zero: each incident has a budget of its own.
    stable_after: timedelta = timedelta(0)
    backoff: Backoff = Backoff.CONSTANT
    backoff_cap: timedelta = timedelta(hours=1)  # the longest pause; where it is exponential
    backoff_jitter: float = 0.1  # the share by which such a pause may be longer, so that they part
    on_exhausted: OnExhausted = OnExhausted.CLEAN_UP


@dataclass(frozen=True, kw_only=True, slots=True)
class TickSettings:
    """How often a tick looks, how it hands work to runs, and which groups it leaves to AMS."""

    check_interval: timedelta  # between two ticks
    claim_timeout: timedelta  # how long a dispatch or a claim lasts without a sign of life
    max_restarts_per_run: int  # orphans that one run restarts
    max_keeping_attempts: int = 3  # rounds in a row in which a group gets a new resource
    # Between two rounds, times their number: Amoro's own, however often a tick looks, since what a
    # round started needs its time to register.
    round_interval: timedelta = timedelta(minutes=5)
    # Groups whose orphans are restarted although they are under dynamic allocation.
    dynamic_groups: frozenset[str] = frozenset()
    # Of the AMS whose registry it is: it refuses the registration of an optimizer whose heartbeats
    # are not closer to each other, or whose group is not there. None: there is no AMS.
    ams_heartbeat_timeout: timedelta | None = None
    # How long before its pause is over an orphan is dispatched. Its run waits for the rest: a run
    # takes some seconds to come up, and the next tick may be far away.
    lead: timedelta = timedelta(0)
    notes_surveys: bool = False  # whether a tick writes down when it looked, if nothing else


class Verdict(StrEnum):
    """What is to be done."""

    HOLD = "hold"  # nothing, by order or as a precaution
    REPORT = "report"  # nothing but saying so, once
    WAIT = "wait"  # nothing yet
    RESTART = "restart"
    SUPERSEDE = "supersede"  # release and remove it: others took its place
    KEEP = "keep"  # say that its attempts are used up, and leave it
    GIVE_UP = "give-up"  # release and remove it
    RELEASE = "release"  # its row is gone: release what was started for it


_REMOVALS: Final = {
    State.GIVING_UP: Verdict.GIVE_UP,
    State.SUPERSEDING: Verdict.SUPERSEDE,
    State.RELEASING: Verdict.RELEASE,
}


class Decision(NamedTuple):
    """A verdict with its reason."""

    verdict: Verdict
    reason: str
    until: datetime | None = None  # WAIT: when it is worth looking again; None: unknown


IN_A_RUN: Final = "in the hands of a run"
NOT_CLAIMED: Final = "no run claimed it, several times in a row"


class Replacement(Enum):
    """What came to a group after one of its resources was found orphaned."""

    NONE = "none"  # not as much as was lost
    COMING = "coming"  # as much, and not all of it has registered
    LIVE = "live"  # as much, and the group has reached its min-parallelism with it


class RunState(Enum):
    """What Dagster knows of a run that holds a claim."""

    QUEUED = "queued"  # accepted, not launched: it will come, however long that takes
    STARTING = "starting"  # being launched; Dagster ends what never starts, if it is told to
    ACTIVE = "active"  # launched; its process may be dead all the same
    ENDED = "ended"


def holds_claim(
    claimed: Incident | ScaleUp,
    runs: Mapping[str, RunState],
    now: datetime,
    fence: int | None = None,
) -> bool:
    """Whether it is in the hands of a run that can still be expected to act.

    `runs` has the state of runs by run id, and by run key for dispatches. A run that ended has no
    claim, one that waits in the queue keeps it, and one that is being launched keeps it for an
    hour longer; otherwise, a run that died unnoticed included, a claim holds until it lapses. A
    claim that was given under another lease than that of `fence` is void: its run cannot act any
    more.
    """
    if claimed.claimed_by is None or claimed.claimed_until is None:
        return False
    if fence is not None and claimed.fence != fence:
        return False
    run = runs.get(claimed.claimed_by)
    extra = _LONGEST_LAUNCH if run is RunState.STARTING else timedelta(0)
    lapses = run is not RunState.QUEUED and now + NEARLY >= claimed.claimed_until + extra
    return run is not RunState.ENDED and not lapses


def next_dispatch_at(incident: Incident, claim_timeout: timedelta) -> datetime | None:
    """When an incident that several dispatches in a row led to no run is dispatched anew.

    From a dispatch to the next one passes the claim timeout, and twice as long each time that no
    run has claimed it, up to an hour. None: at once.
    """
    if not (incident.unused_dispatches and incident.claimed_until and incident.awaits_run):
        return None
    doublings = min(incident.unused_dispatches, _MOST_DOUBLINGS)
    timeout, longest = claim_timeout.total_seconds(), _LONGEST_PAUSE.total_seconds()
    pause = timedelta(seconds=min(timeout * 2.0**doublings, max(timeout, longest)))
    return incident.claimed_until + pause - claim_timeout


def is_starting(started: datetime | None, policy: RestartPolicy, now: datetime) -> bool:
    """Whether what never registered may still be on its way; None: nobody knows its age.

    A start in the future says nothing.
    """
    return started is not None and now - policy.grace_period < started <= now


def due_at(incident: Incident, policy: RestartPolicy) -> datetime:
    """When the pause after the detection, or after the end of the last attempt, is over.

    Of an attempt that was lost on its way nobody knows its end: then it is the latest possible.
    """
    since = incident.attempt_ends_at or incident.attempted_at or incident.detected_at
    is_constant = policy.backoff is Backoff.CONSTANT
    return since + (policy.grace_period if is_constant else _growing_pause(incident, policy))


def _growing_pause(incident: Incident, policy: RestartPolicy) -> timedelta:
    doublings = min(incident.attempts_used, _MOST_DOUBLINGS)
    grace, cap = policy.grace_period.total_seconds(), policy.backoff_cap.total_seconds()
    pause = timedelta(seconds=min(grace * 2.0**doublings, cap))
    # From 0 to 1, different between incidents, and the same whenever it is asked.
    seed = f"{incident.resource_id} {incident.incident_id} {incident.attempts}"
    chance = int.from_bytes(sha256(seed.encode(errors="replace")).digest()[:4]) / 2**32
    return pause * (1 + policy.backoff_jitter * chance)


def is_coming(incident: Incident | None, policy: RestartPolicy, now: datetime) -> bool:
    """Whether the threads of an orphan can be expected back.

    They can while it is in its grace period or being restarted; not once its last restart failed,
    or its attempts are used up. None: it was not noticed yet, and will be.
    """
    if incident is None:
        return True
    if incident.state not in ON_ITS_WAY:
        return False
    if incident.operator_request is not None:
        return incident.operator_request == OperatorRequest.RESTART
    if incident.last_error is not None:
        return False
    until = incident.claimed_until if incident.state is State.CLAIMED else None
    is_held = until is not None and now < until  # its last attempt may be under way
    return is_held or not is_exhausted(incident, policy) or now < due_at(incident, policy)


def is_exhausted(incident: Incident, policy: RestartPolicy) -> bool:
    """Whether nothing more is tried, where nobody asks for it."""
    lost = incident.interrupted + incident.is_attempting
    return incident.attempts_spent >= policy.max_retries or lost >= _MOST_INTERRUPTED


def why_kept(incident: Incident, policy: RestartPolicy) -> str | None:
    """Why it is left to a person once nothing more is tried; None: it is given up.

    What restarts did bring back is never given up, nor what nobody has seen fail often enough.
    """
    used = counted(incident.attempts_used, "attempt")
    if incident.attempts_spent < policy.max_retries:
        lost = counted(incident.interrupted + incident.is_attempting, "attempt")
        return f"{lost} were interrupted, and nobody knows what came of them"
    if incident.prior_attempts > 0:
        return f"it came back and was orphaned again, time after time, with {used} in all"
    if policy.on_exhausted is OnExhausted.KEEP:
        return f"{used} did not help, and keeper.on-exhausted is keep"
    return None


def decide(  # noqa: C901, PLR0911, PLR0912, PLR0913 - a return for each row of the table
    incident: Incident,
    *,
    obstacle: str | None,
    policy: RestartPolicy,
    claimed: bool,
    now: datetime,
    paused: str | None = None,
    not_before: datetime | None = None,
    replacement: Callable[[], Replacement] = lambda: Replacement.NONE,
    lead: timedelta = timedelta(0),
    doubtful: bool = False,
) -> Decision:
    """The decision on an open incident; the first row that applies.

    | when | decision |
    |---|---|
    | auto-restart is off, or an operator paused it | hold |
    | `obstacle`: the resource cannot be restarted, and nobody wants it given up | report |
    | `claimed`: another run has it | wait |
    | now < `not_before`, and no operator wants anything | wait until then |
    | its removal has begun | finish it |
    | `doubtful`: an optimizer stands for it, and may have been stopped | wait |
    | an operator wants it given up, or restarted now | that |
    | its attempts were used up before, and it is kept | hold |
    | now < (end of the last attempt, else detection) + pause | wait until then |
    | others took its place | supersede |
    | its group is being scaled up | wait |
    | spent < max retries, and few attempts were interrupted | restart |
    | restarts brought it back before; or too many were interrupted; or to be kept | keep |
    | else | give up |

    An obstacle is an unknown container, one that opts out, or properties that cannot be read.
    `paused` says by whom and why; `not_before` is `next_dispatch_at`. What came to its group since
    is asked only where it matters. A pause counts as over when no more than `lead` is left of it.
    """
    removing = incident.state.is_removing
    unwanted = incident.operator_request == OperatorRequest.GIVE_UP
    if not policy.enabled:
        return Decision(Verdict.HOLD, "auto-restart is off")
    if paused is not None:
        return Decision(Verdict.HOLD, paused)
    if obstacle is not None and not (removing or unwanted):
        return Decision(Verdict.REPORT, obstacle)
    if claimed:
        return Decision(Verdict.WAIT, IN_A_RUN, incident.claimed_until)
    is_early = not_before is not None and now + NEARLY < not_before
    if is_early and not incident.operator_request:
        return Decision(Verdict.WAIT, NOT_CLAIMED, not_before)
    if removing:
        return Decision(_REMOVALS[incident.state], "its removal was begun and not finished")
    if doubtful:
        return Decision(Verdict.WAIT, DOUBTFUL)
    if unwanted:
        return Decision(Verdict.GIVE_UP, "an operator wants it given up")
    if incident.operator_request == OperatorRequest.RESTART:
        return Decision(Verdict.RESTART, "an operator wants it restarted now")
    was_kept = incident.state is State.KEPT and is_exhausted(incident, policy)
    if was_kept and (kept := why_kept(incident, policy)):
        return Decision(Verdict.HOLD, kept)
    due = due_at(incident, policy)
    if now + lead < due:
        return Decision(Verdict.WAIT, "in its grace period", due)
    match replacement():
        case Replacement.LIVE:
            return Decision(Verdict.SUPERSEDE, "its group was scaled up without it")
        case Replacement.COMING:
            return Decision(Verdict.WAIT, "its group is being scaled up")
    if not is_exhausted(incident, policy):
        return Decision(Verdict.RESTART, "its grace period is over")
    if kept := why_kept(incident, policy):
        return Decision(Verdict.KEEP, kept)
    return Decision(Verdict.GIVE_UP, "its attempts are used up")
