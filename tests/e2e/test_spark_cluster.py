import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from dagster_amoro.containers import processes
from dagster_amoro.containers.amoro.local import processes_of
from dagster_amoro.containers.amoro.spark import SparkContainer
from dagster_amoro.core.errors import StartFailedError
from dagster_amoro.core.model import Resource
from dagster_amoro.testing import ContainerContract
from tests.engines.clusters import SparkStandalone, job_jar, missing, spark_standalone
from tests.helpers.ams import AmsLookAlike
from tests.helpers.waiting import wait_until

pytestmark = [
    pytest.mark.engine,
    pytest.mark.xdist_group("spark"),  # one cluster for all
    pytest.mark.skipif(missing("spark") is not None, reason=str(missing("spark"))),
]

GROUP = "spark-e2e"
REGISTERS_WITHIN = 60  # seconds; two JVMs and a busy machine
NOWHERE = "spark://127.0.0.1:1"


@pytest.fixture(scope="module")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkStandalone]:
    """A Spark cluster of one master and one worker."""
    with spark_standalone(tmp_path_factory.mktemp("spark") / "cluster") as found:
        yield found


@dataclass
class World:
    """A Spark cluster, an AMS, and one resource that is to run there."""

    spark: SparkStandalone
    ams: AmsLookAlike
    resource: Resource

    def container(self, mode: str, **properties: str) -> SparkContainer:
        """A container whose options keep Spark small and on the loopback device."""
        master = self.spark.rest_master_url if mode == "cluster" else self.spark.master_url
        conf = {
            "spark.master.rest.enabled": str(mode == "cluster").lower(),
            "spark.driver.memory": "512m",
            "spark.executor.memory": "512m",
            "spark.cores.max": "1",
            "spark.ui.enabled": "false",
            "spark.driver.extraJavaOptions": "--add-opens=java.base/sun.nio.ch=ALL-UNNAMED",
        }
        return SparkContainer(
            "spark",
            {
                "spark-home": str(self.spark.home),
                "ams-optimizing-uri": f"thrift://127.0.0.1:{self.ams.thrift_port}",
                "master": master,
                "deploy-mode": mode,
                "job-uri": str(job_jar()),
                "export.SPARK_LOCAL_IP": "127.0.0.1",
                **{f"spark-conf.{key}": value for key, value in conf.items()},
                **properties,
            },
        )

    def registered(self) -> int:
        """How often an optimizer with the resource's id has registered."""
        found = [each.resource_id for each in self.ams.registrations]
        return found.count(self.resource.resource_id)

    def await_registration(self, number: int) -> None:
        """Until the optimizer has registered so often."""
        wait_until(lambda: self.registered() == number, REGISTERS_WITHIN)

    def driver(self) -> list[int]:
        """The ids of the processes that drive, or submit, the resource."""
        options = {"-g": GROUP, "-id": self.resource.resource_id}
        return [process.pid for process in processes.started_with(options)]


