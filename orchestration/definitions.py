"""The code location: configuration in, Dagster definitions out."""

from datetime import timedelta

import dagster as dg

from assets.lineage import sources
from assets.orphan_history import STORE, build_orphan_history
from assets.storage import HistoryIOManager, io_manager
from orchestration.config import load_settings
from orchestration.keeper import Keeper
from orchestration.restart import build_restart_job
from orchestration.sensor import build_orphan_sensor

_SLOWEST_REFRESH_SECONDS = 30


def build_definitions(
    keeper: Keeper,
    *,
    audit_storage: str | None = None,
    audit_retention: timedelta | None = None,
) -> dg.Definitions:
    """Everything that Dagster needs to keep a fleet alive, to use as it is or to merge.

    Args:
        keeper: What to keep, and with what.
        audit_storage: Where the audit's frames are kept: a folder, or a URL that fsspec knows,
            such as `s3://bucket/folder`. None: the Dagster instance's storage folder.
        audit_retention: How long the audit keeps them. None: for ever.
    """
    job = build_restart_job(keeper)
    refresh_seconds = min(int(keeper.check_interval.total_seconds()), _SLOWEST_REFRESH_SECONDS)
    return dg.Definitions(
        assets=[*sources(), build_orphan_history(keeper.ledger, keeper.clock, audit_retention)],
        jobs=[job],
        sensors=[
            build_orphan_sensor(keeper, job),
            dg.AutomationConditionSensorDefinition(
                "orphan_history_sensor",
                target=dg.AssetSelection.assets("orphan_history"),
                default_status=dg.DefaultSensorStatus.RUNNING,
                minimum_interval_seconds=refresh_seconds,
                # One group is a run at once; several are a backfill. That waits for its daemon
                # for up to half a minute, and makes one run of all groups in a row: of 20 that
                # changed in one tick, 20 were refreshed after 30 s, instead of after 128 s by as
                # many runs. Where unchanged groups lie between, there is a run for each row.
                emit_backfills=True,
                description="Refreshes the audit of the groups whose history went on.",
            ),
        ],
        resources={STORE: io_manager(HistoryIOManager, audit_storage)},
    )


@dg.definitions
def defs() -> dg.Definitions:
    """The definitions for `$AMORO_CONF_DIR/config.yaml`."""
    settings = load_settings()
    keeper = Keeper.from_settings(settings)
    built = build_definitions(
        keeper,
        audit_storage=settings.audit.storage,
        audit_retention=settings.audit.retention,
    )
    # One process per asset run: a process per step would take longer than the step itself.
    return dg.Definitions.merge(built, dg.Definitions(executor=dg.in_process_executor))
