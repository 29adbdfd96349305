"""The command container with real processes: they start, outlive, crash and are ended."""

import gc
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest

from dagster_amoro import CommandContainer
from dagster_amoro.containers import processes
from dagster_amoro.containers.command.launches import (
    LaunchFiles,
    Record,
    new_launch_id,
    properties_of,
)
from dagster_amoro.containers.processes import LAUNCH_VARIABLE, Launch
from dagster_amoro.core.errors import ConfigError, ReleaseFailedError, StartFailedError
from dagster_amoro.core.model import Resource

HOSTILE = "a b'\";$(touch x)`x`\n{group_name}{{}}\\ *~|&>\U0001f600"
PYTHON = [sys.executable, "-I", "-S", "-c"]  # without site-packages it starts at once
SLEEP = "import time; print('ready', flush=True); time.sleep(600)"
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEP
# As programs do that set the title of their process: nothing is left of the environment.
MARKLESS = """
import os, sys
argv = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)", sys.argv[1]]
os.execve(argv[0], argv, {})
"""
# Two generations: the leader sleeps, its child and grandchild do too.
FAMILY = """
import os, time
os.fork()
os.fork()
print("ready", flush=True)
time.sleep(600)
"""
# What a daemon does: it leaves the session, and the process that was started ends with 0.
DAEMON = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print("ready", flush=True)
        time.sleep(600)
    os._exit(0)
os.wait()
"""
# Another process of ours, which dies where it is told to.
STARTER = """
import json, os, signal, sys, time
from dagster_amoro import CommandContainer
from dagster_amoro.containers import processes
from dagster_amoro.containers.command import witnessed
from dagster_amoro.containers.command.launches import LaunchFiles
from dagster_amoro.core.model import Resource

properties, resource, point, files = map(json.loads, sys.argv[1:])
for _ in range(files):
    os.set_inheritable(os.open("/", os.O_RDONLY), True)
spawn, told, write = processes.spawn, witnessed.spawn, LaunchFiles.write

def die(*args, **keywords):
    os.kill(os.getpid(), signal.SIGKILL)

def then_die(call):
    def called(*args, **keywords):
        call(*args, **keywords)
        die()
    return called

def write_or_die(files, record):
    if record.launch.pid is not None:
        die()
    write(files, record)

if point == "without SIGCHLD":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
elif point == "before the process":
    processes.spawn = die
elif point == "before its witness is told":
    processes.spawn = then_die(spawn)
elif point == "right after the process":
    witnessed.spawn = then_die(told)
elif point == "before its pid is recorded":
    LaunchFiles.write = write_or_die
started = CommandContainer("local", properties).request_resource(Resource(**resource))
if point == "before it is saved":
    die()
print(json.dumps(dict(started)), flush=True)
if point == "later":
    time.sleep(600)
"""
POINTS = [
    "before the process",
    "before its witness is told",
    "right after the process",
    "before its pid is recorded",
    "before it is saved",
]


def until(condition: Callable[[], Any], seconds: float = 15) -> None:
    """Waits until something holds, and fails if it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def resource(resource_id: str = "r1", properties: Mapping[str, str] | None = None) -> Resource:
    """A resource of group g with four threads."""
    return Resource(
        resource_id=resource_id,
        group_name="g",
        container_name="local",
        thread_count=4,
        memory_mb=2048,
        properties=properties or {},
    )


