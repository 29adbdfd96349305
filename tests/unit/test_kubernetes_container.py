"""The Deployments that AMS would create, and what is wrong with properties that make none."""

import copy
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dagster_amoro.containers.amoro.kubernetes import KubernetesContainer
from dagster_amoro.containers.base import Container
from dagster_amoro.containers.kubernetes import api
from dagster_amoro.core.errors import ConfigError, ContainerError, StartFailedError
from dagster_amoro.core.model import Resource

ID = "5ghs0a2v1j9k3m7n4p8q6r0t2u"
NAME = f"amoro-optimizer-{ID}"
PROPERTIES = {
    "image": "apache/amoro:0.9",
    "pullPolicy": "IfNotPresent",
    "namespace": "amoro",
    "memory": "1024",
    "ams-optimizing-uri": "thrift://ams.svc:1261",
}
POD_TEMPLATE = """
apiVersion: v1
kind: PodTemplate
metadata: {name: ignored}
template:
  metadata:
    labels: {lost: x}
    annotations: {a: b, scrape: true, version: 1.10}
  spec:
    serviceAccountName: opt
    nodeSelector: {pool: batch}
    containers:
    - name: c0
      env: [{name: LOST, value: x}]
    - name: side
      image: side:1
      env: [{name: PORT, value: 8080}]
      ports: [{containerPort: 8080}]
      livenessProbe: {httpGet: {port: 8080}}
"""


def container(properties: Mapping[str, str] | None = None, **changes: str) -> KubernetesContainer:
    """A container whose properties are changed, with underscores for dashes."""
    changed = {key.replace("_", "-"): value for key, value in changes.items()}
    return KubernetesContainer("kubernetes", {**PROPERTIES, **changed, **(properties or {})})


def resource(
    properties: Mapping[str, str] | None = None,
    *,
    threads: int = 2,
    memory: int = 0,
    group: str = "k8s",
) -> Resource:
    """A resource of the examples."""
    return Resource(
        resource_id=ID,
        group_name=group,
        container_name="kubernetes",
        thread_count=threads,
        memory_mb=memory,
        properties=properties or {},
    )


def pod(manifest: Mapping[str, Any]) -> Any:  # noqa: ANN401 - JSON
    """The pod's spec."""
    return manifest["spec"]["template"]["spec"]


def command(manifest: Mapping[str, Any]) -> str:
    """What the pod's shell gets."""
    shell, option, text = pod(manifest)["containers"][0]["command"]
    assert (shell, option) == ("sh", "-c")
    return str(text)


def started_by(text: str, folder: Path) -> list[str]:
    """The arguments with which a real shell runs the text's /entrypoint.sh, and nothing else."""
    entrypoint, seen = folder / "entrypoint.sh", folder / "seen"
    entrypoint.write_text(f"#!/bin/sh\nprintf '%s\\0' \"$@\" > {seen}\n")
    entrypoint.chmod(0o755)
    folder.joinpath("empty").mkdir(exist_ok=True)
    script = text.replace("/entrypoint.sh", str(entrypoint), 1)
    done = subprocess.run(
        ["/bin/sh", "-c", script],
        cwd=folder / "empty",
        capture_output=True,
        check=False,
        env={"PATH": os.environ["PATH"], "HOME": "/"},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert not list(folder.joinpath("empty").iterdir())
    return seen.read_bytes().decode().split("\0")[:-1]


def expanded(text: str) -> str:
    """What Kubernetes makes of a command when every variable is set to INJECTED."""
    return re.sub(r"\$\$|\$\([^)]*\)", lambda m: "$" if m[0] == "$$" else "INJECTED", text)


def test_is_a_container() -> None:
    """It has what a container must have."""
    assert isinstance(container(), Container)


def test_example_without_a_pod_template() -> None:
    """The Deployment is the one that AMS was seen to create."""
    text = (
        "exec /entrypoint.sh optimizer 1638  -a thrift://ams.svc:1261 -p 2 -g k8s -hb 20000 "
        f"-id {ID}"
    )
    amounts = {"memory": "2048Mi", "cpu": "2"}
    assert container().manifest(resource({"heart-beat-interval": "20000"})) == {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": NAME},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app": NAME}},
            "template": {
                "metadata": {
                    "labels": {"app": NAME, "AmoroOptimizerGroup": "k8s", "AmoroResourceId": ID}
                },
                "spec": {
                    "containers": [
                        {
                            "name": "optimizer",
                            "image": "apache/amoro:0.9",
                            "imagePullPolicy": "IfNotPresent",
                            "command": ["sh", "-c", text],
                            "resources": {"limits": amounts, "requests": amounts},
                        }
                    ],
                    "imagePullSecrets": [{"name": ""}],
                    "terminationGracePeriodSeconds": 630,
                },
            },
        },
    }


