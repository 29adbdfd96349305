"""The schema of config.yaml: which keys there are, and what each accepts, means and defaults to.

A model per concern. The alias of a field is its key in full, as config.yaml has it when it is
dotted; its default is written as one would write it there, and read like any other value. An empty
default is none, and the text below the field says what follows then. docs/configuration.md is made
from these models and texts by `python -m dagster_amoro.config docs/configuration.md`.
"""

import math
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Annotated, Any, Final, NamedTuple
from urllib.parse import urlsplit

import sqlalchemy as sa
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from dagster_amoro.config import settings
from dagster_amoro.config.jdbc import parse_url
from dagster_amoro.config.values import (
    LONGEST,
    Reader,
    duration,
    fraction,
    one_of,
    optional,
    parse_host,
    parse_keywords,
    parse_text,
    whole,
)
from dagster_amoro.core import policy
from dagster_amoro.core.ams_version import parse_version
from dagster_amoro.core.values import NAME_ACCEPTS, parse_keeper_name, parse_switch

GROUP: Final = "<name>"  # stands for the name of a group in the keys of groups
LONGEST_NAME: Final = 80  # characters of a deployment's name
_CENTURY: Final = f"up to {LONGEST.days} d"
_ZERO: Final = timedelta(0)
_MORE_THAN_0: Final = timedelta(microseconds=1)  # the shortest duration that is kept
_SECOND: Final = timedelta(seconds=1)
_GRACE: Final = "ams.optimizer.auto-restart-grace-period"
_CHECK: Final = "keeper.check-interval"
_URLS: Final = (
    "jdbc:postgresql://host[:port]/database, jdbc:mysql://host[:port]/database, either with "
    "several hosts and a comma between, jdbc:sqlite:path or a SQLAlchemy URL with special "
    "characters percent-encoded, several hosts as ?host=a,b&port=1,2"
)
_WEB_URL: Final = re.compile(r"https?://[!-~]{1,2000}")
_QUOTED: Final = "a text, in quotes where YAML would read something else"


def _parse_high_availability(value: object) -> settings.HighAvailability:
    kind = settings.HighAvailability(str(value).lower())
    if kind is settings.HighAvailability.NONE:
        raise ValueError("not one of Amoro's")
    return kind


def _parse_version(value: object) -> str:
    text = parse_text(value)
    if text:
        parse_version(text)
    return text


def _parse_name(value: object) -> str:
    text = parse_text(value).strip()
    if len(text) > LONGEST_NAME:
        raise ValueError("too long")
    return text


def _parse_web_url(value: object) -> str:
    text = parse_text(value)
    if text and not (_WEB_URL.fullmatch(text) and urlsplit(text).hostname):
        raise ValueError("not an address of the web")
    return text


def _whole_seconds(interval: timedelta | None) -> timedelta | None:
    return interval and interval - interval % _SECOND


Text = Annotated[str, Reader(parse_text, "a text")]
Password = Annotated[str, Reader(parse_text, _QUOTED)]
Switch = Annotated[bool, Reader(parse_switch, "true or false")]
Count = Annotated[int, whole(1)]
Port = Annotated[int, whole(1, 65535)]
Fraction = Annotated[float, fraction(0, "a number from 0 to 1")]
_POSITIVE: Final = fraction(
    math.ulp(0), "a number more than 0, with which nothing would ever be healed, and up to 1"
)
PositiveFraction = Annotated[float, _POSITIVE]
_INTERVAL: Final = duration(
    _SECOND, f"from 1 s, the shortest that Dagster's sensors know, {_CENTURY}"
)
Timeout = Annotated[timedelta, duration(_MORE_THAN_0, f"more than 0 and {_CENTURY}")]
Host = Annotated[
    str,
    Reader(
        parse_host,
        "a host name or a full IPv4 or IPv6 address; set keeper.server-expose-host to the one "
        "under which AMS is reached",
    ),
]


# --- The keys -----------------------------------------------------------------------------------


