"""What does a tick do about what it read? Its plan, which it writes down and `status` shows.

The plan is made in the order in which things happen: incidents open and close as the snapshot has
it, groups that are short of threads get a round, and each open incident gets its decision.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cache, partial
from hashlib import sha256
from itertools import count
from typing import Final

from dagster_amoro.core.corrections import correct, lies_ahead
from dagster_amoro.core.errors import PropertiesError
from dagster_amoro.core.groups import (
    absence_obstacle,
    group_obstacle,
    heartbeat_obstacle,
    min_parallelism,
)
from dagster_amoro.core.limits import blocked_groups, next_batch
from dagster_amoro.core.looks import LookStep, plan_looks
from dagster_amoro.core.model import RUN_KEY, Incident, Orphan, ScaleUpState, State, Transition
from dagster_amoro.core.policy import (
    Decision,
    RestartPolicy,
    TickSettings,
    Verdict,
    decide,
    due_at,
    next_dispatch_at,
)
from dagster_amoro.core.properties import parse_properties
from dagster_amoro.core.registrations import is_back
from dagster_amoro.core.replacement import Replacements
from dagster_amoro.core.scale_up import ScalePlan, ScaleUpRun, never_requested, plan_scaling
from dagster_amoro.core.texts import shown
from dagster_amoro.core.tick_inputs import Obstacle, RegistrySnapshot, TickInputs, with_token
from dagster_amoro.core.transitions import (
    begin_release,
    close,
    detect,
    dispatch,
    doubt,
    enforce,
    replacement,
    report,
    row_is_back,
)

_ALONE: Final = 2  # setbacks from which on an incident shares its run with no other
_WAITS: Final[tuple[Verdict, ...]] = (Verdict.WAIT, Verdict.HOLD, Verdict.REPORT)
NEXT_BATCH: Final = "due, and left for the next tick (keeper.max-restarts-per-tick)"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunPlan:
    """A run to request: incidents that are due."""

    run_key: str  # names incidents, attempts and dispatches: a used key is never launched again
    incidents: tuple[Incident, ...]

    @property
    def groups(self) -> list[str]:
        """The names of their groups, in their order."""
        return list(dict.fromkeys(incident.group_name for incident in self.incidents))

    def dispatch(
        self, until: datetime, now: datetime, fence: int | None = None
    ) -> list[Transition]:
        """The steps that give its incidents to the run, until `until`."""
        return [dispatch(each, self.run_key, until, now, fence) for each in self.incidents]


@dataclass(frozen=True, kw_only=True, slots=True)
class TickPlan:
    """What a tick does, in this order, and what it leaves."""

    steps: tuple[Transition, ...] = ()  # open, close and enforce incidents
    looks: tuple[LookStep, ...] = ()  # note what was seen of the groups that AMS refills
    scaling: tuple[ScalePlan, ...] = ()  # the groups whose size matters, by name
    reports: tuple[Transition, ...] = ()  # say what cannot be restarted
    due: tuple[Incident, ...] = ()  # in the order in which they are to be restarted or removed
    dispatches: tuple[RunPlan, ...] = ()  # give to runs what is due
    # Runs that a tick before was cut off from requesting; they have their incidents already.
    again: tuple[RunPlan, ...] = ()
    scaling_again: tuple[ScaleUpRun, ...] = ()  # also cut off
    waiting: tuple[tuple[Incident, Decision], ...] = ()  # all other incidents, with the reason
    # By number, on what is dispatched and on what a limit keeps from it.
    verdicts: dict[int, Verdict] = field(default_factory=dict)
    last_served_group: str | None = None  # the group that this batch served last; None: it took all
    left: int = 0  # of what was to be written down, what the next ticks do, as the time was over

    @property
    def writes(self) -> bool:
        """Whether there is anything to write down."""
        others = any(each.acts for each in self.scaling) or any(each.changes for each in self.looks)
        return bool(self.steps or self.reports or self.dispatches or others)


def plan_tick(inputs: TickInputs) -> TickPlan:
    """Plans a tick; incidents that it opens are numbered for now, on from the highest one."""
    steps = reconcile(inputs)
    plan = plan_open(inputs.after_steps(steps, _numbered(steps, inputs.incidents)))
    return replace(plan, steps=tuple(steps), looks=looks_after(inputs, steps))


def plan_open(inputs: TickInputs) -> TickPlan:
    """Plans what comes after the steps that the snapshot asks for, once they are taken."""
    scaling: list[ScalePlan] = []
    if inputs.begun is None:
        scaling = plan_scaling(inputs)
        inputs = _with_rounds(inputs, scaling)
    decisions = _decisions(inputs)
    due = [incident for incident, decision in decisions if decision.verdict not in _WAITS]
    due.sort(key=partial(_turn, inputs.policy))
    verdicts = {i.incident_id: each.verdict for i, each in decisions if each.verdict not in _WAITS}
    waiting = [(i, decision) for i, decision in decisions if decision.verdict in _WAITS]
    allowed, held, last_served_group = _limit(inputs, due, verdicts)
    # A run that gives up on an orphan fails, which says nothing of what others restart.
    restarts = [each for each in allowed if verdicts[each.incident_id] is Verdict.RESTART]
    removals = [each for each in allowed if verdicts[each.incident_id] is not Verdict.RESTART]
    plans = partial(run_plans, max_per_run=inputs.settings.max_restarts_per_run, token=inputs.token)
    return TickPlan(
        scaling=tuple(scaling),
        reports=tuple(_reports(inputs, waiting)),
        due=tuple(allowed),
        dispatches=(*plans(restarts), *plans(removals)),
        again=tuple(_never_requested(inputs)),
        scaling_again=tuple(never_requested(inputs)),
        waiting=(*waiting, *held),
        verdicts=verdicts,
        last_served_group=last_served_group,
    )


# --- What opens and closes -----------------------------------------------------------------------


def missing(snapshot: RegistrySnapshot, incidents: Iterable[Incident]) -> list[str]:
    """Ids of resources with an open incident that are orphans no longer."""
    return [i.resource_id for i in incidents if i.resource_id not in snapshot.orphans]


def unknown(snapshot: RegistrySnapshot, incidents: Iterable[Incident]) -> list[Orphan]:
    """The orphans without an open incident, the oldest resource first."""
    new = snapshot.orphans.keys() - {incident.resource_id for incident in incidents}
    if not new:  # as in most ticks
        return []
    found = [orphan for key, orphan in snapshot.orphans.items() if key in new]
    starts = snapshot.start_times
    return sorted(found, key=lambda orphan: str(starts.get(orphan.resource_id, "")))


def reconcile(inputs: TickInputs) -> list[Transition]:
    """Opens an incident for each new orphan and closes those whose resource is none any more.

    An incident of a dry run goes on as one that nothing was done about.
    """
    return [*openings(inputs), *moves(inputs)]


def openings(inputs: TickInputs) -> Iterator[Transition]:
    """Opens an incident for each new orphan: one by one, as there may be very many."""
    changes = inputs.changes
    if changes is None:
        return
    for orphan in unknown(inputs.snapshot, inputs.incidents):
        yield detect(
            orphan,
            inputs.now,
            prior_attempts=changes.prior_attempts.get(orphan.resource_id, 0),
            newest_start=changes.newest_starts.get(orphan.group_name or ""),
        )


def moves(inputs: TickInputs) -> Iterator[Transition]:
    """Moves or closes the incidents about which the snapshot says something new."""
    if inputs.changes is None:
        return
    now, present = inputs.now, inputs.changes.present
    for incident in inputs.incidents:
        if incident.resource_id in inputs.snapshot.orphans:
            if incident.dry_run and not inputs.dry_run:
                yield enforce(incident, now)
            elif incident.state is State.RELEASING:
                yield row_is_back(incident, now)
            elif (step := _correction(inputs, incident)) is not None:
                yield step
        elif incident.resource_id in present:
            yield from _registered(inputs, incident)
        elif not incident.state.is_removing:  # else it is we who removed the row
            yield from _released(inputs, incident)


def _registered(inputs: TickInputs, incident: Incident) -> Iterable[Transition]:
    """It is back, unless it may be what an attempt has stopped, or an apply is about to stop."""
    if incident.is_in_apply and inputs.is_claimed(incident):
        return
    now, found = inputs.now, inputs.changes.registrations if inputs.changes else {}
    registrations = found.get(incident.resource_id, {})
    if not incident.doubts_registrations or (
        not incident.is_attempting and is_back(incident, registrations)
    ):
        yield close(incident, State.RECOVERED, recovery_message(incident), now)
    elif incident.is_attempting and registrations and not inputs.is_claimed(incident):
        yield doubt(incident, registrations, now)  # its run was lost, and maybe after the stop


def _released(inputs: TickInputs, incident: Incident) -> Iterable[Transition]:
    """What an attempt started is released by a run, since nobody else knows of it any more."""
    now = inputs.now
    if not incident.attempts or incident.dry_run != inputs.dry_run:
        yield close(incident, State.RELEASED, "somebody removed its resource row", now)
    elif not inputs.is_claimed(incident):  # else the run that has it sees it
        yield begin_release(incident, now)


def _correction(inputs: TickInputs, incident: Incident) -> Transition | None:
    if not lies_ahead(incident, inputs.now):
        return None
    return correct(
        incident,
        policy=inputs.policy,
        settings=inputs.settings,
        claimed=inputs.is_claimed(incident),
        now=inputs.now,
    )


def looks_after(inputs: TickInputs, steps: Iterable[Transition]) -> tuple[LookStep, ...]:
    """What is noted of the groups that AMS refills, where these steps are taken."""
    if inputs.changes is None:
        return ()
    sized, looks = inputs.snapshot.sized, inputs.looks
    # What is starting has never been seen alive: it counts for the last look before it came.
    starting = {each.group_name for each in inputs.snapshot.starting.values()}
    newest = {
        name: looks[name].newest_start if name in starting and name in looks else start
        for name, start in inputs.snapshot.newest.items()
    }
    returned = (each.before for each in steps if each.after.state is State.RECOVERED)
    found = plan_looks(
        looks,
        newest,
        floors={name: min_parallelism(sized[name]) or 0 for name in newest},
        returned=[each for each in returned if each is not None],
        newcomers=inputs.newcomers,
    )
    return tuple(found)


def recovery_message(incident: Incident) -> str:
    """How it came back."""
    how = f"after attempt {incident.attempts}" if incident.attempts else "by itself"
    return f"an optimizer registered for it {how}"


def _numbered(steps: Sequence[Transition], incidents: Sequence[Incident]) -> list[Incident]:
    """What the steps lead to, with numbers for the incidents that they open."""
    numbers = count(max((each.incident_id for each in incidents), default=0) + 1)
    return [
        step.after if step.before else step.after._replace(incident_id=next(numbers))
        for step in steps
    ]


def _with_rounds(inputs: TickInputs, scaling: Iterable[ScalePlan]) -> TickInputs:
    """The inputs once the rounds that are due have begun."""
    starting = [each for each in scaling if each.starts]
    failed = (incident for each in starting for incident in each.failed)
    replaced = {each.incident_id: replacement(each, "", inputs.now).after for each in failed}
    return inputs.after_rounds(replaced, frozenset(each.group.name for each in starting))


# --- What is done about each open incident -------------------------------------------------------


def _decisions(inputs: TickInputs) -> list[tuple[Incident, Decision]]:
    sized, of_group = inputs.snapshot.sized, obstacles_of_groups(inputs.snapshot, inputs.settings)
    requested = {
        name
        for name, each in inputs.scale_ups.items()
        if each.state is ScaleUpState.REQUESTED and inputs.is_claimed(each)
    }
    replacements = Replacements(
        sized,
        inputs.incidents,
        scaling_up=requested | (inputs.begun or set()),
        policy=inputs.policy,
        attached=inputs.attached,
        now=inputs.now,
        newcomers=inputs.newcomers,
    )
    found: list[tuple[Incident, Decision]] = []
    before = None
    for each in inputs.incidents:
        decision = _decide(inputs, each, of_group, replacements)
        if before is None or decision != before:  # many that came at once share one
            before = decision
        found.append((each, before))
    return found


def _decide(
    inputs: TickInputs, incident: Incident, of_group: Obstacle, replacements: Replacements
) -> Decision:
    orphan, obstacle = inputs.snapshot.orphans.get(incident.resource_id), None
    if orphan is not None:
        # Seen before and not due, it rests: its properties were read, and will be again.
        waits = incident.state is State.WAITING and incident.detected_at < inputs.now
        resting = waits and inputs.now + inputs.settings.lead < due_at(incident, inputs.policy)
        obstacle = of_group(orphan.group_name)
        if obstacle is None and resting:
            obstacle = inputs.obstacle(orphan.container_name)
        elif obstacle is None:
            obstacle = obstacle_of(orphan, inputs.obstacle, inputs.settings)
    pause = inputs.pauses.of(incident.resource_id, incident.group_name)
    timeout = inputs.settings.claim_timeout
    return decide(
        incident,
        obstacle=obstacle,
        policy=inputs.policy,
        claimed=inputs.is_claimed(incident),
        now=inputs.now,
        paused=str(pause) if pause else None,
        not_before=next_dispatch_at(incident, timeout) if inputs.is_of_lease(incident) else None,
        replacement=partial(replacements.of, incident),
        lead=inputs.settings.lead,
        doubtful=orphan is None,
    )


def obstacles_of_groups(snapshot: RegistrySnapshot, settings: TickSettings) -> Obstacle:
    """Why the orphans of a group, by its name, are not to be restarted; None: they are."""
    there = set(snapshot.groups)

    @cache
    def of_group(name: str | None) -> str | None:
        absent = None if name in there else absence_obstacle(name, settings)
        return absent or group_obstacle(snapshot.sized.get(name or ""), settings)

    return of_group


def obstacle_of(orphan: Orphan, container_obstacle: Obstacle, settings: TickSettings) -> str | None:
    """Why this orphan cannot be restarted, by its container or by its own row; None: it can."""
    if not orphan.resource_id:  # an optimizer without an id could never be found again
        return "its resource_id is empty"
    if orphan.copies > 1:
        return f"its id stands in {orphan.copies} rows of resource; remove all of them but one"
    obstacle = container_obstacle(orphan.container_name)
    if obstacle is not None:
        return obstacle
    try:
        properties = parse_properties(orphan.properties)
    except PropertiesError as error:
        return str(error)
    if orphan.thread_count is None:
        return "its thread_count is NULL"
    return heartbeat_obstacle(properties, settings)


def _reports(
    inputs: TickInputs, waiting: Iterable[tuple[Incident, Decision]]
) -> Iterable[Transition]:
    """Says of what cannot be restarted why, once."""
    for incident, decision in waiting:
        is_news = decision.verdict is Verdict.REPORT and incident.note != shown(decision.reason)
        if is_news and not inputs.is_claimed(incident):
            yield report(incident, decision.reason, inputs.now)


# --- How much of it at once ----------------------------------------------------------------------


def _limit(
    inputs: TickInputs, due: Sequence[Incident], verdicts: dict[int, Verdict]
) -> tuple[list[Incident], list[tuple[Incident, Decision]], str | None]:
    """What may be dispatched of what is due, what may not and why, and which group came last."""
    # The limits are about restarts that nobody asked for; the rest passes.
    passes = {
        incident.incident_id
        for incident in due
        if incident.operator_request or verdicts[incident.incident_id] is not Verdict.RESTART
    }
    restarts = [incident for incident in due if incident.incident_id not in passes]
    blocked = blocked_groups(
        {incident.group_name for incident in restarts},
        (orphan.group_name for orphan in inputs.snapshot.orphans.values()),
        inputs.count,
        inputs.limits,
    )
    held = [
        (incident, Decision(Verdict.HOLD, blocked[incident.group_name]))
        for incident in restarts
        if incident.group_name in blocked
    ]
    free = [incident for incident in restarts if incident.group_name not in blocked]
    batch = next_batch(free, inputs.limits.max_restarts, inputs.last_served_group)
    held += [(incident, Decision(Verdict.WAIT, NEXT_BATCH)) for incident in batch.later]
    others = [incident for incident in due if incident.incident_id in passes]
    allowed = sorted([*others, *batch.now], key=lambda incident: incident.setbacks_if_lost > 0)
    return allowed, held, batch.last_served_group


def run_plans(due: Sequence[Incident], max_per_run: int, token: str | None = None) -> list[RunPlan]:
    """The runs to request: incidents of all groups together, in their order.

    What was set back twice gets a run of its own: it may be what its runs were lost by.
    """
    together = [incident for incident in due if incident.setbacks_if_lost < _ALONE]
    chunks = [together[at : at + max_per_run] for at in range(0, len(together), max_per_run)]
    chunks += [[incident] for incident in due if incident.setbacks_if_lost >= _ALONE]
    return [
        RunPlan(run_key=with_token(_run_key(chunk), token), incidents=tuple(chunk))
        for chunk in chunks
    ]


def _turn(policy: RestartPolicy, incident: Incident) -> tuple[bool, datetime, int]:
    """The longest due first, but for what was set back: nothing else waits for that."""
    return incident.setbacks_if_lost > 0, due_at(incident, policy), incident.incident_id


def _run_key(incidents: Sequence[Incident]) -> str:
    names = [f"{i.incident_id}.{i.attempts}.{i.dispatches + 1}" for i in incidents]
    if len(names) == 1:
        return f"{RUN_KEY} {names[0]}"
    digest = sha256(" ".join(names).encode()).hexdigest()[:16]
    return f"{RUN_KEY} {names[0]} and {len(names) - 1} more, {digest}"


def _never_requested(inputs: TickInputs) -> list[RunPlan]:
    runs: defaultdict[str, list[Incident]] = defaultdict(list)
    for incident in inputs.incidents:
        if inputs.was_never_requested(incident):
            runs[incident.claimed_by or ""].append(incident)
    return [RunPlan(run_key=key, incidents=tuple(given)) for key, given in runs.items()]
