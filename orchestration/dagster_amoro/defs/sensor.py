"""The sensor `orphan_sensor`: a tick every check interval, and its account for the UI."""

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from datetime import datetime
from typing import Any, Final, NamedTuple

import dagster as dg

from dagster_amoro import telling
from dagster_amoro.asset_keys import DEFAULT, LEDGER_TAG, Names, partition_key
from dagster_amoro.core.errors import KeeperError, UnansweredCommitError, describe
from dagster_amoro.core.formatting import counted
from dagster_amoro.core.messages import ABSTAINED, WATCHING
from dagster_amoro.core.model import EventKind
from dagster_amoro.core.policy import RunState, Verdict
from dagster_amoro.core.texts import shown
from dagster_amoro.core.tick_plan import RunPlan
from dagster_amoro.defs.cursor import Cursor, Numbers, dump_cursor, new_token, parse_cursor
from dagster_amoro.defs.metrics import news, of_abstention, of_standby, of_tick
from dagster_amoro.defs.restart_job import RESTART_POOL
from dagster_amoro.healing.check_in import CheckIn
from dagster_amoro.healing.preconditions import StandbyError, UncertainStateError
from dagster_amoro.healing.tick import Ticker, TickResult
from dagster_amoro.stores.ledger import EventMark, Ledger

RUN_KEY_TAG = "dagster/run_key"
PRIORITY_TAG = "dagster/priority"  # of a run in Dagster's queue: a number, 0 where there is none
# What the asset event of a group counts, and the kind of event that it is.
_REPORTED = {
    "detected": EventKind.DETECTED,
    "attempts": EventKind.ATTEMPT,
    "recovered": EventKind.RECOVERED,
    "exhausted": EventKind.EXHAUSTED,
    "released": EventKind.RELEASED,
    "superseded": EventKind.SUPERSEDED,
    "kept": EventKind.KEPT,
}
# An event takes Dagster 0.05 s to store in SQLite, and its daemon does nothing else meanwhile.
_GROUPS_AT_ONCE: Final = 200
# Where a group has no other news, its history is as it was: nobody has done anything yet.
_HANDED_OVER: Final = {EventKind.DISPATCHED, EventKind.CLAIMED}
_STATES = {  # of runs; what else there is, is active
    dg.DagsterRunStatus.QUEUED: RunState.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED: RunState.STARTING,
    dg.DagsterRunStatus.STARTING: RunState.STARTING,
    dg.DagsterRunStatus.SUCCESS: RunState.ENDED,
    dg.DagsterRunStatus.FAILURE: RunState.ENDED,
    dg.DagsterRunStatus.CANCELED: RunState.ENDED,
}
_ABOUT: Final = {
    Verdict.GIVE_UP: "to be given up",
    Verdict.KEEP: "out of attempts",
    Verdict.SUPERSEDE: "superseded",
    Verdict.RELEASE: "released",
}
_ANEW = (
    "The ledger is another one than before, or was restored: its events are told from the first on"
)
_WHERE_ENABLED = {True: dg.DefaultSensorStatus.RUNNING, False: dg.DefaultSensorStatus.STOPPED}
_DESCRIPTION = (
    "Looks for orphans: resources that no optimizer stands for. Records when they are "
    "found and how they end, and requests a run of restart_orphans for those whose grace "
    "period is over. If a store or AMS does not answer, it does nothing and says so. "
    "In standalone mode it also requests a run of scale_up_groups for groups below "
    "their min-parallelism."
)


def build_orphan_sensor(
    ticker: Ticker,
    restarting: dg.JobDefinition,
    scaling_up: dg.JobDefinition,
    names: Names = DEFAULT,
    check_in: CheckIn | None = None,
) -> dg.SensorDefinition:
    """The sensor that finds orphans and requests runs for those that are due.

    Of each survey that it completes `check_in` hears.
    """
    policy, interval = ticker.reader.policy, ticker.reader.settings.check_interval
    ledger, clock = ticker.reader.ledger, ticker.preconditions.clock

    @dg.sensor(
        name=names.of("orphan_sensor"),
        jobs=[restarting, scaling_up],
        minimum_interval_seconds=int(interval.total_seconds()),
        default_status=_WHERE_ENABLED[policy.enabled],
        description=_DESCRIPTION,
        metadata={
            "auto-restart-enabled": policy.enabled,
            "auto-restart-max-retries": policy.max_retries,
            "auto-restart-grace-period": str(policy.grace_period),
            "check interval": str(interval),
        },
    )
    def orphan_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        cursor = _cursor(context.cursor)
        try:
            tags = {**names.run_tags, LEDGER_TAG: ledger.identity}
            done = _tick(ticker, cursor, context.instance)
        except StandbyError as standby:
            numbers, following = of_standby(cursor, clock())
            return _idle(f"{WATCHING}: {standby}.", numbers, following, names)
        except KeeperError as error:
            return _abstention(error, cursor, clock(), names)
        done = _checked_in(done, check_in)
        if done.dispatches or done.scale_ups:
            telling.log(context, done.summary)
        told = read_news(ledger, cursor)
        if told.is_anew:
            telling.log(context, _ANEW)
        done = replace(done, summary=f"{done.summary}{told.said}")
        following = _following(told.cursor, done, ticker, clock())
        groups = {*done.snapshot.groups, *told.groups}
        reports = [_report(*each, names) for each in told.groups.items()]
        message = news(following.reported, cursor.reported, done.summary, names)
        requests = list(_requests(done, names, tags))
        new = _new_partitions(names, groups, context.instance)
        return _result(done, requests, new, [*reports, *message], following)

    return orphan_sensor


