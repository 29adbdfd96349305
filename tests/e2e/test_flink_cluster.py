"""Optimizers as jobs of a real Flink session cluster, registering at an AMS.

And Flink's own programs for the other targets, as far as they go without YARN and Kubernetes.
"""

import json
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests

from dagster_amoro.containers.amoro.flink import FlinkContainer
from dagster_amoro.core.errors import ReleaseFailedError, StartFailedError
from dagster_amoro.core.model import Resource
from dagster_amoro.testing import ContainerContract
from tests.engines.clusters import FlinkSession, flink_session, job_jar, missing
from tests.helpers.ams import AmsLookAlike, Registration
from tests.helpers.waiting import wait_until

_MISSING = missing("flink")
pytestmark = [
    pytest.mark.engine,
    pytest.mark.xdist_group("flink"),  # one cluster for all
    pytest.mark.skipif(_MISSING is not None, reason=str(_MISSING)),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlinkSession]:
    """A session cluster for all tests of this file."""
    with flink_session(tmp_path_factory.mktemp("flink")) as running:
        yield running


@pytest.fixture
def ams() -> Iterator[AmsLookAlike]:
    """An AMS of the test's own."""
    with AmsLookAlike() as running:
        yield running


def container(
    cluster: FlinkSession, ams: AmsLookAlike, properties: Mapping[str, str] | None = None
) -> FlinkContainer:
    """A container for the cluster."""
    return FlinkContainer(
        "flink",
        {
            "target": "session",
            "flink-home": str(cluster.home),
            "export.FLINK_CONF_DIR": str(cluster.conf_dir),
            "job-uri": str(job_jar()),
            "ams-optimizing-uri": f"thrift://127.0.0.1:{ams.thrift_port}",
            "ams-version": ams.version,
            **(properties or {}),
        },
    )


def resource(
    resource_id: str, properties: Mapping[str, str] | None = None, group: str = "g"
) -> Resource:
    """A resource whose optimizer registers."""
    return Resource(
        resource_id=resource_id,
        group_name=group,
        container_name="flink",
        thread_count=1,
        memory_mb=0,
        properties={"heart-beat-interval": "500", **(properties or {})},
    )


def registered(ams: AmsLookAlike, times: int) -> Registration:
    """The last of so many registrations, once they are there."""
    wait_until(lambda: len(ams.registrations) >= times)
    assert len(ams.registrations) == times
    return ams.registrations[-1]


def ask(cluster: FlinkSession, method: str, path: str) -> dict[str, list[dict[str, str]]]:
    """Asks Flink itself."""
    with requests.Session() as session:
        session.trust_env = False
        found: dict[str, list[dict[str, str]]] = session.request(
            method, cluster.rest_url + path, timeout=10
        ).json()
    return found


class TestContract(ContainerContract):
    """What every container has to do, with jobs of the session."""

    container_class = FlinkContainer
    settles = 10.0  # a job whose submission is broken off may still appear

    @pytest.fixture
    def properties(self, cluster: FlinkSession, ams: AmsLookAlike) -> Mapping[str, str]:
        """Those of a container for the cluster."""
        return container(cluster, ams).properties

    @pytest.fixture
    def hopeless(self, cluster: FlinkSession, ams: AmsLookAlike) -> Mapping[str, str]:
        """Nobody listens there."""
        return container(cluster, ams, {"flink-conf.rest.port": "1"}).properties

    @pytest.fixture
    def jobs(self, cluster: FlinkSession) -> Callable[[Resource], list[str]]:
        """The ids of a resource's jobs that are not over, as Flink itself lists them."""

        def jobs(row: Resource) -> list[str]:
            name, over = f"amoro-flink-optimizer-{row.resource_id}", {"FINISHED", "CANCELED"}
            found = ask(cluster, "GET", "/jobs/overview")["jobs"]
            mine = [each for each in found if each["name"] == name]
            return [each["jid"] for each in mine if each["state"] not in over]

        return jobs

    @pytest.fixture
    def count(self, jobs: Callable[[Resource], list[str]]) -> Callable[[Resource], int]:
        """How many they are."""
        return lambda row: len(jobs(row))

    @pytest.fixture
    def kill(
        self, cluster: FlinkSession, jobs: Callable[[Resource], list[str]]
    ) -> Callable[[Resource], object]:
        """Somebody cancels them in Flink's UI."""
        return lambda row: [ask(cluster, "PATCH", f"/jobs/{each}") for each in jobs(row)]


