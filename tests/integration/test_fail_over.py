"""Several hosts in a URL: which is found, and which of a primary and a stale standby is believed.

What a stale standby says of a worker may have been true once.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
import yaml

from dagster_amoro.config.jdbc import parse_url
from dagster_amoro.core.errors import StoreUnavailableError
from dagster_amoro.core.model import Resource, State
from dagster_amoro.stores.database import Database
from tests.helpers.attached import Amoro, amoro
from tests.helpers.databases import NO_MARIADB, administering, running_mariadb
from tests.helpers.fleet import GRACE
from tests.helpers.replication import Replicated, free_ports, replicated_postgresql
from tests.helpers.waiting import wait_until

pytestmark = pytest.mark.long

READ_ONLY = "the registry cannot be written: ReadOnlySqlTransaction: cannot execute "


@pytest.fixture(scope="module")
def servers() -> Iterator[Replicated]:
    """A primary, and a standby that follows it until a test cuts it off."""
    with replicated_postgresql() as found:
        yield found


@pytest.fixture
def running(servers: Replicated, tmp_path: Path) -> Iterator[Amoro]:
    """An Amoro on the primary, and a keeper whose ledger is elsewhere."""
    with amoro(servers.url(servers.primary), tmp_path) as found:
        reached_at(found, servers.jdbc(servers.primary))
        yield found
    with administering(servers.url(servers.primary)) as connection:
        connection.exec_driver_sql("DROP SCHEMA public CASCADE")
        connection.exec_driver_sql("CREATE SCHEMA public")


def reached_at(running: Amoro, url: str) -> None:
    """The operator writes another URL into config.yaml, and has the ledger in a file."""
    file = running.folder / "conf/config.yaml"
    conf: dict[str, Any] = yaml.safe_load(file.read_text())
    conf["ams"]["database"]["url"] = url
    conf["keeper"] = {"ledger-url": f"sqlite:///{running.folder}/ledger.db"}
    file.write_text(yaml.safe_dump(conf))
    running.reloaded()


def started(running: Amoro, name: str) -> Resource:
    """What a real process was started for, which registered with AMS."""
    resource = Resource(
        resource_id=name,
        group_name="g",
        container_name="local",
        thread_count=2,
        memory_mb=0,
        properties={"memory": "64"},
    )
    running.world.services.containers.get("local").request_resource(resource)
    wait_until(lambda: bool(running.ams.registrations))
    return resource


def test_a_stale_standby_has_no_healthy_process_stopped(
    servers: Replicated, running: Amoro
) -> None:
    """First of the hosts, it is no ground for an act; nor is a run that was requested before."""
    world, name = running.world, uuid4().hex  # its process is found by its id on the whole machine
    running.resources(name)
    world.tick()
    (request,) = world.later(GRACE).tick()
    servers.cut_off()
    resource = started(running, name)
    pids = processes(name)
    try:
        with administering(servers.url(servers.standby)) as connection:
            assert not connection.scalar(sa.text("SELECT count(*) FROM optimizer"))
        reached_at(running, servers.jdbc(servers.standby, servers.primary))
        (incident,) = world.claim(request, "run")
        with pytest.raises(StoreUnavailableError) as caught:
            world.services.restarter.restart(incident.incident_id, "run")
        assert str(caught.value).startswith(READ_ONLY)
        assert world.later(GRACE * 100).tick() == []
        assert world.message.startswith(f"Abstained, nothing was changed: {READ_ONLY}")
        (incident,) = world.incidents()
        assert (incident.state, incident.attempts) == (State.CLAIMED, 0)
        assert processes(name) == pids

        primary = "&targetServerType=primary"
        reached_at(running, servers.jdbc(servers.standby, servers.primary, parameters=primary))
        assert world.tick() == []
        assert "1 recovered" in world.message
        assert processes(name) == pids
    finally:
        world.services.containers.get("local").release_resource(resource)


def processes(name: str) -> set[int]:
    """The processes of this machine that have this id in their command line."""
    found = set()
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if name in each.read_text(errors="replace").split("\0"):
                found.add(int(each.parent.name))
        except OSError:
            continue
    assert found
    return found


@pytest.mark.parametrize("before", ["nobody", "the standby"])
def test_the_primary_is_found_behind_others(
    servers: Replicated, running: Amoro, before: str
) -> None:
    """Behind a host that is dead, and behind a standby where Amoro asks for the primary."""
    running.resources("w")
    first = servers.standby if before == "the standby" else free_ports(1)[0]
    parameters = "&targetServerType=primary" if before == "the standby" else ""
    reached_at(running, servers.jdbc(first, servers.primary, parameters=parameters))
    running.world.tick()
    assert running.world.message.startswith("1 resource, 1 orphan")


def test_mysqls_hosts_are_tried_in_turn(open_database: Callable[..., Database]) -> None:
    """A dead one is passed over; where all are dead, the error names each."""
    if NO_MARIADB:
        pytest.skip(NO_MARIADB)
    dead, other, alive = free_ports(3)
    with running_mariadb(alive) as administrator:
        with administering(administrator) as connection:
            connection.exec_driver_sql("CREATE USER keeper@'127.0.0.1'")
        hosts = f"127.0.0.1:{dead},address=(host=127.0.0.1)(port={alive})"
        url = parse_url(f"jdbc:mysql://{hosts}/information_schema?user=keeper")
        with open_database(url).reading() as connection:
            assert connection.scalar(sa.text("SELECT @@port")) == alive
    nobody = parse_url(f"jdbc:mysql://127.0.0.1:{dead},localhost:{other}/amoro?user=keeper")
    with pytest.raises(StoreUnavailableError) as caught, open_database(nobody).reading():
        pass
    assert "'127.0.0.1'" in str(caught.value)
    assert "'localhost'" in str(caught.value)
