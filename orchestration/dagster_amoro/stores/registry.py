"""The registry: which resources there are, and which of them no optimizer stands for.

Tables and columns are Amoro's, as its `ams-*-init.sql` scripts create them. In attached mode they
belong to AMS; in standalone mode they are ours, with two indexes more than AMS has and with times
in UTC: CURRENT_TIMESTAMP would be the wall clock of whichever session inserts.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import chain
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.types import TypeDecorator

from dagster_amoro.core.corrections import TOLERANCE
from dagster_amoro.core.errors import StoreUnavailableError
from dagster_amoro.core.fleet_plan import DECLARED, FleetRows, GroupStep
from dagster_amoro.core.groups import Group, min_parallelism
from dagster_amoro.core.looks import NEVER
from dagster_amoro.core.model import Orphan, Resource
from dagster_amoro.core.properties import dump_properties, merge_properties
from dagster_amoro.core.registrations import Registrations
from dagster_amoro.core.replacement import NewResource
from dagster_amoro.core.tick_inputs import RegistrySnapshot
from dagster_amoro.stores import bulk
from dagster_amoro.stores.database import (
    Database,
    insert_unless_there,
    is_mysql,
    on_mysql,
    utc_now,
)

metadata: Final = sa.MetaData()
# Every database takes as many bound values; where `resource_id` has no index, each statement
# reads the whole table, which is why they are not fewer.
_ROWS_AT_ONCE: Final = 10_000
_IDS_PER_STATEMENT: Final = 10_000
_FEW_GROUPS: Final = 10  # whose rows are quicker to find than all are to read


class _Properties(TypeDecorator[str]):
    impl = sa.Text
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> sa.types.TypeEngine[Any]:
        return on_mysql(dialect, "MEDIUMTEXT") or self.impl_instance


class _Time(TypeDecorator[datetime]):
    impl = sa.DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> sa.types.TypeEngine[Any]:
        # MySQL drops the fraction of a second unless told otherwise; so do AMS's own tables there.
        return on_mysql(dialect, "DATETIME", fsp=6) or self.impl_instance


resource: Final = sa.Table(
    "resource",
    metadata,
    sa.Column("resource_id", sa.String(100), primary_key=True),
    sa.Column("resource_type", sa.SmallInteger, server_default="0"),
    sa.Column("container_name", sa.String(100)),
    sa.Column("group_name", sa.String(100)),
    sa.Column("thread_count", sa.Integer),
    sa.Column("total_memory", sa.BigInteger),
    sa.Column("start_time", _Time, nullable=False, server_default=utc_now()),
    sa.Column("properties", _Properties),
    sa.Index("resource_resource_group_index", "group_name"),
)
optimizer: Final = sa.Table(
    "optimizer",
    metadata,
    sa.Column("token", sa.String(50), primary_key=True),
    sa.Column("resource_id", sa.String(100)),
    sa.Column("group_name", sa.String(100)),
    sa.Column("container_name", sa.String(100)),
    sa.Column("start_time", _Time, nullable=False, server_default=utc_now()),
    sa.Column("touch_time", _Time, nullable=False, server_default=utc_now()),
    sa.Column("thread_count", sa.Integer),
    sa.Column("total_memory", sa.BigInteger),
    sa.Column("properties", _Properties),
    sa.Index("optimizer_resource_group_index", "group_name"),
    sa.Index("optimizer_resource_id_index", "resource_id"),
    sa.Index("optimizer_touch_time_index", "touch_time"),
)
resource_group: Final = sa.Table(
    "resource_group",
    metadata,
    sa.Column("group_name", sa.String(100), primary_key=True),
    sa.Column("container_name", sa.String(100)),
    sa.Column("properties", _Properties),
)

_ORPHAN: Final = Orphan._fields[:-1]  # all but `copies`, which no column holds
ORPHAN_COLUMNS: Final = [resource.c[name] for name in _ORPHAN]
# Without SQLAlchemy's conversions: in SQLite a time can be any text.
_START_TIME: Final = sa.type_coerce(resource.c.start_time, sa.types.NULLTYPE).label("start_time")
_AS_STORED: Final = [sa.type_coerce(column, sa.types.NULLTYPE) for column in resource.columns]


def _orphans_beside(
    optimizers: sa.FromClause, started: sa.ColumnElement[Any] = _START_TIME
) -> sa.Select[Any]:
    """The one statement that says who is an orphan, by these optimizers, and when it was `started`.

    An anti-join: rows of optimizers that were started from outside have a NULL resource_id, which
    equals nothing. It asks of them nothing but that, so that the index answers it alone.
    """
    return (
        sa.select(*ORPHAN_COLUMNS, started)
        .outerjoin(optimizers, optimizers.c.resource_id == resource.c.resource_id)
        .where(optimizers.c.resource_id.is_(None), resource.c.resource_id.is_not(None))
    )


ORPHANS: Final = _orphans_beside(optimizer)
"""That statement over the tables as they are."""
# Built once: that takes longer than to ask a small registry.
_TOO_OLD: Final = optimizer.c.touch_time < sa.bindparam("oldest")
_AHEAD: Final = optimizer.c.touch_time > sa.bindparam("newest")
_UNSETTLED: Final = sa.select(sa.exists().where(_TOO_OLD), sa.exists().where(_AHEAD))
_SIZES: Final = ("-parallelism", "dynamic-allocation")  # in the properties of a group with a size
_IS_SIZED: Final = sa.or_(*map(resource_group.c.properties.contains, _SIZES))
# AMS's own `optimizer` has no index on `resource_id`. PostgreSQL and MySQL 8 then join by a hash
# table, but MariaDB only where it may: by default it compares each row with each. Set for the one
# statement; the buffer is as large as the rows need, and this at most (bytes, for half a million).
_HASH_JOIN: Final = (
    "SET STATEMENT join_cache_level = 4, "
    "join_buffer_size = 268435456, join_buffer_space_limit = 268435456 FOR "
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ResourceSnapshot:
    """One resource as the registry has it at this moment."""

    row: Mapping[str, Any] | None = None  # the whole row, every column as stored; None: it is gone
    registrations: Registrations = field(default_factory=dict)  # the optimizers that name it
    copies: int = 1  # rows with its id, of which `row` is one; see `Orphan`

    @property
    def registered(self) -> bool:
        """Whether an optimizer names it."""
        return bool(self.registrations)

    @property
    def orphan(self) -> Orphan | None:
        """The row, where it is there and nobody stands for it."""
        if self.row is None or self.registered:
            return None
        return orphan_of(self.row)._replace(copies=self.copies)


def orphan_of(row: Mapping[str, Any]) -> Orphan:
    """The part of a whole resource row, read or kept, that a restart needs."""
    return Orphan(*(row[name] for name in _ORPHAN))


class Registry:
    """Amoro's three tables in a database.

    Every method raises a StoreUnavailableError where the database does not answer; nothing was
    written then.
    """

    def __init__(self, database: Database, heartbeat_timeout: timedelta | None) -> None:
        """A registry that removes heartbeats older than `heartbeat_timeout`.

        None: heartbeats belong to AMS (attached mode) and are not touched.
        """
        self.database = database
        self.heartbeat_timeout = heartbeat_timeout
        self._created = False

    def create(self) -> None:
        """Creates the tables that are missing, once per process; for standalone mode."""
        if self._created:
            return
        with self.database.creating() as connection:
            if is_mysql(connection.dialect):
                _know_mysql()
            metadata.create_all(connection)
        self._created = True

    def read_snapshot(self, *, to_act: bool = False) -> RegistrySnapshot:
        """A snapshot of everything; in standalone mode, expired heartbeats are removed first.

        `to_act`: only from where a restart could write too, since a standby may be stale; else a
        StoreUnavailableError.
        """
        expired = corrected = 0
        if self.heartbeat_timeout is not None:
            self.create()
            expired, corrected = self._settle_heartbeats(self.heartbeat_timeout)
        with self.database.snapshot(_WRITES if to_act else ()) as connection:
            sized = _groups(connection, _IS_SIZED)
            ours = sized and self.heartbeat_timeout is not None  # AMS keeps its groups itself
            # Thousands at once: row by row takes twice as long, and all of them twice the memory.
            some = connection.execute(self._anti_join(connection)).partitions(_ROWS_AT_ONCE)
            orphans, starts = _by_id(chain.from_iterable(some))
            return RegistrySnapshot(
                resources=_count(connection, self._resources()),
                groups=tuple(connection.scalars(sa.select(resource_group.c.group_name))),
                orphans=orphans,
                start_times=starts,
                expired=expired,
                corrected=corrected,
                sized=sized,
                live=_threads(connection, self._optimizers(connection), sized) if ours else {},
                newest={} if self.heartbeat_timeout is not None else _newest(connection, sized),
            )

    def ensure_writable(self) -> None:
        """Makes sure that a restart could write; else what is read is no ground for an act."""
        with self.database.snapshot(_WRITES):
            pass

    def read_group_snapshot(self, name: str, *, to_act: bool = False) -> RegistrySnapshot:
        """A snapshot of one group; no heartbeat is removed first.

        `to_act`: only from where a resource could be added, see `read_snapshot`.
        """
        mine = resource.c.group_name == name
        with self.database.snapshot([_INSERT] if to_act else ()) as connection:
            optimizers = self._optimizers(connection)
            orphans, _ = _by_id(connection.execute(_orphans_beside(optimizers).where(mine)))
            return RegistrySnapshot(
                resources=_count(connection, resource, mine),
                groups=(name,),
                orphans=orphans,
                sized=_groups(connection, resource_group.c.group_name == name),
                live=_threads(connection, optimizers, [name]),
            )

    def read_fleet(self, declared: Collection[str]) -> FleetRows:
        """The rows of declared resources, and of those that were declared before; and all groups.

        Expired heartbeats are removed first, as for `read_snapshot`; for standalone mode.
        """
        if self.heartbeat_timeout is not None:
            self.create()
            self._settle_heartbeats(self.heartbeat_timeout)
        marked = resource.c.properties.contains(f'"{DECLARED}":')
        ids, starts = list(declared), range(0, len(declared), _IDS_PER_STATEMENT)
        some_ids = (ids[at : at + _IDS_PER_STATEMENT] for at in starts)
        chosen = [marked, *(resource.c.resource_id.in_(some) for some in some_ids)]
        with self.database.snapshot() as connection:
            optimizers = self._optimizers(connection)
            registered = sa.exists().where(optimizers.c.resource_id == resource.c.resource_id)
            found: dict[str, tuple[Orphan, bool]] = {}
            for some in chosen:
                query = sa.select(*ORPHAN_COLUMNS, registered).where(some)
                rows = connection.execute(query)
                found |= {row[0]: (Orphan(*row[:-1]), bool(row[-1])) for row in rows}
            return FleetRows(
                groups=_groups(connection, sa.true()),
                rows={name: row for name, (row, _) in found.items()},
                registered={name for name, (_, is_registered) in found.items() if is_registered},
            )

    def present(self, resource_ids: Iterable[str]) -> set[str]:
        """Of these ids, the ones that have a resource row."""
        ids, query = list(resource_ids), sa.select(resource.c.resource_id)
        found: set[str] = set()
        with self.database.reading() as connection:
            for at in range(0, len(ids), _IDS_PER_STATEMENT):
                some = resource.c.resource_id.in_(ids[at : at + _IDS_PER_STATEMENT])
                found.update(connection.scalars(query.where(some)))
        return found

    def capacity(self, groups: Collection[str]) -> dict[str, tuple[int, int]]:
        """The threads of some groups: wanted, by their resources, and live, by their optimizers."""
        with self.database.reading() as connection:
            wanted = _threads(connection, self._resources(), groups)
            live = _threads(connection, self._optimizers(connection), groups)
        return {name: (wanted.get(name, 0), live.get(name, 0)) for name in groups}

    def sized_groups(self) -> dict[str, Group]:
        """The groups that say something about their size."""
        with self.database.reading() as connection:
            return _groups(connection, _IS_SIZED)

    def group(self, name: str) -> Group | None:
        """One group; None: there is no row of it."""
        with self.database.reading() as connection:
            return _groups(connection, resource_group.c.group_name == name).get(name)

    def resource_counts(self) -> dict[str, int]:
        """How many resources each group has; those of no group count under an empty name."""
        group_name = self._resources().c.group_name
        query = sa.select(group_name, sa.func.count()).group_by(group_name)
        with self.database.reading() as connection:
            return {name or "": number for name, number in connection.execute(query)}

    def newest_starts(self, groups: Collection[str]) -> dict[str, str]:
        """When the newest resource of each of these groups was recorded, as the database says it.

        AMS's times on PostgreSQL are in its own zone: comparable with each other only.
        """
        with self.database.reading() as connection:
            return _newest_starts(connection, groups)

    def new_resources(self, since: Mapping[str, str]) -> list[NewResource]:
        """The resources that were recorded after a moment, by group, as `newest_starts` says it."""
        found: list[NewResource] = []
        with self.database.reading() as connection:
            optimizers = self._optimizers(connection)
            registered = sa.exists().where(optimizers.c.resource_id == resource.c.resource_id)
            columns = (resource.c.resource_id, resource.c.thread_count, _START_TIME, registered)
            for group, start in since.items():
                later = resource.c.start_time > _moment(start, self.database)
                query = sa.select(*columns).where(resource.c.group_name == group, later)
                found += (
                    NewResource(name, group, threads or 0, str(_plain(started)), bool(is_there))
                    for name, threads, started, is_there in connection.execute(query)
                )
        return found

    def sample_tokens(self, known: Collection[str], number: int) -> tuple[set[str], list[str]]:
        """Which of these optimizers' tokens are there still, and `number` that are there now.

        AMS's tokens are random, so that the first by their order are any.
        """
        still_there = sa.select(optimizer.c.token).where(optimizer.c.token.in_(known))
        some = sa.select(optimizer.c.token).order_by(optimizer.c.token).limit(number)
        with self.database.reading() as connection:
            found = set(connection.scalars(still_there)) if known else set()
            return found, list(connection.scalars(some))

    def read_resource(self, resource_id: str, *, to_act: bool = False) -> ResourceSnapshot:
        """One resource, and which optimizers name it, read at one moment.

        `to_act`: only from where its row could be changed, see `read_snapshot`.
        """
        with self.database.reading([_UPDATE] if to_act else ()) as connection:
            optimizers = self._optimizers(connection)
            query = (
                sa.select(optimizers.c.token, _touched(optimizers), *_AS_STORED)
                .select_from(resource)
                .outerjoin(optimizers, optimizers.c.resource_id == resource_id)
                .where(resource.c.resource_id == resource_id)
            )
            rows = connection.execute(query).all()
        if not rows:
            return ResourceSnapshot()
        row = dict(zip(resource.columns.keys(), map(_plain, rows[0][2:]), strict=True))
        found = {token: str(_plain(touched)) for token, touched, *_ in rows if token is not None}
        copies = len(rows) // max(len(found), 1)  # each is there once for each optimizer
        return ResourceSnapshot(row=row, registrations=found, copies=copies)

    def registrations(self, resource_ids: Collection[str]) -> dict[str, Registrations]:
        """The optimizers that name each of these resources; those of which none does are left out.

        They are few: those whose attempts are under way or were lost.
        """
        found: dict[str, dict[str, str]] = {}
        with self.database.reading() as connection:
            optimizers = self._optimizers(connection)
            names, chosen = optimizers.c.resource_id, list(resource_ids)
            for at in range(0, len(chosen), _IDS_PER_STATEMENT):
                some = names.in_(chosen[at : at + _IDS_PER_STATEMENT])
                query = sa.select(names, optimizers.c.token, _touched(optimizers)).where(some)
                for name, token, touched in connection.execute(query):
                    found.setdefault(name, {})[token] = str(_plain(touched))
        return dict(found)

    def rehearse(self, resource_id: str, properties: str | None) -> bool:
        """Changes the row and deletes it, and takes both back: a restart may have to do either.

        False: an optimizer registered, or as for `save_startup`. A StoreUnavailableError where the
        database refuses: it is to be known before a process is stopped.
        """
        mine = resource.c.resource_id == resource_id
        same = sa.update(resource).where(mine).values(properties=properties)
        orphaned = ~sa.exists().where(optimizer.c.resource_id == resource_id)
        with self.database.rehearsing() as connection:
            return (
                _is_unchanged(connection, mine, properties)
                and connection.execute(same).rowcount > 0
                and connection.execute(sa.delete(resource).where(mine, orphaned)).rowcount > 0
            )

    def save_startup(
        self, resource_id: str, properties: str | None, startup: Mapping[str, str]
    ) -> bool:
        """Merges start-up properties into the row, if it still has the `properties` given.

        False: it is gone, was changed meanwhile or is not the only one with its id, and stays.
        """
        merged = merge_properties(properties, startup)
        return self._change(resource_id, properties, sa.update(resource).values(properties=merged))

    def remove_orphan(self, resource_id: str, properties: str | None) -> bool:
        """Deletes the resource row, if it still has the `properties` given and no optimizer.

        False: an optimizer registered, or as for `save_startup`.
        """
        registered = sa.exists().where(optimizer.c.resource_id == resource_id)
        return self._change(resource_id, properties, sa.delete(resource).where(~registered))

    def restore(self, row: Mapping[str, Any]) -> bool:
        """Puts back a whole row as `read_resource` read it; False: its id is taken."""
        values = {name: row[name] for name in row.keys() & resource.columns.keys()}
        values["start_time"] = _moment(str(row["start_time"]), self.database)
        return self._insert_unless(resource.c.resource_id == row["resource_id"], resource, values)

    def add_group(self, group_name: str, container_name: str) -> None:
        """Records a group, unless it is there; for standalone mode."""
        values = {"group_name": group_name, "container_name": container_name, "properties": "{}"}
        self._insert_unless(resource_group.c.group_name == group_name, resource_group, values)

    def save_group(
        self, group_name: str, container_name: str, properties: Mapping[str, str]
    ) -> None:
        """Records a group, or what it is to be from now on; for standalone mode."""
        with self.database.writing() as connection:
            _save_group(connection, group_name, container_name, properties)

    def add_resource(self, new: Resource) -> None:
        """Records a resource; a StoreUnavailableError where its id is taken. Standalone mode."""
        with self.database.writing() as connection:
            connection.execute(sa.insert(resource).values(_row_of(new)))

    def declare(self, groups: Iterable[GroupStep], new: Sequence[Resource]) -> set[str]:
        """Records groups as they are from now on, and the resources whose ids are not taken.

        All together: between the two, a group would seem to be below its min-parallelism. Returns
        the ids of the resources that were recorded; for standalone mode.
        """
        added: set[str] = set()
        with self.database.writing() as connection:
            for group in groups:
                _save_group(connection, group.name, group.container_name, group.properties)
            for at in range(0, len(new), bulk.ROWS):
                rows = [_row_of(each) for each in new[at : at + bulk.ROWS]]
                added |= bulk.insert_new(connection, resource, resource.c.resource_id, rows).keys()
        return added

    def redeclare(self, resource_id: str, properties: str | None, new: Resource) -> bool:
        """Makes a row another one, if it has the `properties` given; nobody stands for it then.

        False: as for `save_startup`. For standalone mode, and a worker that was stopped.
        """
        update = sa.update(resource).values(_row_of(new))
        return self._change(resource_id, properties, update, unregisters=True)

    def remove_resource(self, resource_id: str, properties: str | None) -> bool:
        """Deletes a row, if it has the `properties` given, and what stands for it.

        False: as for `save_startup`. For standalone mode, and a worker that was stopped.
        """
        return self._change(resource_id, properties, sa.delete(resource), unregisters=True)

    def _resources(self) -> sa.FromClause:
        return resource  # all of them count

    def _optimizers(self, _connection: sa.Connection) -> sa.FromClause:
        return optimizer  # all of them count; what is too old was removed

    def _anti_join(self, connection: sa.Connection) -> sa.Executable:
        dialect, optimizers = connection.dialect, self._optimizers(connection)
        if self.heartbeat_timeout is not None:
            return ORPHANS if optimizers is optimizer else _orphans_beside(optimizers)
        query = _orphans_beside(optimizers, _started_of_ams(dialect))
        if getattr(dialect, "is_mariadb", False):  # without our index, which is faster still
            return sa.text(_HASH_JOIN + str(query.compile(dialect=dialect)))
        return query

    def _settle_heartbeats(self, timeout: timedelta) -> tuple[int, int]:
        """Removes heartbeats that are too old, and lets those of the future count from now on.

        A worker that lives touches its row again, and one that is dead expires like any other.
        Returns how many there were of both.
        """
        # Looks before it writes, so that a tick with nothing to do writes nothing.
        with self.database.reading() as connection:
            now: datetime = connection.scalars(sa.select(utc_now())).one()
            limits = {"oldest": now - timeout, "newest": now + TOLERANCE}
            if not any(connection.execute(_UNSETTLED, limits).one()):
                return 0, 0
        with self.database.writing() as connection:
            expired = connection.execute(sa.delete(optimizer).where(_TOO_OLD), limits).rowcount
            from_now = sa.update(optimizer).where(_AHEAD).values(touch_time=now)
            return expired, connection.execute(from_now, limits).rowcount

    def _insert_unless(
        self, taken: sa.ColumnElement[bool], table: sa.Table, values: Mapping[str, Any]
    ) -> bool:
        """Inserts a row, unless the place of it is taken; whether it did."""
        with self.database.writing() as connection:
            if _count(connection, table, taken):
                return False
            connection.execute(sa.insert(table).values(values))
            return True

    def _change(
        self,
        resource_id: str,
        properties: str | None,
        statement: sa.Update | sa.Delete,
        *,
        unregisters: bool = False,
    ) -> bool:
        """Changes a row if it is the only one and has just these properties; whether it did."""
        chosen = resource.c.resource_id == resource_id
        with self.database.writing() as connection:
            if not _is_unchanged(connection, chosen, properties):
                return False
            if unregisters:
                mine = optimizer.c.resource_id == resource_id
                connection.execute(sa.delete(optimizer).where(mine))
            return connection.execute(statement.where(chosen)).rowcount > 0


def _row_of(new: Resource) -> dict[str, Any]:
    return {
        "resource_id": new.resource_id,
        "group_name": new.group_name,
        "container_name": new.container_name,
        "thread_count": new.thread_count,
        "total_memory": new.memory_mb,
        "properties": dump_properties(new.properties),
    }


def _save_group(
    connection: sa.Connection, group_name: str, container_name: str, properties: Mapping[str, str]
) -> None:
    values = {"container_name": container_name, "properties": dump_properties(properties)}
    mine = resource_group.c.group_name == group_name
    update = sa.update(resource_group).where(mine).values(values)
    new = {"group_name": group_name, **values}
    if not connection.execute(update).rowcount and not insert_unless_there(
        connection, resource_group, new
    ):
        connection.execute(update)  # somebody else was faster


def _is_unchanged(
    connection: sa.Connection, chosen: sa.ColumnElement[bool], properties: str | None
) -> bool:
    """Locks a row; whether it is the only one and has just these properties."""
    # Compared here, because MySQL's collations take some different texts for equal ones.
    locking = sa.select(resource.c.properties).where(chosen).with_for_update()
    return list(connection.scalars(locking)) == [properties]


# What is asked before anything is trusted; nothing of it changes a row or creates a table.

# Every database sees at once that no row is meant, and looks at none, also where `resource_id` has
# no index.
_NOBODY: Final = resource.c.resource_id.is_(None) & sa.literal_column("1 = 0", sa.Boolean)
_UPDATE: Final = sa.update(resource).where(_NOBODY).values(properties="{}")
_INSERT: Final = sa.insert(resource).from_select(
    resource.columns.keys(), sa.select(resource).where(_NOBODY)
)
_RIGHTS: Final[dict[str, sa.Executable]] = {
    "read resource": sa.select(resource).where(_NOBODY),
    "read optimizer": sa.select(
        optimizer.c.token, optimizer.c.resource_id, optimizer.c.group_name
    ).where(optimizer.c.token.is_(None)),
    "read resource_group": sa.select(resource_group.c.group_name).limit(0),
    "lock rows of resource": sa.select(resource.c.resource_id).where(_NOBODY).with_for_update(),
    "save properties of resource": _UPDATE,
    "remove rows of resource": sa.delete(resource).where(_NOBODY),
    "restore rows of resource": _INSERT,
}


_WRITES: Final = tuple(
    _RIGHTS[name]
    for name in ("lock rows of resource", "save properties of resource", "remove rows of resource")
)
"""What a restart may need, up to its giving up."""


def missing_rights(database: Database) -> dict[str, str]:
    """What the keeper has to do to the registry and may not, with the database's reasons.

    Every statement is one that the keeper runs, on no row at all, and is rolled back.
    """
    refused = {}
    for name, statement in _RIGHTS.items():
        try:
            with database.reading() as connection:
                connection.execute(statement)
                connection.rollback()
        except StoreUnavailableError as error:
            refused[name] = str(error)
    return refused


def group_sizes(database: Database) -> dict[str, int]:
    """How many resources each group has, groups without any included."""
    groups = sa.select(resource_group.c.group_name)
    counts = sa.select(resource.c.group_name, sa.func.count()).group_by(resource.c.group_name)
    with database.reading() as connection:
        found = dict.fromkeys(connection.scalars(groups), 0)
        return found | {name or "": number for name, number in connection.execute(counts)}


def examples(database: Database) -> dict[str, Orphan]:
    """One resource of each group, as a restart would see it."""
    first = sa.select(sa.func.min(resource.c.resource_id)).group_by(resource.c.group_name)
    query = sa.select(*ORPHAN_COLUMNS).where(resource.c.resource_id.in_(first))
    with database.reading() as connection:
        rows = [Orphan(*row) for row in connection.execute(query)]
    return {row.group_name or "": row for row in rows}


def some_properties(database: Database, container: str, number: int) -> list[str | None]:
    """The properties of a number of the resources of a container at most, as they are stored."""
    mine = resource.c.container_name == container
    with database.reading() as connection:
        query = sa.select(resource.c.properties).where(mine).limit(number)
        return list(connection.scalars(query))


def _newest_starts(connection: sa.Connection, groups: Collection[str]) -> dict[str, str]:
    newest = _by_group(connection, resource, sa.func.max(_START_TIME), groups)
    return {name: str(_plain(start)) for name, start in newest}


def _newest(connection: sa.Connection, sized: Mapping[str, Group]) -> dict[str, str]:
    """The newest start in each group with a min-parallelism."""
    kept = [name for name, group in sized.items() if min_parallelism(group) is not None]
    found = _newest_starts(connection, kept) if kept else {}
    return {name: found.get(name, NEVER) for name in kept}


def _groups(connection: sa.Connection, chosen: sa.ColumnElement[bool]) -> dict[str, Group]:
    rows = connection.execute(sa.select(resource_group).where(chosen))
    return {row[0]: Group(name=row[0], container_name=row[1], properties=row[2]) for row in rows}


def _moment(text: str, database: Database) -> sa.ColumnElement[Any]:
    """A time for a database that wrote it as this text; SQLite allows any, MySQL zeros."""
    if database.engine.dialect.name != "postgresql":
        return sa.literal(text, sa.String())
    return sa.literal(datetime.fromisoformat(text), sa.DateTime())


def _touched(optimizers: sa.FromClause) -> sa.ColumnElement[Any]:
    """When each was touched last, without conversions, as for `_START_TIME`."""
    return sa.type_coerce(optimizers.c.touch_time, sa.types.NULLTYPE)


def _by_id(rows: Iterable[Sequence[Any]]) -> tuple[dict[str, Orphan], dict[str, object]]:
    """The first row of each id, and how many there are; and when each was started."""
    found: dict[str, Orphan] = {}
    starts: dict[str, object] = {}
    same: dict[str | None, str | None] = {}  # each name once, of the many groups' many rows
    for resource_id, group, container, *values, started in rows:
        names = (same.setdefault(group, group), same.setdefault(container, container))
        orphan = Orphan(resource_id, *names, *values)
        first = found.setdefault(orphan.resource_id, orphan)
        starts.setdefault(orphan.resource_id, started)
        if first is not orphan:
            found[orphan.resource_id] = first._replace(copies=first.copies + 1)
    return found, starts


def _started_of_ams(dialect: sa.Dialect) -> sa.ColumnElement[Any]:
    """`start_time` of AMS's own table as a moment, whatever the zone of this session.

    MySQL's is one (`timestamp`). PostgreSQL's is a wall clock, that of AMS's JVM: it is taken for
    that of the database. Where they differ, the start seems to be in the future, or long ago.
    """
    if is_mysql(dialect):
        return sa.func.unix_timestamp(resource.c.start_time, type_=sa.types.NULLTYPE)
    if dialect.name == "postgresql":
        zone = sa.func.current_setting(sa.literal_column("'TimeZone'"))
        return sa.func.timezone(zone, resource.c.start_time, type_=sa.types.NULLTYPE)
    return _START_TIME


def instant(value: object) -> datetime | None:
    """A `start_time` of a snapshot as aware UTC; None: it makes no sense.

    What has no zone is in UTC, as our own tables have it.
    """
    with suppress(ValueError, OverflowError, OSError):
        if isinstance(value, int | float | Decimal):
            return datetime.fromtimestamp(float(value), UTC)
        if isinstance(value, str):
            value = datetime.fromisoformat(value)
        if isinstance(value, datetime):
            return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    return None


def _count(connection: sa.Connection, rows: sa.FromClause, *where: sa.ColumnElement[bool]) -> int:
    return connection.scalar(sa.select(sa.func.count()).select_from(rows).where(*where)) or 0


def _threads(
    connection: sa.Connection, table: sa.FromClause, groups: Collection[str]
) -> dict[str, int]:
    found = _by_group(connection, table, sa.func.sum(table.c.thread_count), groups)
    return {group: int(threads or 0) for group, threads in found}


def _by_group(
    connection: sa.Connection,
    table: sa.FromClause,
    value: sa.ColumnElement[Any],
    groups: Collection[str],
) -> Iterable[Sequence[Any]]:
    """A value of each of these groups, and maybe of others."""
    # Not the column itself: MySQL would follow its index and fetch the rows one by one, which
    # takes a minute for a million, where one pass through the table takes a second.
    name = (table.c.group_name + sa.literal_column("''")).label("name")
    query = sa.select(name, value).group_by(name)
    if len(groups) <= _FEW_GROUPS:
        query = query.where(table.c.group_name.in_(groups))
    return connection.execute(query).all()


def _plain(value: object) -> object:
    return value.isoformat(sep=" ") if isinstance(value, datetime) else value


def _know_mysql() -> None:
    """Its defaults may hold neither a transaction nor an emoji.

    Said only where it is used: SQLAlchemy imports its dialect to check what is said of it.
    """
    for table in metadata.tables.values():
        for name in ("mysql", "mariadb"):
            table.dialect_kwargs[f"{name}_engine"] = "InnoDB"
            table.dialect_kwargs[f"{name}_charset"] = "utf8mb4"
            table.dialect_kwargs[f"{name}_collate"] = "utf8mb4_bin"
