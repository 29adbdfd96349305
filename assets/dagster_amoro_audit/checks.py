"""Is there anything that a person should look at? Checks, for alerts and for the UI."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import takewhile
from typing import Any, Final

import dagster as dg
import sqlalchemy as sa

from dagster_amoro.asset_keys import HISTORY
from dagster_amoro.config import AuditSettings
from dagster_amoro.core.errors import shorten
from dagster_amoro.core.formatting import clock_time, counted, duration
from dagster_amoro.core.groups import min_parallelism
from dagster_amoro.core.messages import (
    ABSTAINED,
    ABSTENTIONS,
    AGE,
    OPEN_INCIDENTS,
    PAUSED,
    REFUSED,
    WATCHING,
)
from dagster_amoro.core.model import EventKind, Incident, State
from dagster_amoro.core.pauses import Pauses
from dagster_amoro.core.policy import Backoff, RestartPolicy
from dagster_amoro.core.scale_up import ScaleUp
from dagster_amoro.healing.keeper import Keeper
from dagster_amoro.stores.schema import event, incident
from dagster_amoro_audit.automation import whenever
from dagster_amoro_audit.blocked import Refusals, refused

SENSOR: Final = "orphan_sensor"
_MARK: Final = "newest end in s since 1970"  # metadata by which the next check goes on
_DAY: Final = timedelta(days=1)
_NAMED: Final = 10  # resources that a message names; more are counted
_SHORTEST_SILENCE: Final = timedelta(minutes=1)  # the daemon itself needs some seconds
_TICKS: Final = 100  # newest ones that are looked through for one that counts
_RUNS: Final = 10  # newest ones of a check that are looked through for one that was made
_LONGEST_ERROR: Final = 200  # characters that a message quotes
_LOST: Final = {  # what may be all that is left of a resource, and what it is called
    State.EXHAUSTED: "given up and removed",
    State.KEPT: "out of attempts and kept",
}
_SILENT: Final = "it has no newer tick; is the sensor running, and the daemon?"
_ASKED_EVERY: Final = "*/15 * * * *"  # what does not change the history is seen within so long


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What one check found."""

    passed: bool
    message: str  # which resources, and what is to be done
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.WARN
    numbers: Mapping[str, Any] | None = None  # metadata, to be plotted over time


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """An incident that is over, or kept without attempts left, as far as checks need it."""

    resource_id: str
    group_name: str
    state: State
    attempts: int
    closed_at: datetime  # of one that is kept: when its attempts were used up


_DESCRIPTIONS: Final = {
    "nothing_given_up": "Fails when a resource was given up, or kept without attempts left, since "
    "this check ran last (the first time: within a day). Its row is kept, in the ledger or in the "
    "registry; find out why it could not be started.",
    "no_incident_overdue": "Fails when an orphan is open for longer than all its attempts take: "
    "grace period x (max-retries + 1), or more with exponential backoff. A run may hang, or nobody "
    "may restart it. What is paused, or kept without attempts left, is not counted.",
    "restarts_are_not_refused": "Fails when restarts are refused: by a limit "
    "(keeper.max-orphaned-fraction), by a container whose last start failed, or because a group "
    "was not refilled in max-keeping-attempts rounds. What is paused is told, and no refusal.",
    "restarts_succeed": "Warns when fewer restarted resources of the last day came back than "
    "keeper.alert-restart-success. Look at their last errors.",
    "no_resource_flaps": "Warns when a resource was orphaned keeper.alert-flapping times within a "
    "day: it comes back and dies again.",
    "groups_at_their_floor": "Fails when the live threads of a group are fewer than its "
    "min-parallelism.",
    "survey_is_fresh": "Fails when orphan_sensor is stopped, failing or abstaining for longer than "
    "three check intervals: then nobody looks after the fleet.",
}


