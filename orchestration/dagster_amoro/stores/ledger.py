"""The ledger: our own tables, incidents and the append-only events of their story."""

import json
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError

from dagster_amoro.core.errors import StoreUnavailableError
from dagster_amoro.core.model import Event, EventKind, Incident, State, Transition
from dagster_amoro.core.pauses import Pause, Scope, Target
from dagster_amoro.core.scale_up import ScaleUp, ScaleUpState
from dagster_amoro.stores import leases, schema
from dagster_amoro.stores.database import Database, insert_unless_there
from dagster_amoro.stores.schema import event, incident, removed_row

VERSION_TABLE: Final = "keeper_schema_version"
_MIGRATIONS: Final = Path(__file__).parent / "migrations"
_ALEMBIC: Final = threading.Lock()  # its `op` and `context` are one for all threads

_DRY: Final = "dry run, nothing is done: "  # begins what it tells
_FIELDS: Final = [incident.c[name] for name in Incident._fields]
_REMOVED: Final = (State.EXHAUSTED, State.SUPERSEDED)  # with its row
_OPEN: Final = incident.c.open_resource_id.is_not(None)
# The events in which a tick notes the threads of the group.
_NOTED: Final = (
    EventKind.DETECTED,
    EventKind.RECOVERED,
    EventKind.EXHAUSTED,
    EventKind.RELEASED,
    EventKind.SUPERSEDED,
)


