"""Does a group need a new resource to reach its min-parallelism, and how often was it tried?

What AMS does for its groups (`OptimizerGroupKeeper`), with one difference: orphans that are going
to be restarted count, so that nothing is started twice for the same threads.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum

from dagster_amoro.core.corrections import TOLERANCE
from dagster_amoro.core.formatting import counted
from dagster_amoro.core.groups import Group, group_obstacle, min_parallelism
from dagster_amoro.core.model import Incident, Orphan, ScaleUp, ScaleUpState
from dagster_amoro.core.policy import NEARLY, ON_ITS_WAY, RestartPolicy, is_coming
from dagster_amoro.core.tick_inputs import TickInputs


class ScaleDecision(Enum):
    """What is to be done for a group."""

    REST = "rest"  # it has what it needs, or will have it
    SETTLE = "settle"  # it has again what it needs: the rounds are forgotten
    WAIT = "wait"  # a round is under way, or the next one is not due
    START = "start"
    STOP = "stop"  # say that it did not help
    STOPPED = "stopped"  # that was said


def coming(
    orphans: Iterable[Orphan],
    incidents: Mapping[str, Incident],
    policy: RestartPolicy,
    now: datetime,
) -> int:
    """The threads of these orphans that can be expected back; `incidents` by resource id."""
    return sum(
        orphan.thread_count or 0
        for orphan in orphans
        if is_coming(incidents.get(orphan.resource_id), policy, now)
    )


def scale_decision(  # noqa: PLR0911, PLR0913 - a return for each row of the table
    scale_up: ScaleUp | None,
    *,
    min_parallelism: int,
    live: int,
    coming: int,
    claimed: bool,
    max_rounds: int,
    latest: datetime,
    now: datetime,
) -> ScaleDecision:
    """What to do for a group now; the first row that applies.

    | when | decision |
    |---|---|
    | a run is at it | wait |
    | live >= min-parallelism | settle, if there were rounds |
    | live + coming >= min-parallelism | rest |
    | the min-parallelism is another one than at the first round | start |
    | it was stopped | stopped |
    | now < the next round, not nearly there and no farther away than its pause | wait |
    | rounds < most rounds | start |
    | else | stop |
    """
    if scale_up is not None and claimed:
        return ScaleDecision.WAIT
    if live >= min_parallelism:
        return ScaleDecision.SETTLE if scale_up else ScaleDecision.REST
    if live + coming >= min_parallelism:
        return ScaleDecision.REST
    if scale_up is None or scale_up.min_parallelism != min_parallelism:
        return ScaleDecision.START
    if scale_up.state is ScaleUpState.STOPPED:
        return ScaleDecision.STOPPED
    if scale_up.next_at is not None and now + NEARLY < scale_up.next_at <= latest:
        return ScaleDecision.WAIT
    return ScaleDecision.START if scale_up.rounds < max_rounds else ScaleDecision.STOP


def next_round(  # noqa: PLR0913 - what a round is made of
    scale_up: ScaleUp | None,
    group_name: str,
    *,
    min_parallelism: int,
    threads: int,
    resource_id: str,
    interval: timedelta,
    now: datetime,
) -> ScaleUp:
    """The next round, counted before it is made; the pause after it grows with their number."""
    before = scale_up or ScaleUp(group_name, min_parallelism)
    rounds = before.rounds + 1 if before.min_parallelism == min_parallelism else 1
    return before.evolve(
        min_parallelism=min_parallelism,
        rounds=rounds,
        resource_id=resource_id,
        threads=threads,
        state=ScaleUpState.REQUESTED,
        next_at=now + interval * (rounds + 1),
        last_error=None,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ScaleUpRun:
    """A run to request: groups that get a new resource each."""

    run_key: str
    scale_ups: tuple[ScaleUp, ...]


def never_requested(inputs: TickInputs) -> list[ScaleUpRun]:
    """The runs that a tick was cut off from requesting, with the rounds that it had begun."""
    runs: defaultdict[str, list[ScaleUp]] = defaultdict(list)
    for scale_up in inputs.scale_ups.values():
        if inputs.was_never_requested(scale_up):
            runs[scale_up.claimed_by or ""].append(scale_up)
    return [ScaleUpRun(run_key=key, scale_ups=tuple(begun)) for key, begun in runs.items()]


@dataclass(frozen=True, kw_only=True, slots=True)
class ScalePlan:
    """A group whose size matters now."""

    group: Group
    min_parallelism: int  # threads that it must have
    live: int  # threads that it has
    coming: int  # threads of orphans that can be expected back
    decision: ScaleDecision
    scale_up: ScaleUp | None = None  # its rounds so far
    failed: tuple[Incident, ...] = ()  # orphans that may be restarted, and are not counted on
    lapsed: bool = False  # a round was begun, and no run can be expected to finish it
    obstacle: str | None = None  # why nothing can be started for it

    @property
    def missing(self) -> int:
        """The threads that nobody brings."""
        return max(self.min_parallelism - self.live - self.coming, 0)

    @property
    def starts(self) -> bool:
        """Whether a round begins."""
        return self.decision is ScaleDecision.START

    @property
    def acts(self) -> bool:
        """Whether there is something to write down."""
        writes = {ScaleDecision.START, ScaleDecision.STOP, ScaleDecision.SETTLE}
        return self.decision in writes or self.lapsed

    def message(self, max_rounds: int) -> str | None:
        """What a tick says about it; None: nothing."""
        size = f"{self.group.name} has {self.live} of {self.min_parallelism} threads"
        if self.obstacle is not None:
            return f"{size} and cannot be scaled up ({self.obstacle})"
        rounds = self.scale_up.rounds if self.scale_up else 0
        match self.decision:
            case ScaleDecision.START:
                return f"{size}, a new resource of {self.missing} is started"
            case ScaleDecision.WAIT:
                return f"{size}, round {rounds} of {max_rounds} was begun"
            case ScaleDecision.STOP | ScaleDecision.STOPPED:
                return f"{size}, and {counted(rounds, 'round')} did not help: a person is needed"
        return None


def plan_scaling(inputs: TickInputs) -> list[ScalePlan]:
    """Looks at every group that has a min-parallelism, or had one when its last round began.

    Those that are paused or under dynamic allocation are left alone; an AMS looks after its own.
    """
    snapshot, scale_ups = inputs.snapshot, inputs.scale_ups
    if inputs.attached or not inputs.policy.enabled or not (snapshot.sized or scale_ups):
        return []
    orphans: defaultdict[str | None, list[Orphan]] = defaultdict(list)
    for orphan in (*snapshot.orphans.values(), *snapshot.starting.values()):
        orphans[orphan.group_name].append(orphan)
    known = {incident.resource_id: incident for incident in inputs.incidents}
    found = []
    for name in sorted(snapshot.sized.keys() | scale_ups.keys()):
        group = snapshot.sized.get(name) or Group(name=name, container_name=None, properties=None)
        is_left = group_obstacle(group, inputs.settings) or inputs.pauses.of_group(name)
        if (min_parallelism(group) or name in scale_ups) and not is_left:
            found.append(_plan(inputs, group, orphans[name], known))
    return found


def _plan(
    inputs: TickInputs, group: Group, dead: Sequence[Orphan], known: Mapping[str, Incident]
) -> ScalePlan:
    policy, now, scale_up = inputs.policy, inputs.now, inputs.scale_ups.get(group.name)
    threads, live = min_parallelism(group) or 0, inputs.snapshot.live.get(group.name, 0)
    expected = coming(dead, known, policy, now)
    claimed = scale_up is not None and inputs.is_claimed(scale_up)
    rounds = scale_up.rounds if scale_up else 0
    decision = scale_decision(
        scale_up,
        min_parallelism=threads,
        live=live,
        coming=expected,
        claimed=claimed,
        max_rounds=inputs.settings.max_keeping_attempts,
        # A time that is farther ahead was written by a clock that was wrong.
        latest=now + inputs.settings.check_interval * (rounds + 1) + TOLERANCE,
        now=now,
    )
    starts = decision is ScaleDecision.START
    obstacle = inputs.obstacle(group.container_name) if starts else None
    incidents = [known[orphan.resource_id] for orphan in dead if orphan.resource_id in known]
    failed = [i for i in incidents if i.state in ON_ITS_WAY and not is_coming(i, policy, now)]
    return ScalePlan(
        group=group,
        min_parallelism=threads,
        live=live,
        coming=expected,
        decision=ScaleDecision.REST if obstacle else decision,
        scale_up=scale_up,
        failed=tuple(failed),
        lapsed=bool(scale_up and scale_up.state is ScaleUpState.REQUESTED and not claimed),
        obstacle=obstacle,
    )
