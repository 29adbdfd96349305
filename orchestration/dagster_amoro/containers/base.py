"""What a container is: the thing that starts and stops the workers of a group."""

from collections.abc import Mapping
from typing import Final, Protocol, runtime_checkable

from dagster import DagsterExecutionInterruptedError

from dagster_amoro.core.model import Resource

INTERRUPTIONS: Final = (KeyboardInterrupt, GeneratorExit, DagsterExecutionInterruptedError)
"""What asks this process to stop. Anything else that a container raises, exits and panics of
foreign code included, is a failure of that container alone."""


@runtime_checkable
class Container(Protocol):
    """Starts and stops resources; built as `Class(name, properties)` from `containers:`.

    It may in addition have `status(resource)`, and containers that run a command line have
    `command(resource) -> list[str]`.
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
