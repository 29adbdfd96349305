"""How is any command line run as a worker that outlives the process that started it?

The next start of a resource, from whatever process, finds what the last one left behind and ends
it first (see `launches`), so that there are never two workers under one id.
"""

import json
import logging
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from dagster_amoro.containers import placeholders, processes
from dagster_amoro.containers.base import Status, unusable, without_prefix
from dagster_amoro.containers.command import witnessed
from dagster_amoro.containers.command.launches import (
    LaunchFiles,
    Record,
    distinct,
    launch_of,
    launches_of,
    new_launch_id,
    properties_of,
    turn_all,
)
from dagster_amoro.containers.environment import Environment, build, chosen
from dagster_amoro.containers.given import DURATIONS, Given, seconds
from dagster_amoro.containers.output import Rotation, ending, home_folder, opened, size_of
from dagster_amoro.containers.processes import (
    LAUNCH_VARIABLE,
    WITNESS_VARIABLE,
    Launch,
    Worker,
)
from dagster_amoro.core.container_settings import CALL_PROPERTIES
from dagster_amoro.core.errors import (
    ContainerError,
    ReleaseFailedError,
    StartFailedError,
    describe,
)
from dagster_amoro.core.model import Resource
from dagster_amoro.core.post_mortem import LOST_HOST, NEVER_STARTED, PostMortem
from dagster_amoro.core.texts import shown
from dagster_amoro.core.values import parse_switch

_logger: Final = logging.getLogger(__name__)

_KEYS: Final = (
    *("command", "log-dir", "log-max-size", "log-files"),
    *("working-directory", "environment"),
    *("start-check", "termination-grace-period", "auto-restart"),
    *CALL_PROPERTIES,
)
_HERE: Final = "dagster_amoro.CommandContainer"
_EXPORT: Final = "export."  # Amoro's prefix of environment variables
_INHERIT: Final = "inherit"
_VARIABLES: Final = f"{_INHERIT}, or a JSON array of the names of environment variables"
_SIZES: Final = "a whole number with a unit, such as 500KB, 64MB or 1GB"
_COMMANDS: Final = (
    'a JSON array of texts such as ["my-worker", "--id", "{resource_id}"], '
    f"with {placeholders.ACCEPTED}"
)


