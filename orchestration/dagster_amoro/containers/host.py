"""The process in which a container lives, and in which each of its calls is a process of its own.

A container may be anybody's code: it may hang in a lock, in a system call, on a server that sends
a byte a second. So whoever calls it does not run it. The host builds the container once and makes
a fork for each call. It ends a call that takes too long, with all that the call has started, and
ends all of them when its caller is gone.

The caller sends for each call a deadline and a socket. On the socket comes the request, and the
fork answers there: each is a line of JSON.
"""

import json
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from types import FrameType
from typing import Any, Final, NoReturn

import psutil

from dagster_amoro.containers import calls
from dagster_amoro.containers.base import Container
from dagster_amoro.containers.fences import Fence, fenced
from dagster_amoro.containers.preview import preview
from dagster_amoro.containers.resolve import build_container, says_it_restarts
from dagster_amoro.core.ams_version import AmsVersion
from dagster_amoro.core.container_settings import ContainerSettings
from dagster_amoro.core.errors import ContainerError, describe
from dagster_amoro.core.model import Resource
from dagster_amoro.core.secrets import Mask

MOMENT: Final = struct.Struct("d")  # how a deadline is sent, by the clock of time.monotonic()
PATIENCE: Final = 2.0  # seconds in which an overdue call may clean up after itself
_STOPS_WITHIN: Final = 0.2  # seconds; what hangs in the kernel starts nothing, and never stops
_STILL: Final = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP, psutil.STATUS_ZOMBIE)
LONGEST: Final = 64 * 1024 * 1024  # bytes of a request
_LONGEST_ANSWER: Final = 1024 * 1024  # bytes; it goes into a process that others share
_Act = Callable[[Container, Resource, tuple[Fence, ...]], Any]
_STARTS_AND_STOPS: Final[Mapping[str, _Act]] = {
    "start": lambda container, resource, fence: calls.texts(
        container.request_resource(resource, *fence)
    ),
    "stop": lambda container, resource, fence: container.release_resource(resource, *fence),
}
_LOOKS: Final[Mapping[str, Callable[[Container, Resource], Any]]] = {
    "status": lambda container, resource: str(container.status(resource)),  # type: ignore[attr-defined]
    "preview": preview,
}


class _TimeIsUpError(BaseException):
    """The call is over, wherever it is."""


@dataclass
class _Call:
    """A call under way."""

    pid: int
    ends_at: float  # by time.monotonic()
    peer: socket.socket  # whoever waits for its answer
    is_asked: bool = False  # to end

    def enforce(self, now: float) -> None:
        """Ends the call if its time is up: first it is asked to, then it is killed."""
        if now < self.ends_at:
            return
        if self.is_asked:
            self.kill()
        else:
            self.is_asked, self.ends_at = True, now + PATIENCE
            os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """Kills the call and everything that descends from it."""
        kill_tree(self.pid)

    def hang_up(self) -> None:
        """Lets nobody wait for its answer any more, though a child of it may have the socket."""
        with suppress(OSError), self.peer:
            self.peer.shutdown(socket.SHUT_RDWR)


