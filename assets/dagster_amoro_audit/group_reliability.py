"""The asset `group_reliability`: how does the whole fleet do, and what should change?"""

from typing import Any, Final

import dagster as dg

from dagster_amoro.asset_keys import AUDIT, HISTORY
from dagster_amoro.core.clock import Clock
from dagster_amoro.core.policy import RestartPolicy
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro_audit.automation import whenever
from dagster_amoro_audit.columns import RELIABILITY
from dagster_amoro_audit.io_managers import FRAME_STORE

KEY: Final = dg.AssetKey("group_reliability")
_WHEN: Final = whenever(
    # Every hour besides, because what happened "in the last hour" changes without any news.
    dg.AutomationCondition.any_deps_updated()
    | dg.AutomationCondition.cron_tick_passed("0 * * * *"),
    "a group's history went on, or an hour is over",
)


def build_group_reliability(
    ledger: Ledger, policy: RestartPolicy, clock: Clock
) -> dg.AssetsDefinition:
    """The asset, which refreshes when any group's history went on, and every hour.

    The ledger is read as a whole for the figures, its newest incidents for the advice.
    """

    @dg.asset(
        key=KEY,
        deps=[HISTORY],
        automation_condition=_WHEN,
        io_manager_key=FRAME_STORE,
        retry_policy=dg.RetryPolicy(max_retries=3, delay=10, backoff=dg.Backoff.EXPONENTIAL),
        group_name=AUDIT,
        kinds={"pandas", "parquet"},
        owners=["team:data-platform"],
        tags={"domain": "optimizers"},
        code_version="1",
        metadata={"dagster/column_schema": dg.TableSchema(columns=list(RELIABILITY))},
        description="How every optimizer group did in the last hour, day, week and ever: what "
        "died, what came back by itself or after how many attempts, how long it took, what was "
        "given up, how much of the wanted capacity was there, and which resources die again and "
        "again. And what another grace period would have done: the recorded incidents, run again.",
    )
    def group_reliability() -> dg.MaterializeResult[Any]:
        from dagster_amoro_audit import fleet_history
        from dagster_amoro_audit.metadata import of_reliability
        from dagster_amoro_audit.reliability import reliability
        from dagster_amoro_audit.what_if.advice import advice, grid

        now = clock()
        incidents = fleet_history.read_incidents(ledger)
        figures = reliability(incidents, fleet_history.read_capacity(ledger), now)
        record = fleet_history.read_record(ledger, incidents.tail(fleet_history.REPLAYED))
        advised = advice(*record, grid(policy), now)
        metadata = of_reliability(figures, incidents, advised, policy, now)
        return dg.MaterializeResult(value=figures, metadata=metadata)

    return group_reliability
