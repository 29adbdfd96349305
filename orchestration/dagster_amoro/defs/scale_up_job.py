"""The job `scale_up_groups`: one step per group that needs a new resource, all in one process."""

from collections.abc import Iterator

import dagster as dg

from dagster_amoro import telling
from dagster_amoro.asset_keys import DEFAULT, Names
from dagster_amoro.core.formatting import counted
from dagster_amoro.defs.restart_job import Dispatch, step_name
from dagster_amoro.healing.scaling import Scaler, ScaleUpOutcome


def build_scale_up_job(scaler: Scaler, names: Names = DEFAULT) -> dg.JobDefinition:
    """The job that the sensor requests for groups that are below their min-parallelism."""

    @dg.op(
        name=names.of("claim_groups"),
        pool=names.translation.pool,
        out=dg.DynamicOut(str, description="A group that this run may give a new resource."),
        description="Claims what was dispatched to this run; fans out to one step per group.",
    )
    def claim_groups(
        context: dg.OpExecutionContext, config: Dispatch
    ) -> Iterator[dg.DynamicOutput[str]]:
        scale_ups = scaler.claim(config.dispatch, context.run_id)
        telling.log(context, f"Claimed: {counted(len(scale_ups), 'group')}.")
        for number, scale_up in enumerate(scale_ups):
            name = step_name(scale_up.group_name, str(number))
            yield dg.DynamicOutput(scale_up.group_name, mapping_key=name)

    @dg.op(
        name=names.of("scale_up_group"),
        out=dg.Out(dg.Nothing),
        description=(
            "Starts one new resource of the threads that a group lacks to its min-parallelism, "
            "and records it once it was started. Looks again first: where the threads are there, "
            "or on their way, nothing is started. A start that failed is tried again in a later "
            "round, by another run."
        ),
    )
    def scale_up_group(
        context: dg.OpExecutionContext, group_name: str
    ) -> Iterator[dg.Output[None]]:
        result = scaler.scale_up(group_name, context.run_id)
        metadata = {"group": group_name, "result": result.message}
        if result.outcome is ScaleUpOutcome.FAILED:
            raise telling.failure(result.message, metadata)
        yield dg.Output(None, metadata=telling.texts(metadata))

    @dg.job(
        name=names.of("scale_up_groups"),
        executor_def=dg.in_process_executor,
        tags=names.run_tags | {"dagster/max_retries": "0"},  # the rounds are counted in the ledger
        description=(
            "Brings groups up to their min-parallelism: one new resource each. Requested by "
            f"{names.of('orphan_sensor')} in standalone mode; in attached mode AMS does it."
        ),
    )
    def scale_up_groups() -> None:
        claim_groups().map(scale_up_group)

    return scale_up_groups
