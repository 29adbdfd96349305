import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from dagster_amoro.containers import programs
from dagster_amoro.containers.output import UNKNOWN_END
from dagster_amoro.containers.processes import end, spawn, started_with
from dagster_amoro.containers.programs import Program, ProgramError, launch, run
from dagster_amoro.core.secrets import Mask
from tests.helpers.waiting import PATIENCE, wait_until

STARTED = re.compile(r"started as (\w+)")
SLEEPER = "import time; time.sleep(60)"


def python(code: str, *arguments: str, **fields: object) -> Program:
    """A program that runs some Python."""
    return Program(argv=[sys.executable, "-c", code, *arguments], **fields)  # type: ignore[arg-type]


def sh(code: str, *arguments: str) -> Program:
    """A program that runs a shell script of the test's own."""
    return Program(argv=["/bin/sh", "-c", code, "sh", *arguments])


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log in a folder that is not there yet."""
    return tmp_path / "logs" / "x.log"


@pytest.fixture
def marker() -> Iterator[str]:
    """A mark for the processes of a test, which are ended after it."""
    mark = f"test-{os.getpid()}-{time.monotonic_ns()}"
    yield mark
    end(started_with({"-id": mark}), 0)


def test_output_and_errors_are_returned() -> None:
    """In the order in which they were written."""
    assert run(sh("echo one; echo two >&2; echo three"), PATIENCE) == "one\ntwo\nthree\n"


def test_arguments_arrive_as_they_are() -> None:
    """No shell sees them."""
    arguments = ["a b", "", "$(id)", "`id`", "&;|<>", "'", '"', "*", "é\n\\", "-x"]
    code = "import sys; print(sys.argv[1:])"
    assert run(python(code, *arguments), PATIENCE) == f"{arguments}\n"


def test_a_program_gets_its_environment_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default what this host gives its programs; nothing of ours in any case."""
    monkeypatch.setenv("AMS_DATABASE_PASSWORD", "hunter2")
    monkeypatch.setenv("LC_TIME", "C")
    argv = ["/usr/bin/env"]
    assert run(Program(argv=argv, environment={"GIVEN": "x y"}), PATIENCE) == "GIVEN=x y\n"
    passed = run(Program(argv=argv), PATIENCE)
    assert f"PATH={os.environ['PATH']}\n" in passed
    assert "LC_TIME=C\n" in passed
    assert "hunter2" not in passed


def test_input_is_what_was_given() -> None:
    """And nothing where nothing was."""
    assert run(Program(argv=["cat"], stdin=b"a\nb"), PATIENCE) == "a\nb"
    assert run(Program(argv=["cat"]), PATIENCE) == ""


def test_bytes_that_are_no_text_are_marked() -> None:
    """Databases refuse NUL, and terminals obey escapes."""
    code = r"import os; os.write(1, b'a\0b\xffc\x1b[1m\xc3\xa9\t.')"
    assert run(python(code), PATIENCE) == "a\ufffdb\ufffdc\ufffd[1mé\t."


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("echo why; exit 3", "sh ended with exit code 3; the end of its output:\n  | why"),
        ("exit 1", "sh ended with exit code 1 without any output"),
        ("kill -KILL $$", "sh was ended by SIGKILL without any output"),
        ("kill -40 $$", "sh was ended by signal 40 without any output"),
    ],
)
def test_a_failure_says_how_it_ended(code: str, problem: str) -> None:
    """With the end of its output, where the error stands."""
    with pytest.raises(ProgramError, match=f"^{re.escape(problem)}$"):
        run(sh(code), PATIENCE)


DEAF = """
import signal, sys
for each in (signal.SIGINT, signal.SIGTERM):
    signal.signal(each, signal.SIG_IGN)
from dagster_amoro.containers.programs import Program, run
run(Program(argv=["/bin/sh", "-c", sys.argv[1]]), 180)
"""


@pytest.mark.parametrize("name", ["INT", "TERM"])
def test_a_program_heeds_signals_that_we_ignore(name: str) -> None:
    """As Dagster's processes do where a shell started it in the background."""
    with pytest.raises(ProgramError, match=f"ProgramError: sh was ended by SIG{name} without any"):
        run(python(DEAF, f"kill -{name} $$"), PATIENCE)


OTHERS_COLLECT = """
import os, signal, threading, time
from dagster_amoro.containers.programs import Program, ProgramError, run

def collect():
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            time.sleep(0.0001)

def ending(script):
    try:
        run(Program(argv=["/bin/sh", "-c", script]), 180)
    except ProgramError as error:
        return str(error).partition(":")[0]
    return "well"
"""
A_THREAD = "threading.Thread(target=collect, daemon=True).start()"
THE_SYSTEM = "signal.signal(signal.SIGCHLD, signal.SIG_IGN)"
UNKNOWN = "sh ended in an unknown way"


