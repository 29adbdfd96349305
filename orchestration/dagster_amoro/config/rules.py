"""What the keys mean together: which of them need, exclude or complete each other."""

import os
import socket
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

import sqlalchemy as sa

from dagster_amoro.config.containers import add_ams_properties, read_containers
from dagster_amoro.config.fleet import read_fleet, reject_fleet
from dagster_amoro.config.jdbc import url_flaws
from dagster_amoro.config.models import LONGEST_NAME, Configuration
from dagster_amoro.config.settings import (
    AmsSettings,
    AuditSettings,
    DatabaseType,
    DynamicAllocation,
    HighAvailability,
    RegistryMode,
    Settings,
)
from dagster_amoro.config.sources import RawConfig
from dagster_amoro.core.ams_version import parse_version
from dagster_amoro.core.limits import Limits
from dagster_amoro.core.policy import Backoff, RestartPolicy

_TYPE: Final = "ams.database.type"
_URL: Final = "ams.database.url"
_GRACE: Final = "ams.optimizer.auto-restart-grace-period"
_FRACTION: Final = "max-orphaned-fraction"
# Dagster's daemon looks at its sensors every 5 s at most, and a run takes some to begin.
_DAEMON_SLACK: Final = timedelta(seconds=10)


class Lists(NamedTuple):
    """The sections that are no maps of keys, as they stand in the file."""

    containers: object
    fleet: object


def build_settings(
    raw: RawConfig, config: Configuration, lists: Lists, environ: Mapping[str, str]
) -> Settings:
    """What was configured; what does not go together is noted in `raw`."""
    embedded = config.database.type is DatabaseType.SQLITE
    if embedded and config.stores.registry is RegistryMode.ATTACHED:
        why = f"with {_TYPE} sqlite, an unreachable combination: AMS has no SQLite"
        raw.reject("keeper.registry", why)
    ams = _ams_settings(raw, config) if is_attached(config) else None
    if ams is not None:
        reject_fleet(raw, lists.fleet)
    found = read_containers(raw, lists.containers)
    database_url = _database_url(raw, config, environ)
    groups, restart = config.groups.items(), DynamicAllocation.RESTART
    return Settings(
        source=raw.source,
        database_url=database_url,
        ledger_url=_ledger_url(raw, config, database_url),
        registry=_registry_mode(config),
        ams=ams,
        restart=_restart_policy(raw, config),
        limits=_limits(raw, config),
        mode=config.limits.mode,
        dynamic_groups=frozenset(n for n, each in groups if each.dynamic_allocation is restart),
        max_keeping_attempts=config.optimizer_group.max_keeping_attempts,
        lease_time=_lease_time(raw, config),
        name=config.deployment.dagster_name,
        deployment=config.deployment.deployment or socket.gethostname()[:LONGEST_NAME],
        check_interval=_check_interval(config),
        round_interval=config.optimizer_group.min_parallelism_check_interval,
        heartbeat_timeout=config.optimizer.heart_beat_timeout,
        max_restarts_per_run=config.limits.max_restarts_per_run,
        max_concurrent_starts=config.limits.max_concurrent_starts,
        claim_timeout=config.limits.claim_timeout,
        check_in_url=config.alerting.check_in_url or None,
        notes_surveys=config.alerting.note_surveys,
        audit=_audit_settings(raw, config),
        containers=add_ams_properties(raw, config, ams, found, environ) if ams else found,
        fleet=None if ams else read_fleet(raw, lists.fleet, found),
        apply_fleet=config.fleet.apply_fleet,
        warnings=tuple(raw.warnings),
    )


def _registry_mode(config: Configuration) -> RegistryMode:
    """Whose the registry is; where nobody says so, it follows from the kind of its database."""
    if config.database.type is DatabaseType.SQLITE:
        return config.stores.registry or RegistryMode.STANDALONE
    return config.stores.registry or RegistryMode.ATTACHED


