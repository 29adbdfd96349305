"""How is an optimizer started that runs on the host of AMS, as a process of its own?

As AMS's `LocalOptimizerContainer` does it, through `bin/optimizer.sh`, which leaves a Java process
running in the background. Nobody writes down that process: it is found by its command line.
"""

import os
import re
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import psutil

from dagster_amoro.containers import processes, programs
from dagster_amoro.containers.amoro.base import OptimizerContainer, required_of
from dagster_amoro.containers.amoro.local_logs import LOG_FOLDER, OptimizerLogs
from dagster_amoro.containers.base import Status
from dagster_amoro.containers.programs import Program
from dagster_amoro.containers.waiting import within
from dagster_amoro.core.ams_version import AskAmsVersion
from dagster_amoro.core.errors import ContainerError, ReleaseFailedError, StartFailedError, shorten
from dagster_amoro.core.model import Resource
from dagster_amoro.core.post_mortem import UNKNOWN, PostMortem

_AMS: Final = "org.apache.amoro.server.AmoroServiceContainer"  # the class of its process
_SCRIPT_TIMEOUT: Final = 60.0  # seconds; it only starts something in the background
_APPEARS_WITHIN: Final = 5.0  # seconds from the end of the script
_STAYS_FOR: Final = 2.0  # seconds that a process is watched: a wrong option ends it within one
_PATIENCE: Final = 10.0  # seconds between SIGTERM and SIGKILL
_POLL: Final = 0.1  # seconds between two looks at all processes of the host
_MEMORY: Final = re.compile(r"[0-9]{1,18}")  # AMS reads it into 64 bits
_UNSAFE: Final = re.compile(r"[^\w.\-]+", re.ASCII)
_LONGEST_NAME: Final = 200  # characters of a folder's name, which may have 255 bytes
_SHOWN: Final = 500  # characters of what the script said
_RESPLIT: Final = re.compile(r"[\s*]|\A\Z")


class LocalContainer(OptimizerContainer):
    """Amoro's local container: optimizers are processes of the host that AMS runs on.

    Dagster has to run there, too, as a user who may run `optimizer.sh`. Unlike AMS, it heeds the
    container's `export.*` properties, which AMS documents and ignores, and looks whether the
    optimizer runs. A JAVA_HOME where no Java is, such as that of AMS's own file, is not among them.

    The resource's property `memory` is required: MiB per thread, a whole number.

    Raises:
        ConfigError: A property is missing, or it is not known where Amoro is installed.
    """

    def __init__(
        self, name: str, properties: Mapping[str, str], ask_ams_version: AskAmsVersion | None = None
    ) -> None:
        super().__init__(name, properties, ask_ams_version)
        self._script: Final = Path(self.ams_home, "bin", "optimizer.sh")

    @property
    def supports_auto_restart(self) -> bool:
        """Always; a ContainerError if Amoro is not on this host, or nobody knows AMS's version."""
        if not self._is_here():
            raise ContainerError(
                f"container {self.name!r}: there is no executable file {str(self._script)!r} on "
                f"this host ({socket.gethostname()}); local optimizers are started where AMS is "
                "installed: run Dagster there, set keeper.ams-home if it is in another folder, or "
                "let the group use another container"
            )
        return super().supports_auto_restart

    def command(self, resource: Resource) -> list[str]:
        """The argv that starts the resource's optimizer; a value is never more than one argument.

        Raises:
            StartFailedError: `memory` is missing or no whole number, or a value cannot be used.
        """
        memory = required_of(resource, "memory")
        if not _MEMORY.fullmatch(memory):
            raise StartFailedError(
                f"property 'memory' is {memory!r} in the resource's row; AMS accepts digits only, "
                "the MiB per thread"
            )
        total = int(memory) * resource.thread_count
        return [str(self._script), "start", str(total), *self.arguments(resource)]

    def _start(self, resource: Resource) -> Mapping[str, str]:
        """Starts the optimizer and sees whether it runs for a moment; AMS too saves nothing."""
        argv, before = self.command(resource), set(processes_of(resource))

        def is_there() -> bool:
            return not before.issuperset(processes_of(resource))

        own = {**self.environment.variables, **self.own_variables(resource)}
        program = Program(argv=argv, environment=own, mask=self.mask(resource))
        logs = OptimizerLogs(self.ams_home, own)
        try:
            output = programs.run(program, _SCRIPT_TIMEOUT)
            if not within(_APPEARS_WITHIN, is_there, _POLL):
                raise _vanished("no process of it appeared", program, output)
            if within(_STAYS_FOR, lambda: not is_there(), _POLL):
                raise _vanished("its process ended at once", program, output)
        except ContainerError as error:
            raise StartFailedError(f"{error}\n{logs.written(program.mask)}") from None
        return {}

    def own_variables(self, resource: Resource) -> Mapping[str, str]:
        """What is set for the resource's start: the folder of its logs as well, as AMS does it."""
        return {LOG_FOLDER: log_folder(resource), **super().own_variables(resource)}

    def _end(self, resource: Resource) -> None:
        end_processes(resource, _PATIENCE)

    def differences(self, resource: Resource) -> list[str]:
        """In what a start differs from the one that AMS would make, which ignores `export.*`."""
        own = ", ".join(sorted(self.exports.keys() & self.environment.own.keys()))
        ignored = [f"AMS would not set {own}: it gives local optimizers no export.*"] if own else []
        return [*super().differences(resource), *ignored]

    def java(self) -> tuple[bool, str]:
        """Which Java its optimizers get, and whether those of AMS get the same as far as is known.

        AMS's own environment decides there, which is read where AMS runs on this host.
        """
        if not (ours := _java(self.environment.variables)):
            return False, "there is no Java, neither by JAVA_HOME nor on PATH"
        for pid, environment in processes.environments_of(_AMS):
            home = environment.get("AMORO_HOME", self.ams_home)  # `ams.sh` sets it
            if Path(home).resolve() != Path(self.ams_home).resolve():
                continue  # another AMS on this host
            theirs = _java(environment)
            return ours == theirs, f"Java is {ours}; AMS (process {pid}) gives its own {theirs}"
        return True, f"Java is {ours}; no process of AMS can be read here, to compare it with"

    def status(self, resource: Resource) -> Status:
        """Whether the resource's optimizer runs; unknown if Amoro is not on this host."""
        if processes_of(resource):
            return "running"
        return "ended" if self._is_here() else "unknown"

    def post_mortem(self, resource: Resource) -> PostMortem | None:
        """The end of its last optimizer's logs; None if Amoro is not on this host.

        How a process ended that AMS, or its script, has started, only its own log can say.
        """
        if not self._is_here():
            return None
        own = {**self.environment.variables, **self.own_variables(resource)}
        said = OptimizerLogs(self.ams_home, own, since_now=False).written(self.mask(resource))
        return PostMortem(UNKNOWN, end_here(resource, "optimizer"), said)

    def _is_here(self) -> bool:
        return shutil.which(self._script) is not None


