"""How a worker says to the registry that it is alive: three statements, and who carries them there.

The driver of the database is all that is needed for that: what holds connections, pools and
dialects would be larger than everything else that a small worker has.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import parse_qs, unquote, urlsplit

from dagster_amoro_worker.errors import ConfigError, StoreUnavailableError

# What a program of another language would send, too: docs/heartbeats.md shows them.
REGISTER: Final = (
    "INSERT INTO optimizer (token, resource_id, group_name, container_name, start_time,"
    " touch_time, thread_count, total_memory, properties)"
    " VALUES (:token, :resource_id, :group_name, :container_name, NOW,"
    " NOW, :thread_count, :total_memory, :properties)"
)
TOUCH: Final = "UPDATE optimizer SET touch_time = NOW WHERE token = :token"
UNREGISTER: Final = "DELETE FROM optimizer WHERE token = :token"
CLOCKS: Final = {
    "sqlite": "strftime('%Y-%m-%d %H:%M:%f000', 'now')",
    "postgresql": "timezone('utc', clock_timestamp())",
    "mysql": "utc_timestamp(6)",
}
"""The database's clock, in UTC, without a zone, to the microsecond or millisecond."""
PATIENCE: Final[Mapping[str, str]] = {
    "connect_timeout": "10",  # s, to connect to a server that does not answer
    "keepalives_idle": "10",  # s, until a silent server is asked whether it is there
    "tcp_user_timeout": "10000",  # ms, until one that does not answer counts as gone
}
"""For PostgreSQL, whose driver would wait for ever; MySQL's waits for 10 s by itself."""
LOCK_TIMEOUT_SECONDS: Final = 10  # the next touch may find the lock free
_ACCEPTED: Final = (
    "the registry's URL cannot be read; accepted are sqlite:////PATH, "
    "postgresql://USER:PASSWORD@HOST/NAME and mysql://USER:PASSWORD@HOST/NAME, "
    "where `@`, `/` and their like in a password are written as in any URL, `%40`"
)
_UNSENDABLE: Final = (UnicodeEncodeError, OverflowError)  # what drivers raise for values like that
_MYSQL_VALUE: Final = re.compile(r"(entry|value:) '.*' for ", re.DOTALL)
_VALUE: Final = re.compile(r":(\w+)")
_SWITCHES: Final = {"true": True, "false": False}
_TLS: Final = ("ca", "capath", "cert", "key", "cipher", "check_hostname")
_FOUND_ROWS: Final = 2  # a flag: a touch within the same microsecond has found its row, too


class Url(Protocol):
    """A URL in its parts, as SQLAlchemy's `URL` has them, too."""

    @property
    def drivername(self) -> str:
        """The kind of database, and maybe `+` and a driver."""

    @property
    def username(self) -> str | None:
        """Who connects."""

    @property
    def password(self) -> str | None:
        """With what."""

    @property
    def host(self) -> str | None:
        """Where the server is."""

    @property
    def port(self) -> int | None:
        """At which port."""

    @property
    def database(self) -> str | None:
        """Its name, or that of the file."""

    @property
    def query(self) -> Mapping[str, str | Sequence[str]]:
        """What else the driver is told."""


class _Parts(NamedTuple):
    """A URL that was a text."""

    drivername: str
    username: str | None
    password: str | None
    host: str | None
    port: int | None
    database: str | None
    query: Mapping[str, str | Sequence[str]]


class _Kind(NamedTuple):
    """What one kind of database has of its own."""

    driver: str  # the name of its module
    connect: Callable[[Any, Url], Any]  # gives a connection that commits each statement by itself
    clock: str
    value: str  # how a value is marked in a statement; `\1` is its name
    limit_waits: str = ""  # a statement


class Registry:
    """The registry's database, as far as a worker needs it."""

    def __init__(self, url: str | Url) -> None:
        """Loads the driver; nothing is connected to yet.

        Raises:
            ValueError: The URL is none, or leads to no kind of database that is known.
            ConfigError: The driver is not installed.
        """
        self._url = parse_url(url) if isinstance(url, str) else url
        kind = _KINDS.get(self._url.drivername.partition("+")[0])
        if kind is None:
            raise ValueError(_ACCEPTED)
        self._kind = kind
        try:
            self._driver = import_module(kind.driver)
        except ImportError as error:
            raise ConfigError(
                f"the driver of the registry, {kind.driver}, cannot be loaded: {error}"
            ) from error

    @contextmanager
    def connected(self) -> Iterator[Callable[..., int]]:
        """Gives a function that executes a statement with its values, and returns how many rows.

        On a new connection: a kept one could be dead, or of a file that was replaced. A
        StoreUnavailableError says that the database does not answer as it should.
        """
        try:
            with closing(self._kind.connect(self._driver, self._url)) as connection:
                execute = partial(self._execute, connection)
                if self._kind.limit_waits:
                    execute(self._kind.limit_waits)
                yield execute
        except (self._driver.Error, *_UNSENDABLE) as error:
            raise StoreUnavailableError(
                f"the registry cannot be written: {reason(error)}"
            ) from None

    def _spelled(self, statement: str) -> str:
        """A statement as this kind of database, and its driver, want it."""
        marked = _VALUE.sub(self._kind.value, statement)
        return marked.replace("NOW", self._kind.clock)

    def _execute(self, connection: Any, statement: str, **values: Any) -> int:  # noqa: ANN401 - DB-API
        with closing(connection.cursor()) as cursor:
            cursor.execute(self._spelled(statement), values)
            rows: int = cursor.rowcount
            return rows