def build_checks(keeper: Keeper, audit: AuditSettings) -> dg.AssetChecksDefinition:
    """All checks, which one run makes together: when the history went on, and every 15 minutes."""
    specs = [
        dg.AssetCheckSpec(
            name,
            asset=HISTORY,
            description=description,
            automation_condition=whenever(
                dg.AutomationCondition.any_deps_updated()
                | dg.AutomationCondition.cron_tick_passed(_ASKED_EVERY),
                "a group's history went on, or 15 minutes are over",
            ),
        )
        for name, description in _DESCRIPTIONS.items()
    ]

    @dg.multi_asset_check(
        name="audit_checks",
        specs=specs,
        can_subset=True,
        description="Looks for what a person should look at.",
    )
    def audit_checks(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        now = keeper.clock()
        ended = cache(lambda: _ended(keeper, now))  # more than one check looks at these
        opened = cache(keeper.ledger.open_incidents)
        pauses = cache(lambda: Pauses(keeper.ledger.pauses(), now))
        looks: dict[str, Callable[[], Finding]] = {
            # First: it asks Dagster alone, and is told though the stores are away.
            "survey_is_fresh": lambda: freshness(
                _ticks(context.instance), keeper.check_interval, now
            ),
            "nothing_given_up": lambda: given_up(
                ended(), _mark(context.instance, "nothing_given_up")
            ),
            "no_incident_overdue": lambda: overdue(opened(), keeper.policy, now, pauses()),
            "restarts_are_not_refused": lambda: unrefused(refused(keeper, opened(), pauses(), now)),
            "restarts_succeed": lambda: restarts(ended(), audit.least_success),
            "no_resource_flaps": lambda: flapping(_begun(keeper, now), audit.flapping),
            "groups_at_their_floor": lambda: below_min_parallelism(*_groups(keeper)),
        }
        selected = {key.name for key in context.selected_asset_check_keys}
        for name, look in looks.items():
            if name in selected:
                yield _result(name, look())

    return audit_checks


def given_up(ended: Sequence[Ended], mark: float) -> Finding:
    """Whether something was given up or kept after `mark`, the newest end that was told before.

    By the time of its end: an incident can end after one that began later. In s since 1970.
    """
    lost = [e for e in ended if e.state in _LOST]
    new = [e for e in lost if e.closed_at.timestamp() > mark]
    told = "nothing was given up since the last check"
    if lost:
        told += f"; within a day {_names(_of_group(e) for e in lost)}"
    if new:
        each = (_lost(state, [e for e in new if e.state is state]) for state in _LOST)
        told = (
            f"{'; '.join(filter(None, each))}. Removed rows are kept in the ledger; "
            "the runs of restart_orphans say what was tried"
        )
    return Finding(
        passed=not new,
        message=told,
        severity=dg.AssetCheckSeverity.ERROR,
        numbers={
            "given up": sum(e.state is State.EXHAUSTED for e in new),
            "kept": sum(e.state is State.KEPT for e in new),
            _MARK: max([mark, *(e.closed_at.timestamp() for e in lost)]),
        },
    )


def overdue(
    incidents: Sequence[Incident],
    policy: RestartPolicy,
    now: datetime,
    pauses: Pauses,
) -> Finding:
    """Whether an incident is open for longer than all its attempts take, and nobody meant it."""
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
    told = f"no orphan is open for longer than {duration(allowed)}"
    if late:
        names = (
            f"{i.resource_id} (since {clock_time(i.detected_at)}, {i.note or i.state})"
            for i in late
        )
        told = (
            f"{counted(len(late), 'orphan')} open for longer than {duration(allowed)}: "
            f"{_names(names)}"
        )
    return Finding(
        passed=not late,
        message=told,
        severity=dg.AssetCheckSeverity.ERROR,
        numbers={"overdue": len(late), OPEN_INCIDENTS: len(incidents)},
    )


def unrefused(found: Refusals) -> Finding:
    """Whether nothing is refused that would be restarted otherwise."""
    blocked_groups = [*_held(found), *_failed(found.failed), *_stopped(found.stopped)]
    told = "; ".join(blocked_groups) or "no restart is refused"
    if found.pauses:
        told += f"; paused, which is no refusal: {_names(map(str, found.pauses))}"
    return Finding(
        passed=not blocked_groups,
        message=told,
        severity=dg.AssetCheckSeverity.ERROR,
        numbers={
            REFUSED: found.restarts,
            "groups not refilled": len(found.stopped),
            PAUSED: len(found.pauses),
        },
    )


def restarts(ended: Sequence[Ended], least: float) -> Finding:
    """Whether enough of what was restarted within the day came back."""
    tried = [e for e in ended if e.attempts and (e.state is State.RECOVERED or e.state in _LOST)]
    failed = [e for e in tried if e.state in _LOST]
    if not tried:
        return Finding(passed=True, message="nothing was restarted within a day")
    share = 1 - len(failed) / len(tried)
    told = f"{share:.0%} of {counted(len(tried), 'restarted resource')} came back within a day"
    if share < least:
        told += f", fewer than {least:.0%}; not {_names(e.resource_id for e in failed)}"
    return Finding(passed=share >= least, message=told, numbers={"success": share})


def flapping(begun: Mapping[str, int], most: int) -> Finding:
    """Whether a resource was orphaned `most` times within the day."""
    found = sorted(((n, r) for r, n in begun.items() if n >= most), reverse=True)
    told = f"no resource was orphaned {most} times within a day"
    if found:
        names = _names(f"{resource} ({number} times)" for number, resource in found)
        told = f"{counted(len(found), 'resource')} orphaned again and again within a day: {names}"
    return Finding(passed=not found, message=told, numbers={"flapping": len(found)})


def below_min_parallelism(min_parallelisms: Mapping[str, int], live: Mapping[str, int]) -> Finding:
    """Whether a group has fewer live threads than its min-parallelism."""
    short = {name: least for name, least in min_parallelisms.items() if live.get(name, 0) < least}
    told = f"{counted(len(min_parallelisms), 'group')} with a min-parallelism, none below it"
    if short:
        names = _names(
            f"{name} ({live.get(name, 0)} of {least} threads)" for name, least in short.items()
        )
        told = f"{counted(len(short), 'group')} below min-parallelism: {names}"
    return Finding(
        passed=not short,
        message=told,
        severity=dg.AssetCheckSeverity.ERROR,
        numbers={"groups below": len(short)},
    )


def freshness(ticks: Sequence[tuple[datetime, str]], interval: timedelta, now: datetime) -> Finding:
    """Whether a survey was completed within three check intervals, here or by whoever acts.

    Args:
        ticks: Of the sensor, the newest first: when, and what came of it; empty: it looked.
        interval: Between two of them.
        now: Aware UTC.
    """
    allowed = max(3 * interval, _SHORTEST_SILENCE)
    last = next((tick for tick in ticks if not tick[1] or tick[1].startswith(WATCHING)), None)
    age = None if last is None else now - last[0]
    in_vain = len(list(takewhile(lambda tick: tick[1].startswith(ABSTAINED), ticks)))
    passed = age is not None and age <= allowed
    told = f"the last survey is {duration(age or timedelta())} old"
    if passed and last and last[1]:
        told = f"on standby, {duration(age or timedelta())} ago: {last[1]}"
    if not passed:
        since = f"for {duration(age)}" if age is not None else "in its newest ticks"
        is_ticking = ticks and now - ticks[0][0] <= allowed
        told = (
            f"{SENSOR} completed no survey {since}, allowed are {duration(allowed)}: "
            f"{ticks[0][1] if is_ticking else _SILENT}"
        )
    told += f" ({counted(in_vain, 'abstention')} in a row)" if in_vain else ""
    numbers: dict[str, Any] = {} if age is None else {AGE: age.total_seconds()}
    return Finding(
        passed=passed,
        message=told,
        severity=dg.AssetCheckSeverity.ERROR,
        numbers=numbers | {ABSTENTIONS: in_vain},
    )


def _result(name: str, finding: Finding) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        passed=finding.passed,
        check_name=name,
        asset_key=HISTORY,
        severity=finding.severity,
        description=finding.message,
        metadata=dict(finding.numbers or {}),
    )


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


