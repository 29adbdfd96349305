"""The ledger: our own tables, with incidents and the append-only events of their stories.

`transaction` has what can be written to it, `audit_queries` what only the audit asks, and
`migrations` its schema.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from dagster_amoro.core.errors import StoreUnavailableError
from dagster_amoro.core.model import Event, EventKind, Incident, ScaleUp, State, Transition
from dagster_amoro.core.pauses import Pause, Target
from dagster_amoro.stores import leases, schema
from dagster_amoro.stores.database import Database
from dagster_amoro.stores.migrations import migrate
from dagster_amoro.stores.schema import INCIDENTS, IS_OPEN, event, incident
from dagster_amoro.stores.transaction import LedgerTransaction

# The resource's row went with the incident.
_REMOVED: Final = incident.c.state.in_([State.EXHAUSTED, State.SUPERSEDED])


class Ledger:
    """Incidents and events in a database, brought to this version's schema at first use.

    Every method raises a StoreUnavailableError where the database does not answer, or holds what
    another version wrote; nothing was written then.
    """

    def __init__(self, database: Database, *, dry_run: bool = False) -> None:
        """A ledger in `database`, which may be the registry's; a dry run marks what it writes."""
        self.database = database
        self.dry_run = dry_run
        self._migrated = False

    @contextmanager
    def transaction(self, fence: int | None = None) -> Iterator[LedgerTransaction]:
        """A transaction that writes: committed at the end, rolled back on any error.

        With the fence of a lease, it raises a LeaseLostError where that is not in force.
        """
        self._migrate()
        with self.database.writing() as connection:
            if fence is not None:
                leases.ensure(connection, fence)
            yield LedgerTransaction(connection, dry_run=self.dry_run)

    def apply(self, transition: Transition) -> Incident | None:
        """Takes one step in a transaction of its own; None: the race was lost.

        Raises a LeaseLostError where it was dispatched under a lease that is not in force.
        """
        fence = transition.before.fence if transition.before else None
        with self.transaction(fence) as transaction:
            return transaction.apply([transition])[0]

    def ensure_lease(self, fence: int) -> None:
        """Raises a LeaseLostError if the lease with this fence is not in force at this moment."""
        with self.transaction(fence):
            pass

    def renew(self, run_id: str, until: datetime) -> None:
        """Extends every claim of a run that is alive, so that it holds until `until` at least."""
        statement = (
            sa.update(incident)
            .where(IS_OPEN, incident.c.claimed_by == run_id, incident.c.claimed_until < until)
            .values(claimed_until=until, version=incident.c.version + 1)
        )
        with self.transaction() as transaction:
            transaction.connection.execute(statement)

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A transaction for queries of one's own."""
        self._migrate()
        with self.database.reading() as connection:
            try:
                yield connection
            except (ValueError, LookupError) as error:
                raise StoreUnavailableError(
                    f"the {self.database.name} holds what cannot be understood: {error}"
                ) from error

    def open_incidents(self, group_name: str | None = None) -> list[Incident]:
        """All incidents without an outcome, or those of a group; oldest first."""
        mine = () if group_name is None else (incident.c.group_name == group_name,)
        return self._incidents(IS_OPEN, *mine)

    def claimed_by(self, owner: str) -> list[Incident]:
        """The open incidents that a run, or a dispatch, has a claim on; oldest first."""
        return self._incidents(IS_OPEN, incident.c.claimed_by == owner)

    def open_incident(self, resource_id: str) -> Incident | None:
        """The open incident of a resource; None: it has none."""
        return self._incident(incident.c.open_resource_id == resource_id)

    def incident(self, incident_id: int) -> Incident | None:
        """One incident as it stands; None: there is none of this number."""
        return self._incident(incident.c.incident_id == incident_id)

    def recovered(self, since: datetime) -> list[Incident]:
        """The last incidents of resources that recovered since then; they may be open again."""
        newest = {each.resource_id: each for each in self._incidents(*self._closed(since))}
        return [each for each in newest.values() if each.state is State.RECOVERED]

    def unstable(self, since: datetime) -> dict[str, int]:
        """How many attempts each resource had used up that recovered since then.

        Attempts of a dry run count in a dry run only.
        """
        # Not by `recovered`: a tick that reads thousands needs three of twenty columns.
        attempts_used = incident.c.attempts + incident.c.prior_attempts
        query = sa.select(incident.c.resource_id, incident.c.state, attempts_used)
        query = query.where(*self._closed(since)).order_by(incident.c.incident_id)
        with self.reading() as connection:
            newest = {name: (state, used) for name, state, used in connection.execute(query)}
        return {name: used for name, (state, used) in newest.items() if state is State.RECOVERED}

    def last_removed(self, resource_id: str) -> Incident | None:
        """The incident with which a resource was last removed, in a dry run too; None: never."""
        last = sa.select(sa.func.max(incident.c.incident_id)).where(
            incident.c.resource_id == resource_id, _REMOVED
        )
        return self._incident(incident.c.incident_id == last.scalar_subquery())

    def removed_resources(self) -> list[str]:
        """The resources whose rows were ever removed, but for dry runs; the newest first."""
        query = (
            sa.select(incident.c.resource_id)
            .where(_REMOVED, incident.c.dry_run == 0)
            .group_by(incident.c.resource_id)
            .order_by(sa.func.max(incident.c.incident_id).desc())
        )
        with self.reading() as connection:
            return list(connection.scalars(query))

    def removed_in_dry_run(self) -> set[str]:
        """The resources that would not be there any more if this were no dry run.

        A resource that became an orphan again after that, outside of a dry run, is there.
        """
        newest = sa.select(sa.func.max(incident.c.incident_id)).group_by(incident.c.resource_id)
        query = sa.select(incident.c.resource_id).where(
            incident.c.incident_id.in_(newest), incident.c.dry_run == 1, _REMOVED
        )
        with self.reading() as connection:
            return set(connection.scalars(query))

    def removed_row(self, incident_id: int) -> dict[str, Any] | None:
        """The row, as the registry had it, that an incident last removed; None: there is none."""
        query = (
            sa.select(schema.removed_row.c.content)
            .where(schema.removed_row.c.incident_id == incident_id)
            .order_by(schema.removed_row.c.removal_id.desc())
            .limit(1)
        )
        with self.reading() as connection:
            content: str | None = connection.scalar(query)
            return None if content is None else json.loads(content)

    def events(self, incident_id: int) -> list[Event]:
        """The story of one incident, in the order it was written."""
        query = sa.select(*(event.c[field.name] for field in fields(Event)))
        query = query.where(event.c.incident_id == incident_id).order_by(event.c.event_id)
        with self.reading() as connection:
            return [_event(row) for row in connection.execute(query).mappings()]

    def changed_groups(self, after_event: int) -> tuple[dict[str, dict[str, int]], int]:
        """How many events of each kind each group has after an event; and the newest event.

        Server databases number events before they are committed. An event that is overtaken by a
        higher number is missed here. The group's next refresh, which looks back, has it; at the
        latest that of the group's next event.
        """
        kind = (event.c.group_name, event.c.kind)
        query = (
            sa.select(*kind, sa.func.count(), sa.func.max(event.c.event_id))
            .where(event.c.event_id > after_event, event.c.group_name.is_not(None))
            .group_by(*kind)
        )
        groups: dict[str, dict[str, int]] = {}
        newest = after_event
        with self.reading() as connection:
            for group_name, name, number, last in connection.execute(query):
                groups.setdefault(group_name, {})[name] = number
                newest = max(newest, last)
        return groups, newest

    def pauses(self) -> list[Pause]:
        """The pauses that no operator ended, including those whose time is over."""
        with self.reading() as connection:
            return [
                Pause(
                    target=Target(scope=row.scope, name=row.name),
                    author=row.author,
                    reason=row.reason,
                    paused_at=row.paused_at,
                    until=row.until,
                )
                for row in connection.execute(sa.select(schema.pause))
            ]

    def scale_ups(self) -> dict[str, ScaleUp]:
        """The rounds of every group that did not reach its min-parallelism yet, by its name."""
        columns = [schema.scale_up.c[name] for name in ScaleUp._fields]
        query = sa.select(*columns).where(schema.scale_up.c.dry_run == int(self.dry_run))
        with self.reading() as connection:
            return {row[0]: ScaleUp._make(row) for row in connection.execute(query)}

    def _closed(self, since: datetime) -> list[sa.ColumnElement[bool]]:
        """Which incidents ended since then; in a dry run those of a dry run count too."""
        ended = incident.c.closed_at > since
        return [ended] if self.dry_run else [ended, incident.c.dry_run == 0]

    def _incident(self, condition: sa.ColumnElement[bool]) -> Incident | None:
        return next(iter(self._incidents(condition)), None)

    def _incidents(self, *conditions: sa.ColumnElement[bool]) -> list[Incident]:
        query = INCIDENTS.where(*conditions).order_by(incident.c.incident_id)
        with self.reading() as connection:
            return [Incident._make(row) for row in connection.execute(query)]

    def _migrate(self) -> None:
        if not self._migrated:
            migrate(self.database)
            self._migrated = True


def _event(row: sa.RowMapping) -> Event:
    kind, details = EventKind(row["kind"]), json.loads(row["details"])
    return Event(**{**row, "kind": kind, "details": details})
