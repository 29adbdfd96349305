"""How does a dry run start and stop things? It does not; it finds out whether it could."""

from collections.abc import Mapping
from dataclasses import dataclass

from dagster_amoro.containers.base import Container, ContainerLookup
from dagster_amoro.core.model import Resource


@dataclass
class DryRunContainer:
    """Starts and stops nothing."""

    supports_auto_restart: bool  # if the container does that it stands for

    def request_resource(self, resource: Resource) -> Mapping[str, str]:  # noqa: ARG002 - the protocol
        """Starts nothing; there is nothing to save either."""
        return {}

    def release_resource(self, resource: Resource) -> None:
        """Stops nothing."""


@dataclass(frozen=True)
class DryRunContainers:
    """Containers by name, which are configured and start nothing."""

    containers: ContainerLookup  # the real ones

    def get(self, name: str) -> Container:
        """One that starts nothing; a ContainerError where the real one is none."""
        return DryRunContainer(self.containers.get(name).supports_auto_restart)

    def obstacle(self, name: str | None) -> str | None:
        """Why orphans of this container could not be restarted; None: they could."""
        return self.containers.obstacle(name)
