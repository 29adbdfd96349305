"""Is there anything that a person should look at? Checks, for alerts and for the UI."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, Final

import dagster as dg
import sqlalchemy as sa

from assets.automation import whenever
from assets.names import HISTORY
from orchestration.config import AuditSettings
from orchestration.keeper import Keeper
from orchestration.keeping.groups import floor
from orchestration.keeping.model import Incident, State
from orchestration.keeping.policy import RestartPolicy
from orchestration.keeping.summary import ABSTAINED
from orchestration.keeping.wording import clock_time, counted, duration
from orchestration.stores.schema import incident

SENSOR: Final = "orphan_sensor"
_MARK: Final = "newest end in s since 1970"  # metadata by which the next check goes on
_DAY: Final = timedelta(days=1)
_NAMED: Final = 10  # resources that a message names; more are counted
_SHORTEST_SILENCE: Final = timedelta(minutes=1)  # the daemon itself needs some seconds
_TICKS: Final = 100  # newest ones that are looked through for one that counts
_RUNS: Final = 10  # newest ones of a check that are looked through for one that was made
_ASKED_EVERY: Final = "*/15 * * * *"  # what does not change the history is seen within so long


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What one check found."""

    passed: bool
    told: str  # which resources, and what is to be done
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.WARN
    numbers: Mapping[str, Any] | None = None  # metadata, to be plotted over time


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """An incident that is over, as far as checks need it."""

    resource_id: str
    group_name: str
    state: State
    attempts: int
    closed_at: datetime


_DESCRIPTIONS: Final = {
    "nothing_given_up": "Fails when a resource was given up since this check ran last (the first "
    "time: within a day). Its row is kept in the ledger; find out why it could not be started.",
    "no_incident_overdue": "Fails when an orphan is open for longer than all its attempts take: "
    "grace period x (max-retries + 1). A run may hang, or nobody may restart it.",
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
        ended = cache(lambda: _ended(keeper, now))  # two checks look at it
        looks: dict[str, Callable[[], Finding]] = {
            "nothing_given_up": lambda: given_up(
                ended(), _mark(context.instance, "nothing_given_up")
            ),
            "no_incident_overdue": lambda: overdue(
                keeper.ledger.open_incidents(), keeper.policy, now
            ),
            "restarts_succeed": lambda: restarts(ended(), audit.least_success),
            "no_resource_flaps": lambda: flapping(_begun(keeper, now), audit.flapping),
            "groups_at_their_floor": lambda: below_floor(*_groups(keeper)),
            "survey_is_fresh": lambda: freshness(
                _ticks(context.instance), keeper.check_interval, now
            ),
        }
        for key in context.selected_asset_check_keys:
            yield _result(key.name, looks[key.name]())

    return audit_checks


def given_up(ended: Sequence[Ended], mark: float) -> Finding:
    """Whether something was given up after `mark`, the newest end that was told before.

    By the time of its end: an incident can end after one that began later. In s since 1970.
    """
    lost = [e for e in ended if e.state is State.EXHAUSTED]
    new = [e for e in lost if e.closed_at.timestamp() > mark]
    told = "nothing was given up since the last check"
    if lost:
        told += f"; within a day {_names(_of_group(e) for e in lost)}"
    if new:
        told = (
            f"{counted(len(new), 'resource')} given up and removed: "
            f"{_names(map(_of_group, new))}. "
            "The rows are kept in the ledger; the failed runs of restart_orphans say what was tried"
        )
    return Finding(
        passed=not new,
        told=told,
        severity=dg.AssetCheckSeverity.ERROR,
        numbers={
            "given up": len(new),
            _MARK: max([mark, *(e.closed_at.timestamp() for e in lost)]),
        },
    )


def overdue(incidents: Iterable[Incident], policy: RestartPolicy, now: datetime) -> Finding:
    """Whether an incident is open for longer than all its attempts take."""
    allowed = policy.grace_period * (policy.max_retries + 1)
    late = [i for i in incidents if now - i.detected_at > allowed and policy.enabled]
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
        told=told,
        severity=dg.AssetCheckSeverity.ERROR,
        numbers={"overdue": len(late)},
    )


def restarts(ended: Sequence[Ended], least: float) -> Finding:
    """Whether enough of what was restarted within the day came back."""
    tried = [e for e in ended if e.attempts and e.state in {State.RECOVERED, State.EXHAUSTED}]
    failed = [e for e in tried if e.state is State.EXHAUSTED]
    if not tried:
        return Finding(passed=True, told="nothing was restarted within a day")
    share = 1 - len(failed) / len(tried)
    told = f"{share:.0%} of {counted(len(tried), 'restarted resource')} came back within a day"
    if share < least:
        told += f", fewer than {least:.0%}; not {_names(e.resource_id for e in failed)}"
    return Finding(passed=share >= least, told=told, numbers={"success": share})


