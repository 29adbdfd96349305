"""Which parts does a deployment consist of, and how do they come from its settings?"""

from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Final, Self

from dagster_amoro.ams.client import Ams
from dagster_amoro.ams.leader import FindLeader, Server, always, from_lease, from_zookeeper
from dagster_amoro.config import AmsSettings, ApplyFleet, HighAvailability, Mode, Settings
from dagster_amoro.containers.base import ContainerLookup
from dagster_amoro.containers.isolated import IsolatedContainers
from dagster_amoro.containers.resolve import DryRunContainers
from dagster_amoro.core.ams_restart import settling_time
from dagster_amoro.core.clock import Clock, utc_clock
from dagster_amoro.core.fleet_plan import DeclaredGroup
from dagster_amoro.core.limits import Limits
from dagster_amoro.core.policy import RestartPolicy, TickSettings
from dagster_amoro.healing.apply import Applier
from dagster_amoro.healing.check_in import CheckIn
from dagster_amoro.healing.metrics import MetricsReader
from dagster_amoro.healing.operations import Operations
from dagster_amoro.healing.post_mortems import PostMortems
from dagster_amoro.healing.preconditions import Preconditions
from dagster_amoro.healing.reading import TickReader
from dagster_amoro.healing.releases import Releaser
from dagster_amoro.healing.restart import Restarter
from dagster_amoro.healing.scaling import Scaler
from dagster_amoro.healing.status import StatusReader
from dagster_amoro.healing.tick import Ticker
from dagster_amoro.stores.database import Database
from dagster_amoro.stores.dry_run import DryRunRegistry
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro.stores.registry import Registry

_LONGEST_LEAD: Final = timedelta(seconds=30)  # a run that waits holds a place that others need


