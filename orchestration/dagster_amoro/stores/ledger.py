"""The ledger: our own tables, with incidents and the append-only events of their stories.

`audit_queries` has what only the audit asks of it, and `migrations` its schema.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from dagster_amoro.core.errors import StoreUnavailableError
from dagster_amoro.core.model import Event, EventKind, Incident, ScaleUp, State, Transition
from dagster_amoro.core.pauses import Pause, Target
from dagster_amoro.stores import leases, schema
from dagster_amoro.stores.batching import Batches
from dagster_amoro.stores.database import Database, insert_unless_there
from dagster_amoro.stores.migrations import migrate
from dagster_amoro.stores.schema import INCIDENTS, IS_OPEN, event, incident

# The resource's row went with the incident.
_REMOVED: Final = incident.c.state.in_([State.EXHAUSTED, State.SUPERSEDED])


class LedgerTransaction:
    """One transaction on the ledger: everything applied through it is committed together."""

    def __init__(self, connection: sa.Connection, *, dry_run: bool = False) -> None:
        """Used through `Ledger.transaction`."""
        self.connection = connection
        self._dry_run = dry_run

    def apply(self, transitions: Iterable[Transition]) -> list[Incident | None]:
        """Takes each step whose expected state still holds, with its event.

        Returns for each the incident as it now stands, or None where the race was lost: somebody
        else moved it first, and nothing was written for it.
        """
        results = [(self._step(transition), transition) for transition in transitions]
        taken = [(moved, step) for moved, step in results if moved is not None]
        self._add_events((moved.incident_id, moved.group_name, step.event) for moved, step in taken)
        self._insert(
            schema.removed_row, [_removal(moved, step) for moved, step in taken if step.row]
        )
        return [moved for moved, _ in results]

    def add_pause(self, pause: Pause) -> None:
        """Pauses a target; an earlier pause of this target ends."""
        self.end_pause(pause.target)
        values = asdict(pause)
        values |= values.pop("target")
        self._insert(schema.pause, [values])

    def end_pause(self, target: Target) -> bool:
        """Ends the pause of a target; False: it was not paused."""
        chosen = (schema.pause.c.scope == target.scope, schema.pause.c.name == target.name)
        return self._found(sa.delete(schema.pause).where(*chosen))

    def move_scale_up(self, before: ScaleUp | None, after: ScaleUp) -> bool:
        """Takes a step of a group's scale-up; `before` is None where the group had none.

        False: somebody else moved it first; nothing was written.
        """
        values = after._asdict() | {"dry_run": int(self._dry_run)}
        if before is None:
            return insert_unless_there(self.connection, schema.scale_up, values)
        return self._found(sa.update(schema.scale_up).where(*self._as(before)).values(values))

    def forget_scale_up(self, scale_up: ScaleUp) -> bool:
        """Forgets a group's scale-up; False: somebody else moved it first, and it stays."""
        return self._found(sa.delete(schema.scale_up).where(*self._as(scale_up)))

    def add_event(
        self, event: Event, incident: Incident | None = None, *, group_name: str | None = None
    ) -> None:
        """Adds an event that moves no incident.

        It belongs to the story of an incident; or concerns a group; or, with neither, every group.
        """
        of = (incident.incident_id, incident.group_name) if incident else (None, group_name)
        self._add_events([(*of, event)])

    def _as(self, read: ScaleUp) -> list[sa.ColumnElement[bool]]:
        """Chooses a scale-up where it is still as it was read."""
        columns = schema.scale_up.c
        names = ("group_name", "resource_id", "version")
        same = [columns[name] == getattr(read, name) for name in names]
        return [*same, columns.dry_run == int(self._dry_run)]

    def _found(self, statement: sa.Update | sa.Delete) -> bool:
        return self.connection.execute(statement).rowcount > 0

    def _insert(self, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
        if rows:
            self.connection.execute(sa.insert(table), rows)

    def _add_events(self, events: Iterable[tuple[int | None, str | None, Event]]) -> None:
        prefix = "dry run, nothing is done: " if self._dry_run else ""
        mark = {"dry_run": True} if self._dry_run else {}
        rows = [
            {
                "incident_id": incident_id,
                "group_name": group_name,
                "kind": str(new.kind),
                "at": new.at,
                "message": f"{prefix}{new.message}",
                "attempt": new.attempt,
                "run_id": new.run_id,
                "details": json.dumps({**new.details, **mark}, ensure_ascii=False),
            }
            for incident_id, group_name, new in events
        ]
        self._insert(event, rows)

    def _step(self, transition: Transition) -> Incident | None:
        before, after = transition.before, transition.after
        # An incident of a dry run stays one if it ends before its attempts were struck out.
        unsettled = before is not None and before.dry_run and not after.is_open
        after = after._replace(dry_run=self._dry_run or unsettled)
        is_open = after.resource_id if after.is_open else None
        row = after._asdict() | {"open_resource_id": is_open, "dry_run": int(after.dry_run)}
        del row["incident_id"]
        if before is None:
            if not insert_unless_there(self.connection, incident, row):
                return None
            query = INCIDENTS.where(incident.c.open_resource_id == after.resource_id)
            return Incident._make(self.connection.execute(query).one())
        names = ("incident_id", "state", "version")
        same = [incident.c[name] == getattr(before, name) for name in names]
        return after if self._found(sa.update(incident).where(*same).values(row)) else None


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
        self._batches: dict[int | None, Batches[Transition, Incident | None]] = {}  # by lease
        self._identity: str | None = None

    @property
    def identity(self) -> str:
        """What tells this ledger from every other, 32 hexadecimal digits; read once."""
        if self._identity is None:
            with self._reading() as connection:
                identity = sa.select(schema.ledger.c.identity)
                self._identity = connection.scalars(identity).one()
        return self._identity

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
        return self._steps(fence).do(transition)

    def _steps(self, fence: int | None) -> Batches[Transition, Incident | None]:
        """The steps of all threads that act under one lease, a transaction for several of them."""

        def take(steps: Sequence[Transition]) -> list[Incident | None]:
            with self.transaction(fence) as transaction:
                return transaction.apply(steps)

        return self._batches.setdefault(fence, Batches(take))

    def ensure_lease(self, fence: int) -> None:
        """Raises a LeaseLostError if the lease with this fence is not in force at this moment."""
        with self.transaction(fence):
            pass

    def renew(self, run_id: str, until: datetime) -> None:
        """Extends every claim of a run that is alive, so that it holds until `until` at least."""
        mine = (IS_OPEN, incident.c.claimed_by == run_id, incident.c.claimed_until < until)
        values = {"claimed_until": until, "version": incident.c.version + 1}
        with self.transaction() as transaction:
            transaction.connection.execute(sa.update(incident).where(*mine).values(values))

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A transaction for queries of one's own."""
        self._migrate()
        with self.database.reading() as connection:
            yield connection

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        """For the ledger's own queries, which know what every value means."""
        with self.reading() as connection:
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
        with self._reading() as connection:
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
        newest = sa.func.max(incident.c.incident_id)
        query = sa.select(incident.c.resource_id).where(_REMOVED, incident.c.dry_run == 0)
        query = query.group_by(incident.c.resource_id).order_by(newest.desc())
        with self._reading() as connection:
            return list(connection.scalars(query))

    def removed_in_dry_run(self) -> set[str]:
        """The resources that would not be there any more if this were no dry run.

        A resource that became an orphan again after that, outside of a dry run, is there.
        """
        newest = sa.select(sa.func.max(incident.c.incident_id)).group_by(incident.c.resource_id)
        query = sa.select(incident.c.resource_id).where(
            incident.c.incident_id.in_(newest), incident.c.dry_run == 1, _REMOVED
        )
        with self._reading() as connection:
            return set(connection.scalars(query))

    def removed_row(self, incident_id: int) -> dict[str, Any] | None:
        """The row, as the registry had it, that an incident last removed; None: there is none."""
        of = schema.removed_row.c
        query = sa.select(of.content).where(of.incident_id == incident_id)
        with self._reading() as connection:
            content = connection.scalar(query.order_by(of.removal_id.desc()).limit(1))
            return None if content is None else json.loads(content)

    def events(self, incident_id: int) -> list[Event]:
        """The story of one incident, in the order it was written."""
        query = sa.select(*(event.c[field.name] for field in fields(Event)))
        query = query.where(event.c.incident_id == incident_id).order_by(event.c.event_id)
        with self._reading() as connection:
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
        with self._reading() as connection:
            for group_name, name, number, last in connection.execute(query):
                groups.setdefault(group_name, {})[name] = number
                newest = max(newest, last)
        return groups, newest

    def pauses(self) -> list[Pause]:
        """The pauses that no operator ended, including those whose time is over."""
        with self._reading() as connection:
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
        with self._reading() as connection:
            return {row[0]: ScaleUp._make(row) for row in connection.execute(query)}

    def _closed(self, since: datetime) -> list[sa.ColumnElement[bool]]:
        """Which incidents ended since then; in a dry run those of a dry run count too."""
        ended = incident.c.closed_at > since
        return [ended] if self.dry_run else [ended, incident.c.dry_run == 0]

    def _incident(self, condition: sa.ColumnElement[bool]) -> Incident | None:
        return next(iter(self._incidents(condition)), None)

    def _incidents(self, *conditions: sa.ColumnElement[bool]) -> list[Incident]:
        query = INCIDENTS.where(*conditions).order_by(incident.c.incident_id)
        with self._reading() as connection:
            return [Incident._make(row) for row in connection.execute(query)]

    def _migrate(self) -> None:
        if not self._migrated:
            migrate(self.database)
            self._migrated = True


def count_open(database: Database) -> int:
    """How many incidents wait for their outcome; where there is a ledger, which is not changed."""
    query = sa.select(sa.func.count()).where(IS_OPEN)
    with database.reading() as connection:
        return connection.scalar(query) or 0


def _removal(of: Incident, step: Transition) -> dict[str, Any]:
    content = json.dumps(dict(step.row or {}), ensure_ascii=False)
    return {"incident_id": of.incident_id, "kept_at": step.event.at, "content": content}


def _event(row: sa.RowMapping) -> Event:
    kind, details = EventKind(row["kind"]), json.loads(row["details"])
    return Event(**{**row, "kind": kind, "details": details})