@pytest.mark.parametrize("who", [A_THREAD, THE_SYSTEM])
@pytest.mark.parametrize(
    ("script", "known"),
    [
        ("exit 0", "well"),
        ("exit 3", "sh ended with exit code 3 without any output"),
        ("kill -TERM $$", "sh was ended by SIGTERM without any output"),
    ],
)
def test_an_end_that_others_collect_is_not_a_good_one(who: str, script: str, known: str) -> None:
    """Popen by itself would say 0."""
    code = f"{OTHERS_COLLECT}\n{who}\nprint(*{{ending({script!r}) for _ in range(30)}}, sep='\\n')"
    found = set(run(python(code), PATIENCE).splitlines())
    assert UNKNOWN in found
    assert found <= ({UNKNOWN, known} if who is A_THREAD else {UNKNOWN})


def test_an_unknown_end_stays_unknown() -> None:
    """Whoever asks, and however often; nobody waits for it again."""
    with Path(os.devnull).open("wb") as log:
        worker = spawn(["/bin/true"], environment={}, log=log.fileno())
    os.waitpid(worker.pid, 0)
    assert [worker.poll(), worker.wait(), worker.wait(0), worker.poll()] == [UNKNOWN_END] * 4


def test_threads_that_ask_at_once_learn_the_same_end() -> None:
    """The system tells it to one of them only."""
    with Path(os.devnull).open("wb") as log, ThreadPoolExecutor(8) as pool:
        for code in range(60):
            argv = ["/bin/sh", "-c", f"exit {code}"]
            worker = spawn(argv, environment={}, log=log.fileno())
            assert {*pool.map(worker.wait, [PATIENCE] * 8)} == {code}


def test_a_wait_ends_in_time() -> None:
    """As that of Popen does."""
    with Path(os.devnull).open("wb") as log:
        worker = spawn(["/bin/sleep", "60"], environment={}, log=log.fileno())
    with pytest.raises(subprocess.TimeoutExpired, match=r"'60'\]' timed out after 0\.1 seconds"):
        worker.wait(0.1)
    worker.kill()
    assert worker.wait() == -signal.SIGKILL


def test_a_failure_shows_no_secrets() -> None:
    """Neither of the output nor of what it could not start."""
    mask = Mask({"password": "hunter2"})
    with pytest.raises(ProgramError, match=r"user \*\*\* --token=\*\*\*$"):
        run(python("print('user hunter2 --token=abc'); exit(1)", mask=mask), PATIENCE)
    with pytest.raises(ProgramError, match=r"^'/no/\*\*\*' could not be started: FileNotFound"):
        run(Program(argv=["/no/hunter2"], mask=mask), PATIENCE)


def test_a_secret_at_the_cut_is_hidden_as_a_whole() -> None:
    """The output is freed of secrets before it is cut."""
    mask = Mask({"password": "hunter2" * 10})
    code = f"print('x' * 3000 + {'hunter2' * 10!r} * 40 + 'y' * 1970); exit(1)"
    with pytest.raises(ProgramError) as caught:
        run(python(code, mask=mask), PATIENCE)
    assert "hunter" not in str(caught.value)
    assert len(str(caught.value)) < 2100


@pytest.mark.parametrize("size", [0, 4 * 2**20, 4 * 2**20 + 1, 100 * 2**20])
def test_of_much_output_the_end_is_returned(size: int) -> None:
    """At most 4 MiB, so that a program that runs wild does not take all memory."""
    code = f"import sys; [sys.stdout.write('x' * 2**20) for _ in range({size >> 20})]"
    output = run(python(f"{code}; print('y' * {size % 2**20} + '.', end='')"), PATIENCE)
    assert output[-1] == "."
    assert len(output) == min(size + 1, 4 * 2**20)


def test_a_failure_after_much_output_is_told_in_little_time() -> None:
    """Only the end is looked at."""
    code = "import sys; [sys.stdout.write('password ' * 2**17) for _ in range(50)]; exit(1)"
    began = time.process_time()
    with pytest.raises(ProgramError, match="exit code 1"):
        run(python(code), PATIENCE)
    assert time.process_time() - began < 3


def cannot_start(folder: Path) -> dict[str, list[str]]:
    """Programs that are none."""
    (folder / "plain").write_text("#!/bin/sh\n")
    (folder / "headless").write_text("echo x\n")
    (folder / "headless").chmod(0o755)
    (folder / "lost").write_text("#!/no/such/interpreter\n")
    (folder / "lost").chmod(0o755)
    return {
        "missing": [str(folder / "none")],
        "unknown": ["no-such-program-anywhere"],
        "folder": [str(folder)],
        "not executable": [str(folder / "plain")],
        "without interpreter": [str(folder / "headless")],
        "of a lost interpreter": [str(folder / "lost")],
        "NUL": ["echo", "a\0b"],
        "surrogate": ["echo", "\ud800"],
        "too long": ["echo", "x" * 2**22],
    }


