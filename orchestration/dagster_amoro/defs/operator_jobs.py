"""What can operators tell the keeper from Dagster's launchpad? A job for each verb."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import dagster as dg
from pydantic import Field

from dagster_amoro.core.errors import KeeperError, describe
from dagster_amoro.core.pauses import Target
from dagster_amoro.core.secrets import hide_assigned
from dagster_amoro.healing import operations
from dagster_amoro.healing.keeper import Keeper
from dagster_amoro.healing.operations import end_of, target_of
from dagster_amoro.healing.status import take_status
from dagster_amoro.healing.status_table import as_json, render

_GROUP = "The name of a group, as the registry has it"
_RESOURCE = "The id of a resource, as the registry has it"


class View(dg.Config):
    """What is to be shown."""

    group: str | None = Field(default=None, description=f"{_GROUP}. Left out: all groups.")


class ByOperator(dg.Config):
    """Who wants something, and why."""

    author: str = Field(description="Who you are; it stands in the ledger for good.")
    reason: str = Field(description="Why you want it, in a few words; likewise.")


class Targeted(ByOperator):
    """Something about everything, a group or a resource."""

    group: str | None = Field(
        default=None, description=f"{_GROUP}. Left out, like the resource: everything."
    )
    resource: str | None = Field(
        default=None, description=f"{_RESOURCE}, instead of a group: this one alone."
    )


class PauseConfig(Targeted):
    """What is to be left alone, and until when."""

    until: str | None = Field(
        default=None,
        description="When the pause ends by itself, in ISO 8601 as in 2026-03-29T08:00+02:00; "
        "without a zone it is a local time of the machine that the run is on. Left out: when "
        "keeper_resume ends it.",
    )


class ResetConfig(ByOperator):
    """What gets a fresh budget."""

    group: str | None = Field(
        default=None, description=f"{_GROUP}: all its orphans, and its refill rounds."
    )
    resource: str | None = Field(default=None, description=f"{_RESOURCE}, instead of a group.")


class OfOrphan(ByOperator):
    """Something about one orphan."""

    resource: str = Field(description=f"{_RESOURCE}. It has to be an orphan.")


class OfRemoved(ByOperator):
    """Something about a resource that is not there any more."""

    resource: str = Field(description="The id of a resource that was given up or superseded.")


ConfigT = TypeVar("ConfigT", bound=dg.Config)
Metadata = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Told:
    """What a run says in the end."""

    line: str  # for the log
    metadata: Metadata


def build_operator_jobs(keeper: Keeper) -> list[dg.JobDefinition]:
    """The jobs `keeper_status`, `keeper_pause` and so on, each of one step."""
    verbs = _Verbs(keeper)
    return [
        _job("status", View, verbs.status, _STATUS),
        _job("pause", PauseConfig, verbs.pause, _PAUSE),
        _job("resume", Targeted, verbs.resume, _RESUME),
        _job("restart_now", OfOrphan, verbs.restart_now, _RESTART_NOW),
        _job("reset", ResetConfig, verbs.reset, _RESET),
        _job("give_up", OfOrphan, verbs.give_up, _GIVE_UP),
        _job("restore", OfRemoved, verbs.restore, _RESTORE),
    ]


_STATUS = (
    "Shows which deployment acts, what each group is short of, what is paused, and what happens "
    "next to each orphan and when. Changes nothing."
)
_PAUSE = (
    "Lets nothing be started or removed: nowhere, in a group, or for a resource. Incidents are "
    "opened and closed all the same. Pausing again replaces the earlier pause."
)
_RESUME = "Ends a pause: that of everything, of a group or of a resource."
_RESTART_NOW = (
    "Has an orphan restarted without waiting for the end of its grace period. It counts as an "
    "attempt, and is made even where they are used up."
)
_RESET = (
    "Gives a resource, or all of a group with its refill rounds, a fresh budget of attempts; also "
    "where a resource recovered so lately that its attempts would still count."
)
_GIVE_UP = (
    "Has an orphan given up without further attempts: it is released, and its row moves from the "
    "registry to the ledger, from where keeper_restore puts it back."
)
_RESTORE = (
    "Puts the row of a resource that was given up or superseded back as it was, and opens a new "
    "incident for it, so that it is restarted after its grace period."
)


class _Verbs:
    """The verbs, by their configuration."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper

    def status(self, config: View) -> _Told:
        status = take_status(self._keeper, config.group)
        table = dg.MetadataValue.md(f"```\n{render(status)}\n```")
        message = {"status": table, "json": dg.MetadataValue.json(json.loads(as_json(status)))}
        return _Told(render(status), message)

    def pause(self, config: PauseConfig) -> _Told:
        until = end_of(self._keeper.clock(), config.until)
        return self._do(operations.pause, config, _target(config), until=until)

    def resume(self, config: Targeted) -> _Told:
        return self._do(operations.resume, config, _target(config))

    def restart_now(self, config: OfOrphan) -> _Told:
        return self._do(operations.restart_now, config, config.resource)

    def reset(self, config: ResetConfig) -> _Told:
        return self._do(operations.reset, config, target_of(config.group, config.resource))

    def give_up(self, config: OfOrphan) -> _Told:
        return self._do(operations.give_up, config, config.resource)

    def restore(self, config: OfRemoved) -> _Told:
        return self._do(operations.restore, config, config.resource)

    def _do(
        self, verb: Callable[..., str], config: ByOperator, about: object, **more: object
    ) -> _Told:
        message = verb(self._keeper, about, author=config.author, reason=config.reason, **more)
        return _Told(message, {"result": message})


def _target(config: Targeted) -> Target:
    return target_of(config.group, config.resource)


def _job(
    verb: str, kind: type[ConfigT], act: Callable[[ConfigT], _Told], description: str
) -> dg.JobDefinition:
    """A job of one step, which fails with the reason where the verb is refused."""

    @dg.op(
        name=verb,
        config_schema=kind.to_fields_dict(),
        out=dg.Out(dg.Nothing),
        description=description,
    )
    def step(context: dg.OpExecutionContext) -> dg.Output[None]:
        try:
            message = act(kind(**context.op_config))
        except KeeperError as error:
            raise dg.Failure(hide_assigned(describe(error)), allow_retries=False) from None
        context.log.info(message.line)
        return dg.Output(None, metadata=message.metadata)

    @dg.job(
        name=f"keeper_{verb}",
        executor_def=dg.in_process_executor,
        tags={"dagster/max_retries": "0"},  # it would be done twice
        description=description,
    )
    def job() -> None:
        step()

    return job
