"""The job `restart_orphans`: one step per orphan that is due, all in one process."""

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta

import dagster as dg
from pydantic import Field

from dagster_amoro import telling
from dagster_amoro.asset_keys import DEFAULT, Names, partition_key
from dagster_amoro.core.formatting import clock_time
from dagster_amoro.core.messages import next_step
from dagster_amoro.core.model import Incident, State
from dagster_amoro.core.policy import Backoff, RestartPolicy, due_at
from dagster_amoro.core.secrets import without_secrets
from dagster_amoro.healing.restart import Outcome, Restarter, RestartResult
from dagster_amoro.healing.restart_pool import RestartPool

_ACTED = {Outcome.STARTED, Outcome.FAILED, Outcome.GIVEN_UP, Outcome.REMOVED, Outcome.KEPT}
_LOUD = {Outcome.FAILED, Outcome.GIVEN_UP, Outcome.KEPT}  # what somebody should hear of
_NOT_IN_A_STEP_NAME = re.compile(r"[^A-Za-z0-9_]+")
RESTART_POOL = "restart_pool"  # the resource
_LONGEST_STEP_NAME = 40  # characters of what it is about


class Dispatch(dg.Config):
    """What a run is to claim."""

    dispatch: str = Field(
        description="The run key under which the sensor dispatched its work. It is good for one "
        "run: executed again, the run finds nothing to do."
    )


def build_restart_job(restarter: Restarter, names: Names = DEFAULT) -> dg.JobDefinition:
    """The job that the sensor requests; its retries are those of the restart policy."""
    claim_orphans, restart_orphan = _claim_orphans(names), _restart_orphan(restarter, names)

    @dg.job(
        name=names.of("restart_orphans"),
        executor_def=dg.in_process_executor,
        resource_defs={RESTART_POOL: _pool(restarter)},
        tags=names.run_tags
        | {
            "dagster/max_retries": "0",  # which would multiply the attempts of the ledger
            "dagster/max_runtime": str(longest_run(restarter.policy)),
        },
        description=(
            "Restarts orphans side by side: one step each. Requested by "
            f"{names.of('orphan_sensor')}; started by hand it finds nothing to do. It fails when "
            "it gives up on an orphan, with the story in the failed step."
        ),
    )
    def restart_orphans() -> None:
        claim_orphans().map(restart_orphan)

    return restart_orphans


def _pool(restarter: Restarter) -> dg.ResourceDefinition:
    @dg.resource(
        config_schema=Dispatch.to_config_schema(),
        description=(
            "Claims what was dispatched to this run, and restarts it side by side, ahead of the "
            "steps. It begins before the first of them, since orphans wait for it."
        ),
    )
    def pool(context: dg.InitResourceContext) -> Iterator[RestartPool]:
        made = RestartPool(restarter, context.run.run_id if context.run else "")
        try:
            made.claim(context.resource_config["dispatch"])
            yield made
        finally:
            made.close()

    return pool


def _claim_orphans(names: Names) -> dg.OpDefinition:
    @dg.op(
        name=names.of("claim_orphans"),
        pool=names.translation.pool,
        # Nothing is handed on but the names of the steps: a value would be a file for each of them.
        out=dg.DynamicOut(dg.Nothing, description="An incident that this run may act on."),
        required_resource_keys={RESTART_POOL},
        description="Says what this run has claimed; fans out to one step per orphan.",
    )
    def claim_orphans(context: dg.OpExecutionContext) -> Iterator[dg.DynamicOutput[None]]:
        pool: RestartPool = getattr(context.resources, RESTART_POOL)
        telling.log(context, _taken_up(pool.claimed))
        for incident in pool.claimed:
            name = step_name(incident.resource_id, f"incident_{incident.incident_id}")
            yield dg.DynamicOutput(None, mapping_key=name)

    return claim_orphans


