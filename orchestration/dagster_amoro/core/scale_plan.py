"""Which groups are below their min-parallelism, and what is to be done for each?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from dagster_amoro.core import groups
from dagster_amoro.core.formatting import counted
from dagster_amoro.core.groups import Group, group_obstacle
from dagster_amoro.core.model import Incident, Orphan
from dagster_amoro.core.policy import holds_claim
from dagster_amoro.core.scale_up import (
    ON_ITS_WAY,
    ScaleDecision,
    ScaleUp,
    ScaleUpState,
    coming,
    is_coming,
    scale_decision,
)
from dagster_amoro.core.tick_inputs import RegistrySnapshot, TickInputs

_ACTS: Final = {ScaleDecision.START, ScaleDecision.STOP, ScaleDecision.SETTLE}
_TELLING: Final = {
    ScaleDecision.START,
    ScaleDecision.STOP,
    ScaleDecision.STOPPED,
    ScaleDecision.WAIT,
}


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
        return self.decision in _ACTS or self.lapsed

    def message(self, max_rounds: int) -> str | None:
        """What a tick says about it; None: nothing."""
        if self.decision not in _TELLING and self.obstacle is None:
            return None
        size = f"{self.group.name} has {self.live} of {self.min_parallelism} threads"
        if self.obstacle is not None:
            return f"{size} and cannot be scaled up ({self.obstacle})"
        rounds = self.scale_up.rounds if self.scale_up else 0
        match self.decision:
            case ScaleDecision.START:
                return f"{size}, a new resource of {self.missing} is started"
            case ScaleDecision.WAIT:
                return f"{size}, round {rounds} of {max_rounds} was begun"
        return f"{size}, and {counted(rounds, 'round')} did not help: a person is needed"


def plan_scaling(inputs: TickInputs) -> list[ScalePlan]:
    """Looks at every group that has a min-parallelism, or had one when its last round began.

    Groups that are paused, and those under dynamic allocation, are left alone. In attached mode
    AMS looks after all of them.
    """
    snapshot, scale_ups = inputs.snapshot, inputs.scale_ups
    if inputs.attached or not inputs.policy.enabled or not (snapshot.sized or scale_ups):
        return []
    orphans = _by_group(snapshot)
    known = {incident.resource_id: incident for incident in inputs.incidents}
    found = []
    for name in sorted(snapshot.sized.keys() | scale_ups.keys()):
        group = snapshot.sized.get(name) or Group(name=name, container_name=None, properties=None)
        is_left = group_obstacle(group, inputs.settings) or inputs.pauses.of_group(name)
        min_parallelism = groups.min_parallelism(group) or 0
        if (min_parallelism or name in scale_ups) and not is_left:
            found.append(_plan(inputs, group, min_parallelism, orphans.get(name, []), known))
    return found


def _by_group(snapshot: RegistrySnapshot) -> dict[str | None, list[Orphan]]:
    found: dict[str | None, list[Orphan]] = {}
    for orphan in snapshot.orphans.values():
        if orphan.group_name in snapshot.sized:
            found.setdefault(orphan.group_name, []).append(orphan)
    return found


def _plan(
    inputs: TickInputs,
    group: Group,
    min_parallelism: int,
    dead: Sequence[Orphan],
    known: Mapping[str, Incident],
) -> ScalePlan:
    policy, now, scale_up = inputs.policy, inputs.now, inputs.scale_ups.get(group.name)
    live, expected = inputs.snapshot.live.get(group.name, 0), coming(dead, known, policy, now)
    claimed = scale_up is not None and holds_claim(scale_up, inputs.runs, now, inputs.fence)
    decision = scale_decision(
        scale_up,
        min_parallelism=min_parallelism,
        live=live,
        coming=expected,
        claimed=claimed,
        max_rounds=inputs.settings.max_keeping_attempts,
        now=now,
    )
    starts = decision is ScaleDecision.START
    obstacle = inputs.obstacle(group.container_name) if starts else None
    incidents = (known[orphan.resource_id] for orphan in dead if orphan.resource_id in known)
    return ScalePlan(
        group=group,
        min_parallelism=min_parallelism,
        live=live,
        coming=expected,
        decision=ScaleDecision.REST if obstacle else decision,
        scale_up=scale_up,
        failed=tuple(
            i for i in incidents if i.state in ON_ITS_WAY and not is_coming(i, policy, now)
        ),
        lapsed=bool(scale_up and scale_up.state is ScaleUpState.REQUESTED and not claimed),
        obstacle=obstacle,
    )
