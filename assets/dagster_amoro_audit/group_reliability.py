"""How does the whole fleet do, and what should change? `group_reliability` and `what_if`."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final

import dagster as dg
import pandas as pd
import sqlalchemy as sa
from pydantic import Field

from dagster_amoro.asset_keys import HISTORY
from dagster_amoro.config import parse_duration
from dagster_amoro.core.formatting import duration
from dagster_amoro.core.model import EventKind, State
from dagster_amoro.core.policy import RestartPolicy
from dagster_amoro.healing.tick import uncollected
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro.stores.schema import event, incident
from dagster_amoro_audit import charts
from dagster_amoro_audit.automation import whenever
from dagster_amoro_audit.reliability import COLUMNS, reliability
from dagster_amoro_audit.what_if.advice import COLUMNS as ADVICE_COLUMNS
from dagster_amoro_audit.what_if.advice import (
    KINDS,
    LEAST_HISTORY,
    advice,
    compare,
    grid,
    recommend,
)

KEY: Final = dg.AssetKey("group_reliability")
STORE: Final = "frame_io_manager"  # the resource that keeps the frame
REPLAYED: Final = 20_000  # newest incidents that advice is based on: a second or two of work
_CHUNK: Final = 100_000  # rows that are read at once
_TABLE_ROWS: Final = 100  # that the UI shows
_LONGEST_ERROR: Final = 200  # characters that are read; fewer are shown
_LONGEST_GRACE: Final = timedelta(days=366)
_MOST_RETRIES: Final = 1000
_INCIDENT_TYPES: Final = {
    "group": "string",
    "incident": "int64",
    "resource": "string",
    "container": "string",
    "threads": "int64",
    "detected": "datetime64[us, UTC]",
    "attempts": "int64",
    "last_error": "string",
    "outcome": "string",
    "closed": "datetime64[us, UTC]",
}
_EVENT_TYPES: Final = {
    "incident": "int64",
    "kind": "string",
    "at": "datetime64[us, UTC]",
    "attempt": "Int64",
    "grace_seconds": "Float64",
    "max_retries": "Int64",
}
_CAPACITY_TYPES: Final = {
    "group": "string",
    "at": "datetime64[us, UTC]",
    "wanted": "Int64",
    "live": "Int64",
}
_NOTING: Final = (
    EventKind.DETECTED,
    EventKind.RECOVERED,
    EventKind.RELEASED,
    EventKind.SUPERSEDED,
)
"""The events in which ticks note the threads of the group."""
_WHEN: Final = whenever(
    # Every hour besides, because what happened "in the last hour" changes without any news.
    dg.AutomationCondition.any_deps_updated()
    | dg.AutomationCondition.cron_tick_passed("0 * * * *"),
    "a group's history went on, or an hour is over",
)


class WhatIf(dg.Config):
    """The policy to try on the recorded incidents."""

    grace_period: str = Field(
        description="How long an orphan would be left alone after its detection and after each "
        "attempt, such as 30s, 2min or 1h; a bare number is milliseconds."
    )
    max_retries: int | None = Field(
        default=None,
        description="How many attempts there would be before an orphan is given up. Left out: as "
        "many as now.",
    )
    group: str | None = Field(
        default=None, description="Only the incidents of this optimizer group. Left out: of all."
    )


def build_group_reliability(
    ledger: Ledger, policy: RestartPolicy, clock: Callable[[], datetime]
) -> dg.AssetsDefinition:
    """The asset, which refreshes when any group's history went on, and every hour.

    Args:
        ledger: Read as a whole for the figures; its newest `REPLAYED` incidents for the advice.
        policy: In force.
        clock: Says until when the figures go.
    """

    @dg.asset(
        key=KEY,
        deps=[HISTORY],
        automation_condition=_WHEN,
        io_manager_key=STORE,
        retry_policy=dg.RetryPolicy(max_retries=3, delay=10, backoff=dg.Backoff.EXPONENTIAL),
        group_name="audit",
        kinds={"pandas", "parquet"},
        owners=["team:data-platform"],
        tags={"domain": "optimizers"},
        code_version="1",
        metadata={"dagster/column_schema": dg.TableSchema(columns=list(COLUMNS))},
        description=(
            "How every optimizer group did in the last hour, day, week and ever: what died, what "
            "came back by itself or after how many attempts, how long it took, what was given up, "
            "how much of the wanted capacity was there, and which resources die again and again. "
            "And what another grace period would have done: the recorded incidents, run again."
        ),
    )
    def group_reliability() -> dg.MaterializeResult[pd.DataFrame]:
        now = clock()
        incidents = read_incidents(ledger)
        figures = reliability(incidents, read_capacity(ledger), now)
        newest = incidents.tail(REPLAYED)
        advised = _advised(newest, read_story(ledger, newest), grid(policy), now)
        drawn = _charts(incidents, advised, now, policy)
        # What is read first comes first; the long tables come last.
        metadata = {
            "recommendation": dg.MetadataValue.text(recommend(advised)),
            "policy in force": dg.MetadataValue.text(_told(policy)),
            **drawn,
            **_figures(figures),
            "other grace periods": _table(advised, ADVICE_COLUMNS),
        }
        return dg.MaterializeResult(value=figures, metadata=metadata)

    return group_reliability


def build_what_if_job(
    ledger: Ledger, policy: RestartPolicy, clock: Callable[[], datetime]
) -> dg.JobDefinition:
    """The job with which an operator asks what another policy would have done.

    Args:
        ledger: Its newest `REPLAYED` incidents are replayed.
        policy: In force, to compare with.
        clock: Says until when open incidents are known.
    """

    @dg.op(
        name="replay_incidents",
        out=dg.Out(dg.Nothing),
        description="Runs the recorded incidents again under another policy; changes nothing.",
    )
    def replay_incidents(context: dg.OpExecutionContext, config: WhatIf) -> dg.Output[None]:
        asked = _asked(config, policy)
        incidents = read_incidents(ledger, group=config.group, newest=REPLAYED)
        if incidents.empty:
            raise _refusal(f"there are no incidents{_of(config.group)} to replay")
        story = read_story(ledger, incidents, group=config.group)
        frame = _advised(incidents, story, _distinct(policy, asked), clock())
        answer = _answer(frame, asked)
        context.log.info(answer)
        return dg.Output(
            None,
            metadata={
                "answer": dg.MetadataValue.text(answer),
                "figures": _table(frame, ADVICE_COLUMNS),
                "policy in force": dg.MetadataValue.text(_told(policy)),
            },
        )

    @dg.job(
        executor_def=dg.in_process_executor,
        description=(
            "What if the grace period were two minutes? Runs the recorded incidents again under "
            "the policy that is typed in, and says what would have come of them. Changes nothing."
        ),
    )
    def what_if() -> None:
        replay_incidents()

    return what_if


def read_incidents(
    ledger: Ledger, *, group: str | None = None, newest: int | None = None
) -> pd.DataFrame:
    """The incidents of all groups or one, or the newest of them, in the order of their numbers.

    Those of a dry run are left out: what it did not do says nothing about a group.

    Raises:
        StoreUnavailableError: The ledger did not answer.
    """
    columns = (
        incident.c.group_name.label("group"),
        incident.c.incident_id.label("incident"),
        incident.c.resource_id.label("resource"),
        incident.c.container_name.label("container"),
        incident.c.thread_count.label("threads"),
        _moment(incident.c.detected_at).label("detected"),
        incident.c.attempts,
        sa.func.substr(incident.c.last_error, 1, _LONGEST_ERROR).label("last_error"),
        sa.type_coerce(incident.c.state, sa.String).label("outcome"),
        _moment(incident.c.closed_at).label("closed"),
    )
    newest_first = incident.c.incident_id.desc()
    query = sa.select(*columns).where(incident.c.dry_run == 0).order_by(newest_first)
    if group is not None:
        query = query.where(incident.c.group_name == group)
    frame = _read(ledger, query.limit(newest), _INCIDENT_TYPES, _with_outcomes)
    return frame.iloc[::-1].reset_index(drop=True)


def read_capacity(ledger: Ledger) -> pd.DataFrame:
    """The threads of the groups as ticks noted them: group, at, wanted and live.

    Raises:
        StoreUnavailableError: The ledger did not answer.
    """
    query = (
        sa.select(event.c.group_name.label("group"), _moment(event.c.at).label("at"), _DETAILS)
        .where(event.c.kind.in_(list(map(str, _NOTING))))
        .order_by(event.c.event_id)
    )
    return _read(ledger, query, _CAPACITY_TYPES, lambda rows: _noted(rows, ("wanted", "live")))


def read_story(
    ledger: Ledger, incidents: pd.DataFrame, *, group: str | None = None
) -> pd.DataFrame:
    """What advice needs of the events of these incidents and of those between them.

    Attempts that a dry run only noted are none.

    Args:
        ledger: Where they are told.
        incidents: In the order of their numbers.
        group: Of which all of them are; None: of several.

    Raises:
        StoreUnavailableError: The ledger did not answer.
    """
    kinds = [str(kind) for kind in (EventKind.DETECTED, *KINDS)]
    first = int(incidents["incident"].min()) if len(incidents) else 0
    query = (
        sa.select(
            event.c.incident_id.label("incident"),
            event.c.kind,
            _moment(event.c.at).label("at"),
            event.c.attempt,
            _DETAILS,
        )
        .where(event.c.incident_id >= first, event.c.kind.in_(kinds))
        .where(sa.or_(event.c.kind == EventKind.DETECTED, _DETAILS.not_like(_REHEARSED)))
        .order_by(event.c.event_id)
    )
    if group is not None:
        query = query.where(event.c.group_name == group)
    policy = ("grace_seconds", "max_retries")
    return _read(ledger, query, _EVENT_TYPES, lambda rows: _noted(rows, policy))


_DETAILS: Final = sa.type_coerce(event.c.details, sa.Text).label("details")
_REHEARSED: Final = '%"dry_run": true}'  # how the ledger ends the details of a dry run's events


def _moment(column: "sa.Column[Any]") -> "sa.TypeCoerce[datetime]":
    """A time without its zone, which is added to whole columns: that is several times faster."""
    return sa.type_coerce(column, sa.DateTime())


@uncollected()
def _read(
    ledger: Ledger,
    query: "sa.Select[Any]",
    types: Mapping[str, str],
    finish: Callable[[pd.DataFrame], pd.DataFrame],
) -> pd.DataFrame:
    """All rows of a query, a chunk at a time, so that only the columns asked for are held."""
    names = list(types)
    parts = [pd.DataFrame(columns=names).astype(types)]
    with ledger.reading() as connection:
        found = connection.execution_options(yield_per=_CHUNK).execute(query)
        for chunk in found.partitions():  # not read_sql: its errors hold the statement
            rows = pd.DataFrame(map(tuple, chunk), columns=list(found.keys()))
            parts.append(finish(_aware(rows, types)).astype(types)[names])
    return pd.concat(parts, ignore_index=True)


def _aware(rows: pd.DataFrame, types: Mapping[str, str]) -> pd.DataFrame:
    moments = [name for name, kind in types.items() if kind.startswith("datetime")]
    return rows.assign(**{name: pd.to_datetime(rows[name], utc=True) for name in moments})


def _with_outcomes(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(outcome=rows["outcome"].where(rows["closed"].notna()))


def _noted(rows: pd.DataFrame, names: Iterable[str]) -> pd.DataFrame:
    """With what their details say; there are few different ones, each is read once."""
    codes, texts = pd.factorize(rows["details"])
    details = [json.loads(text) for text in texts]
    noted = {name: pd.Series([message.get(name) for message in details]) for name in names}
    return rows.assign(**{name: values.reindex(codes).array for name, values in noted.items()})


def _advised(
    incidents: pd.DataFrame,
    story: pd.DataFrame,
    policies: Sequence[RestartPolicy],
    now: datetime,
) -> pd.DataFrame:
    """The advice on incidents, each with the policy that its detection noted."""
    detected = story[story["kind"] == EventKind.DETECTED].drop_duplicates("incident")
    policy = detected.set_index("incident")[["grace_seconds", "max_retries"]]
    return advice(incidents.join(policy, on="incident"), story, policies, now)


def _charts(
    incidents: pd.DataFrame, advised: pd.DataFrame, now: datetime, policy: RestartPolicy
) -> dict[str, dg.MetadataValue]:
    """What people would rather look at than read, for all groups together."""
    recovered = incidents["outcome"] == State.RECOVERED
    took = (incidents["closed"] - incidents["detected"]).where(recovered)
    timed = incidents.assign(time_to_recover=took)
    drawn = {
        "chart: grace periods compared": charts.advice_chart(advised[advised["group"].isna()]),
        "chart: time to recover": charts.recovery_times(timed, policy.grace_period),
        "chart: outcomes per day": charts.outcomes_per_day(timed, now),
    }
    return {name: charts.markdown(name, png) for name, png in drawn.items()}


def _figures(frame: pd.DataFrame) -> dict[str, dg.MetadataValue]:
    """The worst rows, and how many there are."""
    order = ["strength", "full_strength", "given_up"]
    worst = frame[frame["incidents"] > 0].sort_values(order, ascending=[True, True, False])
    return {
        "dagster/row_count": dg.MetadataValue.int(len(frame)),
        "reliability": _table(worst, COLUMNS),
    }


def _told(policy: RestartPolicy) -> str:
    message = f"{policy.max_retries} attempts, grace period {duration(policy.grace_period)}"
    return message if policy.enabled else f"auto-restart is off; otherwise {message}"


def _table(frame: pd.DataFrame, columns: Iterable[dg.TableColumn]) -> dg.MetadataValue:
    shown = [dg.TableColumn(c.name, "string", c.description) for c in columns]
    names = [column.name for column in shown]
    records = [
        dg.TableRecord(dict(zip(names, map(_cell, row), strict=True)))
        for row in frame.head(_TABLE_ROWS)[names].itertuples(index=False)
    ]
    return dg.MetadataValue.table(records, dg.TableSchema(columns=shown))


def _cell(value: Any) -> str:  # noqa: ANN401 - any value of a frame
    if pd.isna(value):
        return ""
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    return str(value)


def _asked(config: WhatIf, policy: RestartPolicy) -> RestartPolicy:
    try:
        grace = parse_duration(config.grace_period)
    except ValueError as error:
        raise _refusal(f"grace_period is {config.grace_period!r}: {error}") from None
    if grace > _LONGEST_GRACE:
        raise _refusal(f"grace_period is {config.grace_period!r}: a year is the most")
    retries = policy.max_retries if config.max_retries is None else config.max_retries
    if not 0 <= retries <= _MOST_RETRIES:
        raise _refusal(f"max_retries is {retries}: accepted is 0 to {_MOST_RETRIES}")
    return replace(policy, enabled=True, max_retries=retries, grace_period=grace)


def _refusal(problem: str) -> dg.Failure:
    return dg.Failure(f"Nothing was replayed: {problem}.", allow_retries=False)


def _of(group: str | None) -> str:
    return "" if group is None else f" of group {group!r}"


def _distinct(policy: RestartPolicy, asked: RestartPolicy) -> list[RestartPolicy]:
    return list(dict.fromkeys([replace(policy, enabled=True), asked]))


def _answer(frame: pd.DataFrame, asked: RestartPolicy) -> str:
    rows: list[dict[str, Any]] = frame[frame["group"].isna()].to_dict("records")  # type: ignore[assignment]
    wish = (asked.grace_period.total_seconds(), asked.max_retries)
    other = next(row for row in rows if (row["grace_seconds"], row["max_retries"]) == wish)
    current = next(row for row in rows if row["in_force"])
    few = current["closed"] < LEAST_HISTORY
    return ("From little history: " if few else "") + compare(other, current)
