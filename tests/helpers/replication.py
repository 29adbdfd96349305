"""PostgreSQL on TCP: a server, or a primary with a streaming standby that can be cut off."""

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from tests.helpers.databases import PostgresServer, administering, running_postgresql
from tests.helpers.waiting import wait_until

_STOP_SECONDS: Final = 120  # until a server that does not stop is an error
_ASKS: Final = """\
host all postgres 127.0.0.1/32 trust
host all all 127.0.0.1/32 scram-sha-256
"""


@dataclass(frozen=True)
class Replicated:
    """A primary and its standby, both on TCP, as a JDBC URL needs them."""

    primary: int  # a port of this host
    standby: int

    def url(self, port: int) -> sa.URL:
        """One of the two, for the driver that the project uses."""
        name = "postgres"
        return sa.URL.create("postgresql+psycopg", name, None, "127.0.0.1", port, name)

    def jdbc(self, *ports: int, parameters: str = "") -> str:
        """Several in the order in which they are to be tried, as Amoro writes it."""
        hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
        return f"jdbc:postgresql://{hosts}/postgres?user=postgres{parameters}"

    def cut_off(self) -> None:
        """The standby has all that was written so far, and gets nothing any more."""
        with administering(self.url(self.primary)) as connection:
            written = connection.exec_driver_sql("SELECT pg_current_wal_lsn()").scalar()
        with administering(self.url(self.standby)) as connection:

            def says(condition: str) -> bool:
                return bool(connection.exec_driver_sql(f"SELECT {condition}").scalar())

            wait_until(lambda: says(f"pg_last_wal_replay_lsn() >= '{written}'"))
            connection.exec_driver_sql("ALTER SYSTEM SET primary_conninfo = ''")
            connection.exec_driver_sql("SELECT pg_reload_conf()")
            wait_until(lambda: says("NOT EXISTS (SELECT FROM pg_stat_wal_receiver)"))


@contextmanager
def replicated_postgresql() -> Iterator[Replicated]:
    """Both servers, which end with the test."""
    with running_postgresql() as made, ExitStack() as stack:
        made.stop()  # it listens on a unix socket alone
        ports = free_ports(2)
        servers = Replicated(*ports)
        stack.enter_context(_serving(made, made.pgdata, servers.primary))
        standby = made.pgdata.parent / "standby"
        standby.mkdir(mode=0o700)
        os.chown(standby, made.pgdata.stat().st_uid, made.pgdata.stat().st_gid)
        source = ["-h", "127.0.0.1", "-p", str(servers.primary), "-U", "postgres"]
        _run(made, "pg_basebackup", *source, "-D", str(standby), "-R", "-c", "fast", "--no-sync")
        stack.enter_context(_serving(made, standby, servers.standby))
        yield servers


@contextmanager
def postgresql_on_tcp() -> Iterator[tuple[PostgresServer, int]]:
    """A server that listens on a port of this host, and asks all but its owner who they are."""
    with running_postgresql() as made:
        made.stop()  # it listens on a unix socket alone
        (made.pgdata / "pg_hba.conf").write_text(_ASKS)
        (port,) = free_ports(1)
        with _serving(made, made.pgdata, port):
            yield made, port


def free_ports(count: int) -> list[int]:
    """Ports of this host that nobody listens on."""
    with ExitStack() as stack:
        found = [stack.enter_context(closing(socket.socket())) for _ in range(count)]
        for each in found:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in found]


@contextmanager
def _serving(made: PostgresServer, data: Path, port: int) -> Iterator[None]:
    options = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off"}
    settings = [text for key, value in options.items() for text in ("-c", f"{key}={value}")]
    command = [str(made.bin_path / "postgres"), "-D", str(data), "-p", str(port), *settings]
    with (data.parent / f"{data.name}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, **_user(made))
    try:
        wait_until(lambda: process.poll() is not None or _answers(port))
        assert process.poll() is None, (data.parent / f"{data.name}.log").read_text()
        yield
    finally:
        process.terminate()
        process.wait(_STOP_SECONDS)


def _answers(port: int) -> bool:
    try:
        with administering(Replicated(port, port).url(port)) as connection:
            return connection.exec_driver_sql("SELECT 1").scalar() == 1
    except sa.exc.OperationalError:
        return False


def _run(made: PostgresServer, command: str, *arguments: str) -> None:
    done = subprocess.run(
        [str(made.bin_path / command), *arguments],
        capture_output=True,
        text=True,
        check=False,
        **_user(made),
    )
    assert done.returncode == 0, done.stderr


def _user(made: PostgresServer) -> dict[str, Any]:
    """PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return {"cwd": "/"}
    return {"cwd": "/", "user": made.system_user, "extra_groups": []}
