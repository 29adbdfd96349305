"""The registry: which resources there are, and which of them no optimizer stands for.

Tables and columns are Amoro's, as its `ams-*-init.sql` scripts create them. In attached mode they
belong to AMS; in standalone mode they are ours, with two indexes more than AMS has and with times
in UTC: CURRENT_TIMESTAMP would be the wall clock of whichever session inserts.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from orchestration.keeping.model import Orphan, Resource
from orchestration.keeping.properties import dump_properties, merge_properties
from orchestration.keeping.survey import Survey
from orchestration.stores.database import Database, utc_now

metadata: Final = sa.MetaData()
_MYSQL: Final[dict[str, Any]] = {  # its defaults may hold neither a transaction nor an emoji
    f"{dialect}_{option}": value
    for dialect in ("mysql", "mariadb")
    for option, value in (("engine", "InnoDB"), ("charset", "utf8mb4"), ("collate", "utf8mb4_bin"))
}
_PROPERTIES: Final = sa.Text().with_variant(mysql.MEDIUMTEXT(), "mysql", "mariadb")
_IDS_PER_STATEMENT: Final = 1000  # every database takes as many bound values

resource: Final = sa.Table(
    "resource",
    metadata,
    sa.Column("resource_id", sa.String(100), primary_key=True),
    sa.Column("resource_type", sa.SmallInteger, server_default="0"),
    sa.Column("container_name", sa.String(100)),
    sa.Column("group_name", sa.String(100)),
    sa.Column("thread_count", sa.Integer),
    sa.Column("total_memory", sa.BigInteger),
    sa.Column("start_time", sa.DateTime, nullable=False, server_default=utc_now()),
    sa.Column("properties", _PROPERTIES),
    sa.Index("resource_resource_group_index", "group_name"),
    **_MYSQL,
)
optimizer: Final = sa.Table(
    "optimizer",
    metadata,
    sa.Column("token", sa.String(50), primary_key=True),
    sa.Column("resource_id", sa.String(100)),
    sa.Column("group_name", sa.String(100)),
    sa.Column("container_name", sa.String(100)),
    sa.Column("start_time", sa.DateTime, nullable=False, server_default=utc_now()),
    sa.Column("touch_time", sa.DateTime, nullable=False, server_default=utc_now()),
    sa.Column("thread_count", sa.Integer),
    sa.Column("total_memory", sa.BigInteger),
    sa.Column("properties", _PROPERTIES),
    sa.Index("optimizer_resource_group_index", "group_name"),
    sa.Index("optimizer_resource_id_index", "resource_id"),
    sa.Index("optimizer_touch_time_index", "touch_time"),
    **_MYSQL,
)
resource_group: Final = sa.Table(
    "resource_group",
    metadata,
    sa.Column("group_name", sa.String(100), primary_key=True),
    sa.Column("container_name", sa.String(100)),
    sa.Column("properties", _PROPERTIES),
    **_MYSQL,
)

_ORPHAN_COLUMNS: Final = (
    resource.c.resource_id,
    resource.c.group_name,
    resource.c.container_name,
    resource.c.thread_count,
    resource.c.total_memory,
    resource.c.properties,
)
# Without SQLAlchemy's conversions: in SQLite a time can be any text.
_AS_STORED: Final = [sa.type_coerce(column, sa.types.NULLTYPE) for column in resource.columns]
ORPHANS: Final = (
    sa.select(*_ORPHAN_COLUMNS)
    .outerjoin(optimizer, optimizer.c.resource_id == resource.c.resource_id)
    .where(optimizer.c.resource_id.is_(None), resource.c.resource_id.is_not(None))
)
"""The one statement that says who is an orphan. An anti-join: rows of optimizers that were started
from outside have a NULL resource_id, which equals nothing. It asks of them nothing but that, so
that the index answers it alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sighting:
    """One resource as the registry has it at this moment."""

    row: Mapping[str, Any] | None  # the whole row, every column as stored; None: it is gone
    registered: bool  # whether an optimizer names it

    @property
    def orphan(self) -> Orphan | None:
        """The row, where it is there and nobody stands for it."""
        if self.row is None or self.registered:
            return None
        return orphan_of(self.row)


def orphan_of(row: Mapping[str, Any]) -> Orphan:
    """The part of a whole resource row, read or kept, that a restart needs."""
    return Orphan(*(row[column.name] for column in _ORPHAN_COLUMNS))


