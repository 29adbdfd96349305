"""How is an optimizer started that runs on the host of AMS, as a process of its own?

As AMS's `LocalOptimizerContainer` does it, through `bin/optimizer.sh`, which leaves a Java process
running in the background. Nobody writes down that process: it is found by its command line.
"""

import re
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import psutil

from dagster_amoro.containers import processes, programs
from dagster_amoro.containers.amoro.base import OptimizerContainer, required_of
from dagster_amoro.containers.base import Status
from dagster_amoro.containers.programs import Program
from dagster_amoro.containers.waiting import within
from dagster_amoro.core.ams_version import AskAmsVersion
from dagster_amoro.core.errors import ContainerError, ReleaseFailedError, StartFailedError, shorten
from dagster_amoro.core.model import Resource

_SCRIPT_TIMEOUT: Final = 60.0  # seconds; it only starts something in the background
_APPEARS_WITHIN: Final = 5.0  # seconds from the end of the script
_STAYS_FOR: Final = 2.0  # seconds that a process is watched: a wrong option ends it within one
_PATIENCE: Final = 10.0  # seconds between SIGTERM and SIGKILL
_POLL: Final = 0.1  # seconds between two looks at all processes of the host
_MEMORY: Final = re.compile(r"[0-9]{1,18}")  # AMS reads it into 64 bits
_UNSAFE: Final = re.compile(r"[^\w.\-]+", re.ASCII)
_LONGEST_NAME: Final = 200  # characters of a folder's name, which may have 255 bytes
_SHOWN: Final = 2000  # characters of what the script said
_RESPLIT: Final = re.compile(r"[\s*]|\A\Z")


class LocalContainer(OptimizerContainer):
    """Amoro's local container: optimizers are processes of the host that AMS runs on.

    Dagster has to run there, too, as a user who may run `optimizer.sh`. Unlike AMS, it heeds the
    container's `export.*` properties, which AMS documents and ignores, and looks whether the
    optimizer runs.

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

        exports = {"OPTIMIZER_LOG_DIR_NAME": log_folder(resource), **self.exports}
        program = Program(argv=argv, exports=exports, mask=self.mask(resource))
        output = programs.run(program, _SCRIPT_TIMEOUT)
        if not within(_APPEARS_WITHIN, is_there, _POLL):
            raise _vanished("no process of it appeared", program, resource, output)
        if within(_STAYS_FOR, lambda: not is_there(), _POLL):
            raise _vanished("its process ended at once", program, resource, output)
        return {}

    def _end(self, resource: Resource) -> None:
        end_processes(resource, _PATIENCE)

    def status(self, resource: Resource) -> Status:
        """Whether the resource's optimizer runs; unknown if Amoro is not on this host."""
        if processes_of(resource):
            return "running"
        return "ended" if self._is_here() else "unknown"

    def _is_here(self) -> bool:
        return shutil.which(self._script) is not None


def _vanished(what: str, program: Program, resource: Resource, output: str) -> StartFailedError:
    shown = shorten(program.mask.hide(output.strip()), _SHOWN) or "nothing"
    has_such = any(map(_RESPLIT.search, program.argv[3:]))
    hint = "; optimizer.sh splits arguments at blanks and expands wildcards, and some have such"
    return StartFailedError(
        f"optimizer.sh ended well, but {what}; optimizer.log.err in the folder "
        f"{log_folder(resource)} of Amoro's logs says more{hint if has_such else ''}; "
        f"the script said:\n{shown}"
    )


def processes_of(resource: Resource) -> list[psutil.Process]:
    """The resource's optimizers on this host, and the programs that start them."""
    return processes.started_with({"-g": resource.group_name, "-id": resource.resource_id})


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