def _restart_orphan(restarter: Restarter, names: Names) -> dg.OpDefinition:
    policy = restarter.policy

    @dg.op(
        name=names.of("restart_orphan"),
        ins={"claimed": dg.In(dg.Nothing)},
        out={},
        required_resource_keys={RESTART_POOL},
        retry_policy=dg.RetryPolicy(
            max_retries=policy.max_retries, delay=policy.grace_period.total_seconds()
        ),
        description=(
            "Looks again at one orphan and restarts it, gives it up when its attempts are used up, "
            "or removes it where others took its place. A start that failed is tried again after "
            "the grace period. Success means that the start was accepted; the next ticks see "
            "whether an optimizer registers."
        ),
    )
    def restart_orphan(context: dg.OpExecutionContext) -> Iterator[dg.AssetObservation]:
        pool: RestartPool = getattr(context.resources, RESTART_POOL)
        result = pool.collect(incident_of(context.get_mapping_key() or ""))
        metadata = _metadata(result, policy)
        if result.incident is None or result.outcome not in _ACTED:
            telling.log(context, result.message)
        else:  # the only event of its own that the step stores, with all there is to say
            partition = partition_key(result.incident.group_name)
            told = telling.texts({"result": result.message, **metadata})
            # Not of the history, whose newest event its page shows: what it says would be buried.
            yield dg.AssetObservation(names.events, partition=partition, metadata=told)
        if result.outcome in _LOUD:
            raise _failure(result, metadata, policy, restarter.clock())

    return restart_orphan


def longest_run(policy: RestartPolicy) -> int:
    """After how many seconds Dagster's run monitoring may end a run, since it cannot be at work.

    Calls of containers have deadlines, and pauses are bounded. What is left is a bug, or a host
    that stands still.
    """
    pause = max(policy.grace_period, policy.backoff_cap)
    return round((2 * (policy.max_retries + 1) * pause + timedelta(days=1)).total_seconds())


def _failure(
    result: RestartResult, metadata: Mapping[str, str], policy: RestartPolicy, now: datetime
) -> Exception:
    """What tells Dagster, and whoever it alerts, that a restart failed, and when to try again."""
    again = result.outcome is Outcome.FAILED
    failure = telling.failure(result.message, metadata, again=again)
    if not again or result.incident is None or policy.backoff is Backoff.CONSTANT:
        return failure
    # The op's retry policy knows pauses that grow, but neither their cap nor who else is restarted.
    wait = due_at(result.incident, policy) - now
    later = dg.RetryRequested(policy.max_retries, max(wait.total_seconds(), 0))
    later.__cause__ = failure
    return later


def incident_of(step: str) -> int:
    """The number of the incident that a step was named after."""
    return int(step.rpartition("_")[2])


def step_name(about: str, number: str) -> str:
    """What a step is called in the UI: what it is about, then a number that no other step has."""
    return f"{_NOT_IN_A_STEP_NAME.sub('_', about)[:_LONGEST_STEP_NAME]}_{number}"


def _taken_up(incidents: Sequence[Incident]) -> str:
    if not incidents:
        return "Nothing to do: this dispatch was claimed by another run, or has lapsed."
    ids = ", ".join(incident.resource_id for incident in incidents[:10])
    more = f" and {len(incidents) - 10} more" if len(incidents) > 10 else ""  # noqa: PLR2004
    groups = sorted({incident.group_name for incident in incidents})
    of = f"group {groups[0]}" if len(groups) == 1 else f"{len(groups)} groups"
    return f"Claimed, {of}: {ids}{more}."


def _metadata(result: RestartResult, policy: RestartPolicy) -> dict[str, str]:
    incident = result.incident
    if incident is None:
        return {}
    metadata = {
        "resource": incident.resource_id,
        "container": incident.container_name,
        "incident": str(incident.incident_id),
        "attempt": f"{incident.attempts_used} of {policy.max_retries}",
        "orphaned since": clock_time(incident.detected_at),
    }
    if incident.is_open and incident.attempts and incident.state is not State.KEPT:
        metadata["next"] = next_step(incident, policy)
    return metadata | without_secrets(result.startup)
