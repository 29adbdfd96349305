"""Is there anything that a person should look at? What each check concludes, and what it says."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import takewhile
from typing import Final

import dagster as dg

from dagster_amoro.core.errors import shorten
from dagster_amoro.core.formatting import clock_time, counted, duration
from dagster_amoro.core.messages import (
    ABSTAINED,
    ABSTENTIONS,
    AGE,
    OPEN_INCIDENTS,
    PAUSED,
    REFUSED,
    WATCHING,
)
from dagster_amoro.core.model import Incident, State
from dagster_amoro.core.pauses import Pauses
from dagster_amoro.core.policy import Backoff, RestartPolicy
from dagster_amoro.core.scale_up import ScaleUp
from dagster_amoro_audit.blocked_restarts import BlockedRestarts

SENSOR: Final = "orphan_sensor"
NEWEST_END: Final = "newest end in s since 1970"  # metadata from which the next check goes on
_NAMED: Final = 10  # resources that a message names; more are counted
_SHORTEST_SILENCE: Final = timedelta(minutes=1)  # the daemon itself needs some seconds
_LONGEST_ERROR: Final = 200  # characters that a message quotes
_LOST: Final = {  # states of a resource that needs a person, and what they are called
    State.EXHAUSTED: "given up and removed",
    State.KEPT: "out of attempts and kept",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What one check found."""

    passed: bool
    message: str  # which resources, and what is to be done
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR
    numbers: Mapping[str, float] = field(default_factory=dict)  # metadata, plotted over time


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """An incident that is over, or kept without attempts left, as far as checks need it."""

    resource_id: str
    group_name: str
    state: State
    attempts: int
    closed_at: datetime  # of one that is kept: when its attempts were used up

    def __str__(self) -> str:
        """As a message names it."""
        return f"{self.resource_id} (group {self.group_name})"


def given_up(ended: Iterable[Ended], mark: float) -> Finding:
    """Whether something was given up, or kept without attempts left, since the check before.

    Ends are compared, not beginnings: an incident can end after one that began later.

    Args:
        ended: What ended within a day.
        mark: The newest end that a check before reported, in s since 1970.
    """
    lost = [e for e in ended if e.state in _LOST]
    new = [e for e in lost if e.closed_at.timestamp() > mark]
    message = "nothing was given up since the last check"
    if lost:
        message += f"; within a day {_names(lost)}"
    if new:
        each = (_lost(state, [e for e in new if e.state is state]) for state in _LOST)
        message = (
            f"{'; '.join(filter(None, each))}. Removed rows are kept in the ledger; "
            "the runs of restart_orphans say what was tried"
        )
    return Finding(
        passed=not new,
        message=message,
        numbers={
            "given up": sum(e.state is State.EXHAUSTED for e in new),
            "kept": sum(e.state is State.KEPT for e in new),
            NEWEST_END: max([mark, *(e.closed_at.timestamp() for e in lost)]),
        },
    )


def overdue(
    incidents: Sequence[Incident], policy: RestartPolicy, now: datetime, pauses: Pauses
) -> Finding:
    """Whether an incident is open for longer than all its attempts take, and nobody meant it to.

    Args:
        incidents: All that are open.
        policy: In force.
        now: Aware UTC.
        pauses: Those that hold at `now`.
    """
    allowed = _all_attempts(policy)
    late = [
        i
        for i in incidents
        if now - i.detected_at > allowed
        and policy.enabled
        and not i.dry_run
        and i.state is not State.KEPT
        and not pauses.of(i.resource_id, i.group_name)
    ]
    late.sort(key=lambda i: i.detected_at)
    message = f"no orphan is open for longer than {duration(allowed)}"
    if late:
        names = _names(
            f"{i.resource_id} (since {clock_time(i.detected_at)}, {i.note or i.state})"
            for i in late
        )
        orphans = counted(len(late), "orphan")
        message = f"{orphans} open for longer than {duration(allowed)}: {names}"
    numbers = {"overdue": len(late), OPEN_INCIDENTS: len(incidents)}
    return Finding(passed=not late, message=message, numbers=numbers)


def unblocked(found: BlockedRestarts) -> Finding:
    """Whether nothing is blocked that would be restarted otherwise."""
    reasons = [*_held(found), *_failed(found.failed), *_stopped(found.stopped)]
    message = "; ".join(reasons) or "no restart is refused"
    if found.pauses:
        message += f"; paused, which is no refusal: {_names(found.pauses)}"
    numbers = {
        REFUSED: found.restarts,
        "groups not scaled up": len(found.stopped),
        PAUSED: len(found.pauses),
    }
    return Finding(passed=not reasons, message=message, numbers=numbers)


def restarts(ended: Iterable[Ended], least: float) -> Finding:
    """Whether enough of what was restarted within the day came back: at least this share."""
    tried = [e for e in ended if e.attempts and (e.state is State.RECOVERED or e.state in _LOST)]
    failed = [e for e in tried if e.state in _LOST]
    if not tried:
        return _warning("nothing was restarted within a day", passed=True)
    share = 1 - len(failed) / len(tried)
    message = f"{share:.0%} of {counted(len(tried), 'restarted resource')} came back within a day"
    if share < least:
        message += f", fewer than {least:.0%}; not {_names(e.resource_id for e in failed)}"
    return _warning(message, passed=share >= least, success=share)


