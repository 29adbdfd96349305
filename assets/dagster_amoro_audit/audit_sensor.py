"""The sensor `audit_sensor`: has an answer of the audit changed? Where none has, nothing is stored.

It makes the checks itself, without a run, since they only read. It requests a run that refreshes
`orphan_history` of the groups that orphan_sensor reported something of, and `group_reliability`
when an incident began, ended, or left a window. So what changes by time alone is seen too.
`amoro/fleet_status` is made anew with either, and when an answer is another than before.

It is no automation condition of Dagster: that stores its evaluation, 20 KB and more, whenever
something changed, and each group that is not beside the others is a run of its own.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import groupby
from typing import Final

import dagster as dg

from dagster_amoro.asset_keys import DEFAULT, LEDGER_TAG, Names
from dagster_amoro.core.errors import KeeperError, describe
from dagster_amoro.core.formatting import counted
from dagster_amoro.core.texts import shown
from dagster_amoro_audit.checks import evaluation
from dagster_amoro_audit.findings import Finding
from dagster_amoro_audit.inspection import Inspector
from dagster_amoro_audit.memory import Memory, Told, dump, load
from dagster_amoro_audit.windows import Counts, counts

_SLOWEST: Final = timedelta(seconds=30)  # between two evaluations, at most
_REPEATED: Final = timedelta(days=1)  # after which an answer is told again though it is the same
_SLIDING: Final = timedelta(hours=1)  # at least, between refreshes as incidents leave windows
_LOST: Final = timedelta(hours=1)  # after which a run that does not end holds up no other
_EVENTS: Final = 1_000  # that are read at once
_RUNS: Final = 10  # at once; where more would be needed, groups between are refreshed as well
_ONE: Final = "dagster/partition"
_FIRST, _LAST = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"
_UNDER_WAY: Final = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
]
_DESCRIPTION: Final = (
    "Makes the checks of amoro/resource, without a run, and reports those whose answer changed; "
    "each at least once a day. Requests a refresh of orphan_history where the history of a group "
    "went on, and of group_reliability when incidents began, ended, or left one of its windows; "
    "fleet_status is made anew with either, or when an answer changed."
)


def build_audit_sensor(
    inspector: Inspector, tags: Mapping[str, str], names: Names = DEFAULT, *, is_running: bool
) -> dg.SensorDefinition:
    """The sensor; its runs have these tags. It is running by default, or stopped."""
    statuses = {True: dg.DefaultSensorStatus.RUNNING, False: dg.DefaultSensorStatus.STOPPED}

    @dg.sensor(
        name=names.of("audit_sensor"),
        target=dg.AssetSelection.assets(names.history, names.reliability, names.fleet),
        minimum_interval_seconds=int(min(inspector.check_interval, _SLOWEST).total_seconds()),
        default_status=statuses[is_running],
        description=_DESCRIPTION,
    )
    def audit_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        now, memory = inspector.clock(), load(context.cursor)
        found, seen, ledger, problem = _look(inspector, context, now)
        news = {name: each for name, each in found.items() if _is_new(each, memory, name, now)}
        told = {name: Told(each.answer, now.timestamp()) for name, each in news.items()}
        memory = _with_told(memory, told)
        requests: list[dg.RunRequest] = []
        mine = {**names.run_tags, **tags, LEDGER_TAG: ledger}
        if seen is not None and not _is_refreshing(context.instance, mine, now):
            memory = _with_news(memory, context.instance, names.events)
            memory, rows = _in_rows(memory, context.instance, names.groups)
            runs = [([names.history], row) for row in rows]
            if _are_due(memory, seen, now, inspector.policy.grace_period):
                memory = replace(memory, counts=seen, refreshed=now.timestamp())
                runs = runs or [([], [])]
                runs[0][0].append(names.reliability)
            if runs or memory.is_stale:
                memory = replace(memory, is_stale=False)
                runs = runs or [([], [])]
                runs[-1][0].append(names.fleet)  # which shows what the others learn
            requests = [_request(assets, row, mine) for assets, row in runs]
        said = f"{counted(len(news), 'answer')} of {counted(len(found), 'check')} changed{problem}"
        return dg.SensorResult(
            run_requests=requests,
            skip_reason=None if requests else shown(said),
            cursor=dump(memory),
            asset_events=[evaluation(*each, names) for each in news.items()],
        )

    return audit_sensor


def _with_told(memory: Memory, told: Mapping[str, Told]) -> Memory:
    """The memory after this was told; the page of the fleet is stale where an answer is another."""
    last = memory.told
    is_stale = any(name in last and last[name].answer != now.answer for name, now in told.items())
    return replace(memory, told={**last, **told}, is_stale=memory.is_stale or is_stale)


def _look(
    inspector: Inspector, context: dg.SensorEvaluationContext, now: datetime
) -> tuple[dict[str, Finding], Counts | None, str, str]:
    """What the checks find, the incidents of the windows, and the identity of the ledger.

    Where a store does not answer, the rest is left, and said why.
    """
    found: dict[str, Finding] = {}
    origin = context.code_location_origin
    try:
        looks = inspector.looks(context.instance, origin.location_name if origin else None)
        for name, look in looks.items():
            found[name] = look()
        return found, counts(inspector.ledger, now), inspector.ledger.identity, ""
    except KeeperError as error:
        return found, None, "", f"; the others are left for the next time: {describe(error)}"


def _is_new(found: Finding, memory: Memory, name: str, now: datetime) -> bool:
    """Whether a finding is to be told, after what was told of its check last."""
    last = memory.told.get(name)
    if last is None or now.timestamp() - last.at >= _REPEATED.total_seconds():
        return True
    return found.answer != last.answer


def _is_refreshing(instance: dg.DagsterInstance, tags: Mapping[str, str], now: datetime) -> bool:
    """Whether a run of the audit is under way, or waits: the next one takes up all that is new."""
    mine = dg.RunsFilter(tags=dict(tags), statuses=_UNDER_WAY, created_after=now - _LOST)
    return bool(instance.get_runs(mine, limit=1))


def _with_news(memory: Memory, instance: dg.DagsterInstance, reports: dg.AssetKey) -> Memory:
    """The memory with the partitions that orphan_sensor has reported something of since.

    Without a memory these are all that it ever reported something of.
    """
    is_first = memory.events is None
    found = instance.fetch_materializations(
        reports, limit=1 if is_first else _EVENTS, cursor=memory.events, ascending=not is_first
    )
    new: list[str | None] = [record.partition_key for record in found.records]
    if is_first:
        new = [*sorted(instance.get_materialized_partitions(reports))]
    pending = dict.fromkeys([*memory.pending, *(key for key in new if key is not None)])
    return replace(memory, events=found.cursor, pending=tuple(pending))


def _in_rows(
    memory: Memory, instance: dg.DagsterInstance, groups: dg.DynamicPartitionsDefinition
) -> tuple[Memory, list[list[str]]]:
    """The pending partitions, in rows; those that Dagster does not know yet stay pending."""
    every = instance.get_dynamic_partitions(groups.name or "") if memory.pending else []
    there = frozenset(every)
    left = tuple(key for key in memory.pending if key not in there)
    return replace(memory, pending=left), in_rows(memory.pending, every)


def _are_due(memory: Memory, seen: Counts, now: datetime, pace: timedelta) -> bool:
    """Whether the figures are others by now, and were not refreshed just before.

    What goes on with one orphan takes at least a grace period, which is the pace.
    """
    waited = timedelta(seconds=now.timestamp() - memory.refreshed)
    is_news = seen.is_news_after(memory.counts)
    return seen != memory.counts and waited >= (pace if is_news else _SLIDING)


def in_rows(keys: Collection[str], every: Sequence[str]) -> list[list[str]]:
    """The keys that are among all, those that stand in a row there together.

    Where these would be too many, one row from the first to the last of them.
    """
    found = groupby(every, frozenset(keys).__contains__)
    rows = [list(row) for is_mine, row in found if is_mine]
    if len(rows) <= _RUNS:
        return rows
    return [list(every[every.index(rows[0][0]) : every.index(rows[-1][-1]) + 1])]


def _request(
    assets: Sequence[dg.AssetKey], row: Sequence[str], tags: Mapping[str, str]
) -> dg.RunRequest:
    """A run of these assets, for the partitions from the first to the last of a row."""
    of = {_ONE: row[0]} if len(row) == 1 else {}
    of |= {_FIRST: row[0], _LAST: row[-1]} if len(row) > 1 else {}
    return dg.RunRequest(asset_selection=assets, tags={**tags, **of})
