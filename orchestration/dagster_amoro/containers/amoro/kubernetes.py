"""How does a Kubernetes cluster run optimizers? Each is a Deployment of one pod, as AMS makes it.

The rules are those of `KubernetesOptimizerContainer` in Amoro 0.7 to master. Deployments are only
read, created and deleted, which is all that the role in Amoro's Helm chart allows.
"""

import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, Final, Literal, NamedTuple, TypeVar

import yaml

from dagster_amoro.containers.amoro.base import OptimizerContainer, as_text, is_true
from dagster_amoro.core.ams_version import AmsVersion, AskAmsVersion
from dagster_amoro.core.errors import (
    ConfigError,
    ContainerError,
    ReleaseFailedError,
    StartFailedError,
    describe,
    shorten,
)
from dagster_amoro.core.model import Resource
from dagster_amoro.core.secrets import Mask

_T = TypeVar("_T", int, float)

_ENTRYPOINT: Final = "/entrypoint.sh optimizer"
_ID_LABEL: Final = "AmoroResourceId"
_SHUTDOWN_MS: Final = "600000"  # how long an optimizer drains unless told otherwise
_SHUTDOWN_EXTRA: Final = 30  # seconds that AMS adds before the pod is killed
_TRIES: Final = 3  # to create a Deployment: once, for a leftover, and for one that came between
_POLL: Final = 0.25  # seconds between two looks at a Deployment that is to disappear
_SHOWN: Final = 500  # characters of an answer that is not the API's
_LARGEST: Final = 1e9  # far above any factor or ratio; keeps products finite

_WHOLE: Final = re.compile(r"[+-]?[0-9]{1,18}")  # what Java's Long.parseLong reads
_NUMBER: Final = re.compile(r"\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?\s*")
_NAMESPACE: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")