def test_dies_and_comes_back(cluster: FlinkSession, ams: AmsLookAlike) -> None:
    """Started, killed behind our back, started again under the same id, released."""
    flink = container(cluster, ams)
    first = resource("r1").with_properties(flink.request_resource(resource("r1")))
    job_id = first.properties["session-cluster-job-id"]
    registration = registered(ams, 1)
    assert (registration.resource_id, registration.group) == ("r1", "g")
    assert registration.properties["job-id"] == job_id
    assert flink.status(first) == "running"

    ask(cluster, "PATCH", f"/jobs/{job_id}?mode=cancel")
    wait_until(lambda: flink.status(first) == "ended")
    found = flink.post_mortem(first)
    assert found is not None
    assert found[:2] == ("killed", f"its last Flink job {job_id} is CANCELED")
    flink.release_resource(first)  # nothing is left of it, which is no error
    second = first.with_properties(flink.request_resource(first))
    assert registered(ams, 2).resource_id == "r1"
    assert second.properties["session-cluster-job-id"] != job_id
    jars = ask(cluster, "GET", "/jars")["files"]
    assert [jar["name"][16:] for jar in jars] == ["-optimizer-job.jar"]

    flink.release_resource(second)
    assert flink.status(second) == "ended"


def test_another_optimizers_job_is_left_alone(cluster: FlinkSession, ams: AmsLookAlike) -> None:
    """Its id stands in a row that AMS mixed up."""
    flink = container(cluster, ams)
    own = resource("r1").with_properties(flink.request_resource(resource("r1")))
    flink.release_resource(resource("r2", own.properties))
    assert flink.status(own) == "running"
    flink.release_resource(own)
    assert flink.status(own) == "ended"


@pytest.mark.parametrize("group", ["g&h;$(i)", "two words", 'it\'s "quoted"'])
def test_awkward_values_arrive(cluster: FlinkSession, ams: AmsLookAlike, group: str) -> None:
    """Whether in one text or in a list, the optimizer gets each argument as it is."""
    flink = container(cluster, ams)
    row = resource("r1", group=group)
    row = row.with_properties(flink.request_resource(row))
    assert registered(ams, 1).group == group
    flink.release_resource(row)


def test_a_jar_that_changed_is_the_one_that_runs(
    cluster: FlinkSession, ams: AmsLookAlike, tmp_path: Path
) -> None:
    """The first of that name does not start at all."""
    jar = tmp_path / "changing.jar"
    with zipfile.ZipFile(jar, "w") as empty:
        empty.writestr("nothing", "")
    flink = container(cluster, ams, {"job-uri": str(jar)})
    with pytest.raises(StartFailedError, match=r"/run: 500: [\s\S]*FlinkOptimizer"):
        flink.request_resource(resource("r1"))
    jar.write_bytes(job_jar().read_bytes())
    row = resource("r1").with_properties(flink.request_resource(resource("r1")))
    registered(ams, 1)
    flink.release_resource(row)


@pytest.mark.parametrize(
    ("properties", "says"),
    [
        ({"job-uri": "/no/such.jar"}, r"no file '/no/such\.jar'"),
        ({"flink-conf.rest.port": "1"}, r"127\.0\.0\.1:1/v1/overview: .*refused"),
        ({"flink-conf.rest.port": "{http}"}, r"404 with application/json, which is not Flink"),
        ({"ams-optimizing-uri": "nonsense"}, r"/run: \d+: [\s\S]*nonsense"),
    ],
)
def test_what_cannot_be_started(
    cluster: FlinkSession, ams: AmsLookAlike, properties: dict[str, str], says: str
) -> None:
    """The reason comes from Flink, or from the optimizer's own main class."""
    given = {key: value.format(http=ams.http_port) for key, value in properties.items()}
    with pytest.raises(StartFailedError, match=says):
        container(cluster, ams, given).request_resource(resource("r1"))
    assert ams.registrations == []


