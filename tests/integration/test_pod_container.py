"""Workers that are pods: on a Kubernetes whose pods run real programs, and on worse answers."""

import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from dagster_amoro import PodContainer, declare, load_settings
from dagster_amoro.cli import REFUSED, main
from dagster_amoro.config import ContainerSettings
from dagster_amoro.containers.calls import start, stop
from dagster_amoro.containers.fences import Fence
from dagster_amoro.containers.isolated import IsolatedContainers
from dagster_amoro.containers.kubernetes.workers import Marks, object_name
from dagster_amoro.core.errors import (
    ContainerError,
    ReleaseFailedError,
    StartFailedError,
)
from dagster_amoro.core.model import Resource
from dagster_amoro.testing import ContainerContract
from tests.helpers.commands import command_runner
from tests.helpers.kubernetes import (
    NAMESPACE,
    TOKEN,
    Answer,
    Cluster,
    Script,
    kube_config,
    running_cluster,
    serving,
    status,
    verbs,
)
from tests.helpers.waiting import wait_until

PAGE: Final = Path(__file__).parents[2] / "docs" / "kubernetes.md"
SLEEPS: Final = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]
LINGERS: Final = [
    *(sys.executable, "-c"),
    "from signal import *; signal(15, SIG_IGN); print('up', flush=True); pause()",
]
KINDS: Final = ("Pod", "Job")
NAME: Final = object_name(Marks("pods", "etl-3"))
each_kind = pytest.mark.parametrize("kind", KINDS)


def template(kind: str, command: list[str], grace: int = 1) -> str:
    """A template of a kind, whose pods run a program on this machine."""
    worker = {"name": "worker", "image": "program:1.0", "command": command}
    spec: dict[str, Any] = {"terminationGracePeriodSeconds": grace, "containers": [worker]}
    if kind == "Job":
        spec = {"template": {"spec": spec}}
    api = {"Pod": "v1", "Job": "batch/v1"}[kind]
    return yaml.safe_dump({"apiVersion": api, "kind": kind, "spec": spec})


def resource(properties: Mapping[str, str] | None = None, resource_id: str = "etl-3") -> Resource:
    """A resource of the group etl."""
    return Resource(
        resource_id=resource_id,
        group_name="etl",
        container_name="pods",
        thread_count=2,
        memory_mb=64,
        properties=properties or {},
    )


def fence(attempt: int, ledger: str = "ledger") -> Fence:
    """That of an attempt."""
    return Fence(ledger, 7, attempt)


@pytest.fixture(scope="module")
def shared() -> Iterator[Cluster]:
    """A cluster for tests each of which has a resource of its own."""
    with running_cluster() as running:
        yield running


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A cluster of the test's own."""
    with running_cluster() as running:
        yield running


Made = Callable[..., PodContainer]


@pytest.fixture
def made(cluster: Cluster, tmp_path: Path) -> Made:
    """A container for the cluster, as each run has one of its own."""
    file = kube_config(tmp_path, cluster.port)

    def built(kind: str = "Pod", command: list[str] = SLEEPS, **properties: str) -> PodContainer:
        given = {
            "template": template(kind, command),
            "namespace": NAMESPACE,
            "kube-config-path": str(file),
            "deletion-timeout": "20s",
        }
        named = {key.replace("_", "-"): value for key, value in properties.items()}
        return PodContainer("pods", {**given, **named})

    return built


def runs(cluster: Cluster) -> bool:
    """Whether one pod runs a program, which is up, and no other one does."""
    running = cluster.processes()
    return len(running) == 1 and "up" in cluster.log(*running)


def killed(cluster: Cluster, number: signal.Signals = signal.SIGKILL) -> None:
    """The program of the only pod gets a signal."""
    (pid,) = cluster.processes().values()
    os.kill(pid, number)


# --- What a container has to do ------------------------------------------------------------------


