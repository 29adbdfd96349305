"""How is a worker started so that its end is known, and what is known of it? See `witness`."""

import json
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Final, NamedTuple

import psutil

from dagster_amoro.containers import processes
from dagster_amoro.containers.output import ending, opened
from dagster_amoro.containers.processes import LAUNCH_VARIABLE, WITNESS_VARIABLE, Launch, Worker
from dagster_amoro.containers.waiting import within
from dagster_amoro.core.post_mortem import LOST_HOST, UNKNOWN, by_code

_WITNESS: Final = Path(__file__).with_name("witness.py")
_LARGEST_END: Final = 64 * 1024  # bytes; ours have some 100
_WRITING: Final = 2.0  # seconds that a witness may take to write down an end
_POLL: Final = 0.02  # seconds


class End(NamedTuple):
    """How a worker ended, as its witness wrote it down."""

    code: int  # its exit code; below zero: the signal that killed it
    seconds: float  # from its start
    for_memory: bool  # whether the kernel killed a process of its control group for memory


def spawn(  # noqa: PLR0913 - a program, and where its output, its end and itself belong
    argv: list[str],
    *,
    environment: Mapping[str, str],
    directory: str | None,
    log: int,
    end: Path,
    launch_id: str,
) -> tuple[Worker, int]:
    """Starts a program with a witness; returns the witness, which ends as it does, and its pid.

    Raises:
        OSError: It cannot be started.
        ValueError: Its arguments cannot be expressed in this system's encoding.
    """
    variables = [f"{name}={value}" for name, value in environment.items()]
    variables.append(f"{LAUNCH_VARIABLE}={launch_id}")
    told = [str(len(argv)), str(len(variables)), str(end), launch_id, *argv, *variables]
    content = b"".join(os.fsencode(text) + b"\0" for text in told)
    reports, report = os.pipe()
    with open(reports, "rb") as said:  # noqa: PTH123 - a descriptor
        try:
            witness = processes.spawn(
                [sys.executable, "-I", "-S", str(_WITNESS), str(report)],
                environment={WITNESS_VARIABLE: launch_id},
                directory=directory,
                log=log,
                stdin=processes.PIPE,
                pass_fds=[report],
            )
        finally:
            os.close(report)
        if witness.stdin is not None:
            with closing(witness.stdin) as pipe:
                pipe.write(content)
        pid, _, error = said.read().decode(errors="replace").partition("\n")
    if error:
        number, _, text = error.partition(" ")
        raise OSError(int(number), text)
    if not pid:
        raise OSError(f"its witness, {sys.executable}, ended before it")
    return witness, int(pid)


def end_of(launch: Launch, path: Path) -> tuple[str, str]:
    """The cause and the sentence for the end of a launch of this host; see `PostMortem`.

    An OSError says that what its witness wrote cannot be read.
    """
    end = _written(path, launch.launch_id)
    if end and end.code:  # else what it left in the background may run, or nothing is written yet
        return _described(end)
    if processes.is_running(launch):
        return UNKNOWN, f"its last worker, process {launch.pid}, runs, but has not registered"
    within(_WRITING, lambda: not processes.is_witnessed(launch), _POLL)
    if end := _written(path, launch.launch_id):
        return _described(end)
    if launch.started_at is not None and launch.started_at < psutil.boot_time():
        return LOST_HOST, "this host was restarted after the start of its last worker"
    return UNKNOWN, "its last worker is gone, and so was its witness: nobody saw how it ended"


def _described(end: End) -> tuple[str, str]:
    memory = end.for_memory and end.code == -signal.SIGKILL
    return by_code(end.code, ending(end.code), end.seconds, for_memory=memory)


def _written(path: Path, launch_id: str | None) -> End | None:
    """How the worker of a launch ended; None where nobody saw it."""
    try:
        with opened(path, os.O_RDONLY, create=0) as file:
            said: Any = json.loads(os.read(file, _LARGEST_END))
        if said["launch_id"] != launch_id:
            return None
        return End(int(said["code"]), float(said["seconds"]), bool(said["for_memory"]))
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        return None
