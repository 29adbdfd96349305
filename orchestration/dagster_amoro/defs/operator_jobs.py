"""What can operators tell the keeper from Dagster's launchpad? A job for each verb."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import dagster as dg

from dagster_amoro.core.errors import KeeperError, describe
from dagster_amoro.core.secrets import hide_assigned
from dagster_amoro.healing.operations import Operations
from dagster_amoro.healing.status import StatusReader, as_json
from dagster_amoro.healing.verbs import STATUS, VERBS, Command, Parameter, Values, Verb

Answer = tuple[str, Mapping[str, Any]]
"""What a run says in the end: a line for the log, and its metadata."""


def build_operator_jobs(operations: Operations, status: StatusReader) -> list[dg.JobDefinition]:
    """The jobs `keeper_status`, `keeper_pause` and so on, each of one step."""
    verbs = [_job(verb, partial(_do, verb, operations)) for verb in VERBS]
    return [_job(STATUS, partial(_show_status, status)), *verbs]


def _show_status(reader: StatusReader, values: Values) -> Answer:
    from dagster_amoro.healing.status_table import render  # noqa: PLC0415 - loads rich

    status = reader.read(values["group"])
    text, fields = render(status), json.loads(as_json(status))
    table = dg.MetadataValue.md(f"```\n{text}\n```")
    return text, {"status": table, "json": dg.MetadataValue.json(fields)}


def _do(verb: Verb, operations: Operations, values: Values) -> Answer:
    sentence = verb.act(operations, values)
    return sentence, {"result": sentence}


def _job(command: Command, act: Callable[[Values], Answer]) -> dg.JobDefinition:
    """A job of one step, which fails with the reason where the command is refused."""
    name, description = command.name.replace("-", "_"), f"{command.summary} {command.details}"

    @dg.op(
        name=name,
        config_schema={each.name: _field(each) for each in command.parameters if each.in_jobs},
        out=dg.Out(dg.Nothing),
        description=description,
    )
    def step(context: dg.OpExecutionContext) -> dg.Output[None]:
        try:
            line, metadata = act(context.op_config)
        except KeeperError as error:
            raise dg.Failure(hide_assigned(describe(error)), allow_retries=False) from None
        context.log.info(line)
        return dg.Output(None, metadata=metadata)

    @dg.job(
        name=f"keeper_{name}",
        executor_def=dg.in_process_executor,
        tags={"dagster/max_retries": "0"},  # it would be done twice
        description=description,
    )
    def job() -> None:
        step()

    return job


def _field(parameter: Parameter) -> dg.Field:
    if parameter.is_required:
        return dg.Field(dg.StringSource, description=parameter.help)
    return dg.Field(dg.Noneable(dg.StringSource), default_value=None, description=parameter.help)
