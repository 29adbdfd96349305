"""Which object of Kubernetes is the worker of a resource, and whose is one that is there?

An object is named after its resource, so that a namespace never holds two of one. Whose it is,
which call made it and for which attempt is written on the object itself: that is seen from every
host, which no file of a host is.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, NamedTuple, Self

from dagster_amoro.containers import placeholders
from dagster_amoro.containers.base import Status
from dagster_amoro.containers.fences import Fence, parse_fence
from dagster_amoro.containers.kubernetes.api import JOB, POD, Kind, at
from dagster_amoro.containers.kubernetes.template import as_model, load, plain
from dagster_amoro.containers.output import digest
from dagster_amoro.core.errors import StartFailedError
from dagster_amoro.core.model import Resource
from dagster_amoro.core.secrets import named_values

ACCEPTED: Final = f"YAML of a Pod of v1 or a Job of batch/v1, with {placeholders.ACCEPTED}"

_MANAGED_BY: Final = "app.kubernetes.io/managed-by"
_OURS: Final = "dagster-amoro"
_RESOURCE: Final = f"{_OURS}/resource"  # a label: a digest of the id, which few ids could be
_ANNOTATIONS: Final = {
    name: f"{_OURS}/{name.replace('_', '-')}"
    for name in ("container", "resource_id", "launch", "previous", "fence")
}
_SLUG: Final = 40  # characters of a resource id that a name shows
_LABEL: Final = 63  # characters at most
_GRACE_SECONDS: Final = 30  # that Kubernetes gives a pod to end, unless the pod says it
_POD_OF: Final = {POD: ("spec",), JOB: ("spec", "template", "spec")}  # where an object has it
_KINDS: Final = {("v1", "Pod"): POD, ("batch/v1", "Job"): JOB}
# Where Kubernetes puts variables for $(NAME), and $ for $$.
_EXPANDED: Final = frozenset({"command", "args", "env"})


class Marks(NamedTuple):
    """What is written on an object; of one that is there, what others may have changed."""

    container: str
    resource_id: str
    launch: str = ""  # of the call that made it
    previous: str = ""  # the object that the resource's row named then; empty: none
    fence: Fence | None = None  # the attempt that it was made for; None: none

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Self:
        """The marks of an object; one that is not ours has none."""
        notes = at(found, "metadata", "annotations") or {}
        texts = {name: str(notes.get(key) or "") for name, key in _ANNOTATIONS.items()}
        return cls(
            container=texts["container"],
            resource_id=texts["resource_id"],
            launch=texts["launch"],
            previous=texts["previous"],
            fence=parse_fence(texts["fence"]),
        )

    def annotations(self) -> dict[str, str]:
        """The marks as annotations."""
        fence = self.fence.dumped() if self.fence else ""
        texts = {**self._asdict(), "fence": fence}
        return {key: texts[name] for name, key in _ANNOTATIONS.items() if texts[name]}


@dataclass(frozen=True, kw_only=True)
class WorkerTemplate:
    """What is made for a resource: a Pod, or a Job of one."""

    kind: Kind
    worker: str  # the name of the first container, which the worker is in
    grace_seconds: float  # that the pod has to end
    document: object = field(repr=False)  # as `load` has it; it can hold secrets

    @cached_property
    def variables(self) -> tuple[Mapping[str, str], ...]:
        """The variables that it gives a worker, whose values can be secrets."""
        return tuple(named_values(plain(self.document)))

    def manifest(self, resource: Resource, namespace: str, marks: Marks) -> dict[str, Any]:
        """The object of a resource.

        Raises:
            StartFailedError: Kubernetes knows no such object, or a value cannot be part of one.
        """
        used = (*_texts(self._model), "{resource_id}")  # which is in an annotation
        values = placeholders.values_of(resource, used)
        found: dict[str, Any] = _filled(self._model, values)
        labels = {
            _MANAGED_BY: _OURS,
            _RESOURCE: digest(marks.container, resource.resource_id),
            f"{_OURS}/group": _label(resource.group_name),
        }
        metadata = _labelled(found, labels)
        metadata |= {"name": object_name(marks), "namespace": namespace}
        metadata["annotations"] = {**(metadata.get("annotations") or {}), **marks.annotations()}
        if self.kind == JOB:
            found["spec"].setdefault("backoffLimit", 0)  # who restarts it is the keeper
            _labelled(found["spec"]["template"], labels)
        at(found, *_POD_OF[self.kind]).setdefault("restartPolicy", "Never")
        return found

    @cached_property
    def _model(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = as_model(self.document, f"V1{self.kind.name}")
        except ValueError as flaw:  # without values, which may be secrets
            raise StartFailedError(f"the template cannot be used: {flaw}") from None
        return found


def parse_template(text: str) -> WorkerTemplate:
    """The template in a YAML document.

    What only Kubernetes' client knows is seen when an object is made of it.

    Raises:
        ValueError: It is none; the message says what is wrong, and shows no values.
    """
    document = load(text)
    found = plain(document)
    kind = _KINDS.get((str(at(found, "apiVersion")), str(at(found, "kind"))))
    if kind is None:
        raise ValueError("it is neither a Pod of v1 nor a Job of batch/v1")
    for key in at(found, "metadata") or ():
        if key not in {"labels", "annotations"}:
            raise ValueError(f"metadata.{key} is not for a template: each resource has its own")
    for key in ("parallelism", "completions"):
        if kind == JOB and at(found, "spec", key) not in (None, 1):
            raise ValueError(f"spec.{key} is not 1, though a worker is one pod")
    for each in _texts(found):
        placeholders.check(each)
    pod = at(found, *_POD_OF[kind])
    grace = at(pod, "terminationGracePeriodSeconds")
    return WorkerTemplate(
        kind=kind,
        worker=_worker_of(pod),
        grace_seconds=grace if isinstance(grace, int) else _GRACE_SECONDS,
        document=document,
    )


def object_name(marks: Marks) -> str:
    """What the object of a resource is called: its readable characters, and a digest."""
    slug = re.sub("[^a-z0-9]+", "-", marks.resource_id.lower())[:_SLUG].strip("-")
    return f"{slug or 'worker'}-{digest(marks.container, marks.resource_id)}"


def selector_of(marks: Marks) -> str:
    """By which the pods of a resource are found."""
    return f"{_RESOURCE}={digest(marks.container, marks.resource_id)}"


def status_of(kind: Kind, found: Mapping[str, Any]) -> Status:
    """Whether a worker may still do something, by its object.

    One that waits for a node or an image counts as running: Kubernetes is about to start it.
    """
    if kind == JOB:
        conditions = at(found, "status", "conditions") or ()
        held = {each.get("type") for each in conditions if each.get("status") == "True"}
        return "ended" if held & {"Complete", "Failed"} else "running"
    phase = at(found, "status", "phase") or "Pending"
    if phase in {"Succeeded", "Failed"}:
        return "ended"
    return "running" if phase in {"Pending", "Running"} else "unknown"


def _worker_of(pod: object) -> str:
    containers = at(pod, "containers")
    first = containers[0] if isinstance(containers, list) and containers else None
    for key in ("name", "image"):
        if not at(first, key):
            raise ValueError(f"its first container has no {key}")
    return str(at(first, "name"))


def _labelled(found: dict[str, Any], labels: Mapping[str, str]) -> dict[str, Any]:
    """The metadata of an object or a template, which has these labels from now on."""
    metadata = found["metadata"] = {**(found.get("metadata") or {})}
    metadata["labels"] = {**(metadata.get("labels") or {}), **labels}
    return metadata


def _label(text: str) -> str:
    """A text as the value of a label, for people to choose by."""
    return re.sub("[^A-Za-z0-9_.-]+", "-", text)[:_LABEL].strip("-_.")


def _texts(value: object) -> Iterator[str]:
    match value:
        case str():
            yield value
        case dict():
            yield from (text for each in value.values() for text in _texts(each))
        case list():
            yield from (text for each in value for text in _texts(each))


def _filled(value: Any, values: Mapping[str, str], *, expanded: bool = False) -> Any:  # noqa: ANN401 - JSON
    """A copy with what the placeholders stand for; Kubernetes makes nothing else of that."""
    match value:
        case str():
            return value.format_map(_escaped(values) if expanded else values)
        case dict():
            return {
                key: _filled(each, values, expanded=expanded or key in _EXPANDED)
                for key, each in value.items()
            }
        case list():
            return [_filled(each, values, expanded=expanded) for each in value]
    return value


def _escaped(values: Mapping[str, str]) -> dict[str, str]:
    return {name: value.replace("$", "$$") for name, value in values.items()}
