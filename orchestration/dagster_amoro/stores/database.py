"""How a store talks to its database: engines, transactions, time and errors, in one place."""

import os
import sqlite3
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import datetime
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles

from dagster_amoro.core.errors import ConfigError, StoreUnavailableError, UnansweredCommitError
from dagster_amoro_worker.registry import CLOCKS, PATIENCE, connect_in_turn, reason

LOCK_TIMEOUT_SECONDS: Final = 10  # a tick has 60 s in all
# A process that is paused within a transaction would keep its locks, and the others waiting.
_IDLE_SECONDS: Final = 30
# Connections are made as they are needed and kept; an overflow would be closed after each use, and
# made anew for the next of the many threads of a run.
_POOL: Final[Mapping[str, Any]] = {"pool_size": 15, "max_overflow": 0}
_WRITES: Final = "dagster_amoro_writes"
# By file: SQLite has one writer at a time, and whoever asks it for a turn may wait in vain while
# others take theirs. Threads of one process take turns before they ask.
_TURNS: Final[defaultdict[str, threading.Lock]] = defaultdict(threading.Lock)
_CREATION: Final = int.from_bytes(b"amoro")  # the lock under which tables are created
_UNSENDABLE: Final = (UnicodeEncodeError, OverflowError)  # what drivers raise for values like that


class Database:
    """A database, connected to when first used.

    Its transactions raise a StoreUnavailableError where it does not answer as it should; nothing
    was written then, unless it is an UnansweredCommitError.
    """

    def __init__(self, url: sa.URL, name: str) -> None:
        """Prepares the engine of `url`; `name` is what errors call the database.

        Raises:
            ConfigError: The driver is not installed.
        """
        self.name, self.url = name, url
        try:
            self.engine = _engine(url)
        except ImportError as error:
            raise ConfigError(
                f"the driver of the {name}, {url.drivername}, cannot be loaded: {error}"
            ) from error

    @contextmanager
    def reading(
        self, where: Sequence[sa.Executable] = (), **options: str
    ) -> Iterator[sa.Connection]:
        """A transaction that only reads, on a server that would do these writes, on no row at all.

        A standby does none, nor does a server that is read-only or grants too little. They are
        tried in the transaction itself: of several hosts, another may be asked the next time. A
        file is in one place, so there it is enough that `snapshot` tries them.
        """
        with self._errors("read"), self.engine.connect() as connection:
            if connection.dialect.name != "sqlite":
                connection.execution_options(**options)
                self._try(connection, where)
            yield connection

    @contextmanager
    def snapshot(self, where: Sequence[sa.Executable] = ()) -> Iterator[sa.Connection]:
        """The same, and it sees the same moment in each of its statements."""
        if where and self.engine.dialect.name == "sqlite":  # where every transaction does
            with self.rehearsing() as connection:
                self._try(connection, where[-1:])  # what refuses one write there refuses all
        with self.reading(where, isolation_level="REPEATABLE READ") as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction that writes: committed at the end, rolled back on any error."""
        with self._turn(), self._errors("written"), self._writer.begin() as connection:
            yield connection
            _commit(connection)

    @contextmanager
    def rehearsing(self) -> Iterator[sa.Connection]:
        """A transaction that writes, and is rolled back at its end in any case."""
        with self._turn(), self._errors("written"), self._writer.connect() as connection:
            yield connection

    @property
    def _writer(self) -> sa.Engine:
        return self.engine.execution_options(**{_WRITES: True})

    @contextmanager
    def _turn(self) -> Iterator[None]:
        if self.engine.dialect.name != "sqlite":
            yield
            return
        turn = _TURNS[self.url.database or ""]
        if not turn.acquire(timeout=LOCK_TIMEOUT_SECONDS):
            raise StoreUnavailableError(f"the {self.name} cannot be written: others hold its lock")
        try:
            yield
        finally:
            turn.release()

    @contextmanager
    def creating(self) -> Iterator[sa.Connection]:
        """A transaction that creates tables, one at a time among all processes and threads."""
        self.create_file()
        with self.writing() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_CREATION)))
            if not is_mysql(connection.dialect):  # in SQLite whoever writes is alone
                yield connection
                return
            lock = str(_CREATION)  # of no transaction: MySQL creates tables outside of one
            if not connection.scalar(sa.select(sa.func.get_lock(lock, LOCK_TIMEOUT_SECONDS))):
                raise StoreUnavailableError(
                    f"the {self.name} cannot be written: "
                    "another process creates tables for too long"
                )
            try:
                yield connection
            finally:
                connection.execute(sa.select(sa.func.release_lock(lock)))

    def create_file(self) -> None:
        """Makes an SQLite file, and its folder, unless it is there; only we may read it.

        A StoreUnavailableError says that there can be none.
        """
        file = self.url.database
        if self.engine.dialect.name != "sqlite" or file in {None, "", ":memory:"}:
            return
        try:
            Path(str(file)).parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):  # SQLite itself would heed the umask alone
                os.close(os.open(str(file), os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        except OSError as error:
            raise StoreUnavailableError(f"the {self.name} cannot be made: {error}") from error

    def _try(self, connection: sa.Connection, writes: Sequence[sa.Executable]) -> None:
        with self._errors("written"):
            for each in writes:
                connection.execute(each)

    def close(self) -> None:
        """Closes the pooled connections."""
        self.engine.dispose()

    @contextmanager
    def _errors(self, verb: str) -> Iterator[None]:
        try:
            yield
        except (sa.exc.SQLAlchemyError, *_UNSENDABLE) as error:
            # Without the error itself: whoever shows it shows its statement, and maybe a whole row.
            raise StoreUnavailableError(
                f"the {self.name} cannot be {verb}: {_reason(error)}"
            ) from None


def _commit(connection: sa.Connection) -> None:
    try:
        connection.commit()
    except sa.exc.SQLAlchemyError as error:
        # It may still be open, with its locks, and SQLAlchemy would pool it as it is.
        connection.invalidate()
        raise UnansweredCommitError(
            f"the answer to a commit was lost, so what was to be written may be there: "
            f"{_reason(error)}"
        ) from None


def _reason(error: Exception) -> str:
    """What went wrong, in the driver's words, without the statement that SQLAlchemy adds."""
    return reason(getattr(error, "orig", None) or error)