@pytest.mark.engine
class TestPods(ContainerContract):
    """What every container has to do, with pods that run programs."""

    container_class = PodContainer
    settles = 1.0
    kind = "Pod"

    @pytest.fixture
    def cluster(self, shared: Cluster) -> Cluster:
        """One for all of these tests."""
        return shared

    @pytest.fixture
    def properties(self, made: Made) -> Mapping[str, str]:
        """Those of a container for the cluster."""
        return made(self.kind).properties

    @pytest.fixture
    def hopeless(self, made: Made) -> Mapping[str, str]:
        """There is no such namespace."""
        return made(self.kind, namespace="none").properties

    @pytest.fixture
    def count(self, cluster: Cluster) -> Callable[[Resource], int]:
        """Programs that run in pods of a resource."""
        return lambda row: len(pids(cluster, row))

    @pytest.fixture
    def kill(self, cluster: Cluster) -> Callable[[Resource], object]:
        """As a kernel does."""

        def kill(row: Resource) -> None:
            for pid in pids(cluster, row):
                os.kill(pid, signal.SIGKILL)

        return kill


class TestJobs(TestPods):
    """The same of Jobs."""

    kind = "Job"


def pids(cluster: Cluster, row: Resource) -> list[int]:
    """The processes of a resource of the contract."""
    name = object_name(Marks("contract", row.resource_id))
    return [pid for pod, pid in cluster.processes().items() if pod.startswith(name)]


@each_kind
@pytest.mark.engine
def test_a_worker_runs_until_it_is_released(cluster: Cluster, made: Made, kind: str) -> None:
    """By another container of the same configuration, as another run has one."""
    row = resource()
    row = row.with_properties(made(kind).request_resource(row))
    assert row.properties["pod-kind"] == kind
    assert row.properties["pod-name"] == NAME
    wait_until(lambda: runs(cluster))
    (pid,) = cluster.processes().values()
    assert made(kind).status(row) == "running"
    made(kind).release_resource(row)
    assert (cluster.items("pods"), cluster.processes()) == ([], {})
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert made(kind).status(row) == "ended"
    made(kind).release_resource(row)


@each_kind
@pytest.mark.engine
def test_how_a_worker_ended_is_known_with_its_log(cluster: Cluster, made: Made, kind: str) -> None:
    """Its status, its exit code or signal, and what it said last."""
    own = made(kind)
    row = resource()
    assert own.post_mortem(row).cause == "never started"
    row = row.with_properties(own.request_resource(row))
    wait_until(lambda: runs(cluster))
    killed(cluster)
    wait_until(lambda: own.status(row) == "ended")
    found = own.post_mortem(row)
    assert (found.cause, found.log) == ("killed", "up")
    assert "ended with exit code 137" in found.text
    own.release_resource(row)
    assert own.post_mortem(row).text.startswith("its pod is not there any more")


@pytest.mark.engine
def test_the_exit_code_of_a_worker_is_its_cause(cluster: Cluster, made: Made) -> None:
    """Where it ended by itself."""
    code = "import sys; print('no licence', file=sys.stderr); sys.exit(3)"
    own = made(command=[sys.executable, "-c", code])
    row = resource().with_properties(own.request_resource(resource()))
    wait_until(lambda: own.status(row) == "ended")
    found = own.post_mortem(row)
    assert (found.cause, found.log) == ("exit 3", "no licence")
    assert len(cluster.items("pods")) == 1


@pytest.mark.engine
def test_what_the_kubelet_says_is_told(cluster: Cluster, made: Made) -> None:
    """An image that is not there, memory that ran out, and a node that was low on it."""
    own = made()
    row = resource().with_properties(own.request_resource(resource()))
    waiting = {"name": "worker", "state": {"waiting": {"reason": "ImagePullBackOff"}}}
    cluster.says_of(NAME, {"phase": "Pending", "containerStatuses": [waiting]})
    assert own.post_mortem(row).cause == "never started"
    assert own.status(row) == "running"
    end = {"exitCode": 137, "reason": "OOMKilled", "finishedAt": "2026-03-29T01:00:00Z"}
    ended = {"name": "worker", "state": {"terminated": end}}
    cluster.says_of(NAME, {"phase": "Failed", "containerStatuses": [ended]})
    assert own.post_mortem(row).cause == "out of memory"
    assert own.status(row) == "ended"
    evicted = {"phase": "Failed", "reason": "Evicted", "message": "low on memory"}
    cluster.says_of(NAME, {**evicted, "containerStatuses": []})
    assert own.post_mortem(row).text == f"its last pod {NAME} was ended, Evicted: low on memory"


