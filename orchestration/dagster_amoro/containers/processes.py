"""Which processes belong to a launch, and how are they stopped?

A launch is one start of a worker. Its processes are those that inherit its id in their environment
(which a worker may overwrite), and the session of the process that was started (which a daemon
leaves). A process id by itself proves nothing, because the system gives it away again, and because
others write the row that names it: the process has the mark, or is in a record of ours. Programs
that others start, AMS among them, are recognised by what is on their command lines.
"""

import math
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, TypeVar

import psutil

from dagster_amoro.containers.output import UNKNOWN_END
from dagster_amoro.containers.waiting import within

PIPE: Final = subprocess.PIPE
LAUNCH_VARIABLE: Final = "AMORO_LAUNCH_ID"  # in the environment of every process of a launch
# In that of the parent of its worker instead, which has no other work than to see how that ends.
WITNESS_VARIABLE: Final = "AMORO_LAUNCH_WITNESS"

_T = TypeVar("_T")

_MARKS: Final = (LAUNCH_VARIABLE, WITNESS_VARIABLE)
_CLOCK_SLACK: Final = 1.5  # seconds; start times move with the boot time, which is whole seconds
_KILL_WAIT: Final = 10.0  # seconds; after SIGKILL only the kernel can be slow
_POLL: Final = 0.02  # seconds between two looks at processes that are to end
_LINE_END: Final = re.compile(r"\r\n?")
_PIDS: Final = range(2, 2**31)  # neither init nor, by 0 or -1, whole groups
_ENDING: Final = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """One start of a worker, as far as is known of it."""

    launch_id: str | None  # None: started by something that gave it no id
    host: str | None = None  # None: this one
    pid: int | None = None  # None: not written down, or not a process id
    started_at: float | None = None  # psutil's create_time; a pid counts only together with it
    # Whether our own record on this host names its process, which needs no mark then.
    is_recorded: bool = field(default=False, compare=False)

    @classmethod
    def parse(
        cls, launch_id: str | None, host: str | None, pid: str | None, started_at: str | None
    ) -> "Launch | None":
        """The launch that these texts name, or None if no process could be found by them.

        Texts that make no sense count as missing: they come from a database that others write too.
        """
        number, seconds = _parsed(int, pid), _parsed(float, started_at)
        number = number if number is not None and number in _PIDS else None
        if not launch_id and (number is None or seconds is None):
            return None
        return cls(launch_id=launch_id or None, host=host or None, pid=number, started_at=seconds)

    @property
    def is_elsewhere(self) -> bool:
        """Whether it was made on another host, where its processes cannot be seen."""
        return self.host is not None and self.host != socket.gethostname()


def is_running(launch: Launch) -> bool:
    """Whether any process of the launch is alive on this host; its witness alone is none."""
    # Looked at once more: a witness that ends meanwhile has no environment to be known by.
    return any(not _is_witness(each, launch) and _is_alive(each) for each in _members(launch))


def is_witnessed(launch: Launch) -> bool:
    """Whether its witness is there, who is going to write down how its worker ended."""
    return any(_is_witness(each, launch) for each in _members(launch))


def stranger(launch: Launch) -> int | None:
    """The process that a launch names and that is not its own, as far as anybody can know."""
    leader = _leader(launch)
    if leader is None or not _is_alive(leader) or leader in _members(launch):
        return None
    return leader.pid


def stop(launch: Launch, patience: float) -> list[int]:
    """Ends every process of a launch of this host; returns the ids of those that are still there.

    They have `patience` seconds after SIGTERM until SIGKILL comes. Its witness ends by itself.
    """
    left = _end(lambda: _members(launch), launch.pid, patience)
    witnesses = {each.pid for each in _members(launch) if _is_witness(each, launch)} if left else {}
    return [pid for pid in left if pid not in witnesses]


