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
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.types import TypeDecorator

from orchestration.errors import StoreUnavailableError
from orchestration.keeping.model import Event, EventKind, Incident, State, Transition
from orchestration.stores.database import Database, UtcDateTime, is_mysql

VERSION_TABLE: Final = "keeper_schema_version"
_MIGRATIONS: Final = Path(__file__).parent / "migrations"
_ALEMBIC: Final = threading.Lock()  # its `op` and `context` are one for all threads

metadata: Final = sa.MetaData()


class _State(TypeDecorator[State]):
    """A state's name in the database."""

    impl = sa.String(20)
    cache_ok = True

    def process_bind_param(self, value: State | None, _dialect: sa.Dialect) -> str | None:
        return None if value is None else str(value)

    def process_result_value(self, value: str | None, _dialect: sa.Dialect) -> State | None:
        return None if value is None else State(value)


class _Name(TypeDecorator[str]):
    """A name of up to 100 characters, exactly: for MySQL, "a" and "a " differ only as bytes."""

    impl = sa.String(100).with_variant(mysql.VARBINARY(400), "mysql", "mariadb")
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> Any:  # noqa: ANN401
        return value.encode() if value is not None and is_mysql(dialect) else value

    def process_result_value(self, value: Any, _dialect: sa.Dialect) -> str | None:  # noqa: ANN401
        return value.decode() if isinstance(value, bytes) else value


class _Text(TypeDecorator[str]):
    """A text of any length and origin, such as an error's.

    What no database stores is written as an escape: NUL, and half of a character pair.
    """

    impl = sa.Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")
    cache_ok = True

    def process_bind_param(self, value: str | None, _dialect: sa.Dialect) -> str | None:
        if value is None:
            return None
        return value.replace("\0", "\\x00").encode(errors="backslashreplace").decode()


_Number: Final = sa.BigInteger().with_variant(sa.Integer, "sqlite")  # SQLite numbers only INTEGER

