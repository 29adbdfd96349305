"""A database whose answer to a commit is lost: the commit is made, and the connection is cut."""

import socket
import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from dagster_amoro.stores.database import Database

_COMMIT: Final = b"COMMIT"
_CHUNK: Final = 1 << 16


class CutDatabase(Database):
    """A ledger's database; while `cuts`, no commit is answered."""

    cuts = False


class Proxy:
    """Stands between a client and a server on unix sockets."""

    def __init__(self, path: Path, server: str, database: CutDatabase) -> None:
        self._database, self._server = database, server
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Takes no more connections."""
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._server)
                lost = threading.Event()
                for ends in ((client, server), (server, client)):
                    threading.Thread(target=self._carry, args=(*ends, lost), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket, lost: threading.Event) -> None:
        """From one end to the other; the answer to a commit ends both."""
        with suppress(OSError), source, sink:
            while data := source.recv(_CHUNK):
                if lost.is_set():
                    for end in (source, sink):
                        end.shutdown(socket.SHUT_RDWR)
                    return
                if self._database.cuts and data.rstrip(b"\0").endswith(_COMMIT):
                    lost.set()
                sink.sendall(data)


@contextmanager
def cut_database(url: sa.URL) -> Iterator[CutDatabase]:
    """A database at `url`, to which nobody but this one is connected through a proxy."""
    if url.get_backend_name() == "sqlite":
        database = CutDatabase(url, "ledger")
        sa.event.listen(database.engine, "commit", lambda each: _lose(database, each))
        yield database
        database.close()
        return
    with tempfile.TemporaryDirectory(prefix="keeper-") as folder:
        if url.get_backend_name() == "postgresql":
            name = f".s.PGSQL.{url.query.get('port') or url.port or 5432}"
            server = str(Path(str(url.query.get("host") or url.host)) / name)
            through = url.update_query_dict({"host": folder})
        else:
            name, server = "socket", str(url.query["unix_socket"])
            through = url.update_query_dict({"unix_socket": f"{folder}/{name}"})
        database = CutDatabase(through, "ledger")
        proxy = Proxy(Path(folder) / name, server, database)
        yield database
        database.close()
        proxy.close()


def _lose(database: CutDatabase, connection: sa.Connection) -> None:
    if database.cuts:
        raw: Any = connection.connection.driver_connection
        raw.execute("COMMIT")
        raise sa.exc.OperationalError("COMMIT", {}, sqlite3.OperationalError("disk I/O error"))
