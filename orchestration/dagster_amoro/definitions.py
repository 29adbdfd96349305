"""The code location: configuration in, Dagster definitions out."""

from datetime import timedelta

import dagster as dg

from dagster_amoro.config import AuditSettings, load_settings
from dagster_amoro.defs.operator_jobs import build_operator_jobs
from dagster_amoro.defs.restart_job import build_restart_job
from dagster_amoro.defs.scale_up_job import build_scale_up_job
from dagster_amoro.defs.sensor import build_orphan_sensor
from dagster_amoro.healing.keeper import Keeper
from dagster_amoro_audit.checks import build_checks
from dagster_amoro_audit.frames import FrameIOManager
from dagster_amoro_audit.group_reliability import STORE as FRAMES
from dagster_amoro_audit.group_reliability import build_group_reliability, build_what_if_job
from dagster_amoro_audit.history_store import HistoryIOManager, io_manager
from dagster_amoro_audit.lineage import sources
from dagster_amoro_audit.orphan_history import STORE, build_orphan_history

_SLOWEST_REFRESH_SECONDS = 30


def build_definitions(keeper: Keeper, audit: AuditSettings | None = None) -> dg.Definitions:
    """Everything that Dagster needs to keep a fleet alive, to use as it is or to merge.

    Args:
        keeper: What to keep, and with what.
        audit: Where the audit is kept and what it warns of. None: as without any configuration.
    """
    audit = audit or AuditSettings()
    restarting, scaling_up = build_restart_job(keeper), build_scale_up_job(keeper)
    what_if = build_what_if_job(keeper.ledger, keeper.policy, keeper.clock)
    history = build_orphan_history(
        keeper.ledger, keeper.clock, keeper.policy.grace_period, audit.retention
    )
    reliability = build_group_reliability(keeper.ledger, keeper.policy, keeper.clock)
    checks = build_checks(keeper, audit)
    return dg.Definitions(
        assets=[*sources(), history, reliability],
        asset_checks=[checks],
        jobs=[restarting, scaling_up, what_if, *build_operator_jobs(keeper)],
        sensors=[
            build_orphan_sensor(keeper, restarting, scaling_up),
            _automation(keeper.check_interval, [history, reliability], checks),
        ],
        resources={
            STORE: io_manager(HistoryIOManager, audit.storage),
            FRAMES: io_manager(FrameIOManager, audit.storage),
        },
    )


def _automation(
    check_interval: timedelta,
    assets: list[dg.AssetsDefinition],
    checks: dg.AssetChecksDefinition,
) -> dg.AutomationConditionSensorDefinition:
    seconds = min(int(check_interval.total_seconds()), _SLOWEST_REFRESH_SECONDS)
    return dg.AutomationConditionSensorDefinition(
        "audit_sensor",
        target=dg.AssetSelection.assets(*assets).without_checks()
        | dg.AssetSelection.checks(checks),
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=seconds,
        # One group is a run at once; several are a backfill. That waits for its daemon for up to
        # half a minute, and makes one run of all groups in a row: of 20 that changed in one tick,
        # 20 were refreshed after 30 s, instead of after 128 s by as many runs. Where unchanged
        # groups lie between, there is a run for each row.
        emit_backfills=True,
        description="Refreshes the audit where the history went on, and makes its checks.",
    )


@dg.definitions
def defs() -> dg.Definitions:
    """The definitions for `$AMORO_CONF_DIR/config.yaml`."""
    settings = load_settings()
    for warning in settings.warnings:
        dg.get_dagster_logger("dagster-amoro").warning(warning)
    built = build_definitions(Keeper.from_settings(settings), settings.audit)
    # One process per asset run: a process per step would take longer than the step itself.
    return dg.Definitions.merge(built, dg.Definitions(executor=dg.in_process_executor))