class CommandContainer:
    """Runs each worker as a detached process of this host, from an argv list and without a shell.

    | property | meaning | default |
    |---|---|---|
    | `command` | JSON array of texts: program and arguments, with placeholders in braces | |
    | `log-dir` | folder of the workers' logs and launch records, which is ours alone | see below |
    | `log-max-size` | how large a log gets before it is put aside: `500KB`, `64MB`, `1GB` | 64MB |
    | `log-files` | how many logs that were put aside are kept, besides the present one | 3 |
    | `working-directory` | where the workers run | the starter's |
    | `environment` | `inherit`: all of Dagster's own; or a JSON array of the names of some | none |
    | `export.X` | environment variable X | |
    | `start-check` | how long a start is watched for an early end; 0: not at all | 1s |
    | `termination-grace-period` | from SIGTERM to SIGKILL | 10s |
    | `auto-restart` | false: orphans are reported and never touched | true |

    The placeholders are `{resource_id}`, `{group_name}`, `{thread_count}` and `{memory_mb}`; `{{`
    and `}}` stand for braces. Logs are kept in `$DAGSTER_HOME/workers`, or in
    `.dagster-amoro/workers` below the current directory where that variable is not set.

    A worker gets the variables that say how programs run on this host, such as `PATH` and `HOME`
    (see `environment`), those of Dagster's that `environment` names, and `export.*`.

    Logs are put aside at each tick that gives nothing to a run, and at each start, also those that
    workers go on writing to.

    Everything that a worker starts belongs to its launch and ends with it, unless it leaves both
    the worker's session and its environment.

    Raises:
        ConfigError: A property is missing, unknown or cannot be used.
    """

    is_of_one_host = True  # from another its workers are neither seen nor stopped

    def __init__(self, name: str, properties: Mapping[str, str]) -> None:
        given = Given(name, _HERE, properties)
        given.check_keys(_KEYS, prefix=_EXPORT)
        self.name: Final = name
        self._command: Final = given.read("command", None, parse_command, _COMMANDS)
        self._log_dir: Final = given.read("log-dir", str(home_folder("workers")), _folder, "a path")
        self._rotation: Final = Rotation(
            largest=given.read("log-max-size", "64MB", parse_size, _SIZES),
            files=given.read("log-files", "3", _count, "a whole number from 1 to 1000"),
        )
        self._directory: Final = given.read(
            "working-directory", "", lambda text: str(_folder(text)) if text else None, "a path"
        )
        self._inherited: Final = given.read("environment", "[]", parse_variables, _VARIABLES)
        self._start_check: Final = given.read("start-check", "1s", seconds, DURATIONS)
        self._patience: Final = given.read("termination-grace-period", "10s", seconds, DURATIONS)
        given.check_below("start-check", self._start_check, "start-timeout")
        given.check_below("termination-grace-period", self._patience, "stop-timeout")
        switch = given.read("auto-restart", "true", parse_switch, "true or false")
        self.supports_auto_restart: Final = switch
        self.exports: Final = _exports(given)

    @property
    def environment(self) -> Environment:
        """What each worker gets, but for the id of its launch."""
        names = self._inherited
        passed = dict(os.environ) if names is None else chosen(names)
        exports = {f"{_EXPORT}{key}": {key: value} for key, value in self.exports.items()}
        found = build(passed, exports)
        missing = sorted(set(names or ()).difference(os.environ))
        notes = [f"property environment names {name}, which is not set" for name in missing]
        return replace(found, notes=(*found.notes, *notes))

    def own_variables(self, resource: Resource) -> Mapping[str, str]:  # noqa: ARG002 - as others have it
        """What of a worker's environment is set here, not passed on."""
        return self.environment.own

    def problems(self) -> list[str]:
        """Why none of its workers can start on this host, as far as one sees without a start."""
        program = self._command[0]
        if placeholders.has_any(program):
            return []  # each worker has its own
        program = program.format()
        where = Path(self._directory or ".").absolute()
        if not where.is_dir():
            return [f"its working directory {str(where)!r} is not there"]
        path = self.environment.variables.get("PATH", os.defpath)
        # Joined to the folder, a path stays as it is where it is absolute.
        named = str(where / program) if os.sep in program else program
        if shutil.which(named, path=path):
            return []
        return [f"its program {program!r} is not there, or cannot be executed (PATH is {path!r})"]

    def command(self, resource: Resource) -> list[str]:
        """The argv of the resource's worker; a value never becomes more than one argument.

        Raises:
            StartFailedError: A value cannot be part of any argument.
        """
        values = placeholders.values_of(resource, self._command)
        return [text.format_map(values) for text in self._command]

    def request_resource(self, resource: Resource) -> Mapping[str, str]:
        """Starts the resource's worker, after ending what an earlier launch of it left behind.

        Returns:
            `command-pid`, `command-started-at`, `command-host` and `command-launch-id`.

        Raises:
            StartFailedError: It did not start or ended at once, an earlier launch could not be
                ended, or another start of it is under way.
        """
        argv = self.command(resource)
        with self._alone(resource, StartFailedError) as files:
            named, record = launch_of(resource), files.read()
            earlier = distinct(named, record.launch if record else None)
            # What runs on another host is reported by a release of the resource. A start that
            # refused because of it would refuse for ever where hosts are pods, whose names never
            # come back.
            if problems := self._end(*(each for each in earlier if not each.is_elsewhere)):
                raise StartFailedError(f"an earlier launch is in the way: {problems}")
            self.tend()
            return self._start(resource, argv, files, named.launch_id if named else None)

    def release_resource(self, resource: Resource) -> None:
        """Ends the launch that the resource's properties name, and one that followed it unsaved.

        A launch that followed a later one is somebody else's and stays.

        Raises:
            ReleaseFailedError: It may still be running.
        """
        with self._alone(resource, ReleaseFailedError) as files:
            if problems := self._end(*launches_of(resource, files.read())):
                raise ReleaseFailedError(problems)

    def tend(self) -> None:
        """Puts logs of workers of this host aside that grew too large."""
        turn_all(self._log_dir, self._rotation)

    def status(self, resource: Resource) -> Status:
        """Whether a worker of the resource runs on this host; unknown if it would on another."""
        try:
            launches = launches_of(resource, self._files(resource).read())
        except OSError:
            return "unknown"
        if any(processes.is_running(launch) for launch in launches if not launch.is_elsewhere):
            return "running"
        if not launches or any(launch.is_elsewhere for launch in launches):
            return "unknown"
        return "ended"

    def post_mortem(self, resource: Resource) -> PostMortem:
        """How the resource's last worker ended, by its witness, and the end of its log."""
        files = self._files(resource)
        launches = launches_of(resource, files.read())
        if not launches:
            return PostMortem(NEVER_STARTED, "no worker of it was ever started from this host")
        last = launches[-1]
        if last.is_elsewhere:
            where = f"it was started on host {last.host!r} and cannot be seen from here"
            return PostMortem(LOST_HOST, where)
        cause, text = witnessed.end_of(last, files.end)
        return PostMortem(cause, text, files.tail(0) if size_of(files.log) else "")

    def _files(self, resource: Resource) -> LaunchFiles:
        return LaunchFiles(self._log_dir, self.name, resource.resource_id)

    @contextmanager
    def _alone(self, resource: Resource, failure: type[ContainerError]) -> Iterator[LaunchFiles]:
        """Keeps others on this host from the resource; raises a `failure` for system errors."""
        files = self._files(resource)
        try:
            with files.locked():
                yield files
        except BlockingIOError as error:
            raise failure(
                f"another start of this resource is under way ({resource.resource_id!r})"
            ) from error
        except OSError as error:
            raise failure(f"resource {resource.resource_id!r}: {describe(error)}") from error

    def _end(self, *launches: Launch) -> str:
        """Ends launches; returns why some may still be running, if any."""
        problems = []
        for launch in launches:
            if launch.is_elsewhere:
                host = launch.host
                problems.append(f"it was started on host {host!r} and cannot be seen from here")
            elif stranger := processes.stranger(launch):
                problems.append(f"process {stranger}, which its row names, is somebody else's")
            elif left := processes.stop(launch, self._patience):
                problems.append(f"still running after SIGKILL: {', '.join(map(str, left))}")
        return "; ".join(problems)

    def _start(
        self, resource: Resource, argv: list[str], files: LaunchFiles, previous: str | None
    ) -> dict[str, str]:
        launch = Launch(
            launch_id=new_launch_id(resource.resource_id),
            host=socket.gethostname(),
            is_recorded=True,
        )
        files.write(Record(launch, previous))
        with opened(files.log, os.O_WRONLY | os.O_APPEND) as log:
            offset = os.fstat(log).st_size
            witness, pid = self._spawn(argv, launch, files, log)
        launch = replace(launch, pid=pid, started_at=processes.started_at(pid))
        try:
            files.write(Record(launch, previous))
            self._watch(witness, files, offset)
        except (OSError, StartFailedError) as error:
            if problem := self._end(launch):
                raise StartFailedError(f"{describe(error)}\n{problem}") from error
            raise
        return properties_of(launch)

    def _spawn(
        self, argv: list[str], launch: Launch, files: LaunchFiles, log: int
    ) -> tuple[Worker, int]:
        environment = self.environment
        for note in environment.notes:
            _logger.warning("container %r: %s", self.name, shown(note))
        try:
            return witnessed.spawn(
                argv,
                environment=environment.variables,
                directory=self._directory,
                log=log,
                end=files.end,
                launch_id=str(launch.launch_id),
            )
        except (OSError, ValueError) as error:
            why = describe(error)
            raise StartFailedError(f"{argv[0]!r} could not be started: {why}") from error

    def _watch(self, witness: Worker, files: LaunchFiles, offset: int) -> None:
        """Watches the worker for an early end; one with 0 is a launcher that has done its work."""
        if not self._start_check:
            return
        with suppress(subprocess.TimeoutExpired):
            if status := witness.wait(self._start_check):
                raise StartFailedError(
                    f"the worker ended at once {ending(status)}; {_log_shown(files, offset)}"
                )


