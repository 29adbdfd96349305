"""How is a container called whose calls may hang? In another process, which is ended in time.

`host` is the other side.
"""

import json
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from datetime import timedelta
from typing import Any, Final

from dagster_amoro.containers.base import Container, Status
from dagster_amoro.containers.fences import Fence
from dagster_amoro.containers.host import MOMENT, PATIENCE, kill_tree
from dagster_amoro.containers.preview import Preview
from dagster_amoro.containers.processes import Worker
from dagster_amoro.containers.resolve import Containers, build_container
from dagster_amoro.core.ams_version import AskAmsVersion
from dagster_amoro.core.container_settings import CallLimits, ContainerSettings
from dagster_amoro.core.errors import (
    ContainerError,
    OverdueError,
    ReleaseFailedError,
    StartFailedError,
)
from dagster_amoro.core.model import Resource
from dagster_amoro.core.post_mortem import PostMortem

_BOOT: Final = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); "
    "from dagster_amoro.containers.host import main; main(int(sys.argv[2]))"
)
# Seconds after which a host that ends no call hangs itself: in the constructor of its container if
# it has never answered, else because the machine is busy, or the host is suspended.
_SLACK: Final = {False: 2.0, True: 10.0}
_CHUNK: Final = 65_536  # bytes
# Seconds in which a container is not asked again whether it restarts.
_ANSWER_HOLDS: Final = 60.0
_SILENCE_HOLDS: Final = 300.0  # it hangs, and each question takes its whole time
_OURS: Final = ("org.apache.amoro.", "dagster_amoro.")  # how the names of our classes begin
_KINDS: Final = {  # of errors that a container may raise and means
    each.__name__: each for each in (StartFailedError, ReleaseFailedError, OverdueError)
}
_WHAT: Final = {
    "start": "the start",
    "stop": "the stop",
    "status": "the question for the status",
    "supports": "the question whether it restarts",
    "preview": "the question for a preview",
    "post_mortem": "the question how its worker ended",
}


class IsolatedContainer:
    """A container that is called in another process, each call with a deadline.

    Whatever a call does, it is over when its time is up: it is asked to end, and then killed with
    everything that it has started.
    """

    fenced: Final = True

    def __init__(
        self,
        settings: ContainerSettings,
        ask_ams_version: AskAmsVersion | None = None,
        own: Container | None = None,
    ) -> None:
        """Starts nothing yet; `own` is the container where its class is one of ours.

        What `own` says is said by this process, where nothing of ours hangs.

        Raises:
            ContainerError: A property that limits its calls cannot be used.
        """
        self.name: Final = settings.name
        self.own: Final = own
        self._host: Final = _ContainerHost(settings, ask_ams_version)
        self._asking: Final = threading.Lock()
        self._said: bool | OverdueError = False
        self._ask_again_at = 0.0
        self._tells = True  # how workers ended
        try:
            self.limits: Final[CallLimits] = settings.limits
        except ValueError as flaw:
            raise ContainerError(f"container {self.name!r}: accepted is {flaw}") from None

    @property
    def supports_auto_restart(self) -> bool:
        """What the container says; a ContainerError says why it says nothing."""
        if self.own is not None:
            return bool(self.own.supports_auto_restart)
        with self._asking:
            if time.monotonic() >= self._ask_again_at:
                self._ask()
            if isinstance(self._said, OverdueError):
                raise self._said
            return self._said

    def _ask(self) -> None:
        try:
            self._said = bool(self._host.call("supports", self.limits.status_timeout))
            self._ask_again_at = time.monotonic() + _ANSWER_HOLDS
        except OverdueError as error:
            self._said = error
            self._ask_again_at = time.monotonic() + _SILENCE_HOLDS

    def request_resource(self, resource: Resource, fence: Fence | None = None) -> Mapping[str, str]:
        """Starts the resource, unless a later attempt than that of `fence` has come before.

        Raises:
            OverdueError: It took longer than its `start-timeout`.
            ContainerError: It was not started; a StartFailedError where the container said so.
        """
        startup: Mapping[str, str]
        startup = self._host.call("start", self.limits.start_timeout, resource, fence)
        return startup

    def release_resource(self, resource: Resource, fence: Fence | None = None) -> None:
        """Stops the resource, unless a later attempt than that of `fence` has come before.

        Raises:
            OverdueError: It took longer than its `stop-timeout`.
            ContainerError: It may still be running.
        """
        self._host.call("stop", self.limits.stop_timeout, resource, fence)

    def status(self, resource: Resource) -> Status:
        """What the container knows of a worker; a ContainerError where it cannot be asked."""
        said: Status = self._host.call("status", self.limits.status_timeout, resource)
        return said

    def preview(self, resource: Resource) -> Preview:
        """How it would be started, for people to read; a ContainerError where it cannot be."""
        text, differences = self._host.call("preview", self.limits.status_timeout, resource)
        return Preview(text, tuple(differences))

    def post_mortem(self, resource: Resource) -> PostMortem | None:
        """How its last worker ended; None: its class does not tell, and is not asked again.

        Raises:
            ContainerError: It could not be asked.
        """
        if not self._tells:
            return None
        found = self._host.call("post_mortem", self.limits.status_timeout, resource)
        self._tells = bool(found)
        return PostMortem(*found) if found else None

    def warm_up(self) -> None:
        """Starts its process, which takes a moment, unless it is there."""
        self._host.warm_up()

    def tend(self) -> None:
        """Lets it do what it does from time to time, if it is one of ours and has something to."""
        getattr(self.own, "tend", lambda: None)()

    def close(self) -> None:
        """Ends its process, and every call that is under way."""
        self._host.close()


