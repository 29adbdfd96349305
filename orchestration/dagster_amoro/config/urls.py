"""Which database is meant: Amoro's JDBC form of a URL or SQLAlchemy's."""

from collections.abc import Iterator

import sqlalchemy as sa

from dagster_amoro.config.jdbc import DRIVERS, parse_jdbc
from dagster_amoro.config.values import parse_text


def parse_url(value: object) -> sa.URL | None:
    """The database that a URL means; None for an empty one. ValueError: it is none."""
    text = parse_text(value)
    if not text:
        return None
    return parse_jdbc(text) or _sqlalchemy_url(text)


def _sqlalchemy_url(text: str) -> sa.URL:
    try:
        url = sa.make_url(text)
    except sa.exc.ArgumentError:
        raise ValueError("not a URL") from None
    if url.get_backend_name() != "sqlite" and text.count("@") != (url.username is not None):
        # An `@` or `/` of the password was not escaped: the rest of it would pass for something
        # else, and be shown.
        raise ValueError("an @ that does not end the credentials")
    return url.set(drivername=DRIVERS.get(url.drivername, url.drivername))


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
