"""What the tick and the steps of a run work with: settings, stores, containers and a clock."""

from dataclasses import dataclass, field, replace
from datetime import timedelta

from dagster_amoro.ams.client import Ams
from dagster_amoro.ams.leader import FindLeader, Server, always, from_lease, from_zookeeper
from dagster_amoro.config import AmsSettings, HighAvailability, Mode, Settings
from dagster_amoro.containers.base import ContainerLookup
from dagster_amoro.containers.dry_run import DryRunContainers
from dagster_amoro.containers.resolve import Containers
from dagster_amoro.core.ams_restart import settling_time
from dagster_amoro.core.clock import Clock, utc_clock
from dagster_amoro.core.limits import Limits
from dagster_amoro.core.policy import RestartPolicy
from dagster_amoro.healing.operations import Operations
from dagster_amoro.stores.database import Database
from dagster_amoro.stores.dry_run import DryRunRegistry
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro.stores.registry import Registry


@dataclass(frozen=True, kw_only=True, slots=True)
class Keeper:
    """Everything that keeping a fleet alive needs."""

    registry: Registry
    ledger: Ledger
    containers: ContainerLookup
    policy: RestartPolicy
    check_interval: timedelta  # between two ticks
    claim_timeout: timedelta  # how long a dispatch or a claim lasts without a sign of life
    max_restarts_per_run: int
    clock: Clock
    ams: Ams | None = None  # whose registry it is; None: it is ours (standalone mode)
    # How long optimizers may take to register with an AMS that came back without them.
    settling: timedelta = timedelta(0)
    limits: Limits = field(default_factory=Limits)
    # Groups whose orphans are restarted although they are under dynamic allocation.
    dynamic_groups: frozenset[str] = frozenset()
    max_keeping_attempts: int = 3  # rounds in a row in which a group is refilled
    # What this deployment is called where several share a registry.
    deployment: str = ""
    # How long it may act without renewing its lease. None: it is the only one.
    lease_time: timedelta | None = None

    @classmethod
    def from_settings(cls, settings: Settings) -> "Keeper":
        """Wires the real parts; nothing is connected to before it is used.

        Raises:
            ConfigError: A driver is not installed.
        """
        database = Database(settings.database_url, "registry")
        ams = _ams(settings.ams, database) if settings.ams else None
        keeper = cls(
            registry=Registry(database, None if ams else settings.heartbeat_timeout),
            ledger=Ledger(Database(settings.ledger_url, "ledger")),
            containers=Containers(settings.containers, ams.ams_version if ams else None),
            policy=settings.restart,
            check_interval=settings.check_interval,
            claim_timeout=settings.claim_timeout,
            max_restarts_per_run=settings.max_restarts_per_run,
            clock=utc_clock,
            ams=ams,
            settling=settling_time(settings.heartbeat_timeout),
            limits=settings.limits,
            dynamic_groups=settings.dynamic_groups,
            max_keeping_attempts=settings.max_keeping_attempts,
            deployment=settings.deployment,
            lease_time=settings.lease_time,
        )
        return keeper.in_dry_run() if settings.mode is Mode.DRY_RUN else keeper

    def in_dry_run(self) -> "Keeper":
        """The same keeper for a dry run: it records what it would do, and does nothing."""
        ledger = Ledger(self.ledger.database, dry_run=True)
        registry = DryRunRegistry(
            self.registry.database, self.registry.heartbeat_timeout, ledger.removed_in_dry_run
        )
        containers = DryRunContainers(self.containers)
        return replace(self, registry=registry, ledger=ledger, containers=containers)

    @property
    def operations(self) -> Operations:
        """The verbs of operators."""
        return Operations(
            registry=self.registry,
            ledger=self.ledger,
            policy=self.policy,
            check_interval=self.check_interval,
            clock=self.clock,
            owns_registry=self.ams is None,
        )

    def close(self) -> None:
        """Closes the pooled connections of both stores."""
        self.registry.database.close()
        self.ledger.database.close()


def _ams(settings: AmsSettings, database: Database) -> Ams:
    return Ams(_leader(settings, database), ams_version=settings.ams_version)


def _leader(settings: AmsSettings, database: Database) -> FindLeader:
    match settings.high_availability:
        case HighAvailability.ZOOKEEPER:
            return from_zookeeper(
                settings.zookeeper_address, settings.cluster_name, settings.http_port
            )
        case HighAvailability.DATABASE:
            return from_lease(database, settings.cluster_name, settings.http_port)
        case HighAvailability.NONE:
            return always(Server(settings.host, settings.thrift_port, settings.http_port))
