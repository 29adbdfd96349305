"""How is a program of Amoro, Flink or Spark run, and what went wrong with it?

Programs are argv lists; no shell ever sees them. Their output goes to a file, not to a pipe: what
they leave running in the background would hold a pipe open for ever.
"""

import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from dagster_amoro.containers import processes
from dagster_amoro.containers.environment import chosen
from dagster_amoro.containers.output import Rotation, end_of, ending, opened, readable, size_of
from dagster_amoro.containers.processes import Worker
from dagster_amoro.core.errors import ContainerError, describe
from dagster_amoro.core.secrets import Mask

_POLL_SECONDS: Final = 0.05
_KILL_WAIT: Final = 10.0  # seconds; after SIGKILL only the kernel can be slow
_SHOWN: Final = 2000  # characters of the end of a program's output, where its error stands
_LOOKED_AT: Final = 64 * 1024  # characters of it that are freed of secrets before it is cut
_FRAMES: Final = re.compile(r"^[ \t]+(?:at .+\(.*\)|\.\.\. [0-9]+ more)\n?", re.MULTILINE)  # Java's
_KEPT: Final = 4 * 1024 * 1024  # bytes of the output that `run` returns
_CHUNK: Final = 1024 * 1024  # bytes that `launch` reads at a time
_LONGEST_LINE: Final = 64 * 1024  # bytes; longer lines are looked at in pieces


class ProgramError(ContainerError):
    """A program could not be run, failed, or took too long."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """A program to run."""

    argv: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=chosen, repr=False)  # all of it
    mask: Mask = field(default_factory=Mask)  # hides what its output and arguments may not show
    stdin: bytes = b""  # what it gets to read

    @property
    def name(self) -> str:
        """What errors call it."""
        return Path(self.argv[0]).name


def run(program: Program, timeout: float) -> str:
    """Runs a program to its end and returns its output, errors included.

    Of an output over 4 MiB it is the end. What it leaves running in the background runs on.

    The program is killed after `timeout` seconds.

    Raises:
        ProgramError: It cannot be started, ended with another code than 0, or took too long. The
            message has the end of its output, without secrets.
    """
    with _started(program) as (worker, log):
        try:
            code = worker.wait(timeout)
        except subprocess.TimeoutExpired:
            kill(worker)
            raise failure(program, f"was not over after {timeout:g} s", end_of(log)) from None
        if code:
            raise failure(program, _ended(code), end_of(log))
        return end_of(log, last=_KEPT)


def launch(
    program: Program, *, log: Path, line: re.Pattern[str], timeout: float, stays: bool = False
) -> re.Match[str] | None:
    """Starts a program that may outlive us, and waits for a line that says what was started.

    Returns the first match of a whole line of its output, which is appended to the log. There is
    none if the program ended with 0 before, or if it `stays` and the `timeout` in seconds is up.

    Raises:
        ProgramError: It cannot be started, ended with another code than 0 before such a line, or
            was killed because the time was up.
    """
    with suppress(OSError):  # it is told when the log is opened
        Rotation().turn(log)
    begin = size_of(log)
    with _started(program, log) as (worker, _), readable(log) as file:
        lines, deadline = _Lines(file, begin), time.monotonic() + timeout
        while True:
            code = worker.poll()  # before reading: what it wrote last is read then
            if found := lines.find(line, ended=code is not None):
                return found
            if code is not None and lines.at_end:
                if code:
                    raise failure(program, _ended(code), end_of(log, begin))
                return None
            if time.monotonic() >= deadline:
                if stays:
                    return None
                kill(worker)
                what = f"did not say within {timeout:g} s what it started"
                raise failure(program, what, end_of(log, begin))
            if lines.at_end:
                time.sleep(_POLL_SECONDS)


def kill(worker: Worker) -> None:
    """Ends a program that runs, with everything that is still in its process group."""
    if worker.poll() is not None:  # its id may be another's by now
        return
    with suppress(OSError):
        os.killpg(worker.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):  # another user's, or the kernel is slow
        worker.wait(_KILL_WAIT)


@contextmanager
def _started(program: Program, log: Path | None = None) -> Iterator[tuple[Worker, Path]]:
    """A running program and its log, by default one that is deleted after use.

    The program is killed if whoever waits for it cannot go on.
    """
    with ExitStack() as stack:
        try:
            if log is None:
                folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
                log = Path(stack.enter_context(folder), "output")
            own, argv = program.environment, list(program.argv)
            with opened(log, os.O_RDWR | os.O_APPEND) as output, _readable(program.stdin) as stdin:
                worker = processes.spawn(argv, environment=own, log=output, stdin=stdin)
        except (OSError, ValueError) as error:
            why = describe(error, program.mask.hide)
            what = program.mask.hide(repr(program.argv[0]))
            raise ProgramError(f"{what} could not be started: {why}") from None
        try:
            yield worker, log
        except ProgramError:
            raise
        except BaseException as error:
            kill(worker)
            if isinstance(error, OSError):
                raise ProgramError(
                    f"{program.name} was ended, its output cannot be read: {describe(error)}"
                ) from None
            raise


@contextmanager
def _readable(content: bytes) -> Iterator[int]:
    """A file descriptor to read these bytes from."""
    if not content:
        yield subprocess.DEVNULL
        return
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.seek(0)
        yield file.fileno()


class _Lines:
    """The lines that a log gets, as they come."""

    def __init__(self, file: int, begin: int) -> None:
        self._file: Final = file
        self._position = begin
        self._rest = b""  # of the last line, which may go on
        self.at_end = False  # whether all that is there was read

    def find(self, line: re.Pattern[str], *, ended: bool) -> re.Match[str] | None:
        """The first that matches as a whole among those not read yet; at most 1 MiB is read.

        A line counts once it is complete; the last one also if the program has `ended`.
        """
        if os.fstat(self._file).st_size < self._position:  # somebody truncated it
            self._position = 0
        chunk = os.pread(self._file, _CHUNK, self._position)
        self._position += len(chunk)
        self.at_end = len(chunk) < _CHUNK
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if (ended and self.at_end) or len(self._rest) > _LONGEST_LINE:
            lines.append(self._rest)
            self._rest = b""
        texts = (each.decode(errors="replace").rstrip("\r") for each in lines)
        return next((found for each in texts if (found := line.fullmatch(each))), None)


def failure(program: Program, what: str, output: str) -> ProgramError:
    """The error of a program that did `what`, with the end of its output, without secrets."""
    shown = excerpt(output, program.mask)
    message = f"; the end of its output:\n{shown}" if shown else " without any output"
    return ProgramError(f"{program.name} {what}{message}")


def excerpt(output: str, mask: Mask, last: int = _SHOWN) -> str:
    """The `last` characters that a program wrote, without secrets and Java's stack frames."""
    shown = mask.hide(_FRAMES.sub("", output[-_LOOKED_AT:]).strip())
    return f"…{shown[-last:]}" if len(shown) > last else shown


def nameless(program: Program, what: str, output: str) -> ProgramError:
    """The error of a program that ended well, but did not say what it started."""
    return failure(program, f"ended with exit code 0 and named no {what}", output)


def _ended(code: int) -> str:
    return f"{'was ' if code < 0 else ''}ended {ending(code)}"