def key(default: str, alias: str | None = None) -> Any:  # noqa: ANN401 - as pydantic's Field
    """A field with its default as one would write it; alias: its key where the name says less."""
    return Field(default, alias=alias)


def below(prefix: str) -> Callable[[str], str]:
    """Names the key of a field: the prefix, a dot, and the field's name with hyphens."""
    return lambda name: f"{prefix}.{name.replace('_', '-')}"


class Section(BaseModel):
    """Keys that belong together; the docstring is their heading, and what is to be said of all."""

    model_config = ConfigDict(frozen=True, validate_default=True)


class DatabaseConfig(Section, alias_generator=below("ams.database")):
    """The database of the registry."""

    type: Annotated[
        settings.DatabaseType,
        one_of(
            settings.DatabaseType,
            "postgres, mysql or sqlite; Derby, Amoro's default, cannot be opened from outside "
            "AMS's process: move AMS to PostgreSQL or MySQL, or run dagster-amoro without AMS, "
            "with sqlite and workers of its own",
        ),
    ] = key("derby")
    """Where the registry is kept. Amoro's default is not usable: set it."""

    url: Annotated[
        sa.URL | None,
        Reader(
            parse_url,
            f"{_URLS}, of the kind that ams.database.type says and with its password before the "
            "host or in ams.database.password",
        ),
    ] = key("")
    """The database, in Amoro's JDBC form or as a SQLAlchemy URL. Several hosts are tried in their
    order; for PostgreSQL, `targetServerType=primary` goes on to the one that can be written. Of the
    JDBC parameters, those for TLS (but no Java key stores and client keys), timeouts,
    `targetServerType`, `options`, `currentSchema` and `ApplicationName` are kept; one that leads
    Java's driver to another host or database, such as `service` or `socketFactory`, is refused.
    MySQL's certificates are checked against the authorities of the system or of `$SSL_CERT_FILE`. A
    relative SQLite path starts at the folder of config.yaml. Left out with sqlite: `registry.db` in
    `$DAGSTER_HOME`, or in `./.dagster-amoro` if that is not set."""

    username: Text = key("")
    """The user, where the URL names none. Empty: the driver's own default."""

    password: Password = key("")
    """The password, where the URL has none; best set as `AMS_DATABASE_PASSWORD`."""


class ShadeConfig(Section, alias_generator=below("ams.shade")):
    """Encoded values.

    Read where the database is a server.
    """

    identifier: Text = key("default")
    """How Amoro has encoded the values of `ams.shade.sensitive-keywords`: `default` is plain text,
    `base64` is decoded. A shade of your own cannot be decoded here: set
    `keeper.database-password`."""

    sensitive_keywords: Annotated[
        frozenset[str],
        Reader(parse_keywords, "a list of keys, or one text with a semicolon between them"),
    ] = key("admin-password;database.password")
    """Which keys of `ams` are encoded, in the environment too."""


class AmsConfig(Section, alias_generator=below("ams")):
    """The running AMS.

    Read in attached mode.
    """

    server_expose_host: Host = key("")
    """Where AMS is reached, where neither `keeper.server-expose-host` nor high availability says
    it. The beginning of an address, which AMS would complete, is not enough."""

    thrift_port: Port = key("1261", "ams.thrift-server.optimizing-service.bind-port")
    """The port that optimizers register at."""

    http_port: Port = key("19090", "ams.http-server.bind-port")
    """The port of AMS's REST interface."""

    own_expose_host: Host = key("", "keeper.server-expose-host")
    """Where AMS is reached, if not at `ams.server-expose-host`."""

    home: Text = key("", "keeper.ams-home")
    """The folder of Amoro, on the host where its programs are started. Left out: `$ARCTIC_HOME`,
    else `$AMORO_HOME`, else the folder above that of config.yaml if that is called `conf`."""

    version: Annotated[
        str,
        Reader(
            _parse_version,
            "a version from 0.7 on, such as 0.8 or '0.9.0', in quotes where it ends in a zero",
        ),
    ] = key("", "keeper.ams-version")
    """The version of AMS, which decides how optimizers are started. Left out: AMS is asked."""


