"""What ended of late, and what was lost to the fleet, so that a person should look?

Whatever reads raises StoreUnavailableError where a store does not answer.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import sqlalchemy as sa

from dagster_amoro.core.model import EventKind, Incident, State
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro.stores.registry import Registry
from dagster_amoro.stores.schema import event, incident

_FIELDS: Final = (
    *("incident_id", "resource_id", "group_name", "thread_count", "state", "attempts"),
    *("cause", "death", "last_error"),
)
_AT_ONCE: Final = 500  # incidents that one statement asks for


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """An incident that is over, or kept without attempts left, as far as people hear of it."""

    resource_id: str
    group_name: str
    state: State
    attempts: int
    closed_at: datetime  # of one that is kept: when its attempts were used up
    cause: str | None = None  # why there was an incident, in a few words, as far as anybody knows
    death: str | None = None  # the same in a sentence
    last_error: str | None = None
    thread_count: int = 0
    incident_id: int = 0

    def __str__(self) -> str:
        """As a message names it."""
        why = f"; {self.death}" if self.death else ""
        return f"{self.resource_id} (group {self.group_name}{why})"


def lost(
    ledger: Ledger, registry: Registry, opened: Sequence[Incident], since: datetime
) -> list[Ended]:
    """What was given up, or is kept, since then, and was neither restored nor acknowledged.

    `opened` are the open incidents. The oldest loss comes first.
    """
    gone = closed(ledger, since, incident.c.state == State.EXHAUSTED)
    restored = registry.present(each.resource_id for each in gone) if gone else set[str]()
    found = [each for each in gone if each.resource_id not in restored]
    found += kept(ledger, opened, since)
    seen = _happened(ledger, [each.incident_id for each in found], EventKind.ACKNOWLEDGED)
    left = (each for each in found if each.incident_id not in seen)
    return sorted(left, key=lambda each: (each.closed_at, each.resource_id))


def closed(ledger: Ledger, since: datetime, *more: sa.ColumnElement[bool]) -> list[Ended]:
    """The incidents that ended since then; none of a dry run."""
    query = sa.select(*incident.c[*_FIELDS, "closed_at"])
    query = query.where(incident.c.closed_at > since, incident.c.dry_run == 0, *more)
    with ledger.reading() as connection:
        return [Ended(**row) for row in connection.execute(query).mappings()]


def kept(ledger: Ledger, opened: Iterable[Incident], since: datetime) -> list[Ended]:
    """Those whose attempts were used up since then, and that are open still; none of a dry run."""
    every = {i.incident_id: i for i in opened if i.state is State.KEPT and not i.dry_run}
    late = {n: at for n, at in _happened(ledger, [*every], EventKind.KEPT).items() if at > since}
    shared = {n: {name: getattr(every[n], name) for name in _FIELDS} for n in late}
    return [Ended(**shared[number], closed_at=at) for number, at in late.items()]


def _happened(ledger: Ledger, numbers: Sequence[int], kind: EventKind) -> dict[int, datetime]:
    """When events of this kind happened last to incidents; those without one are left out."""
    last: dict[int, datetime] = {}
    for first in range(0, len(numbers), _AT_ONCE):
        some = event.c.incident_id.in_(numbers[first : first + _AT_ONCE])
        query = sa.select(event.c.incident_id, event.c.at).where(some, event.c.kind == kind)
        with ledger.reading() as connection:
            for number, at in connection.execute(query):
                last[number] = max(at, last.get(number, at))
    return last