class Fleet:
    """The workers of one test, told from all other processes by a mark.

    It stands in their environment, or among the arguments of those that are to have none.
    """

    def __init__(self, folder: Path) -> None:
        self.logs = folder / "logs"
        self.mark = uuid4().hex
        self._others: list[subprocess.Popen[str]] = []

    def properties(self, script: str, *arguments: str, **changes: str) -> dict[str, str]:
        """Properties of a container that runs a Python script."""
        return {
            "command": json.dumps([*PYTHON, script.replace("{", "{{").replace("}", "}}")])[:-1]
            + "".join(f", {json.dumps(argument)}" for argument in arguments)
            + "]",
            "log-dir": str(self.logs),
            "export.FLEET": self.mark,
            "start-check": "100ms",
            "termination-grace-period": "5s",
            **{key.replace("_", "-"): value for key, value in changes.items()},
        }

    def container(self, script: str, *arguments: str, **changes: str) -> CommandContainer:
        """A container that runs a Python script."""
        return CommandContainer("local", self.properties(script, *arguments, **changes))

    def files(self, resource_id: str = "r1") -> LaunchFiles:
        """The files of a resource."""
        return LaunchFiles(self.logs, "local", resource_id)

    def log(self, resource_id: str = "r1") -> str:
        """What the workers of a resource wrote."""
        path = self.files(resource_id).log
        return path.read_text() if path.exists() else ""

    def ready(self, count: int = 1) -> None:
        """Waits until so many workers of r1 said that they are."""
        until(lambda: self.log().count("ready") >= count)

    def pids(self) -> set[int]:
        """The processes of the fleet that run."""
        found = set()
        for pid in psutil.pids():
            try:
                process = psutil.Process(pid)
                marks = (process.environ().get("FLEET"), *process.cmdline()[-1:])
                if self.mark in marks and is_alive(pid):
                    found.add(pid)
            except psutil.Error:
                continue
        return found

    def launches(self) -> set[str]:
        """The launches that the running processes of the fleet belong to."""
        return {psutil.Process(pid).environ()[LAUNCH_VARIABLE] for pid in self.pids()}

    def start_elsewhere(
        self, properties: Mapping[str, str], one: Resource, point: str, files: int = 0
    ) -> "subprocess.Popen[str]":
        """A process that starts a resource and dies at a point, with some inheritable files."""
        fields = {name: getattr(one, name) for name in one.__slots__}
        arguments = [json.dumps(each) for each in (properties, fields, point, files)]
        return self.run([sys.executable, "-W", "error", "-c", STARTER, *arguments])

    def run(self, argv: list[str], *, detached: bool = True) -> "subprocess.Popen[str]":
        """A process that is none of the fleet."""
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            argv, stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=detached
        )
        self._others.append(process)
        return process

    def clean(self) -> None:
        """Ends everything."""
        for process in self._others:
            process.kill()
            process.communicate()
        while pids := self.pids():
            for pid in pids:
                with suppress(ProcessLookupError):  # its witness has collected it meanwhile
                    os.kill(pid, signal.SIGKILL)
        processes.reap()


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """A fleet whose processes do not outlive the test."""
    fleet = Fleet(tmp_path)
    yield fleet
    fleet.clean()


def pid_of(started: Mapping[str, str]) -> int:
    """The process that was started."""
    return int(started["command-pid"])


def answer(starter: "subprocess.Popen[str]") -> dict[str, str]:
    """The start-up properties that a starter reports."""
    assert starter.stdout is not None
    started: dict[str, str] = json.loads(starter.stdout.readline())
    return started


# --- Starting -----------------------------------------------------------------------------------


def test_a_worker_gets_its_arguments_and_variables_unchanged(fleet: Fleet) -> None:
    """Whatever is in them, there is no shell to read it."""
    script = (
        "import json, os, sys;"
        "print(json.dumps([sys.argv[1:], os.environ['HOSTILE'], os.environ['PATH'], os.getcwd()]))"
    )
    arguments = ("{resource_id}", "--group={group_name}", "{thread_count}/{memory_mb}")
    properties = fleet.properties(script, *arguments, working_directory="/", start_check="10s")
    container = CommandContainer("local", {**properties, "export.HOSTILE": HOSTILE})
    container.request_resource(resource(HOSTILE))
    assert json.loads(fleet.log(HOSTILE)) == [
        [HOSTILE, "--group=g", "4/2048"],
        HOSTILE,
        os.environ["PATH"],
        "/",
    ]


def test_a_start_returns_what_identifies_the_process(fleet: Fleet) -> None:
    """Its id, its start time to the last digit, the host and the launch."""
    container = fleet.container(SLEEP)
    started = container.request_resource(resource())
    worker = psutil.Process(pid_of(started))
    assert float(started["command-started-at"]) == worker.create_time()
    assert started["command-host"] == socket.gethostname()
    assert started["command-launch-id"] == worker.environ()[LAUNCH_VARIABLE]
    assert json.loads(fleet.files().record.read_text()) == {
        "launch_id": started["command-launch-id"],
        "previous": None,
        "host": started["command-host"],
        "pid": worker.pid,
        "create_time": worker.create_time(),
    }
    assert container.status(resource(properties=started)) == "running"


