"""The job `prune`: what is older than the retention goes, from the ledger and from the files."""

from collections import Counter
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from functools import cache, partial
from itertools import chain
from typing import TYPE_CHECKING, Final

import dagster as dg
from pydantic import Field

from dagster_amoro import telling
from dagster_amoro.asset_keys import DEFAULT, Names, partition_key
from dagster_amoro.config import AuditSettings
from dagster_amoro.core.clock import Clock
from dagster_amoro.core.formatting import clock_time, counted
from dagster_amoro.stores import audit_queries, pruning
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro.stores.pruning import Past
from dagster_amoro_audit.io_managers import HISTORY_STORE, HistoryIOManager

if TYPE_CHECKING:
    from dagster_amoro_audit.history_store import HistoryFolder

Why = Callable[[Past], str]
_NIGHTLY: Final = "23 3 * * *"
_OP: Final = "prune_past"
_NEEDED: Final = "kept, since their rows could be restored"
_NEWEST: Final = "kept, since readers know the ledger by its newest event"
_UNREAD: Final = "kept, since orphan_history has not settled them: materialize it"
_TOLD: Final = 20  # batches of a line in the log
_DESCRIPTION: Final = (
    "Deletes what is older than the retention: closed incidents of the ledger with their events "
    "(keeper.ledger-retention), and days of orphan_history (keeper.audit-retention); nothing, "
    "where these are not set. Open incidents stay, and so do the rows of removed resources that "
    "were not seen again, what the sums by day or the history do not have yet, and the newest "
    "event. It can be stopped and started again at any time."
)


class Prune(dg.Config):
    """Whether it is done."""

    dry_run: bool = Field(default=True, description="Says what would go, and deletes nothing.")


def build_prune_job(
    ledger: Ledger,
    settings: AuditSettings,
    stable_after: timedelta,
    clock: Clock,
    names: Names = DEFAULT,
) -> dg.JobDefinition:
    """The job; what recovered within `stable_after` stays, whatever the retention is."""
    history_store = names.of(HISTORY_STORE)

    @dg.op(
        name=names.of(_OP),
        out=dg.Out(dg.Nothing),
        required_resource_keys={history_store},
        description=_DESCRIPTION,
    )
    def prune_past(context: dg.OpExecutionContext, config: Prune) -> dg.Output[None]:
        store: HistoryIOManager = getattr(context.resources, history_store)
        log, dry_run = partial(telling.log, context), config.dry_run or ledger.dry_run
        now, found = clock(), Counter[str]()
        if settings.ledger_retention is not None:
            until = now - max(settings.ledger_retention, stable_after)
            why = kept(ledger, store, names.history)
            found += prune_ledger(ledger, until, why, log, dry_run=dry_run)
        if settings.retention is not None:
            keys = context.instance.get_dynamic_partitions(names.groups.name or "")
            folders = [store.folder(names.history, key) for key in keys]
            found["files"] = prune_files(folders, now - settings.retention, dry_run=dry_run)
        done = "would go" if dry_run else "deleted"
        numbers = {
            name if name.startswith("kept") else f"{name} {done}": dg.MetadataValue.int(number)
            for name, number in found.items()
        }
        return dg.Output(None, metadata=numbers)

    @dg.job(
        name=names.of("prune"),
        executor_def=dg.in_process_executor,
        tags=names.run_tags | {"dagster/max_retries": "0"},
        description=_DESCRIPTION,
    )
    def prune() -> None:
        prune_past()

    return prune


def build_prune_schedule(job: dg.JobDefinition, names: Names = DEFAULT) -> dg.ScheduleDefinition:
    """Every night, once somebody has turned it on, it deletes what is old."""
    return dg.ScheduleDefinition(
        names.of("prune_nightly"),
        job=job,
        cron_schedule=_NIGHTLY,
        run_config={"ops": {names.of(_OP): {"config": {"dry_run": False}}}},
        description="Deletes what is older than the retention. Look at a dry run of `prune` first.",
    )


def prune_ledger(
    ledger: Ledger, until: datetime, why: Why, log: Callable[[str], None], *, dry_run: bool
) -> Counter[str]:
    """Deletes what ended before a moment and is settled by day; says how much that is.

    And how much is kept, and `why`.
    """
    until, found = pruning.settled_before(ledger, until), Counter[str]()
    log(f"looking at what ended before {clock_time(until)}")
    batches = chain(pruning.incidents(ledger, until), pruning.events(ledger, until))
    for number, batch in enumerate(batches, start=1):
        reasons = [why(each) for each in batch]
        old = [each for each, reason in zip(batch, reasons, strict=True) if not reason]
        if not dry_run:
            pruning.delete(ledger, old)
        found.update(filter(None, reasons))
        found["incidents"] += sum(each.incident is not None for each in old)
        found["events"] += sum(each.events for each in old)
        if number % _TOLD == 0:
            numbers = counted(found["incidents"], "incident"), counted(found["events"], "event")
            log(f"{' and '.join(numbers)} so far")
    return found


def kept(ledger: Ledger, store: HistoryIOManager, history: dg.AssetKey) -> Why:
    """What says why something has to stay, though it is old; empty: it may go."""
    newest = pruning.newest_event(ledger)

    @cache
    def settled(group: str) -> int:
        """The event up to which the history has all; 0 where it is that of another ledger."""
        position = store.folder(history, partition_key(group)).position()
        if not position.event:
            return 0
        at = datetime.fromisoformat(position.event_at)
        is_ours = audit_queries.may_have_had(ledger, group, position.event, at)
        return position.settled if is_ours else 0

    def why(each: Past) -> str:
        if each.is_needed:
            return _NEEDED
        if each.event >= newest:
            return _NEWEST
        is_read = each.group is None or each.event <= settled(each.group)
        return "" if is_read else _UNREAD

    return why


def prune_files(folders: Iterable["HistoryFolder"], until: datetime, *, dry_run: bool) -> int:
    """Deletes the days of groups' histories before a moment; says how many files these are."""
    oldest, number = f"{until:%Y-%m-%d}", 0
    for folder in folders:
        number += folder.old(oldest)
        if not dry_run:
            folder.expire(folder.position(), oldest)
    return number
