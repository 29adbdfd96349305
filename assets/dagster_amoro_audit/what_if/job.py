"""The job `what_if`: an operator asks what another policy would have done."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

import dagster as dg
from pydantic import Field

from dagster_amoro import telling
from dagster_amoro.asset_keys import DEFAULT, Names
from dagster_amoro.core.clock import Clock
from dagster_amoro.core.policy import RestartPolicy
from dagster_amoro.core.values import parse_duration
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro_audit.columns import ADVICE

if TYPE_CHECKING:
    import pandas as pd

_LONGEST_GRACE: Final = timedelta(days=366)
_MOST_RETRIES: Final = 1000


class WhatIf(dg.Config):
    """The policy to try on the recorded incidents."""

    grace_period: str = Field(
        description="How long an orphan would be left alone after its detection and after each "
        "attempt, such as 30s, 2min or 1h; a bare number is milliseconds."
    )
    max_retries: int | None = Field(
        default=None,
        description="How many attempts an orphan would have before it is given up. Left out: as "
        "many as now.",
    )
    group: str | None = Field(
        default=None, description="Only the incidents of this optimizer group. Left out: of all."
    )


def build_what_if_job(
    ledger: Ledger, policy: RestartPolicy, clock: Clock, names: Names = DEFAULT
) -> dg.JobDefinition:
    """The job, whose one step replays the ledger's newest incidents and answers in its metadata.

    The policy is the one in force, to compare with.
    """

    @dg.op(
        name=names.of("replay_incidents"),
        out=dg.Out(dg.Nothing),
        description="Runs the recorded incidents again under another policy; changes nothing.",
    )
    def replay_incidents(context: dg.OpExecutionContext, config: WhatIf) -> dg.Output[None]:
        from dagster_amoro_audit.metadata import policy_in_force, table
        from dagster_amoro_audit.what_if.advice import answer

        wished = _wished(config, policy)
        policies = list(dict.fromkeys([replace(policy, enabled=True), wished]))
        advised = _replayed(ledger, config.group, policies, clock())
        text = answer(advised, wished)
        telling.log(context, text)
        metadata: dict[str, dg.MetadataValue] = {
            "answer": telling.text(text),
            "figures": table(advised, [column.name for column in ADVICE]),
            "policy in force": policy_in_force(policy),
        }
        return dg.Output(None, metadata=metadata)

    @dg.job(
        name=names.of("what_if"),
        executor_def=dg.in_process_executor,
        tags=names.run_tags,
        description="What if the grace period were two minutes? Runs the recorded incidents again "
        "under the policy that is typed in, and says what would have come of them. "
        "Changes nothing.",
    )
    def what_if() -> None:
        replay_incidents()

    return what_if


def _replayed(
    ledger: Ledger, group: str | None, policies: list[RestartPolicy], now: datetime
) -> "pd.DataFrame":
    from dagster_amoro_audit.fleet_history import REPLAYED, read_incidents, read_record
    from dagster_amoro_audit.what_if.advice import advice

    incidents = read_incidents(ledger, group=group, newest=REPLAYED)
    if incidents.empty:
        of_group = "" if group is None else f" of group {group!r}"
        raise _refusal(f"there are no incidents{of_group} to replay")
    return advice(*read_record(ledger, incidents, group=group), policies, now)


def _wished(config: WhatIf, policy: RestartPolicy) -> RestartPolicy:
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
    return telling.failure(f"Nothing was replayed: {problem}.")