def _exports(given: Given) -> dict[str, str]:
    found = without_prefix(_EXPORT, given.properties)
    for name, value in found.items():
        if problem := _unusable_variable(name, value):
            raise given.error(  # without its value, which may be a secret
                _EXPORT + name,
                f": {problem}; accepted is {_EXPORT} and the name of an environment variable",
            )
    return found


def _unusable_variable(name: str, value: str) -> str | None:
    if not name or "=" in name or unusable(name):
        return "that is no name of an environment variable"
    if name in (LAUNCH_VARIABLE, WITNESS_VARIABLE):
        return "this variable is set to the launch id"
    return f"its value {problem}" if (problem := unusable(value)) else None


def _usable(text: str) -> str:
    if problem := unusable(text):
        raise ValueError(f"it {problem}")
    return text


def _count(text: str) -> int:
    if not 1 <= (number := int(text)) <= 1000:  # noqa: PLR2004 - a bound, not a choice
        raise ValueError("too few or too many")
    return number


def parse_size(text: str) -> int:
    """A number of bytes; a ValueError says that the text is none."""
    found = re.fullmatch(r"([1-9][0-9]{0,8}) ?(KB|MB|GB)", text, re.IGNORECASE)
    if not found:
        raise ValueError("no size")
    return int(found[1]) << 10 * (1 + ["KB", "MB", "GB"].index(found[2].upper()))


def _folder(text: str) -> Path:
    if not text:
        raise ValueError("it is empty")
    return Path(_usable(text)).expanduser().absolute()


def parse_command(text: str) -> list[str]:
    """The arguments of a command, with their placeholders as `str.format` takes them.

    Raises:
        ValueError: It is not a JSON array of texts with known placeholders.
    """
    arguments = json.loads(text)
    if not isinstance(arguments, list) or not all(isinstance(part, str) for part in arguments):
        raise ValueError("not an array of texts")
    if not arguments or not arguments[0]:
        raise ValueError("it names no program")
    for argument in arguments:
        placeholders.check(_usable(argument))
    return arguments


def parse_variables(text: str) -> frozenset[str] | None:
    """The names of the variables that are inherited; None: all of them.

    Raises:
        ValueError: It is neither `inherit` nor a JSON array of names.
    """
    if text == _INHERIT:
        return None
    names = json.loads(text)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("not an array of texts")
    return frozenset(names)


def _log_shown(files: LaunchFiles, offset: int) -> str:
    try:
        tail = files.tail(offset)
    except OSError as error:
        return f"its log {files.log} cannot be read: {describe(error)}"
    return f"the end of its log {files.log}:\n{tail}" if tail else f"its log {files.log} is empty"
