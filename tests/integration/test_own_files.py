"""Logs and launch records among people who mean ill: links, pipes, folders of others; and rotation.

Whoever finds another attack adds a line to `ATTACKS`.
"""

import os
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pytest
import sqlalchemy as sa

from dagster_amoro import CommandContainer
from dagster_amoro.containers import calls
from dagster_amoro.containers.command.launches import LaunchFiles
from dagster_amoro.containers.fences import Fence, fenced
from dagster_amoro.containers.isolated import IsolatedContainers
from dagster_amoro.containers.output import Rotation, end_of, older, opened
from dagster_amoro.containers.programs import Program, ProgramError, run
from dagster_amoro.core.container_settings import ContainerSettings
from dagster_amoro.core.errors import ContainerError, ReleaseFailedError, StartFailedError
from dagster_amoro.core.model import Event, EventKind, Resource
from dagster_amoro.stores.database import Database
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro.stores.registry import Registry
from tests.helpers.fleet import fleet
from tests.helpers.waiting import wait_until

RESOURCE: Final = Resource(
    resource_id="r1", group_name="g", container_name="local", thread_count=1, memory_mb=0
)
NOBODY: Final = 65534


def _link(path: Path, victim: Path) -> None:
    path.symlink_to(victim)


def _hard_link(path: Path, victim: Path) -> None:
    path.hardlink_to(victim)


def _pipe(path: Path, _victim: Path) -> None:
    os.mkfifo(path)


def _folder(path: Path, _victim: Path) -> None:
    path.mkdir()


def _dangling(path: Path, victim: Path) -> None:
    path.symlink_to(victim.with_name("not-there"))


def _of_nobody(path: Path, victim: Path) -> None:
    path.write_bytes(victim.read_bytes())
    os.chown(path, NOBODY, NOBODY)


ATTACKS: Final[dict[str, Callable[[Path, Path], None]]] = {
    "a link to a file of ours": _link,
    "a link to what is to come": _dangling,
    "another name of a file of ours": _hard_link,
    "a pipe that nobody writes to": _pipe,
    "a folder": _folder,
    **({"a file of another user": _of_nobody} if os.geteuid() == 0 else {}),
}


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file of ours that somebody would like to have changed, or shown."""
    made = tmp_path / "victim"
    made.write_text("precious")
    made.chmod(0o600)
    return made


@pytest.fixture
def container(tmp_path: Path) -> CommandContainer:
    """A container whose workers say what they do and end."""
    properties = {"command": '["echo", "x"]', "log-dir": str(tmp_path / "logs")}
    return CommandContainer("local", properties)


def files(tmp_path: Path) -> LaunchFiles:
    """The files of the resource."""
    return LaunchFiles(tmp_path / "logs", "local", "r1")


def in_time(call: Callable[[], object]) -> BaseException | None:
    """What a call raises; it does not hang."""
    raised: list[BaseException | None] = []

    def made() -> None:
        try:
            call()
            raised.append(None)
        except BaseException as error:  # noqa: BLE001 - it is looked at
            raised.append(error)

    thread = threading.Thread(target=made, daemon=True)
    thread.start()
    thread.join(30)
    assert raised, "it hangs"
    return raised[0]


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
@pytest.mark.parametrize("name", ["log", "record", "lock"])
def test_a_start_uses_nothing_but_files_of_its_own(
    container: CommandContainer,
    victim: Path,
    tmp_path: Path,
    attack: Callable[[Path, Path], None],
    name: str,
) -> None:
    """It fails at once, says which file it is, and changes nothing that is not its own."""
    path: Path = getattr(files(tmp_path), name)
    path.parent.mkdir(mode=0o700)
    attack(path, victim)
    before = (victim.read_text(), victim.stat().st_mode, sorted(tmp_path.iterdir()))
    error = in_time(lambda: container.request_resource(RESOURCE))
    assert isinstance(error, StartFailedError)
    assert str(path) in str(error) or path.name in str(error)
    assert (victim.read_text(), victim.stat().st_mode, sorted(tmp_path.iterdir())) == before
    if name == "lock":
        assert isinstance(in_time(lambda: container.release_resource(RESOURCE)), ReleaseFailedError)


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_the_end_of_a_worker_is_read_from_nothing_but_a_file_of_ours(
    container: CommandContainer,
    victim: Path,
    tmp_path: Path,
    attack: Callable[[Path, Path], None],
) -> None:
    """A witness replaces what is in its way, and writes to nothing else."""
    path = files(tmp_path).end
    path.parent.mkdir(mode=0o700)
    attack(path, victim)
    one = RESOURCE.with_properties(container.request_resource(RESOURCE))
    wait_until(lambda: container.status(one) == "ended")
    found = calls.post_mortem(container, one)
    assert found is not None
    assert found.cause == ("unknown" if path.is_dir() else "exit 0")
    assert victim.read_text() == "precious"
    if not path.is_dir():
        path.unlink()
        attack(path, victim)
        found = calls.post_mortem(container, one)
        assert found is not None
        assert found.cause == "unknown"


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777, 0o702])
def test_a_folder_that_others_may_write_in_is_not_used(
    container: CommandContainer, tmp_path: Path, mode: int
) -> None:
    """They could replace a record, which says what is ended; the error says what to do."""
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs").chmod(mode)
    with pytest.raises(StartFailedError, match=r"not ours alone.*chmod go-w.*logs"):
        container.request_resource(RESOURCE)


def test_a_folder_that_is_a_link_is_not_used(container: CommandContainer, tmp_path: Path) -> None:
    """Whoever made it may lead it elsewhere between two looks."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "logs").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StartFailedError, match="logs"):
        container.request_resource(RESOURCE)
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_not_used(container: CommandContainer, tmp_path: Path) -> None:
    """Be it as closed as can be."""
    (tmp_path / "logs").mkdir(mode=0o700)
    os.chown(tmp_path / "logs", NOBODY, NOBODY)
    with pytest.raises(StartFailedError, match="not ours alone"):
        container.request_resource(RESOURCE)