def test_example_with_a_pod_template() -> None:
    """Of the template everything stays but its labels and its first container."""
    properties = {
        "podTemplate": POD_TEMPLATE,
        "cpu.factor": "0.4",
        "imagePullSecrets": "regcred;other",
        "extra.jvm.heap.ratio": "0.7",
    }
    row = resource({"shutdown-timeout-ms": "45500", "memory": "777"}, threads=3, memory=2500)
    manifest = container(properties).manifest(row)
    template = manifest["spec"]["template"]
    assert manifest["metadata"] == {"name": NAME}
    assert template["metadata"] == {
        "labels": {"app": NAME, "AmoroOptimizerGroup": "k8s", "AmoroResourceId": ID},
        "annotations": {"a": "b", "scrape": "true", "version": "1.10"},
    }
    first, side = template["spec"].pop("containers")
    text = (
        "exec /entrypoint.sh optimizer 1750  -a thrift://ams.svc:1261 -p 3 -g k8s -st 45500 "
        f"-id {ID}"
    )
    assert template["spec"] == {
        "serviceAccountName": "opt",
        "nodeSelector": {"pool": "batch"},
        "imagePullSecrets": [{"name": "regcred"}, {"name": "other"}],
        "terminationGracePeriodSeconds": 76,
    }
    assert first == {
        "name": "optimizer",
        "image": "apache/amoro:0.9",
        "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", text],
        "resources": {
            "limits": {"memory": "2500Mi", "cpu": "2"},
            "requests": {"memory": "2500Mi", "cpu": "2"},
        },
    }
    assert side == {
        "name": "side",
        "image": "side:1",
        "env": [{"name": "PORT", "value": "8080"}],
        "ports": [{"containerPort": 8080}],
        "livenessProbe": {"httpGet": {"port": 8080}},
    }


def test_a_pod_template_may_set_its_own_grace_period() -> None:
    """It is kept, and so are pull secrets where the property names none."""
    text = """
        template:
          metadata: {}
          spec:
            terminationGracePeriodSeconds: 5
            imagePullSecrets: [{name: own}]
            containers: [{}]
    """
    spec = pod(container(podTemplate=text, imagePullSecrets=";").manifest(resource()))
    assert spec["terminationGracePeriodSeconds"] == 5
    assert spec["imagePullSecrets"] == [{"name": "own"}]


def test_in_0_7_the_heap_is_the_memory() -> None:
    """Total memory, ratio and pod template are of later versions, like exec and grace period."""
    properties = {
        "ams-version": "0.7.1",
        "podTemplate": "no: template",
        "extra.jvm.heap.ratio": "none",
    }
    manifest = container(properties).manifest(resource({"shutdown-timeout-ms": "1"}, memory=9999))
    assert command(manifest) == (
        f"/entrypoint.sh optimizer 2048  -a thrift://ams.svc:1261 -p 2 -g k8s -id {ID}"
    )
    spec = pod(manifest)
    assert spec["containers"][0]["resources"]["limits"]["memory"] == "2048Mi"
    assert "terminationGracePeriodSeconds" not in spec


