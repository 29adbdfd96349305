"""What a tick tells the reader of the UI: what it saw, and what happens next and when."""

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from orchestration.keeping.model import Event, EventKind, Incident, State, Transition
from orchestration.keeping.policy import IN_A_RUN, Decision, RestartPolicy, Verdict, due_at
from orchestration.keeping.survey import Assessment, Order, Surroundings, Survey

_NEWS = (EventKind.DETECTED, EventKind.RECOVERED, EventKind.RELEASED, EventKind.SUPERSEDED)


def summarize(
    survey: Survey,
    assessment: Assessment,
    *,
    handed_over: Sequence[Order],
    applied: Iterable[Transition],
    surroundings: Surroundings,
) -> str:
    """One line: "120 resources, 2 orphans: 1 in grace for 42 s, 1 restarting (2 of 5)"."""
    line = f"{counted(survey.resources, 'resource')}, {counted(len(survey.orphans), 'orphan')}"
    parts = [
        *_due(handed_over, surroundings.policy),
        *_waiting(assessment.waiting, surroundings.policy, surroundings.now),
    ]
    news = Counter(transition.event.kind for transition in applied)
    told = [f"{news[kind]} {kind}" for kind in _NEWS if news[kind]]
    told += [f"{counted(survey.expired, 'heartbeat')} expired"] if survey.expired else []
    line += f": {', '.join(parts)}" if parts else ""
    return line + (f". New: {', '.join(told)}" if told else "")


def next_step(incident: Incident, policy: RestartPolicy) -> str:
    """What follows if no optimizer registers for an incident that was just attempted."""
    at = clock_time(due_at(incident, policy))
    follows = f"attempt {incident.attempts + 1} of {policy.max_retries} follows"
    if incident.attempts >= policy.max_retries:
        follows = "it is given up"
    return f"If no optimizer registers for it, {follows} after {at}."


def story(incident: Incident, events: Iterable[Event], policy: RestartPolicy) -> str:
    """What was tried for an incident that is given up, for whoever gets the alert."""
    tried = [
        f"{clock_time(event.at)} {event.message}"
        for event in events
        if event.kind in {EventKind.STARTED, EventKind.ATTEMPT_FAILED}
    ]
    since = f"orphaned since {clock_time(incident.detected_at)}"
    row = "its row was removed from the registry and is kept in the ledger"
    if not incident.attempts:
        return f"{since}, and no attempts are allowed; {row}"
    attempts = f"{incident.attempts} attempts, at least {duration(policy.grace_period)} apart"
    return "; ".join([f"{since}; {attempts}, did not bring it back", *tried, row])


def clock_time(at: datetime) -> str:
    """A moment as a person reads it."""
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"


def duration(span: timedelta) -> str:
    """A span as a person says it: "42 s", "5 min", "1 h 5 min"."""
    seconds = max(0, round(span.total_seconds()))
    if seconds < 120:  # noqa: PLR2004 - below two minutes seconds say more
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min"), (0 if hours else seconds, "s")]
    return " ".join(f"{number} {unit}" for number, unit in parts if number)


def _due(handed_over: Sequence[Order], policy: RestartPolicy) -> list[str]:
    incidents = [incident for order in handed_over for incident in order.incidents]
    restarts = [
        i for i in incidents if i.attempts < policy.max_retries and i.state is not State.GIVING_UP
    ]
    parts = []
    if restarts:
        parts.append(f"{len(restarts)} due for a restart{_attempt(restarts, policy)}")
    if len(restarts) < len(incidents):
        parts.append(f"{len(incidents) - len(restarts)} to be given up")
    return parts


def _waiting(
    waiting: Sequence[tuple[Incident, Decision]], policy: RestartPolicy, now: datetime
) -> list[str]:
    by_verdict: dict[tuple[Verdict, str], list[tuple[Incident, Decision]]] = {}
    for incident, decision in waiting:
        by_verdict.setdefault((decision.verdict, decision.reason), []).append((incident, decision))
    return [
        _tell(verdict, reason, members, policy, now)
        for (verdict, reason), members in by_verdict.items()
    ]


def _tell(
    verdict: Verdict,
    reason: str,
    members: Sequence[tuple[Incident, Decision]],
    policy: RestartPolicy,
    now: datetime,
) -> str:
    number = len(members)
    if verdict is Verdict.HOLD:
        return f"{number} held ({reason})"
    if verdict is Verdict.REPORT:
        return f"{number} left alone ({reason})"
    if reason == IN_A_RUN:
        return f"{number} restarting{_attempt([incident for incident, _ in members], policy)}"
    soonest = min(decision.until for _, decision in members if decision.until)
    left = duration(soonest - now)
    return f"{number} in grace for {left}" if number == 1 else f"{number} in grace, first {left}"


def _attempt(incidents: Sequence[Incident], policy: RestartPolicy) -> str:
    if len(incidents) != 1:
        return ""
    (incident,) = incidents
    number = incident.attempts + (incident.state is not State.CLAIMED)
    return f" ({min(max(number, 1), policy.max_retries)} of {policy.max_retries})"


def counted(number: int, noun: str) -> str:
    """A number of things: "1 orphan", "1,000 orphans"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
