"""The code location: configuration in, Dagster definitions out."""

import dagster as dg

from assets.frames import frame_io_manager
from assets.orphan_history import build_orphan_history, orphan_events
from orchestration.config import load_settings
from orchestration.keeper import Keeper
from orchestration.restart import build_restart_job
from orchestration.sensor import build_orphan_sensor

_SLOWEST_REFRESH_SECONDS = 30


def build_definitions(keeper: Keeper) -> dg.Definitions:
    """Everything that Dagster needs to keep a fleet alive, to use as it is or to merge."""
    job = build_restart_job(keeper)
    refresh_seconds = min(int(keeper.check_interval.total_seconds()), _SLOWEST_REFRESH_SECONDS)
    return dg.Definitions(
        assets=[orphan_events(), build_orphan_history(keeper.ledger)],
        jobs=[job],
        sensors=[
            build_orphan_sensor(keeper, job),
            dg.AutomationConditionSensorDefinition(
                "orphan_history_sensor",
                target=dg.AssetSelection.assets("orphan_history"),
                default_status=dg.DefaultSensorStatus.RUNNING,
                minimum_interval_seconds=refresh_seconds,
                emit_backfills=False,  # a run per group that changed is sooner there
                description="Refreshes the audit of the groups whose history went on.",
            ),
        ],
        resources={"frame_io_manager": frame_io_manager},
    )


@dg.definitions
def defs() -> dg.Definitions:
    """The definitions for `$AMORO_CONF_DIR/config.yaml`."""
    keeper = Keeper.from_settings(load_settings())
    # One process per asset run: a process per step would take longer than the step itself.
    return dg.Definitions.merge(
        build_definitions(keeper), dg.Definitions(executor=dg.in_process_executor)
    )
