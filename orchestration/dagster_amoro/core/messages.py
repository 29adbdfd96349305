"""What a tick tells the reader of the UI: what it saw, and what happens next and when."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from dagster_amoro.core.formatting import clock_time, counted, duration
from dagster_amoro.core.model import Event, EventKind, Incident, OperatorRequest, State, Transition
from dagster_amoro.core.policy import (
    IN_A_RUN,
    NOT_CLAIMED,
    Decision,
    OnExhausted,
    RestartPolicy,
    Verdict,
    due_at,
)
from dagster_amoro.core.tick_inputs import TickInputs
from dagster_amoro.core.tick_plan import RunPlan, TickPlan

DRY_RUN = "Dry run, nothing is done: "
"""How the message of a tick, or of one restart, begins in a dry run."""
ABSTAINED = "Abstained"
"""How the message of a tick begins that concluded nothing."""
WATCHING = "Watching"
"""How the message of a tick begins that left the fleet to another deployment."""

# What the numbers of a tick, and of a check, are called.
AGE = "seconds since the last completed survey"
ABSTENTIONS = "abstentions in a row"
OPEN_INCIDENTS = "open incidents"
REFUSED = "refused restarts"
PAUSED = "paused"
ACTS = "who acts"

_ENDS = {
    Verdict.GIVE_UP: "to be given up",
    Verdict.KEEP: "out of attempts, to be kept",
    Verdict.SUPERSEDE: "to be removed, since others took its place",
}
_TRIED = {EventKind.STARTED, EventKind.ATTEMPT_FAILED, EventKind.GIVE_UP}
_NEWS = (EventKind.DETECTED, EventKind.RECOVERED, EventKind.RELEASED, EventKind.SUPERSEDED)


def summarize(
    inputs: TickInputs,
    plan: TickPlan,
    *,
    dispatched: Sequence[RunPlan],
    applied: Iterable[Transition],
) -> str:
    """One line: "120 resources, 2 orphans: 1 in grace for 42 s, 1 restarting (2 of 5)".

    Of the plan, these runs got their incidents, and these steps were taken.
    """
    snapshot, policy = inputs.snapshot, inputs.policy
    line = f"{counted(snapshot.resources, 'resource')}, {counted(len(snapshot.orphans), 'orphan')}"
    parts = _due(dispatched, plan.verdicts, policy) + _waiting(plan.waiting, policy, inputs.now)
    kinds = Counter(transition.event.kind for transition in applied)
    news = [f"{kinds[kind]} {kind}" for kind in _NEWS if kinds[kind]]
    news += [f"{counted(snapshot.expired, 'heartbeat')} expired"] if snapshot.expired else []
    most = inputs.settings.max_keeping_attempts
    sizes = [text for each in plan.scaling if (text := each.message(most))]
    line += f": {', '.join(parts)}" if parts else ""
    line += f". New: {', '.join(news)}" if news else ""
    line += f". {'; '.join(sizes)}" if sizes else ""
    line += _requested_again(len(plan.again) + len(plan.scaling_again))
    return f"{DRY_RUN}{line}" if inputs.dry_run else line


def _requested_again(runs: int) -> str:
    if not runs:
        return ""
    again = "1 run is" if runs == 1 else f"{runs} runs are"
    return f". {again} requested again: the tick before was cut off when it had given out its work"


def next_step(incident: Incident, policy: RestartPolicy) -> str:
    """What follows if no optimizer registers for an incident that was just attempted."""
    at = clock_time(due_at(incident, policy))
    follows = f"attempt {incident.attempts_used + 1} of {policy.max_retries} follows"
    if incident.attempts_used >= policy.max_retries:
        keeps = policy.on_exhausted is OnExhausted.KEEP
        follows = "it is left to a person" if keeps else "it is given up"
    return f"If no optimizer registers for it, {follows} after {at}."


def tell_story(
    incident: Incident, events: Iterable[Event], policy: RestartPolicy, *, removed: bool = True
) -> str:
    """What was tried for an incident that is given up, for whoever gets the alert."""
    tried = [f"{clock_time(event.at)} {event.message}" for event in events if event.kind in _TRIED]
    since = f"orphaned since {clock_time(incident.detected_at)}"
    row = "its row was removed from the registry and is kept in the ledger"
    row = row if removed else "its row is left where it is (keeper.on-exhausted)"
    if incident.operator_request == OperatorRequest.GIVE_UP:
        return "; ".join([since, *tried, row])
    if not incident.attempts_used:
        return f"{since}, and no attempts are allowed; {row}"
    made = (
        f"{counted(incident.attempts, 'attempt')}, at least {duration(policy.grace_period)} apart"
    )
    if incident.prior_attempts > 0:
        before = counted(incident.prior_attempts, "attempt")
        made = f"{before} before it was orphaned again, and {made}"
    return "; ".join([f"{since}; {made}, did not bring it back", *tried, row])


def _due(
    dispatched: Sequence[RunPlan], verdicts: Mapping[int, Verdict], policy: RestartPolicy
) -> list[str]:
    incidents = [incident for run in dispatched for incident in run.incidents]
    numbers = Counter(verdicts[incident.incident_id] for incident in incidents)
    restarts = [i for i in incidents if verdicts[i.incident_id] is Verdict.RESTART]
    first = [f"{len(restarts)} due for a restart{_attempt(restarts, policy)}"] if restarts else []
    return first + [f"{numbers[each]} {what}" for each, what in _ENDS.items() if numbers[each]]


def _waiting(
    waiting: Sequence[tuple[Incident, Decision]], policy: RestartPolicy, now: datetime
) -> list[str]:
    alike: defaultdict[tuple[Verdict, str], list[tuple[Incident, Decision]]] = defaultdict(list)
    for incident, decision in waiting:
        alike[decision.verdict, decision.reason].append((incident, decision))
    return [f"{len(members)} {_waiting_for(members, policy, now)}" for members in alike.values()]


def _waiting_for(
    alike: Sequence[tuple[Incident, Decision]], policy: RestartPolicy, now: datetime
) -> str:
    """What these, with one verdict for one reason, wait for."""
    verdict, reason, _ = alike[0][1]
    if verdict is Verdict.HOLD:
        return f"held ({reason})"
    if verdict is Verdict.REPORT:
        return f"left alone ({reason})"
    if reason == IN_A_RUN:
        return f"restarting{_attempt([incident for incident, _ in alike], policy)}"
    ends = [decision.until for _, decision in alike if decision.until]
    if not ends:
        return f"waiting ({reason})"
    left = duration(min(ends) - now)
    if reason == NOT_CLAIMED:
        return f"waiting ({reason}), the next run follows in {left}"
    return f"in grace for {left}" if len(alike) == 1 else f"in grace, first {left}"


def _attempt(incidents: Sequence[Incident], policy: RestartPolicy) -> str:
    if len(incidents) != 1:
        return ""
    number = incidents[0].attempts_used + (incidents[0].state is not State.CLAIMED)
    return f" ({min(max(number, 1), policy.max_retries)} of {policy.max_retries})"
