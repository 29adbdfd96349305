"""Where does the audit come from? The registry's tables and the ledger, as external assets."""

from functools import partial

import dagster as dg
import sqlalchemy as sa

from dagster_amoro.asset_keys import AUDIT, DEFAULT, REGISTRY, Names


def sources(
    names: Names = DEFAULT, registry: sa.URL | None = None, ledger: sa.URL | None = None
) -> list[dg.AssetSpec]:
    """What Dagster does not make and the audit is made from, upstream first.

    With the databases of both, the assets say where their tables are, without users and passwords.
    """
    marks = names.translation
    table = partial(dg.AssetSpec, kinds={"sql", "table"}, owners=marks.owners, tags=marks.tags)
    sensor, audit_sensor = names.of("orphan_sensor"), names.of("audit_sensor")
    return [
        table(
            names.resources,
            metadata=_place(registry, "resource"),
            group_name=names.group(REGISTRY),
            description="Table `resource` of the registry: a row for every optimizer that a "
            "container was asked to start. A row stays when its optimizer dies; it is an orphan "
            "then. Written by AMS, or in standalone mode by dagster-amoro. Its observations are "
            f"what {sensor} reports of itself whenever it changes: resources, orphans, refused "
            "restarts, abstentions in a row, the age of the last survey, and who acts. Its checks "
            f"say what a person should look at; {audit_sensor} makes them.",
        ),
        table(
            names.optimizers,
            metadata=_place(registry, "optimizer"),
            group_name=names.group(REGISTRY),
            description="Table `optimizer` of the registry: a row for every optimizer that "
            "registered and still sends heartbeats. A row goes when its heartbeats end.",
        ),
        table(
            names.events,
            deps=[names.resources, names.optimizers],
            metadata=_place(ledger, "keeper_event"),
            partitions_def=names.groups,
            group_name=names.group(AUDIT),
            description="The ledger's append-only events of every incident, a partition per "
            f"optimizer group. {sensor} reports here what happened in each group since its "
            "last tick: how many orphans were detected, restarted, recovered or given up. Its "
            "observations are the attempts, each with its run.",
        ),
    ]


def _place(url: sa.URL | None, table: str) -> dict[str, str]:
    """Where a table is, in Dagster's words; the host where there are several is left out."""
    if url is None:
        return {}
    kind = url.get_backend_name()
    shown = sa.URL.create(kind, host=url.host, port=url.port, database=url.database)
    name = table if kind == "sqlite" else f"{url.database}.{table}"
    return {"dagster/table_name": name, "dagster/uri": shown.render_as_string()}
