"""How does a standalone fleet get its workers? Declared in the registry, then started."""

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Final

from dagster_amoro.config import Settings
from dagster_amoro.containers.base import ContainerLookup
from dagster_amoro.core.errors import ConfigError
from dagster_amoro.core.model import Resource
from dagster_amoro.healing.assembly import Services
from dagster_amoro.healing.starts import start_new
from dagster_amoro.healing.verbs import os_user
from dagster_amoro.stores.registry import Registry

_AMS_ADDS: Final = "resources of an attached registry are added through AMS, not here"


def scale_out(settings: Settings, resource: Resource) -> None:
    """Adds a worker: its group and its row first, then the process.

    The row comes first so that nothing runs that the registry does not know. If the start fails,
    or this process dies in between, the row is an orphan like any other and is restarted.

    Raises:
        ConfigError: The registry is an AMS's, which adds its resources itself.
        StoreUnavailableError: The registry did not answer, or has this resource already.
        ContainerError: The container is unknown, or the start failed; the row stays.
        KeeperError: The row was removed or changed meanwhile; what was started is stopped again.
    """
    with _standalone(settings, _AMS_ADDS) as services:
        add_and_start(services.registry, services.containers, resource)


def declare(settings: Settings, resource: Resource) -> None:
    """Adds a worker without starting it: a run does, after the grace period.

    That begins when the worker no longer counts as starting, a grace period after this.

    Raises:
        ConfigError: The registry is an AMS's, which adds its resources itself.
        StoreUnavailableError: The registry did not answer, or has this resource already.
    """
    with _standalone(settings, _AMS_ADDS) as services:
        add(services.registry, resource)


def declare_group(
    settings: Settings, name: str, container: str, properties: Mapping[str, str]
) -> None:
    """Says what a group is to be from now on.

    Its property `min-parallelism` is in threads: below it new resources of the group are started
    in this container, with the group's properties.

    Raises:
        ConfigError: The registry is an AMS's, where groups are made.
        StoreUnavailableError: The registry did not answer.
    """
    refusal = "groups of an attached registry are made in AMS, not here"
    with _standalone(settings, refusal) as services:
        services.registry.create()
        services.registry.save_group(name, container, properties)


def scale_in(
    settings: Settings, resource_id: str, *, author: str = "", reason: str = "no reason given"
) -> None:
    """Stops a worker for good: its process, then its row; its incident closes, if it has one.

    Called again after it was interrupted at any place, it goes on there. What is declared in
    config.yaml comes back with the next `dagster-amoro apply`.

    Args:
        settings: Those of the fleet.
        resource_id: The worker.
        author: Who wants it; the ledger keeps it. Empty: the user of this process.
        reason: Why, in a few words; the ledger keeps it.

    Raises:
        ConfigError: The registry is an AMS's, which releases its resources itself.
        UnknownTargetError: There is no such resource, or it is paused.
        ContainerError: Its container is unknown, or could not stop it; its row stays.
        StoreUnavailableError: A store did not answer.
    """
    with closing(Services.connect(settings)) as services:
        services.releaser.release(resource_id, author=author or os_user(), reason=reason)


def add(registry: Registry, resource: Resource) -> None:
    """Adds a worker and its group to a registry of ours, as `declare` does."""
    registry.create()
    registry.add_group(resource.group_name, resource.container_name)
    registry.add_resource(resource)


def add_and_start(registry: Registry, containers: ContainerLookup, resource: Resource) -> None:
    """Adds a worker to a registry of ours and starts it, as `scale_out` does."""
    add(registry, resource)
    start_new(registry, containers, resource)


@contextmanager
def _standalone(settings: Settings, refusal: str) -> Iterator[Services]:
    with closing(Services.connect(settings)) as services:
        if services.ams is not None:
            raise ConfigError(refusal)
        yield services