def test_in_0_8_the_shell_stays() -> None:
    """Neither exec nor a grace period; the rest is as it is today."""
    properties = {"ams-version": "0.8.1", "podTemplate": POD_TEMPLATE}
    manifest = container(properties).manifest(resource(memory=1000))
    assert command(manifest) == (
        f"/entrypoint.sh optimizer 800  -a thrift://ams.svc:1261 -p 2 -g k8s -id {ID}"
    )
    assert "terminationGracePeriodSeconds" not in pod(manifest)
    assert len(pod(manifest)["containers"]) == 2


def test_0_9_0_does_as_later_versions() -> None:
    """What was added for the shutdown came with the release."""
    properties = {"ams-version": "0.9.0-incubating(abc1234)"}
    assert container(properties).manifest(resource()) == container().manifest(resource())


def test_the_row_wins_over_the_container() -> None:
    """Each property of a Deployment can come from the resource's row."""
    row = {
        "image": "other:1",
        "pullPolicy": "Always",
        "memory": "100",
        "cpu.factor": "1.5",
        "imagePullSecrets": "mine",
        "extra.jvm.heap.ratio": "0.5",
        "podTemplate": POD_TEMPLATE,
    }
    spec = pod(container().manifest(resource(row, threads=3)))
    first = spec["containers"][0]
    assert (first["image"], first["imagePullPolicy"]) == ("other:1", "Always")
    assert first["resources"]["limits"] == {"memory": "300Mi", "cpu": "5"}
    assert first["command"][2].startswith("exec /entrypoint.sh optimizer 150  -a ")
    assert spec["imagePullSecrets"] == [{"name": "mine"}]
    assert spec["serviceAccountName"] == "opt"


def test_the_documented_pull_policy_is_the_default() -> None:
    """AMS's code fails where its documentation has a default."""
    properties = {key: value for key, value in PROPERTIES.items() if key != "pullPolicy"}
    manifest = KubernetesContainer("kubernetes", properties).manifest(resource())
    assert pod(manifest)["containers"][0]["imagePullPolicy"] == "IfNotPresent"


@pytest.mark.parametrize(
    ("text", "names"),
    [("", [""]), ("a;b;", ["a", "b"]), (";", None), (";a", ["", "a"]), ("a", ["a"])],
)
def test_pull_secrets_are_split_as_java_does(text: str, names: list[str] | None) -> None:
    """Empty names go at the end only, and an empty text is one name."""
    spec = pod(container(imagePullSecrets=text).manifest(resource()))
    expected = None if names is None else [{"name": name} for name in names]
    assert spec.get("imagePullSecrets") == expected


@pytest.mark.parametrize(
    ("factor", "threads", "cores"),
    [("0.4", 3, "2"), ("1", 1, "1"), (".5", 3, "2"), ("1e0", 4, "4"), ("0.25", 4, "1")],
)
def test_cores_are_rounded_up(factor: str, threads: int, cores: str) -> None:
    """A pod gets whole cores."""
    spec = pod(container({"cpu.factor": factor}).manifest(resource(threads=threads)))
    assert spec["containers"][0]["resources"]["requests"]["cpu"] == cores


