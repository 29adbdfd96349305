"""The pure parts of `PodContainer`: templates, objects, their names and marks, and their ends."""

import copy
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagster_amoro import PodContainer
from dagster_amoro.containers.base import Container, unusable
from dagster_amoro.containers.fences import Fence
from dagster_amoro.containers.kubernetes.api import JOB, POD, Kind
from dagster_amoro.containers.kubernetes.ends import end_of, newest
from dagster_amoro.containers.kubernetes.workers import (
    Marks,
    object_name,
    parse_template,
    selector_of,
    status_of,
)
from dagster_amoro.containers.preview import preview
from dagster_amoro.core.errors import ConfigError, StartFailedError
from dagster_amoro.core.model import Resource

SECRET = "hunter2-s3cret"  # noqa: S105 - it is what must not be seen
POD_YAML = """
apiVersion: v1
kind: Pod
metadata:
  labels: {app: worker, version: 1.10}
  annotations: {cost: "{group_name}"}
spec:
  terminationGracePeriodSeconds: 20
  containers:
  - name: main
    image: worker:1
    command: [worker, --id, "{resource_id}", --threads, "{thread_count}"]
    args: ["{{literal}}", 10, true]
    env: [{name: GROUP, value: "{group_name}"}]
    resources: {limits: {memory: "{memory_mb}Mi"}}
  - name: side
    image: side:1
"""
JOB_YAML = """
apiVersion: batch/v1
kind: Job
spec:
  template:
    metadata: {labels: {app: worker}}
    spec:
      containers: [{name: main, image: "worker:1", args: ["{resource_id}"]}]
"""
IDS = st.text(min_size=1, max_size=100).filter(lambda text: not unusable(text))


def container(template: str = POD_YAML, **properties: str) -> PodContainer:
    """A container whose properties are given with underscores for dashes."""
    given = {key.replace("_", "-"): value for key, value in properties.items()}
    return PodContainer("pods", {"template": template, **given})


def resource(resource_id: str = "etl-3", group: str = "etl") -> Resource:
    """A resource with four threads."""
    return Resource(
        resource_id=resource_id,
        group_name=group,
        container_name="pods",
        thread_count=4,
        memory_mb=2048,
    )


def marked(resource_id: str = "etl-3", **marks: Any) -> Marks:  # noqa: ANN401 - those of Marks
    """The marks of a resource's object."""
    return Marks("pods", resource_id, **marks)


def expanded(text: str) -> str:
    """What Kubernetes makes of a command when every variable is set to INJECTED."""
    return re.sub(r"\$\$|\$\([^)]*\)", lambda m: "$" if m[0] == "$$" else "INJECTED", text)


def test_is_a_container_that_looks_at_fences() -> None:
    """It has what a container must have, and refuses late calls itself."""
    assert isinstance(container(), Container)
    assert container().fenced


# Properties.


