"""Is there anything that a person should look at? What each check concludes, and what it says."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from itertools import takewhile
from typing import Final, NamedTuple

import dagster as dg

from dagster_amoro.core import messages
from dagster_amoro.core.errors import shorten
from dagster_amoro.core.formatting import clock_time, counted, duration
from dagster_amoro.core.limits import CountResources, Limits, blocked_groups
from dagster_amoro.core.looks import Look
from dagster_amoro.core.model import Incident, ScaleUp, ScaleUpState, State
from dagster_amoro.core.pauses import Pause, Pauses
from dagster_amoro.core.policy import ON_ITS_WAY, Backoff, RestartPolicy, Verdict, due_at
from dagster_amoro.healing.losses import Ended

_NAMED: Final = 10  # resources that a message names; more are counted
_SHORTEST_SILENCE: Final = timedelta(minutes=1)  # the daemon itself needs some seconds
_LONGEST_ERROR: Final = 200  # characters that a message quotes
_ANSWER: Final = 16  # hexadecimal digits that tell one answer from another
_MOST_DOUBLINGS: Final = 64  # of a pause; more would be longer than any cap
_LOST: Final = {  # states of a resource that needs a person, and what they are called
    State.EXHAUSTED: "given up and removed",
    State.KEPT: "out of attempts and kept",
}
_WARN: Final = dg.AssetCheckSeverity.WARN


class Finding(NamedTuple):
    """What one check found, in the words of `dagster.AssetCheckResult`."""

    passed: bool
    description: str  # which resources, and what is to be done
    metadata: Mapping[str, float] = {}  # plotted over time
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR
    about: frozenset[str] = frozenset()  # all that it names, without ages, numbers and errors

    @property
    def answer(self) -> str:
        """What it comes to: the same as before as long as nobody has to hear of it again."""
        parts = [self.passed, self.severity.value, sorted(self.about)]
        return sha256(json.dumps(parts).encode()).hexdigest()[:_ANSWER]


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockedRestarts:
    """What is not restarted now although it is time; nothing of it is paused."""

    limited: Mapping[str, str]  # why the limits hold a group back, by its name
    held: Sequence[Incident]  # the orphans that the limits hold back
    failed: Sequence[Incident]  # orphans whose last start failed, the newest first
    stopped: Sequence[ScaleUp]  # the last rounds of groups whose scale-ups did not help
    pauses: Sequence[Pause]  # those that hold: what is paused is not blocked


def given_up(lost: Iterable[Ended]) -> Finding:
    """Whether nothing was given up, or kept without attempts left, that nobody has seen to yet."""
    found = [*lost]
    by_state = {state: [each for each in found if each.state is state] for state in _LOST}
    message = "nothing was given up that nobody has seen to"
    if found:
        each = "; ".join(
            f"{counted(len(ends), 'resource')} {_LOST[state]}: {_names(ends)}"
            for state, ends in by_state.items()
            if ends
        )
        message = f"{each}. Find out why, then restore each, or acknowledge it"
    numbers = {
        "given up": len(by_state[State.EXHAUSTED]),
        "kept": len(by_state[State.KEPT]),
    }
    about = frozenset(f"{e.resource_id} {e.closed_at.timestamp()}" for e in found)
    return Finding(not found, message, numbers, about=about)


def overdue(
    incidents: Sequence[Incident], policy: RestartPolicy, now: datetime, pauses: Pauses
) -> Finding:
    """Whether an open incident lasts longer than all its attempts take, and nobody meant it to."""
    allowed = _all_attempts(policy)
    late = [
        i
        for i in incidents
        if now - i.detected_at > allowed
        and now > due_at(i, policy)  # its starts may take long
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
    numbers = {"overdue": len(late), messages.OPEN_INCIDENTS: len(incidents)}
    return Finding(not late, message, numbers, about=frozenset(i.resource_id for i in late))


def unblocked(found: BlockedRestarts) -> Finding:
    """Whether nothing is blocked that would be restarted otherwise."""
    reasons = list(_reasons(found))
    message = "; ".join(reasons) or "no restart is refused"
    if found.pauses:
        message += f"; paused, which is no refusal: {_names(found.pauses)}"
    numbers = {
        messages.REFUSED: len({i.incident_id for i in (*found.held, *found.failed)}),
        "groups not scaled up": len(found.stopped),
        messages.PAUSED: len(found.pauses),
    }
    return Finding(not reasons, message, numbers, about=_blocked(found))


def restarts(ended: Iterable[Ended], least: float) -> Finding:
    """Whether enough of what was restarted within the day came back: at least this share."""
    tried = [e for e in ended if e.attempts and (e.state is State.RECOVERED or e.state in _LOST)]
    failed = [e for e in tried if e.state in _LOST]
    if not tried:
        return Finding(not failed, "nothing was restarted within a day", severity=_WARN)
    share = 1 - len(failed) / len(tried)
    message = f"{share:.0%} of {counted(len(tried), 'restarted resource')} came back within a day"
    if share < least:
        message += f", fewer than {least:.0%}; not {_names(e.resource_id for e in failed)}"
    about = frozenset(e.resource_id for e in failed) if share < least else frozenset[str]()
    return Finding(share >= least, message, {"success": share}, _WARN, about)


def flapping(begun: Mapping[str, int], most: int) -> Finding:
    """Whether a resource was orphaned `most` times within the day; `begun` counts for each."""
    found = sorted(((n, r) for r, n in begun.items() if n >= most), reverse=True)
    message = f"no resource was orphaned {most} times within a day"
    if found:
        names = _names(f"{resource} ({number} times)" for number, resource in found)
        resources = counted(len(found), "resource")
        message = f"{resources} orphaned again and again within a day: {names}"
    about = frozenset(resource for _, resource in found)
    return Finding(not found, message, {"flapping": len(found)}, _WARN, about)


def below_min_parallelism(min_parallelisms: Mapping[str, int], live: Mapping[str, int]) -> Finding:
    """Whether a group has fewer live threads than its min-parallelism; both by group."""
    short = {name: least for name, least in min_parallelisms.items() if live.get(name, 0) < least}
    message = f"{counted(len(min_parallelisms), 'group')} with a min-parallelism, none below it"
    if short:
        names = _names(
            f"{name} ({live.get(name, 0)} of {least} threads)" for name, least in short.items()
        )
        message = f"{counted(len(short), 'group')} below min-parallelism: {names}"
    return Finding(not short, message, {"groups below": len(short)}, about=frozenset(short))


def doubled(looks: Iterable[Look]) -> Finding:
    """Whether a group has more threads than it must have, since it was refilled and healed."""
    found = [each for each in looks if each.surplus]
    message = "no group was refilled by AMS and healed as well"
    if found:
        names = _names(f"{each.group_name} ({counted(each.surplus, 'thread')})" for each in found)
        groups = counted(len(found), "group")
        message = f"{groups} above min-parallelism since AMS refilled what came back: {names}"
    about = frozenset(each.group_name for each in found)
    return Finding(not found, message, {"groups above": len(found)}, _WARN, about)


def freshness(
    ticks: Sequence[tuple[datetime, str]],
    interval: timedelta,
    now: datetime,
    sensor: str = "orphan_sensor",
) -> Finding:
    """Whether a survey was completed within three check intervals, here or by whoever acts.

    Each tick of the sensor, the newest first, says why it completed no survey; empty: it did.
    """
    allowed = max(3 * interval, _SHORTEST_SILENCE)
    last = next((t for t in ticks if not t[1] or t[1].startswith(messages.WATCHING)), None)
    age = None if last is None else now - last[0]
    in_vain = len(list(takewhile(lambda tick: tick[1].startswith(messages.ABSTAINED), ticks)))
    if age is None or age > allowed:
        message = _silence(ticks, allowed, now, age, sensor)
    elif last and last[1]:
        message = f"on standby, {duration(age)} ago: {last[1]}"
    else:
        message = f"the last survey is {duration(age)} old"
    message += f" ({counted(in_vain, 'abstention')} in a row)" if in_vain else ""
    numbers: dict[str, float] = {} if age is None else {messages.AGE: age.total_seconds()}
    is_fresh = age is not None and age <= allowed
    return Finding(is_fresh, message, {**numbers, messages.ABSTENTIONS: in_vain})


def blocked_restarts(
    verdicts: Sequence[tuple[Incident, Verdict]],
    scale_ups: Iterable[ScaleUp],
    pauses: Pauses,
    limits: Limits,
    count: CountResources,
) -> BlockedRestarts:
    """Sorts out which restarts are blocked, as a tick would decide on them.

    The verdicts are those on all open incidents, the scale-ups the last rounds of the groups that
    are scaled up; `count` is asked only if there is a limit.
    """
    due = [
        i
        for i, verdict in verdicts
        if verdict is Verdict.RESTART and i.state is State.WAITING and not i.operator_request
    ]
    orphans = (i.group_name for i, _ in verdicts)
    limited = blocked_groups({i.group_name for i in due}, orphans, count, limits)
    failed = [
        i
        for i, verdict in verdicts
        if i.last_error is not None and i.state in ON_ITS_WAY and verdict is not Verdict.HOLD
    ]
    stopped = [s for s in scale_ups if s.state is ScaleUpState.STOPPED]
    return BlockedRestarts(
        limited=limited,
        held=[i for i in due if i.group_name in limited],
        failed=sorted(failed, key=lambda i: i.attempted_at or i.detected_at, reverse=True),
        stopped=[s for s in stopped if not pauses.of_group(s.group_name)],
        pauses=list(pauses.holding.values()),
    )


def _silence(
    ticks: Sequence[tuple[datetime, str]],
    allowed: timedelta,
    now: datetime,
    age: timedelta | None,
    sensor: str,
) -> str:
    """For how long no survey was completed, and why, as far as a new tick says it."""
    since = "in its newest ticks" if age is None else f"for {duration(age)}"
    reason = "it has no newer tick; is the sensor running, and the daemon?"
    if ticks and now - ticks[0][0] <= allowed:
        reason = ticks[0][1]
    return f"{sensor} completed no survey {since}, allowed are {duration(allowed)}: {reason}"


def _all_attempts(policy: RestartPolicy) -> timedelta:
    """How long an orphan is open at most if all its attempts are made in time."""
    pauses = policy.max_retries + 1
    if policy.backoff is Backoff.CONSTANT:
        return policy.grace_period * pauses
    grace, cap = policy.grace_period.total_seconds(), policy.backoff_cap.total_seconds()
    growing = (min(grace * 2.0 ** min(n, _MOST_DOUBLINGS), cap) for n in range(pauses))
    return timedelta(seconds=sum(growing) * (1 + policy.backoff_jitter))


def _reasons(found: BlockedRestarts) -> Iterator[str]:
    if found.limited:
        groups = [
            f"{name or '(no group)'} ({reason})" for name, reason in sorted(found.limited.items())
        ]
        yield f"the limits hold {counted(len(found.held), 'orphan')} back: {_names(groups)}"
    if found.failed:
        names = _names(incident.resource_id for incident in found.failed)
        starts = f"the last start of {counted(len(found.failed), 'orphan')} failed"
        yield f"{starts}: {names}{_newest_error(found.failed[0].last_error)}"
    if found.stopped:
        groups = [
            f"{each.group_name or '(no group)'} (below {counted(each.min_parallelism, 'thread')} "
            f"after {counted(each.rounds, 'round')}{_newest_error(each.last_error)})"
            for each in found.stopped
        ]
        yield f"{counted(len(groups), 'group')} could not be scaled up: {_names(groups)}"


def _blocked(found: BlockedRestarts) -> frozenset[str]:
    """Each thing that is not restarted now, with why in a word."""
    return frozenset(
        [
            *(f"limited {name}" for name in found.limited),
            *(f"failed {incident.resource_id}" for incident in found.failed),
            *(f"stopped {each.group_name}" for each in found.stopped),
            *(f"paused {pause.target}" for pause in found.pauses),
        ]
    )


def _newest_error(error: str | None) -> str:
    return f"; newest error: {shorten(error, _LONGEST_ERROR)}" if error else ""


def _names(things: Iterable[object]) -> str:
    every = list(things)
    more = f" and {len(every) - _NAMED} more" if len(every) > _NAMED else ""
    return ", ".join(map(str, every[:_NAMED])) + more
