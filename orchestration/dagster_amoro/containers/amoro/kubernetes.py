"""How does a Kubernetes cluster run optimizers? Each is a Deployment of one pod, as AMS makes it.

The rules are those of `KubernetesOptimizerContainer` in Amoro 0.7 to master. Deployments are only
read, created and deleted, which is all that the role in Amoro's Helm chart allows.
"""

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from dagster_amoro.containers.amoro.base import OptimizerContainer, as_text, is_true, optimizer_name
from dagster_amoro.containers.amoro.kubernetes_template import parse_pod_template
from dagster_amoro.containers.base import Status
from dagster_amoro.containers.kubernetes.api import (
    DEPLOYMENT,
    LIBRARIES,
    Objects,
    at,
    connected,
    is_namespace,
    require_client,
)
from dagster_amoro.containers.kubernetes.ends import end_of, newest
from dagster_amoro.core.ams_version import AmsVersion, AskAmsVersion
from dagster_amoro.core.errors import ContainerError, StartFailedError, shorten
from dagster_amoro.core.model import Resource
from dagster_amoro.core.post_mortem import UNKNOWN, PostMortem
from dagster_amoro.core.secrets import Mask

_ID_LABEL: Final = "AmoroResourceId"
_SHUTDOWN_MS: Final = "600000"  # how long an optimizer drains by default
_SHUTDOWN_EXTRA: Final = 30  # seconds that AMS adds before the pod is killed
_TRIES: Final = 3  # to create a Deployment: once, for a leftover, and for one that came between
_LARGEST: Final = 1e9  # far above any factor or ratio; keeps products finite

_WHOLE: Final = re.compile(r"[+-]?[0-9]{1,18}")  # what Java's Long.parseLong reads
_NUMBER: Final = re.compile(r"\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?\s*")