def started_with(options: Mapping[str, str], naming: str = "") -> list[psutil.Process]:
    """The living processes of this host that were started with all of these options.

    A process counts if, for each option, its arguments hold the option and right after it the
    value, both as a whole, and if one of its arguments names a program: holds `naming`, in any
    case. This process and its ancestors never count, and neither do those whose
    arguments cannot be read, which are other users'. `options` are the values by option, such as
    `{"-g": "default", "-id": "4vd1"}`; none is a ValueError, since every process would count.
    """
    if not options:
        raise ValueError("no option to recognise processes by")
    reap()
    spared = {process.pid for process in _lineage()}
    wanted = {(_as_read(option), _as_read(value)) for option, value in options.items()}
    others = (process for process in _everyone() if process.pid not in spared)
    return [
        process
        for process in others
        if wanted <= _pairs(process) and _names(process, naming) and _is_alive(process)
    ]


def environments_of(argument: str) -> Iterator[tuple[int, Mapping[str, str]]]:
    """The process ids and environments of what runs here with this argument, if we may see it."""
    for process in _everyone():
        with suppress(psutil.Error, OSError):  # gone, or another user's
            if argument in process.cmdline():
                yield process.pid, process.environ()


def end(processes: Iterable[psutil.Process], patience: float) -> list[int]:
    """Ends these processes, without their children; returns the ids of those still there.

    They have `patience` seconds after SIGTERM until SIGKILL comes. A process that got the id of
    one of them meanwhile is neither ended nor returned.
    """
    known = set(processes)
    return _end(lambda: set(filter(_is_alive, known)), None, patience)


def _end(look: Callable[[], set[psutil.Process]], leader: int | None, patience: float) -> list[int]:
    """Ends what `look` sees, until that is nothing; returns the ids of what it sees in the end."""
    for signum, seconds in ((signal.SIGTERM, patience), (signal.SIGKILL, _KILL_WAIT)):
        deadline = time.monotonic() + seconds
        signalled: set[psutil.Process] = set()
        while alive := look():
            _signal(alive - signalled, leader, signum)
            signalled |= alive
            if not _end_by(deadline, alive):
                break
        else:
            return []
    return sorted(process.pid for process in look())


class Worker(subprocess.Popen[bytes]):
    """A child that may outlive us, and whose end counts as a good one only if it is known.

    The system tells the end of a child once. Where another part of this process has asked before,
    or SIGCHLD is ignored, Popen's own `poll` and `wait` say that the exit code is 0.
    """

    def poll(self) -> int | None:
        """The return code, UNKNOWN_END where it cannot be learned; None if the child runs."""
        with _collecting:  # a second thread would find that the first one has asked before
            if self.returncode is None:
                self.returncode = self._collected()
            return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The return code once the child has ended; a TimeoutExpired after so many seconds."""
        seconds = math.inf if timeout is None else timeout
        if not within(seconds, lambda: self.poll() is not None, _POLL):
            raise subprocess.TimeoutExpired(self.args, seconds)
        return int(self.returncode)

    def _collected(self) -> int | None:
        try:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:
            return UNKNOWN_END
        return os.waitstatus_to_exitcode(status) if pid else None

    def __del__(self) -> None:
        """Nothing, where Popen would warn: `reap` collects the child if it ends before us."""


_collecting: Final = threading.Lock()
_children: Final[set[Worker]] = set()


def spawn(  # noqa: PLR0913 - a program, and what it gets
    argv: list[str],
    *,
    environment: Mapping[str, str],
    log: int,
    directory: str | None = None,
    stdin: int = subprocess.DEVNULL,
    pass_fds: Sequence[int] = (),
) -> Worker:
    """Starts a program in a session of its own, its output going to a log.

    It heeds SIGINT and SIGTERM. Where this process ignores them, the program would inherit that: a
    shell makes its background jobs ignore SIGINT, and Dagster then makes its processes ignore both.

    Raises:
        OSError: It cannot be started.
        ValueError: Its arguments cannot be expressed in this system's encoding.
    """
    reap()
    deaf = any(signal.getsignal(each) is signal.SIG_IGN for each in _ENDING)
    worker = Worker(
        argv,
        stdin=stdin,
        stdout=log,
        stderr=log,
        cwd=directory,
        env=environment,
        pass_fds=pass_fds,
        start_new_session=True,
        # Nothing but system calls, so no lock of another thread can be in the way.
        preexec_fn=_heed if deaf else None,
    )
    _children.add(worker)
    return worker


def _heed() -> None:
    for each in _ENDING:
        signal.signal(each, signal.SIG_DFL)


def reap() -> None:
    """Collects our children that ended, so that a caller who lives long gathers no zombies."""
    for worker in list(_children):
        if worker.poll() is not None:
            _children.discard(worker)


def started_at(pid: int) -> float:
    """When a process that we just started began, in the measure that identifies it."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:  # over already, and collected by a parent that ignores SIGCHLD
        return time.time()


