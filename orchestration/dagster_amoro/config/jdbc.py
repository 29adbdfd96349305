"""Which database a URL means, in Amoro's JDBC form or SQLAlchemy's, and what is wrong with it."""

import re
import ssl
from collections.abc import Iterator, Mapping, Sequence
from typing import Final
from urllib.parse import parse_qsl, unquote

import sqlalchemy as sa

from dagster_amoro.config.values import JAVA_INT_MAX, InvalidValueError, parse_text

DRIVERS: Final = {"postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql"}
_SERVER: Final = re.compile(
    r"jdbc:(?P<backend>postgresql|mysql|mariadb):"
    r"(?://(?P<hosts>[^/?@]*)/|(?<=postgresql:)(?!/))(?P<database>[^?/:@#]*)(?:\?(?P<query>.*))?"
)
_HOST: Final = re.compile(r"(?P<host>\[[^\]]+\]|[^\[\]:,()=]*)(?::(?P<port>[0-9]{1,5}))?")
_NAMED: Final = re.compile(r"address=((?:\([^()]*\))+)|\(([^()]*)\)")  # Connector/J's other ways
_LIST: Final = re.compile(r"\[(.*[(,].*)\]")  # of hosts; an IPv6 address has no such characters
_COMMA: Final = re.compile(r",(?![^()]*\))")  # between two hosts, not within one
_PORTS: Final = {"postgresql": "5432", "mysql": "3306", "mariadb": "3306"}
_SESSIONS: Final = {  # pgJDBC's `targetServerType`, in libpq's words
    "any": "",
    "primary": "read-write",
    "master": "read-write",
    # Where there is no primary, pgJDBC would take a standby, of which a keeper has no use.
    "preferPrimary": "read-write",
    "secondary": "read-only",
    "slave": "read-only",
    "preferSecondary": "prefer-standby",
    "preferSlave": "prefer-standby",
}
# What leads Java's drivers to another place than the URL's, in a way that ours cannot follow.
_ELSEWHERE: Final = {
    "postgresql": ("service", "PGHOST", "PGPORT", "PGDBNAME", "socketFactory"),
    "mysql": ("socketfactory", "dnssrv", "localsocket", "pipe", "namedpipepath", "socksproxyhost"),
}
_SPREAD: Final = re.compile(r"jdbc:(?:mysql|mariadb):(?P<how>[a-z]+)://.*", re.DOTALL)
_SQLITE: Final = re.compile(r"jdbc:sqlite:(?P<path>[^?]*)(?:\?.*)?")
_SSL_MODES: Final = {"disable", "allow", "prefer", "require", "verify-ca", "verify-full"}
_ESCAPED: Final = re.compile(r"([\s\\])")


def parse_url(value: object) -> sa.URL | None:
    """The database that a URL means; None: the text is empty.

    Raises:
        InvalidValueError: It asks for something that no driver of ours can do.
        ValueError: It is no URL, or one in which the password cannot be told from the rest.
    """
    text = parse_text(value)
    if not text:
        return None
    if (url := _parse_jdbc(text)) is not None:
        return url
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
    if url.get_backend_name() == "sqlite":
        yield from _file_flaws(url)
        return
    if not url.database:
        yield "names no database"
    hosts = str(url.query.get("host") or url.host).split(",")
    ports = str(url.query.get("port") or url.port or 1).split(",")
    if not all(port.isdecimal() and 0 < int(port) < 2**16 for port in ports):
        yield "names a port beyond 1 to 65535"
    elif len(ports) not in {1, len(hosts)}:
        yield "names neither one port nor as many as hosts"


def _file_flaws(url: sa.URL) -> Iterator[str]:
    path = url.database or ""
    if url.host:
        yield "has a host; an absolute path takes four slashes, as in sqlite:////data/registry.db"
    elif path in {"", ":memory:"}:
        yield "is in memory, where every process would have a registry of its own"
    elif "uri" in url.query or path.startswith(("file:", ":resource:")):
        yield "is not a plain path"


