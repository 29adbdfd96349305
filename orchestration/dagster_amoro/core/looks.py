"""What does a tick remember of the groups that AMS refills, until the next one?

AMS brings a group back to its min-parallelism with new resources, and may do so before we see that
one of its resources died. Whether a resource came after that can be told by the last look at which
the dead one was alive: that of the tick before.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import Final, NamedTuple

from dagster_amoro.core.formatting import counted
from dagster_amoro.core.model import Incident
from dagster_amoro.core.replacement import AskNewcomers, NewResource

NEVER: Final = "1970-01-02 00:00:00"
"""The newest start in a group without resources; every database takes it for a time."""


class Look(NamedTuple):
    """What a completed tick saw of a group that has a min-parallelism."""

    group_name: str
    newest_start: str  # `start_time` of its newest resource, as the database said it, or `NEVER`
    # Threads above the min-parallelism, since AMS refilled for some that came back as well.
    surplus: int = 0

    @property
    def message(self) -> str | None:
        """What a person should know of it; None: nothing."""
        if not self.surplus:
            return None
        return (
            f"{self.group_name} has {counted(self.surplus, 'thread')} more than its "
            "min-parallelism: AMS refilled it, and what was lost came back as well"
        )


class LookStep(NamedTuple):
    """What was known of a group, and what is from now on."""

    before: Look | None  # None: nothing
    after: Look | None  # None: it is forgotten, as it has no min-parallelism any more

    @property
    def changes(self) -> bool:
        """Whether there is something to write down."""
        return self.before != self.after


def plan_looks(
    looks: Mapping[str, Look],
    newest: Mapping[str, str],
    *,
    floors: Mapping[str, int],
    returned: Iterable[Incident],
    newcomers: AskNewcomers,
) -> list[LookStep]:
    """What becomes of `looks`, for the groups that change and those with a surplus.

    `newest` is the newest start of each group that AMS refills to its floor; `returned` are the
    incidents that end now because their resource came back.
    """
    back: defaultdict[str, list[Incident]] = defaultdict(list)
    for incident in returned:
        if incident.newest_start is not None:
            back[incident.group_name].append(incident)
    steps = [LookStep(each, None) for name, each in looks.items() if name not in newest]
    for name, start in newest.items():
        before = looks.get(name)
        surplus = before.surplus if before else 0
        if surplus or back[name]:
            surplus = _surplus(back[name], surplus, Look(name, start), floors[name], newcomers)
        steps.append(LookStep(before, Look(name, start, surplus)))
    return [each for each in steps if each.changes or (each.after and each.after.surplus)]


def _surplus(
    back: Collection[Incident], known: int, now: Look, floor: int, newcomers: AskNewcomers
) -> int:
    since = min((each.newest_start or "" for each in back), default=now.newest_start)
    found = newcomers({now.group_name: since})
    doubled = known + sum(_doubled(each, found.resources) for each in back)
    return max(0, min(doubled, found.live.get(now.group_name, 0) - floor))


def _doubled(incident: Incident, came: Iterable[NewResource]) -> int:
    """The threads of a resource that came back, as far as others had come in its place."""
    others = sum(
        each.thread_count
        for each in came
        if each.registered
        and each.resource_id != incident.resource_id
        and each.start_time > (incident.newest_start or "")
    )
    return min(incident.thread_count, others)


def last_seen_alive(
    looks: Mapping[str, Look],
    newest: Mapping[str, str],
    *,
    floors: Mapping[str, int],
    newcomers: AskNewcomers,
) -> dict[str, str]:
    """The newest start in each group when what is found orphaned in it now was alive.

    Where that is not known, it is what is the newest now. So it is where the group had its floor
    without those that came since: AMS had no reason to bring them, so a person did.
    """
    before = {
        name: looks[name].newest_start
        for name, start in newest.items()
        if name in looks and name in floors and looks[name].newest_start < start
    }
    found = newcomers(before)
    came: defaultdict[str, int] = defaultdict(int)
    for each in found.resources:
        came[each.group_name] += each.thread_count if each.registered else 0
    refilled = {
        name: start
        for name, start in before.items()
        if found.live.get(name, 0) - came[name] < floors[name]
    }
    return {**newest, **refilled}