def test_a_worker_is_detached(fleet: Fleet) -> None:
    """It leads a session of its own, reads nothing and inherits no other file."""
    starter = fleet.start_elsewhere(fleet.properties(SLEEP), resource(), "none", files=3)
    pid = pid_of(answer(starter))
    assert os.getsid(pid) == os.getpgid(pid) == pid
    fleet.ready()
    folder = Path(f"/proc/{pid}/fd")
    if folder.exists():  # Linux
        log = str(fleet.files().log)
        files = {path.name: str(path.readlink()) for path in folder.iterdir()}
        assert files == {"0": "/dev/null", "1": log, "2": log}


def test_a_worker_survives_the_death_of_its_starter(fleet: Fleet) -> None:
    """Even if the starter's whole group is killed."""
    starter = fleet.start_elsewhere(fleet.properties(SLEEP), resource(), "later")
    started = answer(starter)
    os.killpg(starter.pid, signal.SIGKILL)
    starter.wait()
    assert fleet.pids() == {pid_of(started)}
    container = fleet.container(SLEEP)
    assert container.status(resource(properties=started)) == "running"
    container.release_resource(resource(properties=started))
    assert fleet.pids() == set()


def test_a_starter_ends_without_a_warning(fleet: Fleet) -> None:
    """That a child still runs is what is wanted."""
    starter = fleet.start_elsewhere(fleet.properties(SLEEP), resource(), "none")
    started, warnings = starter.communicate()
    assert (starter.returncode, warnings) == (0, "")
    assert fleet.pids() == {pid_of(json.loads(started))}


@pytest.mark.parametrize("script", ["", "raise SystemExit(3)"])
def test_a_worker_whose_end_is_not_known_is_a_failed_start(fleet: Fleet, script: str) -> None:
    """Where SIGCHLD is ignored the system says of no child how it ended."""
    properties = fleet.properties(script, start_check="30s")
    starter = fleet.start_elsewhere(properties, resource(), "without SIGCHLD")
    said = starter.communicate()
    assert "StartFailedError: the worker ended at once in an unknown way: " in said[1]
    assert starter.returncode == 1


def test_a_worker_that_is_forgotten_is_not_warned_of(fleet: Fleet) -> None:
    """The warning of a child that still runs would be an error here."""
    pid = pid_of(fleet.container(SLEEP).request_resource(resource()))
    with warnings.catch_warnings():  # what other tests forgot is not what this one is about
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
    processes._children.clear()
    gc.collect()
    witness = psutil.Process(pid).ppid()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(witness, 0)


def test_files_are_for_their_owner_only(fleet: Fleet) -> None:
    """Logs may hold what nobody else should read."""
    fleet.container(SLEEP).request_resource(resource())
    modes = {path.suffix: stat.S_IMODE(path.stat().st_mode) for path in fleet.logs.iterdir()}
    assert modes == {".log": 0o600, ".json": 0o600, ".lock": 0o600}
    assert stat.S_IMODE(fleet.logs.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "resource_id", ["\U0001f600" * 100, "../../../x", "..", "/etc/passwd", "a/b\nc", ""]
)
def test_any_id_has_a_log_in_the_folder(fleet: Fleet, resource_id: str) -> None:
    """And nothing is written anywhere else."""
    container = fleet.container("print('hello')", start_check="10s")
    container.request_resource(resource(resource_id))
    assert fleet.log(resource_id) == "hello\n"
    suffixes = {path.suffix for path in fleet.logs.iterdir()}
    assert suffixes == {".log", ".json", ".lock", ".end"}
    assert list(fleet.logs.parent.iterdir()) == [fleet.logs]


# --- Failing to start ---------------------------------------------------------------------------