@pytest.mark.engine
def test_an_image_that_is_not_there_never_starts(cluster: Cluster, made: Made) -> None:
    """As a cluster says it that has looked for it."""
    text = template("Pod", SLEEPS).replace("program:1.0", "nobodys:9")
    own = made(template=text)
    row = resource().with_properties(own.request_resource(resource()))
    wait_until(lambda: "Pull" in own.post_mortem(row).text)
    assert own.post_mortem(row).cause == "never started"
    assert own.status(row) == "running"
    own.release_resource(row)
    assert cluster.items("pods") == []


@pytest.mark.engine
def test_secrets_of_the_template_are_in_no_log(cluster: Cluster, made: Made) -> None:
    """A worker that prints its own variable."""
    code = "import os, sys; print(os.environ['DB_PASSWORD']); sys.exit(1)"
    text = template("Pod", [sys.executable, "-c", code])
    spec = yaml.safe_load(text)
    spec["spec"]["containers"][0]["env"] = [{"name": "DB_PASSWORD", "value": "hunter2-s3cret"}]
    own = made(template=yaml.safe_dump(spec))
    row = resource().with_properties(own.request_resource(resource()))
    wait_until(lambda: own.status(row) == "ended")
    assert own.post_mortem(row).log == "***"
    assert len(cluster.items("pods")) == 1


# --- Never two, and nothing of somebody else -----------------------------------------------------


@each_kind
@pytest.mark.engine
def test_a_start_takes_the_place_of_what_an_earlier_one_left(
    cluster: Cluster, made: Made, kind: str
) -> None:
    """Whose run died before it could save where it is."""
    first = made(kind).request_resource(resource(), fence(1))
    wait_until(lambda: runs(cluster))
    second = made(kind).request_resource(resource(), fence(2))
    assert second["pod-uid"] != first["pod-uid"]
    wait_until(lambda: runs(cluster))
    assert len(cluster.items("pods")) == 1


@each_kind
@pytest.mark.engine
def test_a_late_attempt_is_refused_from_any_host(cluster: Cluster, made: Made, kind: str) -> None:
    """The object says for which attempt it was made: a file of a host is not needed for that."""
    row = resource()
    started = row.with_properties(made(kind).request_resource(row, fence(2)))
    wait_until(lambda: runs(cluster))
    before = cluster.processes()
    with pytest.raises(StartFailedError, match="refused, since a later attempt has called"):
        made(kind).request_resource(row, fence(1))
    with pytest.raises(ReleaseFailedError, match="refused, since a later attempt has called"):
        made(kind).release_resource(started, fence(1))
    assert cluster.processes() == before
    made(kind).release_resource(row, fence(3))
    assert cluster.processes() == {}


@pytest.mark.engine
def test_the_same_attempt_finds_what_it_made(cluster: Cluster, made: Made) -> None:
    """It was asked again, since nobody heard its answer."""
    first = made().request_resource(resource(), fence(1))
    assert made().request_resource(resource(), fence(1)) == first
    assert len(cluster.items("pods")) == 1


@each_kind
@pytest.mark.engine
def test_the_properties_of_an_older_launch_do_not_end_a_newer_one(
    cluster: Cluster, made: Made, kind: str
) -> None:
    """What followed a launch unsaved is ended by them; what followed that is somebody else's."""
    row = resource()
    first = row.with_properties(made(kind).request_resource(row))
    second = row.with_properties(made(kind).request_resource(first))
    third = row.with_properties(made(kind).request_resource(second))
    wait_until(lambda: runs(cluster))
    made(kind).release_resource(first)
    made(kind).release_resource(row)
    assert made(kind).status(third) == "running"
    made(kind).release_resource(second)
    assert cluster.items("pods") == []


@pytest.mark.engine
def test_what_only_has_the_name_is_left_alone(cluster: Cluster, made: Made) -> None:
    """And it is said whose it is, or is not."""
    pod = made().manifest(resource())
    del pod["metadata"]["annotations"]["dagster-amoro/container"]
    cluster.create("pods", pod)
    row, own = resource(), made()
    with pytest.raises(StartFailedError, match="exists and is not this worker's: by its annota"):
        own.request_resource(row)
    with pytest.raises(ReleaseFailedError, match="of container '' and resource 'etl-3'; remove"):
        own.release_resource(row, fence(9))
    assert own.status(row) == "unknown"
    assert len(cluster.items("pods")) == 1