@dataclass
class _Host:
    """Makes the calls of one container until the caller closes its end of `control`."""

    control: socket.socket
    settings: ContainerSettings
    asks_version: bool  # whether each request says which version of AMS there is
    container: Container | None = None  # None: it could not be built; each call tries it again
    version: AmsVersion | ContainerError = AmsVersion.V0_9
    calls: dict[int, _Call] = field(default_factory=dict)  # under way, by pid

    def serve(self) -> None:
        """Makes calls until nobody can ask for more, and leaves none behind."""
        with suppress(BaseException):  # what is wrong is said by the calls
            self.container = self.build()
        woken = _woken_by_children()
        while True:
            ready, _, _ = select.select([self.control, woken], [], [], self._time_left())
            if woken in ready:
                woken.recv(4096)
            if self.control in ready and not self._accept():
                break
            self._reap()
            for call in self.calls.values():
                call.enforce(time.monotonic())
        for call in self.calls.values():
            call.kill()

    def build(self) -> Container:
        """The container, with what its calls are going to import."""
        container = build_container(self.settings, self._ask if self.asks_version else None)
        for library in getattr(container, "libraries", ()):
            import_module(library)
        return container

    def _ask(self) -> AmsVersion:
        if isinstance(self.version, ContainerError):
            raise self.version
        return self.version

    def _time_left(self) -> float | None:
        first = min((call.ends_at for call in self.calls.values()), default=None)
        return None if first is None else max(first - time.monotonic(), 0)

    def _accept(self) -> bool:
        """Begins a call; False: there will be no more."""
        content, descriptors, _, _ = socket.recv_fds(self.control, MOMENT.size, 1)
        if not descriptors:
            return False
        (ends_at,) = MOMENT.unpack(content)
        peer = socket.socket(fileno=descriptors[0])
        if not (pid := os.fork()):
            self._make(peer, ends_at)
        self.calls[pid] = _Call(pid, ends_at, peer)
        return True

    def _reap(self) -> None:
        for pid in list(self.calls):
            if os.waitpid(pid, os.WNOHANG)[0]:
                self.calls.pop(pid).hang_up()

    def _make(self, peer: socket.socket, ends_at: float) -> NoReturn:
        """The call, in the fork, which ends with it."""
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGALRM):  # whatever the constructor made of them
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGTERM, _interrupt)
            left = max(ends_at - time.monotonic(), 0) + 2 * PATIENCE
            signal.setitimer(signal.ITIMER_REAL, left)  # it ends this process if the host is gone
            for each in (self.control, *(call.peer for call in self.calls.values())):
                each.close()
            peer.set_inheritable(False)
            os.setsid()
            with peer.makefile("rb") as stream:
                answer = self._answer(json.loads(stream.readline(LONGEST)))
            peer.sendall(self._encoded(answer))
            peer.shutdown(socket.SHUT_RDWR)  # whatever else has a copy of it
        finally:
            os._exit(0)

    def _encoded(self, answer: Mapping[str, Any]) -> bytes:
        text = json.dumps(answer).encode()
        if len(text) <= _LONGEST_ANSWER:
            return text
        message = f"{self._name}: its answer has {len(text):,} bytes"
        return json.dumps({"error": "ContainerError", "message": message}).encode()

    @property
    def _name(self) -> str:
        return f"container {self.settings.name!r}"

    def _answer(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        resource = Resource(**request["resource"]) if request["resource"] else None
        fence = Fence(*request["fence"]) if request["fence"] else None
        mask = Mask(self.settings.properties, resource.properties if resource else {})
        try:
            self._learn(request["version"])
            container, call = self.container or self.build(), request["call"]
            if resource is None:
                return {"value": says_it_restarts(container, self.settings)}
            if call == "post_mortem":
                return {"value": calls.post_mortem(container, resource, mask.hide)}
            if call in _LOOKS:
                return {"value": _LOOKS[call](container, resource)}
            with fenced(self.settings.name, resource.resource_id, fence):
                shown = calls.shown(container, fence)
                return {"value": _STARTS_AND_STOPS[call](container, resource, shown)}
        except ContainerError as error:
            return {"error": type(error).__name__, "message": describe(error, mask.hide)}
        except BaseException as error:  # noqa: BLE001 - anybody's code; its process ends with it
            message = f"{self._name}: {describe(error, mask.hide)}"
            return {"error": "ContainerError", "message": message}

    def _learn(self, version: int | str | None) -> None:
        """Takes up the version of AMS that the caller knows, or why it knows none."""
        if isinstance(version, int):
            self.version = AmsVersion(version)
        elif version is not None:
            self.version = ContainerError(version)


def kill_tree(pid: int) -> None:
    """Kills a process of ours and everything that descends from it."""
    with suppress(psutil.Error):
        _kill(psutil.Process(pid))


def _kill(process: psutil.Process) -> None:
    """Stops the process first: one that runs may start a child after its children were listed."""
    process.suspend()
    gives_up_at = time.monotonic() + _STOPS_WITHIN
    while process.status() not in _STILL and time.monotonic() < gives_up_at:
        time.sleep(0.001)
    for child in process.children():
        with suppress(psutil.Error):
            _kill(child)
    process.kill()


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise _TimeIsUpError


def _woken_by_children() -> socket.socket:
    """A socket that can be read from when a child has ended."""
    woken, wakes = socket.socketpair()
    for end in (woken, wakes):
        end.settimeout(0)
    signal.set_wakeup_fd(wakes.detach(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # its number in the socket is all that counts
    return woken


def main(control: int) -> None:
    """Serves on the socket of this descriptor; the settings come from the standard input."""
    setup = json.loads(sys.stdin.readline(LONGEST))
    with open(os.devnull) as nothing:  # noqa: PTH123 - a descriptor is wanted
        os.dup2(nothing.fileno(), sys.stdin.fileno())
    asks_version = setup.pop("asks_version")
    with socket.socket(fileno=control) as calls_from:
        calls_from.set_inheritable(False)
        _Host(calls_from, ContainerSettings(**setup), asks_version).serve()