def _members(launch: Launch) -> set[psutil.Process]:
    reap()
    # A process that forks and ends during the first look can hide its child from it.
    return _look(launch) or _look(launch)


def _look(launch: Launch) -> set[psutil.Process]:
    everyone = list(_everyone())
    marked = {each for each in everyone if _is_marked(each, launch.launch_id, *_MARKS)}
    session = {process for process in everyone if _is_in_session(process.pid, launch.pid)}
    # The system does not give a session's number away while the session has members. So one member
    # that is known to belong to this launch vouches for all of them.
    if (launch.is_recorded and _leader(launch) is not None) or marked & session:
        marked |= session
    return {process for process in marked if _is_alive(process)}


def _everyone() -> Iterator[psutil.Process]:
    for pid in psutil.pids():  # process_iter() shares a cache between threads
        with suppress(psutil.Error):
            yield psutil.Process(pid)


def _lineage() -> Iterator[psutil.Process]:
    """This process and its ancestors."""
    process: psutil.Process | None = psutil.Process()
    with suppress(psutil.Error):  # an ancestor that ends meanwhile
        while process is not None:
            yield process
            process = process.parent()


def _pairs(process: psutil.Process) -> set[tuple[str, str]]:
    """Each two arguments that follow one another; none if they cannot be read."""
    with suppress(psutil.Error, OSError):  # gone, or another user's
        return set(pairwise(map(_as_read, process.cmdline())))
    return set()


def _names(process: psutil.Process, program: str) -> bool:
    with suppress(psutil.Error, OSError):  # as above
        return any(program in argument.lower() for argument in process.cmdline())
    return False


def _as_read(argument: str) -> str:  # psutil makes one kind of line end of all
    return _LINE_END.sub("\n", argument)


def _leader(launch: Launch) -> psutil.Process | None:
    """The process that was started, be it a zombie; None if its pid is free or another's."""
    if launch.pid is None or launch.started_at is None:
        return None
    with suppress(psutil.Error):
        process = psutil.Process(launch.pid)
        is_it = abs(process.create_time() - launch.started_at) <= _CLOCK_SLACK
        return process if is_it and _is_in_session(launch.pid, launch.pid) else None
    return None


def _is_marked(process: psutil.Process, launch_id: str | None, *variables: str) -> bool:
    with suppress(psutil.Error):  # gone, or another user's
        environment = process.environ()
        return launch_id is not None and launch_id in map(environment.get, variables)
    return False


def _is_witness(process: psutil.Process, launch: Launch) -> bool:
    return _is_marked(process, launch.launch_id, WITNESS_VARIABLE)


def _is_in_session(pid: int, leader: int | None) -> bool:
    with suppress(OSError):
        return leader is not None and leader in (os.getsid(pid), os.getpgid(pid))
    return False


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:  # there, and not ours to look at
        return True


def _signal(processes: set[psutil.Process], leader: int | None, signum: int) -> None:
    """Signals the leader's group as one, so that no fork escapes, and the others one by one.

    What cannot be signalled shows up as still running.
    """
    group = {process for process in processes if _is_in_group(process.pid, leader)}
    if leader is not None and group:
        with suppress(OSError):
            os.killpg(leader, signum)
    for process in processes - group:
        with suppress(psutil.Error):  # psutil checks the process's identity once more
            process.send_signal(signum)


def _is_in_group(pid: int, leader: int | None) -> bool:
    with suppress(OSError):
        return os.getpgid(pid) == leader
    return False


def _end_by(deadline: float, processes: set[psutil.Process]) -> bool:
    def are_over() -> bool:
        reap()
        return not any(map(_is_alive, processes))

    return within(deadline - time.monotonic(), are_over, _POLL)


def _parsed(kind: Callable[[str], _T], text: str | None) -> _T | None:
    with suppress(ValueError):
        return kind(text or "")
    return None