@pytest.mark.parametrize(
    ("properties", "problem"),
    [
        ({}, "'template' is missing; one of the two has YAML of a Pod of v1 or a Job of batch/v1"),
        ({"template": POD_YAML, "template-file": "/t"}, "'template' and 'template-file' are both"),
        ({"template": POD_YAML, "tempalte": "x"}, "unknown property 'tempalte', did you mean"),
        ({"template": POD_YAML, "namespace": "a/b"}, "'namespace' is 'a/b': no name of a namesp"),
        ({"template": POD_YAML, "deletion-timeout": "2min"}, "not less than stop-timeout, which"),
        ({"template": POD_YAML, "deletion-timeout": "20s"}, "terminationGracePeriodSeconds, 20"),
        ({"template": POD_YAML, "auto-restart": "maybe"}, "'auto-restart' is 'maybe'"),
        ({"template-file": "pod.yaml"}, "'template-file': the path is relative"),
        ({"template-file": "/no/such/pod.yaml"}, "'template-file' cannot be read: FileNotFound"),
    ],
)
def test_a_property_that_is_wrong_is_named(properties: dict[str, str], problem: str) -> None:
    """With what would be right."""
    with pytest.raises(ConfigError, match=re.escape(problem)):
        PodContainer("pods", properties)


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("a: [", "in line 1"),
        ("- x", "neither a Pod of v1 nor a Job of batch/v1"),
        (POD_YAML.replace("kind: Pod", "kind: Deployment"), "neither a Pod of v1 nor a Job"),
        (POD_YAML.replace("metadata:", "metadata:\n  name: x"), "metadata.name is not for a"),
        (POD_YAML.replace("name: main", "nam: main"), "its first container has no name"),
        (POD_YAML.replace("image: worker:1", "x: 1"), "its first container has no image"),
        ("{apiVersion: v1, kind: Pod}", "its first container has no name"),
        (POD_YAML.replace("{resource_id}", "{resource}"), "{resource} is no placeholder"),
        (POD_YAML.replace("{{literal}}", "{literal"), "expected '}'"),
        (JOB_YAML.replace("spec:", "spec:\n  completions: 3", 1), "spec.completions is not 1"),
        (JOB_YAML.replace("spec:", "spec:\n  parallelism: 2", 1), "spec.parallelism is not 1"),
    ],
)
def test_a_template_that_is_none_is_refused(template: str, problem: str) -> None:
    """When the container is built, without the values, which may be secrets."""
    hidden = template.replace("worker:1", SECRET)
    with pytest.raises(ConfigError, match=re.escape(problem)) as caught:
        container(hidden)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        (POD_YAML.replace("image: side:1", "imag: side:1"), r"containers\[1\].imag is no field"),
        (POD_YAML.replace("labels: {", "labels: [{").replace("1.10}", "1.10}]"), "is no mapping"),
    ],
)
def test_what_kubernetes_does_not_know_is_refused_before_anything_is_sent(
    template: str, problem: str
) -> None:
    """By its client's models; a cluster would leave such a field out without a word."""
    with pytest.raises(StartFailedError, match=problem):
        container(template).manifest(resource())


def test_a_template_can_be_in_a_file(tmp_path: Path) -> None:
    """Whoever has a manifest keeps it where it is."""
    file = tmp_path / "pod.yaml"
    file.write_text(POD_YAML)
    own = PodContainer("pods", {"template-file": str(file)})
    assert own.manifest(resource()) == container().manifest(resource())


def test_it_opts_out_where_it_is_told_to() -> None:
    """Its orphans are reported and never touched."""
    assert container().supports_auto_restart
    assert not container(auto_restart="false").supports_auto_restart


# Objects.


def test_example_of_a_pod() -> None:
    """What the template says, with the resource's values, and ours beside it."""
    name = object_name(marked())
    labels = {
        "app": "worker",
        "version": "1.10",
        "app.kubernetes.io/managed-by": "dagster-amoro",
        "dagster-amoro/resource": name.rpartition("-")[2],
        "dagster-amoro/group": "etl",
    }
    notes = {"dagster-amoro/container": "pods", "dagster-amoro/resource-id": "etl-3"}
    metadata = {"name": name, "namespace": "w", "labels": labels}
    main = {
        "name": "main",
        "image": "worker:1",
        "command": ["worker", "--id", "etl-3", "--threads", "4"],
        "args": ["{literal}", "10", "true"],
        "env": [{"name": "GROUP", "value": "etl"}],
        "resources": {"limits": {"memory": "2048Mi"}},
    }
    assert container(namespace="w").manifest(resource()) == {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {**metadata, "annotations": {"cost": "etl", **notes}},
        "spec": {
            "terminationGracePeriodSeconds": 20,
            "containers": [main, {"name": "side", "image": "side:1"}],
            "restartPolicy": "Never",
        },
    }


