"""Did others come to a group in the place of an orphan?"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import KW_ONLY, dataclass, field
from datetime import datetime
from functools import cached_property
from typing import NamedTuple

from dagster_amoro.core.groups import Group, min_parallelism
from dagster_amoro.core.model import Incident, State
from dagster_amoro.core.policy import ON_ITS_WAY, Replacement, RestartPolicy, due_at, is_coming

# Of these no optimizer is to be expected any more.
_HOPELESS = frozenset(
    {*(State.UNSUPPORTED, State.KEPT, State.GIVING_UP, State.SUPERSEDING, State.RELEASING)}
)


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


def _order(resource: NewResource) -> tuple[str, str]:
    """By age; of two that were recorded at the same time one counts as older."""
    return resource.start_time, resource.resource_id


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
    _wanted: dict[str, tuple[set[str], bool]] = field(default_factory=dict, init=False)

    def of(self, incident: Incident) -> Replacement:
        """What came to the group of an orphan since it was seen alive last.

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
        if not (self.attached or is_coming(incident, self.policy, self.now)):
            # Others are expected in its stead. AMS does not count them, and scales up for them too.
            live += self._coming.get(group, 0)
        registered, unregistered = self._newer(incident, since)
        if registered and registered >= incident.thread_count:
            if live >= asked_for:
                return Replacement.LIVE
            if self.attached and not self._is_wanted(incident, asked_for - live):
                return Replacement.COMING
        if unregistered and registered + unregistered >= incident.thread_count:
            return Replacement.COMING
        return Replacement.NONE

    def _newer(self, incident: Incident, since: str) -> tuple[int, int]:
        """The threads that came to its group since then: those that registered, and the others."""
        came = self._came.get(incident.group_name, ())
        # Where it came itself since, only those after it: of two, one alone waits for the other.
        own = max((_order(x) for x in came if x.resource_id == incident.resource_id), default=None)
        newer = [
            each
            for each in came
            if each.start_time > since
            and (own is None or _order(each) > own)
            and each.resource_id not in self._hopeless
        ]
        registered = sum(each.thread_count for each in newer if each.registered)
        return registered, sum(each.thread_count for each in newer) - registered

    def _is_wanted(self, incident: Incident, missing: int) -> bool:
        """Whether an orphan in whose place others came is to come back all the same.

        So many threads are missing in its group, since others died as well.
        """
        group = incident.group_name
        if group not in self._wanted:
            self._wanted[group] = self._choose(group, missing)
        wanted, are_enough = self._wanted[group]
        return incident.resource_id in wanted or not are_enough

    def _choose(self, group: str, missing: int) -> tuple[set[str], bool]:
        """Which orphans of a group are to come back, and whether these are enough.

        Those that were just restarted, and those in whose place nobody came; of the others as many
        as it takes, beginning with those that died last: AMS may still refill for them.
        """
        chosen: list[Incident] = []
        others: list[Incident] = []
        for each in self._expected[group]:
            is_begun = bool(each.attempts) and self.now < due_at(each, self.policy)
            (chosen if is_begun or not self._is_replaced(each) else others).append(each)
        missing -= sum(each.thread_count for each in chosen)
        others.sort(key=lambda each: (each.detected_at, each.thread_count), reverse=True)
        left: list[Incident] = []
        for each in others:
            fits = each.thread_count <= missing
            (chosen if fits else left).append(each)
            missing -= each.thread_count * fits
        if left and missing > 0:
            last = min(left, key=lambda each: each.thread_count)
            chosen.append(last)
            missing -= last.thread_count
        return {each.resource_id for each in chosen}, missing <= 0

    def _is_replaced(self, incident: Incident) -> bool:
        since = incident.newest_start
        return since is not None and self._newer(incident, since)[0] >= incident.thread_count

    @cached_property
    def _min_parallelisms(self) -> dict[str, int | None]:
        return {name: min_parallelism(group) for name, group in self.sized.items()}

    @cached_property
    def _hopeless(self) -> set[str]:
        return hopeless(self.incidents)

    @cached_property
    def _on_their_way(self) -> list[Incident]:
        """Without those that wait for a person, maybe for long."""
        sized = {name for name, least in self._min_parallelisms.items() if least is not None}
        return [i for i in self.incidents if i.group_name in sized and i.state in ON_ITS_WAY]

    @cached_property
    def _expected(self) -> defaultdict[str, list[Incident]]:
        """Those that are expected back, by group."""
        found: defaultdict[str, list[Incident]] = defaultdict(list)
        for incident in self._on_their_way:
            if is_coming(incident, self.policy, self.now):
                found[incident.group_name].append(incident)
        return found

    @cached_property
    def _coming(self) -> dict[str, int]:
        """The threads that are expected back, by group."""
        expected = self._expected.items()
        return {name: sum(each.thread_count for each in group) for name, group in expected}

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
