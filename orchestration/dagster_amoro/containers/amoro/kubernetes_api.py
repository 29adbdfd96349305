"""How are a cluster's Deployments read, created and deleted?

The client of Kubernetes is an extra, and slow to import; it is loaded by the first call.
"""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from dagster_amoro.containers.amoro.rest import RestError, limit_answers
from dagster_amoro.core.errors import ContainerError, describe, shorten

_POLL: Final = 0.25  # seconds between two looks at a Deployment that is to disappear
_SHOWN: Final = 500  # characters of an answer that is not the API's
_NOT_FOUND: Final = 404
_CONFLICT: Final = 409


@dataclass(frozen=True, slots=True)
class Deployments:
    """The Deployments of a namespace."""

    api: Any  # kubernetes.client.ApiClient
    namespace: str
    request_timeout: float  # seconds for a request and its answer
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
        except RestError as error:
            if uid is None or error.status != _CONFLICT:  # else it is gone, another took its name
                raise

    def pods(self, name: str) -> list[Mapping[str, Any]]:
        """The pods of one, those that have ended included."""
        chosen = {"label_selector": f"app={name}"}
        found = self._call("list", name, absent=_NOT_FOUND, kind="pod", **chosen) or {}
        return list(found.get("items") or ())

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
        self, verb: str, target: str, *, absent: int, kind: str = "deployment", **arguments: object
    ) -> Mapping[str, Any] | None:
        """The answer to a call on a Deployment, or its pods; None where its status is `absent`."""
        from kubernetes.client import ApiException, AppsV1Api, CoreV1Api  # noqa: PLC0415 - an extra

        of = "pods of " if kind == "pod" else ""
        what, where = f"could not {verb} {of}{self.place(target)}", self.api.configuration.host
        api = (CoreV1Api if kind == "pod" else AppsV1Api)(self.api)
        method = getattr(api, f"{verb}_namespaced_{kind}")
        try:
            content = method(
                namespace=self.namespace,
                **arguments,
                _preload_content=False,  # the client would check answers against its own version
                _request_timeout=self.request_timeout,
            ).data
        except ApiException as error:
            if error.status == absent and _status(error.body):
                return None
            raise RestError(f"{what}: {_reason(error)}", error.status) from None
        except RestError as error:  # a limit
            raise RestError(f"{what}: {where} {error}") from None
        except Exception as error:  # noqa: BLE001 - of sockets, TLS, HTTP and the client alike
            raise RestError(f"{what}: {where} does not answer: {describe(error)}") from None
        answer = _json_object(content)
        if answer is None:
            raise RestError(f"{what}: the answer is not the Kubernetes API's: {_shown(content)}")
        return answer


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


def at(value: Any, *keys: str) -> Any:  # noqa: ANN401 - JSON
    """What is found in nested objects along the keys; None if there is no such way."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
