"""Does an application run on YARN, and how is it ended there?

The program `yarn` is asked, as a person would: it knows the cluster, its high availability and its
logins. `flink cancel`, which AMS uses, needs Flink's own job id as well, and that is lost with the
optimizer that had registered it.
"""

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from dagster_amoro.containers import programs
from dagster_amoro.containers.output import end_of, size_of
from dagster_amoro.containers.programs import Program, ProgramError
from dagster_amoro.core.errors import ReleaseFailedError
from dagster_amoro.core.model import Resource
from dagster_amoro.core.post_mortem import NEVER_STARTED, UNKNOWN, PostMortem, by_state
from dagster_amoro.core.secrets import Mask

ID: Final = "yarn-application-id"  # the start-up property that AMS saves

# A line that ends with the application which was started. AMS looks for such a line too.
_APPLICATION_LINE: Final = re.compile(r".*(application_\d+_\d+)", re.ASCII)
_APPLICATION_ID: Final = re.compile(r"application_\d+_\d+", re.ASCII)
_FIELD: Final = re.compile(
    r"^\s*(Application-Name|State|Final-State|Diagnostics) : (.*?)\s*$", re.MULTILINE
)
_UNKNOWN: Final = "doesn't exist in RM"  # how `yarn` says that YARN knows no such application
_ENDED: Final = frozenset({"FINISHED", "FAILED", "KILLED"})
_TIMEOUT: Final = 60.0  # seconds for one call; without a limit it asks a dead YARN for 15 minutes


def application_name(engine: str, resource: Resource) -> str:
    """What AMS calls the application of an optimizer."""
    return f"Amoro-{engine}-optimizer-{resource.group_name}-{resource.resource_id}"


def start_application(program: Program, log: Path, timeout: float) -> str:
    """Runs a program until it names the application that it started, and returns that.

    The program may stay to report into the log, and outlive us. A ProgramError says that it
    failed, named none, or took more than `timeout` seconds.
    """
    begin = size_of(log)
    found = programs.launch(program, log=log, line=_APPLICATION_LINE, timeout=timeout)
    if found is None:
        raise programs.nameless(program, "application on YARN", end_of(log, begin))
    return found[1]


def end_application(
    application_id: str, name: str | None, environment: Mapping[str, str], mask: Mask
) -> None:
    """Kills an application on YARN unless it has ended, or is another one than it should be.

    AMS can write the id of another optimizer's application into a row. So the application's name
    decides; without a `name`, any may be ended. `environment` is that of the program `yarn`.

    Raises:
        ReleaseFailedError: There is no program `yarn`, it failed, or this is no application id.
    """
    if not _APPLICATION_ID.fullmatch(application_id):
        raise ReleaseFailedError(
            f"{mask.hide(repr(application_id))} is no id of an application on YARN; "
            "one is like application_1700000000000_0001"
        )
    argv = [_program(environment), "application"]
    yarn = Program(argv=argv, environment=environment, mask=mask)
    try:
        status = _status(yarn, application_id)
        runs = bool(status) and status["State"] not in _ENDED
        if runs and (name is None or status["Application-Name"] == name.strip()):
            _run(yarn, "-kill", application_id)
    except ProgramError as error:
        raise ReleaseFailedError(f"{application_id} may still be running: {error}") from None


def post_mortem(resource: Resource, name: str | None, environment: Mapping[str, str]) -> PostMortem:
    """What YARN says of the last application of a resource; see `end_application`.

    A ContainerError says that `yarn` cannot be asked.
    """
    application_id = resource.properties.get(ID, "")
    if not _APPLICATION_ID.fullmatch(application_id):
        return PostMortem(NEVER_STARTED, "its row names no application on YARN")
    argv = [_program(environment), "application"]
    yarn = Program(argv=argv, environment=environment, mask=Mask(resource.properties))
    status = _status(yarn, application_id)
    if not status or (name is not None and status["Application-Name"] != name.strip()):
        return PostMortem(UNKNOWN, f"YARN does not know its last application {application_id}")
    final = status.get("Final-State", "UNDEFINED")
    state = status["State"] if final == "UNDEFINED" else final
    return by_state(f"its last application {application_id}", state, status.get("Diagnostics", ""))


def _status(yarn: Program, application_id: str) -> dict[str, str]:
    """What YARN says of an application; nothing if it does not know it."""
    try:
        fields = dict(_FIELD.findall(_run(yarn, "-status", application_id)))
    except ProgramError as error:
        if _UNKNOWN in str(error):
            return {}
        raise
    if fields.keys() < {"Application-Name", "State"}:
        raise ReleaseFailedError(
            f"{application_id} may still be running: 'yarn application -status' did not say its "
            "name and state"
        )
    return fields


def _run(yarn: Program, *arguments: str) -> str:
    return programs.run(replace(yarn, argv=[*yarn.argv, *arguments]), _TIMEOUT)


def _program(environment: Mapping[str, str]) -> str:
    """Where `yarn` is, by the environment that it will run in."""
    homes = [environment.get(each) for each in ("HADOOP_HOME", "HADOOP_YARN_HOME")]
    folders = [str(Path(home, "bin")) for home in homes if home]
    path = os.pathsep.join([*folders, environment.get("PATH", os.defpath)])
    if found := shutil.which("yarn", path=path):
        return found
    raise ReleaseFailedError(
        "there is no program 'yarn' to end the application with; set export.HADOOP_HOME in the "
        "container's properties, or put it on PATH"
    )
