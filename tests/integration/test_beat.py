"""`beat` around real programs that know nothing of us, on a real registry.

As the plugin's command, and as that of the light client, which needs nothing of the plugin.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa

from dagster_amoro import CommandContainer
from dagster_amoro.cli import UNUSABLE
from dagster_amoro.stores.database import Database
from dagster_amoro.stores.registry import Registry, optimizer
from dagster_amoro.testing import ready_fleet
from tests.helpers.waiting import is_alive

PATIENCE_SECONDS = 60  # a deadline for what takes a second
PLUGIN = [sys.executable, "-c", "from dagster_amoro.cli import main; main()", "beat"]
LIGHT = [sys.executable, "-c", "from dagster_amoro_worker.cli import main; main()"]
WHO = ["--resource-id", "w-1", "--group", "g", "--container", "local", "--interval", "100 ms"]
SHELL = ["sh", "-c", "echo up; while :; do sleep 0.05; done"]
JAVA = """
public class Worker {
    public static void main(String[] arguments) throws Exception {
        System.out.println("up");
        Thread.sleep(600_000);
    }
}
"""


class World:
    """A registry, and programs that say to it that they are alive."""

    def __init__(self, folder: Path, command: list[str]) -> None:
        self.folder = folder
        self.command = command
        self.url = sa.URL.create("sqlite", database=str(folder / "registry.db"))
        self.registry = Registry(Database(self.url, "registry"), timedelta(minutes=1))
        self.registry.create()
        self.begun: list[subprocess.Popen[str]] = []

    def beat(self, *command: str, options: list[str] | None = None) -> subprocess.Popen[str]:
        """The command line with this program."""
        environment = os.environ | {"DAGSTER_AMORO_REGISTRY": str(self.url)}
        line = [*self.command, *WHO, *(options or []), "--", *command]
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            line, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
        )
        self.begun.append(process)
        return process

    def rows(self) -> list[dict[str, object]]:
        """Who is registered."""
        with self.registry.database.reading() as connection:
            return [dict(row) for row in connection.execute(sa.select(optimizer)).mappings()]

    def close(self) -> None:
        """Ends what still runs."""
        for process in self.begun:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        self.registry.database.close()


@pytest.fixture(
    params=[
        pytest.param(PLUGIN, marks=pytest.mark.long, id="plugin"),
        pytest.param(LIGHT, id="light"),
    ]
)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    """A registry without workers."""
    made = World(tmp_path, request.param)
    yield made
    made.close()


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Until it holds."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)


def test_it_registers_touches_and_unregisters(world: World) -> None:
    """As a worker with a heartbeat of its own does; the program's end is its own."""
    process = world.beat("sh", "-c", f"while [ ! -e '{world.folder}/end' ]; do sleep 0.05; done")
    wait_for(world.rows, "the row")
    (row,) = world.rows()
    assert (row["resource_id"], row["group_name"], row["container_name"]) == ("w-1", "g", "local")
    assert json.loads(str(row["properties"]))["job-id"] == str(process.pid)
    wait_for(lambda: world.rows()[0]["touch_time"] != row["touch_time"], "a touch")
    (world.folder / "end").touch()
    assert process.wait(PATIENCE_SECONDS) == 0
    assert world.rows() == []


@pytest.mark.parametrize("code", [0, 3, 255])
def test_the_exit_code_is_the_programs(world: World, code: int) -> None:
    """Whoever has started it learns how it ended."""
    assert world.beat("sh", "-c", f"exit {code}").wait(PATIENCE_SECONDS) == code
    assert world.rows() == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM, signal.SIGUSR1])
def test_it_dies_of_what_the_program_died_of(world: World, number: signal.Signals) -> None:
    """So that the cause of death is told, and no row says that it lives."""
    process = world.beat("sh", "-c", f"kill -{number.value} $$; sleep 600")
    assert process.wait(PATIENCE_SECONDS) == -number
    assert world.rows() == []


@pytest.mark.parametrize("name", ["TERM", "INT", "HUP", "QUIT", "USR1", "USR2"])
def test_signals_are_passed_on(world: World, name: str) -> None:
    """The program decides what it makes of them."""
    process = world.beat(
        "sh", "-c", f"trap 'echo got {name}; exit 7' {name}; echo up; while :; do sleep 0.05; done"
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.Signals[f"SIG{name}"])
    assert process.communicate(timeout=PATIENCE_SECONDS)[0] == f"got {name}\n"
    assert process.returncode == 7


def test_it_registers_once_the_program_is_ready(world: World) -> None:
    """A command says so; until then nobody takes the program for alive."""
    file, asked = world.folder / "is ready", world.folder / "asked"
    ready = f'sh -c \'echo x >> "{asked}"; test -e "{file}"\''
    world.beat(*SHELL, options=["--ready", ready])
    wait_for(lambda: asked.exists() and asked.read_text().count("x") > 1, "two questions")
    assert world.rows() == []
    file.touch()
    wait_for(world.rows, "the row")


