"""A standalone fleet of pods on PostgreSQL, kept alive by Dagsters that share no host.

Each has a home, a folder and processes of its own: what one of them started, the next one finds,
asks about and ends by what the registry and Kubernetes say.
"""

import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import sqlalchemy as sa
import yaml

from dagster_amoro import Resource, Settings, load_settings, scale_in, scale_out
from dagster_amoro.healing.restart import resource_of
from dagster_amoro.stores import schema
from dagster_amoro.stores.database import Database
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro.stores.registry import optimizer, orphan_of, resource
from tests.helpers.deployments import Deployment
from tests.helpers.kubernetes import NAMESPACE, Cluster, kube_config, running_cluster
from tests.helpers.waiting import wait_until

pytestmark = pytest.mark.engine

NAMES: Final = ("etl-1", "etl-2")
WORKER: Final = """
import os, sys, time
from datetime import timedelta
from dagster_amoro import Heartbeat
who = dict(resource_id=sys.argv[1], group_name=sys.argv[2], container_name="pods")
with Heartbeat(os.environ["REGISTRY"], **who, interval=timedelta(milliseconds=200)):
    print(sys.argv[1], "works", flush=True)
    time.sleep(600)
"""


def pod(url: sa.URL) -> Mapping[str, Any]:
    """A template: a pod whose worker writes heartbeats into a registry."""
    variables = {
        "REGISTRY": url.render_as_string(hide_password=False),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    worker = {
        "name": "worker",
        "image": "program:1.0",
        "command": [sys.executable, "-c", WORKER, "{resource_id}", "{group_name}"],
        "env": [{"name": name, "value": value} for name, value in variables.items()],
    }
    spec = {"terminationGracePeriodSeconds": 5, "containers": [worker]}
    return {"apiVersion": "v1", "kind": "Pod", "spec": spec}


def configuration(folder: Path, url: sa.URL, port: int) -> Mapping[str, Any]:
    """A config.yaml, whose database is in the environment."""
    properties = {
        "namespace": NAMESPACE,
        "kube-config-path": str(kube_config(folder, port)),
        "template": yaml.safe_dump(pod(url)),
    }
    return {
        "ams": {
            "database": {"type": "postgres"},
            "optimizer": {
                "auto-restart-enabled": True,
                "auto-restart-grace-period": "2s",
                "heart-beat-timeout": "2s",
            },
            "optimizer-group": {"min-parallelism-check-interval": "1s"},
        },
        "keeper": {"registry": "standalone"},
        "containers": [
            {
                "name": "pods",
                "container-impl": "dagster_amoro.PodContainer",
                "properties": properties,
            }
        ],
    }


@dataclass(frozen=True, kw_only=True)
class World:
    """A cluster, a registry, and what happens to the workers."""

    folder: Path
    url: sa.URL
    cluster: Cluster
    settings: Settings

    def deployed(self, name: str) -> Deployment:
        """Another Dagster takes over, in a folder of its own."""
        directory = self.folder / f"folder-of-{name}"
        directory.mkdir()
        return Deployment(name, self.folder, self.url, directory)

    def registered(self) -> dict[str, str]:
        """The tokens of the workers that are alive, by resource."""
        rows = self._rows(sa.select(optimizer.c.resource_id, optimizer.c.token))
        return {row.resource_id: row.token for row in rows}

    def incidents(self) -> list[tuple[str, str, str, int]]:
        """Which resource, its state, why its worker died, and the attempts; oldest first."""
        table = schema.incident.c
        columns = (table.resource_id, table.state, table.cause, table.attempts)
        query = sa.select(*columns).order_by(table.incident_id)
        return [tuple(row) for row in self._rows(query)]

    def row(self, name: str) -> Resource:
        """A resource with its start-up properties."""
        query = sa.select(resource).where(resource.c.resource_id == name)
        (found,) = self._rows(query)
        return resource_of(orphan_of(found._mapping))

    def pods(self) -> set[str]:
        """The names of all pods that are there."""
        return {each["metadata"]["name"] for each in self.cluster.items("pods")}

    def kill(self, name: str) -> None:
        """The worker of a resource is killed, as by a kernel."""
        os.kill(self.cluster.processes()[self.row(name).properties["pod-name"]], signal.SIGKILL)

    def is_healed(self, name: str, before: str, incidents: int) -> bool:
        """Whether it has registered anew, and the last of so many incidents says so."""
        found = self.incidents()
        is_closed = len(found) == incidents and found[-1][:2] == (name, "recovered")
        return is_closed and self.registered().get(name, before) != before

    def _rows(self, query: sa.Select[Any]) -> list[Any]:
        engine = sa.create_engine(self.url, poolclass=sa.NullPool)
        with engine.connect() as connection:
            return list(connection.execute(query))


@pytest.fixture
def world(
    tmp_path: Path, postgresql_url: sa.URL, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    """A fleet of two pods that are well, declared from a host of an operator."""
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "operator"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with running_cluster() as cluster:
        config = configuration(tmp_path, postgresql_url, cluster.port)
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        url = postgresql_url.render_as_string(hide_password=False)
        settings = load_settings(tmp_path, {**os.environ, "AMS_DATABASE_URL": url})
        with closing(Database(postgresql_url, "ledger")) as database:
            Ledger(database).open_incidents()  # which makes its tables
        made = World(folder=tmp_path, url=postgresql_url, cluster=cluster, settings=settings)
        for name in NAMES:
            worker = Resource(
                resource_id=name,
                group_name="etl",
                container_name="pods",
                thread_count=1,
                memory_mb=0,
            )
            scale_out(settings, worker)
        wait_until(lambda: made.registered().keys() == set(NAMES))
        yield made


def test_a_fleet_of_pods_is_kept_alive_by_one_dagster_after_the_other(world: World) -> None:
    """Killed, asked why, healed; killed again and healed from elsewhere; scaled in."""
    pods = world.pods()
    one = world.deployed("one")
    try:
        for number, name in enumerate(NAMES, start=1):
            before = world.registered()[name]
            world.kill(name)
            wait_until(lambda n=name, b=before, i=number: world.is_healed(n, b, i))  # type: ignore[misc]
        wait_until(one.has_no_run_under_way)
    finally:
        one.stop()
    assert world.incidents() == [(name, "recovered", "killed", 1) for name in NAMES]
    first = world.row("etl-1").properties["pod-uid"]
    two = world.deployed("two")
    try:
        before = world.registered()["etl-1"]
        world.kill("etl-1")
        wait_until(lambda: world.is_healed("etl-1", before, 3))
        wait_until(two.has_no_run_under_way)
    finally:
        two.stop()
    assert world.incidents()[-1] == ("etl-1", "recovered", "killed", 1)
    assert world.row("etl-1").properties["pod-uid"] != first
    assert world.pods() == pods  # each has the name of its resource, and there is one of each
    gone = world.row("etl-2").properties["pod-name"]
    scale_in(world.settings, "etl-2")
    assert world.pods() == pods - {gone}
