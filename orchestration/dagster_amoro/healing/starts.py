"""How is a worker started whose row is new? Nobody else starts it while its row is young."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from dagster_amoro.containers.base import ContainerLookup
from dagster_amoro.containers.calls import start, stop
from dagster_amoro.core.errors import KeeperError, PropertiesError, StartFailedError
from dagster_amoro.core.model import Resource
from dagster_amoro.core.properties import dump_properties
from dagster_amoro.stores.registry import Registry

_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})


def start_new(
    registry: Registry,
    containers: ContainerLookup,
    resource: Resource,
    also: Mapping[str, str] = _NOTHING,
) -> None:
    """Starts a resource that was just recorded, and saves its start-up properties, and these also.

    Raises:
        ContainerError: The container is unknown, or the start failed; the row stays.
        KeeperError: The row was removed or changed meanwhile; what was started is stopped again.
        StoreUnavailableError: The registry did not answer; the row is an orphan as any other.
    """
    container = containers.get(resource.container_name)
    startup = start(container, resource)
    started, properties = resource.with_properties(startup), dump_properties(resource.properties)
    try:
        is_saved = registry.save_startup(resource.resource_id, properties, {**startup, **also})
    except PropertiesError as error:
        stop(container, started, "what was started")
        raise StartFailedError(f"released again, since its {error}") from None
    if not is_saved:
        stop(container, started, "what was started")
        raise KeeperError(
            f"{resource.resource_id} was removed or changed while it was started; "
            "what was started was released again"
        )