class IsolatedContainers(Containers):
    """The containers of a configuration by name, each called in a process of its own."""

    def _build(self, settings: ContainerSettings) -> IsolatedContainer:
        ask, is_ours = self._ask_ams_version, settings.implementation.startswith(_OURS)
        own = build_container(settings, ask) if is_ours else None
        return IsolatedContainer(settings, ask, own)

    def tend(self) -> None:
        """Lets those of ours that have something to do from time to time do it here."""
        for name in self._settings:
            with suppress(ContainerError, OSError):  # it is told where the container is needed
                self.get(name).tend()  # type: ignore[attr-defined]

    def close(self) -> None:
        """Ends their processes, and every call that is under way."""
        for container in self._built.values():
            if isinstance(container, IsolatedContainer):
                container.close()


class _ContainerHost:
    """The process of a container, started when it is first needed. Threads may share it."""

    def __init__(self, settings: ContainerSettings, ask_ams_version: AskAmsVersion | None) -> None:
        self._settings, self._ask_ams_version = settings, ask_ams_version
        self._lock: Final = threading.Lock()
        self._running: tuple[Worker, socket.socket] | None = None
        self._has_answered = False

    def call(
        self,
        call: str,
        timeout: timedelta,
        resource: Resource | None = None,
        fence: Fence | None = None,
    ) -> Any:  # noqa: ANN401 - a value of JSON
        """What a call returns; a ContainerError says what went wrong, without secrets."""
        request = {
            "call": call,
            "resource": resource and _plain(resource),
            "fence": fence,
            "version": self._version(),
        }
        ends_at = time.monotonic() + timeout.total_seconds()
        answer = self._exchange(json.dumps(request).encode() + b"\n", ends_at)
        if "value" in answer:
            return answer["value"]
        if time.monotonic() >= ends_at:
            raise OverdueError(
                f"container {self._settings.name!r}: {_WHAT[call]} was not over within "
                f"{timeout.total_seconds():g} s and was ended"
            )
        raise _KINDS.get(answer["error"], ContainerError)(answer["message"])

    def _version(self) -> int | str | None:
        try:
            return self._ask_ams_version() if self._ask_ams_version else None
        except ContainerError as error:
            return str(error)

    def _exchange(self, request: bytes, ends_at: float) -> Mapping[str, Any]:
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                worker = self._hand_over(theirs, ends_at)
            patience = PATIENCE + _SLACK[self._has_answered]
            ours.settimeout(max(ends_at + patience - time.monotonic(), PATIENCE))
            text = bytearray()
            try:
                ours.sendall(request)
                while chunk := ours.recv(_CHUNK):
                    text += chunk
            except TimeoutError:
                self._discard(worker)
            except OSError:
                pass  # it has ended before it was told what to do
        try:
            answer: Mapping[str, Any] = json.loads(text)
        except ValueError:
            message = f"container {self._settings.name!r}: its process ended without an answer"
            return {"error": "ContainerError", "message": message}
        self._has_answered = True
        return answer

    def _hand_over(self, theirs: socket.socket, ends_at: float) -> Worker:
        """Gives the host the other end of a call."""
        with self._lock:
            for _ in range(2):  # the process may have died since the last call
                worker, control = self._running = self._running or self._start()
                try:
                    socket.send_fds(control, [MOMENT.pack(ends_at)], [theirs.fileno()])
                except OSError:
                    self._end()
                else:
                    return worker
        raise ContainerError(f"the process of container {self._settings.name!r} cannot be reached")

    def _start(self) -> tuple[Worker, socket.socket]:
        asks_version = self._ask_ams_version is not None
        setup = json.dumps({**_plain(self._settings), "asks_version": asks_version})
        ours, theirs = socket.socketpair()
        ours.settimeout(PATIENCE)  # it takes up more calls than are ever under way
        self._has_answered = False
        with theirs:
            argv = [sys.executable, "-c", _BOOT, json.dumps(sys.path), str(theirs.fileno())]
            worker = Worker(
                argv,
                bufsize=0,  # what it did not read is not written once more at its end
                stdin=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        if worker.stdin is not None:
            with suppress(OSError), worker.stdin as pipe:  # if it has ended, its first call says so
                pipe.write(setup.encode() + b"\n")
        weakref.finalize(self, ours.close)  # whoever forgets to close this leaves no process
        return worker, ours

    def _discard(self, worker: Worker) -> None:
        """Ends this process, if it is the present one, since it ends no call."""
        with self._lock:
            if self._running and self._running[0] is worker:
                self._end(patience=0)

    def _end(self, patience: float = PATIENCE) -> None:
        if self._running is None:
            return
        (worker, control), self._running = self._running, None
        control.close()  # the host ends its calls when it sees this
        try:
            worker.wait(patience)
        except subprocess.TimeoutExpired:
            kill_tree(worker.pid)
            worker.wait()

    def warm_up(self) -> None:
        """Starts the process, unless it was started before."""
        with self._lock:
            self._running = self._running or self._start()

    def close(self) -> None:
        """Ends the process and its calls; the next call would start it again."""
        with self._lock:
            self._end()


def _plain(record: Resource | ContainerSettings) -> dict[str, Any]:
    """A record as JSON can have it."""
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    return {**values, "properties": dict(record.properties)}