def _parse_jdbc(text: str) -> sa.URL | None:
    """The database that a JDBC URL means; None: it is none, or cannot be read."""
    if text.startswith("jdbc:derby:"):  # so that it can be told apart from nonsense
        return sa.URL.create("derby")
    if match := _SQLITE.fullmatch(text):
        return sa.URL.create("sqlite", database=match["path"])
    if match := _SPREAD.fullmatch(text):
        raise InvalidValueError(
            f"and of the kind {match['how']}, for several hosts; name the host to write to, or "
            "several to be tried in turn, as in jdbc:mysql://host1,host2/database"
        )
    if (match := _SERVER.fullmatch(text)) is None:
        return None
    query = match["query"] or ""
    given = dict(parse_qsl(query, keep_blank_values=True))
    if "@" in query and not any("@" in given.get(key, "") for key in ("user", "password")):
        return (
            None  # it ends credentials that were not escaped, and a part of them seems a database
        )
    return _server_url(match, given)


def _server_url(match: re.Match[str], given: dict[str, str]) -> sa.URL | None:
    hosts = _hosts(match["hosts"] or "", is_mysql=match["backend"] != "postgresql")
    if hosts is None:
        return None
    if match["backend"] == "postgresql":
        backend, translate = "postgresql", _libpq
    else:
        backend, translate = "mysql", _pymysql
        given = {key.lower(): value for key, value in given.items()}  # as Connector/J has it
    for key in _ELSEWHERE[backend]:
        if given.get(key, "").lower() not in {"", "false"}:
            raise InvalidValueError(
                f"and sets {key}, which only Java's driver can follow; name the host, or several "
                "with a comma between, the port and the database before the question mark"
            )
    query = {**_several(hosts, _PORTS[backend]), **translate(given)}
    host, port = hosts[0] if len(hosts) == 1 else (None, None)
    return sa.URL.create(
        DRIVERS[backend],
        username=given.get("user") or None,
        password=given.get("password") or None,
        host=host,
        port=int(port) if port else None,
        database=unquote(match["database"]),
        query={key: value for key, value in query.items() if value},
    )


def _hosts(text: str, *, is_mysql: bool) -> list[tuple[str, str]] | None:
    """The hosts of a JDBC URL with their ports, in the order in which they are tried.

    A port is empty where the default is meant. None: they cannot be read.

    Raises:
        InvalidValueError: One of them asks for more than we can heed.
    """
    if is_mysql and (listed := _LIST.fullmatch(text)):
        text = listed[1]
    found = [_host(each, is_mysql=is_mysql) for each in _COMMA.split(text)]
    return None if None in found else [each for each in found if each is not None]


def _host(text: str, *, is_mysql: bool) -> tuple[str, str] | None:
    if match := _HOST.fullmatch(text):
        host, port = match["host"].strip("[]"), match["port"]
    elif is_mysql and (match := _NAMED.fullmatch(text)):
        host, port = _by_name(match[1] or match[2])
    else:
        return None
    return host or "localhost", port or ""  # as both JDBC drivers have it


def _by_name(text: str) -> tuple[str, str]:
    """Host and port of Connector/J's `(host=h)(port=p)` or, without the brackets, `host=h,port=p`.

    Either may be left out.
    """
    pairs = (pair.partition("=") for pair in re.split(r"\)\(|,", text.strip("()")))
    said = {name.strip().lower(): value.strip() for name, _, value in pairs}
    host, port = said.pop("host", ""), said.pop("port", "")
    if said not in ({}, {"protocol": "tcp"}) or not re.fullmatch("[0-9]{0,5}", port):
        raise InvalidValueError(
            "and says of a host what cannot be heeded; of each its host and port are, and "
            "credentials belong into ams.database.username and ams.database.password"
        )
    return host, port


def _several(hosts: Sequence[tuple[str, str]], default: str) -> dict[str, str]:
    """Hosts that are tried in turn, as libpq writes them; nothing where there is only one."""
    if len(hosts) == 1:
        return {}
    names, ports = zip(*hosts, strict=True)
    return {"host": ",".join(names), "port": ",".join(port or default for port in ports)}


