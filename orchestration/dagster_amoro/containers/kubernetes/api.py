"""How are a cluster's objects read, created and deleted?

The client of Kubernetes is an extra, and slow to import; it is loaded by the first call.
"""

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, Final, NamedTuple

from dagster_amoro.containers.rest import RestError, limit_answers
from dagster_amoro.core.errors import ConfigError, ContainerError, describe, shorten
from dagster_amoro.core.secrets import Mask

LIBRARIES: Final = ("kubernetes.client", "kubernetes.config")
"""What the calls load."""

_POLL: Final = 0.25  # seconds between two looks at an object that is to disappear
_SHOWN: Final = 500  # characters of an answer that is not the API's
_NOT_FOUND: Final = 404
_CONFLICT: Final = 409
_NAMESPACE: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


class Kind(NamedTuple):
    """A kind of objects."""

    name: str  # as `kind` says it
    api: str  # the class of the client that has its calls

    @property
    def noun(self) -> str:
        """What the client's methods call one."""
        return self.name.lower()


DEPLOYMENT: Final = Kind("Deployment", "AppsV1Api")
POD: Final = Kind("Pod", "CoreV1Api")
JOB: Final = Kind("Job", "BatchV1Api")
_REVIEW: Final = Kind("SelfSubjectAccessReview", "AuthorizationV1Api")


class Right(NamedTuple):
    """What an account may be allowed to do to objects of a kind."""

    verb: str
    resource: str  # in the plural, as roles have it
    group: str = ""  # of APIs; empty: the core's
    subresource: str = ""

    def __str__(self) -> str:
        """As an operator reads it: `get pods/log`."""
        of = f"/{self.subresource}" if self.subresource else ""
        return f"{self.verb} {self.resource}{of}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Objects:
    """The objects of one kind in a namespace."""

    client: Any  # kubernetes.client.ApiClient
    kind: Kind
    namespace: str
    request_timeout: float  # seconds for a request and its answer
    deletion_timeout: float  # seconds

    def place(self, name: str) -> str:
        """What messages call an object."""
        return f"{self.kind.name} {name!r} in namespace {self.namespace!r}"

    def create(
        self, manifest: Mapping[str, Any], *, dry_run: bool = False
    ) -> Mapping[str, Any] | None:
        """The new object; None where its name is taken.

        In a dry run the API says what would come of it, and nothing is kept.
        """
        name, stages = manifest["metadata"]["name"], "All" if dry_run else None
        return self._call("create", name, body=manifest, absent=_CONFLICT, dry_run=stages)

    def read(self, name: str) -> Mapping[str, Any] | None:
        """One as it is; None if there is none."""
        return self._call("read", name, name=name, absent=_NOT_FOUND)

    def delete(self, name: str, uid: str | None = None) -> None:
        """Has one deleted after its pods, if it is still the one with this `uid`."""
        policy = "Background" if self.kind == POD else "Foreground"
        body: dict[str, Any] = {"propagationPolicy": policy}
        if uid is not None:
            body["preconditions"] = {"uid": uid}
        try:
            self._call("delete", name, name=name, body=body, absent=_NOT_FOUND)
        except RestError as error:
            if uid is None or error.status != _CONFLICT:  # else it is gone, another took its name
                raise

    def pods(self, name: str, selector: str) -> list[Mapping[str, Any]]:
        """The pods of one, by their labels, those that have ended included."""
        chosen = {"label_selector": selector}
        found = self._call("list", name, absent=_NOT_FOUND, kind=POD, **chosen) or {}
        return list(found.get("items") or ())

    def log(self, pod: str, container: str, *, lines: int, size: int) -> str:
        """The last lines of what a container of a pod wrote, `size` bytes of them at most."""
        what = f"could not read the log of Pod {pod!r} in namespace {self.namespace!r}"
        method = self._method(POD, "read_namespaced_pod_log")
        read = partial(method, pod, self.namespace, container=container)
        content = self._ask(what, partial(read, tail_lines=lines, limit_bytes=size))
        return (content or b"").decode(errors="replace")

    def may(self, right: Right) -> bool:
        """Whether the account that calls has a right in this namespace."""
        attributes = {**right._asdict(), "namespace": self.namespace}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": _REVIEW.name,
            "spec": {"resourceAttributes": attributes},
        }
        what = f"could not ask whether the account may {right}"
        create = self._method(_REVIEW, "create_self_subject_access_review")
        return bool(at(self._answer(what, partial(create, body=review)), "status", "allowed"))

    def wait_until_gone(self, name: str, uid: str | None = None) -> None:
        """Returns once there is none of this name, or another than the one with this `uid`."""
        deadline = time.monotonic() + self.deletion_timeout
        while (found := self.read(name)) is not None:
            uid = uid or at(found, "metadata", "uid")
            if at(found, "metadata", "uid") != uid:
                return
            if time.monotonic() >= deadline:
                raise ContainerError(
                    f"{self.place(name)} was deleted and is still there after "
                    f"{self.deletion_timeout:g} s; it goes when its pods have ended"
                )
            time.sleep(_POLL)

    def _call(
        self,
        verb: str,
        target: str,
        *,
        absent: int,
        kind: Kind | None = None,
        **arguments: object,
    ) -> Mapping[str, Any] | None:
        """The answer to a call on an object, or its pods; None where its status is `absent`."""
        of = "" if kind is None else f"{kind.noun}s of "
        called = kind or self.kind
        method = self._method(called, f"{verb}_namespaced_{called.noun}")
        what = f"could not {verb} {of}{self.place(target)}"
        call = partial(method, namespace=self.namespace, **arguments)
        return self._answer(what, call, absent)

    def _method(self, kind: Kind, name: str) -> Callable[..., Any]:
        from kubernetes import client  # noqa: PLC0415 - an extra, and slow to import

        found: Callable[..., Any] = getattr(getattr(client, kind.api)(self.client), name)
        return found

    def _answer(
        self, what: str, call: Callable[..., Any], absent: int | None = None
    ) -> Mapping[str, Any] | None:
        content = self._ask(what, call, absent)
        if content is None:
            return None
        answer = _json_object(content)
        if answer is None:
            raise RestError(f"{what}: the answer is not the Kubernetes API's: {_shown(content)}")
        return answer

    def _ask(self, what: str, call: Callable[..., Any], absent: int | None = None) -> bytes | None:
        """What a call answers; None where its status is `absent`."""
        from kubernetes.client import ApiException  # noqa: PLC0415 - an extra, and slow to import
        from pydantic import ValidationError  # noqa: PLC0415 - slow to import

        where = self.client.configuration.host
        try:
            content: bytes = call(
                _preload_content=False,  # the client would check answers against its own version
                _request_timeout=self.request_timeout,
            ).data
        except ApiException as error:
            if error.status == absent and _status(error.body):
                return None
            raise RestError(f"{what}: {_reason(error)}", error.status) from None
        except RestError as error:  # a limit
            raise RestError(f"{what}: {where} {error}") from None
        except ValidationError as error:  # without the values, which may be secrets
            raise ContainerError(f"{what}: {_flaw(error)}") from None
        except Exception as error:  # noqa: BLE001 - of sockets, TLS, HTTP and the client alike
            raise RestError(f"{what}: {where} does not answer: {describe(error)}") from None
        return content


