"""What one look at the registry means for the incidents: which open, close and are due?"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from typing import Final

from dagster_amoro.core.errors import PropertiesError
from dagster_amoro.core.groups import Group
from dagster_amoro.core.limits import CountResources, Limits, blocked_groups, next_batch
from dagster_amoro.core.model import Incident, Orphan, State, Transition
from dagster_amoro.core.pauses import Pauses
from dagster_amoro.core.policy import (
    Decision,
    Replacement,
    RestartPolicy,
    RunState,
    Verdict,
    decide,
    due_at,
    holds_claim,
)
from dagster_amoro.core.properties import parse_properties
from dagster_amoro.core.transitions import close, detect, dispatch, report

_ACTS: Final = {Verdict.RESTART, Verdict.SUPERSEDE, Verdict.KEEP, Verdict.GIVE_UP}
NEXT_BATCH: Final = "due, and left for the next tick (keeper.max-restarts-per-tick)"

Obstacle = Callable[[str | None], str | None]
"""Why orphans of the container with this name cannot be restarted; None: they can."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RegistrySnapshot:
    """One look at the registry, in one snapshot."""

    resources: int  # rows in `resource`
    groups: tuple[str, ...]  # names in `resource_group`
    orphans: Mapping[str, Orphan]  # by resource id
    expired: int = 0  # heartbeats that were too old and have been removed
    # Those groups that say something about their size, and the live threads of each.
    sized: Mapping[str, Group] = field(default_factory=dict)
    live: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class DecisionInputs:
    """What the decisions of one tick depend on besides the incidents themselves."""

    policy: RestartPolicy
    obstacle: Obstacle
    runs: Mapping[str, RunState]  # of runs that hold claims, see `holds_claim`
    now: datetime
    fence: int | None = None  # of the lease in force; None: without leases
    pauses: Pauses = field(default_factory=Pauses)
    limits: Limits = field(default_factory=Limits)
    count: CountResources = dict
    last_served_group: str | None = None  # the group that the last wave served last
    # Why the orphans of a group are not to be restarted, by its name; None: they are.
    group_obstacle: Obstacle = lambda _: None
    replacement: Callable[[Incident], Replacement] = lambda _: Replacement.NONE


@dataclass(frozen=True, kw_only=True, slots=True)
class TickPlan:
    """The open incidents, sorted by what is to be done about them."""

    due: tuple[Incident, ...]  # to be handed to runs, longest due first
    reports: tuple[Transition, ...]
    waiting: tuple[tuple[Incident, Decision], ...]  # everything else, with the reason
    verdicts: Mapping[int, Verdict] = field(default_factory=dict)  # on those due, by number
    last_served_group: str | None = None  # the group that this wave served last; None: it took all


@dataclass(frozen=True, kw_only=True, slots=True)
class RunPlan:
    """A run to request: incidents of one group that are due."""

    group_name: str
    run_key: str  # names incidents, attempts and dispatches: a used key is never launched again
    incidents: tuple[Incident, ...]

    def dispatch(
        self, until: datetime, now: datetime, fence: int | None = None
    ) -> list[Transition]:
        """The steps that give its incidents to the run, until `until`."""
        return [dispatch(each, self.run_key, until, now, fence) for each in self.incidents]


def missing(survey: RegistrySnapshot, incidents: Iterable[Incident]) -> list[str]:
    """Ids of resources with an open incident that are orphans no longer."""
    return [i.resource_id for i in incidents if i.resource_id not in survey.orphans]


def unknown(survey: RegistrySnapshot, incidents: Iterable[Incident]) -> list[Orphan]:
    """The orphans without an open incident."""
    known = {incident.resource_id for incident in incidents}
    return [orphan for key, orphan in survey.orphans.items() if key not in known]


def reconcile(
    survey: RegistrySnapshot,
    incidents: Sequence[Incident],
    present: AbstractSet[str],
    now: datetime,
    opened: Iterable[Transition] | None = None,
) -> list[Transition]:
    """Opens an incident for each new orphan and closes those whose resource is none any more.

    Args:
        survey: What the registry holds.
        incidents: All open incidents.
        present: Of `missing()`, the ids whose resource row is still there: those registered.
            The others were released, unless it is we who are removing them.
        now: Aware UTC.
        opened: The steps that open incidents, where more is known of the new orphans than that
            they are there. None: made of `unknown()`.
    """
    if opened is None:
        opened = [detect(orphan, now) for orphan in unknown(survey, incidents)]
    return [*opened] + [
        _closed(incident, present, now)
        for incident in incidents
        if incident.resource_id not in survey.orphans
        and (incident.resource_id in present or not incident.state.is_removing)
    ]


def _closed(incident: Incident, present: AbstractSet[str], now: datetime) -> Transition:
    if incident.resource_id not in present:
        return close(incident, State.RELEASED, "somebody removed its resource row", now)
    return close(incident, State.RECOVERED, recovery_message(incident), now)


def recovery_message(incident: Incident) -> str:
    """How it came back."""
    if not incident.attempts:
        return "an optimizer registered for it by itself"
    return f"an optimizer registered for it after attempt {incident.attempts}"