@pytest.mark.parametrize(
    ("milliseconds", "seconds"),
    [("0", 30), ("1", 31), ("1000", 31), ("1001", 32), ("600000", 630)],
)
def test_grace_is_the_shutdown_timeout_and_half_a_minute(milliseconds: str, seconds: int) -> None:
    """Rounded up; and the row alone says it, as for the optimizer itself."""
    row = resource({"shutdown-timeout-ms": milliseconds})
    manifest = container(shutdown_timeout_ms="7").manifest(row)
    assert pod(manifest)["terminationGracePeriodSeconds"] == seconds


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("image", ""),
        ("memory", ""),
        ("memory", " 1024"),
        ("memory", "1_024"),
        ("memory", "1gb"),
        ("memory", "\u0661"),
        ("cpu.factor", "two"),
        ("cpu.factor", "NaN"),
        ("cpu.factor", "1e300"),
        ("extra.jvm.heap.ratio", "80%"),
        ("shutdown-timeout-ms", "10min"),
        ("podTemplate", ""),
        ("podTemplate", "{"),
        ("podTemplate", "just text"),
        ("podTemplate", "template: {spec: {containers: [{}]}}"),
        ("podTemplate", "template: {metadata: {}, spec: {}}"),
        ("podTemplate", "template: {metadata: {}, spec: {containers: []}}"),
        ("podTemplate", "template: {metadata: {}, spec: {containers: {}}}"),
        ("podTemplate", "template: {metadata: [], spec: {containers: [{}]}}"),
        ("podTemplate", "template: {metadata: {}, spec: {containers: [{}], bogus: 1}}"),
        ("podTemplate", "template: {metadata: {}, spec: {containers: [{}], hostname: [x]}}"),
        ("podTemplate", "{kind: Deployment, spec: {}}"),
        ("podTemplate", "template: {metadata: {creationTimestamp: 2020-13-45}}"),
    ],
)
def test_an_unusable_property_is_named(key: str, value: str) -> None:
    """Whoever reads the error knows what to mend."""
    with pytest.raises(StartFailedError, match=f"property '{re.escape(key)}'"):
        container().manifest(resource({key: value}))


@pytest.mark.parametrize("key", ["image", "memory"])
def test_a_missing_property_is_named(key: str) -> None:
    """It may come from the row, so only a start can tell."""
    properties = {name: value for name, value in PROPERTIES.items() if name != key}
    lacking = KubernetesContainer("kubernetes", properties)
    with pytest.raises(StartFailedError, match=f"property '{key}' is missing"):
        lacking.manifest(resource())
    assert lacking.manifest(resource({key: "7"}))


def test_an_unknown_field_is_named_with_its_place() -> None:
    """And no value is shown, as it may be a secret."""
    text = "template: {metadata: {}, spec: {containers: [{}, {env: [{nme: a, value: hush}]}]}}"
    with pytest.raises(StartFailedError, match="no field") as caught:
        container(podTemplate=text).manifest(resource())
    assert "template.spec.containers[1].env[0].nme" in str(caught.value)
    assert "hush" not in str(caught.value)


def test_broken_yaml_is_reported_without_its_text() -> None:
    """The line is enough to find it."""
    with pytest.raises(StartFailedError, match="in line 2") as caught:
        container(podTemplate="template:\n  - password: hush: x\n").manifest(resource())
    assert "hush" not in str(caught.value)


def test_a_pod_template_is_read_afresh_each_time() -> None:
    """One resource's Deployment does not show up in another's."""
    own = container(podTemplate=POD_TEMPLATE)
    first = own.manifest(resource(group="a"))
    before = copy.deepcopy(first)
    own.manifest(resource(group="b"))
    assert first == before


json_texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)


@given(st.dictionaries(json_texts.filter(bool), json_texts, max_size=4))
def test_texts_of_a_pod_template_stay_as_they_are(annotations: dict[str, str]) -> None:
    """Whatever they look like to YAML."""
    template = {"metadata": {"annotations": annotations}, "spec": {"containers": [{}]}}
    text = yaml.safe_dump({"template": template}, allow_unicode=True)
    manifest = container(podTemplate=text).manifest(resource())
    assert manifest["spec"]["template"]["metadata"]["annotations"] == annotations


values = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30),
    st.text(" '\"\\$`;&|<>(){}[]*?!#~\n=-a", max_size=12),
    st.sampled_from(
        [
            "x; touch owned",
            "$(touch owned)",
            "$$(touch owned)",
            "`touch owned`",
            "' $(touch owned) '",
            "thrift://h:1261?connectTimeout=1&socketTimeout=2",
            "$(KUBERNETES_SERVICE_HOST)",
            "*",
            "",
        ]
    ),
)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
    ],  # a file that is written anew
)
@given(uri=values.filter(bool), group=values, path=values)
def test_a_value_reaches_the_optimizer_as_one_argument(
    uri: str, group: str, path: str, tmp_path: Path
) -> None:
    """Neither Kubernetes nor the pod's shell splits it, expands it or executes any of it."""
    row = {
        "ams-optimizing-uri": uri,
        "extend-disk-storage": "true",
        "disk-storage-path": path,
    }
    manifest = container().manifest(resource(row, group=group))
    assert started_by(expanded(command(manifest)), tmp_path) == [
        *("optimizer", "1638", "-a", uri, "-p", "2", "-g", group),
        *("-eds", "-dsp", path, "-id", ID),
    ]


def test_restarts_only_when_asked_to() -> None:
    """A Deployment heals its own pods."""
    assert not container().supports_auto_restart
    assert not container(auto_restart="yes").supports_auto_restart
    assert container(auto_restart="True").supports_auto_restart


def test_a_row_cannot_ask_for_restarts() -> None:
    """Groups copy their properties into rows; the operator of the keeper decides."""
    assert container().manifest(resource({"auto-restart": "true"}))
    assert not container().supports_auto_restart


def unknown() -> Any:  # noqa: ANN401 - it never returns
    """Nobody knows the version of AMS."""
    raise ContainerError("set ams-version")


@pytest.mark.parametrize(
    "use", [lambda c: c.supports_auto_restart, lambda c: c.manifest(resource())]
)
def test_an_unknown_version_is_an_error(use: Callable[[KubernetesContainer], object]) -> None:
    """A wrong guess would crash the optimizer."""
    with pytest.raises(ContainerError, match="set ams-version"):
        use(KubernetesContainer("k", {**PROPERTIES, "auto-restart": "true"}, unknown))


def test_the_version_does_not_matter_where_nothing_is_restarted() -> None:
    """AMS need not answer for that."""
    assert not KubernetesContainer("k", PROPERTIES, unknown).supports_auto_restart


def test_says_how_to_install_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an optional part."""
    monkeypatch.setattr(api, "find_spec", lambda name: PathFinder.find_spec(name, []))
    with pytest.raises(ConfigError, match=re.escape("pip install dagster-amoro[kubernetes]")):
        container()


def test_the_module_is_imported_without_the_client() -> None:
    """Whoever does not use Kubernetes does not pay for it."""
    module = "dagster_amoro.containers.amoro.kubernetes"
    code = f"import sys, {module}; sys.exit('kubernetes' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("namespace", ["", "..", "a/b", "A", "-a", "a" * 64, "a\n"])
def test_a_namespace_cannot_leave_its_place_in_an_address(namespace: str) -> None:
    """It is refused before anything is called."""
    with pytest.raises(StartFailedError, match="property 'namespace'"):
        container().request_resource(resource({"namespace": namespace}))


def test_without_a_kubeconfig_it_says_what_to_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither in a cluster nor told where one is."""
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(StartFailedError, match="kube-config-path"):
        container().request_resource(resource())


def test_a_broken_kubeconfig_is_named(tmp_path: Path) -> None:
    """As the file that cannot be used."""
    file = tmp_path / "config"
    file.write_text("current-context: x\n")
    with pytest.raises(StartFailedError, match=f"kubeconfig '{re.escape(str(file))}' cannot"):
        container(kube_config_path=str(file)).request_resource(resource())


def test_a_pod_without_a_service_account_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a cluster the service account is used, not a kubeconfig."""
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "1")
    with pytest.raises(StartFailedError, match="service account cannot be used"):
        container().request_resource(resource())