@pytest.mark.parametrize("ready", ["false", "no-such-program", "sh -c 'exit 1'"])
def test_a_program_that_ends_before_it_is_ready_was_never_there(world: World, ready: str) -> None:
    """A readiness command that cannot be started says no."""
    process = world.beat("sh", "-c", "sleep 1; exit 4", options=["--ready", ready])
    assert process.wait(PATIENCE_SECONDS) == 4
    assert world.rows() == []


@pytest.mark.parametrize(
    ("command", "options", "says"),
    [
        (["no-such-program"], [], "'no-such-program' cannot be started"),
        (["true"], ["--interval", "soon"], "--interval is 'soon'; accepted is"),
        (["true"], ["--interval", "0 s"], "interval must be longer than nothing"),
        (["true"], ["--group", ""], "group_name must have 1 to 100 characters"),
        (["true"], ["--registry", "secret-password"], "the registry's URL cannot be read"),
        (["true"], ["--ready", "'a"], "is no command: No closing quotation"),
    ],
)
def test_what_cannot_be_right_is_refused(
    world: World, command: list[str], options: list[str], says: str
) -> None:
    """Before anything is started, or registered."""
    process = world.beat(*command, options=options)
    _, error = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == UNUSABLE
    assert says in error
    assert "secret-password" not in error
    assert world.rows() == []


def java(folder: Path) -> list[str]:
    """A Java program, compiled."""
    compiler = shutil.which("javac")
    if compiler is None:
        pytest.skip("there is no javac here")
    (folder / "Worker.java").write_text(JAVA)
    subprocess.run([compiler, "-d", str(folder), str(folder / "Worker.java")], check=True)
    return ["java", "-cp", str(folder), "Worker"]


def pids_of(resource_id: str, registry: Registry) -> list[int]:
    """The processes that are registered for a resource."""
    mine = optimizer.c.resource_id == resource_id
    with registry.database.reading() as connection:
        found = connection.scalars(sa.select(optimizer.c.properties).where(mine)).all()
    return [int(json.loads(each)["job-id"]) for each in found]


def programs_of(pid: int) -> list[psutil.Process]:
    """What a process has started."""
    with suppress(psutil.Error):
        return psutil.Process(pid).children(recursive=True)
    return []


@pytest.mark.crash_loop
@pytest.mark.parametrize("language", ["shell", "java"])
@pytest.mark.parametrize(
    ("killed", "command"), [("the program", LIGHT), ("beat", LIGHT), ("both", PLUGIN)]
)
def test_a_program_of_any_language_is_kept_alive(
    tmp_path: Path, language: str, killed: str, command: list[str]
) -> None:
    """Killed, it comes back under the same id; nothing of it is left when the fleet is released.

    It is not taken for alive before it is ready.
    """
    program = SHELL if language == "shell" else java(tmp_path)
    url = sa.URL.create("sqlite", database=str(tmp_path / "fleet.db"))
    who = ["--resource-id", "{resource_id}", "--group", "{group_name}", "--container", "local"]
    ready = tmp_path / "ready"
    options = ["--interval", "100 ms", "--registry", str(url), "--ready", f"test -e '{ready}'"]
    line = [*command, *who, *options, "--", *program]
    properties = {"command": json.dumps(line), "log-dir": str(tmp_path / "logs")}
    registry = Registry(Database(url, "registry"), None)
    with ready_fleet(tmp_path, CommandContainer, properties) as fleet:
        fleet.start("w-1")
        wait_for(lambda: "up" in printed(tmp_path / "logs"), "the program")
        assert pids_of("w-1", registry) == []
        ready.touch()
        wait_for(lambda: pids_of("w-1", registry), "the row")
        (pid,) = pids_of("w-1", registry)
        old = [*programs_of(pid), psutil.Process(pid)]
        for each in {"the program": old[:-1], "beat": old[-1:], "both": old}[killed]:
            with suppress(psutil.NoSuchProcess):  # what the shell waited for
                each.kill()
        if killed != "the program":
            fleet.lose("w-1")
        wait_for(lambda: not pids_of("w-1", registry), "the end of its row")
        assert [each.outcome for each in fleet.heal()] == ["started"]
        assert not any(map(is_alive, old))
        wait_for(lambda: pids_of("w-1", registry), "the row of the new one")
        (new,) = pids_of("w-1", registry)
        assert new != pid
        programs = [*programs_of(new), psutil.Process(new)]
        assert len(programs) > 1
        fleet.tick()
        fleet.container.release_resource(fleet.resource("w-1"))
        wait_for(lambda: not any(map(is_alive, programs)), "the end of all")
    registry.database.close()


def printed(logs: Path) -> str:
    """What the programs of a fleet have printed."""
    return "".join(file.read_text() for file in logs.rglob("*.log"))