_NOT_FOUND: Final = 404
_CONFLICT: Final = 409


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
    """

    request_timeout: float = 10.0  # seconds for one call of the API
    deletion_timeout: float = 60.0  # seconds for a Deployment and its pods to disappear

    def __init__(
        self, name: str, properties: Mapping[str, str], ask_ams_version: AskAmsVersion | None = None
    ) -> None:
        """Prepares the container without connecting to anything.

        Raises:
            ConfigError: A property is missing, or Kubernetes' client is not installed.
        """
        super().__init__(name, properties, ask_ams_version)
        if find_spec("kubernetes") is None:
            raise ConfigError(
                f"container {name!r}: the client of Kubernetes is not installed; "
                "pip install dagster-amoro[kubernetes]"
            )

    @property
    def supports_auto_restart(self) -> bool:
        """Whether the property `auto-restart` asks for restarts.

        Raises:
            ContainerError: It does, and nobody knows the version of AMS.
        """
        return is_true(self.properties.get("auto-restart")) and super().supports_auto_restart

    def manifest(self, resource: Resource) -> dict[str, Any]:
        """The Deployment that AMS would create for the resource.

        It differs in one thing: values with characters that the pod's shell or Kubernetes would
        act on are quoted in the command, so that each reaches the optimizer as it is.

        Raises:
            StartFailedError: A property is missing or cannot be used; the message names it.
            ContainerError: Nobody knows the version of AMS.
        """
        name = _name_of(resource)
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

    def request_resource(self, resource: Resource) -> Mapping[str, str]:
        """Creates the resource's Deployment, in place of one that an earlier start left behind.

        Returns:
            `namespace` and `name` of the Deployment, as AMS has them.

        Raises:
            StartFailedError: The API refused or did not answer, a property is missing, the
                leftover did not disappear in time, or the name is taken by something else.
        """
        with self._connected(resource, StartFailedError) as deployments:
            manifest = self.manifest(resource)
            for _ in range(_TRIES):
                if deployments.create(manifest):
                    return {"namespace": deployments.namespace, "name": _name_of(resource)}
                self._clear(deployments, resource)
        raise StartFailedError(
            f"container {self.name!r}: somebody else keeps creating Deployment "
            f"{_name_of(resource)!r}"
        )

    def release_resource(self, resource: Resource) -> None:
        """Deletes the resource's Deployment and waits until it and its pods are gone.

        Its name follows from the resource's id. A `name` in the row is not read: it is the same,
        or it is another optimizer's, which AMS can leave there.

        Raises:
            ReleaseFailedError: The API refused or did not answer, or it takes too long.
        """
        with self._connected(resource, ReleaseFailedError) as deployments:
            deployments.delete(_name_of(resource))
            deployments.wait_until_gone(_name_of(resource))

    def status(self, resource: Resource) -> Literal["running", "ended", "unknown"]:
        """Whether a pod of the resource is available; ended where there is no Deployment."""
        try:
            with self._connected(resource, ContainerError) as deployments:
                found = deployments.read(_name_of(resource))
        except ContainerError:
            return "unknown"
        if found is None:
            return "ended"
        return "running" if _at(found, "status", "availableReplicas") else "unknown"

    def _clear(self, deployments: "_Deployments", resource: Resource) -> None:
        """Deletes the Deployment that has the resource's name, if it is the resource's."""
        name = _name_of(resource)
        found = deployments.read(name)
        if found is None:
            return
        selected = _at(found, "spec", "selector", "matchLabels", "app")
        labelled = _at(found, "spec", "template", "metadata", "labels", _ID_LABEL)
        if (selected, labelled) != (name, resource.resource_id):
            raise ContainerError(
                f"{deployments.place(name)} exists and is not this optimizer's: its labels say "
                f"app={selected!r}, {_ID_LABEL}={labelled!r}; remove or rename it"
            )
        deployments.delete(name, uid=_at(found, "metadata", "uid"))
        deployments.wait_until_gone(name, uid=_at(found, "metadata", "uid"))

    @contextmanager
    def _connected(
        self, resource: Resource, failure: type[ContainerError]
    ) -> "Iterator[_Deployments]":
        """The API in the resource's namespace; what goes wrong within is a `failure`."""
        token = {}
        try:
            namespace = self._given(resource).namespace()
            configuration = _configuration(self.properties.get("kube-config-path"))
            token["token"] = _token_of(configuration)
            with _client(configuration) as client:
                yield _Deployments(
                    api=client,
                    namespace=namespace,
                    request_timeout=self.request_timeout,
                    deletion_timeout=self.deletion_timeout,
                )
        except ContainerError as error:
            text = Mask(self.properties, resource.properties, token).hide(str(error))
            raise failure(f"container {self.name!r}: {text}") from None

    def _given(self, resource: Resource) -> "_Given":
        return _Given({**self.properties, **resource.properties})

    def _pod_template(self, resource: Resource) -> dict[str, Any]:
        given = self._given(resource)
        bare: dict[str, Any] = {"metadata": {}, "spec": {"containers": [None]}}
        template = given.pod_template() if self.ams_version >= AmsVersion.V0_8 else None
        template = template or bare
        template["metadata"]["labels"] = {
            "app": _name_of(resource),
            "AmoroOptimizerGroup": resource.group_name,
            _ID_LABEL: resource.resource_id,
        }
        spec = template["spec"]
        spec["containers"][0] = self._container(resource, given)
        if secrets := _split(given.values.get("imagePullSecrets", "")):
            spec["imagePullSecrets"] = [{"name": secret} for secret in secrets]
        if (
            self.ams_version >= AmsVersion.V0_9_0
            and spec.get("terminationGracePeriodSeconds") is None
        ):
            spec["terminationGracePeriodSeconds"] = _grace_seconds(resource)
        return template

    def _container(self, resource: Resource, given: "_Given") -> dict[str, Any]:
        memory = self._memory(resource, given)
        cores = math.ceil(given.number("cpu.factor", "1.0") * resource.thread_count)
        amounts = {"memory": f"{memory}Mi", "cpu": str(cores)}
        return {
            "name": "optimizer",
            "image": given.text("image"),
            "imagePullPolicy": given.values.get("pullPolicy", "IfNotPresent"),
            "command": ["sh", "-c", self._command(resource, given, memory)],
            "resources": {"limits": amounts, "requests": dict(amounts)},
        }

    def _memory(self, resource: Resource, given: "_Given") -> int:
        """MiB of the pod."""
        if resource.memory_mb > 0 and self.ams_version >= AmsVersion.V0_8:
            return resource.memory_mb
        return given.whole("memory") * resource.thread_count

    def _command(self, resource: Resource, given: "_Given", memory: int) -> str:
        ratio = (
            given.number("extra.jvm.heap.ratio", "0.8") if self.ams_version > AmsVersion.V0_7 else 1
        )
        arguments = as_text(self.arguments(resource))
        whole = f"{_ENTRYPOINT} {int(memory * ratio)} {arguments}"
        text = f"exec {whole}" if self.ams_version >= AmsVersion.V0_9_0 else whole
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
        return self._parsed(key, default, _WHOLE, int)

    def number(self, key: str, default: str) -> float:
        """A number, as Java reads a `double`; what is not a number is refused."""
        value = self._parsed(key, default, _NUMBER, float)
        if abs(value) > _LARGEST:
            raise StartFailedError(f"property {key!r} is {self.values[key]!r}: too large")
        return value

    def namespace(self) -> str:
        """The namespace; one that could not be a namespace must not become part of an address."""
        value = self.values.get("namespace", "default")
        if _NAMESPACE.fullmatch(value):
            return value
        raise StartFailedError(
            f"property 'namespace' is {shorten(repr(value), 200)}, which cannot name a namespace: "
            "accepted are up to 63 of the characters a-z, 0-9 and -"
        )

    def pod_template(self) -> dict[str, Any] | None:
        """What `podTemplate` says of the pod, if it is there."""
        text = self.values.get("podTemplate")
        if text is None:
            return None
        try:
            return _parse_pod_template(text)
        except ValueError as error:  # without the text, whose containers may hold secrets
            raise StartFailedError(
                f"property 'podTemplate' is no YAML of a PodTemplate of core/v1: {error}"
            ) from None

    def _parsed(
        self, key: str, default: str | None, accepted: re.Pattern[str], parse: Callable[[str], _T]
    ) -> _T:
        value = self.text(key) if default is None else self.values.get(key, default)
        if accepted.fullmatch(value) is None:
            raise StartFailedError(
                f"property {key!r} is {shorten(repr(value), 200)}, which is no "
                f"{'whole number' if parse is int else 'number'}"
            )
        return parse(value)


