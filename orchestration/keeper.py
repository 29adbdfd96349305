"""What the tick and the steps of a run work with: settings, stores, containers and a clock."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

from orchestration.config import RegistryMode, Settings
from orchestration.containers.base import Container
from orchestration.containers.resolve import Containers
from orchestration.errors import ConfigError
from orchestration.keeping.policy import RestartPolicy
from orchestration.stores.database import Database
from orchestration.stores.ledger import Ledger
from orchestration.stores.registry import Registry

Clock = Callable[[], datetime]
"""Says what time it is, as aware UTC. Read once per tick and once per step of an attempt."""


class ContainerLookup(Protocol):
    """Finds containers by the names that resource rows use."""

    def get(self, name: str) -> Container:
        """The container, or a ContainerError that says why there is none."""

    def obstacle(self, name: str | None) -> str | None:
        """Why orphans of this container cannot be restarted; None: they can."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Keeper:
    """Everything that keeping a fleet alive needs."""

    registry: Registry
    ledger: Ledger
    containers: ContainerLookup
    policy: RestartPolicy
    check_interval: timedelta  # between two ticks
    claim_timeout: timedelta  # how long a hand-over or a claim lasts without a sign of life
    max_restarts_per_run: int
    clock: Clock

    @classmethod
    def from_settings(cls, settings: Settings) -> "Keeper":
        """Wires the real parts; nothing is connected to before it is used.

        Raises:
            ConfigError: The registry belongs to an AMS.
        """
        if settings.registry is not RegistryMode.STANDALONE:
            raise ConfigError(
                f"{settings.source}: keeper.registry is {settings.registry}, which this version "
                "cannot do yet; set it to standalone for a registry of your own, and never "
                "for a database that an AMS uses"
            )
        database = Database(settings.database_url, "registry")
        return cls(
            registry=Registry(database, settings.heartbeat_timeout),
            ledger=Ledger(Database(settings.database_url, "ledger")),
            containers=Containers(settings.containers),
            policy=settings.restart,
            check_interval=settings.check_interval,
            claim_timeout=settings.claim_timeout,
            max_restarts_per_run=settings.max_restarts_per_run,
            clock=utc_clock,
        )


def utc_clock() -> datetime:
    """The clock of this host."""
    return datetime.now(UTC)