def test_example_of_a_job() -> None:
    """Its pods can be found like it, and nobody but the keeper restarts them."""
    found = container(JOB_YAML).manifest(resource())
    assert found["metadata"]["name"] == object_name(marked())
    spec = found["spec"]
    assert (spec["backoffLimit"], spec["template"]["spec"]["restartPolicy"]) == (0, "Never")
    key, _, digest = selector_of(marked()).partition("=")
    assert spec["template"]["metadata"]["labels"][key] == digest
    assert spec["template"]["metadata"]["labels"]["app"] == "worker"


def test_a_template_may_say_who_restarts() -> None:
    """The kubelet restarts in place, where that is wanted."""
    text = JOB_YAML.replace("spec:", "spec:\n  backoffLimit: 3", 1)
    text = text.replace("containers:", "restartPolicy: OnFailure\n      containers:")
    spec = container(text).manifest(resource())["spec"]
    assert (spec["backoffLimit"], spec["template"]["spec"]["restartPolicy"]) == (3, "OnFailure")


def test_making_an_object_does_not_change_the_template() -> None:
    """The next resource gets values of its own."""
    own = container()
    first = own.manifest(resource("a"))
    kept = copy.deepcopy(first)
    assert own.manifest(resource("b")) != first
    assert own.manifest(resource("a")) == kept


@given(resource_id=IDS, group=IDS)
def test_a_value_stays_within_the_text_that_it_is_put_into(resource_id: str, group: str) -> None:
    """Whatever it holds, neither YAML nor Kubernetes makes anything else of it."""
    found = container().manifest(resource(resource_id, group))
    main = found["spec"]["containers"][0]
    assert [expanded(text) for text in main["command"]] == [
        *("worker", "--id", resource_id, "--threads", "4"),
    ]
    assert expanded(main["env"][0]["value"]) == group
    assert found["metadata"]["annotations"]["cost"] == group
    assert Marks.of(found) == marked(resource_id)


@given(resource_id=st.text(max_size=100))
def test_a_name_is_one_that_kubernetes_takes(resource_id: str) -> None:
    """Also of a Job, whose name is in a label of its pods, and it says whose it is."""
    name = object_name(marked(resource_id))
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", name)
    assert name != object_name(Marks("others", resource_id))
    assert name != object_name(marked(f"{resource_id}-"))


