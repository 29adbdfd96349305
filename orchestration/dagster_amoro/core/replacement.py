"""Did others come to a group in the place of an orphan?"""

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from dagster_amoro.core.model import Incident, State
from dagster_amoro.core.policy import Replacement

# Of these no optimizer is to be expected any more.
_HOPELESS = frozenset({State.UNSUPPORTED, State.KEPT, State.GIVING_UP, State.SUPERSEDING})


class NewResource(NamedTuple):
    """A resource that a group got of late."""

    resource_id: str
    group_name: str
    thread_count: int
    start_time: str  # as the database says it; comparable with others of the same database
    registered: bool  # whether an optimizer names it


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

    AMS refills a group that is below its minimum parallelism with a new resource, whatever becomes
    of the old ones (`OptimizerGroupKeeper`); so does this keeper where a restart failed. Threads
    that came in an orphan's place must not come twice.

    Args:
        incident: The orphan's.
        new_resources: Resources of its group.
        hopeless: See above; they take nobody's place.
        live: The threads of the group's optimizers.
        min_parallelism: The group's minimum parallelism.
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
