"""Which AMS is it that leads, and where does it listen?"""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import sqlalchemy as sa

from dagster_amoro.ams.sockets import address
from dagster_amoro.core.errors import (
    AmsUnavailableError,
    ConfigError,
    StoreUnavailableError,
    describe,
    shorten,
)
from dagster_amoro.stores.database import Database, utc_now


@dataclass(frozen=True, slots=True)
class Server:
    """An AMS, as the network knows it."""

    host: str  # name or address
    thrift_port: int  # of the optimizing service, 1261 unless configured
    http_port: int  # of the REST API, 1630 in the shipped configuration

    @property
    def thrift_address(self) -> str:
        """Host and Thrift port."""
        return address(self.host, self.thrift_port)

    @property
    def http_address(self) -> str:
        """Host and HTTP port."""
        return address(self.host, self.http_port)


FindLeader = Callable[[], Server]
"""Says which AMS leads at this moment.

Raises:
    AmsUnavailableError: None does, as far as can be seen.
"""


class _NoLeaderError(Exception):
    """What was found names no leader."""


def always(server: Server) -> FindLeader:
    """The only AMS there is: `ha.enabled` is false."""
    return lambda: server


# ha.type database (AMS 0.9 and later): DataBaseHighAvailabilityContainer keeps a lease in the row
# AMS, and whoever gains it then writes its addresses into two further rows.

_LEASE: Final = "AMS"
_ADDRESS: Final = "OPTIMIZING_SERVICE"
_HA_LEASE: Final = sa.table(
    "ha_lease",
    *map(sa.column, ("cluster_name", "service_name", "node_id", "server_info_json")),
    sa.column("lease_expire_ts", sa.BigInteger),  # ms since 1970
)


def from_lease(database: Database, cluster_name: str, http_port: int) -> FindLeader:
    """The AMS that holds the lease in the table `ha_lease`: `ha.type` is database.

    Whether the lease has ended is judged by the database's clock.

    Args:
        database: AMS's own.
        cluster_name: `ha.cluster-name`.
        http_port: Where the REST API is, should AMS not have written it.
    """
    columns = (*_HA_LEASE.columns, utc_now().label("now"))
    statement = sa.select(*columns).where(
        _HA_LEASE.c.cluster_name == cluster_name,
        _HA_LEASE.c.service_name.in_([_LEASE, _ADDRESS]),
    )

    def find_leader() -> Server:
        try:
            with database.reading() as connection:
                rows = {row.service_name: row for row in connection.execute(statement)}
            _check_lease(rows)
            return _server(rows[_ADDRESS].server_info_json, http_port)
        except (StoreUnavailableError, _NoLeaderError) as error:
            raise _unknown(repr(cluster_name), error) from error

    return find_leader


def _check_lease(rows: dict[str, Any]) -> None:
    """Raises where nobody holds it, or where the address is not that of its holder."""
    for name in (_LEASE, _ADDRESS):
        if name not in rows:
            raise _NoLeaderError(f"table ha_lease has no row {name} of it")
    lease, found = rows[_LEASE], rows[_ADDRESS]
    if not isinstance(lease.lease_expire_ts, int):
        raise _NoLeaderError(f"the end of the lease is {lease.lease_expire_ts!r}")
    over_for = _milliseconds(lease.now) - lease.lease_expire_ts
    if over_for > 0:
        ended = f"ended {over_for / 1000:.1f} s ago{_at(lease.lease_expire_ts)}"
        raise _NoLeaderError(f"the lease of {lease.node_id} {ended}")
    if lease.node_id != found.node_id:  # the new one is about to write its own
        raise _NoLeaderError(
            f"the lease is held by {lease.node_id}, the address is still that of {found.node_id}"
        )


def _milliseconds(time: datetime) -> int:
    return round(time.replace(tzinfo=UTC).timestamp() * 1000)


def _at(milliseconds: int) -> str:
    with suppress(ValueError, OverflowError, OSError):  # a year that there is not
        time = datetime.fromtimestamp(milliseconds / 1000, UTC)
        return f", at {time.isoformat(timespec='seconds')}"
    return ""


# ha.type zk (the only one before 0.9): the leader writes its addresses into two nodes, which stay
# when it ends. The root was renamed in 0.9 (AmsHAProperties).

_NODES: Final = (
    "/{}/amoro/ams/optimizing-service-master",
    "/{}/arctic/ams/optimizing-service-master",
)


def from_zookeeper(addresses: str, cluster_name: str, http_port: int) -> FindLeader:
    """The AMS that wrote itself into ZooKeeper last: `ha.type` is zk.

    A look takes 10 s at most. It does not log in, so the nodes must be readable by anyone, as
    those that AMS creates are.

    Args:
        addresses: `ha.zookeeper-address`, several separated by commas.
        cluster_name: `ha.cluster-name`.
        http_port: Where the REST API is; AMS has written that since 0.9.

    Raises:
        ConfigError: The client library is not installed.
    """
    try:
        from dagster_amoro.ams import zookeeper  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise ConfigError(
            f"ha.type zk needs a ZooKeeper client ({error}): pip install dagster-amoro[zookeeper]"
        ) from error
    nodes = [node.format(cluster_name or "default") for node in _NODES]

    def find_leader() -> Server:
        try:
            return _server(zookeeper.read_newest(addresses, nodes), http_port)
        except (_NoLeaderError, *zookeeper.FAILURES) as error:
            raise _unknown(f"{cluster_name!r} in ZooKeeper {addresses}", error) from error

    return find_leader


def _server(text: object, http_port: int) -> Server:
    """What AMS wrote of itself, checked; None: it wrote nothing."""
    if text is None:
        raise _NoLeaderError("no leader has written its address yet")
    found: object = None
    if isinstance(text, str | bytes):
        with suppress(ValueError, RecursionError):
            found = json.loads(text)
    if not isinstance(found, dict):
        raise _NoLeaderError(
            f"what it wrote of itself is no JSON object: {shorten(repr(text), 200)}"
        )
    host = found.get("host")
    if not isinstance(host, str) or not host:
        raise _NoLeaderError(f"its host is {shorten(repr(host), 200)}")
    rest_port = found.get("restBindPort")
    return Server(
        host=host,
        thrift_port=_port("thriftBindPort", found.get("thriftBindPort")),
        http_port=http_port if rest_port is None else _port("restBindPort", rest_port),
    )


def _port(name: str, value: object) -> int:
    if type(value) is not int or not 0 < value < 2**16:
        raise _NoLeaderError(f"its {name} is {shorten(repr(value), 200)}")
    return value


def _unknown(cluster: str, error: Exception) -> AmsUnavailableError:
    reason = str(error) if isinstance(error, _NoLeaderError) else describe(error)
    return AmsUnavailableError(f"the leading AMS of cluster {cluster} is not known: {reason}")