def _held(found: Refusals) -> Iterator[str]:
    groups = [f"{_group(name)} ({why})" for name, why in sorted(found.guarded.items())]
    if groups:
        yield f"the limits hold {counted(len(found.held), 'orphan')} back: {_names(groups)}"


def _failed(failed: Sequence[Incident]) -> Iterator[str]:
    if failed:
        names = _names(incident.resource_id for incident in failed)
        starts = f"the last start of {counted(len(failed), 'orphan')} failed"
        yield f"{starts}: {names}{_because(failed[0].last_error)}"


def _stopped(stopped: Sequence[ScaleUp]) -> Iterator[str]:
    groups = [
        f"{_group(each.group_name)} (below {counted(each.min_parallelism, 'thread')} after "
        f"{counted(each.rounds, 'round')}{_because(each.last_error)})"
        for each in stopped
    ]
    if groups:
        yield f"{counted(len(groups), 'group')} could not be refilled: {_names(groups)}"


def _because(error: str | None) -> str:
    return f"; newest error: {shorten(error, _LONGEST_ERROR)}" if error else ""


def _group(name: str) -> str:
    return name or "(no group)"


def _lost(state: State, lost: Sequence[Ended]) -> str:
    what = f"{counted(len(lost), 'resource')} {_LOST[state]}: {_names(map(_of_group, lost))}"
    return what if lost else ""