@pytest.mark.parametrize(
    "kind",
    [
        *("missing", "unknown", "folder", "not executable", "without interpreter"),
        *("of a lost interpreter", "NUL", "surrogate", "too long"),
    ],
)
def test_what_cannot_be_started_is_one_kind_of_error(kind: str, tmp_path: Path, log: Path) -> None:
    """Whatever the system says about it."""
    program = Program(argv=cannot_start(tmp_path)[kind])
    with pytest.raises(ProgramError, match="could not be started: "):
        run(program, PATIENCE)
    with pytest.raises(ProgramError, match="could not be started: "):
        launch(program, log=log, line=STARTED, timeout=PATIENCE)


@pytest.mark.parametrize("environment", [{"A=B": "x"}, {"A": "\0"}, {"A\0": "x"}])
def test_variables_that_cannot_be_set_are_the_same_error(environment: dict[str, str]) -> None:
    """A name that is none, or a value with NUL."""
    with pytest.raises(ProgramError, match="could not be started: "):
        run(Program(argv=["env"], environment=environment), PATIENCE)


def test_a_log_that_cannot_be_is_the_same_error(tmp_path: Path) -> None:
    """A file in the place of its folder, or a folder in its own."""
    (tmp_path / "file").touch()
    for log in (tmp_path / "file" / "x.log", tmp_path):
        with pytest.raises(ProgramError, match="could not be started: "):
            launch(sh("echo started as x"), log=log, line=STARTED, timeout=PATIENCE)


def test_no_place_for_the_output_is_the_same_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the disk is full."""
    monkeypatch.setattr("tempfile.tempdir", "/no/such/folder")
    with pytest.raises(ProgramError, match="could not be started: FileNotFoundError"):
        run(sh("echo"), PATIENCE)


def test_too_long_a_program_is_killed_with_its_children(marker: str) -> None:
    """Also those that do not heed SIGTERM."""
    code = f"trap '' TERM; echo working; {shlex.quote(sys.executable)} -c '{SLEEPER}' -id {marker}"
    with pytest.raises(
        ProgramError, match=r"not over after 0\.5 s; .*:\n  \| working\n  \| working$"
    ):
        run(sh(f"{code} & {code}"), 0.5)
    wait_until(lambda: not started_with({"-id": marker}))


def test_what_a_program_leaves_in_the_background_runs_on(marker: str) -> None:
    """Its end is the program's, though its child keeps the output open."""
    code = f"{shlex.quote(sys.executable)} -c '{SLEEPER}' -id {marker} & echo $!"
    pid = int(run(sh(code), PATIENCE))
    assert [process.pid for process in started_with({"-id": marker})] == [pid]


def test_a_program_that_closes_its_output_is_waited_for(tmp_path: Path) -> None:
    """Its end counts, not that of its output."""
    assert run(sh('exec >&- 2>&-; sleep 0.3; : > "$1"', str(tmp_path / "done")), PATIENCE) == ""
    assert (tmp_path / "done").exists()


class Interrupted(BaseException):
    """Somebody wants this process to stop."""


@pytest.fixture
def interrupted() -> Iterator[Callable[[Callable[[], bool]], None]]:
    """Raises `Interrupted` in the test as soon as something holds."""

    def raise_it(*_: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGUSR1, raise_it)
    threads = []

    def when(condition: Callable[[], bool]) -> None:
        def watch() -> None:
            wait_until(condition)
            os.kill(os.getpid(), signal.SIGUSR1)

        threads.append(threading.Thread(target=watch))
        threads[-1].start()

    yield when
    for thread in threads:
        thread.join()
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("launched", [False, True])
def test_an_interruption_kills_the_program(
    interrupted: Callable[[Callable[[], bool]], None], marker: str, log: Path, *, launched: bool
) -> None:
    """Nobody would wait for it any more.

    One that comes while the program is being started, before anybody knows of it, is not meant.
    """
    program = python(SLEEPER, "-id", marker)

    def waits_for_it() -> bool:
        return any(time.time() - p.create_time() > 1 for p in started_with({"-id": marker}))

    interrupted(waits_for_it)
    go = partial(launch, log=log, line=STARTED) if launched else run
    with pytest.raises(Interrupted):
        go(program, timeout=PATIENCE)
    assert not started_with({"-id": marker})