incident: Final = sa.Table(
    "keeper_incident",
    metadata,
    sa.Column("incident_id", _Number, primary_key=True, autoincrement=True),
    sa.Column("resource_id", _Name, nullable=False),
    sa.Column("group_name", _Name, nullable=False),
    sa.Column("container_name", _Name, nullable=False),
    sa.Column("thread_count", sa.Integer, nullable=False),
    sa.Column("state", _State, nullable=False),
    sa.Column("detected_at", UtcDateTime, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("attempted_at", UtcDateTime),
    sa.Column("hand_overs", sa.Integer, nullable=False),
    sa.Column("claimed_by", sa.String(100)),
    sa.Column("claimed_until", UtcDateTime),
    sa.Column("note", _Text),
    sa.Column("last_error", _Text),
    sa.Column("closed_at", UtcDateTime),
    sa.Column("version", sa.Integer, nullable=False),
    # The resource's id while the incident is open, NULL afterwards: at most one is open, and no
    # database needs a partial index for it.
    sa.Column("open_resource_id", _Name, unique=True),
    sa.Index("keeper_incident_group", "group_name", "incident_id"),
    sa.Index("keeper_incident_claim", "claimed_by"),
    sqlite_autoincrement=True,  # a number is never used again
)
event: Final = sa.Table(
    "keeper_event",
    metadata,
    sa.Column("event_id", _Number, primary_key=True, autoincrement=True),
    sa.Column("incident_id", _Number, nullable=False),
    sa.Column("group_name", _Name, nullable=False),
    sa.Column("kind", sa.String(20), nullable=False),
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Column("message", _Text, nullable=False),
    sa.Column("attempt", sa.Integer),
    sa.Column("run_id", sa.String(100)),
    sa.Column("details", _Text, nullable=False),  # a JSON object
    sa.Index("keeper_event_incident", "incident_id"),
    sa.Index("keeper_event_group", "group_name", "event_id"),
    sqlite_autoincrement=True,
)
removed_row: Final = sa.Table(
    "keeper_removed_row",
    metadata,
    sa.Column("removal_id", _Number, primary_key=True, autoincrement=True),
    sa.Column("incident_id", _Number, nullable=False),
    sa.Column("kept_at", UtcDateTime, nullable=False),
    sa.Column("content", _Text, nullable=False),  # a JSON object: the columns as stored
    sa.Index("keeper_removed_row_incident", "incident_id"),
    sqlite_autoincrement=True,
)
"""Whole resource rows, secrets included: apart from the events, which are shown to people."""
_FIELDS: Final = [incident.c[name] for name in Incident._fields]
_OPEN: Final = incident.c.open_resource_id.is_not(None)
# The events in which a tick notes the threads of the group.
_NOTED: Final = (
    EventKind.DETECTED,
    EventKind.RECOVERED,
    EventKind.EXHAUSTED,
    EventKind.RELEASED,
    EventKind.SUPERSEDED,
)


class Writing:
    """One transaction on the ledger: everything applied through it is committed together."""

    def __init__(self, connection: sa.Connection) -> None:
        """Used through `Ledger.writing`."""
        self._connection = connection

    def apply(self, transitions: Iterable[Transition]) -> list[Incident | None]:
        """Takes each step whose expected state still holds, with its event.

        Returns:
            For each transition the incident as it now stands, or None where the race was lost:
            somebody else moved it first, and nothing was written for it.
        """
        results = [(self._step(transition), transition) for transition in transitions]
        taken = [(moved, step) for moved, step in results if moved is not None]
        self._insert(event, [_event_row(moved, step.event) for moved, step in taken])
        self._insert(removed_row, [_kept(moved, step) for moved, step in taken if step.row])
        return [moved for moved, _ in results]

    def _insert(self, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
        if rows:
            self._connection.execute(sa.insert(table), rows)

    def _step(self, transition: Transition) -> Incident | None:
        if transition.before is None:
            return self._open(transition.after)
        return transition.after if self._move(transition.before, transition.after) else None

    def _open(self, new: Incident) -> Incident | None:
        insert = _insert_unless_there(self._connection.dialect.name)
        counting = insert.execution_options(preserve_rowcount=True)  # PostgreSQL's is lost else
        if self._connection.execute(counting, _incident_row(new)).rowcount != 1:
            return None
        query = sa.select(*_FIELDS).where(incident.c.open_resource_id == new.resource_id)
        return Incident._make(self._connection.execute(query).one())

    def _move(self, before: Incident, after: Incident) -> bool:
        expected = (
            incident.c.incident_id == before.incident_id,
            incident.c.state == before.state,
            incident.c.version == before.version,
        )
        update = sa.update(incident).where(*expected).values(_incident_row(after))
        return self._connection.execute(update).rowcount == 1


class Ledger:
    """Incidents and events in a database, brought to this version's schema at first use."""

    def __init__(self, database: Database) -> None:
        """A ledger in `database`, which may be the registry's."""
        self.database = database
        self._migrated = False

    @contextmanager
    def writing(self) -> Iterator[Writing]:
        """One transaction.

        Raises:
            StoreUnavailableError: Nothing of it was written.
        """
        self._migrate()
        with self.database.writing() as connection:
            yield Writing(connection)

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
        """Takes one step in a transaction of its own; None: the race was lost."""
        with self.writing() as ledger:
            return ledger.apply([transition])[0]

    def open_incidents(self) -> list[Incident]:
        """All incidents without an outcome, oldest first."""
        query = sa.select(*_FIELDS).where(_OPEN).order_by(incident.c.incident_id)
        return self._incidents(query)

    def claimed_by(self, owner: str) -> list[Incident]:
        """The open incidents that a run, or a hand-over, has a claim on; oldest first."""
        query = (
            sa.select(*_FIELDS)
            .where(_OPEN, incident.c.claimed_by == owner)
            .order_by(incident.c.incident_id)
        )
        return self._incidents(query)

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

    def story(self, group_name: str, after_event: int, limit: int) -> sa.Select[Any]:
        """A query for the next events of a group, in the order they were written.

        Times are UTC without a zone. Details, a JSON text, are only those in which a tick notes
        threads: others can be long.
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
            .join_from(event, incident, event.c.incident_id == incident.c.incident_id)
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
            .where(event.c.event_id > after_event)
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


def _insert_unless_there(dialect: str) -> sa.Insert:
    if dialect == "sqlite":
        return sqlite.insert(incident).on_conflict_do_nothing()
    if dialect == "postgresql":
        return postgresql.insert(incident).on_conflict_do_nothing()
    ignoring: sa.Insert = mysql.insert(incident).prefix_with("IGNORE")
    return ignoring


def _naive(time: sa.Column[Any]) -> sa.ColumnElement[datetime]:
    # To give a zone to each of many thousand times takes as long as to read them.
    return sa.type_coerce(time, sa.DateTime())


def _incident_row(value: Incident) -> dict[str, Any]:
    row = value._asdict() | {"open_resource_id": value.resource_id if value.is_open else None}
    del row["incident_id"]
    return row


def _event_row(of: Incident, told: Event) -> dict[str, Any]:
    return {
        "incident_id": of.incident_id,
        "group_name": of.group_name,
        "kind": str(told.kind),
        "at": told.at,
        "message": told.message,
        "attempt": told.attempt,
        "run_id": told.run_id,
        "details": json.dumps(dict(told.details), ensure_ascii=False),
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