def _of_group(ended: Ended) -> str:
    return f"{ended.resource_id} (group {ended.group_name})"


def _names(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - _NAMED} more" if len(every) > _NAMED else ""
    return ", ".join(every[:_NAMED]) + more


def _ended(keeper: Keeper, now: datetime) -> list[Ended]:
    """The incidents that ended within a day, or are kept since then; none of a dry run."""
    columns = (
        incident.c.resource_id,
        incident.c.group_name,
        incident.c.state,
        incident.c.attempts,
    )
    closed = sa.select(*columns, incident.c.closed_at).where(
        incident.c.closed_at > now - _DAY, incident.c.dry_run == 0
    )
    kept_at = sa.func.max(event.c.at)
    kept = (
        sa.select(*columns, kept_at.label("closed_at"))
        .join(event, event.c.incident_id == incident.c.incident_id)
        .where(incident.c.open_resource_id.is_not(None), incident.c.state == State.KEPT)
        .where(incident.c.dry_run == 0, event.c.kind == EventKind.KEPT)
        .group_by(*columns)
        .having(kept_at > now - _DAY)
    )
    with keeper.ledger.reading() as connection:
        rows = [*connection.execute(closed).mappings(), *connection.execute(kept).mappings()]
    return [Ended(**row) for row in rows]


def _begun(keeper: Keeper, now: datetime) -> dict[str, int]:
    """How often each resource was orphaned within a day; not as a dry run noted it."""
    number = sa.func.count()
    query = (
        sa.select(incident.c.resource_id, number)
        .where(incident.c.detected_at > now - _DAY, incident.c.dry_run == 0)
        .group_by(incident.c.resource_id)
    )
    with keeper.ledger.reading() as connection:
        return {row[0]: row[1] for row in connection.execute(query)}


def _groups(keeper: Keeper) -> tuple[dict[str, int], dict[str, int]]:
    """The min-parallelism of the groups that have one, and their live threads."""
    groups = keeper.registry.sized_groups()
    min_parallelisms = {
        name: threads for name, group in groups.items() if (threads := min_parallelism(group))
    }
    capacity = keeper.registry.capacity(min_parallelisms) if min_parallelisms else {}
    return min_parallelisms, {name: live for name, (_, live) in capacity.items()}


def _mark(instance: dg.DagsterInstance, check: str) -> float:
    """The newest end that the check told when it ran last; 0: it told none."""
    key = dg.AssetCheckKey(HISTORY, check)
    # Not the latest alone: that is the one which is being made.
    for record in instance.event_log_storage.get_asset_check_execution_history(key, limit=_RUNS):
        made = record.event and record.event.dagster_event
        if made and made.event_type_value == "ASSET_CHECK_EVALUATION":
            found = made.asset_check_evaluation_data.metadata.get(_MARK)
            return float(found.value) if found is not None else 0.0  # type: ignore[arg-type]
    return 0.0


def _ticks(instance: dg.DagsterInstance) -> list[tuple[datetime, str]]:
    """The newest ticks of the sensor, and why each did not look; empty: it did."""
    if instance.schedule_storage is None:  # an instance of a test, or of a script
        return []
    found = [
        (datetime.fromtimestamp(tick.timestamp, UTC), _problem(tick))
        for state in instance.all_instigator_state()
        if state.instigator_name == SENSOR
        for tick in instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=_TICKS)
        if tick.status.value != "STARTED"
    ]
    return sorted(found, reverse=True)


def _problem(tick: Any) -> str:  # noqa: ANN401 - Dagster does not export the class
    if tick.status.value == "FAILURE":
        return f"its tick failed: {tick.error.message.strip() if tick.error else 'no reason given'}"
    reason = tick.skip_reason or ""
    return reason if reason.startswith((ABSTAINED, WATCHING)) else ""
