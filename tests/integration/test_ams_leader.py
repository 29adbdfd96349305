import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import pytest
import sqlalchemy as sa

from dagster_amoro.ams.leader import Server, always, from_lease, from_zookeeper
from dagster_amoro.core.errors import AmsUnavailableError, ConfigError
from dagster_amoro.stores.database import Database
from tests.helpers.ams import Canned
from tests.helpers.waiting import PATIENCE, wait_until

# As AMS's ams-mysql-init.sql and ams-postgres-init.sql have it.
HA_LEASE: Final = """
    CREATE TABLE ha_lease (
        cluster_name VARCHAR(64) NOT NULL, service_name VARCHAR(64) NOT NULL,
        node_id VARCHAR(256), node_ip VARCHAR(64), server_info_json TEXT, lease_expire_ts BIGINT,
        version INT DEFAULT 0 NOT NULL, updated_at BIGINT NOT NULL,
        PRIMARY KEY (cluster_name, service_name)
    )
"""
NODE: Final = "10.0.0.5:1261:11111111-2222-3333-4444-555555555555"
INFO: Final = '{"host":"10.0.0.5","restBindPort":1630,"thriftBindPort":1261}'
SERVER: Final = Server(host="10.0.0.5", thrift_port=1261, http_port=1630)
BAD_INFO: Final = [
    (None, "no leader has written its address yet"),
    ("", "what it wrote of itself is no JSON object: ''"),
    ("{", "what it wrote of itself is no JSON object: '{'"),
    ("[" * 20_000, "what it wrote of itself is no JSON object: "),
    ("null", "what it wrote of itself is no JSON object: 'null'"),
    ("{}", "its host is None"),
    ('{"host":""}', "its host is ''"),
    ('{"host":"h"}', "its thriftBindPort is None"),
    ('{"host":"h","thriftBindPort":true}', "its thriftBindPort is True"),
    ('{"host":"h","thriftBindPort":"1261"}', "its thriftBindPort is '1261'"),
    ('{"host":"h","thriftBindPort":65536}', "its thriftBindPort is 65536"),
    ('{"host":"h","thriftBindPort":1261,"restBindPort":0}', "its restBindPort is 0"),
]


def test_always() -> None:
    """Without high availability the configured server leads."""
    assert always(SERVER)() == SERVER


def test_addresses() -> None:
    """An IPv6 address is written in brackets."""
    assert SERVER.at(SERVER.thrift_port) == "10.0.0.5:1261"
    assert Server("::1", 1, 2).at(2) == "[::1]:2"


class Leases:
    """The table `ha_lease` of a database, and what is found in it."""

    def __init__(self, database: Database) -> None:
        self.database = database
        with database.writing() as connection:
            connection.exec_driver_sql(HA_LEASE)

    def write(
        self, service: str, node: str = NODE, info: str | None = None, ends_in: float | None = None
    ) -> None:
        """A row of the default cluster; its lease ends so many seconds from now."""
        row = {
            "cluster_name": "default",
            "service_name": service,
            "node_id": node,
            "server_info_json": info,
            "lease_expire_ts": None if ends_in is None else int((time.time() + ends_in) * 1000),
            "updated_at": 1,
        }
        table = sa.table("ha_lease", *map(sa.column, row))
        with self.database.writing() as connection:
            connection.execute(sa.insert(table).values(row))

    def leader(self, cluster: str = "default") -> Server:
        """Who leads."""
        return from_lease(self.database, cluster, 19090)()

    def problem(self, cluster: str = "default") -> str:
        """Why nobody is known to lead."""
        with pytest.raises(AmsUnavailableError) as caught:
            self.leader(cluster)
        start = f"the leading AMS of cluster {cluster!r} is not known: "
        assert str(caught.value).startswith(start)
        return str(caught.value).removeprefix(start)


@pytest.fixture
def leases(database_url: sa.URL, open_database: Callable[..., Database]) -> Leases:
    """The table on each database in turn, empty."""
    return Leases(open_database(database_url))


def test_lease(leases: Leases) -> None:
    """The holder of a lease that has not ended leads, in its own cluster only."""
    leases.write("AMS", info="{}", ends_in=30)
    leases.write("TABLE_SERVICE", info='{"host":"10.0.0.5","thriftBindPort":1260}')
    leases.write("OPTIMIZING_SERVICE", info=INFO)
    assert leases.leader() == SERVER
    assert leases.problem("other") == "table ha_lease has no row AMS of it"