def _checked_in(done: TickResult, check_in: CheckIn | None) -> TickResult:
    """What a tick did, with why nobody outside heard of it; its runs do not wait for that."""
    if check_in is None:
        return done
    why = check_in.tell(wait=not (done.dispatches or done.scale_ups))
    said = f"{done.summary}. Nobody outside heard of it (keeper.check-in-url): {why}"
    return replace(done, summary=said) if why else done


def _cursor(text: str | None) -> Cursor:
    """The cursor, always with a token: where a first commit is not answered, its runs are known."""
    cursor = parse_cursor(text)
    return replace(cursor, token=cursor.token or new_token())


def _following(told: Cursor, done: TickResult, ticker: Ticker, now: datetime) -> Cursor:
    """The cursor after a tick that completed its survey."""
    return replace(
        told,
        detector=done.detector,
        last_served_group=done.plan.last_served_group,
        completed_at=now,
        abstentions=0,
        reported=of_tick(done, ticker.preconditions.deployment),
    )


def _tick(ticker: Ticker, cursor: Cursor, instance: dg.DagsterInstance) -> TickResult:
    return ticker.tick(
        lambda owners: run_states(instance, owners, ticker.reader.ledger.identity),
        cursor.detector,
        last_served_group=cursor.last_served_group,
        instance=_identity(instance),
        token=cursor.token,
    )


class News(NamedTuple):
    """What a tick tells of groups."""

    groups: Mapping[str, Mapping[str, int]]  # new events by group, then by kind
    cursor: Cursor  # after it
    is_anew: bool = False  # whether everything is told from the first event on
    left: int = 0  # groups that the next ticks tell of

    @property
    def said(self) -> str:
        """What the line of the tick adds; may be empty."""
        anew = f". {_ANEW}" if self.is_anew else ""
        if not self.left:
            return anew
        told = f"the news of {len(self.groups):,} groups are told"
        return f"{anew}; {told}, and those of {self.left:,} more by the next ticks"


def read_news(ledger: Ledger, cursor: Cursor) -> News:
    """New events of groups, of as many as Dagster's daemon stores in good time.

    Anew where the cursor's event is not in this ledger: another one took its place, or an older
    state of it. Left out are groups whose orphans were only handed over to runs. None if the ledger
    is away by now: runs that were dispatched must be requested all the same.
    """
    try:
        mark = ledger.mark(cursor.event)
        begun, is_anew = _resumed(cursor, mark)
        found, newest = ledger.changed_groups(begun.event, begun.until or None)
        mark = mark if newest == cursor.event else ledger.mark(newest)
    except KeeperError:
        return News({}, cursor)  # the next tick tells it
    changed = {name: kinds for name, kinds in found.items() if kinds.keys() - _HANDED_OVER}
    waiting = sorted(name for name in changed if name > begun.told_group or not begun.until)
    some = {name: changed[name] for name in waiting[:_GROUPS_AT_ONCE]}
    if left := len(waiting) - len(some):
        return News(some, replace(begun, until=newest, told_group=[*some][-1]), is_anew, left)
    after = replace(begun, event=newest, event_at=mark.at, until=0, told_group="")
    return News(some, after, is_anew)


def _resumed(cursor: Cursor, mark: EventMark) -> tuple[Cursor, bool]:
    """The cursor from which news are told in the ledger of this mark; whether that is anew."""
    is_anew = bool(cursor.event) and not _is_event_of(cursor, mark)
    if is_anew:
        cursor = replace(cursor, event=0, event_at=None)
    if cursor.ledger != mark.ledger:  # what was begun was begun in another
        cursor = replace(cursor, ledger=mark.ledger, until=0, told_group="")
    return cursor, is_anew


def _is_event_of(cursor: Cursor, mark: EventMark) -> bool:
    return (
        mark.at is not None
        and cursor.ledger in {None, mark.ledger}
        and cursor.event_at in {None, mark.at}
    )


def _abstention(error: KeeperError, cursor: Cursor, now: datetime, names: Names) -> dg.SensorResult:
    if isinstance(error, UncertainStateError):
        cursor = replace(cursor, detector=error.detector)
    numbers, following = of_abstention(cursor, now)
    what = "nothing was changed"
    if isinstance(error, UnansweredCommitError):
        what = "and the next tick finds out what was changed"
    return _idle(f"{ABSTAINED}, {what}: {describe(error)}", numbers, following, names)


