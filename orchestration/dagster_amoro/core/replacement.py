"""Did others come to a group in the place of an orphan?"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import datetime
from typing import NamedTuple

from dagster_amoro.core import groups
from dagster_amoro.core.groups import Group
from dagster_amoro.core.model import Incident, State
from dagster_amoro.core.policy import Replacement, RestartPolicy
from dagster_amoro.core.scale_up import ON_ITS_WAY, is_coming

# Of these no optimizer is to be expected any more.
_HOPELESS = frozenset({State.UNSUPPORTED, State.KEPT, State.GIVING_UP, State.SUPERSEDING})


class NewResource(NamedTuple):
    """A resource that a group got of late."""

    resource_id: str
    group_name: str
    thread_count: int
    start_time: str  # as the database says it; comparable with others of the same database
    registered: bool  # whether an optimizer names it


class Newcomers(NamedTuple):
    """What came to some groups after a moment of each."""

    resources: Sequence[NewResource] = ()
    live: Mapping[str, int] = {}


AskNewcomers = Callable[[Mapping[str, str]], Newcomers]
"""Says what came to groups since these moments, each as the database says it, by group."""


def hopeless(incidents: Iterable[Incident]) -> set[str]:
    """The resources of which no optimizer is to be expected any more."""
    return {i.resource_id for i in incidents if i.state in _HOPELESS}


def replacement(
    incident: Incident,
    new_resources: Iterable[NewResource],
    *,
    hopeless: AbstractSet[str],
    live: int,
    min_parallelism: int,
) -> Replacement:
    """What came to the group of an orphan after its detection.

    AMS brings a group that is below its minimum parallelism back to it with a new resource,
    whatever becomes of the old ones (`OptimizerGroupKeeper`); so do we where a restart failed.
    Threads that came in an orphan's place must not come twice.

    Args:
        incident: The orphan's.
        new_resources: Resources of its group.
        hopeless: The resources that take nobody's place, see `hopeless()`.
        live: The threads of the group's optimizers.
        min_parallelism: The threads that the group must have.
    """
    newer = [
        each
        for each in new_resources
        if incident.newest_start is not None
        and each.start_time > incident.newest_start
        and each.resource_id != incident.resource_id
        and each.resource_id not in hopeless
    ]
    registered = sum(each.thread_count for each in newer if each.registered)
    if registered and registered >= incident.thread_count and live >= min_parallelism:
        return Replacement.LIVE
    coming = sum(each.thread_count for each in newer if not each.registered)
    if coming and registered + coming >= incident.thread_count:
        return Replacement.COMING
    return Replacement.NONE


class Replacements:
    """What came to the groups that have a min-parallelism; asks for it only when asked itself."""

    def __init__(  # noqa: PLR0913 - what a replacement depends on
        self,
        sized: Mapping[str, Group],
        incidents: Sequence[Incident],
        *,
        scaling_up: AbstractSet[str],
        policy: RestartPolicy,
        attached: bool,
        now: datetime,
        newcomers: AskNewcomers,
    ) -> None:
        """What came to the groups of these incidents.

        Args:
            sized: The groups that may have a min-parallelism, by name.
            incidents: The open incidents of these groups, or more.
            scaling_up: The groups that a run is about to give a new resource.
            policy: The restart policy.
            attached: Whether AMS scales the groups; it does not count on orphans.
            now: Aware UTC.
            newcomers: Asked at most once.
        """
        self._min_parallelisms = {
            name: groups.min_parallelism(group) for name, group in sized.items()
        }
        self._incidents = incidents
        self._scaling_up = scaling_up
        self._policy = policy
        self._attached = attached
        self._now = now
        self._ask = newcomers
        self._hopeless: set[str] = set()
        self._numbers: dict[str, int] = {}  # of incidents, by resource id
        self._live: Mapping[str, int] = {}
        self._coming: Counter[str] = Counter()  # threads by group
        self._new_resources: dict[str, list[NewResource]] | None = None

    def of(self, incident: Incident) -> Replacement:
        """What came to the group of an orphan."""
        group = incident.group_name
        min_parallelism = self._min_parallelisms.get(group)
        if min_parallelism is None or incident.newest_start is None:
            return Replacement.NONE
        if group in self._scaling_up and incident.last_error is not None:
            return Replacement.COMING  # a round brings the threads of those alone that failed
        return replacement(
            incident,
            self._newer_than(incident),
            hopeless=self._hopeless,
            live=self._live.get(group, 0) + self._expected(incident),
            min_parallelism=min_parallelism,
        )

    def _expected(self, incident: Incident) -> int:
        """For one that is not expected any more: the threads of the orphans that are.

        AMS does not count them, and scales up for them as well.
        """
        if self._attached or self._is_coming(incident):
            return 0
        return self._coming[incident.group_name]

    def _is_coming(self, incident: Incident) -> bool:
        return is_coming(incident, self._policy, self._now)

    def _newer_than(self, incident: Incident) -> list[NewResource]:
        """The newcomers, but for orphans of longer standing, which could wait for this one too."""
        return [
            each
            for each in self._looked_up().get(incident.group_name, [])
            if self._numbers.get(each.resource_id, incident.incident_id) >= incident.incident_id
        ]

    def _looked_up(self) -> dict[str, list[NewResource]]:
        if self._new_resources is None:
            since: dict[str, str] = {}
            for incident in self._incidents:
                group, start = incident.group_name, incident.newest_start
                # Those that wait for a person, maybe for long, ask for no newcomers.
                if self._min_parallelisms.get(group) is None or incident.state not in ON_ITS_WAY:
                    continue
                self._coming[group] += incident.thread_count * self._is_coming(incident)
                if start is not None:
                    since[group] = min(start, since.get(group, start))
            self._hopeless = hopeless(self._incidents)
            self._numbers = {each.resource_id: each.incident_id for each in self._incidents}
            self._new_resources = {}
            found = self._ask(since)
            self._live = found.live
            for each in found.resources:
                self._new_resources.setdefault(each.group_name, []).append(each)
        return self._new_resources
