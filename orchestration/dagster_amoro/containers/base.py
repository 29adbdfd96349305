"""What a container is: the thing that starts and stops the workers of a group."""

import re
from collections.abc import Mapping
from typing import Final, Literal, Protocol, runtime_checkable

from dagster_amoro.core.model import Resource

Status = Literal["running", "ended", "unknown"]
"""What a container knows of a worker: ended for good, or running, or neither for certain."""

_interruptions: Final[list[type[BaseException]]] = [KeyboardInterrupt, GeneratorExit]


def never_swallow(*kinds: type[BaseException]) -> None:
    """Adds kinds of exceptions to `interruptions`, for the whole process.

    Whoever runs containers within a framework that interrupts by an exception of its own says so
    here, once, before the first container is called.
    """
    _interruptions.extend(kind for kind in kinds if kind not in _interruptions)


def interruptions() -> tuple[type[BaseException], ...]:
    """The exceptions that ask this process to stop, and so pass through a container's call.

    Anything else that a container raises is a failure of that container alone, exits and panics
    of foreign code included.
    """
    return tuple(_interruptions)


@runtime_checkable
class Container(Protocol):
    """Starts and stops resources; built as `Class(name, properties)` from `containers:`.

    It may in addition have `status(resource) -> Status` and `post_mortem(resource) -> PostMortem`,
    which says how the last worker ended. Containers that run a command line have
    `command(resource) -> list[str]`, and those that send a document `manifest(resource) -> dict`.
    One whose attribute `fenced` is true gets the fence of an attempt as a second argument of both
    calls, which grows with each attempt, and can refuse what comes too late wherever it comes from.
    Modules whose names are in its attribute `libraries` are loaded once, before its first call.
    """

    @property
    def supports_auto_restart(self) -> bool:
        """False: its orphans are reported and never touched."""

    def request_resource(self, resource: Resource) -> Mapping[str, str]:
        """Starts the resource and returns the start-up properties to save with its row.

        Raises:
            StartFailedError: It did not start; the message says why and what was tried.
        """

    def release_resource(self, resource: Resource) -> None:
        """Stops what the resource's properties say was started; nothing there is no error.

        Raises:
            ReleaseFailedError: It may still be running.
        """


class ContainerLookup(Protocol):
    """Finds containers by the names that resource rows use."""

    def get(self, name: str) -> Container:
        """The container, or a ContainerError that says why there is none."""

    def obstacle(self, name: str | None) -> str | None:
        """Why orphans of this container cannot be restarted; None: they can."""

    def tend(self) -> None:
        """Lets the containers do what they do from time to time; never slow, and never an error."""

    def close(self) -> None:
        """Ends every call that is under way; the next call is possible all the same."""


def unusable(text: str) -> str | None:
    """Why no argument or variable of a program can hold the text; None if one can."""
    if "\0" in text:
        return "holds a NUL character"
    if re.search("[\ud800-\udfff]", text):
        return "holds half a character (a lone surrogate)"
    return None


def without_prefix(prefix: str, properties: Mapping[str, str]) -> dict[str, str]:
    """Those of the properties that have this prefix, by the rest of their names."""
    return {
        key.removeprefix(prefix): value
        for key, value in properties.items()
        if key.startswith(prefix)
    }