def test_lease_without_rest_port(leases: Leases) -> None:
    """Where AMS did not write its REST port, the configured one is it."""
    leases.write("AMS", ends_in=30)
    leases.write("OPTIMIZING_SERVICE", info='{"host":"h","thriftBindPort":7,"restBindPort":null}')
    assert leases.leader() == Server("h", 7, 19090)


def test_ended_lease(leases: Leases) -> None:
    """A lease that has ended, by the database's clock, names nobody."""
    leases.write("AMS", ends_in=-90)
    leases.write("OPTIMIZING_SERVICE", info=INFO)
    start, end = leases.problem().split(", at ")
    assert start.startswith(f"the lease of {NODE} ended 9")
    assert 80 < time.time() - datetime.fromisoformat(end).timestamp() < 120


def test_lease_of_no_time(leases: Leases) -> None:
    """A lease without an end was never taken."""
    leases.write("AMS")
    leases.write("OPTIMIZING_SERVICE", info=INFO)
    assert leases.problem() == "the end of the lease is None"


def test_lease_that_ended_in_no_year(leases: Leases) -> None:
    """A lease whose end is no date ended all the same."""
    leases.write("AMS", ends_in=-1e15)
    leases.write("OPTIMIZING_SERVICE", info=INFO)
    assert leases.problem().endswith(" s ago")


def test_lease_just_taken_over(leases: Leases) -> None:
    """While the new leader has not written its address yet, the old one's is not used."""
    leases.write("AMS", node="10.0.0.6:1261:x", ends_in=30)
    assert leases.problem() == "table ha_lease has no row OPTIMIZING_SERVICE of it"
    leases.write("OPTIMIZING_SERVICE", info=INFO)
    assert leases.problem() == (
        f"the lease is held by 10.0.0.6:1261:x, the address is still that of {NODE}"
    )


@pytest.mark.parametrize(("info", "reason"), BAD_INFO)
def test_lease_with_garbage(
    sqlite_url: sa.URL, open_database: Callable[..., Database], info: str | None, reason: str
) -> None:
    """What is not an address as AMS writes it is shown, not used."""
    leases = Leases(open_database(sqlite_url))
    leases.write("AMS", ends_in=30)
    leases.write("OPTIMIZING_SERVICE", info=info)
    assert leases.problem().startswith(reason)


def test_no_lease_table(database_url: sa.URL, open_database: Callable[..., Database]) -> None:
    """A database of an AMS before 0.9 says that the table is not there."""
    find = from_lease(open_database(database_url), "default", 1630)
    with pytest.raises(AmsUnavailableError, match=r"(?s)cluster 'default' .*ha_lease"):
        find()


# ZooKeeper, the one that Spark brings along.

_JARS: Final = ("zookeeper", "slf4j-api", "audience", "metrics-core", "snappy")
NEW: Final = "/default/amoro/ams/optimizing-service-master"
OLD: Final = "/default/arctic/ams/optimizing-service-master"


def zookeeper_jars() -> list[str]:
    """The class path of a ZooKeeper server; skips where there is none."""
    folder = os.environ.get("DAGSTER_AMORO_ENGINES")
    engines = Path(folder) if folder else Path(__file__).parents[2] / ".dagster-amoro" / "engines"
    jars = [str(jar) for name in _JARS for jar in engines.glob(f"spark/jars/{name}-*.jar")]
    if len(jars) < len(_JARS) or shutil.which("java") is None:
        pytest.skip("there is no ZooKeeper: it comes with Spark (make engines), and runs on java")
    return jars