class HighAvailabilityConfig(Section, alias_generator=below("ams.ha")):
    """The nodes of AMS, where it has several.

    Read in attached mode.
    """

    enabled: Switch = key("false")
    """Whether AMS has several nodes, one of them the leader."""

    type: Annotated[
        settings.HighAvailability, Reader(_parse_high_availability, "zk or database")
    ] = key("zk")
    """Where the nodes agree on their leader. With `database` each of Amoro's containers needs a
    property `ams-optimizing-uri`, since what AMS would give it is of no use."""

    cluster_name: Text = key("default")
    """Which AMS cluster it is, of those that share a ZooKeeper or a database."""

    zookeeper_address: Annotated[
        str, Reader(parse_text, "host:port, or several with a comma between")
    ] = key("")
    """The ZooKeeper, required where `ams.ha.type` is `zk`."""

    use_master_slave_mode: Switch = key("false")
    """Whether optimizers work for all nodes of AMS, not only for the leader."""


class OptimizerConfig(Section, alias_generator=below("ams.optimizer")):
    """When a worker counts as dead, and whether it is restarted."""

    heart_beat_timeout: Timeout = key("1min")
    """How old a worker's last heartbeat may be before the worker counts as dead."""

    auto_restart_enabled: Switch = key("false")
    """Whether orphans are restarted. If not, they are recorded and left alone."""

    auto_restart_max_retries: Annotated[int, whole(0)] = key("5")
    """How often a start is attempted before the resource is given up. 0: never."""

    auto_restart_grace_period: Annotated[timedelta, duration(_ZERO, _CENTURY)] = key("5min")
    """How long an orphan is left alone after its detection, and after the end of each attempt."""


class OptimizerGroupConfig(Section, alias_generator=below("ams.optimizer-group")):
    """How often groups are looked at, and how long they are filled up."""

    check_interval: Annotated[
        timedelta | None, optional(_INTERVAL), AfterValidator(_whole_seconds)
    ] = key("", _CHECK)
    """How often the sensor looks for orphans. Left out: as often as AMS looks at its groups. Set
    it to be quicker: AMS's own key, if it is short, also has AMS fill up groups whose optimizers
    are only coming back, after a restart of AMS for one."""

    min_parallelism_check_interval: Annotated[
        timedelta, _INTERVAL, AfterValidator(_whole_seconds)
    ] = key("5min")
    """How often AMS looks whether its groups have their `min-parallelism`. Standalone, the pause
    after the first round in which a group is filled up is twice as long, and each later one longer
    by as much as this. A fraction of a second is cut off."""

    max_keeping_attempts: Count = key("3")
    """How many rounds in a row a group that stays below its `min-parallelism` is filled up, before
    it is left as it is. Only standalone: an AMS does this itself."""


class StoresConfig(Section, alias_generator=below("keeper")):
    """Whose the registry is, where the ledger is, and who logs in."""

    registry: Annotated[
        settings.RegistryMode | None,
        optional(one_of(settings.RegistryMode, "attached, or standalone, the only one for sqlite")),
    ] = key("")
    """Whose the registry is: a running AMS's (`attached`) or ours (`standalone`). Left out:
    standalone for sqlite, attached otherwise."""

    ledger_url: Annotated[sa.URL | None, Reader(parse_url, _URLS)] = key("")
    """The ledger's database, written as `ams.database.url` is. Without a user it is that of the
    registry, if both are of one type. Left out: the registry's database."""

    database_username: Text = key("")
    """The user of the registry's database, in plain text, whatever `ams.database` says."""

    database_password: Password = key("")
    """The password of the registry's database, in plain text, whatever `ams.database` says; best
    set as `KEEPER_DATABASE_PASSWORD`."""


