"""Containers of somebody else, which are broken in every way that hangs nothing."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dagster_amoro import Resource

_LOUD = 100 * 1024 * 1024  # bytes


def exits(_folder: Path, _resource: Resource | None) -> None:
    """As if it were a program."""
    sys.exit(0)


def interrupts(_folder: Path, _resource: Resource | None) -> None:
    """As if somebody had pressed Ctrl-C."""
    raise KeyboardInterrupt


def vanishes(_folder: Path, _resource: Resource | None) -> None:
    """Without a word."""
    os._exit(0)


def kills_its_group(_folder: Path, _resource: Resource | None) -> None:
    """As scripts do to end what they have started."""
    os.killpg(0, signal.SIGKILL)


def closes_everything(_folder: Path, _resource: Resource | None) -> None:
    """As daemons do at their start."""
    os.closerange(0, 1024)


def forks_and_vanishes(folder: Path, _resource: Resource | None) -> None:
    """As daemons do, too; the child has all that was open, and ends with the test."""
    if not os.fork():
        os.setsid()
        while not (folder / "over").exists():
            time.sleep(0.05)
    os._exit(0)


def raises_in_disarray(_folder: Path, resource: Resource | None) -> None:
    """After it has changed whatever a process has, with a secret in its text."""
    for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGALRM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    os.chdir("/")
    os.environ.clear()
    sys.path.clear()
    raise RuntimeError(f"cannot log in as hunter2222, {resource}")


def returns_nothing(_folder: Path, _resource: Resource | None) -> None:
    """Though it was asked for something."""


def returns_a_number(_folder: Path, _resource: Resource | None) -> int:
    """As if a pid were enough."""
    return 7


def returns_without_an_end(_folder: Path, _resource: Resource | None) -> Iterator[tuple[str, str]]:
    """More than any memory holds."""
    while True:
        yield "a", "b"


def returns_too_much(_folder: Path, _resource: Resource | None) -> dict[str, str]:
    """More than a row is to hold."""
    return {"log": "x" * 100_000}


def returns_far_too_much(_folder: Path, _resource: Resource | None) -> dict[str, str]:
    """More than a process is to hold that others share."""
    return {"log": "x" * 10_000_000}


def returns_half_a_character(_folder: Path, _resource: Resource | None) -> dict[str, str]:
    """What no database stores."""
    return {"name": "\ud800"}


def returns_other_things(_folder: Path, _resource: Resource | None) -> dict[Any, Any]:
    """Of all kinds, and nested."""
    return {1: 2, "list": [None, {"a": 1.5}]}


def shouts(_folder: Path, _resource: Resource | None) -> dict[str, str]:
    """Into the run's own output."""
    for _ in range(_LOUD // 65_536):
        os.write(1, b"x" * 65_536)
    return {}


def changes_its_arguments(_folder: Path, resource: Resource | None) -> dict[str, str]:
    """Into another resource."""
    if resource is not None:
        resource.properties.clear()  # type: ignore[attr-defined] # what it does wrong
        object.__setattr__(resource, "resource_id", "well")
    return {}


ANYWHERE = (exits, interrupts, vanishes, kills_its_group, closes_everything, raises_in_disarray)
RETURNS = (
    *(returns_nothing, returns_a_number, returns_without_an_end, returns_too_much),
    returns_far_too_much,
    *(returns_half_a_character, returns_other_things, shouts, changes_its_arguments),
)


class BreakingContainer:
    """Breaks as its properties say: `breaks-at` constructor, start, stop and so on, `breaks` how.

    Whatever it starts is a file.
    """

    def __init__(self, _name: str, properties: Mapping[str, str]) -> None:
        self._at, self._how = properties["breaks-at"], properties["breaks"]
        self._folder = Path(properties["folder"])
        self._break("constructor")

    @property
    def supports_auto_restart(self) -> Any:  # noqa: ANN401 - it is broken
        """Whatever it says."""
        return self._break("supports") or True

    def request_resource(self, resource: Resource) -> Any:  # noqa: ANN401 - it is broken
        """Starts it, and breaks."""
        (self._folder / resource.resource_id).touch()
        return self._break("start", resource) if self._at == "start" else {}

    def release_resource(self, resource: Resource) -> None:
        """Stops nothing, and breaks."""
        self._break("stop", resource)

    def post_mortem(self, resource: Resource) -> Any:  # noqa: ANN401 - it is broken
        """Knows nothing, or breaks."""
        return self._break("post_mortem", resource)

    def _break(self, place: str, resource: Resource | None = None) -> Any:  # noqa: ANN401 - as above
        how: Callable[[Path, Resource | None], Any] = globals()[self._how]
        return how(self._folder, resource) if self._at == place else None