def is_attached(config: Configuration) -> bool:
    """Whether there is an AMS to ask: the registry is its own, and a database that it can use."""
    return config.database.type.is_server and _registry_mode(config) is RegistryMode.ATTACHED


def _database_url(raw: RawConfig, config: Configuration, environ: Mapping[str, str]) -> sa.URL:
    """The registry's URL; where there are problems, any URL, because it will not be used."""
    kind, url = config.database.type, config.database.url
    if kind is DatabaseType.DERBY:
        raw.reject(_TYPE)
    elif url is None and kind is not DatabaseType.SQLITE:
        raw.reject(_URL)
    elif url is not None and url.get_backend_name() != kind.backend:
        raw.reject(_URL, f"with {_TYPE} {kind}, an unreachable combination")
    elif url is not None:
        return _with_credentials(config, _checked(raw, _URL, url))
    home = environ.get("DAGSTER_HOME") or ".dagster-amoro"
    folder = Path(os.path.expanduser(home))  # noqa: PTH111 - Path's own fails for unknown users
    return sa.URL.create("sqlite", database=str(folder.absolute() / "registry.db"))


def _with_credentials(config: Configuration, url: sa.URL) -> sa.URL:
    """The first of the places that name a user, and the first that name a password."""
    if url.get_backend_name() == "sqlite":
        return url
    ours, theirs = config.stores, config.database
    username = ours.database_username or url.username or theirs.username
    password = ours.database_password or url.password or theirs.password
    return url.set(username=username or None, password=password or None)


def _ledger_url(raw: RawConfig, config: Configuration, database: sa.URL) -> sa.URL:
    """The ledger's URL: its own, or the registry's where it has none.

    A ledger of the registry's type that names no user, or the registry's user, is opened with the
    registry's credentials.
    """
    key, url = "keeper.ledger-url", config.stores.ledger_url
    if url is None:
        return database
    backend = url.get_backend_name()
    if backend not in {kind.backend for kind in DatabaseType if kind is not DatabaseType.DERBY}:
        raw.reject(key, "which is of no type that can be used")
        return database
    url = _checked(raw, key, url)
    if backend != database.get_backend_name() or url.username not in {None, database.username}:
        return url
    return url.set(username=database.username, password=url.password or database.password)


def _checked(raw: RawConfig, key: str, url: sa.URL) -> sa.URL:
    for flaw in url_flaws(url):
        raw.reject(key, f"and {flaw}")
    if url.get_backend_name() == "sqlite":
        return url.set(database=str(raw.source.parent / (url.database or "")))
    return url


def _ams_settings(raw: RawConfig, config: Configuration) -> AmsSettings:
    ams, ha, ours = config.ams, config.ha, "keeper.server-expose-host"
    kind = ha.type if ha.enabled else HighAvailability.NONE
    host = "" if ha.enabled else ams.own_expose_host or ams.server_expose_host
    if not (ha.enabled or host):
        raw.reject(ours if raw.has(ours) else "ams.server-expose-host")
    by_zookeeper = kind is HighAvailability.ZOOKEEPER
    if by_zookeeper and not ha.zookeeper_address:
        why = "though ams.ha.enabled is true and ams.ha.type zk"
        raw.reject("ams.ha.zookeeper-address", why)
    return AmsSettings(
        host=host,
        thrift_port=ams.thrift_port,
        http_port=ams.http_port,
        high_availability=kind,
        cluster_name=ha.cluster_name,
        zookeeper_address=ha.zookeeper_address if by_zookeeper else "",
        ams_version=parse_version(ams.version) if ams.version else None,
    )


