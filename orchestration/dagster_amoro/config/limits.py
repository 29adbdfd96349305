"""How patiently orphans are restarted, where that stops, and who does it."""

import socket
from datetime import timedelta
from typing import Final

from dagster_amoro.config.keys import (
    AUTO_RESTART,
    BACKOFF,
    BACKOFF_CAP,
    BACKOFF_JITTER,
    CHECK_INTERVAL,
    DEPLOYMENT,
    GRACE_PERIOD,
    GROUP_DYNAMIC,
    GROUP_MAX_ORPHANED,
    LEASE_TIME,
    LONGEST_NAME,
    MAX_ORPHANED,
    MAX_ORPHANED_OVERALL,
    MAX_RESTARTS_PER_TICK,
    MAX_RETRIES,
    ON_EXHAUSTED,
    STABLE_AFTER,
    Setting,
    for_group,
)
from dagster_amoro.config.raw import RawConfig
from dagster_amoro.config.settings import DynamicAllocation
from dagster_amoro.core.limits import Limits
from dagster_amoro.core.policy import Backoff, RestartPolicy

# Dagster's daemon looks at its sensors every 5 s at most, and a run takes some to begin.
_DAEMON_SLACK: Final = timedelta(seconds=10)


def read_restart(raw: RawConfig) -> RestartPolicy:
    """Whether, how often and how patiently orphans are restarted."""
    backoff = raw.get(BACKOFF)
    _warn_of_idle(raw, backoff)
    read_cap = _not_shorter_than_grace if backoff is Backoff.EXPONENTIAL else RawConfig.get
    return RestartPolicy(
        enabled=raw.get(AUTO_RESTART),
        max_retries=raw.get(MAX_RETRIES),
        grace_period=raw.get(GRACE_PERIOD),
        stable_after=_not_shorter_than_grace(raw, STABLE_AFTER),
        backoff=backoff,
        backoff_cap=read_cap(raw, BACKOFF_CAP),
        backoff_jitter=raw.get(BACKOFF_JITTER),
        on_exhausted=raw.get(ON_EXHAUSTED),
    )


def _warn_of_idle(raw: RawConfig, backoff: Backoff) -> None:
    if backoff is Backoff.CONSTANT:
        for setting in filter(raw.has, (BACKOFF_CAP, BACKOFF_JITTER)):
            why = f"it has no effect while {BACKOFF.key} is constant"
            raw.warn(setting, f"{why}; set {BACKOFF.key}: exponential, or leave it out")
    elif not raw.get(GRACE_PERIOD):
        why = f"it has no effect while {GRACE_PERIOD.key} is 0, since twice nothing is nothing"
        raw.warn(BACKOFF, f"{why}; set a grace period, or leave it out")


def _not_shorter_than_grace(raw: RawConfig, setting: Setting[timedelta]) -> timedelta:
    """A duration that has no effect if it is shorter, unless it is zero."""
    grace, given = raw.get(GRACE_PERIOD), raw.get(setting)
    if not raw.has(setting):
        return max(grace, given)
    if timedelta(0) < given < grace:
        _reject_beside(raw, setting, GRACE_PERIOD)
    return given


def _reject_beside(raw: RawConfig, setting: Setting[object], other: Setting[object]) -> None:
    """Notes that two keys do not go together, unless one of them is wrong by itself."""
    if not raw.rejected & {setting.key, other.key}:
        raw.reject(setting, f"though {other.key} is {raw.shown(other)}")


def read_guards(raw: RawConfig) -> Limits:
    """How much may be restarted at once."""
    limits = Limits(
        max_restarts=raw.get(MAX_RESTARTS_PER_TICK),
        max_orphaned=raw.get(MAX_ORPHANED),
        max_orphaned_overall=raw.get(MAX_ORPHANED_OVERALL),
        max_orphaned_of=raw.by_group(GROUP_MAX_ORPHANED),
    )
    _warn_of_ones(raw, limits)
    return limits


def _warn_of_ones(raw: RawConfig, limits: Limits) -> None:
    """Warns of the shares with which a single resource is never healed."""
    way_out = f"set {GROUP_MAX_ORPHANED.key}: 1 for such groups"
    _warn_of_one(raw, MAX_ORPHANED, limits.max_orphaned, "a group of one resource", way_out)
    way_out = "leave it out for such a registry"
    share = limits.max_orphaned_overall
    _warn_of_one(raw, MAX_ORPHANED_OVERALL, share, "a registry of one resource", way_out)
    for name, share in limits.max_orphaned_of.items():
        setting = for_group(GROUP_MAX_ORPHANED, name)
        what = "this group, if it has one resource,"
        _warn_of_one(raw, setting, share, what, "set it to 1 in that case")


def _warn_of_one(
    raw: RawConfig, setting: Setting[object], share: float, what: str, way_out: str
) -> None:
    if share < 1:
        why = f"{what} is never healed, since 1 of 1 orphaned is more than"
        raw.warn(setting, f"{why} {share * 100:.12g}%; {way_out}")


def read_dynamic_groups(raw: RawConfig) -> frozenset[str]:
    """The groups whose orphans are restarted although AMS changes their size."""
    found = raw.by_group(GROUP_DYNAMIC)
    return frozenset(name for name, each in found.items() if each is DynamicAllocation.RESTART)


def read_lease_time(raw: RawConfig) -> timedelta | None:
    """How long a lease lasts; None: there is none."""
    lease, interval = raw.get(LEASE_TIME), raw.get(CHECK_INTERVAL)
    # One that lapses between two ticks could never be held, and its runs would all come too late.
    if lease is not None and lease < max(2 * interval, interval + _DAEMON_SLACK):
        _reject_beside(raw, LEASE_TIME, CHECK_INTERVAL)
    return lease


def read_deployment(raw: RawConfig) -> str:
    """What this deployment is called."""
    return raw.get(DEPLOYMENT) or socket.gethostname()[:LONGEST_NAME]
