"""Which database is meant: Amoro's JDBC form of a URL or SQLAlchemy's."""

import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import parse_qsl, unquote

import sqlalchemy as sa

from orchestration.config.values import parse_text

_DRIVERS: Final = {"postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql"}
_JDBC_SERVER: Final = re.compile(
    r"jdbc:(?P<backend>postgresql|mysql)://"
    r"(?P<host>\[[^\]]+\]|[^\[\]:/,?@]*)(?::(?P<port>[0-9]{1,5}))?"
    r"(?:,[^/?@]*)?"  # further hosts, for fail-over: the first one serves
    r"/(?P<database>[^?/:@#]*)(?:\?(?P<query>.*))?"
)
_JDBC_SQLITE: Final = re.compile(r"jdbc:sqlite:(?P<path>[^?]*)(?:\?.*)?")


def parse_url(value: object) -> sa.URL | None:
    """The database that a URL means; None for an empty one. ValueError: it is none."""
    text = parse_text(value)
    if not text:
        return None
    if text.startswith("jdbc:derby:"):  # so that it can be told apart from nonsense
        return sa.URL.create("derby")
    if match := _JDBC_SQLITE.fullmatch(text):
        return sa.URL.create("sqlite", database=match["path"])
    if match := _JDBC_SERVER.fullmatch(text):
        return _jdbc_url(match)
    return _sqlalchemy_url(text)


def _jdbc_url(match: re.Match[str]) -> sa.URL:
    parameters = dict(parse_qsl(match["query"] or ""))
    return sa.URL.create(
        _DRIVERS[match["backend"]],
        username=parameters.get("user"),
        password=parameters.get("password"),
        host=match["host"].strip("[]") or "localhost",  # as both JDBC drivers have it
        port=int(match["port"]) if match["port"] else None,
        database=unquote(match["database"]),
    )


def _sqlalchemy_url(text: str) -> sa.URL:
    try:
        url = sa.make_url(text)
    except sa.exc.ArgumentError:
        raise ValueError("not a URL") from None
    if url.get_backend_name() != "sqlite" and text.count("@") != (url.username is not None):
        # An `@` or `/` of the password was not escaped: the rest of it would pass for something
        # else, and be shown.
        raise ValueError("an @ that does not end the credentials")
    return url.set(drivername=_DRIVERS.get(url.drivername, url.drivername))


def url_flaws(url: sa.URL) -> Iterator[str]:
    """What is wrong with a URL that could be read; each completes "the URL ..."."""
    if any("password" in key.lower() or "passwd" in key.lower() for key in url.query):
        yield "holds a password in its query part, which logs would show"
    try:
        if url.get_dialect().is_async:
            yield "names an asynchronous driver, which cannot be used here"
    except sa.exc.NoSuchModuleError:
        yield "names a driver that SQLAlchemy does not know"
    yield from _file_flaws(url) if url.get_backend_name() == "sqlite" else _server_flaws(url)


def _server_flaws(url: sa.URL) -> Iterator[str]:
    if not url.database:
        yield "names no database"
    if url.port is not None and not 0 < url.port < 2**16:
        yield "names a port that cannot be"


def _file_flaws(url: sa.URL) -> Iterator[str]:
    path = url.database or ""
    if url.host:
        yield "has a host; an absolute path takes four slashes, as in sqlite:////data/registry.db"
    elif path in {"", ":memory:"}:
        yield "is in memory, where every process would have a registry of its own"
    elif "uri" in url.query or path.startswith(("file:", ":resource:")):
        yield "is not a plain path"
