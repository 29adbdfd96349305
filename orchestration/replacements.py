"""Did others come in the place of an orphan, by what registry and ledger say?"""

from collections.abc import Iterable, Mapping

from orchestration.keeper import Keeper
from orchestration.keeping import groups
from orchestration.keeping.groups import Group
from orchestration.keeping.model import Incident
from orchestration.keeping.policy import StandIn
from orchestration.keeping.refill import is_coming
from orchestration.keeping.refilled import Newcomer, hopeless, stand_in


class Replacements:
    """Looks at groups that have a floor; asks the registry when the first orphan is asked about."""

    def __init__(
        self,
        keeper: Keeper,
        sized: Mapping[str, Group],
        incidents: Iterable[Incident],
        refilling: Iterable[str] = (),
    ) -> None:
        """What came to the groups of these incidents.

        Args:
            keeper: Whose stores are asked.
            sized: The groups that may have a floor, by name.
            incidents: The open incidents of these groups, or more.
            refilling: The groups that a run is about to give a new resource.
        """
        self._keeper = keeper
        self._floors = {name: groups.floor(group) for name, group in sized.items()}
        self._incidents = incidents
        self._refilling = frozenset(refilling)
        self._hopeless: set[str] = set()
        self._numbers: dict[str, int] = {}
        self._live: dict[str, int] = {}
        self._newcomers: dict[str, list[Newcomer]] | None = None

    def stand_in(self, incident: Incident) -> StandIn:
        """What came to the group of an orphan; see `orchestration.keeping.refilled`."""
        group = incident.group_name
        floor = self._floors.get(group)
        if floor is None or incident.newest_start is None:
            return StandIn.NONE
        if group in self._refilling and incident.last_error is not None:
            return StandIn.COMING  # a refill brings the threads of those alone that failed
        return stand_in(
            incident,
            self._newcomers_to(incident),
            hopeless=self._hopeless,
            live=self._live.get(group, 0) + self._expected(incident),
            floor=floor,
        )

    def _expected(self, incident: Incident) -> int:
        """For one that is not expected any more: the threads of the orphans that are.

        AMS does not count them, and refills for them as well.
        """
        policy, now = self._keeper.policy, self._keeper.clock()
        if self._keeper.ams is not None or is_coming(incident, policy, now):
            return 0
        mates = (each for each in self._incidents if each.group_name == incident.group_name)
        return sum(each.thread_count for each in mates if is_coming(each, policy, now))

    def _newcomers_to(self, incident: Incident) -> list[Newcomer]:
        """The newcomers, but for orphans of longer standing, which could wait for this one too."""
        newcomers = self._looked().get(incident.group_name, [])
        return [
            each
            for each in newcomers
            if self._numbers.get(each.resource_id, incident.incident_id) >= incident.incident_id
        ]

    def _looked(self) -> dict[str, list[Newcomer]]:
        if self._newcomers is None:
            since: dict[str, str] = {}
            for incident in self._incidents:
                start = incident.newest_start
                if start is not None and self._floors.get(incident.group_name) is not None:
                    since[incident.group_name] = min(start, since.get(incident.group_name, start))
            self._hopeless = hopeless(self._incidents)
            self._numbers = {each.resource_id: each.incident_id for each in self._incidents}
            self._newcomers = {}
            for each in self._keeper.registry.newcomers(since):
                self._newcomers.setdefault(each.group_name, []).append(each)
            capacity = self._keeper.registry.capacity(since) if since else {}
            self._live = {name: live for name, (_, live) in capacity.items()}
        return self._newcomers


def group_obstacle(keeper: Keeper, group: Group | None) -> str | None:
    """Why the orphans of a group are not to be restarted; None: they are."""
    if group is None or group.name in keeper.dynamic_groups or not groups.is_dynamic(group):
        return None
    return (
        "its group is under dynamic allocation, and is sized by that alone "
        f"(keeper.groups.{group.name}.dynamic-allocation: restart would change it)"
    )
