"""The asset `orphan_history`: a group's incidents and events, brought up to date by what is new."""

import warnings
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Final

import dagster as dg

from dagster_amoro import telling
from dagster_amoro.asset_keys import AUDIT, DEFAULT, Names, group_name
from dagster_amoro.core.clock import Clock
from dagster_amoro.healing.post_mortems import PostMortems
from dagster_amoro.healing.status import StatusReader
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro_audit import columns
from dagster_amoro_audit.fleet_status import look, of_one, summary
from dagster_amoro_audit.io_managers import HISTORY_STORE, HistoryIOManager

if TYPE_CHECKING:
    from dagster_amoro_audit.history_store import HistoryFolder

_DESCRIPTION: Final = """\
What happened to the orphans of an optimizer group: which resource was orphaned when, what was
tried, and how it ended. One partition per group; a refresh adds what is new in the ledger.

Two tables: `incidents`, a row per incident, and `events`, a row for each thing that happened to an
incident or to the group, such as a scale-up, a pause or its end. Events of a dry run are there too,
and say so. Both tables are Parquet files by UTC day, in the folder that the metadata name:
`pandas.read_parquet("<folder>/incidents")`, or `SELECT * FROM '<folder>/events/*.parquet'` in
DuckDB.
"""

_SCHEMAS: Final = {
    "dagster/column_schema": dg.TableSchema(columns=list(columns.INCIDENTS)),
    "events: column schema": dg.TableSchema(columns=list(columns.EVENTS)),
}


def build_orphan_history(  # noqa: PLR0913 - all that the asset is made from
    ledger: Ledger,
    post_mortems: PostMortems,
    status: StatusReader,
    clock: Clock,
    grace: timedelta,
    *,
    retention: timedelta | None = None,
    names: Names = DEFAULT,
) -> dg.AssetsDefinition:
    """The asset, which `audit_sensor` refreshes where orphan_sensor reports news of a group.

    It asks containers first why workers died, so that this is known before anything is tried. The
    grace period in force is shown beside the times that recovery took. What is older than the
    retention is deleted from the audit's files, not from the ledger. None: nothing is.
    """
    history_store = names.of(HISTORY_STORE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)  # backfill policies are marked as beta

        @dg.asset(
            key=names.history,
            partitions_def=names.groups,
            deps=[names.events],
            # Whoever materializes a thousand groups by hand wants one run, not a thousand.
            backfill_policy=dg.BackfillPolicy.single_run(),
            io_manager_key=history_store,
            required_resource_keys={history_store},
            retry_policy=dg.RetryPolicy(max_retries=3, delay=10, backoff=dg.Backoff.EXPONENTIAL),
            group_name=names.group(AUDIT),
            owners=names.translation.owners,
            tags=names.translation.tags,
            kinds={"pandas", "parquet"},
            code_version="4",
            metadata=_SCHEMAS,
            description=_DESCRIPTION,
        )
        def orphan_history(context: dg.AssetExecutionContext) -> dg.MaterializeResult:  # type: ignore[type-arg]
            from dagster_amoro_audit.metadata import of_history
            from dagster_amoro_audit.pictures import Pictures
            from dagster_amoro_audit.refresh import refresh

            store: HistoryIOManager = getattr(context.resources, history_store)
            post_mortems.learn([group_name(key) for key in context.partition_keys])
            seen = cache(lambda: look(status))  # with the causes that were just learned
            for key in context.partition_keys:
                folder = store.folder(names.history, key)
                now = clock()
                done = refresh(ledger, folder, group_name(key), now, retention)
                if done.is_another_ledger:
                    telling.log(context, f"Another ledger: the history of {key} was set aside.")
                tail, pictures = folder.tail(done.position, now), Pictures(folder.path / "pictures")
                first = {"now": summary(of_one(seen(), group_name(key), ledger, names))}
                metadata = first | of_history(done, tail, now, grace, pictures)
                context.add_asset_metadata(metadata | _place(folder), partition_key=key)
            # Without a value: the rows are in the files already, and need not be in memory at once.
            return dg.MaterializeResult()

    return orphan_history


def _place(folder: "HistoryFolder") -> dict[str, dg.MetadataValue]:
    """Where the files are; a URL may hold a password."""
    return {"folder": telling.text(str(folder.path))}
