"""What can operators tell the keeper from Dagster's launchpad? A job for each verb."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import dagster as dg

from dagster_amoro import telling
from dagster_amoro.asset_keys import DEFAULT, Names
from dagster_amoro.core import pages
from dagster_amoro.core.errors import KeeperError, describe
from dagster_amoro.core.fleet_plan import lines
from dagster_amoro.core.texts import shown_lines
from dagster_amoro.healing.apply import Applier
from dagster_amoro.healing.operations import Operations
from dagster_amoro.healing.status import StatusReader, as_json
from dagster_amoro.healing.verbs import (
    APPLY,
    GROUP,
    KNOWN,
    STATUS,
    VERBS,
    Command,
    Parameter,
    Values,
    Verb,
    by_declaration,
    os_user,
)

# Of a run: who launched it, where Dagster knows users (Dagster+), or whoever stands before it does.
_USER_TAG: Final = "user"
Answer = tuple[str, Mapping[str, Any]]
"""What a run says in the end: a line for the log, and its metadata."""


def build_operator_jobs(
    operations: Operations, status: StatusReader, applier: Applier, names: Names = DEFAULT
) -> list[dg.JobDefinition]:
    """The jobs `keeper_status`, `keeper_apply`, `keeper_pause` and so on, each of one step."""
    verbs = [_job(verb, names, partial(_do, verb, operations)) for verb in VERBS]
    showing = _job(STATUS, names, partial(_show_status, status))
    return [showing, _job(APPLY, names, partial(_apply, applier)), *verbs]


def _show_status(reader: StatusReader, values: Values) -> Answer:
    from dagster_amoro.healing.status_table import render  # noqa: PLC0415 - loads rich

    status = reader.read(values["group"])
    text, fields = render(status), json.loads(as_json(status))
    return text, {"status": telling.block(text), "json": dg.MetadataValue.json(fields)}


def _apply(applier: Applier, values: Values) -> Answer:
    """Releases nothing, and leaves what was given up: nobody has seen the difference."""
    plan = applier.plan(unattended=True)
    applied = applier.apply(plan.to_do(), **by_declaration(values))
    difference, done = shown_lines(lines(plan)), shown_lines(applied.lines())
    if not applied.is_good:
        raise KeeperError(done)
    return done, {"result": telling.block(done), "difference": telling.block(difference)}


def _do(verb: Verb, operations: Operations, values: Values) -> Answer:
    sentence = verb.act(operations, values)
    return sentence, telling.texts({"result": sentence})


def _job(command: Command, names: Names, act: Callable[[Values], Answer]) -> dg.JobDefinition:
    """A job of one step, which fails with the reason where the command is refused."""
    name, description = command.name.replace("-", "_"), f"{command.summary} {command.details}"

    @dg.op(
        name=names.of(name),
        config_schema={each.name: _field(each) for each in command.parameters if each.in_jobs},
        out=dg.Out(dg.Nothing),
        description=description,
    )
    def step(context: dg.OpExecutionContext) -> dg.Output[None]:
        try:
            known = context.run.tags.get(_USER_TAG) or os_user()
            line, metadata = act({**context.op_config, KNOWN: known})
        except KeeperError as error:
            raise telling.failure(describe(error)) from None
        telling.log(context, line)
        return dg.Output(None, metadata=metadata)

    @dg.job(
        name=names.of(f"keeper_{name}"),
        executor_def=dg.in_process_executor,
        config={"ops": {names.of(name): {"config": _filled_in(command)}}},
        tags=names.run_tags | {"dagster/max_retries": "0"},  # it would be done twice
        description=description,
    )
    def job() -> None:
        step()

    return job


def _filled_in(command: Command) -> dict[str, str | None]:
    """What the launchpad opens with: valid, with all that can be said.

    What a verb is about is a name that nothing has, for a person to put another in its place: a
    launch of what was left as it is does nothing.
    """
    known = {"author": pages.LAUNCHED_BY, "reason": pages.NO_REASON}
    is_verb = isinstance(command, Verb)
    return {
        each.name: known.get(each.name, each.metavar)
        if each.is_required or (is_verb and each.name == GROUP.name)
        else None
        for each in command.parameters
        if each.in_jobs
    }


def _field(parameter: Parameter) -> dg.Field:
    if parameter.is_required:
        return dg.Field(dg.StringSource, description=parameter.help)
    return dg.Field(dg.Noneable(dg.StringSource), default_value=None, description=parameter.help)
