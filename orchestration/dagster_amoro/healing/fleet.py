"""How a standalone fleet gets its workers: declared in the registry, then started."""

from collections.abc import Mapping

from dagster_amoro.core.errors import ConfigError, KeeperError
from dagster_amoro.core.model import Resource
from dagster_amoro.core.properties import dump_properties
from dagster_amoro.healing.keeper import Keeper


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


def declare_group(
    keeper: Keeper, group_name: str, container_name: str, properties: Mapping[str, str]
) -> None:
    """Says what a group is to be from now on.

    Its property `min-parallelism` is in threads: below it the keeper starts new resources
    of the group in this container, with the group's properties.

    Raises:
        ConfigError: The registry is an AMS's, where groups are made.
        StoreUnavailableError: The registry did not answer.
    """
    if keeper.ams is not None:
        raise ConfigError("groups of an attached registry are made in AMS, not here")
    keeper.registry.create()
    keeper.registry.save_group(group_name, container_name, properties)


def declare(keeper: Keeper, resource: Resource) -> None:
    """Adds a worker without starting it: the keeper does, after the grace period."""
    if keeper.ams is not None:
        raise ConfigError("resources of an attached registry are added through AMS, not here")
    keeper.registry.create()
    keeper.registry.add_group(resource.group_name, resource.container_name)
    keeper.registry.add_resource(resource)
