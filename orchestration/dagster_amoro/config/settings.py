"""What the settings are once they are read: frozen, typed, with the reason and unit of each."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from pathlib import Path

import sqlalchemy as sa

from dagster_amoro.core.ams_version import AmsVersion
from dagster_amoro.core.container_settings import ContainerSettings
from dagster_amoro.core.fleet_plan import DeclaredGroup
from dagster_amoro.core.limits import Limits
from dagster_amoro.core.policy import RestartPolicy


class RegistryMode(StrEnum):
    """Whose the registry is."""

    ATTACHED = "attached"  # a running AMS's: we read it and heal what it names
    STANDALONE = "standalone"  # ours: we create its tables and expire heartbeats


class Mode(StrEnum):
    """Whether what is decided is also done."""

    ENFORCE = "enforce"
    DRY_RUN = "dry-run"  # it is recorded as if it were done, and nothing is


class ApplyFleet(StrEnum):
    """Who carries out what the section `fleet` declares."""

    BY_HAND = "by-hand"  # a person, with `dagster-amoro apply` or the job `keeper_apply`
    BY_SENSOR = "by-sensor"  # the sensor `fleet_sensor` too, whenever something is missing


class DynamicAllocation(StrEnum):
    """What is done about the orphans of a group whose size AMS changes by itself."""

    LEAVE = "leave"  # nothing: AMS starts what it wants
    RESTART = "restart"  # they are restarted like all others


class DatabaseType(StrEnum):
    """Where the registry is kept."""

    POSTGRES = "postgres"
    MYSQL = "mysql"
    SQLITE = "sqlite"  # not one of Amoro's
    DERBY = "derby"  # Amoro's default; known here only to say why it cannot be used

    @property
    def is_server(self) -> bool:
        """Whether AMS and others can use it at once."""
        return self in {DatabaseType.POSTGRES, DatabaseType.MYSQL}

    @property
    def backend(self) -> str:
        """What SQLAlchemy calls it."""
        return "postgresql" if self is DatabaseType.POSTGRES else self.value


class HighAvailability(StrEnum):
    """How the nodes of AMS agree on a leader."""

    NONE = "none"  # there is one node
    ZOOKEEPER = "zk"
    DATABASE = "database"  # Amoro 0.9 and later


@dataclass(frozen=True, kw_only=True, slots=True)
class AmsSettings:
    """Where the running AMS is reached, and how it starts optimizers."""

    # An address or a name, an IPv6 address without brackets. Empty with high availability: the
    # leader moves, and is looked up.
    host: str
    thrift_port: int  # that optimizers register at
    http_port: int  # of the REST interface and the dashboard
    high_availability: HighAvailability  # where the leader is looked up
    cluster_name: str  # which AMS cluster it is, of those that share a ZooKeeper or a database
    zookeeper_address: str  # `host:port`, or several with a comma between; empty without ZooKeeper
    ams_version: AmsVersion | None  # as far as it matters. None: AMS is asked


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditSettings:
    """How the audit is kept, and what it warns of."""

    storage: str | None = None  # a folder, absolute, or an object store's URL. None: Dagster's own
    retention: timedelta | None = None  # of its frames; a day at least. None: for ever
    # Of incidents in the ledger; 30 days at least, which charts and figures look back. None: ever.
    ledger_retention: timedelta | None = None
    # A smaller fraction of a day's restarted resources that came back is worth a warning; 0: never.
    least_success: float = 0.5
    given_up_for: timedelta = timedelta(days=1)  # so long a loss is worth an alert
    flapping: int = 3  # so many incidents of one resource within a day are worth a warning


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Everything that was configured; nothing reads the file or the environment again.

    What each key means, and why it is there, is said in `models`; here is what became of it.
    """

    source: Path  # the config.yaml that was read, absolute; errors and logs name it
    # The registry, credentials included, SQLite paths absolute. Its text form masks the password,
    # and its query part was checked to hold none.
    database_url: sa.URL
    ledger_url: sa.URL  # the registry's database unless the ledger was given one of its own
    registry: RegistryMode  # decides whether AMS is asked before acting, and who makes tables
    ams: AmsSettings | None  # the AMS whose registry it is; None: the registry is ours
    restart: RestartPolicy  # off by default: other people's workers are not ours to restart
    # Without a limit of fractions by default: a fleet of a few workers would stand still where it
    # most needs help.
    limits: Limits
    mode: Mode
    dynamic_groups: frozenset[str]  # whose orphans are restarted although AMS changes their size
    max_keeping_attempts: int  # rounds, at least 1; in attached mode AMS fills groups up itself
    # At least twice the check interval and 10 s more than it, so that a tick can renew the lease.
    # None: there is one deployment, and it always acts.
    lease_time: timedelta | None
    name: str  # of the keeper, before the names of what it defines; empty: nothing is
    deployment: str  # 1 to 80 characters; the name of the host unless it was given
    check_interval: timedelta  # whole seconds, at least 1, because Dagster counts in them
    round_interval: timedelta  # as long; between two rounds of a group, times their number
    heartbeat_timeout: timedelta  # more than 0; in attached mode AMS expires heartbeats itself
    # At least 1. It keeps the event log of a run readable and lets Dagster spread a large outage
    # over a cluster.
    max_restarts_per_run: int
    max_concurrent_starts: int  # of one container in one run, at least 1
    claim_timeout: timedelta  # more than 0; a run that died unnoticed holds its orphans up so long
    check_in_url: str | None = field(repr=False)  # http(s), and a secret. None: nobody is told
    notes_surveys: bool  # in the ledger, so that metrics have their age
    audit: AuditSettings
    containers: Mapping[str, ContainerSettings]  # by name
    # As it is declared; not in the repr, since properties can be secrets. None: nothing is.
    fleet: tuple[DeclaredGroup, ...] | None = field(repr=False)
    apply_fleet: ApplyFleet
    # What is accepted, but hardly meant: a sentence each, with file or variable, key and value,
    # and what would be right.
    warnings: tuple[str, ...]