def _restart_policy(raw: RawConfig, config: Configuration) -> RestartPolicy:
    optimizer, restart = config.optimizer, config.restart
    grace, exponential = optimizer.auto_restart_grace_period, restart.backoff is Backoff.EXPONENTIAL
    if exponential and not grace:
        why = f"it has no effect while {_GRACE} is 0, since twice nothing is nothing"
        raw.warn("keeper.backoff", f"{why}; set a grace period, or leave it out")
    for key in () if exponential else ("keeper.backoff-cap", "keeper.backoff-jitter"):
        if raw.has(key):
            why = "it has no effect while keeper.backoff is constant"
            raw.warn(key, f"{why}; set keeper.backoff: exponential, or leave it out")
    cap = restart.backoff_cap
    return RestartPolicy(
        enabled=optimizer.auto_restart_enabled,
        max_retries=optimizer.auto_restart_max_retries,
        grace_period=grace,
        stable_after=_at_least(raw, "keeper.stable-after", restart.stable_after, grace),
        backoff=restart.backoff,
        backoff_cap=_at_least(raw, "keeper.backoff-cap", cap, grace) if exponential else cap,
        backoff_jitter=restart.backoff_jitter,
        on_exhausted=restart.on_exhausted,
    )


def _at_least(raw: RawConfig, key: str, value: timedelta, grace: timedelta) -> timedelta:
    """A duration that has no effect if it is shorter than the grace period, unless it is zero."""
    if not raw.has(key):
        return max(grace, value)
    if timedelta(0) < value < grace:
        raw.reject_beside(key, _GRACE)
    return value


def _limits(raw: RawConfig, config: Configuration) -> Limits:
    """How much may be restarted at once; warns where a single resource is never healed."""
    given, key = config.limits, f"keeper.{_FRACTION}"
    found = {name: group.max_orphaned_fraction for name, group in config.groups.items()}
    by_group = {name: each for name, each in found.items() if each is not None}
    way_out = f"set keeper.groups.<name>.{_FRACTION}: 1 for such groups"
    _warn_of_one(raw, key, given.max_orphaned_fraction, "a group of one resource", way_out)
    overall, way_out = given.max_orphaned_fraction_overall, "leave it out for such a registry"
    _warn_of_one(raw, f"{key}-overall", overall, "a registry of one resource", way_out)
    for name, fraction in by_group.items():
        key, what = f"keeper.groups.{name}.{_FRACTION}", "this group, if it has one resource,"
        _warn_of_one(raw, key, fraction, what, "set it to 1 in that case")
    return Limits(
        max_restarts=given.max_restarts_per_tick,
        max_orphaned=given.max_orphaned_fraction,
        max_orphaned_overall=overall,
        max_orphaned_of=MappingProxyType(by_group),
    )


def _warn_of_one(raw: RawConfig, key: str, fraction: float, what: str, way_out: str) -> None:
    if fraction < 1:
        why = f"{what} is never healed, since 1 of 1 orphaned is more than"
        raw.warn(key, f"{why} {fraction * 100:.12g}%; {way_out}")


def _check_interval(config: Configuration) -> timedelta:
    """How often the sensor looks: as our own key says, else as often as AMS does."""
    given = config.optimizer_group
    return given.check_interval or given.min_parallelism_check_interval


def _lease_time(raw: RawConfig, config: Configuration) -> timedelta | None:
    """How long a lease lasts; None: there is none."""
    lease = config.deployment.lease_time
    interval, ours = _check_interval(config), "keeper.check-interval"
    # One that lapses between two ticks could never be held, and its runs would all come too late.
    if lease is not None and lease < max(2 * interval, interval + _DAEMON_SLACK):
        theirs = "ams.optimizer-group.min-parallelism-check-interval"
        raw.reject_beside("keeper.lease-time", ours if raw.has(ours) else theirs)
    return lease


def _audit_settings(raw: RawConfig, config: Configuration) -> AuditSettings:
    """What the audit keeps and warns of; a relative folder starts at that of config.yaml."""
    audit, storage = config.audit, config.audit.audit_storage
    if storage and "://" not in storage:
        storage = str(raw.source.parent / storage)
    return AuditSettings(
        storage=storage or None,
        retention=audit.audit_retention,
        ledger_retention=audit.ledger_retention,
        least_success=audit.alert_restart_success,
        given_up_for=audit.alert_given_up_for,
        flapping=audit.alert_flapping,
    )
