"""What can be asked of the ledger: incidents, their events, pauses, and scale-ups."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from dagster_amoro.core.errors import StoreUnavailableError
from dagster_amoro.core.model import Event, EventKind, Incident, State
from dagster_amoro.core.pauses import Pause, Scope, Target
from dagster_amoro.core.scale_up import ScaleUp, ScaleUpState
from dagster_amoro.stores.database import Database
from dagster_amoro.stores.migrations import migrate
from dagster_amoro.stores.schema import event, incident, pause, removed_row, scale_up

IS_OPEN: Final = incident.c.open_resource_id.is_not(None)
INCIDENTS: Final = sa.select(*(incident.c[name] for name in Incident._fields))
_REMOVED: Final = (State.EXHAUSTED, State.SUPERSEDED)  # the resource's row went with the incident


class LedgerReader:
    """Answers from a ledger; every method raises a `StoreUnavailableError` where there is none."""

    def __init__(self, database: Database, *, dry_run: bool = False) -> None:
        """A ledger in `database`, which may be the registry's; a dry run marks what it writes."""
        self.database = database
        self.dry_run = dry_run
        self._migrated = False

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A transaction for queries of one's own.

        Raises:
            StoreUnavailableError: The ledger did not answer.
        """
        self._migrate()
        with self.database.reading() as connection:
            yield connection

    def open_incidents(self, group_name: str | None = None) -> list[Incident]:
        """All incidents without an outcome, or those of a group; oldest first."""
        query = INCIDENTS.where(IS_OPEN).order_by(incident.c.incident_id)
        if group_name is not None:
            query = query.where(incident.c.group_name == group_name)
        return self._incidents(query)

    def claimed_by(self, owner: str) -> list[Incident]:
        """The open incidents that a run, or a dispatch, has a claim on; oldest first."""
        claimed = incident.c.claimed_by == owner
        return self._incidents(INCIDENTS.where(IS_OPEN, claimed).order_by(incident.c.incident_id))

    def open_incident(self, resource_id: str) -> Incident | None:
        """The open incident of a resource; None: it has none."""
        return self._incident(INCIDENTS.where(incident.c.open_resource_id == resource_id))

    def incident(self, incident_id: int) -> Incident | None:
        """One incident as it stands; None: there is none of this number."""
        return self._incident(INCIDENTS.where(incident.c.incident_id == incident_id))

    def recovered(self, since: datetime) -> list[Incident]:
        """The last incidents of resources that recovered since then; they may be open again."""
        newest = {each.resource_id: each for each in self._incidents(self._closed(since))}
        return [each for each in newest.values() if each.state is State.RECOVERED]

    def unstable(self, since: datetime) -> dict[str, int]:
        """How many attempts each resource had used up that recovered since then.

        Attempts of a dry run count in a dry run only.
        """
        # Not by `recovered`: a tick that reads thousands needs three of twenty columns.
        attempts_used = incident.c.attempts + incident.c.prior_attempts
        columns = (incident.c.resource_id, incident.c.state, attempts_used)
        with self._understanding() as connection:
            found = connection.execute(self._closed(since).with_only_columns(*columns))
            newest = {resource_id: (state, used) for resource_id, state, used in found}
        return {name: used for name, (state, used) in newest.items() if state is State.RECOVERED}

    def last_removed(self, resource_id: str) -> Incident | None:
        """The incident with which a resource was last removed, in a dry run too; None: never."""
        removed = (incident.c.resource_id == resource_id, incident.c.state.in_(_REMOVED))
        query = INCIDENTS.where(*removed).order_by(incident.c.incident_id.desc())
        return self._incident(query.limit(1))

    def removed_resources(self) -> list[str]:
        """The resources whose rows were ever removed, but for dry runs; the newest first."""
        query = (
            sa.select(incident.c.resource_id)
            .where(incident.c.state.in_(_REMOVED), incident.c.dry_run == 0)
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
        ended = (
            incident.c.incident_id.in_(newest),
            incident.c.dry_run == 1,
            incident.c.state.in_(_REMOVED),
        )
        with self.reading() as connection:
            return set(connection.scalars(sa.select(incident.c.resource_id).where(*ended)))

    def removed_row(self, incident_id: int) -> dict[str, Any] | None:
        """The resource row that was last kept before an incident removed it; None: there is none.

        Its columns are as the registry stored them.
        """
        query = (
            sa.select(removed_row.c.content)
            .where(removed_row.c.incident_id == incident_id)
            .order_by(removed_row.c.removal_id.desc())
            .limit(1)
        )
        with self.reading() as connection:
            content: str | None = connection.scalar(query)
            return None if content is None else json.loads(content)

    def events(self, incident_id: int) -> list[Event]:
        """The story of one incident, in the order it was written."""
        query = (
            sa.select(event).where(event.c.incident_id == incident_id).order_by(event.c.event_id)
        )
        with self._understanding() as connection:
            return [_event(row) for row in connection.execute(query).mappings()]

    def changed_groups(self, after_event: int) -> tuple[dict[str, dict[str, int]], int]:
        """How many events of each kind each group has after an event; and the newest event.

        Server databases number events before they are committed. An event that is overtaken by a
        higher number is missed here. The group's next refresh, which looks back, has it; at the
        latest that of the group's next event.
        """
        query = (
            sa.select(
                event.c.group_name,
                event.c.kind,
                sa.func.count().label("number"),
                sa.func.max(event.c.event_id).label("newest"),
            )
            .where(event.c.event_id > after_event, event.c.group_name.is_not(None))
            .group_by(event.c.group_name, event.c.kind)
        )
        with self.reading() as connection:
            rows = connection.execute(query).all()
        groups: dict[str, dict[str, int]] = {}
        for row in rows:
            groups.setdefault(row.group_name, {})[row.kind] = row.number
        return groups, max((row.newest for row in rows), default=after_event)

    def pauses(self) -> list[Pause]:
        """The pauses that no operator ended, including those whose time is over."""
        with self._understanding() as connection:
            return [
                Pause(
                    target=Target(scope=Scope(row.scope), name=row.name),
                    author=row.author,
                    reason=row.reason,
                    paused_at=row.paused_at,
                    until=row.until,
                )
                for row in connection.execute(sa.select(pause))
            ]

    def scale_ups(self) -> dict[str, ScaleUp]:
        """The rounds of every group that did not reach its min-parallelism yet, by its name."""
        columns = [scale_up.c[name] for name in ScaleUp._fields]
        query = sa.select(*columns).where(scale_up.c.dry_run == int(self.dry_run))
        with self._understanding() as connection:
            found = [ScaleUp._make(row) for row in connection.execute(query)]
            return {
                each.group_name: each._replace(state=ScaleUpState(each.state)) for each in found
            }

    def _closed(self, since: datetime) -> sa.Select[Any]:
        """The incidents that ended since then, oldest first."""
        query = INCIDENTS.where(incident.c.closed_at > since).order_by(incident.c.incident_id)
        return query if self.dry_run else query.where(incident.c.dry_run == 0)

    def _incident(self, query: sa.Select[Any]) -> Incident | None:
        return next(iter(self._incidents(query)), None)

    def _incidents(self, query: sa.Select[Any]) -> list[Incident]:
        with self._understanding() as connection:
            return [Incident._make(row) for row in connection.execute(query)]

    @contextmanager
    def _understanding(self) -> Iterator[sa.Connection]:
        """As `reading`, where a ValueError says that another version wrote what is there."""
        with self.reading() as connection:
            try:
                yield connection
            except ValueError as error:
                raise StoreUnavailableError(
                    f"the {self.database.name} holds what cannot be understood: {error}"
                ) from error

    def _migrate(self) -> None:
        if not self._migrated:
            migrate(self.database)
            self._migrated = True


def _event(row: Mapping[Any, Any]) -> Event:
    return Event(
        kind=EventKind(row["kind"]),
        at=row["at"],
        message=row["message"],
        attempt=row["attempt"],
        run_id=row["run_id"],
        details=json.loads(row["details"]),
    )
