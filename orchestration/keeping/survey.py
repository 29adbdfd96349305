"""What one look at the registry means for the incidents: which open, close and are due?"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256

from orchestration.errors import PropertiesError
from orchestration.keeping.model import Incident, Orphan, State, Transition
from orchestration.keeping.policy import (
    Decision,
    RestartPolicy,
    RunState,
    Verdict,
    decide,
    due_at,
    holds_claim,
)
from orchestration.keeping.properties import parse_properties
from orchestration.keeping.transitions import close, detect, hand_over, report

Obstacle = Callable[[str | None], str | None]
"""Why orphans of the container with this name cannot be restarted; None: they can."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """One look at the registry, in one snapshot."""

    resources: int  # rows in `resource`
    groups: tuple[str, ...]  # names in `resource_group`
    orphans: Mapping[str, Orphan]  # by resource id
    expired: int = 0  # heartbeats that were too old and have been removed


@dataclass(frozen=True, kw_only=True, slots=True)
class Surroundings:
    """What the decisions of one tick depend on besides the incidents themselves."""

    policy: RestartPolicy
    obstacle: Obstacle
    runs: Mapping[str, RunState]  # of runs that hold claims, see `holds_claim`
    now: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class Assessment:
    """The open incidents, sorted by what is to be done about them."""

    due: tuple[Incident, ...]  # to be handed to runs, longest due first
    reports: tuple[Transition, ...]
    waiting: tuple[tuple[Incident, Decision], ...]  # everything else, with the reason


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """A run to request: incidents of one group that are due."""

    group_name: str
    run_key: str  # names incidents, attempts and hand-overs: a used key is never launched again
    incidents: tuple[Incident, ...]

    def hand_over(self, until: datetime, now: datetime) -> list[Transition]:
        """The steps that give its incidents to the run, until `until`."""
        return [hand_over(incident, self.run_key, until, now) for incident in self.incidents]


def missing(survey: Survey, incidents: Iterable[Incident]) -> list[str]:
    """Ids of resources with an open incident that are orphans no longer."""
    return [i.resource_id for i in incidents if i.resource_id not in survey.orphans]


def reconcile(
    survey: Survey, incidents: Sequence[Incident], present: AbstractSet[str], now: datetime
) -> list[Transition]:
    """Opens an incident for each new orphan and closes those whose resource is none any more.

    Args:
        survey: What the registry holds.
        incidents: All open incidents.
        present: Of `missing()`, the ids whose resource row is still there: those registered.
            The others were released, unless it is we who are removing them.
        now: Aware UTC.
    """
    known = {incident.resource_id for incident in incidents}
    opened = [detect(o, now) for key, o in survey.orphans.items() if key not in known]
    return opened + [
        _closed(incident, present, now)
        for incident in incidents
        if incident.resource_id not in survey.orphans
        and (incident.resource_id in present or incident.state is not State.GIVING_UP)
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


def assess(survey: Survey, incidents: Iterable[Incident], surroundings: Surroundings) -> Assessment:
    """Decides on every open incident; see `orchestration.keeping.policy.decide`."""
    due: list[Incident] = []
    reports: list[Transition] = []
    waiting: list[tuple[Incident, Decision]] = []
    for incident in incidents:
        claimed = holds_claim(incident, surroundings.runs, surroundings.now)
        decision = _decide(survey, incident, surroundings, claimed=claimed)
        if decision.verdict in {Verdict.RESTART, Verdict.GIVE_UP}:
            due.append(incident)
            continue
        waiting.append((incident, decision))
        if decision.verdict is Verdict.REPORT and incident.note != decision.reason and not claimed:
            reports.append(report(incident, decision.reason, surroundings.now))
    due.sort(key=lambda incident: (due_at(incident, surroundings.policy), incident.incident_id))
    return Assessment(due=tuple(due), reports=tuple(reports), waiting=tuple(waiting))


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


def orders(due: Sequence[Incident], max_per_run: int) -> list[Order]:
    """The runs to request: a group's incidents together, `max_per_run` at most in each.

    Within a group the longest due go first.
    """
    groups: dict[str, list[Incident]] = {}
    for incident in due:
        groups.setdefault(incident.group_name, []).append(incident)
    return [
        Order(group_name=group, run_key=_run_key(chunk), incidents=chunk)
        for group, members in groups.items()
        for chunk in _chunks(members, max_per_run)
    ]


def _chunks(incidents: Sequence[Incident], size: int) -> list[tuple[Incident, ...]]:
    return [tuple(incidents[at : at + size]) for at in range(0, len(incidents), size)]


def _run_key(incidents: Sequence[Incident]) -> str:
    names = [f"{i.incident_id}.{i.attempts}.{i.hand_overs + 1}" for i in incidents]
    if len(names) == 1:
        return f"incident.attempts.hand-over {names[0]}"
    digest = sha256(" ".join(names).encode()).hexdigest()[:32]
    return f"incident.attempts.hand-over {names[0]} and {len(names) - 1} more, {digest}"


def _decide(
    survey: Survey, incident: Incident, surroundings: Surroundings, *, claimed: bool
) -> Decision:
    orphan = survey.orphans.get(incident.resource_id)
    obstacle = None
    if orphan is not None and _is_resting(incident, surroundings):
        obstacle = surroundings.obstacle(orphan.container_name)
    elif orphan is not None:
        obstacle = obstacle_of(orphan, surroundings.obstacle)
    return decide(
        incident,
        obstacle=obstacle,
        policy=surroundings.policy,
        claimed=claimed,
        now=surroundings.now,
    )


def _is_resting(incident: Incident, surroundings: Surroundings) -> bool:
    """Whether it was seen before and is not due: its properties were read, and will be again."""
    due = due_at(incident, surroundings.policy)
    return incident.state is State.WAITING and incident.detected_at < surroundings.now < due