def test_an_early_end_shows_exit_code_and_log(fleet: Fleet) -> None:
    """Of the log, only what this launch wrote."""
    script = "import sys; print('the reason', sys.argv[1]); sys.exit(3)"
    for word in ("first", "second"):
        container = fleet.container(script, word, start_check="10s")
        with pytest.raises(StartFailedError) as caught:
            container.request_resource(resource())
    message = str(caught.value)
    assert message.startswith("the worker ended at once with exit code 3; the end of its log /")
    assert message.endswith(".log:\n  | the reason second")
    assert "first" not in message
    assert fleet.log() == "the reason first\nthe reason second\n"


def test_an_early_death_shows_the_signal(fleet: Fleet) -> None:
    """By its name; and an empty log is called that."""
    container = fleet.container("import os; os.kill(os.getpid(), 9)", start_check="10s")
    with pytest.raises(StartFailedError, match=r"ended at once by SIGKILL; its log .* is empty"):
        container.request_resource(resource())


def test_a_failed_start_leaves_nothing_running(fleet: Fleet) -> None:
    """Neither what the worker had started already."""
    script = (
        "import os, sys, time\n"
        "if os.fork() == 0:\n    print('child', flush=True); time.sleep(600)\n"
        "time.sleep(0.1); sys.exit(1)"
    )
    with pytest.raises(StartFailedError, match="exit code 1"):
        fleet.container(script, start_check="10s").request_resource(resource())
    assert "child" in fleet.log()
    assert fleet.pids() == set()


def test_a_start_is_not_watched_where_the_check_is_off(fleet: Fleet) -> None:
    """Success is registration, which others see."""
    container = fleet.container("raise SystemExit(3)", start_check="0")
    started = container.request_resource(resource())
    until(lambda: not is_alive(pid_of(started)))
    assert container.status(resource(properties=started)) == "ended"


def test_a_program_that_is_missing_fails_the_start(fleet: Fleet) -> None:
    """The error names it."""
    properties = fleet.properties("") | {"command": '["/no/such/program", "--password=x"]'}
    with pytest.raises(StartFailedError) as caught:
        CommandContainer("local", properties).request_resource(resource())
    assert "'/no/such/program' could not be started: FileNotFoundError" in str(caught.value)
    assert "--password" not in str(caught.value)


def test_a_file_that_is_no_program_fails_the_start(fleet: Fleet, tmp_path: Path) -> None:
    """Without the right to run it, and without a known format."""
    program = tmp_path / "program"
    program.write_text("\n")
    properties = fleet.properties("") | {"command": json.dumps([str(program)])}
    for mode, why in ((0o600, "PermissionError"), (0o700, "Exec format error")):
        program.chmod(mode)
        with pytest.raises(StartFailedError, match=why):
            CommandContainer("local", properties).request_resource(resource())


def test_a_working_directory_that_is_missing_fails_the_start(fleet: Fleet) -> None:
    """The error names it, and a directory that appears later is used."""
    folder = fleet.logs.parent / "work"
    container = fleet.container(SLEEP, working_directory=str(folder))
    with pytest.raises(StartFailedError, match=f"No such file or directory: '{folder}'"):
        container.request_resource(resource())
    folder.mkdir()
    started = container.request_resource(resource())
    assert psutil.Process(pid_of(started)).cwd() == str(folder)


def test_an_argument_that_is_too_long_fails_the_start(fleet: Fleet) -> None:
    """The system has its limits."""
    container = fleet.container(SLEEP, "{resource_id}")
    with pytest.raises(StartFailedError, match="Argument list too long"):
        container.request_resource(resource("x" * 10_000_000))


def test_a_log_folder_that_cannot_be_fails_what_needs_it(fleet: Fleet) -> None:
    """The errors are ours, not the system's."""
    fleet.logs.write_text("a file")
    container = fleet.container(SLEEP)
    with pytest.raises(StartFailedError, match="resource 'r1': FileExistsError"):
        container.request_resource(resource())
    with pytest.raises(ReleaseFailedError, match="resource 'r1': FileExistsError"):
        container.release_resource(resource())
    assert container.status(resource()) == "unknown"