@pytest.mark.engine
def test_kind_and_namespace_may_change_between_two_starts(cluster: Cluster, made: Made) -> None:
    """The row says where the worker is, whatever the configuration has become."""
    row = resource()
    first = row.with_properties(made("Pod").request_resource(row))
    wait_until(lambda: runs(cluster))
    second = row.with_properties(made("Job").request_resource(first))
    wait_until(lambda: runs(cluster))
    assert [pod["metadata"]["name"] != NAME for pod in cluster.items("pods")] == [True]
    elsewhere = made("Pod", namespace="default")
    assert elsewhere.status(second) == "running"
    elsewhere.release_resource(second)
    assert cluster.items("pods") == []


@pytest.mark.engine
def test_a_pod_that_does_not_go_away_is_not_called_gone(cluster: Cluster, made: Made) -> None:
    """It may be running on a node that nobody reaches: neither a stop nor a start goes on."""
    own = made(template=template("Pod", LINGERS, grace=15))
    own.deletion_timeout = 0.5
    row = resource().with_properties(own.request_resource(resource()))
    wait_until(lambda: "up" in cluster.log(NAME))
    with pytest.raises(ReleaseFailedError, match=r"was deleted and is still there after 0\.5 s"):
        own.release_resource(row)
    with pytest.raises(StartFailedError, match=r"was deleted and is still there after 0\.5 s"):
        own.request_resource(row)
    assert own.status(row) == "running"
    assert len(cluster.processes()) == 1