def plan_tick(
    survey: RegistrySnapshot, incidents: Iterable[Incident], inputs: DecisionInputs
) -> TickPlan:
    """Decides on every open incident; see `dagster_amoro.core.policy.decide`.

    What is due then passes the limits: see `dagster_amoro.core.limits`.
    """
    due: list[Incident] = []
    verdicts: dict[int, Verdict] = {}
    reports: list[Transition] = []
    waiting: list[tuple[Incident, Decision]] = []
    for incident in incidents:
        claimed = incident.claimed_by is not None and holds_claim(
            incident, inputs.runs, inputs.now, inputs.fence
        )
        decision = _decide(survey, incident, inputs, claimed=claimed)
        if decision.verdict in _ACTS:
            due.append(incident)
            verdicts[incident.incident_id] = decision.verdict
            continue
        waiting.append((incident, decision))
        if decision.verdict is Verdict.REPORT and incident.note != decision.reason and not claimed:
            reports.append(report(incident, decision.reason, inputs.now))
    due.sort(key=lambda incident: (due_at(incident, inputs.policy), incident.incident_id))
    allowed, held, last_served_group = _limit(survey, due, verdicts, inputs)
    return TickPlan(
        due=tuple(allowed),
        reports=tuple(reports),
        waiting=(*waiting, *held),
        verdicts=verdicts,
        last_served_group=last_served_group,
    )


def _limit(
    survey: RegistrySnapshot,
    due: Sequence[Incident],
    verdicts: Mapping[int, Verdict],
    inputs: DecisionInputs,
) -> tuple[list[Incident], list[tuple[Incident, Decision]], str | None]:
    """What may be handed over of what is due, what may not and why, and whose turn it was.

    The limits are about restarts that nobody asked for; the rest passes.
    """
    limits = inputs.limits
    restarts: list[Incident] = []
    others: list[Incident] = []
    for incident in due:
        by_itself = (
            verdicts[incident.incident_id] is Verdict.RESTART and not incident.operator_request
        )
        (restarts if by_itself else others).append(incident)
    refused = blocked_groups(
        {incident.group_name for incident in restarts},
        (orphan.group_name for orphan in survey.orphans.values()),
        inputs.count,
        limits,
    )
    held = [
        (incident, Decision(Verdict.HOLD, refused[incident.group_name]))
        for incident in restarts
        if incident.group_name in refused
    ]
    free = [incident for incident in restarts if incident.group_name not in refused]
    chosen, later, last_served_group = next_batch(
        free, limits.max_restarts, inputs.last_served_group
    )
    later_on = Decision(Verdict.WAIT, NEXT_BATCH)
    return (
        [*others, *chosen],
        held + [(incident, later_on) for incident in later],
        last_served_group,
    )


def obstacle_of(orphan: Orphan, container_obstacle: Obstacle) -> str | None:
    """Why this orphan cannot be restarted, by its container or by its own row; None: it can."""
    if not orphan.resource_id:  # an optimizer without an id could never be found again
        return "its resource_id is empty"
    if orphan.copies > 1:
        return f"its id stands in {orphan.copies} rows of resource; remove all of them but one"
    obstacle = container_obstacle(orphan.container_name)
    if obstacle is not None:
        return obstacle
    try:
        parse_properties(orphan.properties)
    except PropertiesError as error:
        return str(error)
    return None if orphan.thread_count is not None else "its thread_count is NULL"


def orders(due: Sequence[Incident], max_per_run: int) -> list[RunPlan]:
    """The runs to request: a group's incidents together, `max_per_run` at most in each.

    Within a group the longest due go first.
    """
    groups: dict[str, list[Incident]] = {}
    for incident in due:
        groups.setdefault(incident.group_name, []).append(incident)
    return [
        RunPlan(group_name=group, run_key=_run_key(chunk), incidents=chunk)
        for group, members in groups.items()
        for chunk in _chunks(members, max_per_run)
    ]


def _chunks(incidents: Sequence[Incident], size: int) -> list[tuple[Incident, ...]]:
    return [tuple(incidents[at : at + size]) for at in range(0, len(incidents), size)]


def _run_key(incidents: Sequence[Incident]) -> str:
    names = [f"{i.incident_id}.{i.attempts}.{i.dispatches + 1}" for i in incidents]
    if len(names) == 1:
        return f"incident.attempts.dispatch {names[0]}"
    digest = sha256(" ".join(names).encode()).hexdigest()[:32]
    return f"incident.attempts.dispatch {names[0]} and {len(names) - 1} more, {digest}"


def _decide(
    survey: RegistrySnapshot, incident: Incident, inputs: DecisionInputs, *, claimed: bool
) -> Decision:
    orphan = survey.orphans.get(incident.resource_id)
    obstacle = None
    if orphan is not None:
        obstacle = inputs.group_obstacle(orphan.group_name)
    if orphan is not None and obstacle is None:
        is_resting = _is_resting(incident, inputs)
        lookup = inputs.obstacle
        obstacle = lookup(orphan.container_name) if is_resting else obstacle_of(orphan, lookup)
    pauses = inputs.pauses
    pause = pauses.of(incident.resource_id, incident.group_name) if pauses.holding else None
    return decide(
        incident,
        obstacle=obstacle,
        policy=inputs.policy,
        claimed=claimed,
        now=inputs.now,
        paused=str(pause) if pause else None,
        replacement=lambda: inputs.replacement(incident),
    )


def _is_resting(incident: Incident, inputs: DecisionInputs) -> bool:
    """Whether it was seen before and is not due: its properties were read, and will be again."""
    due = due_at(incident, inputs.policy)
    return incident.state is State.WAITING and incident.detected_at < inputs.now < due