def _libpq(given: Mapping[str, str]) -> dict[str, str]:
    """The parameters of pgJDBC that libpq has an equivalent for.

    Its client keys are in a format of Java's, so they are left out. The schema is escaped as the
    server wants it in `options`, where it comes last, since it counts before one that is there.
    """
    schema = _ESCAPED.sub(r"\\\1", given.get("currentSchema", ""))
    path = f" -csearch_path={schema}" if schema else ""
    session = _SESSIONS.get(given.get("targetServerType", "any"))
    if session is None:
        kinds = ", ".join(_SESSIONS)
        raise InvalidValueError(f"and asks for a targetServerType that is none of {kinds}")
    return {
        "target_session_attrs": session,
        "sslmode": _ssl_mode(given),
        "sslrootcert": given.get("sslrootcert", ""),
        "options": f"{given.get('options', '')}{path}".strip(),
        "connect_timeout": _count(given.get("connectTimeout")),
        "tcp_user_timeout": _count(given.get("socketTimeout"), times=1000),
        "application_name": given.get("ApplicationName", ""),
    }


def _ssl_mode(given: Mapping[str, str]) -> str:
    """What libpq calls it; `ssl` alone asks pgJDBC for a certificate and name that are right.

    A socket factory of Java's that checks nothing is libpq's `require`.
    """
    asked = "verify-full" if given.get("ssl", "false").lower() in {"", "true"} else ""
    mode = given.get("sslmode", asked).lower()
    if mode and mode not in _SSL_MODES:
        raise InvalidValueError("and asks for an sslmode that PostgreSQL's drivers do not have")
    unchecked = given.get("sslfactory", "").endswith(".NonValidatingFactory")
    return "require" if unchecked and mode.startswith("verify-") else mode


def _pymysql(given: Mapping[str, str]) -> dict[str, str]:
    """The parameters of Connector/J that PyMySQL has an equivalent for."""
    reading = _count(given.get("sockettimeout"), per=1000)
    return {
        "charset": "utf8mb4",
        **_tls(given.get("sslmode") or _older_tls(given)),
        "connect_timeout": _count(given.get("connecttimeout"), per=1000),
        "read_timeout": reading,
        "write_timeout": reading,
    }


def _older_tls(given: Mapping[str, str]) -> str:
    """What `useSSL` and its companions mean as an `sslMode`, by Connector/J's own table."""

    def asked(name: str, default: str) -> bool:
        return given.get(name, default).lower() in {"true", "yes"}

    if not asked("usessl", "true"):
        return "disabled"
    if asked("verifyservercertificate", "false"):
        return "verify_ca"
    return "required" if asked("requiressl", "false") else "preferred"


def _tls(mode: str) -> dict[str, str]:
    """How PyMySQL, through SQLAlchemy, is told an `sslMode` of Connector/J, or MariaDB's name.

    Any `ssl_` option makes PyMySQL insist on TLS, and one that names authorities makes it check
    the certificate against them. A Java trust store cannot be read: those of the system serve.
    """
    match mode.lower().replace("_", "-"):
        case "preferred":
            return {}
        case "disabled" | "disable":
            return {"ssl_disabled": "true"}
        case "required" | "trust":
            return {"ssl_check_hostname": "false"}
        case "verify-ca":
            return {**_authorities(), "ssl_check_hostname": "false"}
        case "verify-identity" | "verify-full":
            return _authorities()
    raise InvalidValueError("and asks for an sslMode that MySQL's drivers do not have")


def _authorities() -> dict[str, str]:
    paths = ssl.get_default_verify_paths()
    return {
        "ssl_ca": paths.cafile or "",
        "ssl_capath": paths.capath or paths.openssl_capath or "",
    }


def _count(text: str | None, times: int = 1, per: int = 1) -> str:
    """A number in another unit, rounded up, since 0 is no limit; empty: no number, or no limit."""
    number = int(text) if text and re.fullmatch("[0-9]{1,10}", text) else 0
    return str(-(-min(number * times, JAVA_INT_MAX) // per)) if number else ""