class KubernetesContainer(OptimizerContainer):
    """Runs each optimizer as a Deployment named `amoro-optimizer-<resource id>`.

    | property | meaning | default |
    |---|---|---|
    | `image` | the image with Amoro's optimizer | |
    | `memory` | MB per thread, unless the resource has a total | |
    | `pullPolicy` | of the image | IfNotPresent |
    | `namespace` | where Deployments are | default |
    | `cpu.factor` | cores per thread | 1.0 |
    | `imagePullSecrets` | names of secrets, separated by `;` | |
    | `extra.jvm.heap.ratio` | of the memory, for the JVM's heap; not in 0.7 | 0.8 |
    | `podTemplate` | YAML of a PodTemplate that the pod is built on; not in 0.7 | |
    | `kube-config-path` | a kubeconfig file; only the container's own counts | see below |
    | `auto-restart` | whether orphans are restarted; only the container's own counts | false |

    A resource's properties win over the container's. AMS's code insists on `pullPolicy`, although
    its documentation has the default; here the default is used. Without `kube-config-path` the
    service account of the pod that this runs in is used, and outside a cluster `$KUBECONFIG` or
    `~/.kube/config`.

    Orphans are not restarted unless asked for, because a Deployment restarts its own pods: most
    optimizers come back by themselves.

    A start takes the place of a Deployment that an earlier one left behind, and saves `namespace`
    and `name`, as AMS does. The name follows from the resource's id. A `name` in the row is not
    read, since AMS can leave another optimizer's there.

    Raises:
        ConfigError: A property is missing, or Kubernetes' client is not installed.
    """

    libraries = LIBRARIES
    request_timeout: float = 10.0  # seconds for one call of the API
    deletion_timeout: float = 60.0  # seconds for a Deployment and its pods to disappear

    def __init__(
        self, name: str, properties: Mapping[str, str], ask_ams_version: AskAmsVersion | None = None
    ) -> None:
        super().__init__(name, properties, ask_ams_version)
        require_client(name)

    @property
    def supports_auto_restart(self) -> bool:
        """Whether `auto-restart` asks for it; a ContainerError if nobody knows AMS's version."""
        return is_true(self.properties.get("auto-restart")) and super().supports_auto_restart

    def manifest(self, resource: Resource) -> dict[str, Any]:
        """The Deployment that AMS would create for the resource.

        It differs in one thing: values with characters that the pod's shell or Kubernetes would
        act on are quoted in the command, so that each reaches the optimizer as it is.

        Raises:
            StartFailedError: A property is missing or cannot be used; the message names it.
            ContainerError: Nobody knows the version of AMS.
        """
        name = optimizer_name(resource)
        return {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": name},
            "spec": {
                "replicas": 1,
                "selector": {"matchLabels": {"app": name}},
                "template": self._pod_template(resource),
            },
        }

    def _start(self, resource: Resource) -> Mapping[str, str]:
        with self._connected(resource) as deployments:
            manifest = self.manifest(resource)
            for _ in range(_TRIES):
                if deployments.create(manifest) is not None:
                    return {"namespace": deployments.namespace, "name": optimizer_name(resource)}
                self._clear(deployments, resource)
        raise StartFailedError(
            f"container {self.name!r}: somebody else keeps creating Deployment "
            f"{optimizer_name(resource)!r}"
        )

    def _end(self, resource: Resource) -> None:
        with self._connected(resource) as deployments:
            deployments.delete(optimizer_name(resource))
            deployments.wait_until_gone(optimizer_name(resource))

    def status(self, resource: Resource) -> Status:
        """Whether a pod of the resource is available; ended where there is no Deployment."""
        try:
            with self._connected(resource) as deployments:
                found = deployments.read(optimizer_name(resource))
        except ContainerError:
            return "unknown"
        if found is None:
            return "ended"
        return "running" if at(found, "status", "availableReplicas") else "unknown"

    def post_mortem(self, resource: Resource) -> PostMortem:
        """How the newest of its pods ended, or why it does not come up."""
        name = optimizer_name(resource)
        with self._connected(resource) as deployments:
            pods = deployments.pods(name, f"app={name}")
        last = newest(pods)
        if last is None:
            return PostMortem(UNKNOWN, f"there is no pod of {deployments.place(name)}")
        return end_of(last)

    def _clear(self, deployments: Objects, resource: Resource) -> None:
        """Deletes the Deployment that has the resource's name, if it is the resource's."""
        name = optimizer_name(resource)
        found = deployments.read(name)
        if found is None:
            return
        selected = at(found, "spec", "selector", "matchLabels", "app")
        labelled = at(found, "spec", "template", "metadata", "labels", _ID_LABEL)
        if (selected, labelled) != (name, resource.resource_id):
            raise ContainerError(
                f"{deployments.place(name)} exists and is not this optimizer's: its labels say "
                f"app={selected!r}, {_ID_LABEL}={labelled!r}; remove or rename it"
            )
        deployments.delete(name, uid=at(found, "metadata", "uid"))
        deployments.wait_until_gone(name, uid=at(found, "metadata", "uid"))

    @contextmanager
    def _connected(self, resource: Resource) -> Iterator[Objects]:
        """The API in the resource's namespace; errors within get the container's name."""
        try:
            namespace = _Given({**self.properties, **resource.properties}).namespace()
            with connected(self.properties.get("kube-config-path")) as client:
                yield Objects(
                    client=client,
                    kind=DEPLOYMENT,
                    namespace=namespace,
                    request_timeout=self.request_timeout,
                    deletion_timeout=self.deletion_timeout,
                )
        except ContainerError as error:
            text = Mask(self.properties, resource.properties).hide(str(error))
            raise ContainerError(f"container {self.name!r}: {text}") from None

    def _pod_template(self, resource: Resource) -> dict[str, Any]:
        given = _Given({**self.properties, **resource.properties})
        template = given.pod_template() if self.ams_version >= AmsVersion.V0_8 else None
        template = template or {"metadata": {}, "spec": {"containers": [None]}}
        template["metadata"]["labels"] = {
            "app": optimizer_name(resource),
            "AmoroOptimizerGroup": resource.group_name,
            _ID_LABEL: resource.resource_id,
        }
        spec = template["spec"]
        spec["containers"][0] = self._container(resource, given)
        if secrets := _split(given.values.get("imagePullSecrets", "")):
            spec["imagePullSecrets"] = [{"name": secret} for secret in secrets]
        grace = "terminationGracePeriodSeconds"
        if self.ams_version >= AmsVersion.V0_9_0 and spec.get(grace) is None:
            spec[grace] = _grace_seconds(resource)
        return template

    def _container(self, resource: Resource, given: "_Given") -> dict[str, Any]:
        has_total = resource.memory_mb > 0 and self.ams_version >= AmsVersion.V0_8
        memory = resource.memory_mb if has_total else given.whole("memory") * resource.thread_count
        cores = math.ceil(given.number("cpu.factor", "1.0") * resource.thread_count)
        amounts = {"memory": f"{memory}Mi", "cpu": str(cores)}
        return {
            "name": "optimizer",
            "image": given.text("image"),
            "imagePullPolicy": given.values.get("pullPolicy", "IfNotPresent"),
            "command": ["sh", "-c", self._command(resource, given, memory)],
            "resources": {"limits": amounts, "requests": dict(amounts)},
        }

    def _command(self, resource: Resource, given: "_Given", memory: int) -> str:
        is_old = self.ams_version is AmsVersion.V0_7
        heap = memory if is_old else int(memory * given.number("extra.jvm.heap.ratio", "0.8"))
        text = f"/entrypoint.sh optimizer {heap} {as_text(self.arguments(resource))}"
        text = f"exec {text}" if self.ams_version >= AmsVersion.V0_9_0 else text
        return text.replace("$", "$$")  # Kubernetes puts variables for $(NAME), and $ for $$


