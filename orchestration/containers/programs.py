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
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from orchestration.containers import processes
from orchestration.containers.processes import Worker
from orchestration.errors import ContainerError, describe
from orchestration.secrets import Mask

_POLL_SECONDS: Final = 0.05
_SHOWN: Final = 2000  # characters of the end of a program's output, where its error stands


class ProgramError(ContainerError):
    """A program could not be run, failed, or took too long."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """A program to run."""

    argv: Sequence[str]
    exports: Mapping[str, str] = field(default_factory=dict)  # on top of what is inherited
    mask: Mask = field(default_factory=Mask)  # hides what its output and arguments may not show

    @property
    def name(self) -> str:
        """What errors call it."""
        return Path(self.argv[0]).name


def run(program: Program, timeout: float) -> str:
    """Runs a program to its end and returns its output, errors included.

    What it leaves running in the background runs on.

    Args:
        program: What to run.
        timeout: Seconds after which it is killed.

    Raises:
        ProgramError: It cannot be started, ended with another code than 0, or took too long. The
            message has the end of its output, without secrets.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "output")
        with _started(program, log) as worker:
            try:
                code = worker.wait(timeout)
            except subprocess.TimeoutExpired:
                kill(worker)
                raise _failure(program, f"was not over after {timeout:g} s", _text(log)) from None
        output = _text(log)
    if code:
        raise _failure(program, _ending(code), output)
    return output


def launch(
    program: Program, *, log: Path, line: re.Pattern[str], timeout: float, stays: bool = False
) -> re.Match[str] | None:
    """Starts a program that may outlive us, and waits for a line that says what was started.

    Args:
        program: What to run.
        log: The file that gets its output, appended.
        line: What such a line matches, as a whole.
        timeout: Seconds to wait.
        stays: Whether a program that still runs then, without such a line, is well.

    Returns:
        The first match; None if there was none before it ended with 0, or before the time was up
        and it `stays`.

    Raises:
        ProgramError: It cannot be started, ended with another code than 0 before such a line, or
            was killed because the time was up.
    """
    begin = _size(log)
    with _started(program, log) as worker:
        deadline = time.monotonic() + timeout
        while True:
            code = worker.poll()  # before reading: what it wrote last is read then
            if found := _first_match(line, _text(log, begin), complete=code is not None):
                return found
            if code is not None:
                break
            if time.monotonic() >= deadline:
                if stays:
                    return None
                kill(worker)
                raise _failure(
                    program, f"did not say within {timeout:g} s what it started", _text(log, begin)
                )
            time.sleep(_POLL_SECONDS)
    if code:
        raise _failure(program, _ending(code), _text(log, begin))
    return None


def kill(worker: Worker) -> None:
    """Ends a program with everything that is still in its session's process group."""
    with suppress(OSError):
        os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()


@contextmanager
def _started(program: Program, log: Path) -> Iterator[Worker]:
    """A running program; killed if whoever waits for it is interrupted."""
    try:
        log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            worker = processes.spawn(
                list(program.argv),
                environment={**os.environ, **program.exports},
                directory=None,
                log=descriptor,
            )
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:
        what = program.mask.hide(repr(program.argv[0]))
        raise ProgramError(
            f"{what} could not be started: {program.mask.hide(describe(error))}"
        ) from None
    try:
        yield worker
    except ProgramError:
        raise
    except BaseException:
        kill(worker)
        raise


def _first_match(line: re.Pattern[str], output: str, *, complete: bool) -> re.Match[str] | None:
    """The first line that matches as a whole; the last line counts once it is complete."""
    lines = output.split("\n")
    finished = lines if complete else lines[:-1]
    return next((found for each in finished if (found := line.fullmatch(each.rstrip("\r")))), None)


def _failure(program: Program, what: str, output: str) -> ProgramError:
    shown = program.mask.hide(output.strip())
    if len(shown) > _SHOWN:
        shown = f"…{shown[-_SHOWN:]}"
    told = f"; the end of its output:\n{shown}" if shown else " without any output"
    return ProgramError(f"{program.name} {what}{told}")


def _ending(code: int) -> str:
    if code > 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal
        return f"was ended by signal {-code}"


def _size(log: Path) -> int:
    return log.stat().st_size if log.exists() else 0


def _text(log: Path, begin: int = 0) -> str:
    with log.open("rb") as file:
        file.seek(begin)
        text = file.read().decode(errors="replace")
    return re.sub(r"[^\n\t\r\x20-\x7e\xa0-\U0010ffff]", "\ufffd", text)  # databases refuse NUL
