"""Optimizers on a Kubernetes API: real controllers where they are installed, and worse answers."""

import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml
from kubernetes.config import incluster_config

from dagster_amoro.containers.amoro.kubernetes import KubernetesContainer
from dagster_amoro.core.errors import ReleaseFailedError, StartFailedError
from dagster_amoro.core.model import Resource
from dagster_amoro.testing import ContainerContract
from tests.helpers.certificates import self_signed
from tests.helpers.kubernetes import (
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

ID = "5ghs0a2v1j9k3m7n4p8q6r0t2u"
NAME = f"amoro-optimizer-{ID}"
DEPLOY = Path(__file__).parents[2] / "deploy" / "helm"


def container(file: Path, **properties: str) -> KubernetesContainer:
    """A container for the server of a kubeconfig file."""
    given = {
        "image": "apache/amoro:0.9",
        "namespace": "amoro",
        "memory": "1024",
        "ams-optimizing-uri": "thrift://ams.svc:1261",
        "kube-config-path": str(file),
        **properties,
    }
    return KubernetesContainer("kubernetes", given)


def resource(properties: Mapping[str, str] | None = None, group: str = "k8s") -> Resource:
    """A resource with two threads."""
    return Resource(
        resource_id=ID,
        group_name=group,
        container_name="kubernetes",
        thread_count=2,
        memory_mb=0,
        properties=properties or {},
    )


# A cluster: the controllers of Kubernetes, behind its API.


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A cluster of the test's own."""
    with running_cluster() as running:
        yield running


def uid(cluster: Cluster) -> str:
    """Which Deployment it is that is there."""
    (only,) = cluster.items("deployments")
    return str(only["metadata"]["uid"])


@pytest.fixture
def kubernetes(cluster: Cluster, tmp_path: Path) -> KubernetesContainer:
    """A container for the cluster."""
    return container(kube_config(tmp_path, cluster.port))


@pytest.mark.engine
class TestContract(ContainerContract):
    """What every container has to do, on the API with its controllers."""

    container_class = KubernetesContainer
    settles = 1.0

    @pytest.fixture
    def properties(self, kubernetes: KubernetesContainer) -> Mapping[str, str]:
        """Those of a container for the cluster."""
        return kubernetes.properties

    @pytest.fixture
    def hopeless(self, kubernetes: KubernetesContainer) -> Mapping[str, str]:
        """There is no such namespace."""
        return {**kubernetes.properties, "namespace": "none"}

    @pytest.fixture
    def count(self, cluster: Cluster) -> Callable[[Resource], int]:
        """Pods, by their label."""

        def count(row: Resource) -> int:
            labels = [each["metadata"]["labels"] for each in cluster.items("pods")]
            return [each["AmoroResourceId"] for each in labels].count(row.resource_id)

        return count

    @pytest.fixture
    def kill(self, cluster: Cluster) -> Callable[[Resource], object]:
        """Somebody deletes its Deployment: a pod alone would come back."""
        return lambda row: cluster.delete("deployments", f"amoro-optimizer-{row.resource_id}")


@pytest.mark.engine
def test_an_optimizer_runs_with_its_arguments(
    cluster: Cluster, kubernetes: KubernetesContainer
) -> None:
    """A Deployment becomes a pod, whose command is what the manifest means."""
    uri = "thrift://h:1261?a=$(HOSTNAME)&b=$$(HOSTNAME)"
    row = resource({"ams-optimizing-uri": uri})
    started = kubernetes.request_resource(row)
    assert started == {"namespace": "amoro", "name": NAME}
    wait_until(lambda: kubernetes.status(row.with_properties(started)) == "running")
    assert cluster.get("/started") == [
        [
            "sh",
            "-c",
            f"exec /entrypoint.sh optimizer 1638  -a '{uri}' -p 2 -g k8s -id {ID}",
        ]
    ]
    (deployment,) = cluster.items("deployments")
    manifest = kubernetes.manifest(row)
    assert deployment["metadata"]["name"] == NAME
    assert deployment["spec"]["template"] == manifest["spec"]["template"]


@pytest.mark.engine
def test_a_release_ends_pods_too(cluster: Cluster, kubernetes: KubernetesContainer) -> None:
    """When it returns, nothing of the optimizer is left; to do it again is no error."""
    row = resource()
    row = row.with_properties(kubernetes.request_resource(row))
    wait_until(lambda: kubernetes.status(row) == "running")
    kubernetes.release_resource(row)
    assert (cluster.items("deployments"), cluster.items("pods")) == ([], [])
    assert kubernetes.status(row) == "ended"
    kubernetes.release_resource(row)


@pytest.mark.engine
def test_a_leftover_is_replaced(cluster: Cluster, kubernetes: KubernetesContainer) -> None:
    """A start comes through whatever an earlier one left behind."""
    kubernetes.request_resource(resource())
    first = uid(cluster)
    assert kubernetes.request_resource(resource())["name"] == NAME
    assert uid(cluster) != first
    wait_until(lambda: kubernetes.status(resource()) == "running")
    assert len(cluster.items("pods")) == 1


@pytest.mark.engine
def test_a_deployment_of_others_is_left_alone(
    cluster: Cluster, kubernetes: KubernetesContainer, tmp_path: Path
) -> None:
    """One that only has the name is not replaced."""
    manifest = kubernetes.manifest(resource())
    manifest["spec"]["template"]["metadata"]["labels"]["AmoroResourceId"] = "other"
    cluster.create("deployments", manifest)
    first = uid(cluster)
    with pytest.raises(StartFailedError, match="AmoroResourceId='other'"):
        container(kube_config(tmp_path, cluster.port)).request_resource(resource())
    assert uid(cluster) == first


@pytest.mark.engine
def test_a_foreign_name_in_the_row_is_left_alone(
    cluster: Cluster, kubernetes: KubernetesContainer
) -> None:
    """AMS can leave another optimizer's start-up keys in a row."""
    started = kubernetes.request_resource(resource())
    foreign = Resource(
        resource_id="another",
        group_name="k8s",
        container_name="kubernetes",
        thread_count=1,
        memory_mb=0,
        properties=started,
    )
    kubernetes.release_resource(foreign)
    assert [each["metadata"]["name"] for each in cluster.items("deployments")] == [NAME]


@pytest.mark.engine
def test_a_release_without_start_up_keys_finds_the_deployment(
    cluster: Cluster, kubernetes: KubernetesContainer
) -> None:
    """Its name follows from the id, its namespace from the configuration."""
    kubernetes.request_resource(resource())
    kubernetes.release_resource(resource())
    assert cluster.items("deployments") == []


@pytest.mark.engine
def test_an_optimizer_that_crashes_is_not_called_running(cluster: Cluster, tmp_path: Path) -> None:
    """There is a Deployment, but nothing of it is available."""
    own = container(kube_config(tmp_path, cluster.port), image="apache/amoro:crashing")
    own.request_resource(resource())
    wait_until(lambda: bool(cluster.items("pods")))
    assert own.status(resource()) == "unknown"
    wait_until(lambda: own.post_mortem(resource()).cause == "exit 1")


@pytest.mark.engine
def test_how_its_pod_ended(cluster: Cluster, kubernetes: KubernetesContainer) -> None:
    """As the kubelet wrote it down; before, there is nothing to say."""
    assert kubernetes.post_mortem(resource()).text.startswith("there is no pod of Deployment ")
    row = resource()
    row = row.with_properties(kubernetes.request_resource(row))
    wait_until(lambda: kubernetes.status(row) == "running")
    assert kubernetes.post_mortem(row).cause == "unknown"
    (pod,) = cluster.items("pods")
    name, at = pod["metadata"]["name"], "2026-03-29T01:00:00Z"
    for reason, code, cause in (("OOMKilled", 137, "out of memory"), ("Error", 3, "exit 3")):
        ended = {"exitCode": code, "reason": reason, "message": "its heap", "finishedAt": at}
        states = [{"name": "optimizer", "lastState": {"terminated": ended}}]
        cluster.says_of(name, {"containerStatuses": states})
        text = f"its last pod {name} ended with exit code {code}, {reason}, at {at}"
        assert kubernetes.post_mortem(row) == (cause, text, "its heap")
    waiting = {"reason": "ImagePullBackOff", "message": "no such image"}
    states = [{"name": "optimizer", "state": {"waiting": waiting}}]
    cluster.says_of(name, {"containerStatuses": states})
    text = f"its last pod {name} waits, ImagePullBackOff: no such image"
    assert kubernetes.post_mortem(row) == ("never started", text, "")


@pytest.mark.engine
def test_the_api_explains_a_refusal(cluster: Cluster, kubernetes: KubernetesContainer) -> None:
    """A group name that cannot be a label, and a namespace that is not there."""
    with pytest.raises(StartFailedError, match=r'422 .*"no label!"'):
        kubernetes.request_resource(resource(group="no label!"))
    with pytest.raises(StartFailedError, match=r"namespace 'none': 404 .*none"):
        kubernetes.request_resource(resource({"namespace": "none"}))
    assert cluster.items("deployments") == []


@pytest.mark.engine
def test_a_wrong_token_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    """The error says so, and does not show the token."""
    own = container(kube_config(tmp_path, cluster.port, token="wr0ng-t0ken"))  # noqa: S106
    with pytest.raises(StartFailedError, match="401 Unauthorized") as caught:
        own.request_resource(resource())
    assert "wr0ng-t0ken" not in str(caught.value)
    assert own.status(resource()) == "unknown"


@pytest.mark.engine
def test_the_kubeconfig_of_the_environment_is_used(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the container names none, and below the home folder where it begins with ~."""
    file = kube_config(tmp_path, cluster.port)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("KUBECONFIG", str(file))
    assert container(Path(), **{"kube-config-path": ""}).status(resource()) == "ended"
    monkeypatch.delenv("KUBECONFIG")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert container(Path("~", file.name)).status(resource()) == "ended"


# A server that answers as the test wants it to.


def found(uid: str = "u1", **metadata: object) -> Answer:
    """The resource's Deployment."""
    spec = {
        "selector": {"matchLabels": {"app": NAME}},
        "template": {"metadata": {"labels": {"app": NAME, "AmoroResourceId": ID}}},
    }
    body = {"kind": "Deployment", "metadata": {"name": NAME, "uid": uid, **metadata}, "spec": spec}
    return 200, "application/json", json.dumps(body)


CREATED: Answer = (201, "application/json", '{"kind": "Deployment"}')
DELETED: Answer = (200, "application/json", '{"kind": "Status", "status": "Success"}')
EXISTS = status(409, "AlreadyExists", f'deployments.apps "{NAME}" already exists')
GONE = status(404, "NotFound", f'deployments.apps "{NAME}" not found')
LOGIN: Answer = (200, "text/html; charset=utf-8", "<html>\n  <h1>Please  log in</h1></html>")


Scripted = Callable[..., tuple[KubernetesContainer, Script]]


@pytest.fixture
def scripted(tmp_path: Path) -> Iterator[Scripted]:
    """A container whose API gives these answers, and what it was asked."""
    with ExitStack() as stack:

        def made(*answers: Answer, **properties: str) -> tuple[KubernetesContainer, Script]:
            script = Script(list(answers))
            port = stack.enter_context(serving(script))
            own = container(kube_config(tmp_path, port), **properties)
            own.request_timeout, own.deletion_timeout = 0.5, 0.3
            return own, script

        yield made


def test_without_a_leftover_one_call_is_enough(scripted: Scripted) -> None:
    """Nothing is looked for first."""
    own, script = scripted(CREATED)
    own.request_resource(resource())
    assert script.calls == ["POST /apis/apps/v1/namespaces/amoro/deployments"]
    assert script.bodies == [own.manifest(resource())]


def test_only_the_deployment_that_was_looked_at_is_deleted(scripted: Scripted) -> None:
    """With its pods, and a replacement waits until it is gone."""
    leaving = found(deletionTimestamp="2026-01-01T00:00:00Z")
    own, script = scripted(EXISTS, found(), DELETED, leaving, leaving, GONE, CREATED)
    own.request_resource(resource())
    assert verbs(script) == ["POST", "GET", "DELETE", "GET", "GET", "GET", "POST"]
    assert script.bodies[2] == {"propagationPolicy": "Foreground", "preconditions": {"uid": "u1"}}


def test_a_leftover_that_goes_by_itself(scripted: Scripted) -> None:
    """It was there for the creation and is gone for the look."""
    own, script = scripted(EXISTS, GONE, CREATED)
    own.request_resource(resource())
    assert verbs(script) == ["POST", "GET", "POST"]


def test_a_race_is_run_once_more(scripted: Scripted) -> None:
    """Somebody else created one between our deletion and our creation."""
    conflict = status(409, "Conflict", "the UID in the precondition does not match")
    own, script = scripted(EXISTS, found(), conflict, found("u2"), EXISTS, GONE, CREATED)
    own.request_resource(resource())
    assert verbs(script) == ["POST", "GET", "DELETE", "GET", "POST", "GET", "POST"]


def test_a_race_is_not_run_for_ever(scripted: Scripted) -> None:
    """Somebody else wins each time."""
    own, script = scripted(EXISTS, GONE, EXISTS, GONE, EXISTS, GONE)
    with pytest.raises(StartFailedError, match="somebody else keeps creating"):
        own.request_resource(resource())
    assert verbs(script) == ["POST", "GET"] * 3


def test_a_leftover_that_never_goes_away(scripted: Scripted) -> None:
    """Neither a start nor a release pretends to be done."""
    own, _ = scripted(EXISTS, found(), DELETED, found())
    with pytest.raises(StartFailedError, match=r"was deleted and is still there after 0\.3 s"):
        own.request_resource(resource())
    own, _ = scripted(DELETED, found())
    with pytest.raises(ReleaseFailedError, match=r"was deleted and is still there after 0\.3 s"):
        own.release_resource(resource())


def test_a_release_is_done_when_another_took_the_name(scripted: Scripted) -> None:
    """What was there is gone; what came is somebody's who started it."""
    own, script = scripted(DELETED, found("u1"), found("u2"))
    own.release_resource(resource())
    assert verbs(script) == ["DELETE", "GET", "GET"]
    assert script.bodies[0] == {"propagationPolicy": "Foreground"}


def test_refusals_are_readable(scripted: Scripted) -> None:
    """With the API's reason, and without the token that the server repeats."""
    told = f'deployments.apps is forbidden: User "amoro" cannot create; token={TOKEN} {TOKEN}'
    own, script = scripted(status(403, "Forbidden", told))
    with pytest.raises(StartFailedError, match=r'403 Forbidden: .*User "amoro" cannot') as caught:
        own.request_resource(resource())
    assert TOKEN not in str(caught.value)
    assert "X-Echo" not in str(caught.value)
    with pytest.raises(ReleaseFailedError, match=r"could not delete Deployment .* 403 Forbidden"):
        own.release_resource(resource())
    assert own.status(resource()) == "unknown"
    assert verbs(script) == ["POST", "DELETE", "GET"]


@pytest.mark.parametrize("code", [429, 500, 503])
def test_a_busy_server_is_not_asked_again(scripted: Scripted, code: int) -> None:
    """The keeper's own attempts are the retries."""
    own, script = scripted((code, "text/plain", "try later"))
    with pytest.raises(StartFailedError, match=f"{code} .*: try later"):
        own.request_resource(resource())
    with pytest.raises(ReleaseFailedError, match=f"{code} .*: try later"):
        own.release_resource(resource())
    assert verbs(script) == ["POST", "DELETE"]


def test_a_web_page_is_not_taken_for_the_api(scripted: Scripted) -> None:
    """A login page has status 200; a proxy's 404 does not mean that a Deployment is gone."""
    own, _ = scripted(LOGIN)
    with pytest.raises(StartFailedError, match=r"not the Kubernetes API's: <html> <h1>Please log"):
        own.request_resource(resource())
    own, _ = scripted((404, "text/html", "<h1>no such site</h1>"))
    with pytest.raises(ReleaseFailedError, match=r"404 Not Found: <h1>no such site"):
        own.release_resource(resource())
    assert own.status(resource()) == "unknown"


def test_a_redirect_is_not_followed(scripted: Scripted) -> None:
    """Whoever gets the token is who was configured."""
    own, script = scripted((302, "text/html", "moved"))
    with pytest.raises(StartFailedError, match="302"):
        own.request_resource(resource())
    assert len(script.calls) == 1


def test_in_a_cluster_the_service_account_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its token and its authority; one that is not trusted is reported."""
    certificate, other = self_signed(tmp_path, "cluster"), self_signed(tmp_path, "other")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    (tmp_path / "token").write_text(TOKEN)
    own = container(Path(), **{"kube-config-path": ""})
    with serving(script := Script([CREATED]), tls) as port:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(port))
        monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
        monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(certificate))
        assert own.request_resource(resource())["name"] == NAME
        assert script.authorizations == [f"bearer {TOKEN}"]
        monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(other))
        with pytest.raises(StartFailedError, match="certificate verify failed"):
            own.request_resource(resource())


def test_a_server_that_is_down_fails_at_once(tmp_path: Path) -> None:
    """Without a storm of retries."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    own = container(kube_config(tmp_path, port))
    begin = time.monotonic()
    with pytest.raises(StartFailedError, match=r"does not answer: .*refused"):
        own.request_resource(resource())
    with pytest.raises(ReleaseFailedError, match=f"http://127.0.0.1:{port} does not answer"):
        own.release_resource(resource())
    assert own.status(resource()) == "unknown"
    assert time.monotonic() - begin < 5


def test_a_server_that_hangs_is_given_up(tmp_path: Path) -> None:
    """It accepts connections and says nothing; once is enough to know."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        own = container(kube_config(tmp_path, silent.getsockname()[1]))
        own.request_timeout = 0.3
        with pytest.raises(ReleaseFailedError, match=r"does not answer: .*timed out"):
            own.release_resource(resource())
        silent.settimeout(0)
        silent.accept()[0].close()
        with pytest.raises(BlockingIOError):
            silent.accept()


def test_a_server_that_speaks_something_else(tmp_path: Path) -> None:
    """It is no HTTP."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(10_000)
                connection.sendall(b"220 mail ready\r\n")

        thread = threading.Thread(target=greet)
        thread.start()
        own = container(kube_config(tmp_path, server.getsockname()[1]))
        with pytest.raises(StartFailedError, match="does not answer"):
            own.request_resource(resource())
        thread.join()


# What the account of a deployment may do.


def granted() -> set[tuple[str, str, str]]:
    """The verbs of the role in `deploy/`, each with a kind of object and its group of the API."""
    documents = yaml.safe_load_all((DEPLOY / "service-account.yaml").read_text())
    (role,) = (each for each in documents if each["kind"] == "Role")
    return {
        (verb, kind, group)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for kind in rule["resources"]
        for verb in rule["verbs"]
    }


def asked(script: Script) -> set[tuple[str, str, str]]:
    """What calls ask for, as Kubernetes names it where it is to be granted."""
    found = set()
    for call in script.calls:
        method, path = call.split(" ")
        group, kind, name = re.fullmatch(
            r"/apis?/(?:(\w+)/)?v1/namespaces/amoro/(\w+)(/[^?]+)?.*", path
        ).groups("")  # type: ignore[union-attr]
        verb = {"POST": "create", "DELETE": "delete", "GET": "get" if name else "list"}[method]
        found.add((verb, kind, group))
    return found


def test_the_role_allows_what_is_asked_and_nothing_else(scripted: Scripted) -> None:
    """A start in the place of a leftover, a look, why it ended, and a release."""
    own, script = scripted(EXISTS, found(), DELETED, GONE, CREATED)
    row = resource()
    row = row.with_properties(own.request_resource(row))
    script.answers = [found(), (200, "application/json", '{"items": []}'), DELETED, GONE]
    assert own.status(row) == "unknown"
    own.post_mortem(row)
    own.release_resource(row)
    assert asked(script) == granted()
