"""The sensor `fleet_sensor`: requests `keeper_apply` where the fleet is not as it is declared."""

from collections.abc import Mapping
from datetime import timedelta
from hashlib import sha256
from typing import Final

import dagster as dg

from dagster_amoro.asset_keys import DEFAULT, Names
from dagster_amoro.core.errors import KeeperError, describe
from dagster_amoro.core.fleet_plan import FleetPlan, lines
from dagster_amoro.core.messages import DRY_RUN
from dagster_amoro.core.texts import shown_lines
from dagster_amoro.healing.apply import Applier

_DIFFERENCE: Final = "amoro/difference"  # the tag of a run: what it is requested for
_PAUSE: Final = timedelta(minutes=10)  # after a run for the same difference, which did not help


def build_fleet_sensor(
    applier: Applier, interval: timedelta, names: Names = DEFAULT
) -> dg.SensorDefinition:
    """The sensor that has a declared fleet kept as it is declared."""
    job = names.of("keeper_apply")

    @dg.sensor(
        name=names.of("fleet_sensor"),
        job_name=job,
        minimum_interval_seconds=int(interval.total_seconds()),
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=(
            f"Compares the fleet with what config.yaml declares, and requests a run of {job} "
            "where something is missing or is declared otherwise. It releases nothing, and leaves "
            "what was given up to a person."
        ),
    )
    def fleet_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        try:
            plan = applier.plan(unattended=True)
        except KeeperError as error:
            return dg.SensorResult(skip_reason=describe(error))
        if applier.restarter.ledger.dry_run:  # a run would do nothing, again and again
            return dg.SensorResult(skip_reason=shown_lines([DRY_RUN.strip(), *lines(plan)]))
        tags = {**names.run_tags, _DIFFERENCE: _digest(plan)}
        is_asked = not plan.to_do().is_empty
        if is_asked and not _was_tried(context.instance, tags, applier):
            return dg.SensorResult(run_requests=[_request(names, tags)])
        return dg.SensorResult(skip_reason=shown_lines(lines(plan)))

    return fleet_sensor


def _digest(plan: FleetPlan) -> str:
    """What is to be done, in a few letters; groups are not what a run cannot change."""
    to_do = plan.to_do()
    differences = [(step.resource_id, step.what) for step in to_do.steps]
    differences = differences or [(group.name, group.what) for group in to_do.groups]
    return sha256(repr(differences).encode(errors="replace")).hexdigest()[:16]


def _was_tried(instance: dg.DagsterInstance, tags: Mapping[str, str], applier: Applier) -> bool:
    """Whether a run was requested for the same difference a short while ago."""
    since = applier.restarter.clock() - _PAUSE
    asked = dg.RunsFilter(tags=dict(tags), created_after=since)
    return bool(instance.get_runs(asked, limit=1))


def _request(names: Names, tags: Mapping[str, str]) -> dg.RunRequest:
    config = {"author": names.of("fleet_sensor"), "reason": None}
    ops = {names.of("apply"): {"config": config}}
    return dg.RunRequest(run_config={"ops": ops}, tags=dict(tags))
