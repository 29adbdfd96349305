"""The sensor `orphan_sensor`: a tick every check interval, and its account for the UI."""

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from datetime import datetime

import dagster as dg

from dagster_amoro.asset_keys import EVENTS, GROUPS, group_name, partition_key
from dagster_amoro.core.errors import KeeperError, describe
from dagster_amoro.core.messages import ABSTAINED, WATCHING
from dagster_amoro.core.model import EventKind
from dagster_amoro.core.policy import RunState
from dagster_amoro.defs.cursor import Cursor, Numbers, dump_cursor, new_token, parse_cursor
from dagster_amoro.defs.metrics import news, of_abstention, of_standby, of_tick
from dagster_amoro.healing.preconditions import StandbyError, UncertainStateError
from dagster_amoro.healing.tick import Ticker, TickResult
from dagster_amoro.stores.ledger import Ledger

RUN_KEY_TAG = "dagster/run_key"
PRIORITY_TAG = "dagster/priority"  # of a run in Dagster's queue: a number, 0 where there is none
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
_STATES = {  # of runs; what else there is, is active
    dg.DagsterRunStatus.QUEUED: RunState.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED: RunState.STARTING,
    dg.DagsterRunStatus.STARTING: RunState.STARTING,
    dg.DagsterRunStatus.SUCCESS: RunState.ENDED,
    dg.DagsterRunStatus.FAILURE: RunState.ENDED,
    dg.DagsterRunStatus.CANCELED: RunState.ENDED,
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
    """The sensor that finds orphans and requests runs for those that are due."""
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
            done = _tick(ticker, cursor, context.instance)
        except StandbyError as standby:
            numbers, following = of_standby(cursor, clock())
            return _idle(f"{WATCHING}: {standby}.", numbers, following)
        except KeeperError as error:
            return _abstention(error, cursor, clock())
        if done.dispatches or done.scale_ups:
            context.log.info(done.summary)
        events, newest = _news(ledger, cursor)
        following = Cursor(
            event=newest,
            detector=done.detector,
            last_served_group=done.plan.last_served_group,
            completed_at=clock(),
            reported=of_tick(done, ticker.preconditions.deployment),
            token=cursor.token,
        )
        message = news(following.reported, cursor.reported, done.summary)
        return _result(done, known, events, message, following)

    return orphan_sensor


def _tick(ticker: Ticker, cursor: Cursor, instance: dg.DagsterInstance) -> TickResult:
    return ticker.tick(
        lambda owners: run_states(instance, owners),
        cursor.detector,
        last_served_group=cursor.last_served_group,
        instance=_identity(instance),
        token=cursor.token,
    )


def _news(ledger: Ledger, cursor: Cursor) -> tuple[Mapping[str, Mapping[str, int]], int]:
    """New events by group, then by kind, and the newest that was seen.

    None if the ledger is away by now: runs that were dispatched must be requested all the same.
    """
    try:
        return ledger.changed_groups(cursor.event)
    except KeeperError:
        return {}, cursor.event  # the next tick tells it


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
    return _STATES.get(status, RunState.ACTIVE)


def _result(
    done: TickResult,
    known: AbstractSet[str],
    happened: Mapping[str, Mapping[str, int]],
    message: Sequence[dg.AssetObservation],
    following: Cursor,
) -> dg.SensorResult:
    new = sorted({partition_key(group) for group in {*done.snapshot.groups, *happened}} - known)
    events = {**{group_name(key): {} for key in new}, **happened}
    requests = list(_requests(done))
    if requests or following.token is None:
        following = replace(following, token=new_token())
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
    metadata = {"new events": sum(kinds.values()), **counts}
    return dg.AssetMaterialization(EVENTS, partition=partition_key(group), metadata=metadata)


def _requests(done: TickResult) -> Iterator[dg.RunRequest]:
    for run in done.dispatches:
        tags = {**_group_tags(run.groups), "amoro/orphans": str(len(run.incidents))}
        if len(run.incidents) == 1:
            tags["amoro/resource"] = run.incidents[0].resource_id
        yield _request("restart_orphans", "claim_orphans", run.run_key, tags)
    for begun in done.scale_ups:
        tags = _group_tags([each.group_name for each in begun.scale_ups])
        yield _request("scale_up_groups", "claim_groups", begun.run_key, tags)


def _group_tags(groups: Sequence[str]) -> dict[str, str]:
    number = {"amoro/groups": str(len(groups))}
    return {**number, "amoro/group": groups[0]} if len(groups) == 1 else number


def _request(job: str, claiming: str, key: str, tags: Mapping[str, str]) -> dg.RunRequest:
    config = {"ops": {claiming: {"config": {"dispatch": key}}}}
    tags = {**tags, PRIORITY_TAG: "10"}  # ahead of what nobody waits for
    return dg.RunRequest(job_name=job, run_key=key, run_config=config, tags=tags)