def test_an_unreadable_record_stops_everything(fleet: Fleet) -> None:
    """What runs is not known then; the error says what to do."""
    fleet.logs.mkdir()
    fleet.files().record.write_text("nonsense")
    container = fleet.container(SLEEP)
    with pytest.raises(StartFailedError, match=r"makes no sense.*delete the file"):
        container.request_resource(resource())
    with pytest.raises(ReleaseFailedError, match=r"makes no sense.*delete the file"):
        container.release_resource(resource())
    assert container.status(resource()) == "unknown"
    fleet.files().record.unlink()
    container.request_resource(resource())


# --- Releasing ----------------------------------------------------------------------------------


def test_a_release_ends_the_worker(fleet: Fleet) -> None:
    """And leaves no zombie, though the worker is our child; once more is no error."""
    container = fleet.container(SLEEP)
    one = resource()
    one = one.with_properties(container.request_resource(one))
    container.release_resource(one)
    assert not psutil.pid_exists(int(one.properties["command-pid"]))
    assert container.status(one) == "ended"
    container.release_resource(one)


def test_nothing_to_release_is_no_error(fleet: Fleet) -> None:
    """A resource that was never started has no worker, as far as can be seen."""
    container = fleet.container(SLEEP)
    container.release_resource(resource())
    assert container.status(resource()) == "unknown"


def test_a_worker_may_end_in_its_own_way(fleet: Fleet) -> None:
    """It is asked before it is killed."""
    script = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('goodbye', flush=True), sys.exit()))\n"
        "print('ready', flush=True)\ntime.sleep(600)"
    )
    container = fleet.container(script)
    started = container.request_resource(resource())
    fleet.ready()
    container.release_resource(resource(properties=started))
    assert fleet.log() == "ready\ngoodbye\n"


def test_a_worker_that_ignores_sigterm_is_killed(fleet: Fleet) -> None:
    """But not before the stop timeout is over."""
    container = fleet.container(DEAF, termination_grace_period="400ms")
    started = container.request_resource(resource())
    fleet.ready()
    began = time.monotonic()
    container.release_resource(resource(properties=started))
    assert 0.4 <= time.monotonic() - began < 5
    assert fleet.pids() == set()


def test_a_release_ends_the_whole_family(fleet: Fleet) -> None:
    """Children and grandchildren too."""
    container = fleet.container(FAMILY)
    started = container.request_resource(resource())
    fleet.ready(4)
    assert len(fleet.pids()) == 4
    container.release_resource(resource(properties=started))
    assert fleet.pids() == set()


@pytest.mark.parametrize("head", ["head", "no head"])
def test_a_family_is_one_though_it_changes_its_looks(fleet: Fleet, head: str) -> None:
    """Members are found that have no environment left, or a process group of their own."""
    naked = "os.execve(sys.executable, [*sys.argv[1:]], {})"
    script = (
        "import os, sys, time\n"
        "if os.fork() == 0: print('ready', flush=True); time.sleep(600)\n"
        f"if os.fork() == 0: os.setpgid(0, 0); {naked}\n" + naked
    )
    container = fleet.container(script, *PYTHON, SLEEP, fleet.mark)
    one = resource(properties=container.request_resource(resource()))
    pid = int(one.properties["command-pid"])
    fleet.ready(3)
    family = {member for member in psutil.pids() if in_session(member, pid)}
    assert len(family) == 3
    if head == "no head":
        os.kill(pid, signal.SIGKILL)
        until(lambda: not is_alive(pid))
        processes.reap()
        assert not psutil.pid_exists(pid)
    assert container.status(one) == "running"
    container.release_resource(one)
    assert not any(map(is_alive, family))
    assert container.status(one) == "ended"


def test_a_worker_may_clear_its_environment(fleet: Fleet) -> None:
    """Then process id and start time tell it, and it vouches for its session."""
    naked = "os.execve(sys.executable, [*sys.argv[1:]], {})"
    script = f"import os, sys\nif os.fork() == 0: os.setpgid(0, 0)\n{naked}"
    container = fleet.container(script, *PYTHON, SLEEP, fleet.mark)
    one = resource(properties=container.request_resource(resource()))
    pid = int(one.properties["command-pid"])
    fleet.ready(2)
    family = {member for member in psutil.pids() if in_session(member, pid)}
    assert len(family) == 2
    assert [psutil.Process(member).environ() for member in family] == [{}, {}]
    assert container.status(one) == "running"
    container.release_resource(one)
    assert not any(map(is_alive, family))


