"""Containers of somebody else, which hang in every way that a container can."""

import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from dagster_amoro import Resource

_FOR_EVER = 600.0


def in_python() -> None:
    """In code that swallows whatever interrupts it."""
    while True:
        with suppress(BaseException):
            time.sleep(_FOR_EVER)


def in_a_lock() -> None:
    """In a lock that nobody opens, deaf to SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def in_a_child() -> None:
    """In a child process that ignores SIGTERM, in a session of its own."""
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    argv = [sys.executable, "-c", deaf, os.environ["HANGING_MARK"]]
    subprocess.run(argv, check=False, start_new_session=True)


def on_a_drip() -> None:
    """On an HTTP answer that comes a byte at a time."""
    _ask("/drip")


def on_an_endless_answer() -> None:
    """On an HTTP answer without an end."""
    _ask("/endless")


def _ask(path: str) -> None:
    with urllib.request.urlopen(os.environ["HANGING_SERVER"] + path) as answer:  # noqa: S310
        while answer.read(1):
            pass


class HangingContainer:
    """Does what its properties say: `hangs-at` start, stop, status or constructor, `hangs` how.

    A resource whose id begins with `sick` hangs; all others are started by writing a file. When it
    first hangs, it writes one whose name ends with `.hangs`.
    """

    supports_auto_restart = True

    def __init__(self, name: str, properties: Mapping[str, str]) -> None:
        self.name = name
        self._at, self._how = properties["hangs-at"], properties["hangs"]
        self._started = Path(properties["folder"])
        if self._at == "constructor":
            self._hang("constructor")

    def request_resource(self, resource: Resource) -> Mapping[str, str]:
        """Starts it, or hangs."""
        self._hang_at("start", resource)
        (self._started / resource.resource_id).touch()
        return {"started-by": str(os.getpid())}

    def release_resource(self, resource: Resource) -> None:
        """Stops it, or hangs."""
        self._hang_at("stop", resource)

    def status(self, resource: Resource) -> str:
        """Running, or it hangs."""
        self._hang_at("status", resource)
        return "running"

    def post_mortem(self, resource: Resource) -> tuple[str, str, str]:
        """What nobody wants to show, or it hangs."""
        self._hang_at("post_mortem", resource)
        secret = resource.properties.get("password", "")
        return "odd\x1b[31m", f"{secret} was it, " * 100, f"password={secret}\n" * 100_000

    def _hang_at(self, place: str, resource: Resource) -> None:
        if self._at == place and resource.resource_id.startswith("sick"):
            self._hang(resource.resource_id)

    def _hang(self, name: str) -> None:
        with suppress(FileExistsError):
            (self._started / f"{name}.hangs").touch(exist_ok=False)
        how: Callable[[], None] = globals()[self._how]
        how()


class SilentContainer:
    """The least that a container is."""

    supports_auto_restart = True

    def __init__(self, _name: str, _properties: Mapping[str, str]) -> None:
        pass

    def request_resource(self, _resource: Resource) -> Mapping[str, str]:
        """Starts nothing."""
        return {}

    def release_resource(self, _resource: Resource) -> None:
        """Stops nothing."""
