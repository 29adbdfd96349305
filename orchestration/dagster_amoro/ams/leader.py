"""Which AMS is it that leads, and where does it listen?"""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import sqlalchemy as sa

from dagster_amoro.core.errors import (
    AmsUnavailableError,
    ConfigError,
    KeeperError,
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

    def at(self, port: int) -> str:
        """Host and port as people write them, an IPv6 address in brackets."""
        return f"[{self.host}]:{port}" if ":" in self.host else f"{self.host}:{port}"


FindLeader = Callable[[], Server]
"""Says which AMS leads at this moment; an AmsUnavailableError where none seems to."""


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
    """The AMS that holds the lease in the table `ha_lease` of its database: `ha.type` is database.

    Whether the lease has ended is judged by the database's clock. `http_port` is where the REST
    API is, should AMS not have written it.
    """
    statement = sa.select(*_HA_LEASE.columns, utc_now().label("now")).where(
        _HA_LEASE.c.cluster_name == cluster_name, _HA_LEASE.c.service_name.in_([_LEASE, _ADDRESS])
    )

    def find_leader() -> Server:
        try:
            with database.reading() as connection:
                rows = {row.service_name: row for row in connection.execute(statement)}
            _check_lease(rows)
            return _server(rows[_ADDRESS].server_info_json, http_port)
        except KeeperError as error:
            raise _unknown(repr(cluster_name), error) from error

    return find_leader


def _check_lease(rows: dict[str, Any]) -> None:
    """Raises where nobody holds it, or where the address is not that of its holder."""
    for name in (_LEASE, _ADDRESS):
        if name not in rows:
            raise AmsUnavailableError(f"table ha_lease has no row {name} of it")
    lease, found = rows[_LEASE], rows[_ADDRESS]
    if not isinstance(lease.lease_expire_ts, int):
        raise AmsUnavailableError(f"the end of the lease is {lease.lease_expire_ts!r}")
    over_for = lease.now.replace(tzinfo=UTC).timestamp() - lease.lease_expire_ts / 1000
    if over_for > 0:
        at = ""
        with suppress(ValueError, OverflowError, OSError):  # a year that there is not
            end = datetime.fromtimestamp(lease.lease_expire_ts / 1000, UTC)
            at = f", at {end.isoformat(timespec='seconds')}"
        raise AmsUnavailableError(f"the lease of {lease.node_id} ended {over_for:.1f} s ago{at}")
    if lease.node_id != found.node_id:  # the new one is about to write its own
        raise AmsUnavailableError(
            f"the lease is held by {lease.node_id}, the address is still that of {found.node_id}"
        )


# ha.type zk (the only one before 0.9): the leader writes its addresses into two nodes, which stay
# when it ends. The root was renamed in 0.9 (AmsHAProperties).


def from_zookeeper(addresses: str, cluster_name: str, http_port: int) -> FindLeader:
    """The AMS that wrote itself into ZooKeeper last: `ha.type` is zk.

    A look takes 10 s at most. It does not log in, so the nodes must be readable by anyone, as
    those that AMS creates are. `addresses` are separated by commas; `http_port` is where the REST
    API is, which AMS has written since 0.9.

    Raises:
        ConfigError: The client library is not installed.
    """
    try:
        from dagster_amoro.ams import zookeeper  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise ConfigError(
            f"ha.type zk needs a ZooKeeper client ({error}): pip install dagster-amoro[zookeeper]"
        ) from error
    cluster = cluster_name or "default"
    nodes = [f"/{cluster}/{root}/ams/optimizing-service-master" for root in ("amoro", "arctic")]

    def find_leader() -> Server:
        try:
            return _server(zookeeper.read_newest(addresses, nodes), http_port)
        except (AmsUnavailableError, *zookeeper.FAILURES) as error:
            raise _unknown(f"{cluster_name!r} in ZooKeeper {addresses}", error) from error

    return find_leader


def _server(text: Any, http_port: int) -> Server:  # noqa: ANN401 - whatever the column holds
    """What AMS wrote of itself, checked; None: it wrote nothing."""
    if text is None:
        raise AmsUnavailableError("no leader has written its address yet")
    found: object = None
    with suppress(TypeError, ValueError, RecursionError):
        found = json.loads(text)
    if not isinstance(found, dict):
        raise AmsUnavailableError(
            f"what it wrote of itself is no JSON object: {shorten(repr(text), 200)}"
        )
    host = found.get("host")
    if not isinstance(host, str) or not host:
        raise AmsUnavailableError(f"its host is {shorten(repr(host), 200)}")
    thrift_port = _port("thriftBindPort", found.get("thriftBindPort"))
    rest_port = found.get("restBindPort")
    http_port = http_port if rest_port is None else _port("restBindPort", rest_port)
    return Server(host, thrift_port, http_port)


def _port(name: str, value: object) -> int:
    if type(value) is not int or not 0 < value < 2**16:
        raise AmsUnavailableError(f"its {name} is {shorten(repr(value), 200)}")
    return value


def _unknown(cluster: str, error: Exception) -> AmsUnavailableError:
    return AmsUnavailableError(
        f"the leading AMS of cluster {cluster} is not known: {describe(error)}"
    )