def test_a_launch_returns_at_its_line(log: Path, marker: str) -> None:
    """While the program runs on, and its output goes on into the log."""
    code = "import time; print('hello\\nstarted as x1\\r', flush=True); time.sleep(60)"
    found = launch(python(code, "-id", marker), log=log, line=STARTED, timeout=PATIENCE)
    assert found is not None
    assert found[1] == "x1"
    assert len(started_with({"-id": marker})) == 1
    assert log.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("output", "name"),
    [
        ("started as x1\\n", "x1"),
        ("started as x1", "x1"),
        ("\\377\\n\\0started\\nstarted as x1\\n", "x1"),
        ("not started as x1\\nstarted as x1 now\\n", None),
        ("started as x1\\nstarted as x2\\n", "x1"),
        ("", None),
    ],
)
def test_a_launch_reads_until_the_end(output: str, name: str | None, log: Path) -> None:
    """The first whole line counts, the last one also without its end."""
    found = launch(sh(f"printf '{output}'"), log=log, line=STARTED, timeout=PATIENCE)
    assert (found[1] if found else None) == name


def test_a_launch_waits_for_the_end_of_a_line(log: Path) -> None:
    """Half a name is not taken for one."""
    code = "printf 'started as ab'; sleep 0.3; printf 'cd\\n'; sleep 0.3"
    found = launch(sh(code), log=log, line=STARTED, timeout=PATIENCE)
    assert found is not None
    assert found[1] == "abcd"


def test_a_launch_does_not_read_what_earlier_ones_wrote(log: Path) -> None:
    """The log is appended to."""
    assert launch(sh("echo started as x1"), log=log, line=STARTED, timeout=PATIENCE)
    assert launch(sh("echo nothing"), log=log, line=STARTED, timeout=PATIENCE) is None
    assert log.read_text() == "started as x1\nnothing\n"


def test_a_launch_survives_the_truncation_of_its_log(log: Path) -> None:
    """As a rotation of logs does it."""
    launch(
        sh("echo a long line that was here before the program started"),
        log=log,
        line=STARTED,
        timeout=PATIENCE,
    )
    code = ': > "$1"; echo started as x1'
    found = launch(sh(code, str(log)), log=log, line=STARTED, timeout=PATIENCE)
    assert found is not None


def test_a_launch_with_much_output_takes_little(log: Path) -> None:
    """What was read is not read again."""
    code = (
        "import sys\nfor n in range(50_000): print('a line of the log of Spark', n)\n"
        "sys.stdout.write('y' * 2**25 + '\\nstarted as x1\\n')"
    )
    began = time.process_time()
    assert launch(python(code), log=log, line=STARTED, timeout=PATIENCE)
    assert time.process_time() - began < 5


@pytest.mark.parametrize("code", ["exit 4", "kill -TERM $$"])
def test_a_launch_that_fails_says_how(code: str, log: Path) -> None:
    """With what it wrote itself, not what earlier ones did."""
    launch(sh("echo earlier"), log=log, line=STARTED, timeout=PATIENCE)
    with pytest.raises(ProgramError, match=r"^sh (ended with exit code 4|was ended by SIGTERM); "):
        launch(sh(f"echo why; {code}"), log=log, line=STARTED, timeout=PATIENCE)
    with pytest.raises(ProgramError, match=r"output:\n  \| why$"):
        launch(sh(f"echo why; {code}"), log=log, line=STARTED, timeout=PATIENCE)


def test_a_launch_that_says_nothing_is_killed(log: Path, marker: str) -> None:
    """Once the time is up; it may write without an end."""
    code = "print('x', flush=True)\nwhile True: print('working' * 1000)"
    with pytest.raises(ProgramError, match=r"^python\S* did not say within 0\.5 s what it started"):
        launch(python(code, "-id", marker), log=log, line=STARTED, timeout=0.5)
    assert not started_with({"-id": marker})


def test_a_launch_that_stays_is_well(log: Path, marker: str) -> None:
    """Where the program itself is what was to be started."""
    program = python(SLEEPER, "-id", marker)
    assert launch(program, log=log, line=STARTED, timeout=0.3, stays=True) is None
    assert len(started_with({"-id": marker})) == 1


def test_a_log_that_goes_away_is_an_error(log: Path, marker: str) -> None:
    """And what was started without it is ended."""
    code = "import os, sys, time; os.remove(sys.argv[1]); time.sleep(60)"
    program = python(code, str(log), "-id", marker)
    with pytest.raises(ProgramError, match="FileNotFoundError"):
        launch(program, log=log, line=STARTED, timeout=0.5)
    assert not started_with({"-id": marker})


def test_what_ended_is_not_killed(tmp_path: Path, marker: str) -> None:
    """Its id may be another's by then; here it is still that of its child's group."""
    with (tmp_path / "log").open("wb") as file:
        argv = list(sh(f"{shlex.quote(sys.executable)} -c '{SLEEPER}' -id {marker} &").argv)
        worker = spawn(argv, environment=os.environ, directory=None, log=file.fileno())
    worker.wait(PATIENCE)
    programs.kill(worker)
    wait_until(lambda: bool(started_with({"-id": marker})))