def test_no_slots(cluster: FlinkSession, ams: AmsLookAlike) -> None:
    """A job that waits for resources can be released all the same."""
    flink = container(cluster, ams)
    rows = [resource(f"r{number}") for number in range(9)]  # one more than there are slots
    rows = [row.with_properties(flink.request_resource(row)) for row in rows]
    registered(ams, 8)
    for row in rows:
        flink.release_resource(row)
    assert {flink.status(row) for row in rows} == {"ended"}


def test_the_cluster_dies(tmp_path: Path, ams: AmsLookAlike) -> None:
    """Nothing can be started then, and nobody knows what runs."""
    with flink_session(tmp_path / "flink") as cluster:
        flink = container(cluster, ams)
        row = resource("r1").with_properties(flink.request_resource(resource("r1")))
        registered(ams, 1)
    assert flink.status(row) == "unknown"
    with pytest.raises(StartFailedError, match="Connection refused"):
        flink.request_resource(row)
    with pytest.raises(ReleaseFailedError, match="Connection refused"):
        flink.release_resource(row)


def test_flinks_program_without_yarn(
    cluster: FlinkSession, ams: AmsLookAlike, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The real `flink run`, told to run on a YARN that is not there, says so."""
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    flink = container(cluster, ams, {"target": "yarn-per-job"})
    with pytest.raises(StartFailedError, match=r"exit code 1[\s\S]*export the HADOOP_CLASSPATH"):
        flink.request_resource(resource("r1"))


class KubernetesObjects(BaseHTTPRequestHandler):
    """Kubernetes' API, as far as Flink makes and ends clusters with it: objects, and no pods."""

    protocol_version = "HTTP/1.1"
    objects: dict[str, Any]

    def do_GET(self) -> None:
        """One object."""
        self._answer(self.objects.get(self.path))

    def do_POST(self) -> None:
        """A new object."""
        made = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.objects[f"{self.path}/{made['metadata']['name']}"] = made
        self._answer(made)

    def do_DELETE(self) -> None:
        """The end of the Deployment, and of what it owns."""
        self.rfile.read(int(self.headers["Content-Length"]))
        known = self.path in self.objects
        self.objects.clear()
        self._answer({"kind": "Status", "apiVersion": "v1", "status": "Success"} if known else None)

    def _answer(self, found: object) -> None:
        missing = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404}
        text = json.dumps(found or missing).encode()
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """Nothing is written to the tests' output."""


@pytest.fixture
def kubernetes(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a Kubernetes that `tmp_path / "kubeconfig"` leads to, by their paths."""
    objects: dict[str, Any] = {}
    handler = type("Handler", (KubernetesObjects,), {"objects": objects})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        config = {
            "clusters": [
                {"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}
            ],
            "users": [{"name": "u", "user": {"token": "t"}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        (tmp_path / "kubeconfig").write_text(json.dumps(config))
        yield objects
        server.shutdown()
        thread.join()


def test_flinks_programs_with_kubernetes(
    cluster: FlinkSession, ams: AmsLookAlike, kubernetes: dict[str, Any], tmp_path: Path
) -> None:
    """The real scripts make a cluster for an optimizer, end it, and make none by ending it."""
    flink = container(
        cluster,
        ams,
        {
            "target": "kubernetes-application",
            "job-uri": "local:///opt/flink/usrlib/optimizer-job.jar",
            "export.FLINK_LOG_DIR": str(tmp_path),
            "flink-conf.kubernetes.config.file": str(tmp_path / "kubeconfig"),
            "flink-conf.kubernetes.container.image": "optimizer:1",
        },
    )
    row = resource("r1").with_properties(flink.request_resource(resource("r1")))
    assert row.properties["kubernetes-cluster-id"] == "amoro-optimizer-r1"
    deployment = kubernetes["/apis/apps/v1/namespaces/default/deployments/amoro-optimizer-r1"]
    assert deployment["metadata"]["labels"]["amoro.optimizer-id"] == "r1"
    with pytest.raises(StartFailedError, match="amoro-optimizer-r1 already exists"):
        flink.request_resource(row)
    flink.release_resource(row)
    assert kubernetes == {}
    assert flink.request_resource(row)