def _idle(reason: str, numbers: Numbers, following: Cursor, names: Names) -> dg.SensorResult:
    """The result of a tick that did nothing, and says so."""
    return dg.SensorResult(
        skip_reason=shown(reason),
        cursor=dump_cursor(replace(following, reported=numbers)),
        asset_events=news(numbers, following.reported, reason, names),
    )


def run_states(
    instance: dg.DagsterInstance, owners: Sequence[str], ledger: str
) -> Mapping[str, RunState]:
    """What Dagster knows of the runs that have claims, by run id or by run key.

    A key counts only where the run acts for the ledger of this identity: others' may be equal.

    A run that Dagster does not know, because it was deleted or belongs to another deployment, is
    left out; its claim holds until it lapses.
    """
    by_id = instance.get_runs(dg.RunsFilter(run_ids=list(owners)))
    ours = {RUN_KEY_TAG: list(owners), LEDGER_TAG: ledger}
    by_key = instance.get_runs(dg.RunsFilter(tags=ours))
    states = {run.run_id: _state(run.status) for run in by_id}
    # A run that was executed again can carry the key too; the one that still lives counts.
    by_liveness = sorted(by_key, key=lambda run: _state(run.status) is not RunState.ENDED)
    return states | {run.tags[RUN_KEY_TAG]: _state(run.status) for run in by_liveness}


def _identity(instance: dg.DagsterInstance) -> str:
    """What tells this Dagster deployment from others: the number of its storage, if it has one."""
    ask = getattr(instance.run_storage, "get_run_storage_id", None)
    return str(ask()) if callable(ask) else ""


def _state(status: dg.DagsterRunStatus) -> RunState:
    return _STATES.get(status, RunState.ACTIVE)


def _result(
    done: TickResult,
    requests: Sequence[dg.RunRequest],
    new: Sequence[dg.AddDynamicPartitionsRequest],
    events: Sequence[dg.AssetMaterialization | dg.AssetObservation],
    following: Cursor,
) -> dg.SensorResult:
    if requests:
        following = replace(following, token=new_token())
    return dg.SensorResult(
        run_requests=requests,
        skip_reason=None if requests else shown(done.summary),
        cursor=dump_cursor(following),
        dynamic_partitions_requests=new,
        asset_events=events,
    )


def _new_partitions(
    names: Names, groups: AbstractSet[str], instance: dg.DagsterInstance
) -> list[dg.AddDynamicPartitionsRequest]:
    """What makes the partitions of those groups that have none; there may be nothing to make."""
    known = set(instance.get_dynamic_partitions(names.groups.name or ""))
    new = sorted({partition_key(group) for group in groups} - known)
    return [names.groups.build_add_request(new)] if new else []


def _report(group: str, kinds: Mapping[str, int], names: Names) -> dg.AssetMaterialization:
    """What happened in a group; numbers that are zero too, so that the UI can plot them."""
    counts = {name: kinds.get(kind, 0) for name, kind in _REPORTED.items()}
    metadata = {"new events": sum(kinds.values()), **counts}
    return dg.AssetMaterialization(names.events, partition=partition_key(group), metadata=metadata)


def _requests(done: TickResult, names: Names, common: Mapping[str, str]) -> Iterator[dg.RunRequest]:
    for run in done.dispatches:
        tags = {**common, **_group_tags(run.groups), "amoro/orphans": str(len(run.incidents))}
        if len(run.incidents) == 1:
            tags["amoro/resource"] = run.incidents[0].resource_id
        tags["amoro/about"] = _about(run, done.plan.verdicts)
        config = {"resources": {RESTART_POOL: {"config": {"dispatch": run.run_key}}}}
        yield _request(names.of("restart_orphans"), config, run.run_key, tags)
    for begun in done.scale_ups:
        tags = {**common, **_group_tags([each.group_name for each in begun.scale_ups])}
        config = {"ops": {names.of("claim_groups"): {"config": {"dispatch": begun.run_key}}}}
        yield _request(names.of("scale_up_groups"), config, begun.run_key, tags)


def _about(run: RunPlan, verdicts: Mapping[int, Verdict]) -> str:
    """What the list of runs says first of a run, whose tags it shows in their order."""
    first, *others = run.incidents
    if others:
        of = run.groups[0] if len(run.groups) == 1 else counted(len(run.groups), "group")
        return f"{counted(len(run.incidents), 'orphan')} of {of}"
    # Of a run that is requested again, the verdict was that of the tick before.
    verdict = verdicts.get(first.incident_id, Verdict.RESTART)
    attempt = f"attempt {first.attempts_spent + 1}"
    return f"{first.resource_id}, {_ABOUT.get(verdict, attempt)}"


def _group_tags(groups: Sequence[str]) -> dict[str, str]:
    number = {"amoro/groups": str(len(groups))}
    return {**number, "amoro/group": groups[0]} if len(groups) == 1 else number


def _request(
    job: str, config: Mapping[str, Any], key: str, tags: Mapping[str, str]
) -> dg.RunRequest:
    tags = {PRIORITY_TAG: "10", **telling.tags(tags)}  # ahead of what nobody waits for
    return dg.RunRequest(job_name=job, run_key=key, run_config=config, tags=tags)
