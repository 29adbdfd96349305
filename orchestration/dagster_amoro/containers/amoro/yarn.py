"""Does an application run on YARN, and how is it ended there?

The program `yarn` is asked, as a person would: it knows the cluster, its high availability and its
logins. `flink cancel`, which AMS uses, needs Flink's own job id as well, and that is lost with the
optimizer that had registered it.
"""

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from dagster_amoro.containers import programs
from dagster_amoro.containers.output import end_of, size_of
from dagster_amoro.containers.programs import Program, ProgramError
from dagster_amoro.core.errors import ReleaseFailedError
from dagster_amoro.core.secrets import Mask

# A line of a program's output that ends with the application which it started. AMS looks for such a
# line too.
_APPLICATION_LINE: Final = re.compile(r"(.*)application_(\d+)_(\d+)", re.ASCII)
_APPLICATION_ID: Final = re.compile(r"application_\d+_\d+", re.ASCII)
_FIELD: Final = re.compile(r"^\s*(Application-Name|State) : (.*?)\s*$", re.MULTILINE)
_UNKNOWN: Final = "doesn't exist in RM"  # how `yarn` says that YARN knows no such application
_ENDED: Final = frozenset({"FINISHED", "FAILED", "KILLED"})
_TIMEOUT: Final = 60.0  # seconds for one call; without a limit it asks a dead YARN for 15 minutes


def start_application(program: Program, log: Path, timeout: float) -> str:
    """Runs a program until it names the application that it started, and returns that.

    Args:
        program: It may stay to report, and outlive us.
        log: The file that gets its output.
        timeout: Seconds that it has.

    Raises:
        ProgramError: It failed, named none, or took too long.
    """
    begin = size_of(log)
    found = programs.launch(program, log=log, line=_APPLICATION_LINE, timeout=timeout)
    if found is None:
        what = "ended with exit code 0 and named no application on YARN"
        raise programs.failure(program, what, end_of(log, begin))
    return f"application_{found[2]}_{found[3]}"


def end_application(
    application_id: str, name: str | None, exports: Mapping[str, str], mask: Mask
) -> None:
    """Kills an application on YARN unless it has ended, or is another one than it should be.

    AMS can write the id of another optimizer's application into a row. So the application's name
    decides.

    Args:
        application_id: `application_<number>_<number>`.
        name: The application's name; one that bears another is left alone. None: any may be ended.
        exports: The container's environment, on top of what is inherited.
        mask: Hides what the output of `yarn` may not show.

    Raises:
        ReleaseFailedError: There is no program `yarn`, it failed, or this is no application id.
    """
    if not _APPLICATION_ID.fullmatch(application_id):
        raise ReleaseFailedError(
            f"{mask.hide(repr(application_id))} is no id of an application on YARN; "
            "one is like application_1700000000000_0001"
        )
    if _is_to_be_ended(_status(application_id, exports, mask), name):
        try:
            _yarn("-kill", application_id, exports, mask)
        except ProgramError as error:
            raise _unended(application_id, error) from None


def _status(application_id: str, exports: Mapping[str, str], mask: Mask) -> dict[str, str]:
    """What YARN says of an application; nothing if it does not know it."""
    try:
        report = _yarn("-status", application_id, exports, mask)
    except ProgramError as error:
        if _UNKNOWN in str(error):
            return {}
        raise _unended(application_id, error) from None
    fields = {field[1]: field[2] for field in _FIELD.finditer(report)}
    if fields.keys() < {"Application-Name", "State"}:
        raise ReleaseFailedError(
            f"{application_id} may still be running: 'yarn application -status' did not say its "
            "name and state"
        )
    return fields


def _is_to_be_ended(status: Mapping[str, str], name: str | None) -> bool:
    runs = bool(status) and status["State"] not in _ENDED
    return runs and (name is None or status["Application-Name"] == name.strip())


def _yarn(option: str, application_id: str, exports: Mapping[str, str], mask: Mask) -> str:
    argv = [_program(exports), "application", option, application_id]
    return programs.run(Program(argv=argv, exports=exports, mask=mask), _TIMEOUT)


def _program(exports: Mapping[str, str]) -> str:
    """Where `yarn` is, by the environment that it will run in."""
    environment = {**os.environ, **exports}
    homes = [environment.get(each) for each in ("HADOOP_HOME", "HADOOP_YARN_HOME")]
    folders = [str(Path(home, "bin")) for home in homes if home]
    path = os.pathsep.join([*folders, environment.get("PATH", os.defpath)])
    if found := shutil.which("yarn", path=path):
        return found
    raise ReleaseFailedError(
        "there is no program 'yarn' to end the application with; set export.HADOOP_HOME in the "
        "container's properties, or put it on PATH"
    )


def _unended(application_id: str, error: ProgramError) -> ReleaseFailedError:
    return ReleaseFailedError(f"{application_id} may still be running: {error}")
