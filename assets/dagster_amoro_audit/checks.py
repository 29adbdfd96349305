"""The checks of the audit: what they look at, and when Dagster makes them."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, Final

import dagster as dg
import sqlalchemy as sa

from dagster_amoro.asset_keys import HISTORY
from dagster_amoro.config import AuditSettings
from dagster_amoro.core.clock import Clock
from dagster_amoro.core.groups import min_parallelism
from dagster_amoro.core.limits import Limits
from dagster_amoro.core.messages import ABSTAINED, WATCHING
from dagster_amoro.core.model import EventKind, Incident, State
from dagster_amoro.core.pauses import Pauses
from dagster_amoro.core.policy import RestartPolicy, Verdict, decide
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro.stores.registry import Registry
from dagster_amoro.stores.schema import event, incident
from dagster_amoro_audit import findings
from dagster_amoro_audit.automation import whenever
from dagster_amoro_audit.findings import NEWEST_END, SENSOR, Ended, Finding, blocked_restarts

_DAY: Final = timedelta(days=1)
_TICKS: Final = 100  # newest ones that are looked through for one that counts
_RUNS: Final = 10  # newest ones of a check that are looked through for one that was made
_WHEN: Final = whenever(
    # What does not change the history is seen within 15 minutes.
    dg.AutomationCondition.any_deps_updated()
    | dg.AutomationCondition.cron_tick_passed("*/15 * * * *"),
    "a group's history went on, or 15 minutes are over",
)
_DESCRIPTIONS: Final = {
    "nothing_given_up": "Fails when a resource was given up, or kept without attempts left, since "
    "this check ran last (the first time: within a day). Its row is kept, in the ledger or in the "
    "registry; find out why it could not be started.",
    "no_incident_overdue": "Fails when an orphan is open for longer than all its attempts take: "
    "grace period x (max-retries + 1), or more with exponential backoff. A run may hang, or nobody "
    "may restart it. What is paused, or kept without attempts left, is not counted.",
    "restarts_are_not_refused": "Fails when restarts are refused: by a limit "
    "(keeper.max-orphaned-fraction), by a container whose last start failed, or because a group "
    "was not scaled up in max-keeping-attempts rounds. Pauses are named, and are no refusal.",
    "restarts_succeed": "Warns when fewer restarted resources of the last day came back than "
    "keeper.alert-restart-success. Look at their last errors.",
    "no_resource_flaps": "Warns when a resource was orphaned keeper.alert-flapping times within a "
    "day: it comes back and dies again.",
    "groups_at_min_parallelism": "Fails when the live threads of a group are fewer than its "
    "min-parallelism.",
    "survey_is_fresh": "Fails when orphan_sensor is stopped, failing or abstaining for longer than "
    "three check intervals: then nobody looks after the fleet.",
}


def build_checks(  # noqa: PLR0913 - a fleet, and what is asked of it
    ledger: Ledger,
    registry: Registry,
    *,
    policy: RestartPolicy,
    limits: Limits,
    check_interval: timedelta,
    clock: Clock,
    alerts: AuditSettings,
    scales_up: bool,
) -> dg.AssetChecksDefinition:
    """All checks, which one run makes together: when the history went on, and every 15 minutes."""
    specs = [
        dg.AssetCheckSpec(name, asset=HISTORY, description=description, automation_condition=_WHEN)
        for name, description in _DESCRIPTIONS.items()
    ]

    @dg.multi_asset_check(
        name="audit_checks",
        specs=specs,
        can_subset=True,
        description="Looks for what a person should look at.",
    )
    def audit_checks(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        now, instance = clock(), context.instance
        # More than one check looks at these.
        ended = cache(lambda: _ended(ledger, now))
        opened = cache(ledger.open_incidents)
        pauses = cache(lambda: Pauses(ledger.pauses(), now))

        def unblocked() -> Finding:
            verdicts = [(each, _verdict(each, policy, pauses(), now)) for each in opened()]
            rounds = ledger.scale_ups().values() if scales_up else ()
            counts = registry.resource_counts
            return findings.unblocked(blocked_restarts(verdicts, rounds, pauses(), limits, counts))

        looks: dict[str, Callable[[], Finding]] = {
            # First: it asks Dagster alone, and its result counts though the stores are away.
            "survey_is_fresh": lambda: findings.freshness(_ticks(instance), check_interval, now),
            "nothing_given_up": lambda: findings.given_up(ended(), _mark(instance)),
            "no_incident_overdue": lambda: findings.overdue(opened(), policy, now, pauses()),
            "restarts_are_not_refused": unblocked,
            "restarts_succeed": lambda: findings.restarts(ended(), alerts.least_success),
            "no_resource_flaps": lambda: findings.flapping(_begun(ledger, now), alerts.flapping),
            "groups_at_min_parallelism": lambda: findings.below_min_parallelism(*_groups(registry)),
        }
        selected = {key.name for key in context.selected_asset_check_keys}
        for name, look in looks.items():
            if name in selected:
                finding = look()._asdict()
                yield dg.AssetCheckResult(check_name=name, asset_key=HISTORY, **finding)

    return audit_checks


def _verdict(found: Incident, policy: RestartPolicy, pauses: Pauses, now: datetime) -> Verdict:
    """What a tick would do about an open incident."""
    pause = pauses.of(found.resource_id, found.group_name)
    paused = str(pause) if pause else None
    return decide(
        found, obstacle=None, policy=policy, claimed=False, now=now, paused=paused
    ).verdict


def _ended(ledger: Ledger, now: datetime) -> list[Ended]:
    """The incidents that ended within a day, or are kept since then; none of a dry run."""
    columns = incident.c["resource_id", "group_name", "state", "attempts"]
    ours = sa.select(*columns).where(incident.c.dry_run == 0)
    closed = ours.add_columns(incident.c.closed_at).where(incident.c.closed_at > now - _DAY)
    kept_at = sa.func.max(event.c.at)
    kept = (
        ours.add_columns(kept_at.label("closed_at"))
        .join(event, event.c.incident_id == incident.c.incident_id)
        .where(incident.c.open_resource_id.is_not(None), incident.c.state == State.KEPT)
        .where(event.c.kind == EventKind.KEPT)
        .group_by(*columns)
        .having(kept_at > now - _DAY)
    )
    with ledger.reading() as connection:
        return [Ended(**row) for q in (closed, kept) for row in connection.execute(q).mappings()]


def _begun(ledger: Ledger, now: datetime) -> dict[str, int]:
    """How often each resource was orphaned within a day; not as a dry run noted it."""
    query = (
        sa.select(incident.c.resource_id, sa.func.count())
        .where(incident.c.detected_at > now - _DAY, incident.c.dry_run == 0)
        .group_by(incident.c.resource_id)
    )
    with ledger.reading() as connection:
        return {row[0]: row[1] for row in connection.execute(query)}


def _groups(registry: Registry) -> tuple[dict[str, int], dict[str, int]]:
    """The min-parallelism of the groups that have one, and their live threads."""
    groups = registry.sized_groups()
    min_parallelisms = {
        name: threads for name, group in groups.items() if (threads := min_parallelism(group))
    }
    capacity = registry.capacity(min_parallelisms) if min_parallelisms else {}
    return min_parallelisms, {name: live for name, (_, live) in capacity.items()}


def _mark(instance: dg.DagsterInstance) -> float:
    """The newest end that `nothing_given_up` reported when it ran last; 0: it reported none."""
    key = dg.AssetCheckKey(HISTORY, "nothing_given_up")
    # Not the latest alone: that is the one which is being made.
    for record in instance.event_log_storage.get_asset_check_execution_history(key, limit=_RUNS):
        made = record.event and record.event.dagster_event
        if made and made.event_type_value == "ASSET_CHECK_EVALUATION":
            found = made.asset_check_evaluation_data.metadata.get(NEWEST_END)
            return float(found.value) if found is not None else 0.0  # type: ignore[arg-type]
    return 0.0


def _ticks(instance: dg.DagsterInstance) -> list[tuple[datetime, str]]:
    """The newest ticks of the sensor, and why each completed no survey; empty: it did."""
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
