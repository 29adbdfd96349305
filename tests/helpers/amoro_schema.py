"""Which tables does a real AMS have? As its init scripts make them, with rows as it writes them."""

from collections.abc import Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from dagster_amoro.core.properties import dump_properties
from dagster_amoro.stores.registry import metadata as own_metadata

_TEXT: Final = sa.Text().with_variant(mysql.MEDIUMTEXT(), "mysql", "mariadb")
_TINY: Final = sa.SmallInteger().with_variant(mysql.TINYINT(4), "mysql", "mariadb")
_INT: Final = sa.Integer().with_variant(mysql.INTEGER(11), "mysql", "mariadb")
_BIG: Final = sa.BigInteger().with_variant(mysql.BIGINT(30), "mysql", "mariadb")
_MYSQL: Final[dict[str, Any]] = {
    f"{dialect}_{option}": value
    for dialect in ("mysql", "mariadb")
    for option, value in (("engine", "InnoDB"), ("charset", "utf8mb4"))
}


def create_amoro(url: sa.URL, *, upgraded: bool = False) -> None:
    """Creates AMS's tables that matter here; in SQLite, which AMS does not know, our own.

    Args:
        url: An empty database.
        upgraded: As MySQL's script from 0.4 to 0.5 left `resource`: its ids nullable and without
            a primary key, so that one can stand in several rows. No later script mends it.
    """
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    tables = own_metadata if engine.dialect.name == "sqlite" else _tables(url, upgraded=upgraded)
    with engine.begin() as connection:
        tables.create_all(connection)


def insert_resource(
    url: sa.URL,
    resource_id: str | None,
    *,
    properties: Mapping[str, str] | str | None = "{}",
    **columns: object,
) -> None:
    """A row as AMS inserts it after a start: no memory, type and start time left to the database.

    Args:
        url: Of a database with its tables.
        resource_id: None only in an upgraded one.
        properties: As a mapping they are written as AMS does, compact; a text stands as it is.
        columns: Values that differ.
    """
    text = dump_properties(properties) if isinstance(properties, Mapping) else properties
    started = {"group_name": "g", "container_name": "local", "thread_count": 2, "total_memory": 0}
    _insert(url, "resource", {"resource_id": resource_id, "properties": text} | started | columns)


def insert_optimizer(url: sa.URL, resource_id: str | None, **columns: object) -> str:
    """A row as AMS inserts it when an optimizer registers; without an id it came from outside.

    Returns:
        Its token.
    """
    token = str(uuid4())
    named = {"resource-id": resource_id} if resource_id else {}
    registered = {
        "group_name": "g",
        "container_name": "local",
        "thread_count": 2,
        "total_memory": 1024,  # MiB, as the optimizer says
        "properties": dump_properties({**named, "heart-beat-interval": "10000"}),
    }
    _insert(url, "optimizer", {"token": token, "resource_id": resource_id} | registered | columns)
    return token


def insert_group(
    url: sa.URL, group_name: str, properties: Mapping[str, str] = MappingProxyType({})
) -> None:
    """A row as AMS inserts it when somebody makes a group, in container local."""
    values = {"container_name": "local", "properties": dump_properties(properties)}
    _insert(url, "resource_group", {"group_name": group_name} | values)


def _insert(url: sa.URL, table: str, values: Mapping[str, object]) -> None:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    columns: list[sa.ColumnClause[Any]] = [
        sa.column(name, sa.DateTime() if isinstance(value, datetime) else None)
        for name, value in values.items()
    ]
    with engine.begin() as connection:
        connection.execute(sa.insert(sa.table(table, *columns)).values(values))


def _tables(url: sa.URL, *, upgraded: bool) -> sa.MetaData:
    tables = sa.MetaData()
    on_mysql = url.get_backend_name() in {"mysql", "mariadb"}
    loose = upgraded and on_mysql
    resource_id = sa.Column("resource_id", sa.String(100), primary_key=not loose, nullable=loose)
    _resource(
        tables, resource_id, "resource_group" if on_mysql else "resource_resource_group_index"
    )
    _optimizer(tables, "resource_group" if on_mysql else "optimizer_resource_group_index")
    sa.Table(
        "resource_group",
        tables,
        sa.Column("group_name", sa.String(50), primary_key=True),
        sa.Column("container_name", sa.String(100)),
        sa.Column("properties", _TEXT),
        **_MYSQL,
    )
    _ha_lease(tables)
    return tables


def _resource(tables: sa.MetaData, resource_id: sa.Column[str], index: str) -> None:
    sa.Table(
        "resource",
        tables,
        resource_id,
        sa.Column("resource_type", _TINY, server_default="0"),
        sa.Column("container_name", sa.String(100)),
        sa.Column("group_name", sa.String(50)),
        sa.Column("thread_count", _INT),
        sa.Column("total_memory", _BIG),
        _timestamp("start_time"),
        sa.Column("properties", _TEXT),
        sa.Index(index, "group_name"),
        **_MYSQL,
    )


def _optimizer(tables: sa.MetaData, index: str) -> None:
    sa.Table(
        "optimizer",
        tables,
        sa.Column("token", sa.String(50), primary_key=True),
        sa.Column("resource_id", sa.String(100)),  # without an index
        sa.Column("group_name", sa.String(50)),
        sa.Column("container_name", sa.String(100)),
        _timestamp("start_time"),
        _timestamp("touch_time"),
        sa.Column("thread_count", _INT),
        sa.Column("total_memory", _BIG),
        sa.Column("properties", _TEXT),
        sa.Index(index, "group_name"),
        **_MYSQL,
    )


def _timestamp(name: str) -> sa.Column[Any]:
    now = sa.text("CURRENT_TIMESTAMP")
    return sa.Column(name, sa.TIMESTAMP(), nullable=False, server_default=now)


def _ha_lease(tables: sa.MetaData) -> None:
    sa.Table(
        "ha_lease",
        tables,
        sa.Column("cluster_name", sa.String(64), primary_key=True),
        sa.Column("service_name", sa.String(64), primary_key=True),
        sa.Column("node_id", sa.String(256)),
        sa.Column("node_ip", sa.String(64)),
        sa.Column("server_info_json", sa.Text),
        sa.Column("lease_expire_ts", sa.BigInteger),
        sa.Column("version", sa.Integer, nullable=False, server_default="0"),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        sa.Index("idx_ha_lease_expire", "lease_expire_ts"),
        sa.Index("idx_ha_lease_node", "node_id"),
        **_MYSQL,
    )
