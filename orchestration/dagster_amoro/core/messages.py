"""What a tick tells the reader of the UI: what it saw, and what happens next and when."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from dagster_amoro.core.formatting import clock_time, counted, duration
from dagster_amoro.core.model import Event, EventKind, Incident, OperatorRequest, State
from dagster_amoro.core.policy import (
    IN_A_RUN,
    NOT_CLAIMED,
    Decision,
    RestartPolicy,
    Verdict,
    due_at,
    is_exhausted,
    why_kept,
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
    Verdict.RELEASE: "to be released, since somebody removed its row",
}
_TRIED = {EventKind.STARTED, EventKind.ATTEMPT_FAILED, EventKind.GIVE_UP}
_NEWS = (
    *(EventKind.DETECTED, EventKind.RECOVERED, EventKind.RELEASING, EventKind.RELEASED),
    *(EventKind.SUPERSEDED, EventKind.CORRECTED),
)


def summarize(
    inputs: TickInputs,
    plan: TickPlan,
    *,
    dispatched: Sequence[RunPlan],
    applied: Mapping[EventKind, int],
) -> str:
    """One line: "120 resources, 2 orphans: 1 in grace for 42 s, 1 restarting (2 of 5)".

    Of the plan, these runs got their incidents; `applied` says how many steps of each kind were
    taken.
    """
    snapshot, policy = inputs.snapshot, inputs.policy
    line = f"{counted(snapshot.resources, 'resource')}, {counted(len(snapshot.orphans), 'orphan')}"
    line += f", {len(snapshot.starting)} starting" if snapshot.starting else ""
    parts = _due(dispatched, plan.verdicts, policy) + _waiting(plan.waiting, policy, inputs.now)
    news = [f"{number} {kind}" for kind in _NEWS if (number := applied.get(kind))]
    news += [f"{counted(snapshot.expired, 'heartbeat')} expired"] if snapshot.expired else []
    ahead = counted(snapshot.corrected, "heartbeat")
    news += [f"{ahead} of the future counted from now on"] if snapshot.corrected else []
    most = inputs.settings.max_keeping_attempts
    sizes = [text for each in plan.scaling if (text := each.message(most))]
    sizes += [text for _, look in plan.looks if look and (text := look.message)]
    line += f": {', '.join(parts)}" if parts else ""
    line += f". New: {', '.join(news)}" if news else ""
    line += f". {'; '.join(sizes)}" if sizes else ""
    line += _left(sum(applied.values()), plan.left)
    line += _requested_again(len(plan.again) + len(plan.scaling_again))
    return f"{DRY_RUN}{line}" if inputs.dry_run else line


def _left(done: int, left: int) -> str:
    if not left:
        return ""
    return f". {done:,} of {done + left:,} changes are written down; the next tick goes on"


def _requested_again(runs: int) -> str:
    if not runs:
        return ""
    again = "1 run is" if runs == 1 else f"{runs} runs are"
    return f". {again} requested again: the tick before was cut off when it had given out its work"


def next_step(incident: Incident, policy: RestartPolicy) -> str:
    """What follows if no optimizer registers for an incident that was just attempted."""
    at = clock_time(due_at(incident, policy))
    follows = f"attempt {incident.attempts_spent + 1} of {policy.max_retries} follows"
    if is_exhausted(incident, policy):
        follows = "it is left to a person" if why_kept(incident, policy) else "it is given up"
    return f"If no optimizer registers for it, {follows} after {at}."


def tell_story(
    incident: Incident, events: Iterable[Event], policy: RestartPolicy, *, removed: bool = True
) -> str:
    """What was tried for an incident that is given up, for whoever gets the alert."""
    tried = [f"{clock_time(event.at)} {event.message}" for event in events if event.kind in _TRIED]
    since = f"orphaned since {clock_time(incident.detected_at)}"
    since += f"; {incident.death}" if incident.death else ""
    row = "its row was removed from the registry and is kept in the ledger"
    row = row if removed else "its row is left where it is"
    if incident.operator_request == OperatorRequest.GIVE_UP:
        return "; ".join([since, *tried, row])
    lost = incident.interrupted + incident.is_attempting
    if not incident.attempts_used and not lost:
        return f"{since}, and no attempts are allowed; {row}"
    made = []
    if incident.prior_attempts > 0:
        before = counted(incident.prior_attempts, "attempt")
        made += [f"{before} before, after which it came back and was soon orphaned again"]
    if ended := incident.attempts - lost:
        apart = f"at least {duration(policy.grace_period)} apart"
        made += [f"{counted(ended, 'attempt')}, {apart}, did not bring it back"]
    made += [f"{counted(lost, 'attempt')} interrupted on the way"] if lost else []
    return "; ".join([since, *made, *tried, row])


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
    incident = incidents[0]
    is_begun = incident.state is State.CLAIMED
    number = incident.attempts_used if is_begun else incident.attempts_spent + 1
    return f" ({min(max(number, 1), policy.max_retries)} of {policy.max_retries})"