def test_whoever_looks_leaves_nothing_behind(container: CommandContainer, tmp_path: Path) -> None:
    """No folder comes to be by asking how a worker is."""
    assert container.status(RESOURCE) == "unknown"
    assert list(tmp_path.iterdir()) == []


def test_what_is_made_is_ours_alone(container: CommandContainer, tmp_path: Path) -> None:
    """Whatever the umask is; what was open before is closed."""
    (tmp_path / "logs").mkdir(mode=0o700)
    files(tmp_path).log.write_text("older\n")
    files(tmp_path).log.chmod(0o666)
    before = os.umask(0)
    try:
        container.request_resource(RESOURCE)
    finally:
        os.umask(before)
    wait_until(lambda: any((tmp_path / "logs").glob("*.end")))  # of a worker that ends at once
    made = {
        path.suffix: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "logs").iterdir()
    }
    assert made == dict.fromkeys((".log", ".json", ".lock", ".end"), 0o600)


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_fences_are_files_of_ours(
    victim: Path,
    tmp_path: Path,
    attack: Callable[[Path, Path], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What says which attempt came last decides who may act."""
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    fence = Fence("0" * 32, 1, 1)
    with fenced("local", "r1", fence):
        pass
    (path,) = (tmp_path / "fences").iterdir()
    path.unlink()
    attack(path, victim)

    def call() -> None:
        with fenced("local", "r1", fence):
            pass

    assert isinstance(in_time(call), ContainerError)
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("attack", [_link, _pipe, _folder, _dangling])
def test_only_a_file_is_read(
    victim: Path, tmp_path: Path, attack: Callable[[Path, Path], None]
) -> None:
    """The log of a program that runs as another user is its own; a link could lead anywhere."""
    attack(tmp_path / "log", victim)
    assert isinstance(in_time(lambda: end_of(tmp_path / "log")), OSError)


def test_a_program_that_makes_a_pipe_of_its_log_is_an_error(tmp_path: Path) -> None:
    """It knows where that is; nobody waits for it to write."""
    code = "log=$(readlink /proc/self/fd/2); rm $log; mkfifo $log"
    error = in_time(lambda: run(Program(argv=["sh", "-c", code]), 10))
    assert isinstance(error, ProgramError)
    assert tmp_path.exists()


def test_a_database_that_is_made_is_ours_alone(tmp_path: Path) -> None:
    """Registry and ledger, with what SQLite lays beside them; one that was there is left."""
    (tmp_path / "there.db").touch(0o640)
    before = os.umask(0)
    try:
        ledger = Ledger(Database(sa.URL.create("sqlite", database=f"{tmp_path}/a/l.db"), "ledger"))
        registry = Database(sa.URL.create("sqlite", database=f"{tmp_path}/b/r.db"), "registry")
        other = Database(sa.URL.create("sqlite", database=f"{tmp_path}/there.db"), "registry")
        for database in (registry, other):
            Registry(database, None).create()
        ledger.open_incidents()
        with ledger.transaction() as transaction, registry.writing():
            transaction.add_event(Event(kind=EventKind.PAUSED, at=datetime.now(UTC), message="x"))
            made = [*(tmp_path / "a").iterdir(), *(tmp_path / "b").iterdir()]
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in made}
    finally:
        os.umask(before)
    assert modes.keys() >= {"l.db", "l.db-wal", "l.db-shm", "r.db"}
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE((tmp_path / "there.db").stat().st_mode) == 0o640
    for database in (ledger.database, registry, other):
        database.close()


# --- Rotation -----------------------------------------------------------------------------------


def test_a_log_is_put_aside_where_its_writer_goes_on(tmp_path: Path) -> None:
    """Nothing that stood there is lost, but for what is older than is to be kept."""
    log, rotation = tmp_path / "x.log", Rotation(largest=1000, files=2)
    tmp_path.chmod(0o700)
    with opened(log, os.O_WRONLY | os.O_APPEND) as writer:
        for number in range(100):
            os.write(writer, f"line {number:04}\n".encode() * 10)
            rotation.turn(log)
            assert log.stat().st_size <= 1000
    kept = "".join(path.read_text() for path in (older(log, 2), older(log, 1), log))
    lines = [int(line.removeprefix("line ")) for line in kept.splitlines()]
    assert lines == [number for number in range(lines[0], 100) for _ in range(10)]
    assert len(kept) > 2000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.log", "x.log.1", "x.log.2"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}


def test_of_a_log_that_grew_too_far_the_end_is_kept(tmp_path: Path) -> None:
    """Nobody looked for long; no file is more than twice as large as it may be."""
    tmp_path.chmod(0o700)
    log, rotation = tmp_path / "x.log", Rotation(largest=1000, files=1)
    with opened(log, os.O_WRONLY) as writer:
        os.write(writer, b"x" * 10_000 + b"the end\n")
    rotation.turn(log)
    assert (log.read_text(), len(older(log, 1).read_text())) == ("", 2000)
    assert older(log, 1).read_text().endswith("the end\n")


def test_a_tick_puts_logs_aside(tmp_path: Path) -> None:
    """Of workers that run for months, so that nothing else ever looks; a broken one is left."""
    command = {"command": '["true"]', "log-dir": str(tmp_path / "logs"), "log-max-size": "1KB"}
    here = "dagster_amoro.CommandContainer"
    both: dict[str, dict[str, str]] = {"broken": {}, "local": command}
    containers = {
        name: ContainerSettings(name=name, implementation=here, properties=properties)
        for name, properties in both.items()
    }
    log = files(tmp_path).log
    with opened(log, os.O_WRONLY | os.O_APPEND) as writer, fleet(tmp_path) as world:
        world.services = replace(world.services, containers=IsolatedContainers(containers))
        os.write(writer, b"x" * 2000 + b"\n")
        world.tick()
        os.write(writer, b"the next\n")
        assert log.read_text() == "the next\n"
        assert older(log, 1).read_text().endswith("xxx\n")


def test_a_tick_that_hands_work_over_leaves_logs_to_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To copy them may take long, and the runs that it has written down are not requested yet."""
    tended: list[int] = []
    with fleet(tmp_path) as world:
        containers = type(world.services.containers)
        monkeypatch.setattr(containers, "tend", lambda _: tended.append(1))
        world.worker()
        world.tick()
        assert len(tended) == 1
        assert world.later().tick()
        assert len(tended) == 1
        assert not world.tick()
        assert len(tended) == 2


def test_a_running_workers_log_is_put_aside_by_the_next_start(tmp_path: Path) -> None:
    """Of any resource of the container; the worker writes on, and its end is found."""
    talk = "i=0; while [ $i -lt 200 ]; do i=$((i+1)); echo line $i; done; echo done; exec sleep 60"
    properties = {
        "command": f'["sh", "-c", "{talk}"]',
        "log-dir": str(tmp_path / "logs"),
        "log-max-size": "1KB",
        "start-check": "0",
        "termination-grace-period": "1s",
    }
    container, log = CommandContainer("local", properties), files(tmp_path).log
    started = container.request_resource(RESOURCE)
    deadline = time.monotonic() + 30
    while "done" not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    other = Resource(
        resource_id="r2", group_name="g", container_name="local", thread_count=1, memory_mb=0
    )
    second = container.request_resource(other)
    assert log.read_text() == ""
    assert older(log, 1).read_text().endswith("line 200\ndone\n")
    assert files(tmp_path).tail(1500).endswith("line 200\ndone")
    for resource, startup in ((RESOURCE, started), (other, second)):
        container.release_resource(resource.with_properties(startup))
