"""The asset `amoro/fleet_status`: how does the fleet do now, why, and what happens next?"""

from datetime import timedelta
from typing import Final

import dagster as dg

from dagster_amoro import telling
from dagster_amoro.asset_keys import DEFAULT, REGISTRY, Names
from dagster_amoro.core.errors import KeeperError, describe
from dagster_amoro.core.formatting import clock_time
from dagster_amoro.core.messages import AGE
from dagster_amoro.core.model import is_apply
from dagster_amoro.core.texts import shown_lines
from dagster_amoro.healing.post_mortems import PostMortems
from dagster_amoro.healing.status import Status, StatusReader
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro_audit import summaries
from dagster_amoro_audit.findings import Finding
from dagster_amoro_audit.inspection import Inspector, location_of

_PAUSES: Final = 10  # that are shown; more are counted
_DESCRIPTION: Final = """\
How the fleet does, as `dagster-amoro status` says it, since something last changed.
"""


def build_fleet_status(
    reader: StatusReader,
    post_mortems: PostMortems,
    ledger: Ledger,
    inspector: Inspector,
    names: Names = DEFAULT,
) -> dg.AssetsDefinition:
    """The asset, which `audit_sensor` refreshes whenever something of it changed.

    It asks itself why workers died where no refresh of a history has come to that yet.
    """

    @dg.asset(
        key=names.fleet,
        deps=[names.history],  # whose refresh learns why workers died
        retry_policy=dg.RetryPolicy(max_retries=3, delay=10, backoff=dg.Backoff.EXPONENTIAL),
        group_name=names.group(REGISTRY),
        owners=names.translation.owners,
        tags=names.translation.tags,
        kinds={"sql"},
        description=_DESCRIPTION,
    )
    def fleet_status(context: dg.AssetExecutionContext) -> dg.MaterializeResult:  # type: ignore[type-arg]
        post_mortems.learn()
        status = reader.read()
        survey = inspector.freshness(context.instance, status.at, location_of(context.run))
        metadata = metadata_of(status, links_of(ledger, status, names), survey)
        context.add_asset_metadata(metadata)  # not with the result: it would be stored twice
        return dg.MaterializeResult()

    return fleet_status


def look(reader: StatusReader) -> Status | str:
    """How the fleet does; where nobody can say it now, why."""
    try:
        return reader.read()
    except KeeperError as error:
        return describe(error)


def of_one(seen: Status | str, group: str, ledger: Ledger, names: Names) -> str:
    """How a group does, in Markdown."""
    if isinstance(seen, str):
        return summaries.unknown(seen)
    links = links_of(ledger, summaries.only(seen, group), names)
    return summaries.of_group(seen, group, links)


def of_all(seen: Status | str, names: Names) -> str:
    """How all groups do, in a line of Markdown with a link to more."""
    if isinstance(seen, str):
        return summaries.unknown(seen)
    return summaries.in_brief(seen, summaries.Links(names.pages))


def metadata_of(
    status: Status, links: summaries.Links, survey: Finding
) -> dict[str, dg.MetadataValue]:
    """What the page shows; what one reads first comes first."""
    tables = {
        "groups": summaries.groups_table(status) if status.groups else None,
        "orphans": summaries.orphans_table(status) if status.orphans else None,
        "given up": summaries.losses_table(status) if status.losses else None,
    }
    numbers = {
        "threads wanted": sum(each.wanted for each in status.groups),
        "threads live": sum(each.live for each in status.groups),
        "threads lost": sum(each.threads for each in status.losses),
        "open orphans": len(status.orphans),
        "resources lost": len(status.losses),
    }
    return {
        "now": summary(summaries.of_fleet(status, links)),
        **{name: table for name, table in tables.items() if table is not None},
        **({"paused": telling.text(_paused(status))} if status.pauses else {}),
        "last survey": telling.text(_last_survey(status, survey)),
        "who acts": telling.text(status.acting.message),
        **{name: dg.MetadataValue.int(number) for name, number in numbers.items()},
    }


def links_of(ledger: Ledger, status: Status, names: Names) -> summaries.Links:
    """Where the stories that are told first are seen in full, with the run that had each last."""
    orphans, losses, _ = summaries.found(status)
    some = slice(summaries.STORIES)
    numbers = [*(each.incident_id for each in orphans[some])]
    numbers += [each.incident_id for each in losses[some]]
    told = (number for number in numbers if number is not None)
    events = ((number, ledger.events(number)) for number in told)
    runs = (
        (number, [e.run_id for e in story if e.run_id and not is_apply(e.run_id)])
        for number, story in events
    )
    return summaries.Links(names.pages, {number: found[-1] for number, found in runs if found})


def summary(markdown: str) -> dg.MarkdownMetadataValue:
    """A few lines that are shown as they stand; names of others in them are escaped."""
    return dg.MetadataValue.md(markdown)


def _paused(status: Status) -> str:
    lines = [str(pause) for pause in status.pauses[:_PAUSES]]
    left = len(status.pauses) - len(lines)
    return shown_lines([*lines, *([f"and {left:,} more"] if left else [])])


def _last_survey(status: Status, survey: Finding) -> str:
    """When it was, and what is the matter if it is too long ago."""
    age = survey.metadata.get(AGE)
    at = "" if age is None else f"{clock_time(status.at - timedelta(seconds=age))}; "
    return f"{at}{survey.description}"