class RestartConfig(Section, alias_generator=below("keeper")):
    """How patiently orphans are restarted."""

    stable_after: Annotated[
        timedelta,
        duration(_ZERO, f"not shorter than {_GRACE} and {_CENTURY}, or 0 to switch it off"),
    ] = key("1h")
    """A resource that is orphaned again sooner after its recovery continues its old count of
    attempts, so that a crash loop ends: its row is kept, and a person is told. 0: every recovery
    gives a fresh count. Left out: 1h, or the grace period if that is longer."""

    backoff: Annotated[policy.Backoff, one_of(policy.Backoff)] = key("constant")
    """The pauses between attempts: each as long as the grace period, or each twice as long as the
    one before."""

    backoff_cap: Annotated[
        timedelta,
        duration(_MORE_THAN_0, f"more than 0, not shorter than {_GRACE} and {_CENTURY}"),
    ] = key("1h")
    """The longest pause where they are exponential. Left out: 1h, or the grace period if that is
    longer."""

    backoff_jitter: Fraction = key("0.1")
    """By up to which fraction an exponential pause is made longer, so that workers that died
    together are not started together."""

    on_exhausted: Annotated[policy.OnExhausted, one_of(policy.OnExhausted)] = key("clean-up")
    """What becomes of a resource without attempts left: it is released and its row moves to the
    ledger (`clean-up`), or it stays and is reported once (`keep`). One that came back in between
    (see keeper.stable-after) always stays."""


class LimitsConfig(Section, alias_generator=below("keeper")):
    """How much is done, and how much at once."""

    mode: Annotated[settings.Mode, one_of(settings.Mode)] = key("enforce")
    """`dry-run`: everything is recorded as if it were done, nothing is started, saved or removed.
    """

    max_restarts_per_tick: Count = key("1000")
    """How many orphans one tick dispatches to runs; the others follow at the next ticks, oldest
    first and groups in turn."""

    max_restarts_per_run: Count = key("200")
    """How many orphans one run of the job restarts; more are further runs."""

    max_concurrent_starts: Count = key("50")
    """How many orphans of one container a run restarts at once. A container's own property
    `max-concurrent-starts` comes before it."""

    claim_timeout: Timeout = key("15min")
    """How long a dispatch to a run, or a run's claim, lasts without a sign of life."""

    max_orphaned_fraction: PositiveFraction = key("1")
    """While a larger fraction of a group's resources is orphaned, nothing is restarted in it. 1: no
    limit."""

    max_orphaned_fraction_overall: PositiveFraction = key("1")
    """While a larger fraction of all resources is orphaned, nothing is restarted at all. 1: no
    limit."""


class GroupConfig(Section, alias_generator=below(f"keeper.groups.{GROUP}")):
    """Groups that differ.

    These keys are read from the file alone: they have no environment variables.
    """

    dynamic_allocation: Annotated[
        settings.DynamicAllocation, one_of(settings.DynamicAllocation)
    ] = key("leave")
    """Whether this group's orphans are restarted (`restart`) though AMS changes its size by itself,
    or left to AMS (`leave`)."""

    max_orphaned_fraction: Annotated[float | None, optional(_POSITIVE)] = key("")
    """`keeper.max-orphaned-fraction` for this group. Left out: that of all groups."""


class FleetConfig(Section, alias_generator=below("keeper")):
    """The declared fleet.

    Which groups and workers there are to be is said in the section `fleet`, below.
    """

    apply_fleet: Annotated[settings.ApplyFleet, one_of(settings.ApplyFleet)] = key("by-hand")
    """Who carries that out: a person alone, by `dagster-amoro apply` or the job `keeper_apply`
    (`by-hand`), or the sensor `fleet_sensor` as well, as soon as something is missing or differs
    (`by-sensor`). It releases nothing, and leaves what was given up to a person."""


