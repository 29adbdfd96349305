"""How a store talks to its database: engines, transactions, time and errors, in one place."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import mysql
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.types import TypeDecorator

from orchestration.errors import StoreUnavailableError

LOCK_TIMEOUT_SECONDS: Final = 10  # a tick has 60 s in all
_WRITES: Final = "dagster_amoro_writes"


class Database:
    """A database, connected to when first used."""

    def __init__(self, url: sa.URL, name: str) -> None:
        """Prepares the engine of `url`; `name` is what errors call the database."""
        self.name = name
        self.url = url
        self.engine = _engine(url)

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A transaction that only reads.

        Raises:
            StoreUnavailableError: The database did not answer as it should.
        """
        with self._errors("read"), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction that writes: committed at the end, rolled back on any error.

        Raises:
            StoreUnavailableError: The database did not answer as it should; nothing was written.
        """
        with self._errors("written"), self.engine.connect() as connection:
            connection.execution_options(**{_WRITES: True})
            with connection.begin():
                yield connection

    def create_folder(self) -> None:
        """Makes the folder of an SQLite file; other databases bring their own."""
        if self.engine.dialect.name == "sqlite" and self.url.database:
            Path(self.url.database).parent.mkdir(parents=True, exist_ok=True)

    def close(self) -> None:
        """Closes the pooled connections."""
        self.engine.dispose()

    @contextmanager
    def _errors(self, verb: str) -> Iterator[None]:
        try:
            yield
        except sa.exc.SQLAlchemyError as error:
            # The driver's own words only: SQLAlchemy's would add the statement and its values.
            cause = getattr(error, "orig", None) or error
            raise StoreUnavailableError(
                f"the {self.name} cannot be {verb}: {type(cause).__name__}: {cause}".strip()
            ) from error


def _engine(url: sa.URL) -> sa.Engine:
    if url.get_backend_name() != "sqlite":
        return sa.create_engine(
            url, isolation_level="READ COMMITTED", pool_pre_ping=True, hide_parameters=True
        )
    engine = sa.create_engine(
        url, connect_args={"timeout": LOCK_TIMEOUT_SECONDS}, hide_parameters=True
    )
    sa.event.listen(engine, "connect", _prepare_sqlite)
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: object) -> None:  # noqa: ANN401 - a DBAPI connection
    connection.isolation_level = None  # the driver's own BEGIN would come too late, see below
    connection.execute("PRAGMA journal_mode = WAL")  # readers and the one writer do not block


def _begin_sqlite(connection: sa.Connection) -> None:
    # A transaction that reads first and writes later can fail at once under WAL, without waiting
    # for the lock. One that is going to write takes the lock first, and waits for it.
    writes = connection.get_execution_options().get(_WRITES)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


class utc_now(sa.sql.functions.FunctionElement[datetime]):  # noqa: N801 - named like a function
    """The database's clock, in UTC, without a zone, to the microsecond or millisecond."""

    type = sa.DateTime()
    inherit_cache = True


@compiles(utc_now, "sqlite")
def _utc_now_sqlite(*_: Any, **__: Any) -> str:  # noqa: ANN401 - compiler hooks have no types
    return "strftime('%Y-%m-%d %H:%M:%f000', 'now')"


@compiles(utc_now, "postgresql")
def _utc_now_postgresql(*_: Any, **__: Any) -> str:  # noqa: ANN401 - as above
    return "timezone('utc', clock_timestamp())"


@compiles(utc_now, "mysql")
@compiles(utc_now, "mariadb")
def _utc_now_mysql(*_: Any, **__: Any) -> str:  # noqa: ANN401 - as above
    return "utc_timestamp(6)"


class UtcDateTime(TypeDecorator[datetime]):
    """Aware UTC in Python, UTC without a zone in the database, to the microsecond."""

    impl = sa.DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> sa.types.TypeEngine[Any]:
        """MySQL drops the fraction of a second unless told otherwise."""
        if dialect.name in {"mysql", "mariadb"}:
            return dialect.type_descriptor(mysql.DATETIME(fsp=6))
        return dialect.type_descriptor(sa.DateTime())

    def process_bind_param(self, value: datetime | None, _dialect: sa.Dialect) -> datetime | None:
        """Refuses naive times: nobody could say which hour they mean."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value!r} has no time zone; times in the ledger are aware UTC")
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, _dialect: sa.Dialect) -> datetime | None:
        """Adds the zone that the column does not hold."""
        return None if value is None else value.replace(tzinfo=UTC)
