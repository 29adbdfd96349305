"""How a standalone fleet gets its workers: declared in the registry, then started."""

from orchestration.errors import ConfigError, KeeperError
from orchestration.keeper import Keeper
from orchestration.keeping.model import Resource
from orchestration.keeping.properties import dump_properties


def scale_out(keeper: Keeper, resource: Resource) -> None:
    """Adds a worker: its group and its row first, then the process.

    The row comes first so that nothing runs that the registry does not know. If the start fails,
    or this process dies in between, the row is an orphan like any other and is restarted.

    Raises:
        ConfigError: The registry is an AMS's, which adds its resources itself.
        StoreUnavailableError: The registry did not answer, or has this resource already.
        ContainerError: The container is unknown, or the start failed; the row stays.
    """
    declare(keeper, resource)
    container = keeper.containers.get(resource.container_name)
    startup = container.request_resource(resource)
    properties = dump_properties(resource.properties)
    if not keeper.registry.save_startup(resource.resource_id, properties, startup):
        container.release_resource(resource.with_properties(startup))
        raise KeeperError(
            f"{resource.resource_id} was removed or changed while it was started; "
            "what was started was released again"
        )


def declare(keeper: Keeper, resource: Resource) -> None:
    """Adds a worker without starting it: the keeper does, after the grace period."""
    if keeper.ams is not None:
        raise ConfigError("resources of an attached registry are added through AMS, not here")
    keeper.registry.create()
    keeper.registry.add_group(resource.group_name, resource.container_name)
    keeper.registry.add_resource(resource)
