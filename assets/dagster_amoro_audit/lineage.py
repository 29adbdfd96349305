"""Where does the audit come from? The registry's tables and the ledger, as external assets."""

import dagster as dg

from dagster_amoro.asset_keys import AUDIT, EVENTS, GROUPS, OPTIMIZERS, RESOURCES


def sources() -> list[dg.AssetSpec]:
    """What Dagster does not make and the audit is made from, upstream first."""
    return [
        dg.AssetSpec(
            RESOURCES,
            group_name="amoro",
            kinds={"sql", "table"},
            tags={"domain": "optimizers"},
            owners=["team:data-platform"],
            description=(
                "Table `resource` of the registry: a row for every optimizer that a container was "
                "asked to start. A row stays when its optimizer dies; it is an orphan then. "
                "Written by AMS, or in standalone mode by dagster-amoro. Its observations are what "
                "orphan_sensor tells of itself whenever it changes: resources, orphans, refused "
                "restarts, abstentions in a row, the age of the last survey, and who acts."
            ),
        ),
        dg.AssetSpec(
            OPTIMIZERS,
            group_name="amoro",
            kinds={"sql", "table"},
            tags={"domain": "optimizers"},
            owners=["team:data-platform"],
            description=(
                "Table `optimizer` of the registry: a row for every optimizer that registered and "
                "still sends heartbeats. A row goes when its heartbeats end."
            ),
        ),
        dg.AssetSpec(
            EVENTS,
            deps=[RESOURCES, OPTIMIZERS],
            partitions_def=GROUPS,
            group_name=AUDIT,
            kinds={"sql", "table"},
            tags={"domain": "optimizers"},
            owners=["team:data-platform"],
            description=(
                "The ledger's append-only story of every incident, a partition per optimizer "
                "group. orphan_sensor reports here what happened in each group since its last "
                "tick: how many orphans were detected, restarted, recovered or given up."
            ),
        ),
    ]