@dataclass(frozen=True, slots=True)
class _Given:
    """The container's properties overlaid by the resource's, and what is wrong with them."""

    values: Mapping[str, str]

    def text(self, key: str) -> str:
        """A property that must be there."""
        if value := self.values.get(key):
            return value
        raise StartFailedError(
            f"property {key!r} is missing; neither the container nor the resource's row has it"
        )

    def whole(self, key: str, default: str | None = None) -> int:
        """A whole number, as Java reads a `long`."""
        return int(self._matching(key, default, _WHOLE, "whole number"))

    def number(self, key: str, default: str) -> float:
        """A number, as Java reads a `double`; what is not a number is refused."""
        value = float(self._matching(key, default, _NUMBER, "number"))
        if abs(value) > _LARGEST:
            raise StartFailedError(f"property {key!r} is {self.values[key]!r}: too large")
        return value

    def namespace(self) -> str:
        """The namespace; one that could not be a namespace must not become part of an address."""
        value = self.values.get("namespace", "default")
        if is_namespace(value):
            return value
        raise StartFailedError(
            f"property 'namespace' is {shorten(repr(value), 200)}, which cannot name a namespace: "
            "accepted are up to 63 of the characters a-z, 0-9 and -"
        )

    def pod_template(self) -> dict[str, Any] | None:
        """What `podTemplate` says of the pod, if it is there."""
        if (text := self.values.get("podTemplate")) is None:
            return None
        try:
            return parse_pod_template(text)
        except ValueError as error:  # without the text, whose containers may hold secrets
            raise StartFailedError(
                f"property 'podTemplate' is no YAML of a PodTemplate of core/v1: {error}"
            ) from None

    def _matching(self, key: str, default: str | None, accepted: re.Pattern[str], what: str) -> str:
        value = self.text(key) if default is None else self.values.get(key, default)
        if accepted.fullmatch(value):
            return value
        shown = shorten(repr(value), 200)
        raise StartFailedError(f"property {key!r} is {shown}, which is no {what}")


def _grace_seconds(resource: Resource) -> int:
    """How long the pod has to end: as long as its optimizer drains, and some more."""
    milliseconds = _Given(resource.properties).whole("shutdown-timeout-ms", _SHUTDOWN_MS)
    return -(-milliseconds // 1000) + _SHUTDOWN_EXTRA


def _split(text: str) -> list[str]:
    """As Java's `split(";")`: no empty texts at the end, but an empty text is one."""
    if not text:
        return [""]
    return text.rstrip(";").split(";") if text.strip(";") else []
