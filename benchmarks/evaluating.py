"""A deployment whose sensors are evaluated, and whose requests are executed, as by a daemon."""

from dataclasses import replace
from datetime import datetime
from typing import Any, Final

import dagster as dg
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

from dagster_amoro.code_location import definitions_of
from dagster_amoro.config import AuditSettings
from dagster_amoro.healing.assembly import Services

_REPOSITORY: Final = RemoteRepositoryOrigin(
    RegisteredCodeLocationOrigin("dagster-amoro"), "__repository__"
)


class Deployment:
    """The code location of some services, in an instance that keeps what sensors report."""

    def __init__(self, services: Services, instance: dg.DagsterInstance, now: datetime) -> None:
        """Time is `now` until somebody sets it."""
        self.now = now
        self.instance = instance
        self.services = replace(services, clock=lambda: self.now)
        self.definitions = definitions_of(self.services, AuditSettings())
        self._cursors: dict[str, str | None] = {}

    def evaluate(self, name: str, *, is_recorded: bool = True) -> list[dg.RunRequest]:
        """Evaluates a sensor and stores what it reports; its tick and its cursor, if recorded."""
        context = dg.build_sensor_context(
            instance=self.instance, cursor=self._cursors.get(name), definitions=self.definitions
        )
        result = self.definitions.resolve_sensor_def(name).evaluate_tick(context)
        for event in result.asset_events:
            self.instance.report_runless_asset_event(event)
        for added in result.dynamic_partitions_requests or ():
            names = list(added.partition_keys)
            self.instance.add_dynamic_partitions(added.partitions_def_name, names)
        self._cursors[name] = result.cursor
        requests = list(result.run_requests or ())
        if is_recorded:
            self._record(name, result.skip_message, requests)
        return requests

    def _record(self, name: str, message: str | None, requests: list[dg.RunRequest]) -> None:
        """Writes down the tick and the cursor, as the daemon does."""
        origin = RemoteInstigatorOrigin(_REPOSITORY, name)
        data = SensorInstigatorData(cursor=self._cursors[name], min_interval=1)
        state = InstigatorState(origin, InstigatorType.SENSOR, InstigatorStatus.RUNNING, data)
        selector = origin.get_selector().get_id()
        if self.instance.get_instigator_state(origin.get_id(), selector) is None:
            self.instance.add_instigator_state(state)
        else:
            self.instance.update_instigator_state(state)
        told: dict[str, Any] = {"status": TickStatus.SKIPPED, "skip_reason": message}
        if requests:
            told = {"status": TickStatus.SUCCESS, "run_ids": []}
        self.instance.create_tick(
            TickData(
                instigator_origin_id=origin.get_id(),
                selector_id=selector,
                instigator_name=name,
                instigator_type=InstigatorType.SENSOR,
                timestamp=self.now.timestamp(),
                **told,
            )
        )
