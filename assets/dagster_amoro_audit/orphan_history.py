"""The asset `orphan_history`: a group's incidents and events, brought up to date by what is new."""

import warnings
from datetime import timedelta
from typing import Final

import dagster as dg

from dagster_amoro.asset_keys import AUDIT, EVENTS, GROUPS, HISTORY, group_name
from dagster_amoro.core.clock import Clock
from dagster_amoro.core.secrets import hide_assigned
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro_audit import columns
from dagster_amoro_audit.automation import whenever
from dagster_amoro_audit.io_managers import HISTORY_STORE, HistoryIOManager

_WHEN: Final = whenever(dg.AutomationCondition.any_deps_updated(), "the group's history went on")
_DESCRIPTION: Final = """\
What happened to the orphans of an optimizer group: which resource was orphaned when, what was
tried, and how it ended. One partition per group; a refresh adds what is new in the ledger.

Two tables: `incidents`, a row per incident, and `events`, a row for each thing that happened to an
incident or to the group, such as a scale-up, a pause or its end. Events of a dry run are there too,
and say so. Both tables are Parquet files by UTC day, in the folder that the metadata name:
`pandas.read_parquet("<folder>/incidents")`, or `SELECT * FROM '<folder>/events/*.parquet'` in
DuckDB.
"""


def build_orphan_history(
    ledger: Ledger, clock: Clock, grace: timedelta, retention: timedelta | None = None
) -> dg.AssetsDefinition:
    """The asset, which refreshes when the sensor reports that a group's history went on.

    The grace period in force is shown beside the times that recovery took. What is older than the
    retention is deleted from the audit's files, not from the ledger. None: nothing is.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)  # backfill policies are marked as beta

        @dg.asset(
            key=HISTORY,
            partitions_def=GROUPS,
            deps=[EVENTS],
            automation_condition=_WHEN,
            # Whoever materializes a thousand groups by hand wants one run, not a thousand.
            backfill_policy=dg.BackfillPolicy.single_run(),
            io_manager_key=HISTORY_STORE,
            required_resource_keys={HISTORY_STORE},
            retry_policy=dg.RetryPolicy(max_retries=3, delay=10, backoff=dg.Backoff.EXPONENTIAL),
            group_name=AUDIT,
            kinds={"pandas", "parquet"},
            owners=["team:data-platform"],
            tags={"domain": "optimizers"},
            code_version="3",
            metadata={
                "dagster/column_schema": dg.TableSchema(columns=list(columns.INCIDENTS)),
                "events: column schema": dg.TableSchema(columns=list(columns.EVENTS)),
            },
            description=_DESCRIPTION,
        )
        def orphan_history(context: dg.AssetExecutionContext) -> dg.MaterializeResult:  # type: ignore[type-arg]
            from dagster_amoro_audit.metadata import of_history
            from dagster_amoro_audit.refresh import refresh

            store: HistoryIOManager = getattr(context.resources, HISTORY_STORE)
            for key in context.partition_keys:
                folder = store.folder(HISTORY, key)
                now = clock()
                done = refresh(ledger, folder, group_name(key), now, retention)
                if done.is_another_ledger:
                    context.log.warning("Another ledger: the history of %s was set aside.", key)
                metadata = of_history(done, folder.tail(done.position, now), now, grace)
                location = {"folder": hide_assigned(str(folder.path))}  # a URL may hold a password
                context.add_asset_metadata(metadata | location, partition_key=key)
            # Without a value: the rows are in the files already, and need not be in memory at once.
            return dg.MaterializeResult()

    return orphan_history