class _ApiError(ContainerError):
    """The API refused a call, or did not answer as it should."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status: Final = status  # of HTTP; None: there was no answer


@dataclass(frozen=True, kw_only=True, slots=True)
class _Deployments:
    """The Deployments of a namespace."""

    api: Any  # kubernetes.client.ApiClient
    namespace: str
    request_timeout: float  # seconds
    deletion_timeout: float  # seconds

    def place(self, name: str) -> str:
        """What messages call a Deployment."""
        return f"Deployment {name!r} in namespace {self.namespace!r}"

    def create(self, manifest: Mapping[str, Any]) -> bool:
        """Creates one; False where the name is taken."""
        name = manifest["metadata"]["name"]
        return self._call("create", name, body=manifest, absent=_CONFLICT) is not None

    def read(self, name: str) -> Mapping[str, Any] | None:
        """One as it is; None if there is none."""
        return self._call("read", name, name=name, absent=_NOT_FOUND)

    def delete(self, name: str, uid: str | None = None) -> None:
        """Has one deleted after its pods, if it is still the one with this `uid`."""
        body: dict[str, Any] = {"propagationPolicy": "Foreground"}
        if uid is not None:
            body["preconditions"] = {"uid": uid}
        try:
            self._call("delete", name, name=name, body=body, absent=_NOT_FOUND)
        except _ApiError as error:
            if uid is None or error.status != _CONFLICT:  # else it is gone, another took its name
                raise

    def wait_until_gone(self, name: str, uid: str | None = None) -> None:
        """Returns once there is none of this name, or another than the one with this `uid`."""
        deadline = time.monotonic() + self.deletion_timeout
        while (found := self.read(name)) is not None:
            uid = uid or _at(found, "metadata", "uid")
            if _at(found, "metadata", "uid") != uid:
                return
            if time.monotonic() >= deadline:
                raise ContainerError(
                    f"{self.place(name)} was deleted and is still there after "
                    f"{self.deletion_timeout:g} s; it goes when its pods have ended"
                )
            time.sleep(_POLL)

    def _call(
        self, verb: str, target: str, *, absent: int, **arguments: object
    ) -> Mapping[str, Any] | None:
        """The answer to a call on one Deployment; None where its status is `absent`."""
        from kubernetes.client import ApiException, AppsV1Api  # noqa: PLC0415 - an extra, and slow

        what = f"could not {verb} {self.place(target)}"
        method = getattr(AppsV1Api(self.api), f"{verb}_namespaced_deployment")
        try:
            response = method(
                namespace=self.namespace,
                **arguments,
                _preload_content=False,  # the client would check answers against its own version
                _request_timeout=self.request_timeout,
            )
            content = response.data
        except ApiException as error:
            if error.status == absent and _status(error.body):
                return None
            raise _ApiError(f"{what}: {_reason(error)}", error.status) from None
        except Exception as error:  # noqa: BLE001 - of sockets, TLS, HTTP and the client alike
            where = self.api.configuration.host
            raise _ApiError(f"{what}: {where} does not answer: {describe(error)}") from None
        answer = _json_object(content)
        if answer is None:
            raise _ApiError(f"{what}: the answer is not the Kubernetes API's: {_shown(content)}")
        return answer


def _configuration(path: str | None) -> Any:  # noqa: ANN401 - the client has no types
    """How to reach the cluster; nothing of the client's global state is read or set.

    Raises:
        ContainerError: The kubeconfig is missing or cannot be used.
    """
    from kubernetes import client, config  # noqa: PLC0415 - an extra, and slow to import

    configuration = client.Configuration()
    configuration.retries = False  # a server that is down is reported, not asked four times
    load: Any
    if not path and "KUBERNETES_SERVICE_HOST" in os.environ:
        what, load = "the pod's service account", config.load_incluster_config
    else:
        file = _kube_config(path)
        what = f"the kubeconfig {file!r}"
        load = partial(config.load_kube_config, config_file=file, persist_config=False)
    try:
        load(client_configuration=configuration)
    except Exception as error:  # noqa: BLE001 - YAML, missing keys, plugins
        raise ContainerError(f"{what} cannot be used: {describe(error)}") from None
    return configuration


def _kube_config(path: str | None) -> str:
    """The kubeconfig file, or several as `$KUBECONFIG` lists them."""
    given = path or os.environ.get("KUBECONFIG") or "~/.kube/config"
    files = [os.path.expanduser(each) for each in given.split(os.pathsep)]  # noqa: PTH111 - raises not
    if not any(map(os.path.exists, files)):
        raise ContainerError(
            f"there is no kubeconfig {given!r}; set the container's property 'kube-config-path', "
            "or run inside the cluster"
        )
    return os.pathsep.join(files)


@contextmanager
def _client(configuration: Any) -> Iterator[Any]:  # noqa: ANN401 - the client has no types
    """A client whose connections are closed after use."""
    from kubernetes.client import ApiClient  # noqa: PLC0415 - an extra, and slow to import

    try:
        client = ApiClient(configuration)
    except Exception as error:  # noqa: BLE001 - certificates, proxies
        raise ContainerError(f"no client of {configuration.host}: {describe(error)}") from None
    with client:
        yield client


def _token_of(configuration: Any) -> str:  # noqa: ANN401 - the client has no types
    return str(configuration.api_key.get("BearerToken", "")).partition(" ")[2]


def _reason(error: Any) -> str:  # noqa: ANN401 - an ApiException
    """What a refusal says, without the headers that its own text shows."""
    told = (_status(error.body) or {}).get("message") or _shown(error.body)
    status = f"{error.status} {error.reason}" if error.status else str(error.reason)
    return f"{status}: {told}" if told else status


def _status(body: str | None) -> dict[str, Any] | None:
    """The Status with which the API refuses; None if it is something else that answered."""
    answer = _json_object(body)
    return answer if answer and answer.get("kind") == "Status" else None


def _json_object(text: str | bytes | None) -> dict[str, Any] | None:
    try:
        found = json.loads(text or "")
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _shown(content: str | bytes | None) -> str:
    text = content.decode(errors="replace") if isinstance(content, bytes) else content or ""
    return shorten(" ".join(text.split()), _SHOWN)


def _name_of(resource: Resource) -> str:
    return f"amoro-optimizer-{resource.resource_id}"


def _grace_seconds(resource: Resource) -> int:
    """How long the pod has to end: as long as its optimizer drains, and some more."""
    milliseconds = _Given(resource.properties).whole("shutdown-timeout-ms", _SHUTDOWN_MS)
    return -(-milliseconds // 1000) + _SHUTDOWN_EXTRA


def _split(text: str) -> list[str]:
    """As Java's `split(";")`: no empty texts at the end, but an empty text is one."""
    if not text:
        return [""]
    parts = text.split(";")
    while parts and not parts[-1]:
        parts.pop()
    return parts