class DeploymentConfig(Section, alias_generator=below("keeper")):
    """Several Dagster deployments that share a registry, or several keepers in one."""

    dagster_name: Annotated[str, Reader(parse_keeper_name, NAME_ACCEPTS)] = key("")
    """What this keeper is called in Dagster, where a deployment has several: its jobs, sensors and
    resources begin with it, and the keys of its assets. Empty: none of them does."""

    lease_time: Annotated[
        timedelta | None,
        optional(
            duration(
                _MORE_THAN_0,
                f"at least twice {_CHECK}, at least 10 s more than that, and {_CENTURY}",
            )
        ),
    ] = key("")
    """Set where more than one Dagster deployment works on one registry: one acts, the others watch,
    and take over when its lease was not renewed for so long. Left out: no lease."""

    deployment: Annotated[
        str, Reader(_parse_name, f"a text of up to {LONGEST_NAME} characters")
    ] = key("")
    """What this Dagster deployment is called. Left out: the name of its host."""


class AlertingConfig(Section, alias_generator=below("keeper")):
    """Who is told that the keeper lives."""

    check_in_url: Annotated[
        str, Reader(_parse_web_url, "an address that begins with https:// or http://")
    ] = key("")
    """A web address that is asked (GET) after each completed survey, so that whoever has it notices
    when none comes any more. It mostly holds a token, so best set as `KEEPER_CHECK_IN_URL`. Left
    out: none."""

    note_surveys: Switch = key("false")
    """Whether each tick that completes a survey notes that in the ledger, in one row. Then
    `dagster-amoro metrics` has the age of the last survey. If not, a tick that finds nothing new
    writes nothing."""


class AuditConfig(Section, alias_generator=below("keeper")):
    """What the audit keeps, and what its checks warn of."""

    audit_storage: Annotated[
        str,
        Reader(parse_text, "a folder, or the URL of an object store such as s3://bucket/path"),
    ] = key("")
    """Where the frames of the audit are kept: a folder, which if relative starts at that of
    config.yaml, or an object store's URL. Left out: the storage folder of the Dagster instance."""

    audit_retention: Annotated[
        timedelta | None, optional(duration(timedelta(days=1), f"from 1 d {_CENTURY}"))
    ] = key("")
    """How long the frames of the audit are kept. Left out: for ever."""

    ledger_retention: Annotated[
        timedelta | None, optional(duration(timedelta(days=30), f"from 30 d {_CENTURY}"))
    ] = key("")
    """How long the ledger keeps incidents that are over, with their events, once the job `prune`
    runs; the sums by day, open incidents and the last rows of removed resources stay. Left out: for
    ever."""

    alert_restart_success: Fraction = key("0.5")
    """A check warns when a smaller fraction of a day's restarted resources came back."""

    alert_given_up_for: Annotated[
        timedelta, duration(timedelta(minutes=1), f"from 1 min {_CENTURY}")
    ] = key("1d")
    """How long a check fails since a resource was given up, or kept without attempts left, unless
    somebody restores or acknowledges it before."""

    alert_flapping: Annotated[int, whole(2)] = key("3")
    """A check warns of a resource that was orphaned so many times within a day."""


class Configuration(BaseModel):
    """Everything that config.yaml and the environment may say, but for the containers.

    Each section is read from one flat map of all keys, and each group from a map of its own.
    """

    database: DatabaseConfig
    shade: ShadeConfig
    ams: AmsConfig
    ha: HighAvailabilityConfig
    optimizer: OptimizerConfig
    optimizer_group: OptimizerGroupConfig
    stores: StoresConfig
    restart: RestartConfig
    limits: LimitsConfig
    groups: dict[str, GroupConfig]
    fleet: FleetConfig
    deployment: DeploymentConfig
    alerting: AlertingConfig
    audit: AuditConfig


class Setting(NamedTuple):
    """A key of config.yaml."""

    key: str  # in full, with its section
    default: str  # as one would write it; empty: there is none
    reader: Reader


def settings_of(section: type[Section]) -> Iterator[Setting]:
    """The keys of a section, in their order."""
    for field in section.model_fields.values():
        (reader,) = (each for each in field.metadata if isinstance(each, Reader))
        yield Setting(str(field.alias), field.default, reader)


SECTIONS: Final[tuple[type[Section], ...]] = tuple(Section.__subclasses__())
SETTINGS: Final = tuple(setting for section in SECTIONS for setting in settings_of(section))