def parse_url(text: str) -> Url:
    """The parts of a URL; a ValueError, without the text itself, says that it is none."""
    try:
        parts = urlsplit(text, allow_fragments=False)
        port = parts.port
    except ValueError:
        raise ValueError(_ACCEPTED) from None
    is_file = parts.scheme.startswith("sqlite")
    if "://" not in text or (not is_file and text.count("@") != (parts.username is not None)):
        # An `@` or `/` of the password was not escaped: the rest would pass for something else.
        raise ValueError(_ACCEPTED)
    return _Parts(
        drivername=parts.scheme,
        username=parts.username and unquote(parts.username),
        password=parts.password and unquote(parts.password),
        host=parts.hostname,
        port=port,
        database=unquote(parts.path[1:]),
        query=parse_qs(parts.query),
    )


def reason(error: BaseException) -> str:
    """What went wrong, in the driver's words, without values.

    PostgreSQL adds the statement, or the whole row, from its second line on; MySQL puts the value
    in the middle.
    """
    text = error.args[-1] if len(error.args) == 2 else error  # noqa: PLR2004 - MySQL: number, text
    first_line = _MYSQL_VALUE.sub(r"\1 for ", str(text)).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first_line}".removesuffix(": ")


def connect_in_turn(
    connect: Callable[..., Any], arguments: Mapping[str, Any], refused: type[Exception]
) -> Any:  # noqa: ANN401 - a DB-API connection
    """Tries several hosts of MySQL one after the other, as libpq does by itself.

    Args:
        connect: Takes the arguments.
        arguments: `host` and `port` may have several each, with commas between; or one port.
        refused: What `connect` raises where a host does not answer.
    """
    hosts = str(arguments.get("host") or "localhost").split(",")
    ports = str(arguments.get("port") or 3306).split(",")
    failed: list[Exception] = []
    for host, port in zip(hosts, ports * len(hosts) if len(ports) == 1 else ports, strict=True):
        try:
            return connect(**{**arguments, "host": host, "port": int(port)})
        except refused as error:
            failed.append(error)
    raise type(failed[-1])(failed[-1].args[0], "; ".join(str(each.args[-1]) for each in failed))


def libpq_arguments(url: Url) -> dict[str, object]:
    """What PostgreSQL's driver is told; what the URL says counts before our patience."""
    return {**PATIENCE, **_server(url, "dbname"), **_texts(url)}


def pymysql_arguments(url: Url) -> dict[str, object]:
    """What MySQL's driver is told, which takes numbers and switches for what they are."""
    said: dict[str, object] = {
        key: int(text) if text.isdecimal() else _SWITCHES.get(text.lower(), text)
        for key, text in _texts(url).items()
    }
    tls = {key: said.pop(f"ssl_{key}") for key in _TLS if f"ssl_{key}" in said}
    given = {**_server(url, "database"), **said, **({"ssl": tls} if tls else {})}
    return {**given, "client_flag": _FOUND_ROWS, "autocommit": True}


def _server(url: Url, database: str) -> dict[str, object]:
    """Where the server is and who connects; how the database is called, drivers do not agree."""
    named = {"host": url.host, "port": url.port, "user": url.username, "password": url.password}
    return {key: value for key, value in {**named, database: url.database}.items() if value}


def _texts(url: Url) -> dict[str, str]:
    """The query part, where libpq writes several of a kind with commas between."""
    return {
        key: value if isinstance(value, str) else ",".join(value)
        for key, value in url.query.items()
    }


def _open_sqlite(driver: Any, url: Url) -> Any:  # noqa: ANN401 - a DB-API module and connection
    file = url.database or ""
    if not Path(file).is_file():
        raise StoreUnavailableError(f"there is no file {file}")  # SQLite would make it
    return driver.connect(file, timeout=LOCK_TIMEOUT_SECONDS, isolation_level=None)


def _open_postgresql(driver: Any, url: Url) -> Any:  # noqa: ANN401 - as above
    return driver.connect(**libpq_arguments(url), autocommit=True)


def _open_mysql(driver: Any, url: Url) -> Any:  # noqa: ANN401 - as above
    return connect_in_turn(driver.connect, pymysql_arguments(url), driver.OperationalError)


_MYSQL: Final = _Kind(
    "pymysql",
    _open_mysql,
    CLOCKS["mysql"],
    r"%(\1)s",
    f"SET innodb_lock_wait_timeout = {LOCK_TIMEOUT_SECONDS}, "
    f"lock_wait_timeout = {LOCK_TIMEOUT_SECONDS}",
)
_KINDS: Final = {
    "sqlite": _Kind("sqlite3", _open_sqlite, CLOCKS["sqlite"], r":\1"),
    "postgresql": _Kind(
        "psycopg",
        _open_postgresql,
        CLOCKS["postgresql"],
        r"%(\1)s",
        f"SET lock_timeout = '{LOCK_TIMEOUT_SECONDS} s'",
    ),
    "mysql": _MYSQL,
    "mariadb": _MYSQL,
}
