"""A heartbeat around a program that knows nothing of us, in whatever language it is written."""

import os
import shlex
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Final, NoReturn

from dagster_amoro_worker.durations import parse_duration
from dagster_amoro_worker.errors import ConfigError
from dagster_amoro_worker.heartbeat import Heartbeat
from dagster_amoro_worker.registry import Url

_PASSED_ON: Final = (
    *(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT),
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH, signal.SIGCONT),
)
_ASKING_SECONDS: Final = 10.0  # that one readiness command may take
_PAUSE_SECONDS: Final = 1.0  # between two of them


def heartbeat(url: str | Url, *, interval: str, **worker: Any) -> Heartbeat:  # noqa: ANN401
    """A heartbeat as the command line says it.

    Args:
        url: The registry's database.
        interval: As the configuration writes a duration.
        worker: What `Heartbeat` says of a worker.

    Raises:
        ConfigError: An argument cannot be right.
    """
    try:
        every = parse_duration(interval)
    except ValueError as error:
        raise ConfigError(f"--interval is {interval!r}; {error}") from None
    try:
        return Heartbeat(url, interval=every, **worker)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def keep(command: Sequence[str], heartbeat: Heartbeat, ready: Sequence[str] = ()) -> int:
    """Runs a program, with a heartbeat from when it is ready until its end.

    Every signal that can be caught is passed on to the program, whose end is the only thing that
    ends this. Call it from the main thread.

    Args:
        command: The program and its arguments; no shell reads them.
        heartbeat: Not begun yet.
        ready: A program that ends with 0 once the other one is ready, and its arguments. It is
            started every second, and killed where it takes longer than ten. Empty: it is ready at
            once.

    Returns:
        The exit code of the program; below zero: the signal that ended it.

    Raises:
        ConfigError: The program cannot be started.
    """
    with _passing_on() as forwarding:
        try:
            program = subprocess.Popen(command)  # noqa: S603 - what the operator wants run
        except (OSError, ValueError) as error:
            raise ConfigError(f"{command[0]!r} cannot be started: {error}") from None
        forwarding.take(program)
        if not _is_ready(program, ready):
            return program.returncode
        with heartbeat:
            return program.wait()


def end_like(code: int) -> NoReturn:
    """Ends this process as the program ended, so that whoever started it learns how."""
    if code < 0:
        with suppress(OSError, ValueError):  # SIGKILL has no handler
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
        code = 128 - code  # the signal is ignored, or only stops
    raise SystemExit(code)


def split(text: str) -> list[str]:
    """A program and its arguments, apart as in a shell; nothing is put in for `$` or `*`.

    Raises:
        ConfigError: A quotation has no end.
    """
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"{text!r} is no command: {error}") from None


def _is_ready(program: subprocess.Popen[Any], command: Sequence[str]) -> bool:
    """Waits until the program is ready; False: it has ended before."""
    while command and program.poll() is None:
        if _answers(command):
            break
        with suppress(subprocess.TimeoutExpired):
            program.wait(_PAUSE_SECONDS)
    return program.poll() is None


def _answers(command: Sequence[str]) -> bool:
    try:
        asked = subprocess.run(  # noqa: S603 - as above
            command, stdin=subprocess.DEVNULL, timeout=_ASKING_SECONDS, check=False
        )
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return False
    return asked.returncode == 0


class _Forwarding:
    """Passes signals on to a program; those that come before it is there, once it is."""

    def __init__(self) -> None:
        self._program: subprocess.Popen[Any] | None = None
        self._early: list[int] = []

    def take(self, program: subprocess.Popen[Any]) -> None:
        """From now on signals are for this program."""
        self._program = program
        for number in self._early:
            program.send_signal(number)

    def pass_on(self, number: int, _frame: FrameType | None) -> None:
        """As a handler of signals."""
        if self._program is None:
            self._early.append(number)
        else:
            self._program.send_signal(number)


@contextmanager
def _passing_on() -> Iterator[_Forwarding]:
    forwarding = _Forwarding()
    before: Mapping[int, Any] = {n: signal.signal(n, forwarding.pass_on) for n in _PASSED_ON}
    try:
        yield forwarding
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
