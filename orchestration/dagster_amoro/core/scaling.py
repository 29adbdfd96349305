"""Which groups are below their floor, and what is to be done for each?"""

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
    Course,
    Refill,
    RefillState,
    coming,
    course,
    is_coming,
)
from dagster_amoro.core.tick_plan import Surroundings, Survey

_ACTS: Final = {Course.START, Course.STOP, Course.SETTLE}
_TELLING: Final = {Course.START, Course.STOP, Course.STOPPED, Course.WAIT}


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizing:
    """A group whose size matters now."""

    group: Group
    floor: int  # threads that it must have
    live: int  # threads that it has
    coming: int  # threads of orphans that can be expected back
    course: Course
    refill: Refill | None = None  # its rounds so far
    failed: tuple[Incident, ...] = ()  # orphans that may be restarted, and are not counted on
    lapsed: bool = False  # a round was begun, and no run can be expected to finish it
    obstacle: str | None = None  # why nothing can be started for it

    @property
    def missing(self) -> int:
        """The threads that nobody brings."""
        return max(self.floor - self.live - self.coming, 0)

    @property
    def acts(self) -> bool:
        """Whether there is something to write down."""
        return self.course in _ACTS or self.lapsed

    def told(self, most_rounds: int) -> str | None:
        """What a tick says about it; None: nothing."""
        if self.course not in _TELLING and self.obstacle is None:
            return None
        size = f"{self.group.name} has {self.live} of {self.floor} threads"
        if self.obstacle is not None:
            return f"{size} and cannot be refilled ({self.obstacle})"
        rounds = self.refill.rounds if self.refill else 0
        match self.course:
            case Course.START:
                return f"{size}, a new resource of {self.missing} is started"
            case Course.WAIT:
                return f"{size}, round {rounds} of {most_rounds} was begun"
        return f"{size}, and {counted(rounds, 'round')} did not help: a person is needed"


def size(
    survey: Survey,
    incidents: Iterable[Incident],
    refills: Mapping[str, Refill],
    surroundings: Surroundings,
    most_rounds: int,
) -> list[Sizing]:
    """Looks at every group that has a floor, or had one when it was refilled.

    Groups that are paused, and those under dynamic allocation, are left alone.
    """
    orphans = _by_group(survey)
    known = {incident.resource_id: incident for incident in incidents}
    found = []
    for name in survey.sized.keys() | refills.keys():
        group = survey.sized.get(name) or Group(name=name, container_name=None, properties=None)
        is_left = surroundings.group_obstacle(name) or surroundings.pauses.of_group(name)
        floor = groups.floor(group) or 0
        if (floor or name in refills) and not is_left:
            dead = orphans.get(name, [])
            refill = refills.get(name)
            live = survey.live.get(name, 0)
            found.append(
                _sizing(group, floor, live, dead, known, refill, surroundings, most_rounds)
            )
    return sorted(found, key=lambda sizing: sizing.group.name)


def _by_group(survey: Survey) -> dict[str | None, list[Orphan]]:
    found: dict[str | None, list[Orphan]] = {}
    for orphan in survey.orphans.values():
        if orphan.group_name in survey.sized:
            found.setdefault(orphan.group_name, []).append(orphan)
    return found


def _sizing(  # noqa: PLR0913, PLR0917 - all that a group's course depends on
    group: Group,
    floor: int,
    live: int,
    dead: list[Orphan],
    known: Mapping[str, Incident],
    refill: Refill | None,
    surroundings: Surroundings,
    most_rounds: int,
) -> Sizing:
    expected = coming(dead, known, surroundings.policy, surroundings.now)
    begun = refill is not None and refill.state is RefillState.REQUESTED
    claimed = refill is not None and holds_claim(
        refill, surroundings.runs, surroundings.now, surroundings.fence
    )
    chosen = course(
        refill,
        floor=floor,
        live=live,
        coming=expected,
        claimed=claimed,
        most_rounds=most_rounds,
        now=surroundings.now,
    )
    obstacle = surroundings.obstacle(group.container_name) if chosen is Course.START else None
    incidents = [known[orphan.resource_id] for orphan in dead if orphan.resource_id in known]
    return Sizing(
        group=group,
        floor=floor,
        live=live,
        coming=expected,
        course=Course.REST if obstacle else chosen,
        refill=refill,
        failed=tuple(
            i
            for i in incidents
            if i.state in ON_ITS_WAY and not is_coming(i, surroundings.policy, surroundings.now)
        ),
        lapsed=begun and not claimed,
        obstacle=obstacle,
    )
