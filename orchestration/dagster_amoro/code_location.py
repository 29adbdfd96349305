"""What a code location is made of: settings in, Dagster definitions out."""

from datetime import timedelta
from typing import Final

import dagster as dg

from dagster_amoro.config import AuditSettings, Settings
from dagster_amoro.defs.operator_jobs import build_operator_jobs
from dagster_amoro.defs.restart_job import build_restart_job
from dagster_amoro.defs.scale_up_job import build_scale_up_job
from dagster_amoro.defs.sensor import PRIORITY_TAG, build_orphan_sensor
from dagster_amoro.healing.assembly import Services
from dagster_amoro_audit import io_managers as stores
from dagster_amoro_audit.checks import build_checks
from dagster_amoro_audit.group_reliability import build_group_reliability
from dagster_amoro_audit.lineage import sources
from dagster_amoro_audit.orphan_history import build_orphan_history
from dagster_amoro_audit.what_if.job import build_what_if_job

_SLOWEST_REFRESH_SECONDS = 30
AUDIT_TAGS: Final = {"dagster-amoro/audit": "true", PRIORITY_TAG: "-10"}
"""Of the audit's runs: nobody waits for them, and the first is for a limit in dagster.yaml."""


def build_definitions(settings: Settings) -> dg.Definitions:
    """Everything that Dagster needs to keep a fleet alive, to use as it is or to merge.

    Nothing is connected to before the first tick, run or check. A ConfigError says that the driver
    of a database is not installed.
    """
    return definitions_of(Services.connect(settings), settings.audit)


def definitions_of(services: Services, audit: AuditSettings) -> dg.Definitions:
    """The definitions that act with these services, as `build_definitions` makes them."""
    ledger, policy, clock = services.ledger, services.policy, services.clock
    restarting = build_restart_job(services.restarter)
    scaling_up = build_scale_up_job(services.scaler)
    what_if = build_what_if_job(ledger, policy, clock)
    history = build_orphan_history(ledger, clock, policy.grace_period, audit.retention)
    reliability = build_group_reliability(ledger, policy, clock)
    operator_jobs = build_operator_jobs(services.operations, services.status)
    checks = build_checks(
        ledger,
        services.registry,
        policy=policy,
        limits=services.limits,
        check_interval=services.settings.check_interval,
        clock=clock,
        alerts=audit,
        scales_up=policy.enabled and services.ams is None,
    )
    return dg.Definitions(
        assets=[*sources(), history, reliability],
        asset_checks=[checks],
        jobs=[restarting, scaling_up, what_if, *operator_jobs],
        sensors=[
            build_orphan_sensor(services.ticker, restarting, scaling_up),
            _automation(services.settings.check_interval, [history, reliability], checks),
        ],
        resources={
            stores.HISTORY_STORE: stores.io_manager(stores.HistoryIOManager, audit.storage),
            stores.FRAME_STORE: stores.io_manager(stores.FrameIOManager, audit.storage),
        },
    )


def _automation(
    check_interval: timedelta, assets: list[dg.AssetsDefinition], checks: dg.AssetChecksDefinition
) -> dg.AutomationConditionSensorDefinition:
    selected = dg.AssetSelection.assets(*assets).without_checks()
    return dg.AutomationConditionSensorDefinition(
        "audit_sensor",
        target=selected | dg.AssetSelection.checks(checks),
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=min(int(check_interval.total_seconds()), _SLOWEST_REFRESH_SECONDS),
        # One group is a run at once; several are a backfill. That waits for its daemon for up to
        # half a minute, and makes one run of all groups in a row: of 20 that changed in one tick,
        # 20 were refreshed after 30 s, instead of after 128 s by as many runs. Where unchanged
        # groups lie between, there is a run for each row.
        emit_backfills=True,
        run_tags=AUDIT_TAGS,  # a backfill hands them on to its runs
        description="Refreshes the audit where the history went on, and makes its checks.",
    )
