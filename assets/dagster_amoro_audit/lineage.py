"""Where does the audit come from? The registry's tables and the ledger, as external assets."""

from functools import partial
from typing import Final

import dagster as dg

from dagster_amoro.asset_keys import AUDIT, EVENTS, GROUPS, OPTIMIZERS, RESOURCES

_table: Final = partial(
    dg.AssetSpec,
    kinds={"sql", "table"},
    tags={"domain": "optimizers"},
    owners=["team:data-platform"],
)


def sources() -> list[dg.AssetSpec]:
    """What Dagster does not make and the audit is made from, upstream first."""
    return [
        _table(
            RESOURCES,
            group_name="amoro",
            description="Table `resource` of the registry: a row for every optimizer that a "
            "container was asked to start. A row stays when its optimizer dies; it is an orphan "
            "then. Written by AMS, or in standalone mode by dagster-amoro. Its observations are "
            "what orphan_sensor reports of itself whenever it changes: resources, orphans, refused "
            "restarts, abstentions in a row, the age of the last survey, and who acts.",
        ),
        _table(
            OPTIMIZERS,
            group_name="amoro",
            description="Table `optimizer` of the registry: a row for every optimizer that "
            "registered and still sends heartbeats. A row goes when its heartbeats end.",
        ),
        _table(
            EVENTS,
            deps=[RESOURCES, OPTIMIZERS],
            partitions_def=GROUPS,
            group_name=AUDIT,
            description="The ledger's append-only events of every incident, a partition per "
            "optimizer group. orphan_sensor reports here what happened in each group since its "
            "last tick: how many orphans were detected, restarted, recovered or given up.",
        ),
    ]