class LedgerTransaction:
    """One transaction on the ledger: everything applied through it is committed together."""

    def __init__(self, connection: sa.Connection, *, dry_run: bool = False) -> None:
        """Used through `Ledger.transaction`."""
        self.connection = connection
        self._dry_run = dry_run

    def apply(self, transitions: Iterable[Transition]) -> list[Incident | None]:
        """Takes each step whose expected state still holds, with its event.

        Returns:
            For each transition the incident as it now stands, or None where the race was lost:
            somebody else moved it first, and nothing was written for it.
        """
        results = [(self._step(transition), transition) for transition in transitions]
        taken = [(moved, step) for moved, step in results if moved is not None]
        self._add_events((moved.incident_id, moved.group_name, step.event) for moved, step in taken)
        self._insert(removed_row, [_kept(moved, step) for moved, step in taken if step.row])
        return [moved for moved, _ in results]

    def add_pause(self, pause: Pause) -> None:
        """Pauses a target, in the place of an earlier pause of the same."""
        self.end_pause(pause.target)
        values = {
            "scope": str(pause.target.scope),
            "name": pause.target.name,
            "reason": pause.reason,
            "author": pause.author,
            "paused_at": pause.paused_at,
            "until": pause.until,
        }
        self._insert(schema.pause, [values])

    def end_pause(self, target: Target) -> bool:
        """Ends the pause of a target; False: it was not paused."""
        chosen = (schema.pause.c.scope == str(target.scope), schema.pause.c.name == target.name)
        return self.connection.execute(sa.delete(schema.pause).where(*chosen)).rowcount > 0

    def move_scale_up(self, before: ScaleUp | None, after: ScaleUp) -> bool:
        """Takes a step of a group's rounds, if they stand where they were expected to."""
        values = after._asdict() | {"state": str(after.state), "dry_run": int(self._dry_run)}
        if before is None:
            insert = insert_unless_there(schema.scale_up, self.connection.dialect.name)
            counting = insert.execution_options(preserve_rowcount=True)
            return self.connection.execute(counting, values).rowcount == 1
        expected = self._expected(before)
        update = sa.update(schema.scale_up).where(*expected).values(values)
        return self.connection.execute(update).rowcount == 1

    def forget_scale_up(self, scale_up: ScaleUp) -> bool:
        """Forgets a group's rounds, likewise."""
        delete = sa.delete(schema.scale_up).where(*self._expected(scale_up))
        return self.connection.execute(delete).rowcount == 1

    def add_event(
        self, event: Event, incident: Incident | None = None, *, group_name: str | None = None
    ) -> None:
        """Adds an event that moves no incident.

        Args:
            event: The event.
            incident: The incident whose story it belongs to; None: it is about no incident.
            group_name: The group that it concerns where it is about no incident; None: it concerns
                every group.
        """
        of = (incident.incident_id, incident.group_name) if incident else (None, group_name)
        self._add_events([(*of, event)])

    def _expected(self, scale_up: ScaleUp) -> tuple[sa.ColumnElement[bool], ...]:
        columns = schema.scale_up.c
        return (
            columns.group_name == scale_up.group_name,
            columns.dry_run == int(self._dry_run),
            columns.resource_id == scale_up.resource_id,
            columns.version == scale_up.version,
        )

    def _add_events(self, events: Iterable[tuple[int | None, str | None, Event]]) -> None:
        rows = [_event_row(*told, dry_run=self._dry_run) for told in events]
        self._insert(event, rows)

    def _insert(self, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
        if rows:
            self.connection.execute(sa.insert(table), rows)

    def _step(self, transition: Transition) -> Incident | None:
        after = transition.after
        # One that ends before the attempts of a dry run were struck out stays one of the dry run.
        unsettled = transition.before is not None and transition.before.dry_run
        dry_run = self._dry_run or (unsettled and not after.is_open)
        if after.dry_run != dry_run:
            after = after._replace(dry_run=dry_run)
        if transition.before is None:
            return self._open(after)
        return after if self._move(transition.before, after) else None

    def _open(self, new: Incident) -> Incident | None:
        insert = insert_unless_there(incident, self.connection.dialect.name)
        counting = insert.execution_options(preserve_rowcount=True)  # PostgreSQL's is lost else
        if self.connection.execute(counting, _incident_row(new)).rowcount != 1:
            return None
        query = sa.select(*_FIELDS).where(incident.c.open_resource_id == new.resource_id)
        return Incident._make(self.connection.execute(query).one())

    def _move(self, before: Incident, after: Incident) -> bool:
        expected = (
            incident.c.incident_id == before.incident_id,
            incident.c.state == before.state,
            incident.c.version == before.version,
        )
        update = sa.update(incident).where(*expected).values(_incident_row(after))
        return self.connection.execute(update).rowcount == 1


class Ledger:
    """Incidents and events in a database, brought to this version's schema at first use."""

    def __init__(self, database: Database, *, dry_run: bool = False) -> None:
        """A ledger in `database`, which may be the registry's.

        Whatever a dry run writes says so.
        """
        self.database = database
        self.dry_run = dry_run
        self._migrated = False

    @contextmanager
    def transaction(self, fence: int | None = None) -> Iterator[LedgerTransaction]:
        """One transaction; with a fence, one of the deployment that has the lease.

        Raises:
            StoreUnavailableError: Nothing of it was written.
            LeaseLostError: Nothing either, since the lease with this fence is not in force.
        """
        self._migrate()
        with self.database.writing() as connection:
            if fence is not None:
                leases.ensure(connection, fence)
            yield LedgerTransaction(connection, dry_run=self.dry_run)

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A connection for queries of one's own.

        Raises:
            StoreUnavailableError: The ledger did not answer.
        """
        self._migrate()
        with self.database.reading() as connection:
            yield connection

    def apply(self, transition: Transition) -> Incident | None:
        """Takes one step in a transaction of its own; None: the race was lost.

        Raises:
            LeaseLostError: The incident was handed over under a lease that is not in force.
        """
        fence = transition.before.fence if transition.before else None
        with self.transaction(fence) as ledger:
            return ledger.apply([transition])[0]

    def ensure_lease(self, fence: int) -> None:
        """Makes sure that the lease with this fence is in force at this moment.

        Raises:
            LeaseLostError: It is not.
        """
        with self.transaction(fence):
            pass

    def open_incidents(self, group_name: str | None = None) -> list[Incident]:
        """All incidents without an outcome, or those of a group; oldest first."""
        query = sa.select(*_FIELDS).where(_OPEN).order_by(incident.c.incident_id)
        if group_name is not None:
            query = query.where(incident.c.group_name == group_name)
        return self._incidents(query)

    def claimed_by(self, owner: str) -> list[Incident]:
        """The open incidents that a run, or a dispatch, has a claim on; oldest first."""
        query = (
            sa.select(*_FIELDS)
            .where(_OPEN, incident.c.claimed_by == owner)
            .order_by(incident.c.incident_id)
        )
        return self._incidents(query)

    def open_incident(self, resource_id: str) -> Incident | None:
        """The open incident of a resource; None: it has none."""
        query = sa.select(*_FIELDS).where(incident.c.open_resource_id == resource_id)
        return next(iter(self._incidents(query)), None)

    def recovered(self, since: datetime) -> list[Incident]:
        """The last incidents of resources that recovered since then; they may be open again."""
        query = (
            sa.select(*_FIELDS).where(incident.c.closed_at > since).order_by(incident.c.incident_id)
        )
        if not self.dry_run:
            query = query.where(incident.c.dry_run == 0)
        newest = {each.resource_id: each for each in self._incidents(query)}
        return [each for each in newest.values() if each.state is State.RECOVERED]

    def last_removed(self, resource_id: str) -> Incident | None:
        """The incident with which a resource was last removed, in a dry run too; None: never."""
        query = (
            sa.select(*_FIELDS)
            .where(incident.c.resource_id == resource_id, incident.c.state.in_(_REMOVED))
            .order_by(incident.c.incident_id.desc())
            .limit(1)
        )
        return next(iter(self._incidents(query)), None)

    def removed_resources(self) -> list[str]:
        """The resources whose rows were ever removed, and not in a dry run; the newest first."""
        query = (
            sa.select(incident.c.resource_id)
            .where(incident.c.state.in_(_REMOVED), incident.c.dry_run == 0)
            .group_by(incident.c.resource_id)
            .order_by(sa.func.max(incident.c.incident_id).desc())
        )
        with self.reading() as connection:
            return list(connection.scalars(query))

    def pauses(self) -> list[Pause]:
        """What operators paused and did not resume, times that are over included."""
        with self.reading() as connection, self._understanding():
            return [
                Pause(
                    target=Target(scope=Scope(row.scope), name=row.name),
                    author=row.author,
                    reason=row.reason,
                    paused_at=row.paused_at,
                    until=row.until,
                )
                for row in connection.execute(sa.select(schema.pause))
            ]

    def scale_ups(self) -> dict[str, ScaleUp]:
        """The rounds of every group that did not reach its min-parallelism yet, by its name."""
        columns = schema.scale_up.c
        ours = columns.dry_run == int(self.dry_run)
        query = sa.select(*(columns[name] for name in ScaleUp._fields)).where(ours)
        with self.reading() as connection, self._understanding():
            found = [ScaleUp._make(row) for row in connection.execute(query)]
            return {
                each.group_name: each._replace(state=ScaleUpState(each.state)) for each in found
            }

    def unstable(self, since: datetime) -> dict[str, int]:
        """The spent attempts of resources that recovered since then, and were not lost again.

        Attempts of a dry run count in a dry run only.
        """
        query = (
            sa.select(
                incident.c.resource_id,
                incident.c.state,
                incident.c.attempts + incident.c.prior_attempts,
            )
            .where(incident.c.closed_at > since)
            .order_by(incident.c.incident_id)
        )
        if not self.dry_run:
            query = query.where(incident.c.dry_run == 0)
        with self.reading() as connection, self._understanding():
            ends = {row[0]: (row[1], row[2]) for row in connection.execute(query)}
        return {
            name: attempts_used
            for name, (end, attempts_used) in ends.items()
            if end is State.RECOVERED
        }

    def removed_in_dry_run(self) -> set[str]:
        """The resources that would not be there any more if this were no dry run.

        One that has been an orphan again since then, when it was none, is there.
        """
        newest = sa.select(sa.func.max(incident.c.incident_id)).group_by(incident.c.resource_id)
        ended = (
            incident.c.incident_id.in_(newest),
            incident.c.dry_run == 1,
            incident.c.state.in_(_REMOVED),
        )
        with self.reading() as connection:
            return set(connection.scalars(sa.select(incident.c.resource_id).where(*ended)))

    def incident(self, incident_id: int) -> Incident | None:
        """One incident as it stands."""
        query = sa.select(*_FIELDS).where(incident.c.incident_id == incident_id)
        return next(iter(self._incidents(query)), None)

    def events(self, incident_id: int) -> list[Event]:
        """The story of one incident, in the order it was written."""
        query = (
            sa.select(event).where(event.c.incident_id == incident_id).order_by(event.c.event_id)
        )
        with self.reading() as connection, self._understanding():
            return [_event(row._asdict()) for row in connection.execute(query)]

    def removed_row(self, incident_id: int) -> dict[str, Any] | None:
        """The resource row that an incident's giving up kept last; None: there is none."""
        query = (
            sa.select(removed_row.c.content)
            .where(removed_row.c.incident_id == incident_id)
            .order_by(removed_row.c.removal_id.desc())
            .limit(1)
        )
        with self.reading() as connection:
            content: str | None = connection.scalar(query)
        return None if content is None else json.loads(content)

    def renew(self, run_id: str, until: datetime) -> None:
        """Lets every claim of a run hold until `until` at least: a sign of life."""
        statement = (
            sa.update(incident)
            .where(_OPEN, incident.c.claimed_by == run_id, incident.c.claimed_until < until)
            .values(claimed_until=until, version=incident.c.version + 1)
        )
        self._migrate()
        with self.database.writing() as connection:
            connection.execute(statement)

    def history(self, group_name: str, events: tuple[int, int] | None = None) -> sa.Select[Any]:
        """A query for incidents of a group, oldest first, in the audit's words.

        Args:
            group_name: The group.
            events: Only the incidents that these of the group's events are about: from the first
                number to the last, both included. None: all incidents.

        Returns:
            Rows with the details of the event that opened the incident, as JSON text. Times are
            UTC without a zone.
        """
        opening = sa.and_(
            event.c.incident_id == incident.c.incident_id, event.c.kind == EventKind.DETECTED
        )
        query = (
            sa.select(
                incident.c.incident_id.label("incident"),
                incident.c.resource_id.label("resource"),
                incident.c.container_name.label("container"),
                incident.c.thread_count.label("threads"),
                _naive(incident.c.detected_at).label("detected"),
                incident.c.attempts,
                incident.c.last_error,
                incident.c.state,
                _naive(incident.c.closed_at).label("closed"),
                event.c.details,
            )
            .join_from(incident, event, opening, isouter=True)
            .where(incident.c.group_name == group_name)
            .order_by(incident.c.incident_id)
        )
        if events is None:
            return query
        told = sa.select(event.c.incident_id).where(
            event.c.group_name == group_name, event.c.event_id.between(*events)
        )
        return query.where(incident.c.incident_id.in_(told))

    def story_events(self, group_name: str, after_event: int, limit: int) -> sa.Select[Any]:
        """A query for the next events of a group, in the order they were written.

        Those that are no step of an incident have neither its number nor a resource. Times are UTC
        without a zone. Details, a JSON text, are only those in which a tick notes threads: others
        can be long.
        """
        details = sa.case((event.c.kind.in_(_NOTED), event.c.details), else_=None)
        return (
            sa.select(
                event.c.event_id.label("event"),
                event.c.incident_id.label("incident"),
                incident.c.resource_id.label("resource"),
                event.c.kind,
                _naive(event.c.at).label("at"),
                event.c.attempt,
                event.c.run_id.label("run"),
                event.c.message,
                details.label("details"),
            )
            .join_from(event, incident, event.c.incident_id == incident.c.incident_id, isouter=True)
            .where(event.c.group_name == group_name, event.c.event_id > after_event)
            .order_by(event.c.event_id)
            .limit(limit)
        )

    def tells(self, group_name: str, event_id: int, at: datetime) -> bool:
        """Whether this ledger may have told this event of a group.

        Not if another event has its number, or if it has not come to such numbers yet: then it
        took the place of the one that did. An event that is missing between others was deleted.
        """
        query = (
            sa.select(event.c.event_id, event.c.group_name, event.c.at)
            .where(event.c.event_id >= event_id)
            .order_by(event.c.event_id)
            .limit(1)
        )
        with self.reading() as connection:
            found = connection.execute(query).one_or_none()
        return found is not None and (
            found.event_id > event_id or (found.group_name, found.at) == (group_name, at)
        )

    def changed_groups(self, after_event: int) -> tuple[dict[str, dict[str, int]], int]:
        """Which groups' histories went on after an event, by kind and number; the newest event.

        Server databases number events before they are committed. One that is overtaken by a
        higher number is not told here; the group's next refresh has it (it looks back), at the
        latest with the group's next event.
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

    def _incidents(self, query: sa.Select[Any]) -> list[Incident]:
        with self.reading() as connection, self._understanding():
            return [Incident._make(row) for row in connection.execute(query)]

    @contextmanager
    def _understanding(self) -> Iterator[None]:
        try:
            yield
        except ValueError as error:  # such as a state of another version
            raise StoreUnavailableError(
                f"the {self.database.name} holds what cannot be understood: {error}"
            ) from error

    def _migrate(self) -> None:
        if self._migrated:
            return
        self.database.create_folder()
        try:
            with self.database.reading() as connection:
                current = _revision(connection)
            if current != _scripts().get_current_head():
                self._upgrade(current)
        except CommandError as error:
            raise StoreUnavailableError(
                f"the {self.database.name}'s schema version cannot be told: {error}"
            ) from error
        self._migrated = True

    def _upgrade(self, current: str | None) -> None:
        known = {script.revision for script in _scripts().walk_revisions()}
        if current is not None and current not in known:
            raise StoreUnavailableError(
                f"the ledger has schema version {current!r}, which this dagster-amoro does not "
                f"know (it knows {', '.join(sorted(known))}): a newer one wrote it, install that"
            )
        with _ALEMBIC, self.database.creating() as connection:
            config = _alembic_config()
            config.attributes["connection"] = connection
            if _revision(connection) == current:  # nobody was faster
                command.upgrade(config, "head")


def _alembic_config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    return config


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_alembic_config())


def _revision(connection: sa.Connection) -> str | None:
    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    return context.get_current_revision()


def _naive(time: sa.Column[Any]) -> sa.ColumnElement[datetime]:
    # To give a zone to each of many thousand times takes as long as to read them.
    return sa.type_coerce(time, sa.DateTime())


def _incident_row(value: Incident) -> dict[str, Any]:
    is_open = value.resource_id if value.is_open else None
    row = value._asdict() | {"open_resource_id": is_open, "dry_run": int(value.dry_run)}
    del row["incident_id"]
    return row


def _event_row(
    incident_id: int | None, group_name: str | None, told: Event, *, dry_run: bool
) -> dict[str, Any]:
    details = {**told.details, **({"dry_run": True} if dry_run else {})}
    return {
        "incident_id": incident_id,
        "group_name": group_name,
        "kind": str(told.kind),
        "at": told.at,
        "message": f"{_DRY}{told.message}" if dry_run else told.message,
        "attempt": told.attempt,
        "run_id": told.run_id,
        "details": json.dumps(details, ensure_ascii=False),
    }


def _kept(of: Incident, step: Transition) -> dict[str, Any]:
    content = json.dumps(dict(step.row or {}), ensure_ascii=False)
    return {"incident_id": of.incident_id, "kept_at": step.event.at, "content": content}


def _event(row: Mapping[str, Any]) -> Event:
    return Event(
        kind=EventKind(row["kind"]),
        at=row["at"],
        message=row["message"],
        attempt=row["attempt"],
        run_id=row["run_id"],
        details=json.loads(row["details"]),
    )
