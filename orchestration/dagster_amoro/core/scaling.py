"""Which groups are below their min-parallelism, and what is to be done for each?"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from dagster_amoro.core import groups
from dagster_amoro.core.formatting import counted
from dagster_amoro.core.groups import Group
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
from dagster_amoro.core.tick_plan import DecisionInputs, RegistrySnapshot

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
    scale_decision: ScaleDecision
    scale_up: ScaleUp | None = None  # its rounds so far
    failed: tuple[Incident, ...] = ()  # orphans that may be restarted, and are not counted on
    lapsed: bool = False  # a round was begun, and no run can be expected to finish it
    obstacle: str | None = None  # why nothing can be started for it

    @property
    def missing(self) -> int:
        """The threads that nobody brings."""
        return max(self.min_parallelism - self.live - self.coming, 0)

    @property
    def acts(self) -> bool:
        """Whether there is something to write down."""
        return self.scale_decision in _ACTS or self.lapsed

    def message(self, max_rounds: int) -> str | None:
        """What a tick says about it; None: nothing."""
        if self.scale_decision not in _TELLING and self.obstacle is None:
            return None
        size = f"{self.group.name} has {self.live} of {self.min_parallelism} threads"
        if self.obstacle is not None:
            return f"{size} and cannot be refilled ({self.obstacle})"
        rounds = self.scale_up.rounds if self.scale_up else 0
        match self.scale_decision:
            case ScaleDecision.START:
                return f"{size}, a new resource of {self.missing} is started"
            case ScaleDecision.WAIT:
                return f"{size}, round {rounds} of {max_rounds} was begun"
        return f"{size}, and {counted(rounds, 'round')} did not help: a person is needed"


def size(
    survey: RegistrySnapshot,
    incidents: Iterable[Incident],
    scale_ups: Mapping[str, ScaleUp],
    inputs: DecisionInputs,
    max_rounds: int,
) -> list[ScalePlan]:
    """Looks at every group that has a min-parallelism, or had one when it was refilled.

    Groups that are paused, and those under dynamic allocation, are left alone.
    """
    orphans = _by_group(survey)
    known = {incident.resource_id: incident for incident in incidents}
    found = []
    for name in survey.sized.keys() | scale_ups.keys():
        group = survey.sized.get(name) or Group(name=name, container_name=None, properties=None)
        is_left = inputs.group_obstacle(name) or inputs.pauses.of_group(name)
        min_parallelism = groups.min_parallelism(group) or 0
        if (min_parallelism or name in scale_ups) and not is_left:
            dead = orphans.get(name, [])
            scale_up = scale_ups.get(name)
            live = survey.live.get(name, 0)
            found.append(
                _sizing(group, min_parallelism, live, dead, known, scale_up, inputs, max_rounds)
            )
    return sorted(found, key=lambda scale_plan: scale_plan.group.name)


def _by_group(survey: RegistrySnapshot) -> dict[str | None, list[Orphan]]:
    found: dict[str | None, list[Orphan]] = {}
    for orphan in survey.orphans.values():
        if orphan.group_name in survey.sized:
            found.setdefault(orphan.group_name, []).append(orphan)
    return found


def _sizing(  # noqa: PLR0913, PLR0917 - all that a group's course depends on
    group: Group,
    min_parallelism: int,
    live: int,
    dead: list[Orphan],
    known: Mapping[str, Incident],
    scale_up: ScaleUp | None,
    inputs: DecisionInputs,
    max_rounds: int,
) -> ScalePlan:
    expected = coming(dead, known, inputs.policy, inputs.now)
    begun = scale_up is not None and scale_up.state is ScaleUpState.REQUESTED
    claimed = scale_up is not None and holds_claim(scale_up, inputs.runs, inputs.now, inputs.fence)
    chosen = scale_decision(
        scale_up,
        min_parallelism=min_parallelism,
        live=live,
        coming=expected,
        claimed=claimed,
        max_rounds=max_rounds,
        now=inputs.now,
    )
    obstacle = inputs.obstacle(group.container_name) if chosen is ScaleDecision.START else None
    incidents = [known[orphan.resource_id] for orphan in dead if orphan.resource_id in known]
    return ScalePlan(
        group=group,
        min_parallelism=min_parallelism,
        live=live,
        coming=expected,
        scale_decision=ScaleDecision.REST if obstacle else chosen,
        scale_up=scale_up,
        failed=tuple(
            i
            for i in incidents
            if i.state in ON_ITS_WAY and not is_coming(i, inputs.policy, inputs.now)
        ),
        lapsed=begun and not claimed,
        obstacle=obstacle,
    )