def flapping(begun: Mapping[str, int], most: int) -> Finding:
    """Whether a resource was orphaned `most` times within the day."""
    found = sorted(((n, r) for r, n in begun.items() if n >= most), reverse=True)
    told = f"no resource was orphaned {most} times within a day"
    if found:
        names = _names(f"{resource} ({number} times)" for number, resource in found)
        told = f"{counted(len(found), 'resource')} orphaned again and again within a day: {names}"
    return Finding(passed=not found, told=told, numbers={"flapping": len(found)})


def below_floor(floors: Mapping[str, int], live: Mapping[str, int]) -> Finding:
    """Whether a group has fewer live threads than its min-parallelism."""
    short = {name: least for name, least in floors.items() if live.get(name, 0) < least}
    told = f"{counted(len(floors), 'group')} with a min-parallelism, none below it"
    if short:
        names = _names(
            f"{name} ({live.get(name, 0)} of {least} threads)" for name, least in short.items()
        )
        told = f"{counted(len(short), 'group')} below min-parallelism: {names}"
    return Finding(
        passed=not short,
        told=told,
        severity=dg.AssetCheckSeverity.ERROR,
        numbers={"groups below": len(short)},
    )


def freshness(ticks: Sequence[tuple[datetime, str]], interval: timedelta, now: datetime) -> Finding:
    """Whether a survey was completed within three check intervals.

    Args:
        ticks: Of the sensor, the newest first: when, and what came of it; empty: it looked.
        interval: Between two of them.
        now: Aware UTC.
    """
    allowed = max(3 * interval, _SHORTEST_SILENCE)
    last = next((at for at, problem in ticks if not problem), None)
    age = None if last is None else now - last
    passed = age is not None and age <= allowed
    told = f"the last survey is {duration(age or timedelta())} old"
    if not passed:
        since = f"for {duration(age)}" if age is not None else "in its newest ticks"
        why = ticks[0][1] if ticks else ""
        told = (
            f"{SENSOR} completed no survey {since}, allowed are {duration(allowed)}: "
            f"{why or 'it has no newer tick; is the sensor running, and the daemon?'}"
        )
    numbers = {} if age is None else {"seconds since the last survey": age.total_seconds()}
    return Finding(passed=passed, told=told, severity=dg.AssetCheckSeverity.ERROR, numbers=numbers)


def _result(name: str, finding: Finding) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        passed=finding.passed,
        check_name=name,
        asset_key=HISTORY,
        severity=finding.severity,
        description=finding.told,
        metadata=dict(finding.numbers or {}),
    )


def _of_group(ended: Ended) -> str:
    return f"{ended.resource_id} (group {ended.group_name})"


def _names(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - _NAMED} more" if len(every) > _NAMED else ""
    return ", ".join(every[:_NAMED]) + more


def _ended(keeper: Keeper, now: datetime) -> list[Ended]:
    """The incidents that ended within a day."""
    columns = (
        incident.c.resource_id,
        incident.c.group_name,
        incident.c.state,
        incident.c.attempts,
        incident.c.closed_at,
    )
    query = sa.select(*columns).where(incident.c.closed_at > now - _DAY)
    with keeper.ledger.reading() as connection:
        return [Ended(**row) for row in connection.execute(query).mappings()]


def _begun(keeper: Keeper, now: datetime) -> dict[str, int]:
    """How often each resource was orphaned within a day."""
    number = sa.func.count()
    query = (
        sa.select(incident.c.resource_id, number)
        .where(incident.c.detected_at > now - _DAY)
        .group_by(incident.c.resource_id)
    )
    with keeper.ledger.reading() as connection:
        return {row[0]: row[1] for row in connection.execute(query)}


def _groups(keeper: Keeper) -> tuple[dict[str, int], dict[str, int]]:
    """The floors of the groups that have one, and their live threads."""
    groups = keeper.registry.sized_groups()
    floors = {name: threads for name, group in groups.items() if (threads := floor(group))}
    capacity = keeper.registry.capacity(floors) if floors else {}
    return floors, {name: live for name, (_, live) in capacity.items()}


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
    """The newest ticks of the sensor, and what was wrong with each."""
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
    return reason if reason.startswith(ABSTAINED) else ""
