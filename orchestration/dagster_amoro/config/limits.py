"""How patiently orphans are restarted, where that stops, and who does it."""

import socket
from datetime import timedelta
from typing import Final

from dagster_amoro.config.draft import Draft
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
from dagster_amoro.config.settings import DynamicAllocation
from dagster_amoro.core.limits import Guards
from dagster_amoro.core.policy import Backoff, RestartPolicy

# Dagster's daemon looks at its sensors every 5 s at most, and a run takes some to begin.
_DAEMON_SLACK: Final = timedelta(seconds=10)


def read_restart(draft: Draft) -> RestartPolicy:
    """Whether, how often and how patiently orphans are restarted."""
    backoff = draft.get(BACKOFF)
    _warn_of_idle(draft, backoff)
    read_cap = _not_shorter_than_grace if backoff is Backoff.EXPONENTIAL else Draft.get
    return RestartPolicy(
        enabled=draft.get(AUTO_RESTART),
        max_retries=draft.get(MAX_RETRIES),
        grace_period=draft.get(GRACE_PERIOD),
        stable_after=_not_shorter_than_grace(draft, STABLE_AFTER),
        backoff=backoff,
        backoff_cap=read_cap(draft, BACKOFF_CAP),
        backoff_jitter=draft.get(BACKOFF_JITTER),
        on_exhausted=draft.get(ON_EXHAUSTED),
    )


def _warn_of_idle(draft: Draft, backoff: Backoff) -> None:
    if backoff is Backoff.CONSTANT:
        for setting in filter(draft.has, (BACKOFF_CAP, BACKOFF_JITTER)):
            why = f"it has no effect while {BACKOFF.key} is constant"
            draft.warn(setting, f"{why}; set {BACKOFF.key}: exponential, or leave it out")
    elif not draft.get(GRACE_PERIOD):
        why = f"it has no effect while {GRACE_PERIOD.key} is 0, since twice nothing is nothing"
        draft.warn(BACKOFF, f"{why}; set a grace period, or leave it out")


def _not_shorter_than_grace(draft: Draft, setting: Setting[timedelta]) -> timedelta:
    """A duration that has no effect if it is shorter, unless it is zero."""
    grace, given = draft.get(GRACE_PERIOD), draft.get(setting)
    if not draft.has(setting):
        return max(grace, given)
    if timedelta(0) < given < grace:
        _reject_beside(draft, setting, GRACE_PERIOD)
    return given


def _reject_beside(draft: Draft, setting: Setting[object], other: Setting[object]) -> None:
    """Notes that two keys do not go together, unless one of them is wrong by itself."""
    if not draft.rejected & {setting.key, other.key}:
        draft.reject(setting, f"though {other.key} is {draft.shown(other)}")


def read_guards(draft: Draft) -> Guards:
    """How much may be restarted at once."""
    guards = Guards(
        max_restarts=draft.get(MAX_RESTARTS_PER_TICK),
        max_orphaned=draft.get(MAX_ORPHANED),
        max_orphaned_overall=draft.get(MAX_ORPHANED_OVERALL),
        max_orphaned_of=draft.by_group(GROUP_MAX_ORPHANED),
    )
    _warn_of_ones(draft, guards)
    return guards


def _warn_of_ones(draft: Draft, guards: Guards) -> None:
    """Warns of the shares with which a single resource is never healed."""
    way_out = f"set {GROUP_MAX_ORPHANED.key}: 1 for such groups"
    _warn_of_one(draft, MAX_ORPHANED, guards.max_orphaned, "a group of one resource", way_out)
    way_out = "leave it out for such a registry"
    share = guards.max_orphaned_overall
    _warn_of_one(draft, MAX_ORPHANED_OVERALL, share, "a registry of one resource", way_out)
    for name, share in guards.max_orphaned_of.items():
        setting = for_group(GROUP_MAX_ORPHANED, name)
        what = "this group, if it has one resource,"
        _warn_of_one(draft, setting, share, what, "set it to 1 in that case")


def _warn_of_one(
    draft: Draft, setting: Setting[object], share: float, what: str, way_out: str
) -> None:
    if share < 1:
        why = f"{what} is never healed, since 1 of 1 orphaned is more than"
        draft.warn(setting, f"{why} {share * 100:.12g}%; {way_out}")


def read_dynamic_groups(draft: Draft) -> frozenset[str]:
    """The groups whose orphans are restarted although AMS changes their size."""
    found = draft.by_group(GROUP_DYNAMIC)
    return frozenset(name for name, each in found.items() if each is DynamicAllocation.RESTART)


def read_lease_time(draft: Draft) -> timedelta | None:
    """How long a lease lasts; None: there is none."""
    lease, interval = draft.get(LEASE_TIME), draft.get(CHECK_INTERVAL)
    # One that lapses between two ticks could never be held, and its runs would all come too late.
    if lease is not None and lease < max(2 * interval, interval + _DAEMON_SLACK):
        _reject_beside(draft, LEASE_TIME, CHECK_INTERVAL)
    return lease


def read_deployment(draft: Draft) -> str:
    """What this deployment is called."""
    return draft.get(DEPLOYMENT) or socket.gethostname()[:LONGEST_NAME]