class Registry:
    """Amoro's three tables in a database."""

    def __init__(self, database: Database, heartbeat_timeout: timedelta | None) -> None:
        """A registry that removes heartbeats older than `heartbeat_timeout`.

        None: heartbeats belong to AMS (attached mode) and are not touched.
        """
        self.database = database
        self._heartbeat_timeout = heartbeat_timeout
        self._created = False

    def create(self) -> None:
        """Creates the tables that are missing, once per process; for standalone mode."""
        if self._created:
            return
        with self.database.creating() as connection:
            metadata.create_all(connection)
        self._created = True

    def survey(self) -> Survey:
        """One look at everything; in standalone mode after removing expired heartbeats."""
        expired = 0
        if self._heartbeat_timeout is not None:
            self.create()
            expired = self._expire_heartbeats(self._heartbeat_timeout)
        with self.database.reading() as connection:
            orphans = {row[0]: Orphan._make(row) for row in connection.execute(ORPHANS)}
            count = connection.scalar(sa.select(sa.func.count()).select_from(resource))
            groups = connection.scalars(sa.select(resource_group.c.group_name)).all()
        return Survey(
            resources=count or 0,
            groups=tuple(groups),
            orphans=orphans,
            expired=expired,
        )

    def present(self, resource_ids: Iterable[str]) -> set[str]:
        """Of these ids, the ones that have a resource row."""
        ids = list(resource_ids)
        with self.database.reading() as connection:
            return {
                found
                for at in range(0, len(ids), _IDS_PER_STATEMENT)
                for found in connection.scalars(
                    sa.select(resource.c.resource_id).where(
                        resource.c.resource_id.in_(ids[at : at + _IDS_PER_STATEMENT])
                    )
                )
            }

    def look(self, resource_id: str) -> Sighting:
        """One resource, in one snapshot of both tables."""
        registered = _is_registered(resource_id).label("registered")
        query = sa.select(*_AS_STORED, registered).where(resource.c.resource_id == resource_id)
        with self.database.reading() as connection:
            row = connection.execute(query).mappings().first()
        if row is None:
            return Sighting(row=None, registered=False)
        columns = {column.name: _plain(row[column.name]) for column in resource.columns}
        return Sighting(row=columns, registered=bool(row["registered"]))

    def save_startup(
        self, resource_id: str, properties: str | None, startup: Mapping[str, str]
    ) -> bool:
        """Merges start-up properties into the row, if it still has the `properties` given.

        Returns:
            False: the row is gone or was changed meanwhile; nothing was written.
        """
        merged = merge_properties(properties, startup)
        chosen = resource.c.resource_id == resource_id
        statement = sa.update(resource).where(chosen).values(properties=merged)
        with self.database.writing() as connection:
            unchanged = _has_still(connection, resource_id, properties)
            return unchanged and connection.execute(statement).rowcount > 0

    def remove_orphan(self, resource_id: str, properties: str | None) -> bool:
        """Deletes the resource row, if it still has the `properties` given and no optimizer.

        Returns:
            False: an optimizer registered, the row was changed, or it was gone already.
        """
        statement = sa.delete(resource).where(
            resource.c.resource_id == resource_id, ~_is_registered(resource_id)
        )
        with self.database.writing() as connection:
            unchanged = _has_still(connection, resource_id, properties)
            return unchanged and connection.execute(statement).rowcount > 0

    def add_group(self, group_name: str, container_name: str) -> None:
        """Records a group, unless it is there; for standalone mode."""
        with self.database.writing() as connection:
            known = sa.select(resource_group).where(resource_group.c.group_name == group_name)
            if connection.execute(known).first() is None:
                values = {"group_name": group_name, "container_name": container_name}
                connection.execute(sa.insert(resource_group).values(properties="{}", **values))

    def add_resource(self, new: Resource) -> None:
        """Records a resource; for standalone mode.

        Raises:
            StoreUnavailableError: Also where the id is taken.
        """
        values = {
            "resource_id": new.resource_id,
            "group_name": new.group_name,
            "container_name": new.container_name,
            "thread_count": new.thread_count,
            "total_memory": new.memory_mb,
            "properties": dump_properties(new.properties),
        }
        with self.database.writing() as connection:
            connection.execute(sa.insert(resource).values(values))

    def _expire_heartbeats(self, timeout: timedelta) -> int:
        # Looks before it deletes, so that a tick with nothing to do writes nothing.
        with self.database.reading() as connection:
            now: datetime = connection.scalars(sa.select(utc_now())).one()
            too_old = optimizer.c.touch_time < now - timeout
            if connection.execute(sa.select(optimizer.c.token).where(too_old).limit(1)).first():
                stale = sa.delete(optimizer).where(too_old)
            else:
                return 0
        with self.database.writing() as connection:
            return connection.execute(stale).rowcount


def _is_registered(resource_id: str) -> sa.ColumnElement[bool]:
    return sa.exists().where(optimizer.c.resource_id == resource_id)


def _has_still(connection: sa.Connection, resource_id: str, properties: str | None) -> bool:
    """Whether the row is there with just these properties; it stays so in this transaction.

    Compared here, because MySQL's collations take some different texts for equal ones.
    """
    chosen = resource.c.resource_id == resource_id
    row = connection.execute(
        sa.select(resource.c.properties).where(chosen).with_for_update()
    ).first()
    return row is not None and row[0] == properties


def _plain(value: object) -> object:
    return value.isoformat(sep=" ") if isinstance(value, datetime) else value
