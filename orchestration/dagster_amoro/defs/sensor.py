"""The sensor `orphan_sensor`: a tick every check interval, and its account for the UI."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from datetime import datetime

import dagster as dg

from dagster_amoro.asset_keys import EVENTS, GROUPS, group_name, partition_key
from dagster_amoro.core.errors import KeeperError, describe
from dagster_amoro.core.messages import ABSTAINED, WATCHING
from dagster_amoro.core.model import EventKind
from dagster_amoro.core.policy import RunState
from dagster_amoro.core.tick_plan import RunPlan
from dagster_amoro.defs.cursor import Cursor, dump_cursor, parse_cursor
from dagster_amoro.defs.metrics import Numbers, news, of_abstention, of_standby, of_tick
from dagster_amoro.defs.restart_job import CLAIM_OP
from dagster_amoro.defs.scale_up_job import TAKE_OP
from dagster_amoro.healing.preconditions import StandbyError, UncertainStateError
from dagster_amoro.healing.scaling import ScaleUpRun
from dagster_amoro.healing.tick import Ticker, TickResult
from dagster_amoro.stores.ledger import Ledger

RUN_KEY_TAG = "dagster/run_key"
# What the asset event of a group counts, and the kind of event that it is.
_REPORTED = {
    "detected": EventKind.DETECTED,
    "attempts": EventKind.ATTEMPT,
    "recovered": EventKind.RECOVERED,
    "exhausted": EventKind.EXHAUSTED,
    "released": EventKind.RELEASED,
    "superseded": EventKind.SUPERSEDED,
    "kept": EventKind.KEPT,
}
_QUEUED = {dg.DagsterRunStatus.QUEUED}
_ENDED = {
    dg.DagsterRunStatus.SUCCESS,
    dg.DagsterRunStatus.FAILURE,
    dg.DagsterRunStatus.CANCELED,
}
_WHERE_ENABLED = {True: dg.DefaultSensorStatus.RUNNING, False: dg.DefaultSensorStatus.STOPPED}
_DESCRIPTION = (
    "Looks for orphans: resources that no optimizer stands for. Records when they are "
    "found and how they end, and requests a run of restart_orphans for those whose grace "
    "period is over. If a store or AMS does not answer, it does nothing and says so. "
    "In standalone mode it also requests a run of scale_up_groups for groups below "
    "their min-parallelism."
)


def build_orphan_sensor(
    ticker: Ticker, restarting: dg.JobDefinition, scaling_up: dg.JobDefinition
) -> dg.SensorDefinition:
    """The sensor that finds orphans and requests runs for those that are due.

    Args:
        ticker: Does the work of a tick.
        restarting: The job that restarts orphans.
        scaling_up: The job that brings groups up to their min-parallelism.
    """
    policy, interval = ticker.reader.policy, ticker.reader.settings.check_interval
    ledger, clock = ticker.reader.ledger, ticker.preconditions.clock

    @dg.sensor(
        name="orphan_sensor",
        jobs=[restarting, scaling_up],
        minimum_interval_seconds=int(interval.total_seconds()),
        default_status=_WHERE_ENABLED[policy.enabled],
        description=_DESCRIPTION,
        metadata={
            "auto-restart-enabled": policy.enabled,
            "auto-restart-max-retries": policy.max_retries,
            "auto-restart-grace-period": str(policy.grace_period),
            "check interval": str(interval),
        },
    )
    def orphan_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        known = set(context.instance.get_dynamic_partitions(GROUPS.name or ""))
        cursor = parse_cursor(context.cursor)
        try:
            done = ticker.tick(
                lambda owners: run_states(context.instance, owners),
                cursor.detector,
                last_served_group=cursor.last_served_group,
                instance=_identity(context.instance),
            )
        except StandbyError as standby:
            numbers, following = of_standby(cursor, clock())
            return _idle(f"{WATCHING}: {standby}.", numbers, following)
        except KeeperError as error:
            return _abstention(error, cursor, clock())
        if done.dispatches or done.scale_ups:
            context.log.info(done.summary)
        since = _news(ledger, cursor)
        following = Cursor(
            event=since.newest,
            detector=done.detector,
            last_served_group=done.plan.last_served_group,
            completed_at=clock(),
            reported=of_tick(done, ticker.preconditions.deployment),
        )
        message = news(following.reported, cursor.reported, done.summary)
        return _result(done, known, since.events, message, following)

    return orphan_sensor


@dataclass(frozen=True, slots=True)
class _News:
    """What went on in the ledger since the last tick that could tell."""

    events: Mapping[str, Mapping[str, int]]  # new ones by group, then by kind
    newest: int  # the last of them, or of those before


def _news(ledger: Ledger, cursor: Cursor) -> _News:
    """The news; none if the ledger is away by now, since dispatched runs must be requested."""
    try:
        return _News(*ledger.changed_groups(cursor.event))
    except KeeperError:
        return _News({}, cursor.event)  # the next tick tells it


def _abstention(error: KeeperError, cursor: Cursor, now: datetime) -> dg.SensorResult:
    if isinstance(error, UncertainStateError):
        cursor = replace(cursor, detector=error.detector)
    numbers, following = of_abstention(cursor, now)
    return _idle(f"{ABSTAINED}, nothing was changed: {describe(error)}", numbers, following)


def _idle(reason: str, numbers: Numbers, following: Cursor) -> dg.SensorResult:
    """The result of a tick that did nothing, and says so."""
    return dg.SensorResult(
        skip_reason=reason,
        cursor=dump_cursor(replace(following, reported=numbers)),
        asset_events=news(numbers, following.reported, reason),
    )


def run_states(instance: dg.DagsterInstance, owners: Sequence[str]) -> Mapping[str, RunState]:
    """What Dagster knows of the runs that have claims, by run id or by run key.

    A run that Dagster does not know, because it was deleted or belongs to another deployment, is
    left out; its claim holds until it lapses.
    """
    by_id = instance.get_runs(dg.RunsFilter(run_ids=list(owners)))
    by_key = instance.get_runs(dg.RunsFilter(tags={RUN_KEY_TAG: list(owners)}))
    states = {run.run_id: _state(run.status) for run in by_id}
    # A run that was executed again can carry the key too; the one that still lives counts.
    by_liveness = sorted(by_key, key=lambda run: _state(run.status) is not RunState.ENDED)
    return states | {run.tags[RUN_KEY_TAG]: _state(run.status) for run in by_liveness}


def _identity(instance: dg.DagsterInstance) -> str:
    """What tells this Dagster deployment from others: the number of its storage, if it has one."""
    ask = getattr(instance.run_storage, "get_run_storage_id", None)
    return str(ask()) if callable(ask) else ""


def _state(status: dg.DagsterRunStatus) -> RunState:
    if status in _QUEUED:
        return RunState.QUEUED
    return RunState.ENDED if status in _ENDED else RunState.ACTIVE


def _result(
    done: TickResult,
    known: AbstractSet[str],
    happened: Mapping[str, Mapping[str, int]],
    message: Sequence[dg.AssetObservation],
    following: Cursor,
) -> dg.SensorResult:
    new = sorted({partition_key(group) for group in {*done.snapshot.groups, *happened}} - known)
    events = {**{group_name(key): {} for key in new}, **happened}
    requests = [_request(run) for run in done.dispatches]
    requests += [_scale_up_request(done.scale_ups)] if done.scale_ups else []
    return dg.SensorResult(
        run_requests=requests,
        skip_reason=None if requests else done.summary,
        cursor=dump_cursor(following),
        dynamic_partitions_requests=[GROUPS.build_add_request(new)] if new else [],
        asset_events=[*(_report(group, kinds) for group, kinds in events.items()), *message],
    )


def _report(group: str, kinds: Mapping[str, int]) -> dg.AssetMaterialization:
    """What happened in a group; numbers that are zero too, so that the UI can plot them."""
    counts = {name: kinds.get(kind, 0) for name, kind in _REPORTED.items()}
    return dg.AssetMaterialization(
        EVENTS,
        partition=partition_key(group),
        metadata={"new events": sum(kinds.values()), **counts},
    )


def _request(run: RunPlan) -> dg.RunRequest:
    tags = {"amoro/group": run.group_name, "amoro/orphans": str(len(run.incidents))}
    if len(run.incidents) == 1:
        tags["amoro/resource"] = run.incidents[0].resource_id
    return dg.RunRequest(
        job_name="restart_orphans",
        run_key=run.run_key,
        run_config={"ops": {CLAIM_OP: {"config": {"dispatch": run.run_key}}}},
        tags=tags,
    )


def _scale_up_request(run: ScaleUpRun) -> dg.RunRequest:
    tags = {"amoro/groups": str(len(run.scale_ups))}
    if len(run.scale_ups) == 1:
        tags["amoro/group"] = run.scale_ups[0].group_name
    return dg.RunRequest(
        job_name="scale_up_groups",
        run_key=run.run_key,
        run_config={"ops": {TAKE_OP: {"config": {"dispatch": run.run_key}}}},
        tags=tags,
    )