@dataclass(frozen=True, kw_only=True, slots=True)
class Services:
    """The parts, and what acts with them. Passed to nothing that acts: each gets what it uses."""

    registry: Registry
    ledger: Ledger
    containers: ContainerLookup
    policy: RestartPolicy
    settings: TickSettings
    max_concurrent_starts: int = 50  # of one container in one run
    limits: Limits = field(default_factory=Limits)
    clock: Clock = utc_clock
    host_clock: Clock = utc_clock  # see `Preconditions`
    ams: Ams | None = None  # whose registry it is; None: it is ours (standalone mode)
    # How long optimizers may take to register with an AMS that came back without them.
    settling: timedelta = timedelta(0)
    # What this deployment is called where several share a registry.
    deployment: str = ""
    name: str = ""  # of the keeper, where several live in one Dagster
    # How long it may act without renewing its lease. None: it is the only one.
    lease_time: timedelta | None = None
    check_in: CheckIn | None = None  # who hears of each completed survey. None: nobody
    given_up_for: timedelta = timedelta(days=1)  # so long a loss is told, unless seen to
    fleet: tuple[DeclaredGroup, ...] | None = None  # as it is declared. None: nothing is
    applies_fleet: bool = False  # whether a sensor has the declaration carried out

    @classmethod
    def connect(cls, settings: Settings, *, clock: Clock = utc_clock) -> Self:
        """Wires the real parts; nothing is connected to before it is used.

        Raises:
            ConfigError: A driver is not installed.
        """
        database, of_ams = Database(settings.database_url, "registry"), settings.ams
        ams = Ams(_leader(of_ams, database), ams_version=of_ams.ams_version) if of_ams else None
        services = cls(
            registry=Registry(database, None if ams else settings.heartbeat_timeout),
            ledger=Ledger(Database(settings.ledger_url, "ledger")),
            containers=IsolatedContainers(settings.containers, ams.ams_version if ams else None),
            policy=settings.restart,
            settings=TickSettings(
                check_interval=settings.check_interval,
                claim_timeout=settings.claim_timeout,
                max_restarts_per_run=settings.max_restarts_per_run,
                max_keeping_attempts=settings.max_keeping_attempts,
                round_interval=settings.round_interval,
                dynamic_groups=settings.dynamic_groups,
                ams_heartbeat_timeout=settings.heartbeat_timeout if ams else None,
                notes_surveys=settings.notes_surveys,
                lead=min(settings.check_interval, settings.restart.grace_period / 2, _LONGEST_LEAD),
            ),
            max_concurrent_starts=settings.max_concurrent_starts,
            limits=settings.limits,
            clock=clock,
            ams=ams,
            settling=settling_time(settings.heartbeat_timeout),
            deployment=settings.deployment,
            name=settings.name,
            lease_time=settings.lease_time,
            check_in=CheckIn(url=settings.check_in_url) if settings.check_in_url else None,
            given_up_for=settings.audit.given_up_for,
            fleet=settings.fleet,
            applies_fleet=settings.apply_fleet is ApplyFleet.BY_SENSOR,
        )
        return services.in_dry_run() if settings.mode is Mode.DRY_RUN else services

    def in_dry_run(self) -> Self:
        """The parts of a dry run: what would be done is recorded, and nothing is done."""
        ledger = Ledger(self.ledger.database, dry_run=True)
        database, timeout = self.registry.database, self.registry.heartbeat_timeout
        registry = DryRunRegistry(database, timeout, ledger.removed_in_dry_run)
        containers = DryRunContainers(self.containers)
        return replace(self, registry=registry, ledger=ledger, containers=containers)

    def close(self) -> None:
        """Closes the pooled connections of both stores, and ends the containers' processes."""
        self.containers.close()
        self.registry.database.close()
        self.ledger.database.close()

    @property
    def attached(self) -> bool:
        """Whether the registry is an AMS's."""
        return self.ams is not None

    @property
    def preconditions(self) -> Preconditions:
        """What must hold before anything is concluded."""
        return Preconditions(
            ledger=self.ledger,
            registry=self.registry,
            clock=self.clock,
            host_clock=self.host_clock,
            ams=self.ams,
            settling=self.settling,
            deployment=self.deployment,
            lease_time=self.lease_time,
        )

    @property
    def reader(self) -> TickReader:
        """What a tick, and the status, read."""
        return TickReader(
            registry=self.registry,
            ledger=self.ledger,
            containers=self.containers,
            policy=self.policy,
            limits=self.limits,
            settings=self.settings,
            attached=self.attached,
        )

    @property
    def ticker(self) -> Ticker:
        """The work of the sensor."""
        return Ticker(preconditions=self.preconditions, reader=self.reader)

    @property
    def restarter(self) -> Restarter:
        """The work of a run that restarts orphans."""
        return Restarter(
            ledger=self.ledger,
            registry=self.registry,
            containers=self.containers,
            ams=self.ams,
            policy=self.policy,
            settings=self.settings,
            clock=self.clock,
            max_concurrent_starts=self.max_concurrent_starts,
        )

    @property
    def scaler(self) -> Scaler:
        """The work of a run that gives groups new resources."""
        return Scaler(
            ledger=self.ledger,
            registry=self.registry,
            containers=self.containers,
            policy=self.policy,
            settings=self.settings,
            clock=self.clock,
        )

    @property
    def post_mortems(self) -> PostMortems:
        """What asks why workers died, before anything is tried."""
        return PostMortems(ledger=self.ledger, registry=self.registry, containers=self.containers)

    @property
    def operations(self) -> Operations:
        """The verbs of operators."""
        return Operations(
            registry=self.registry,
            ledger=self.ledger,
            policy=self.policy,
            settings=self.settings,
            clock=self.clock,
            attached=self.attached,
            releaser=self.releaser,
        )

    @property
    def releaser(self) -> Releaser:
        """What stops workers for good."""
        return Releaser(
            registry=self.registry,
            ledger=self.ledger,
            containers=self.containers,
            clock=self.clock,
            attached=self.attached,
        )

    @property
    def applier(self) -> Applier:
        """What makes the fleet what was declared."""
        return Applier(fleet=self.fleet, restarter=self.restarter, releaser=self.releaser)

    @property
    def status(self) -> StatusReader:
        """What an operator looks at first."""
        return StatusReader(
            reader=self.reader,
            preconditions=self.preconditions,
            given_up_for=self.given_up_for,
        )

    @property
    def metrics(self) -> MetricsReader:
        """What Prometheus scrapes."""
        return MetricsReader(status=self.status, ledger=self.ledger, keeper=self.name)


def _leader(settings: AmsSettings, database: Database) -> FindLeader:
    port = settings.http_port
    match settings.high_availability:
        case HighAvailability.ZOOKEEPER:
            return from_zookeeper(settings.zookeeper_address, settings.cluster_name, port)
        case HighAvailability.DATABASE:
            return from_lease(database, settings.cluster_name, port)
        case HighAvailability.NONE:
            return always(Server(settings.host, settings.thrift_port, port))
