"""Did others come in the place of an orphan, by what registry and ledger say?"""

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime

from dagster_amoro.core import groups
from dagster_amoro.core.groups import Group
from dagster_amoro.core.model import Incident
from dagster_amoro.core.policy import Replacement
from dagster_amoro.core.replacement import NewResource, hopeless, replacement
from dagster_amoro.core.scale_up import ON_ITS_WAY, is_coming
from dagster_amoro.healing.keeper import Keeper


class Replacements:
    """Looks at groups that have a min-parallelism; asks the registry only when asked."""

    def __init__(
        self,
        keeper: Keeper,
        sized: Mapping[str, Group],
        incidents: Iterable[Incident],
        *,
        scaling_up: Iterable[str],
        now: datetime,
    ) -> None:
        """What came to the groups of these incidents.

        Args:
            keeper: Whose stores are asked.
            sized: The groups that may have a min-parallelism, by name.
            incidents: The open incidents of these groups, or more.
            scaling_up: The groups that a run is about to give a new resource.
            now: Aware UTC.
        """
        self._keeper = keeper
        self._min_parallelisms = {
            name: groups.min_parallelism(group) for name, group in sized.items()
        }
        self._incidents = incidents
        self._scaling_up = frozenset(scaling_up)
        self._now = now
        self._hopeless: set[str] = set()
        self._numbers: dict[str, int] = {}
        self._live: dict[str, int] = {}
        self._coming: Counter[str] = Counter()  # threads by group
        self._new_resources: dict[str, list[NewResource]] | None = None

    def replacement(self, incident: Incident) -> Replacement:
        """What came to the group of an orphan; see `dagster_amoro.core.replacement`."""
        group = incident.group_name
        min_parallelism = self._min_parallelisms.get(group)
        if min_parallelism is None or incident.newest_start is None:
            return Replacement.NONE
        if group in self._scaling_up and incident.last_error is not None:
            return Replacement.COMING  # a refill brings the threads of those alone that failed
        return replacement(
            incident,
            self._new_resources_for(incident),
            hopeless=self._hopeless,
            live=self._live.get(group, 0) + self._expected(incident),
            min_parallelism=min_parallelism,
        )

    def _expected(self, incident: Incident) -> int:
        """For one that is not expected any more: the threads of the orphans that are.

        AMS does not count them, and refills for them as well.
        """
        if self._keeper.ams is not None or self._is_coming(incident):
            return 0
        return self._coming[incident.group_name]

    def _is_coming(self, incident: Incident) -> bool:
        return is_coming(incident, self._keeper.policy, self._now)

    def _new_resources_for(self, incident: Incident) -> list[NewResource]:
        """The newcomers, but for orphans of longer standing, which could wait for this one too."""
        new_resources = self._looked().get(incident.group_name, [])
        return [
            each
            for each in new_resources
            if self._numbers.get(each.resource_id, incident.incident_id) >= incident.incident_id
        ]

    def _looked(self) -> dict[str, list[NewResource]]:
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
            for each in self._keeper.registry.new_resources(since):
                self._new_resources.setdefault(each.group_name, []).append(each)
            capacity = self._keeper.registry.capacity(since) if since else {}
            self._live = {name: live for name, (_, live) in capacity.items()}
        return self._new_resources


def group_obstacle(keeper: Keeper, group: Group | None) -> str | None:
    """Why the orphans of a group are not to be restarted; None: they are."""
    if group is None or group.name in keeper.dynamic_groups or not groups.is_dynamic(group):
        return None
    return (
        "its group is under dynamic allocation, and is sized by that alone "
        f"(keeper.groups.{group.name}.dynamic-allocation: restart would change it)"
    )