def _java(environment: Mapping[str, str]) -> str:
    """What `optimizer.sh` runs: Java of JAVA_HOME, if that is a folder, else of PATH; or ''."""
    home = environment.get("JAVA_HOME", "")
    if home and Path(home).is_dir():
        return str(Path(home, "bin", "java").resolve())
    found = shutil.which("java", path=environment.get("PATH", os.defpath))
    return str(Path(found).resolve()) if found else ""


def _vanished(what: str, program: Program, output: str) -> StartFailedError:
    shown = shorten(program.mask.hide(output.strip()), _SHOWN) or "nothing"
    has_such = any(map(_RESPLIT.search, program.argv[3:]))
    hint = "; optimizer.sh splits arguments at blanks and expands wildcards, and some have such"
    return StartFailedError(
        f"optimizer.sh ended well, but {what}{hint if has_such else ''}; the script said:\n{shown}"
    )


def processes_of(resource: Resource) -> list[psutil.Process]:
    """The resource's optimizers on this host, and the programs that start them.

    AMS starts some of them, so that none has a mark of ours. Their class, and the script, are named
    after what they are; a row alone cannot make one of any other program.
    """
    options = {"-g": resource.group_name, "-id": resource.resource_id}
    return processes.started_with(options, naming="optimizer")


def end_here(resource: Resource, what: str) -> str:
    """What can be said of an optimizer on this host that nobody waits for."""
    if found := processes_of(resource):
        return f"its last {what}, process {found[0].pid}, runs, but has not registered"
    return f"its last {what} is gone from this host; its log may say why"


def end_processes(resource: Resource, patience: float) -> None:
    """Ends the resource's processes on this host, if there are any.

    They have `patience` seconds after SIGTERM until SIGKILL comes. A ReleaseFailedError says that
    some still run.
    """
    left = processes.end(processes_of(resource), patience)
    # What forks and ends during the first look can hide its child from it.
    if left := left or processes.end(processes_of(resource), patience):
        raise ReleaseFailedError(
            f"still running after SIGKILL, or another user's: {', '.join(map(str, left))}"
        )


def log_folder(resource: Resource) -> str:
    """The name of the folder for an optimizer's logs, below that of AMS: as AMS names it.

    Except that what only odd names hold, such as `/` and blanks, is a hyphen.
    """
    name = f"optimizer-{resource.group_name}-{resource.resource_id}"
    return _UNSAFE.sub("-", name)[:_LONGEST_NAME]
