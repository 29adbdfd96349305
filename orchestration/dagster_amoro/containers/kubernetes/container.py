"""How are workers run as pods of their own, from one template?

The run that starts a worker, and the one that stops it, may execute anywhere: what they need to
know of it is in the resource's row and on the object itself (see `workers`).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from dagster_amoro.containers.base import Status
from dagster_amoro.containers.fences import Fence, refuse_older
from dagster_amoro.containers.given import DURATIONS, Given, seconds
from dagster_amoro.containers.kubernetes.api import (
    JOB,
    LIBRARIES,
    POD,
    Kind,
    Objects,
    Right,
    at,
    connected,
    is_namespace,
    require_client,
)
from dagster_amoro.containers.kubernetes.ends import end_of, newest
from dagster_amoro.containers.kubernetes.workers import (
    ACCEPTED,
    Marks,
    WorkerTemplate,
    object_name,
    parse_template,
    selector_of,
    status_of,
)
from dagster_amoro.containers.rest import RestError
from dagster_amoro.core.container_settings import CALL_PROPERTIES
from dagster_amoro.core.errors import (
    ContainerError,
    ReleaseFailedError,
    StartFailedError,
    describe,
)
from dagster_amoro.core.model import Resource
from dagster_amoro.core.post_mortem import NEVER_STARTED, UNKNOWN, PostMortem
from dagster_amoro.core.secrets import Mask
from dagster_amoro.core.values import parse_switch

_HERE: Final = "dagster_amoro.PodContainer"
_KEYS: Final = (
    *("template", "template-file", "namespace", "kube-config-path"),
    *("deletion-timeout", "auto-restart"),
    *CALL_PROPERTIES,
)
_NAMESPACES: Final = "up to 63 of the characters a-z, 0-9 and -"
_UID: Final = "pod-uid"  # a start-up property; of the object that was made
_KIND: Final = "pod-kind"
_NAMESPACE: Final = "pod-namespace"
_KINDS: Final = {kind.name: kind for kind in (POD, JOB)}
_TRIES: Final = 3  # to create an object: once, for a leftover, and for one that came between
_SERVER_ERROR: Final = 500  # from here on it may have been done all the same
_LOG_LINES: Final = 20
_LOG_BYTES: Final = 8000
_CHECK: Final = "dagster-amoro-check"  # a resource id
_On = Callable[[Kind, str], Objects]
"""The objects of a kind in a namespace."""


class PodContainer:
    """Runs each worker as a Pod, or as a Job of one, that a template describes.

    | property | meaning | default |
    |---|---|---|
    | `template` | YAML of a `Pod` or a `Job`, with placeholders in braces | |
    | `template-file` | the absolute path of a file with it, instead | |
    | `namespace` | where the objects are | default |
    | `kube-config-path` | a kubeconfig file | see below |
    | `deletion-timeout` | how long a stop waits for the end, longer than the pod's grace | 90s |
    | `auto-restart` | false: orphans are reported and never touched | true |

    The placeholders are `{resource_id}`, `{group_name}`, `{thread_count}` and `{memory_mb}` in any
    text of the template; `{{` and `}}` stand for braces. Each is put where it stands and becomes
    nothing else. The template has no name: the object of a resource is named after it.
    `restartPolicy` is `Never` and `backoffLimit` 0 unless the template says otherwise, as it is the
    keeper that restarts.

    Without `kube-config-path` the service account of the pod that this runs in is used, and outside
    a cluster `$KUBECONFIG` or `~/.kube/config`.

    A worker has started when the API has accepted its object: whether it comes up, its heartbeat
    says. An earlier object of the resource is deleted before, with its pods, and its end is waited
    for. Each object carries the attempt that it was made for, so that a late call is refused
    from whatever host it comes. What only has the name of ours is left alone, and that is said.

    Raises:
        ConfigError: A property is missing, unknown or cannot be used, or Kubernetes' client is not
            installed.
    """

    libraries = LIBRARIES
    fenced = True
    request_timeout = 10.0  # seconds for one call of the API

    def __init__(self, name: str, properties: Mapping[str, str]) -> None:
        require_client(name)
        given = Given(name, _HERE, properties)
        given.check_keys(_KEYS)
        self.name: Final = name
        self.properties: Final = dict(properties)
        self._template: Final = _template_of(given)
        self._namespace: Final = given.read("namespace", "default", _namespace, _NAMESPACES)
        self.deletion_timeout = given.read("deletion-timeout", "90s", seconds, DURATIONS)
        given.check_below("deletion-timeout", self.deletion_timeout, "stop-timeout")
        if self._template.grace_seconds >= self.deletion_timeout:
            grace = f"the template's terminationGracePeriodSeconds, {self._template.grace_seconds}"
            raise given.error("deletion-timeout", f" must be longer than {grace}")
        switch = given.read("auto-restart", "true", parse_switch, "true or false")
        self.supports_auto_restart: Final = switch

    def manifest(self, resource: Resource) -> dict[str, Any]:
        """The object that a start of the resource would create, but for the marks of that start.

        Raises:
            StartFailedError: The template cannot be used, or a value cannot be part of a pod.
        """
        return self._template.manifest(resource, self._namespace, self._marks(resource))

    def request_resource(self, resource: Resource, fence: Fence | None = None) -> Mapping[str, str]:
        """Creates the resource's object, after ending what an earlier start left behind.

        An object that this very attempt has made already is taken over.

        Returns:
            `pod-kind`, `pod-namespace`, `pod-name` and `pod-uid`.

        Raises:
            StartFailedError: The API did not accept it, the name is somebody else's, an earlier
                object does not go away, or a later attempt than that of `fence` has made one.
        """
        try:
            with self._connected(resource) as on:
                return self._start(on, resource, fence)
        except ContainerError as error:
            raise StartFailedError(str(error)) from None

    def release_resource(self, resource: Resource, fence: Fence | None = None) -> None:
        """Ends the object that the resource's properties name, and one that followed it unsaved.

        One that followed a later one is somebody else's and stays, unless it was made for an
        attempt before that of `fence`.

        Raises:
            ReleaseFailedError: It may still be running, or a later attempt than that of `fence`
                has made it.
        """
        try:
            with self._connected(resource) as on:
                self._release(on(*self._place_of(resource)), resource, fence)
        except ContainerError as error:
            raise ReleaseFailedError(str(error)) from None

    def status(self, resource: Resource) -> Status:
        """Whether the resource's object may still do something; ended where there is none.

        So it is where another launch has taken the place of the one that its properties name.
        """
        kind, namespace = self._place_of(resource)
        try:
            with self._connected(resource) as on:
                found = self._found(on(kind, namespace), resource)
        except ContainerError:
            return "unknown"
        if found is None or (_UID in resource.properties and not _follows(found, resource)):
            return "ended"
        return status_of(kind, found)

    def post_mortem(self, resource: Resource) -> PostMortem:
        """How the newest pod of the resource ended, or why it does not come up; and its log."""
        marks = self._marks(resource)
        with self._connected(resource) as on:
            objects = on(*self._place_of(resource))
            last = newest(objects.pods(object_name(marks), selector_of(marks)))
            if last is None:
                return _without_pod(resource)
            found = end_of(last, self._template.worker)
            log = found.log or self._log(objects, last)
        return found._replace(log=log).cleaned(self._mask(resource).hide)

    def problems(self) -> list[str]:
        """What has to be put right before a worker can be started; nothing is changed."""
        found = []
        example = Resource(
            resource_id=_CHECK,
            group_name="check",
            container_name=self.name,
            thread_count=1,
            memory_mb=1024,
        )
        try:
            manifest = self.manifest(example)
            with self._connected(example) as on:
                objects = on(self._template.kind, self._namespace)
                where = f"in namespace {self._namespace!r}"
                missing = [right for right in self._rights() if not objects.may(right)]
                found += [f"its account may not {right} {where}" for right in missing]
                if not any(right.verb == "create" for right in missing):
                    objects.create(manifest, dry_run=True)
        except ContainerError as error:
            found.append(str(error))
        return found

    def _start(self, on: _On, resource: Resource, fence: Fence | None) -> dict[str, str]:
        place = (self._template.kind, self._namespace)
        if (earlier := self._place_of(resource)) != place:
            self._clear(on(*earlier), self._found(on(*earlier), resource), fence)
        objects, previous = on(*place), resource.properties.get(_UID, "")
        marks = Marks(self.name, resource.resource_id, uuid4().hex, previous, fence)
        manifest = self._template.manifest(resource, self._namespace, marks)
        for _ in range(_TRIES):
            found = _created(objects, manifest, marks) or self._found(objects, resource)
            if found is not None and _is_of(found, marks):
                return _startup(objects, found)
            self._clear(objects, found, fence)
        raise ContainerError(f"somebody else keeps creating {objects.place(object_name(marks))}")

    def _clear(
        self, objects: Objects, found: Mapping[str, Any] | None, fence: Fence | None
    ) -> None:
        """Ends what was found, unless a later attempt has made it."""
        if found is not None:
            refuse_older(fence, Marks.of(found).fence)
            _end(objects, found)

    def _release(self, objects: Objects, resource: Resource, fence: Fence | None) -> None:
        found = self._found(objects, resource)
        if found is None:
            return
        made_for = Marks.of(found).fence
        refuse_older(fence, made_for)
        is_earlier = fence and made_for and fence.ledger == made_for.ledger
        if is_earlier or _follows(found, resource):
            _end(objects, found)

    def _found(self, objects: Objects, resource: Resource) -> Mapping[str, Any] | None:
        """The resource's object; a ContainerError says that one of its name is somebody else's."""
        mine = self._marks(resource)
        found = objects.read(object_name(mine))
        if found is None:
            return None
        theirs = Marks.of(found)
        if (theirs.container, theirs.resource_id) != (self.name, resource.resource_id):
            raise ContainerError(
                f"{objects.place(object_name(mine))} exists and is not this worker's: by its "
                f"annotations it is of container {theirs.container!r} and resource "
                f"{theirs.resource_id!r}; remove or rename it"
            )
        return found

    def _log(self, objects: Objects, pod: Mapping[str, Any]) -> str:
        """The end of what a worker wrote; empty where nobody may read it, or nobody can."""
        with suppress(ContainerError):
            name = str(at(pod, "metadata", "name"))
            return objects.log(name, self._template.worker, lines=_LOG_LINES, size=_LOG_BYTES)
        return ""

    def _rights(self) -> Iterator[Right]:
        group = "batch" if self._template.kind == JOB else ""
        for verb in ("create", "get", "delete"):
            yield Right(verb, f"{self._template.kind.noun}s", group)
        yield Right("list", "pods")
        yield Right("get", "pods", subresource="log")

    def _place_of(self, resource: Resource) -> tuple[Kind, str]:
        """Where the object of the resource's row is, or would be where it names none."""
        kind, namespace = (resource.properties.get(key, "") for key in (_KIND, _NAMESPACE))
        return (
            _KINDS.get(kind, self._template.kind),
            namespace if is_namespace(namespace) else self._namespace,
        )

    def _marks(self, resource: Resource) -> Marks:
        return Marks(self.name, resource.resource_id)

    def _mask(self, resource: Resource) -> Mask:
        return Mask(self.properties, resource.properties, *self._template.variables)

    @contextmanager
    def _connected(self, resource: Resource) -> Iterator[_On]:
        """The API; errors within get the container's name, and show no secret."""
        try:
            with connected(self.properties.get("kube-config-path")) as client:
                yield lambda kind, namespace: Objects(
                    client=client,
                    kind=kind,
                    namespace=namespace,
                    request_timeout=self.request_timeout,
                    deletion_timeout=self.deletion_timeout,
                )
        except ContainerError as error:
            text = self._mask(resource).hide(str(error))
            raise ContainerError(f"container {self.name!r}: {text}") from None


