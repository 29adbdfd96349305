"""How much may be restarted at once: a batch, not a stampede, and nothing in a catastrophe?"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from dagster_amoro.core.model import Incident

CountResources = Callable[[], Mapping[str, int]]
"""How many resources each group has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """The limits of what a tick restarts."""

    max_restarts: int | None = None  # per tick; the rest is due at the next. None: any number
    # The largest share of a group's resources that may be orphaned while it is still healed: more
    # dead at once point at something that restarts would make worse. 1: any share.
    max_orphaned: float = 1.0
    max_orphaned_overall: float = 1.0  # the same for all resources of the registry together
    max_orphaned_of: Mapping[str, float] = field(default_factory=dict)  # for groups with their own

    def limit_of(self, group_name: str) -> float:
        """The largest share of this group that may be orphaned."""
        return self.max_orphaned_of.get(group_name, self.max_orphaned)


class Batch(NamedTuple):
    """What of all that is due goes first."""

    now: list[Incident]
    later: list[Incident]
    last_served_group: str | None  # after which the next batch begins


def next_batch(due: Sequence[Incident], most: int | None, last_served_group: str | None) -> Batch:
    """Takes so many of what is due, groups in turn, each group's first ones first.

    What has setbacks comes after all that has none.
    Groups stand in a ring, by their names. Each gives one incident a round, and the next batch goes
    on behind the group that was served last: none waits more than one round longer than another.
    """
    if most is None or len(due) <= most:
        return Batch(list(due), [], None)
    rounds: Counter[str] = Counter()

    def place(incident: Incident) -> tuple[bool, int, bool, str]:
        name = incident.group_name
        rounds[name] += 1
        is_passed = last_served_group is not None and name <= last_served_group
        return incident.setbacks_if_lost > 0, rounds[name], is_passed, name

    chosen = sorted(due, key=place)[:most]
    ids = {incident.incident_id for incident in chosen}
    later = [incident for incident in due if incident.incident_id not in ids]
    return Batch(chosen, later, chosen[-1].group_name)


def blocked_groups(
    groups: Iterable[str], orphans: Iterable[str | None], count: CountResources, limits: Limits
) -> dict[str, str]:
    """In which of these groups nothing may be restarted now, and why.

    `orphans` are the groups of all orphans, each once; `count` is asked only if there is a limit.
    """
    shares = {name: limits.limit_of(name) for name in groups}
    if limits.max_orphaned_overall >= 1 and all(limit >= 1 for limit in shares.values()):
        return {}
    dead, resources = Counter(name or "" for name in orphans), count()
    everywhere = _refusal(dead.total(), sum(resources.values()), limits.max_orphaned_overall)
    overall = f"of all groups {everywhere}" if everywhere else None
    found = {
        name: _refusal(dead[name], resources.get(name, 0), limit) or overall
        for name, limit in shares.items()
    }
    return {name: why for name, why in found.items() if why}


def _refusal(orphans: int, resources: int, limit: float) -> str | None:
    if limit >= 1 or orphans / max(resources, 1) <= limit:
        return None
    return f"{orphans} of {resources} orphaned, allowed {limit * 100:g}%"
