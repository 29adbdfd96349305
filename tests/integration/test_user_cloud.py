"""On Dagster+ user code may not call everything: all checks, jobs and sensors do without."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    SensorInstigatorData,
    TickData,
    TickStatus,
)

from dagster_amoro.asset_keys import Names
from dagster_amoro.code_location import alert_sensor_of
from dagster_amoro.config import AuditSettings
from dagster_amoro.core.alerts import Alert
from tests.helpers.declared import a_group
from tests.helpers.fleet import Fleet, fleet
from tests.helpers.user_cloud import user_cloud

pytestmark = pytest.mark.long

_ORIGIN = RemoteInstigatorOrigin(
    RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("dagster-amoro"), "__repository__"),
    "orphan_sensor",
)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Fleet]:
    """A fleet that lost a worker, on an instance that remembers a tick of its sensor."""
    settings = {"telemetry": {"enabled": False}}
    with (
        fleet(tmp_path, max_retries=0) as made,
        dg.DagsterInstance.local_temp(str(tmp_path), settings) as instance,
    ):
        made.instance = instance
        data = SensorInstigatorData(min_interval=60)
        instance.add_instigator_state(
            InstigatorState(_ORIGIN, InstigatorType.SENSOR, InstigatorStatus.RUNNING, data)
        )
        instance.create_tick(
            TickData(
                instigator_origin_id=_ORIGIN.get_id(),
                selector_id=_ORIGIN.get_selector().get_id(),
                instigator_name="orphan_sensor",
                instigator_type=InstigatorType.SENSOR,
                timestamp=made.later().now.timestamp(),
                status=TickStatus.SUCCESS,
                run_ids=[],
            )
        )
        made.worker()
        yield made


def test_the_refusals_are_real(world: Fleet) -> None:
    """Otherwise the other tests would say nothing."""
    key = dg.AssetCheckKey(dg.AssetKey("a"), "c")
    refusal = pytest.raises(NotImplementedError, match="Not callable from user cloud")
    with user_cloud(world.instance) as asked, refusal:
        world.instance.event_log_storage.get_asset_check_execution_history(key, limit=1)
    assert asked == ["get_asset_check_execution_history"]
    assert world.instance.event_log_storage.get_asset_check_execution_history(key, limit=1) == []


def test_sensors_and_the_runs_that_they_request(world: Fleet) -> None:
    """A worker is found, given up, and its history is brought up to date."""
    with user_cloud(world.instance) as asked:
        assert world.tick() == []
        (request,) = world.later().tick()
        assert not world.launch(request).success  # it gives a resource up
        world.tick()
        told, refreshes = world.audit()
        assert not told["nothing_given_up"].passed
        for refresh in refreshes:
            assert world.refreshed(refresh).success
    assert asked == []
    assert set(world.history("g").incidents["outcome"]) == {"exhausted"}


def test_every_check(world: Fleet) -> None:
    """All of them answer, in a run that somebody asked for and in the sensor's evaluation."""
    with user_cloud(world.instance) as asked:
        world.tick()
        by_hand = world.check()
        told, _ = world.audit()
    assert asked == []
    assert set(by_hand) == set(told)
    assert len(told) == 8
    assert told["survey_is_fresh"].passed
    assert by_hand["survey_is_fresh"].passed


def test_every_job_that_somebody_launches(world: Fleet) -> None:
    """Each ends; none is left out."""
    by = {"author": "ann", "reason": "a move"}
    world.services = replace(world.services, fleet=(a_group(["w-2"]),))
    launched: dict[str, dict[str, Any]] = {
        "what_if": of("replay_incidents", grace_period="1min"),
        "prune": {},
        "keeper_status": {},
        "keeper_pause": of("pause", group="g", **by),
        "keeper_resume": of("resume", group="g", **by),
        "keeper_restart_now": of("restart_now", resource="w-1", **by),
        "keeper_reset": of("reset", group="g", **by),
        "keeper_give_up": of("give_up", resource="w-1", **by),
        "keeper_acknowledge": of("acknowledge", resource="w-1", **by),
        "keeper_restore": of("restore", resource="w-1", **by),
        "keeper_scale_in": of("scale_in", resource="w-1", **by),
        "keeper_apply": of("apply", **by),
        "scale_up_groups": of("claim_groups", dispatch="none"),
        "restart_orphans": {"resources": {"restart_pool": {"config": {"dispatch": "none"}}}},
    }
    own = {job.name for job in world.definitions.resolve_all_job_defs()}
    assert launched.keys() == {each for each in own if not each.startswith("__")}
    with user_cloud(world.instance) as asked:
        world.tick()
        for name, config in launched.items():
            job = world.definitions.resolve_job_def(name)
            done = job.execute_in_process(run_config=config, instance=world.instance)
            assert done.success, name
            for request in world.tick():  # what the verb had the keeper do
                world.launch(request)
    assert asked == []


def of(op: str, **config: str) -> dict[str, Any]:
    """The configuration of a run whose one step is this."""
    return {"ops": {op: {"config": config}}}


def test_every_sensor_schedule_and_refresh(world: Fleet) -> None:
    """Of a keeper with a name, and with the sensor that sends alerts."""
    world.names = Names(keeper="east")
    made, told = world.definitions, list[Alert]()
    alerting = alert_sensor_of(world.services, AuditSettings(), told.append, "", world.names)
    sensors = {each.name for each in (*(made.sensors or ()), alerting)}
    assert sensors == {"east_orphan_sensor", "east_audit_sensor", "east_alert_sensor"}
    refreshed = set[dg.AssetKey]()
    with user_cloud(world.instance) as asked:
        world.tick()
        (request,) = world.later().tick()
        world.launch(request)
        world.tick()
        context = dg.build_sensor_context(instance=world.instance)
        cursor = alerting.evaluate_tick(context).cursor
        assert [each for each in told if "given up" in each.title]
        world.later(timedelta(hours=1))
        alerting.evaluate_tick(dg.build_sensor_context(instance=world.instance, cursor=cursor))
        assert told[-1].title == "survey_is_fresh failed"
        for refresh in world.audit()[1]:
            assert world.refreshed(refresh).success
            refreshed |= set(refresh.asset_selection or ())
        (schedule,) = made.schedules or ()
        assert isinstance(schedule, dg.ScheduleDefinition)
        at = dg.build_schedule_context(world.instance, scheduled_execution_time=world.now)
        assert schedule.evaluate_tick(at).run_requests
    assert asked == []
    assert refreshed == made.resolve_asset_graph().materializable_asset_keys