@pytest.mark.engine
def test_calls_in_processes_of_their_own_hand_the_fence_on(
    cluster: Cluster, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From two hosts, each with a home of its own: what a late run does is refused."""
    entry = ContainerSettings(
        name="pods",
        implementation="dagster_amoro.PodContainer",
        properties=made().properties,
    )
    row = resource()
    hosts = []
    for name in ("one", "two"):
        monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / name))
        hosts.append(IsolatedContainers({"pods": entry}))
        hosts[-1].get("pods").warm_up()  # type: ignore[attr-defined]
    one, two = hosts
    try:
        started = row.with_properties(start(two.get("pods"), row, fence(2)))
        with pytest.raises(StartFailedError, match="refused, since a later attempt"):
            start(one.get("pods"), row, fence(1))
        (note,) = stop(one.get("pods"), started, "it", fence(1)).notes
        assert "refused, since a later attempt" in note
        assert two.get("pods").status(started) == "running"  # type: ignore[attr-defined]
        assert stop(one.get("pods"), started, "it", fence(3)).notes == ()
    finally:
        one.close()
        two.close()
    assert cluster.items("pods") == []


# --- The page, and the check ---------------------------------------------------------------------


def documents() -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The objects of the page's first block of YAML, and the configuration in its second."""
    rights, config = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return list(yaml.safe_load_all(rights)), yaml.safe_load(config)


def role() -> list[dict[str, Any]]:
    """The rules of the page's role."""
    (found,) = (each for each in documents()[0] if each["kind"] == "Role")
    rules: list[dict[str, Any]] = found["rules"]
    return rules


@each_kind
@pytest.mark.engine
def test_the_rights_of_the_page_are_enough(cluster: Cluster, made: Made, kind: str) -> None:
    """For all that a container does, and `check` has nothing to say."""
    cluster.allow(role())
    own, row = made(kind), resource()
    assert own.problems() == []
    row = row.with_properties(own.request_resource(row))
    wait_until(lambda: own.status(row) == "running" and runs(cluster))
    killed(cluster)
    wait_until(lambda: own.status(row) == "ended")
    assert own.post_mortem(row).log == "up"
    own.release_resource(row)


@each_kind
@pytest.mark.engine
def test_each_right_of_the_page_is_needed(cluster: Cluster, made: Made, kind: str) -> None:
    """And `check` names the one that is missing, beside those of the other kind."""
    own, missing = made(kind), []
    for rule in role():
        for verb in rule["verbs"]:
            left = {**rule, "verbs": [each for each in rule["verbs"] if each != verb]}
            cluster.allow([left if each == rule else each for each in role()])
            missing += own.problems()
    what = f"{kind.lower()}s"
    needed = [f"{verb} {what}" for verb in ("create", "get", "delete")]
    needed += ["list pods", "get pods/log"]
    said = {f"its account may not {right} in namespace {NAMESPACE!r}" for right in needed}
    assert sorted(missing) == sorted(said)


@pytest.mark.engine
def test_a_check_makes_nothing_and_says_what_the_api_says(cluster: Cluster, made: Made) -> None:
    """A namespace that is not there, a label that is none, a field that nobody knows."""
    (problem,) = made(namespace="none").problems()
    assert "404" in problem
    labelled = yaml.safe_load(template("Pod", SLEEPS))
    labelled["metadata"] = {"labels": {"owner": "no label!"}}
    (problem,) = made(template=yaml.safe_dump(labelled)).problems()
    assert "422" in problem
    unknown = template("Pod", SLEEPS).replace("image:", "imagePullPolicies: x\n    image:")
    (problem,) = made(template=unknown).problems()
    assert "imagePullPolicies is no field that Kubernetes knows" in problem
    assert cluster.items("pods") == []


@pytest.mark.engine
def test_the_command_shows_what_is_missing_and_what_would_be_made(
    cluster: Cluster, made: Made, tmp_path: Path
) -> None:
    """`dagster-amoro check`, with the exit code that scripts look at."""
    entry = {
        "name": "pods",
        "container-impl": "dagster_amoro.PodContainer",
        "properties": dict(made().properties),
    }
    database = {"type": "sqlite", "url": f"sqlite:///{tmp_path}/r.db"}
    optimizer = {"auto-restart-enabled": True}
    config = {"ams": {"database": database, "optimizer": optimizer}, "containers": [entry]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    declare(load_settings(tmp_path, environ={}), resource())
    cluster.allow([{**role()[0], "verbs": ["create", "get", "delete"]}, *role()[1:]])
    arguments = ["--conf-dir", str(tmp_path), "check"]
    result = command_runner().invoke(main, arguments)
    assert result.exit_code == REFUSED
    assert "problem  container pods: its account may not list pods in nam" in result.output
    cluster.allow(role())
    result = command_runner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "    kind: Pod" in result.output.splitlines()
    assert f"      name: {NAME}" in result.output.splitlines()
    assert cluster.items("pods") == []


def test_the_template_of_the_page_is_one(tmp_path: Path) -> None:
    """With the client's own models, and without a warning about its configuration."""
    config = documents()[1]
    settings = load_settings(sections=config, environ={"DAGSTER_HOME": str(tmp_path)})
    assert settings.warnings == ()
    entry = settings.containers["pods"]
    found = PodContainer("pods", entry.properties).manifest(resource())
    worker = found["spec"]["containers"][0]
    assert worker["command"][:3] == ["dagster-amoro-beat", "--resource-id", "etl-3"]
    assert worker["resources"]["limits"] == {"memory": "64Mi"}


# --- Answers that a test makes up ----------------------------------------------------------------

GONE: Final = status(404, "NotFound", "not found")
EXISTS: Final = status(409, "AlreadyExists", "already exists")
DELETED: Answer = (200, "application/json", '{"kind": "Status", "status": "Success"}')


class Echo(Script):
    """An API that gives back what is created, and what it created where it is asked to."""

    def next(self, call: str, body: bytes, authorization: str | None) -> Answer:
        """The answer of the script, or `ECHO` filled in."""
        code, kind, text = super().next(call, body, authorization)
        sent = [each for each in self.bodies if each and each.get("kind") == "Pod"]
        if text == ECHO[2] and sent:
            found = {**sent[-1], "metadata": {**sent[-1]["metadata"], "uid": "u9"}}
            return code, kind, json.dumps(found)
        return code, kind, text


ECHO: Answer = (200, "application/json", "what was sent")
Scripted = Callable[..., tuple[PodContainer, Echo]]


@pytest.fixture
def scripted(tmp_path: Path) -> Iterator[Scripted]:
    """A container whose API gives these answers, and what it was asked."""
    with ExitStack() as stack:

        def built(*answers: Answer) -> tuple[PodContainer, Echo]:
            script = Echo(list(answers))
            port = stack.enter_context(serving(script))
            given = {
                "template": template("Pod", ["w"]),
                "kube-config-path": str(kube_config(tmp_path, port)),
            }
            own = PodContainer("pods", given)
            own.request_timeout, own.deletion_timeout = 0.5, 0.3
            return own, script

        yield built


def found(marks: Marks, uid: str = "u1") -> Answer:
    """A pod with these marks."""
    metadata = {"name": NAME, "uid": uid, "annotations": marks.annotations()}
    return 200, "application/json", json.dumps({"kind": "Pod", "metadata": metadata})


def test_without_a_leftover_one_call_is_enough(scripted: Scripted) -> None:
    """Nothing is looked for first."""
    own, script = scripted(ECHO)
    assert own.request_resource(resource())["pod-uid"] == "u9"
    assert script.calls == ["POST /api/v1/namespaces/default/pods"]


@pytest.mark.parametrize("lost", [(504, "text/plain", "timed out"), (500, "text/plain", "x")])
def test_a_creation_whose_answer_was_lost_is_found(scripted: Scripted, lost: Answer) -> None:
    """The object has the mark of this very call."""
    own, script = scripted(lost, ECHO)
    assert own.request_resource(resource())["pod-uid"] == "u9"
    assert verbs(script) == ["POST", "GET"]


def test_a_creation_that_failed_is_told_as_it_failed(scripted: Scripted) -> None:
    """Not as what was asked after it."""
    own, script = scripted((503, "text/plain", "try later"), GONE)
    with pytest.raises(StartFailedError, match=r"could not create Pod .* 503 .*: try later"):
        own.request_resource(resource())
    assert verbs(script) == ["POST", "GET"]
    own, script = scripted(status(403, "Forbidden", f"no rights; {TOKEN}"))
    with pytest.raises(StartFailedError, match="container 'pods': could not create") as caught:
        own.request_resource(resource())
    assert TOKEN not in str(caught.value)
    assert verbs(script) == ["POST"]


def test_only_the_pod_that_was_looked_at_is_deleted(scripted: Scripted) -> None:
    """Another that took its name meanwhile has other marks by then, and is looked at anew."""
    mine = Marks("pods", "etl-3", "l1")
    own, script = scripted(EXISTS, found(mine), DELETED, found(mine), GONE, ECHO)
    own.request_resource(resource())
    assert verbs(script) == ["POST", "GET", "DELETE", "GET", "GET", "POST"]
    assert script.bodies[2]["preconditions"] == {"uid": "u1"}


def test_a_race_is_not_run_for_ever(scripted: Scripted) -> None:
    """Somebody else wins each time."""
    own, script = scripted(EXISTS, GONE, EXISTS, GONE, EXISTS, GONE)
    with pytest.raises(StartFailedError, match="somebody else keeps creating Pod 'etl-3-"):
        own.request_resource(resource())
    assert verbs(script) == ["POST", "GET"] * 3


def test_what_the_client_does_not_send_is_told_without_its_value(scripted: Scripted) -> None:
    """It checks types before a cluster could, and would show what it was given."""
    own, script = scripted(ECHO)
    text = template("Pod", ["w"]).replace("Seconds: 1", "Seconds: hunter2-s3cret")
    own = PodContainer("pods", {**own.properties, "template": text})
    place = "spec.terminationGracePeriodSeconds cannot be sent"
    with pytest.raises(StartFailedError, match=place) as caught:
        own.request_resource(resource())
    assert "hunter2-s3cret" not in str(caught.value)
    assert script.calls == []


def test_an_api_that_is_away_concludes_nothing(scripted: Scripted) -> None:
    """Neither that a worker ended nor how."""
    own, _ = scripted((502, "text/html", "<h1>Bad gateway</h1>"))
    assert own.status(resource()) == "unknown"
    with pytest.raises(ReleaseFailedError, match=r"could not read Pod .* 502"):
        own.release_resource(resource())
    with pytest.raises(ContainerError, match=r"could not list pods of Pod .* 502"):
        own.post_mortem(resource())
    (problem,) = own.problems()
    assert "could not ask whether the account may create pods: 502" in problem
