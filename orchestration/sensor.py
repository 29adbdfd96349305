"""The sensor `orphan_sensor`: a tick every check interval, and its account for the UI."""

from collections.abc import Mapping, Sequence

import dagster as dg

from assets.names import EVENTS, GROUPS, group_name, partition_key
from orchestration.errors import KeeperError, describe
from orchestration.keeper import Keeper
from orchestration.keeping.policy import RunState
from orchestration.keeping.survey import Order
from orchestration.restart import CLAIM_OP
from orchestration.tick import Tick, tick

RUN_KEY_TAG = "dagster/run_key"
_QUEUED = {dg.DagsterRunStatus.QUEUED}
_ENDED = {
    dg.DagsterRunStatus.SUCCESS,
    dg.DagsterRunStatus.FAILURE,
    dg.DagsterRunStatus.CANCELED,
}


def build_orphan_sensor(keeper: Keeper, job: dg.JobDefinition) -> dg.SensorDefinition:
    """The sensor that finds orphans and requests runs of `job` for those that are due."""

    @dg.sensor(
        name="orphan_sensor",
        job=job,
        minimum_interval_seconds=int(keeper.check_interval.total_seconds()),
        default_status=(
            dg.DefaultSensorStatus.RUNNING
            if keeper.policy.enabled
            else dg.DefaultSensorStatus.STOPPED
        ),
        description=(
            "Looks for orphans: resources that no optimizer stands for. Records when they are "
            "found and how they end, and requests a run of restart_orphans for those whose grace "
            "period is over. If a store does not answer, it does nothing and says so."
        ),
        metadata={
            "auto-restart-enabled": keeper.policy.enabled,
            "auto-restart-max-retries": keeper.policy.max_retries,
            "auto-restart-grace-period": str(keeper.policy.grace_period),
            "check interval": str(keeper.check_interval),
        },
    )
    def orphan_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        try:
            seen = tick(keeper, lambda owners: run_states(context.instance, owners))
            changed, newest = keeper.ledger.changed_groups(_last_event(context.cursor))
        except KeeperError as error:
            return dg.SensorResult(skip_reason=f"Abstained, nothing was changed: {describe(error)}")
        return _result(context, seen, changed, newest)

    return orphan_sensor


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


def _state(status: dg.DagsterRunStatus) -> RunState:
    if status in _QUEUED:
        return RunState.QUEUED
    return RunState.ENDED if status in _ENDED else RunState.ACTIVE


def _last_event(cursor: str | None) -> int:
    return int(cursor) if cursor and cursor.isdecimal() else 0


def _result(
    context: dg.SensorEvaluationContext, seen: Tick, changed: Mapping[str, int], newest: int
) -> dg.SensorResult:
    requests = [_request(order) for order in seen.orders]
    if requests:
        context.log.info(seen.summary)
    partitions = _new_partitions(context.instance, {*seen.survey.groups, *changed})
    news = {**dict.fromkeys(map(group_name, partitions), 0), **changed}
    return dg.SensorResult(
        run_requests=requests,
        skip_reason=None if requests else seen.summary,
        cursor=str(newest),
        dynamic_partitions_requests=[GROUPS.build_add_request(partitions)] if partitions else [],
        asset_events=[
            dg.AssetMaterialization(
                EVENTS, partition=partition_key(group), metadata={"new events": number}
            )
            for group, number in news.items()
        ],
    )


def _new_partitions(instance: dg.DagsterInstance, groups: set[str]) -> list[str]:
    known = set(instance.get_dynamic_partitions(GROUPS.name or ""))
    return sorted({partition_key(group) for group in groups} - known)


def _request(order: Order) -> dg.RunRequest:
    tags = {"amoro/group": order.group_name, "amoro/orphans": str(len(order.incidents))}
    if len(order.incidents) == 1:
        tags["amoro/resource"] = order.incidents[0].resource_id
    return dg.RunRequest(
        run_key=order.run_key,
        run_config={"ops": {CLAIM_OP: {"config": {"hand_over": order.run_key}}}},
        tags=tags,
    )
