"""The asset `group_reliability`: how does the whole fleet do, and what should change?"""

from functools import partial
from typing import Any, Final

import dagster as dg

from dagster_amoro import telling
from dagster_amoro.asset_keys import AUDIT, DEFAULT, Names
from dagster_amoro.core.clock import Clock
from dagster_amoro.core.policy import RestartPolicy
from dagster_amoro.healing.status import StatusReader
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro_audit.columns import RELIABILITY
from dagster_amoro_audit.fleet_status import look, of_all, summary
from dagster_amoro_audit.io_managers import FRAME_STORE, FrameIOManager

KEY: Final = DEFAULT.reliability

_DESCRIPTION: Final = """\
How every optimizer group did in the last hour, day, week and ever: what died and why, what came
back by itself or after how many attempts, how long it took, what was given up, how much of the
wanted capacity was there, and which resources die again and again. And what another grace period
would have done: the recorded incidents, run again.
"""


def build_group_reliability(
    ledger: Ledger,
    status: StatusReader,
    policy: RestartPolicy,
    clock: Clock,
    names: Names = DEFAULT,
) -> dg.AssetsDefinition:
    """The asset, which `audit_sensor` refreshes when its figures would be others.

    It settles the days that are over first, and reads but the incidents that were open in the last
    week, and the newest of the last month for the charts: its cost does not grow with the past.
    """
    frame_store = names.of(FRAME_STORE)

    @dg.asset(
        key=names.reliability,
        deps=[names.history],
        io_manager_key=frame_store,
        required_resource_keys={frame_store},
        retry_policy=dg.RetryPolicy(max_retries=3, delay=10, backoff=dg.Backoff.EXPONENTIAL),
        group_name=names.group(AUDIT),
        owners=names.translation.owners,
        tags=names.translation.tags,
        kinds={"pandas", "parquet"},
        code_version="2",
        metadata={"dagster/column_schema": dg.TableSchema(columns=list(RELIABILITY))},
        description=_DESCRIPTION,
    )
    def group_reliability(context: dg.AssetExecutionContext) -> dg.MaterializeResult[Any]:
        from dagster_amoro_audit import fleet_history
        from dagster_amoro_audit.metadata import of_reliability
        from dagster_amoro_audit.pictures import Pictures
        from dagster_amoro_audit.reliability import causes_of_death, reads_since, reliability
        from dagster_amoro_audit.settling import settle
        from dagster_amoro_audit.what_if.kept_advice import ADVICE, up_to_date

        now = clock()
        store: FrameIOManager = getattr(context.resources, frame_store)
        settled = settle(ledger, now, partial(telling.log, context))
        since = reads_since(settled, now)
        notes = fleet_history.read_standing_notes(ledger, settled.capacity, since, now)
        live = fleet_history.read_live(ledger, since)
        figures = reliability(live, notes, settled, now)
        causes = causes_of_death(live, settled, now)
        incidents = fleet_history.read_recent(ledger, now)
        advised = up_to_date(store, ledger, policy, now, names.of(ADVICE))
        pictures = Pictures(store.pictures(names.reliability))
        metadata = of_reliability(
            (figures, causes), incidents, advised, policy, now, pictures=pictures
        )
        first = {"now": summary(of_all(look(status), names))}
        # Not with the result: it would be stored twice.
        context.add_asset_metadata(first | metadata)
        return dg.MaterializeResult(value=figures)

    return group_reliability