def _engine(url: sa.URL) -> sa.Engine:
    if url.get_backend_name() == "sqlite":
        # The driver's own BEGIN would come too late, see below.
        options = {"timeout": LOCK_TIMEOUT_SECONDS, "isolation_level": None}
        engine = sa.create_engine(url, connect_args=options, hide_parameters=True, **_POOL)
        sa.event.listen(engine, "connect", _prepare_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
        return engine
    if url.drivername == "postgresql+psycopg":  # PyMySQL waits for 10 s by itself
        url = url.update_query_dict({**PATIENCE, **url.query})
    engine = sa.create_engine(
        url, isolation_level="READ COMMITTED", pool_pre_ping=True, hide_parameters=True, **_POOL
    )
    limit_waits = (
        f"SET lock_timeout = '{LOCK_TIMEOUT_SECONDS} s'; "
        f"SET idle_in_transaction_session_timeout = '{_IDLE_SECONDS} s'"
    )
    if engine.dialect.name != "postgresql":  # one for rows, one for tables
        seconds = max(1, round(LOCK_TIMEOUT_SECONDS))
        limit_waits = (
            f"SET innodb_lock_wait_timeout = {seconds}, lock_wait_timeout = {seconds}, "
            f"wait_timeout = {_IDLE_SECONDS}"
        )

    def prepare(connection: Any, _record: object) -> None:  # noqa: ANN401 - a DBAPI connection
        with closing(connection.cursor()) as cursor:
            cursor.execute(limit_waits)
        connection.commit()

    sa.event.listen(engine, "connect", prepare)
    if is_mysql(engine.dialect):  # libpq does so by itself
        sa.event.listen(engine, "do_connect", _connect_in_turn)
    return engine


def _connect_in_turn(
    dialect: sa.Dialect,
    _record: object,
    arguments: Sequence[Any],
    named: Mapping[str, Any],
) -> Any:  # noqa: ANN401 - a DBAPI connection
    """Tries several hosts one after the other; None, for one: SQLAlchemy connects by itself.

    They stand in the URL as for libpq, as `host=a,b` and `port=1,2` of its query part.
    """
    if "," not in str(named.get("host", "")):
        return None
    refused = dialect.loaded_dbapi.OperationalError
    return connect_in_turn(partial(dialect.connect, *arguments), named, refused)


def _prepare_sqlite(connection: Any, _record: object) -> None:  # noqa: ANN401 - as above
    # Readers and the one writer do not block each other. Two processes that open a new file at once
    # can fail here without waiting; the transactions do wait, and the file is switched for both.
    with suppress(sqlite3.OperationalError):
        connection.execute("PRAGMA journal_mode = WAL")


def _begin_sqlite(connection: sa.Connection) -> None:
    # A transaction that reads first and writes later can fail at once under WAL, without waiting
    # for the lock. One that is going to write takes the lock first, and waits for it.
    writes = connection.get_execution_options().get(_WRITES)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def is_mysql(dialect: sa.Dialect) -> bool:
    """Whether it is MySQL or MariaDB, which a URL may call by either name."""
    return dialect.name in {"mysql", "mariadb"}


def on_mysql(dialect: sa.Dialect, name: str, **options: int) -> sa.types.TypeEngine[Any] | None:
    """A type of MySQL's own where that is the dialect, which takes long to import; else None."""
    if not is_mysql(dialect):
        return None
    of_mysql: sa.types.TypeEngine[Any] = getattr(import_module("sqlalchemy.dialects.mysql"), name)(
        **options
    )
    return of_mysql


def has_tables(database: Database, table: sa.Table) -> bool:
    """Whether a table of ours, or of Amoro's, is there; an SQLite file is not made to find out."""
    file = database.url.database if database.url.get_backend_name() == "sqlite" else None
    if file is not None and not Path(file).exists():
        return False
    with database.reading() as connection:
        return sa.inspect(connection).has_table(table.name)


def insert_unless_there(connection: sa.Connection, table: sa.Table, row: Mapping[str, Any]) -> bool:
    """Inserts a row; False: it would have collided with one that is there, and nothing was done."""
    name = connection.dialect.name
    if name not in {"sqlite", "postgresql"}:
        return connection.execute(sa.insert(table).prefix_with("IGNORE"), row).rowcount == 1
    dialect = import_module(f"sqlalchemy.dialects.{name}")  # slow to import
    new = dialect.insert(table).on_conflict_do_nothing()
    if name == "sqlite":  # an old one knows no RETURNING
        return bool(connection.execute(new, row).rowcount == 1)
    added = new.returning(sa.literal_column("1", sa.Integer))  # SQLAlchemy 2.0 loses its rowcount
    return connection.execute(added, row).first() is not None


class utc_now(sa.sql.functions.FunctionElement[datetime]):  # noqa: N801 - named like a function
    """The database's clock, in UTC, without a zone, to the microsecond or millisecond."""

    type = sa.DateTime()
    inherit_cache = True


@compiles(utc_now)
def _utc_now(_now: utc_now, compiler: sa.Compiled, **_: object) -> str:
    return CLOCKS.get(compiler.dialect.name, CLOCKS["mysql"])