def flapping(begun: Mapping[str, int], most: int) -> Finding:
    """Whether a resource was orphaned `most` times within the day.

    Args:
        begun: How often each resource was orphaned.
        most: So many times are too many.
    """
    found = sorted(((n, r) for r, n in begun.items() if n >= most), reverse=True)
    message = f"no resource was orphaned {most} times within a day"
    if found:
        names = _names(f"{resource} ({number} times)" for number, resource in found)
        resources = counted(len(found), "resource")
        message = f"{resources} orphaned again and again within a day: {names}"
    return _warning(message, passed=not found, flapping=len(found))


def below_min_parallelism(min_parallelisms: Mapping[str, int], live: Mapping[str, int]) -> Finding:
    """Whether a group has fewer live threads than its min-parallelism; both by group."""
    short = {name: least for name, least in min_parallelisms.items() if live.get(name, 0) < least}
    message = f"{counted(len(min_parallelisms), 'group')} with a min-parallelism, none below it"
    if short:
        names = _names(
            f"{name} ({live.get(name, 0)} of {least} threads)" for name, least in short.items()
        )
        message = f"{counted(len(short), 'group')} below min-parallelism: {names}"
    return Finding(passed=not short, message=message, numbers={"groups below": len(short)})


def freshness(ticks: Sequence[tuple[datetime, str]], interval: timedelta, now: datetime) -> Finding:
    """Whether a survey was completed within three check intervals, here or by whoever acts.

    Args:
        ticks: Of the sensor, the newest first: when, and why it completed no survey; empty: it did.
        interval: Between two ticks.
        now: Aware UTC.
    """
    allowed = max(3 * interval, _SHORTEST_SILENCE)
    last = next((tick for tick in ticks if not tick[1] or tick[1].startswith(WATCHING)), None)
    age = None if last is None else now - last[0]
    in_vain = len(list(takewhile(lambda tick: tick[1].startswith(ABSTAINED), ticks)))
    if age is None or age > allowed:
        message = _silence(ticks, allowed, now, age)
    elif last and last[1]:
        message = f"on standby, {duration(age)} ago: {last[1]}"
    else:
        message = f"the last survey is {duration(age)} old"
    message += f" ({counted(in_vain, 'abstention')} in a row)" if in_vain else ""
    numbers: dict[str, float] = {} if age is None else {AGE: age.total_seconds()}
    return Finding(
        passed=age is not None and age <= allowed,
        message=message,
        numbers=numbers | {ABSTENTIONS: in_vain},
    )


def _warning(message: str, *, passed: bool, **numbers: float) -> Finding:
    severity = dg.AssetCheckSeverity.WARN
    return Finding(passed=passed, message=message, severity=severity, numbers=numbers)


def _silence(
    ticks: Sequence[tuple[datetime, str]], allowed: timedelta, now: datetime, age: timedelta | None
) -> str:
    """For how long no survey was completed, and why, as far as a new tick says it."""
    since = "in its newest ticks" if age is None else f"for {duration(age)}"
    reason = "it has no newer tick; is the sensor running, and the daemon?"
    if ticks and now - ticks[0][0] <= allowed:
        reason = ticks[0][1]
    return f"{SENSOR} completed no survey {since}, allowed are {duration(allowed)}: {reason}"


def _all_attempts(policy: RestartPolicy) -> timedelta:
    """How long an orphan is open at most if all its attempts are made in time."""
    pauses = policy.max_retries + 1
    if policy.backoff is Backoff.CONSTANT or not policy.grace_period:
        return policy.grace_period * pauses
    until_cap = policy.backoff_cap / policy.grace_period
    growing = (
        policy.grace_period * 2**n if 2**n < until_cap else policy.backoff_cap
        for n in range(pauses)
    )
    longest: timedelta = sum(growing, timedelta()) * (1 + policy.backoff_jitter)
    return longest


def _held(found: BlockedRestarts) -> Iterator[str]:
    groups = [f"{_group(name)} ({reason})" for name, reason in sorted(found.limited.items())]
    if groups:
        yield f"the limits hold {counted(len(found.held), 'orphan')} back: {_names(groups)}"


def _failed(failed: Sequence[Incident]) -> Iterator[str]:
    if failed:
        names = _names(incident.resource_id for incident in failed)
        starts = f"the last start of {counted(len(failed), 'orphan')} failed"
        yield f"{starts}: {names}{_newest_error(failed[0].last_error)}"


def _stopped(stopped: Sequence[ScaleUp]) -> Iterator[str]:
    groups = [
        f"{_group(each.group_name)} (below {counted(each.min_parallelism, 'thread')} after "
        f"{counted(each.rounds, 'round')}{_newest_error(each.last_error)})"
        for each in stopped
    ]
    if groups:
        yield f"{counted(len(groups), 'group')} could not be scaled up: {_names(groups)}"


def _newest_error(error: str | None) -> str:
    return f"; newest error: {shorten(error, _LONGEST_ERROR)}" if error else ""


def _group(name: str) -> str:
    return name or "(no group)"


def _lost(state: State, lost: Sequence[Ended]) -> str:
    return f"{counted(len(lost), 'resource')} {_LOST[state]}: {_names(lost)}" if lost else ""


def _names(things: Iterable[object]) -> str:
    every = list(things)
    more = f" and {len(every) - _NAMED} more" if len(every) > _NAMED else ""
    return ", ".join(map(str, every[:_NAMED])) + more
