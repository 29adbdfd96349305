"""How does a dry run start and stop things? It does not; it finds out whether it could."""

from collections.abc import Mapping

from dagster_amoro.containers.base import Container, ContainerLookup
from dagster_amoro.core.model import Resource


class DryRunContainer:
    """Starts and stops nothing."""

    def __init__(self, container: Container) -> None:
        """Replaces this container, and supports restarts if that one does."""
        self.supports_auto_restart = container.supports_auto_restart

    def request_resource(self, resource: Resource) -> Mapping[str, str]:  # noqa: ARG002 - the protocol
        """Starts nothing; there is nothing to save either."""
        return {}

    def release_resource(self, resource: Resource) -> None:
        """Stops nothing."""


class DryRunContainers:
    """Containers by name, which are configured and start nothing."""

    def __init__(self, containers: ContainerLookup) -> None:
        """Replaces these containers."""
        self._containers = containers

    def get(self, name: str) -> Container:
        """A container that starts nothing.

        Raises:
            ContainerError: The real one does not exist or cannot be built.
        """
        return DryRunContainer(self._containers.get(name))

    def obstacle(self, name: str | None) -> str | None:
        """Why orphans of this container could not be restarted; None: they could."""
        return self._containers.obstacle(name)
