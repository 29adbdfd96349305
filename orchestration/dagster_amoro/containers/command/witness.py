"""The parent of a worker, which waits for its end and writes down how it came.

Only the parent of a process learns how it ended, and whoever starts a worker is gone long before.
So each worker has a witness: this file, run by Python without any library, some 3 MB of memory. It
ends when its worker does, and in the same way.

On its standard input come texts, each ended by NUL: how many arguments and variables the worker
has (whoever starts it may be killed before all are sent), where the end is to be written down, the
id of the launch, the arguments, and the variables as `NAME=value`. To the descriptor that its own
argument names goes the worker's process id, then an error's number and text where the program
cannot be started.
"""

import os
import signal
import sys
import time

_OURS = 0o600


def main(report: int) -> None:
    """Starts the worker in a session of its own, says its process id, and waits for its end."""
    arguments, variables, end, launch_id, *rest = _read(0).split(b"\0")[:-1]
    if len(rest) != int(arguments) + int(variables):
        return
    argv = rest[: int(arguments)]
    environment = dict(each.split(b"=", 1) for each in rest[int(arguments) :])
    os.set_inheritable(report, False)  # noqa: FBT003 - it has no name
    kills = _kills_for_memory()
    begin = time.monotonic()
    # Whoever ends the launch signals both; what is told to end before this line starts no worker.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    worker = os.fork() or _become(argv, environment, report)
    os.close(report)
    _, status = os.waitpid(worker, 0)
    code = os.waitstatus_to_exitcode(status)
    seconds, for_memory = time.monotonic() - begin, _kills_for_memory() > kills
    _write(end, b'{"launch_id": "%s", "code": %d, "seconds": %.3f, "for_memory": %s}'
           % (launch_id, code, seconds, b"true" if for_memory else b"false"))  # fmt: skip
    _end(code)


def _become(argv: list[bytes], environment: dict[bytes, bytes], report: int) -> int:
    """The worker: this never returns. It says its id itself, so that an error comes after it."""
    try:
        os.write(report, b"%d\n" % os.getpid())
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        with open(os.devnull, "rb") as nothing:  # noqa: PTH123 - without any library
            os.dup2(nothing.fileno(), 0)
        os.execvpe(argv[0], argv, environment)  # noqa: S606 - as its container has it, no shell
    except OSError as error:
        os.write(report, f"{error.errno} {error.strerror}".encode())
    finally:
        os._exit(127)


def _read(descriptor: int) -> bytes:
    content = b""
    while chunk := os.read(descriptor, 65536):
        content += chunk
    return content


def _kills_for_memory() -> int:
    """How many processes of our control group the kernel has killed for memory; 0 if unknown."""
    try:
        with open("/proc/self/cgroup") as file:  # noqa: PTH123 - without any library
            groups = [line.strip().split(":", 2) for line in file]
        for _, controllers, path in groups:
            if controllers == "memory":
                return _counted(f"/sys/fs/cgroup/memory{path}/memory.oom_control")
        return _counted(f"/sys/fs/cgroup{groups[-1][2]}/memory.events")
    except (OSError, StopIteration, ValueError, IndexError):
        return 0


def _counted(path: str) -> int:
    with open(path) as file:  # noqa: PTH123 - as above
        return next(int(line.split()[1]) for line in file if line.startswith("oom_kill "))


def _write(path: bytes, content: bytes) -> None:
    """Puts the file there as a whole; where that cannot be, nobody learns of the end."""
    try:
        raw = path + b".tmp"
        if os.path.lexists(raw):
            os.unlink(raw)  # noqa: PTH108 - as above
        descriptor = os.open(raw, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _OURS)
        os.write(descriptor, content)
        os.close(descriptor)
        os.replace(raw, path)  # noqa: PTH105 - as above
    except OSError:
        pass


def _end(code: int) -> None:
    """Ends as the worker has, for whoever still watches the start."""
    if code < 0:
        import resource  # noqa: PLC0415 - seldom needed

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the worker has left its own
        signal.signal(-code, signal.SIG_DFL) if -code not in (9, 19) else None
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    main(int(sys.argv[1]))