def in_session(pid: int, leader: int) -> bool:
    """Whether a process is in the session of another."""
    try:
        return os.getsid(pid) == leader
    except ProcessLookupError:
        return False


def test_a_launcher_that_hands_over_is_a_start(fleet: Fleet) -> None:
    """Its daemon is found by its environment, and ended."""
    container = fleet.container(DAEMON, start_check="10s")
    one = resource(properties=container.request_resource(resource()))
    fleet.ready()
    assert not is_alive(int(one.properties["command-pid"]))
    assert len(fleet.pids()) == 1
    assert container.status(one) == "running"
    container.release_resource(one)
    assert fleet.pids() == set()
    assert container.status(one) == "ended"


def test_the_next_start_ends_the_daemon_of_the_last(fleet: Fleet) -> None:
    """Also if its start was never saved."""
    container = fleet.container(DAEMON, start_check="10s")
    for count in (1, 2):
        container.request_resource(resource())
        fleet.ready(count)
        assert len(fleet.pids()) == 1


def test_what_cannot_be_ended_is_an_error(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """A release says so, and a start does not make a second process."""
    container = fleet.container(SLEEP, termination_grace_period="0")
    one = resource(properties=container.request_resource(resource()))
    with monkeypatch.context() as patch:
        patch.setattr(processes, "_KILL_WAIT", 0.1)
        patch.setattr(processes, "_signal", lambda *_: None)  # as if it were another user's
        with pytest.raises(ReleaseFailedError, match=rf"SIGKILL: {one.properties['command-pid']}"):
            container.release_resource(one)
        with pytest.raises(StartFailedError, match="an earlier launch is in the way: still runn"):
            container.request_resource(one)
    assert fleet.pids() == {int(one.properties["command-pid"])}
    assert container.status(one) == "running"


# --- Identity -----------------------------------------------------------------------------------


@pytest.mark.parametrize("later", [-100.0, -3.0, 3.0, 100.0])
def test_a_process_with_a_used_pid_is_left_alone(fleet: Fleet, later: float) -> None:
    """Neither properties nor record can make it ours, though it leads a session too."""
    stranger = psutil.Process(fleet.run([*PYTHON, SLEEP]).pid)
    launch = Launch(
        launch_id=new_launch_id("r1"),
        host=socket.gethostname(),
        pid=stranger.pid,
        started_at=stranger.create_time() + later,
    )
    fleet.logs.mkdir()
    fleet.files().write(Record(launch, None))
    container = fleet.container(SLEEP)
    one = resource(properties=properties_of(launch))
    assert container.status(one) == "ended"
    container.release_resource(one)
    container.request_resource(one)
    assert is_alive(stranger.pid)
    assert len(fleet.pids()) == 1


def test_a_process_that_leads_no_session_is_left_alone(fleet: Fleet) -> None:
    """Workers always do, so that even pid and start time are not taken on trust."""
    stranger = psutil.Process(fleet.run([*PYTHON, SLEEP], detached=False).pid)
    launch = Launch(
        launch_id=new_launch_id("r1"), pid=stranger.pid, started_at=stranger.create_time()
    )
    container = fleet.container(SLEEP)
    one = resource(properties={**properties_of(launch), "command-host": ""})
    assert container.status(one) == "ended"
    container.release_resource(one)
    assert is_alive(stranger.pid)


@pytest.mark.parametrize(
    "launch_id",
    ["", "x", new_launch_id("r1"), new_launch_id("r2")],
    ids=["none", "any", "own", "r2"],
)
def test_a_row_cannot_have_a_process_of_others_ended(fleet: Fleet, launch_id: str) -> None:
    """It names pid and start time of one that leads a session: refused, and that is said."""
    stranger = psutil.Process(fleet.run([*PYTHON, SLEEP]).pid)
    named = Launch(launch_id=launch_id, pid=stranger.pid, started_at=stranger.create_time())
    container = fleet.container(SLEEP)
    one = resource(properties={**properties_of(named), "command-host": socket.gethostname()})
    told = f"process {stranger.pid}, which its row names, is somebody else's"
    assert container.status(one) == "ended"
    with pytest.raises(ReleaseFailedError, match=told):
        container.release_resource(one)
    with pytest.raises(StartFailedError, match=told):
        container.request_resource(one)
    assert is_alive(stranger.pid)
    assert fleet.pids() == set()


def test_a_row_cannot_have_the_worker_of_another_resource_ended(fleet: Fleet) -> None:
    """Though its launch is one of ours, and the row knows all of it."""
    container = fleet.container(SLEEP)
    started = container.request_resource(resource("r2"))
    thief = resource("r1", properties=started)
    for call in (container.release_resource, container.request_resource):
        with pytest.raises((ReleaseFailedError, StartFailedError), match="is somebody else's"):
            call(thief)
    assert is_alive(int(started["command-pid"]))
    container.release_resource(resource("r2", properties=started))
    assert not is_alive(int(started["command-pid"]))


def test_a_worker_that_hides_its_mark_is_known_by_our_record(fleet: Fleet) -> None:
    """Programs that set their titles overwrite their environment; without a record it is left."""
    container = fleet.container(MARKLESS, fleet.mark)
    one = resource(properties=container.request_resource(resource()))
    pid = int(one.properties["command-pid"])
    until(lambda: LAUNCH_VARIABLE not in psutil.Process(pid).environ())
    record = fleet.files().record
    kept = record.read_bytes()
    record.unlink()
    with pytest.raises(ReleaseFailedError, match="is somebody else's"):
        container.release_resource(one)
    assert is_alive(pid)
    record.write_bytes(kept)
    record.chmod(0o600)
    container.release_resource(one)
    assert not is_alive(pid)


def test_a_worker_is_known_though_the_clock_was_set(fleet: Fleet) -> None:
    """Start times move with the clock; the launch id does not."""
    container = fleet.container(SLEEP)
    started = dict(container.request_resource(resource()))
    started["command-started-at"] = repr(float(started["command-started-at"]) - 3600)
    one = resource(properties=started)
    fleet.files().record.unlink()
    assert container.status(one) == "running"
    container.release_resource(one)
    assert fleet.pids() == set()


@pytest.mark.long
def test_a_zombie_is_dead(fleet: Fleet) -> None:
    """Also one whose parent does not care for it; that one is ended with the launch."""
    container = fleet.container(SLEEP)
    one = resource(properties=container.request_resource(resource()))
    dead = psutil.Process(pid_of(one.properties))
    psutil.Process(dead.ppid()).suspend()
    dead.kill()
    until(lambda: dead.status() == psutil.STATUS_ZOMBIE)
    assert container.status(one) == "ended"
    container.release_resource(one)
    until(lambda: not dead.is_running())
    container.request_resource(one)
    assert len(fleet.pids()) == 1


def test_a_caller_that_lives_long_gathers_no_zombies(fleet: Fleet) -> None:
    """The next call collects the workers that died."""
    container = fleet.container(SLEEP, start_check="0")
    pids = [pid_of(container.request_resource(resource(str(n)))) for n in range(5)]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    until(lambda: not any(map(is_alive, pids)))
    container.request_resource(resource())
    assert not any(map(psutil.pid_exists, pids))


def test_another_host_cannot_be_seen(fleet: Fleet) -> None:
    """The status is unknown, a release fails and names the host; a start here is made."""
    container = fleet.container(SLEEP)
    started = container.request_resource(resource())
    one = resource(properties={**started, "command-host": "far-away"})
    fleet.files().record.unlink()
    assert container.status(one) == "unknown"
    with pytest.raises(ReleaseFailedError, match="on host 'far-away' and cannot be seen"):
        container.release_resource(one)
    assert is_alive(pid_of(started))
    again = container.request_resource(one)
    assert again["command-host"] == socket.gethostname()


# --- Crashes and races --------------------------------------------------------------------------


@pytest.mark.crash_loop
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("script", [SLEEP, DAEMON], ids=["worker", "daemon"])
def test_a_killed_start_leads_to_one_process(fleet: Fleet, point: str, script: str) -> None:
    """The next start ends what the killed one made, whatever it had come to."""
    properties = fleet.properties(script, start_check="5s" if script is DAEMON else "100ms")
    starter = fleet.start_elsewhere(properties, resource(), point)
    assert starter.communicate() == ("", "")
    assert starter.returncode == -signal.SIGKILL
    again = fleet.start_elsewhere(properties, resource(), "none")
    started, errors = again.communicate()
    assert errors == ""
    assert fleet.launches() == {json.loads(started)["command-launch-id"]}
    assert len(fleet.pids()) == 1 or script is DAEMON  # which may be on its way still
    until(lambda: len(fleet.pids()) == 1)


@pytest.mark.crash_loop
@pytest.mark.parametrize("point", POINTS)
def test_a_killed_start_is_seen_and_released(fleet: Fleet, point: str) -> None:
    """By the properties that the resource had before, which is all that was saved."""
    container = fleet.container(SLEEP)
    one = resource(properties=container.request_resource(resource()))
    fleet.start_elsewhere(fleet.properties(SLEEP), one, point).communicate()
    began = point not in {"before the process", "before its witness is told"}
    assert container.status(one) == ("running" if began else "ended")
    assert len(fleet.pids()) == int(began)
    container.release_resource(one)
    assert fleet.pids() == set()


def test_the_undo_of_an_overtaken_start_spares_the_newer_one(fleet: Fleet) -> None:
    """Only the launch itself, and what followed it unsaved, is released."""
    container = fleet.container(SLEEP)
    before = resource(properties=container.request_resource(resource()))
    overtaken = before.with_properties(container.request_resource(before))
    newer = before.with_properties(container.request_resource(before))
    assert fleet.pids() == {int(newer.properties["command-pid"])}
    container.release_resource(overtaken)
    assert container.status(overtaken) == "ended"
    assert container.status(newer) == "running"
    container.release_resource(newer)
    assert fleet.pids() == set()


def test_a_resource_in_hand_is_not_touched(fleet: Fleet) -> None:
    """Whoever comes second is told; afterwards it goes on."""
    container = fleet.container(SLEEP)
    with fleet.files().locked():
        with pytest.raises(StartFailedError, match="another start of this resource is under way"):
            container.request_resource(resource())
        with pytest.raises(ReleaseFailedError, match="another start of this resource is under"):
            container.release_resource(resource())
        container.request_resource(resource("another"))
    one = resource(properties=container.request_resource(resource()))
    container.release_resource(one)


def test_of_many_starts_at_once_one_is_left(fleet: Fleet) -> None:
    """Threads of one process are kept apart like processes."""
    container = fleet.container(SLEEP, start_check="300ms")
    outcomes: list[object] = []

    def start() -> None:
        try:
            outcomes.append(container.request_resource(resource()))
        except StartFailedError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([each for each in outcomes if isinstance(each, dict)]) >= 1
    assert len(fleet.pids()) == 1


def test_a_record_that_cannot_be_written_is_a_failed_start(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the process runs already, it is ended again."""
    write = LaunchFiles.write

    def full(files: LaunchFiles, record: Record) -> None:
        if record.launch.pid is not None:
            raise OSError(28, "No space left on device")
        write(files, record)

    container = fleet.container(SLEEP)
    with monkeypatch.context() as patch:
        patch.setattr(LaunchFiles, "write", full)
        with pytest.raises(StartFailedError, match="No space left on device"):
            container.request_resource(resource())
    assert fleet.pids() == set()


def test_a_draft_of_a_killed_start_is_in_nobodys_way(fleet: Fleet) -> None:
    """However much of it was written."""
    fleet.logs.mkdir()
    fleet.files().record.with_suffix(".tmp").write_text("x" * 1000)
    starter = fleet.start_elsewhere(fleet.properties(SLEEP), resource(), POINTS[2])
    starter.communicate()
    container = fleet.container(SLEEP)
    assert container.status(resource()) == "running"
    container.release_resource(resource())
    assert fleet.pids() == set()


def test_errors_of_the_configuration_start_nothing(fleet: Fleet) -> None:
    """A container that cannot be used is not built."""
    with pytest.raises(ConfigError):
        fleet.container(SLEEP, "{nothing}")
    assert not fleet.logs.exists()