@given(group=IDS)
def test_every_label_is_one_that_kubernetes_takes(group: str) -> None:
    """Groups may be called anything."""
    for value in container().manifest(resource(group=group))["metadata"]["labels"].values():
        assert re.fullmatch(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?", value), value


@pytest.mark.parametrize("resource_id", ["a\0b", "a\ud800b"])
def test_an_id_that_no_program_can_be_given_is_refused(resource_id: str) -> None:
    """Before anything is sent."""
    with pytest.raises(StartFailedError, match="cannot be given to a program"):
        container().manifest(resource(resource_id))


@given(launch=IDS, previous=st.text(max_size=40), attempt=st.integers(0, 9))
def test_marks_are_read_as_they_were_written(launch: str, previous: str, attempt: int) -> None:
    """By another process, from the API's answer."""
    marks = marked(launch=launch, previous=previous, fence=Fence("ledger", 7, attempt))
    answer = json.loads(json.dumps({"metadata": {"annotations": marks.annotations()}}))
    assert Marks.of(answer) == marks


@pytest.mark.parametrize(
    "found", [{}, {"metadata": None}, {"metadata": {"annotations": {"dagster-amoro/fence": "x"}}}]
)
def test_an_object_of_others_has_no_marks(found: Mapping[str, Any]) -> None:
    """Nor does one whose marks somebody spoiled have a fence."""
    assert Marks.of(found) == Marks("", "")


def test_secrets_of_a_template_are_shown_to_nobody() -> None:
    """Neither in a preview nor in what the container itself prints."""
    variables = f"env: [{{name: DB_PASSWORD, value: {SECRET}}}, "
    text = POD_YAML.replace("env: [", variables)
    own = container(text)
    shown = preview(own, resource()).text
    assert "DB_PASSWORD" in shown
    assert SECRET not in shown
    assert SECRET not in repr(parse_template(text))


# How it does, by what the API says.


def condition(kind: str, status: str = "True") -> dict[str, Any]:
    """A Job with a condition."""
    return {"status": {"conditions": [{"type": kind, "status": status}]}}


@pytest.mark.parametrize(
    ("kind", "found", "status"),
    [
        (POD, {}, "running"),  # it was created a moment ago
        (POD, {"status": {"phase": "Pending"}}, "running"),
        (POD, {"status": {"phase": "Running"}}, "running"),
        (POD, {"status": {"phase": "Succeeded"}}, "ended"),
        (POD, {"status": {"phase": "Failed"}}, "ended"),
        (POD, {"status": {"phase": "Unknown"}}, "unknown"),
        (JOB, {}, "running"),
        (JOB, condition("Suspended"), "running"),
        (JOB, condition("Failed", "False"), "running"),
        (JOB, condition("Complete"), "ended"),
        (JOB, condition("Failed"), "ended"),
    ],
)
def test_status_of_an_object(kind: Kind, found: Mapping[str, Any], status: str) -> None:
    """What Kubernetes is about to start counts as running."""
    assert status_of(kind, found) == status


AT = "2026-03-29T01:00:00Z"


def terminated(code: int, reason: str = "Error", message: str = "") -> dict[str, Any]:
    """The state of a container that is over."""
    end = {"exitCode": code, "reason": reason, "message": message, "finishedAt": AT}
    return {"state": {"terminated": end}}


@pytest.mark.parametrize(
    ("status", "cause", "text"),
    [
        (
            {"containerStatuses": [{"name": "side"}, {"name": "main", **terminated(3)}]},
            "exit 3",
            f"its last pod p ended with exit code 3, Error, at {AT}",
        ),
        (
            {"containerStatuses": [{"name": "main", **terminated(137)}]},
            "killed",
            f"its last pod p ended with exit code 137, Error, at {AT}",
        ),
        (
            {"containerStatuses": [{"name": "main", **terminated(143)}]},
            "killed",
            f"its last pod p ended with exit code 143, Error, at {AT}",
        ),
        (
            {
                "reason": "Evicted",
                "containerStatuses": [{"name": "main", **terminated(137, "OOMKilled")}],
            },
            "out of memory",
            f"its last pod p ended with exit code 137, OOMKilled, at {AT}",
        ),
        (
            {"reason": "Evicted", "message": "The node was low on resource: memory."},
            "killed",
            "its last pod p was ended, Evicted: The node was low on resource: memory.",
        ),
        ({"reason": "NodeLost"}, "lost host", "its last pod p was ended, NodeLost"),
        (
            {
                "containerStatuses": [
                    {"name": "main", "state": {"waiting": {"reason": "ImagePullBackOff"}}}
                ]
            },
            "never started",
            "its last pod p waits, ImagePullBackOff",
        ),
        (
            {
                "phase": "Pending",
                "conditions": [
                    {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
                ],
            },
            "never started",
            "its last pod p has no node, Unschedulable",
        ),
        ({"phase": "Running"}, "unknown", "its last pod p is Running"),
    ],
)
def test_how_a_pod_ended(status: Mapping[str, Any], cause: str, text: str) -> None:
    """In the words that incidents are counted by."""
    found = end_of({"metadata": {"name": "p"}, "status": status}, "main")
    assert (found.cause, found.text) == (cause, text)


def test_the_newest_pod_counts() -> None:
    """A Job may have had several."""
    pods = [
        {"metadata": {"name": f"p{n}", "creationTimestamp": f"2026-01-0{n}T00:00:00Z"}}
        for n in (1, 3, 2)
    ]
    assert newest(pods) == pods[1]
    assert newest([]) is None