@pytest.fixture(scope="module")
def zookeeper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real ZooKeeper with nothing in it, as its address."""
    jars, folder = zookeeper_jars(), tmp_path_factory.mktemp("zookeeper")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (folder / "zoo.cfg").write_text(
        f"dataDir={folder}\nclientPort={port}\nclientPortAddress=127.0.0.1\n"
        "admin.enableServer=false\ntickTime=2000\n"
    )
    main = "org.apache.zookeeper.server.ZooKeeperServerMain"
    command = ["java", "-Xmx64m", "-cp", ":".join(jars), main, str(folder / "zoo.cfg")]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_until(lambda: _listens(port) or process.poll() is not None)
        assert process.poll() is None, (folder / "log").read_text()
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(PATIENCE)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


@pytest.fixture
def nodes(zookeeper: str) -> Iterator[Any]:
    """A client of that ZooKeeper, in which the test writes; all is removed afterwards."""
    kazoo = pytest.importorskip("kazoo.client", reason="there is no kazoo")
    client = kazoo.KazooClient(zookeeper)
    client.start(PATIENCE)
    try:
        yield client
        for name in set(client.get_children("/")) - {"zookeeper"}:
            client.delete(f"/{name}", recursive=True)
    finally:
        client.stop()
        client.close()


def zookeeper_problem(address: str) -> str:
    """Why nobody is known to lead, according to ZooKeeper; nothing is left running."""
    before = set(threading.enumerate())
    with pytest.raises(AmsUnavailableError) as caught:
        from_zookeeper(address, "default", 19090)()
    assert set(threading.enumerate()) <= before
    start = f"the leading AMS of cluster 'default' in ZooKeeper {address} is not known: "
    assert str(caught.value).startswith(start)
    return str(caught.value).removeprefix(start)


@pytest.mark.engine
def test_zookeeper(zookeeper: str, nodes: Any) -> None:  # noqa: ANN401 - kazoo has no types
    """The node of 0.9 is read, and nothing of the client is left."""
    nodes.create(NEW, INFO.encode(), makepath=True)
    before = set(threading.enumerate())
    assert from_zookeeper(zookeeper, "default", 19090)() == SERVER
    assert from_zookeeper(zookeeper, "", 19090)() == SERVER
    assert set(threading.enumerate()) <= before


@pytest.mark.engine
def test_zookeeper_of_old(zookeeper: str, nodes: Any) -> None:  # noqa: ANN401 - as above
    """The node of 0.7 and 0.8 has another path, and no REST port."""
    info = json.dumps({"host": "h", "thriftBindPort": 1261}).encode()
    nodes.create(OLD, info, makepath=True)
    assert from_zookeeper(zookeeper, "default", 19090)() == Server("h", 1261, 19090)


@pytest.mark.engine
def test_zookeeper_after_an_upgrade(zookeeper: str, nodes: Any) -> None:  # noqa: ANN401 - as above
    """Where both nodes are there, the one written last is right, whichever it is."""
    nodes.create(OLD, b"{}", makepath=True)
    nodes.create(NEW, INFO.encode(), makepath=True)
    assert from_zookeeper(zookeeper, "default", 19090)() == SERVER
    nodes.set(OLD, b'{"host":"back","thriftBindPort":1}')
    assert from_zookeeper(zookeeper, "default", 19090)() == Server("back", 1, 19090)


@pytest.mark.engine
def test_zookeeper_without_a_leader(zookeeper: str, nodes: Any) -> None:  # noqa: ANN401 - as above
    """No node, and a node that holds what Curator puts into it before a leader writes."""
    assert zookeeper_problem(zookeeper) == "no leader has written its address yet"
    nodes.create(NEW, b"10.0.0.5", makepath=True)
    assert zookeeper_problem(zookeeper) == (
        "what it wrote of itself is no JSON object: b'10.0.0.5'"
    )


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """ZooKeeper is given less time than usual."""
    zookeeper = pytest.importorskip("dagster_amoro.ams.zookeeper", reason="there is no kazoo")
    monkeypatch.setattr(zookeeper, "_SECONDS", 0.5)
    monkeypatch.setattr(zookeeper, "_SESSION_SECONDS", 0.3)


@pytest.mark.usefixtures("impatient")
def test_no_zookeeper() -> None:
    """A port on which nobody listens, and an address that cannot be."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    assert zookeeper_problem(address) == "TimeoutError: no server answers within 0.5 s"
    assert "ValueError" in zookeeper_problem("host:port")


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("stays", [False, True])
@pytest.mark.parametrize("reply", [b"\0\0\0\x01x", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_not_zookeeper(reply: bytes, stays: bool) -> None:  # noqa: FBT001 - a parameter
    """Something else on that port fails the look, and ends in time."""
    with Canned(reply, stays=stays) as other:
        zookeeper_problem(f"127.0.0.1:{other.port}")


@pytest.mark.long
def test_silent_zookeeper() -> None:
    """A server that says nothing holds nobody up for longer than 10 s."""
    pytest.importorskip("kazoo", reason="there is no kazoo")
    start = time.monotonic()
    with Canned(b"", stays=True) as other:
        zookeeper_problem(f"127.0.0.1:{other.port}")
    assert time.monotonic() - start < 15


def test_no_kazoo(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the client library the error says how to get it, before anything else happens."""
    monkeypatch.delitem(sys.modules, "dagster_amoro.ams.zookeeper", raising=False)
    monkeypatch.setitem(sys.modules, "kazoo.client", None)
    monkeypatch.delattr("dagster_amoro.ams.zookeeper", raising=False)
    with pytest.raises(ConfigError, match=r"pip install dagster-amoro\[zookeeper\]"):
        from_zookeeper("127.0.0.1:2181", "default", 1630)