@pytest.fixture
def world(
    spark: SparkStandalone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    """A world in which nothing was started yet, and nothing is left."""
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    resource = Resource(
        resource_id=uuid4().hex,
        group_name=GROUP,
        container_name="spark",
        thread_count=2,
        memory_mb=0,
        properties={"heart-beat-interval": "1000"},
    )
    with AmsLookAlike() as ams:
        found = World(spark, ams, resource)
        yield found
        processes.end(
            processes.started_with({"-g": GROUP, "-id": resource.resource_id}), patience=0.5
        )


class TestContract(ContainerContract):
    """What every container has to do, with drivers on this host."""

    container_class = SparkContainer
    patience = REGISTERS_WITHIN
    # A driver on this host is known by its resource's id alone; only fences tell launches apart.
    test_a_release_of_an_older_launch_leaves_the_newest_alone = None  # type: ignore[assignment]

    @pytest.fixture
    def properties(self, world: World) -> Mapping[str, str]:
        """Those of a container in client mode."""
        return world.container("client").properties

    @pytest.fixture
    def hopeless(self, world: World) -> Mapping[str, str]:
        """Nobody listens there."""
        return world.container("client", master=NOWHERE).properties

    @pytest.fixture
    def resource(self, world: World) -> Resource:
        """The world's."""
        return replace(world.resource, resource_id=f"contract-{uuid4().hex[:8]}")

    @pytest.fixture
    def count(self) -> Callable[[Resource], int]:
        """Drivers by their command lines."""
        return lambda row: len(processes_of(row))

    @pytest.fixture
    def kill(self) -> Callable[[Resource], object]:
        """SIGKILL."""
        return lambda row: kill([each.pid for each in processes_of(row)])


@pytest.mark.parametrize("mode", ["cluster", "client"])
def test_a_driver_is_started_lost_started_again_and_released(world: World, mode: str) -> None:
    """Each start registers under the resource's id; the release leaves nothing behind."""
    container, resource = world.container(mode), world.resource
    for number in (1, 2):
        container.release_resource(resource)  # as before any start
        resource = resource.with_properties(container.request_resource(resource))
        world.await_registration(number)
        assert container.status(resource) == "running"
        if number == 1:
            kill(world.driver())
            wait_until(lambda: container.status(resource) == "ended")  # noqa: B023 - here and now
            found = container.post_mortem(resource)
            assert found is not None
            assert found.cause == ("failed" if mode == "cluster" else "unknown")
            assert found.text.startswith("its last driver ")
    registration = world.ams.registrations[-1]
    assert (registration.group, registration.threads) == (GROUP, 2)
    assert registration.properties["job-id"].startswith("app-")
    container.release_resource(resource)
    assert container.status(resource) == "ended"
    wait_until(lambda: not world.driver())
    container.release_resource(resource)  # what is gone is no error


def test_what_client_mode_saves_is_the_application_that_registers(world: World) -> None:
    """The id in Spark's own words is the optimizer's job id."""
    container = world.container("client")
    started = container.request_resource(world.resource)
    world.await_registration(1)
    job_id = world.ams.registrations[0].properties["job-id"]
    assert started["spark-application-id"] == job_id
    container.release_resource(world.resource.with_properties(started))


@pytest.mark.parametrize(
    ("mode", "properties", "reason"),
    [
        ("cluster", {"job-uri": "/nowhere/job.jar"}, "ERROR already.*NoSuchFileException"),
        ("client", {"job-uri": "/nowhere/job.jar"}, "Local jar /nowhere/job.jar does not exist"),
        ("cluster", {"spark-conf.spark.driver.memory": "much"}, "Driver memory must be a positive"),
        ("client", {"spark-conf.spark.driver.memory": "much"}, "Invalid maximum heap size"),
        (
            "cluster",
            {"spark-conf.spark.driver.extraJavaOptions": "-XX:+Nonsense"},
            "FAILED already",
        ),
        ("cluster", {"master": NOWHERE}, "Connection refused"),
        ("client", {"master": NOWHERE}, "Failed to connect to master 127.0.0.1:1"),
    ],
)
def test_a_start_that_cannot_succeed_fails_soon_and_says_why(
    world: World, mode: str, properties: dict[str, str], reason: str
) -> None:
    """Long before Spark itself gives up, and nothing is left running."""
    began = time.monotonic()
    with pytest.raises(StartFailedError, match=f"(?s){reason}"):
        world.container(mode, **properties).request_resource(world.resource)
    assert time.monotonic() - began < 30
    wait_until(lambda: not world.driver())
    assert world.registered() == 0


class Pods:
    """As much of a Kubernetes API as spark-submit asks for: things with names, and pods kept."""

    def __init__(self) -> None:
        self.pods: dict[str, Any] = {}
        pods = self.pods

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                pod = pods.get(self.path.rpartition("/")[2])
                self.say(200, pod) if pod else self.say(404)

            def do_DELETE(self) -> None:
                self.content()
                pod = pods.pop(self.path.rpartition("/")[2], None)
                self.say(200, pod) if pod else self.say(404)

            def do_POST(self) -> None:
                thing = self.content()
                name = thing["metadata"]["name"]
                if name in pods:
                    self.say(409)
                    return
                thing["metadata"]["uid"] = name
                if thing["kind"] == "Pod":
                    pods[name] = {**thing, "status": {"phase": "Pending"}}
                self.say(201, thing)

            do_PATCH = do_POST  # noqa: N815 - the base class's name

            def content(self) -> Any:  # noqa: ANN401 - JSON
                length = int(self.headers.get("Content-Length") or 0)
                return json.loads(self.rfile.read(length) or "{}")

            def say(self, code: int, body: object = None) -> None:
                reason = {404: "NotFound", 409: "AlreadyExists"}.get(code)
                status = {"kind": "Status", "apiVersion": "v1", "code": code, "reason": reason}
                message = json.dumps(body or {**status, "message": reason}).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(message)))
                self.end_headers()
                self.wfile.write(message)

            def log_message(self, *_: object) -> None:
                """Nothing is written to the tests' output."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"k8s://http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def stop(self) -> None:
        """Goes away."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def pods() -> Iterator[Pods]:
    """A Kubernetes without any pod."""
    found = Pods()
    yield found
    found.stop()


def test_a_driver_pod_makes_way_for_the_next_one(world: World, pods: Pods) -> None:
    """The real spark-submit: a name is free again after the release, and not before it."""
    container = world.container(
        "cluster",
        master=pods.url,
        **{
            "job-uri": "local:///opt/spark/usrlib/optimizer-job.jar",
            "export.KUBECONFIG": "/dev/null",
            "spark-conf.spark.kubernetes.container.image": "apache/amoro-spark-optimizer",
            "spark-conf.spark.kubernetes.namespace": "amoro",
        },
    )
    pod = f"amoro-optimizer-{world.resource.resource_id}"
    for _ in range(2):
        started = container.request_resource(world.resource)
        assert started == {"kubernetes-submission-id": f"amoro:{pod}"}
        assert pods.pods[pod]["metadata"]["labels"]["optimizer-group"] == GROUP
        with pytest.raises(StartFailedError, match="AlreadyExists"):
            container.request_resource(world.resource)
        container.release_resource(world.resource.with_properties(started))
        assert pods.pods == {}
    container.release_resource(world.resource)  # what is gone is no error


def kill(pids: list[int]) -> None:
    """As the kernel does when memory is short."""
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