def _follows(found: Mapping[str, Any], resource: Resource) -> bool:
    """Whether an object is what a row names, or was made right after that and never saved."""
    uids = (at(found, "metadata", "uid"), Marks.of(found).previous)
    return resource.properties.get(_UID, "") in uids


def _is_of(found: Mapping[str, Any], marks: Marks) -> bool:
    """Whether an object was made by this very call, or for its attempt, and is to stay."""
    theirs = Marks.of(found)
    is_same = theirs.launch == marks.launch or (theirs.fence and theirs.fence == marks.fence)
    return bool(is_same) and not at(found, "metadata", "deletionTimestamp")


def _created(
    objects: Objects, manifest: Mapping[str, Any], marks: Marks
) -> Mapping[str, Any] | None:
    """The new object, also where the answer to its creation was lost; None: its name is taken."""
    try:
        return objects.create(manifest)
    except RestError as error:
        if error.status is None or error.status >= _SERVER_ERROR:
            with suppress(ContainerError):
                found = objects.read(object_name(marks))
                if found is not None and _is_of(found, marks):
                    return found
        raise


def _end(objects: Objects, found: Mapping[str, Any]) -> None:
    """Deletes an object, and no other that took its name; returns when its pods are gone."""
    name, uid = (str(at(found, "metadata", key)) for key in ("name", "uid"))
    objects.delete(name, uid)
    objects.wait_until_gone(name, uid)