def _at(value: Any, *keys: str) -> Any:  # noqa: ANN401 - JSON
    """What is found in nested objects along the keys; None if there is no such way."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


class _Scalar(NamedTuple):
    """A scalar of YAML that is no text, together with what stands there."""

    text: str
    value: object


class _Loader(yaml.SafeLoader):
    """Keeps what is written: where Kubernetes wants a text, AMS takes `true` and `1.10` as such."""


def _scalar(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> _Scalar:
    plain = yaml.SafeLoader.yaml_constructors[node.tag]
    return _Scalar(node.value, plain(loader, node))


for _tag in ("int", "float", "bool", "timestamp"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _scalar)


def _parse_pod_template(text: str) -> dict[str, Any]:
    """The `template` of a PodTemplate, with at least metadata and one container.

    Raises:
        ValueError: It is something else; the message says where, and shows no values.
    """
    try:
        given = yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        raise ValueError(f"{getattr(error, 'problem', None) or 'no YAML'}{where}") from None
    found = _Shape("").read(given, "V1PodTemplate")
    for path in (("template",), ("template", "metadata"), ("template", "spec", "containers")):
        if _at(found, *path) is None:
            raise ValueError(f"it has no {'.'.join(path)}")
    if not found["template"]["spec"]["containers"]:
        raise ValueError("template.spec.containers is empty")
    template: dict[str, Any] = found["template"]
    return template


@dataclass(frozen=True, slots=True)
class _Shape:
    """A place in a Kubernetes object, read as the client's models say."""

    path: str

    def read(self, value: object, kind: str) -> Any:  # noqa: ANN401 - JSON
        """The value as JSON of this kind, such as `str`, `List[V1Container]` or `V1PodSpec`.

        Raises:
            ValueError: It cannot be that.
        """
        if value is None:
            return None
        if match := re.fullmatch(r"List\[(.+)\]", kind):
            return self._list(value, match[1])
        if match := re.fullmatch(r"Dict\[str, (.+)\]", kind):
            return self._fields(value, lambda _: match[1])
        if re.match("[A-Z]", kind):
            return self._model(value, kind)
        return self._plain(value, kind)

    def _model(self, value: object, kind: str) -> dict[str, Any]:
        from kubernetes.client import models  # noqa: PLC0415 - an extra, and slow to import

        model = getattr(models, kind)
        kinds = {model.attribute_map[name]: each for name, each in model.openapi_types.items()}

        def kind_of(key: str) -> str:
            if key not in kinds:
                raise ValueError(f"{self._below(key)} is no field that Kubernetes knows")
            return str(kinds[key])

        return self._fields(value, kind_of)

    def _fields(self, value: object, kind_of: Callable[[str], str]) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise ValueError(f"{self.path or 'it'} is no mapping")  # noqa: TRY004 - of the text
        texts = {_text(key): each for key, each in value.items()}
        return {
            key: _Shape(self._below(key)).read(each, kind_of(key)) for key, each in texts.items()
        }

    def _list(self, value: object, kind: str) -> list[Any]:
        if not isinstance(value, list):
            raise ValueError(f"{self.path} is no list")  # noqa: TRY004 - it is about a text
        return [_Shape(f"{self.path}[{i}]").read(each, kind) for i, each in enumerate(value)]

    def _plain(self, value: object, kind: str) -> object:
        if isinstance(value, dict | list | set):
            raise ValueError(f"{self.path} is no single value")  # noqa: TRY004 - of the text
        if kind in {"str", "datetime"}:
            return _text(value)
        return value.value if isinstance(value, _Scalar) else value

    def _below(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key


def _text(value: object) -> str:
    return value.text if isinstance(value, _Scalar) else str(value)