def require_client(container: str) -> None:
    """A ConfigError says that the client of Kubernetes is not installed."""
    if find_spec("kubernetes") is None:
        raise ConfigError(
            f"container {container!r}: the client of Kubernetes is not installed; "
            "pip install dagster-amoro[kubernetes]"
        )


def is_namespace(text: str) -> bool:
    """Whether a text can name a namespace, and so become part of an address."""
    return _NAMESPACE.fullmatch(text) is not None


@contextmanager
def connected(path: str | None) -> Iterator[Any]:
    """A client of the cluster; errors within do not show the token that it calls with.

    `path` is that of a kubeconfig. Without one the service account of the pod that this runs in is
    used, and outside a cluster `$KUBECONFIG` or `~/.kube/config`.

    Raises:
        ContainerError: The kubeconfig is missing or cannot be used.
    """
    configuration = configuration_of(path)
    try:
        with client_of(configuration) as client:
            yield client
    except ContainerError as error:
        mask = Mask({"token": token_of(configuration)})
        raise ContainerError(mask.hide(str(error))) from None


def configuration_of(path: str | None) -> Any:  # noqa: ANN401 - the client has no types
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


def client_of(configuration: Any) -> Any:  # noqa: ANN401 - the client has no types
    """A client, which is to be used as a context, so that its connections are closed.

    What it is answered is limited as `limit_answers` says.
    """
    from kubernetes.client import ApiClient  # noqa: PLC0415 - an extra, and slow to import

    try:
        client = ApiClient(configuration)
    except Exception as error:  # noqa: BLE001 - certificates, proxies
        raise ContainerError(f"no client of {configuration.host}: {describe(error)}") from None
    limit_answers(client.rest_client.pool_manager)
    return client


def token_of(configuration: Any) -> str:  # noqa: ANN401 - the client has no types
    """The token that calls are made with, which no message may show; empty where there is none."""
    return str(configuration.api_key.get("BearerToken", "")).partition(" ")[2]


def _reason(error: Any) -> str:  # noqa: ANN401 - an ApiException
    """What a refusal says, without the headers that its own text shows."""
    message = (_status(error.body) or {}).get("message") or _shown(error.body)
    status = f"{error.status} {error.reason}" if error.status else str(error.reason)
    return f"{status}: {message}" if message else status


def _status(body: str | None) -> dict[str, Any] | None:
    """The Status with which the API refuses; None if it is something else that answered."""
    answer = _json_object(body)
    return answer if answer and answer.get("kind") == "Status" else None


def _json_object(text: str | bytes | None) -> dict[str, Any] | None:
    try:
        found = json.loads(text or "")
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _shown(content: str | bytes | None) -> str:
    text = content.decode(errors="replace") if isinstance(content, bytes) else content or ""
    return shorten(" ".join(text.split()), _SHOWN)


def _flaw(error: Any) -> str:  # noqa: ANN401 - a ValidationError of pydantic
    """What of a request the client does not send, and why."""
    (first, *_) = error.errors(include_input=False, include_url=False, include_context=False)
    place = ".".join(str(part) for part in first["loc"] if part != "body")
    return f"{place or 'it'} cannot be sent: {first['msg']}"


def at(value: Any, *keys: str) -> Any:  # noqa: ANN401 - JSON
    """What is found in nested objects along the keys; None if there is no such way."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
