"""Kubernetes' API for the tests: real controllers, or a server that answers as a test wants."""

import json
import ssl
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import pytest
import requests
import yaml

from tests.engines.clusters import engines_folder, missing

TOKEN: Final = "t0p-s3cr3t-bearer"  # noqa: S105 - of the tests' own servers
NAMESPACE: Final = "amoro"  # that a cluster has
_SERVER: Final = Path(__file__).parents[1] / "engines" / "kubernetes" / "server.mjs"
_HEADERS: Final = {"Authorization": f"Bearer {TOKEN}"}
_GROUPS: Final = {"pods": "/api/v1", "jobs": "/apis/batch/v1", "deployments": "/apis/apps/v1"}


def kube_config(folder: Path, port: int, token: str = TOKEN) -> Path:
    """A kubeconfig file for a server on this machine."""
    file = folder / "kube-config.yaml"
    parts = {
        "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "keeper"}}],
        "users": [{"name": "keeper", "user": {"token": token}}],
    }
    file.write_text(yaml.safe_dump(parts))
    return file


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A Kubernetes that runs; its pods of the image `program:1.0` run on this machine."""

    port: int

    def get(self, path: str) -> Any:  # noqa: ANN401 - JSON
        """An answer of its API."""
        return requests.get(self._url(path), headers=_HEADERS, timeout=10).json()

    def log(self, pod: str) -> str:
        """What the worker of a pod has written so far."""
        return requests.get(
            self._url(f"{path_of('pods')}/{pod}/log"), headers=_HEADERS, timeout=10
        ).text

    def items(self, kind: str) -> list[dict[str, Any]]:
        """The deployments or pods in its namespace."""
        found: list[dict[str, Any]] = self.get(path_of(kind))["items"]
        return found

    def create(self, kind: str, manifest: Mapping[str, Any]) -> None:
        """Somebody else creates an object."""
        self._post(path_of(kind), manifest)

    def delete(self, kind: str, name: str) -> None:
        """Somebody else deletes an object."""
        url = self._url(f"{path_of(kind)}/{name}")
        requests.delete(url, headers=_HEADERS, timeout=10).raise_for_status()

    def says_of(self, pod: str, status: Mapping[str, Any]) -> None:
        """Writes down what a kubelet would say of a pod."""
        self._post(f"/says/{pod}", status)

    def allow(self, rules: Sequence[Mapping[str, Any]]) -> None:
        """The client may do what a role of these rules allows, and nothing else."""
        self._post("/role", rules)

    def processes(self) -> dict[str, int]:
        """The process of each pod that runs a program here, by the pod's name."""
        found: dict[str, int] = self.get("/processes")
        return found

    def _post(self, path: str, body: Any) -> None:  # noqa: ANN401 - JSON
        sent = requests.post(self._url(path), headers=_HEADERS, json=body, timeout=10)
        sent.raise_for_status()

    def _url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"


def path_of(kind: str, namespace: str = NAMESPACE) -> str:
    """Where the API has the objects of a kind."""
    return f"{_GROUPS[kind]}/namespaces/{namespace}/{kind}"


@contextmanager
def running_cluster() -> Iterator[Cluster]:
    """A cluster of the test's own, which ends with it."""
    if reason := missing("kubernetes"):
        pytest.skip(reason)
    folder = engines_folder() / "kubernetes"
    command = ["node", str(_SERVER), str(folder.absolute()), TOKEN]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            yield Cluster(port=int(process.stdout.readline()))
        finally:
            process.stdin.close()  # which ends it
            process.wait(10)


# A server that answers as the test wants it to.

Answer = tuple[int, str, str]  # status, content type, body


@dataclass
class Script:
    """An API that answers in order; the last answer stays."""

    answers: list[Answer]
    calls: list[str] = field(default_factory=list)
    bodies: list[Any] = field(default_factory=list)
    authorizations: list[str | None] = field(default_factory=list)

    def next(self, call: str, body: bytes, authorization: str | None) -> Answer:
        """The answer to a call."""
        self.calls.append(call)
        self.authorizations.append(authorization)
        self.bodies.append(json.loads(body) if body else None)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def status(code: int, reason: str, message: str) -> Answer:
    """A refusal as the API gives it."""
    body = {"kind": "Status", "status": "Failure", "reason": reason, "message": message}
    return code, "application/json", json.dumps(body)


@contextmanager
def serving(script: Script, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """The port of a server that answers by a script."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Nothing is logged."""

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            sent = self.headers.get("Authorization")
            code, kind, text = script.next(f"{self.command} {self.path}", body, sent)
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(text.encode())))
            self.send_header("X-Echo", sent or "")
            self.send_header("Retry-After", "1")
            self.send_header("Location", "/elsewhere")
            self.end_headers()
            self.wfile.write(text.encode())

        do_GET = do_POST = do_DELETE = do_PUT = do_PATCH = answer  # noqa: N815 - http.server's

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def verbs(script: Script) -> list[str]:
    """The methods of the calls."""
    return [call.partition(" ")[0] for call in script.calls]