def _startup(objects: Objects, made: Mapping[str, Any]) -> dict[str, str]:
    return {
        _KIND: objects.kind.name,
        _NAMESPACE: objects.namespace,
        "pod-name": str(at(made, "metadata", "name")),
        _UID: str(at(made, "metadata", "uid")),
    }


def _without_pod(resource: Resource) -> PostMortem:
    if _UID in resource.properties:
        return PostMortem(UNKNOWN, "its pod is not there any more: it, or its node, was removed")
    return PostMortem(NEVER_STARTED, "no pod of it is there, and none is known to have been")


def _template_of(given: Given) -> WorkerTemplate:
    """The template that the one property or the other has; its text can hold secrets."""
    keys = [key for key in ("template", "template-file") if key in given.properties]
    if len(keys) != 1:
        problem = " and 'template-file' are both given" if keys else " is missing"
        raise given.error("template", f"{problem}; one of the two has {ACCEPTED}")
    (key,) = keys
    try:
        text = given.properties[key]
        return parse_template(_content(text) if key == "template-file" else text)
    except OSError as error:
        raise given.error(key, f" cannot be read: {describe(error)}") from None
    except ValueError as flaw:
        raise given.error(key, f": {flaw}; accepted is {ACCEPTED}") from None


def _content(path: str) -> str:
    """The text of a file; a relative path would mean another one wherever a run executes."""
    file = Path(path).expanduser()
    if not file.is_absolute():
        raise ValueError("the path is relative, and runs do not all execute in one folder")
    return file.read_text(encoding="utf-8")


def _namespace(text: str) -> str:
    if not is_namespace(text):
        raise ValueError("no name of a namespace")
    return text
