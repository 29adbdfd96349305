"""Did others come to a group in the place of an orphan?"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import KW_ONLY, dataclass, field
from datetime import datetime
from functools import cached_property
from typing import NamedTuple

from dagster_amoro.core.groups import Group, min_parallelism
from dagster_amoro.core.model import Incident, State
from dagster_amoro.core.policy import ON_ITS_WAY, Replacement, RestartPolicy, is_coming

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


@dataclass
class Replacements:
    """What came to the groups that have a min-parallelism; asks for it only when asked itself."""

    sized: Mapping[str, Group]  # the groups that may have a min-parallelism, by name
    incidents: Sequence[Incident]  # the open ones of these groups, or more
    _: KW_ONLY
    scaling_up: AbstractSet[str]  # the groups that a run is about to give a new resource
    policy: RestartPolicy
    attached: bool  # whether AMS scales the groups; it does not count on orphans
    now: datetime  # aware UTC
    newcomers: AskNewcomers  # asked at most once
    _came: dict[str, list[NewResource]] = field(default_factory=dict, init=False)  # by group
    _live: Mapping[str, int] | None = field(default=None, init=False)  # None: not asked yet

    def of(self, incident: Incident) -> Replacement:
        """What came to the group of an orphan after its detection.

        AMS brings a group that is below its minimum parallelism back to it with a new resource,
        whatever becomes of the old ones (`OptimizerGroupKeeper`); so do we where a restart failed.
        Threads that came in an orphan's place must not come twice.
        """
        group, since = incident.group_name, incident.newest_start
        asked_for = self._min_parallelisms.get(group)
        if asked_for is None or since is None:
            return Replacement.NONE
        if group in self.scaling_up and incident.last_error is not None:
            return Replacement.COMING  # a round brings the threads of those alone that failed
        live = self._ask().get(group, 0)
        newer = [
            each
            for each in self._came.get(group, ())
            if each.start_time > since
            and each.resource_id != incident.resource_id
            and each.resource_id not in self._hopeless
            # An orphan of longer standing could wait for this one, too.
            and self._numbers.get(each.resource_id, incident.incident_id) >= incident.incident_id
        ]
        if not (self.attached or is_coming(incident, self.policy, self.now)):
            # Others are expected in its stead. AMS does not count them, and scales up for them too.
            live += self._coming[group]
        registered = sum(each.thread_count for each in newer if each.registered)
        if registered and registered >= incident.thread_count and live >= asked_for:
            return Replacement.LIVE
        coming = sum(each.thread_count for each in newer if not each.registered)
        if coming and registered + coming >= incident.thread_count:
            return Replacement.COMING
        return Replacement.NONE

    @cached_property
    def _min_parallelisms(self) -> dict[str, int | None]:
        return {name: min_parallelism(group) for name, group in self.sized.items()}

    @cached_property
    def _hopeless(self) -> set[str]:
        return hopeless(self.incidents)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {each.resource_id: each.incident_id for each in self.incidents}

    @cached_property
    def _on_their_way(self) -> list[Incident]:
        """Without those that wait for a person, maybe for long."""
        sized = {name for name, least in self._min_parallelisms.items() if least is not None}
        return [i for i in self.incidents if i.group_name in sized and i.state in ON_ITS_WAY]

    @cached_property
    def _coming(self) -> Counter[str]:
        """The threads that are expected back, by group."""
        found: Counter[str] = Counter()
        for incident in self._on_their_way:
            if is_coming(incident, self.policy, self.now):
                found[incident.group_name] += incident.thread_count
        return found

    def _ask(self) -> Mapping[str, int]:
        """Who came, and the live threads by group."""
        # No cached_property: before Python 3.12 its lock lets all threads wait for one database.
        if self._live is None:
            since: dict[str, str] = {}
            for incident in self._on_their_way:
                if (start := incident.newest_start) is not None:
                    since[incident.group_name] = min(start, since.get(incident.group_name, start))
            found = self.newcomers(since)
            for each in found.resources:
                self._came.setdefault(each.group_name, []).append(each)
            self._live = found.live
        return self._live
