"""What the configuration says: `config.yaml` and the environment, as frozen settings.

The file is Amoro's own, so that one file can serve AMS and this project: `ams:` and `containers:`
are read as AMS reads them, and `keeper:` holds what Amoro has no key for. Environment variables
that begin with `AMS` overrule `ams:`, and only that.

Whatever is wrong is reported at once, a line per problem, and never with a secret in it.
"""

import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Final, Generic, TypeVar
from urllib.parse import parse_qsl, unquote

import sqlalchemy as sa
import yaml

from orchestration.errors import ConfigError
from orchestration.keeping.policy import RestartPolicy

_T = TypeVar("_T")
_T_co = TypeVar("_T_co", covariant=True)

CONF_DIR_VARIABLE: Final = "AMORO_CONF_DIR"
_FILE_NAME: Final = "config.yaml"
_BUNDLED: Final = Path(__file__).parent / "conf"


class RegistryMode(StrEnum):
    """Whose the registry is."""

    ATTACHED = "attached"  # a running AMS's: we read it and heal what it names
    STANDALONE = "standalone"  # ours: we create its tables and expire heartbeats


class DatabaseType(StrEnum):
    """Where registry and ledger are kept."""

    POSTGRES = "postgres"
    MYSQL = "mysql"
    SQLITE = "sqlite"  # not one of Amoro's
    DERBY = "derby"  # Amoro's default; known here only to say why it cannot be used

    @property
    def backend(self) -> str:
        """What SQLAlchemy calls it."""
        return "postgresql" if self is DatabaseType.POSTGRES else self.value


@dataclass(frozen=True, kw_only=True, slots=True)
class ContainerSettings:
    """One entry of `containers:`: what a container is built from."""

    name: str  # what `resource.container_name` refers to
    implementation: str  # Amoro's Java class name, or `package.module.Class`; not imported here
    # As texts, in the form that Java gives them; a list is a JSON array of texts. Not in the
    # repr, since properties such as `export.AWS_SECRET_ACCESS_KEY` are secrets.
    properties: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Everything that was configured; nothing reads the file or the environment again."""

    # The config.yaml that was read, absolute. Errors and logs name it.
    source: Path
    # Registry and ledger, credentials included, SQLite paths absolute. Its text form masks the
    # password, and its query part was checked to hold none.
    database_url: sa.URL
    # Whose the registry is: decides whether AMS is asked before acting, and who makes tables.
    registry: RegistryMode
    # Whether, how often and how patiently orphans are restarted. Off by default: restarting other
    # people's workers is asked for, never assumed. Zero retries: an orphan is given up after its
    # grace period. A grace period of zero: no waiting.
    restart: RestartPolicy
    # Between two ticks of the sensor. Whole seconds, at least one, because Dagster counts in them;
    # a fraction that was configured for AMS is cut off.
    check_interval: timedelta
    # How old a heartbeat may be before its optimizer counts as dead. More than zero. In attached
    # mode AMS expires heartbeats itself, by the same key.
    heartbeat_timeout: timedelta
    # How many orphans one run of the job restarts; more are further runs. At least one. It keeps
    # the event log of a run readable and lets Dagster spread a large outage over a cluster.
    max_restarts_per_run: int
    # How long a hand-over to a run, or a run's claim, lasts without a sign of life. More than
    # zero. A run that died unnoticed holds its orphans up for this long and no longer.
    claim_timeout: timedelta
    # By name. A later entry of the same name replaced the earlier one, which is Amoro's rule.
    containers: Mapping[str, ContainerSettings]


# --- Values: each parser takes what YAML or the environment gave and raises ValueError ---------

_JAVA_INT_MAX: Final = 2**31 - 1
_JAVA_LONG_MAX: Final = 2**63 - 1
_DIGITS: Final = re.compile("0*[0-9]{1,10}")
_DURATION: Final = re.compile(r"\s*0*([0-9]{1,19})\s*(\S*)\s*", re.ASCII)
_UNITS: Final = {  # nanoseconds, by label; no label means milliseconds
    "": 10**6,
    **dict.fromkeys(("d", "day", "days"), 86_400 * 10**9),
    **dict.fromkeys(("h", "hour", "hours"), 3_600 * 10**9),
    **dict.fromkeys(("min", "minute", "minutes"), 60 * 10**9),
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 10**9),
    **dict.fromkeys(("ms", "milli", "millis", "millisecond", "milliseconds"), 10**6),
    **dict.fromkeys(("\u00b5s", "micro", "micros", "microsecond", "microseconds"), 10**3),
    **dict.fromkeys(("ns", "nano", "nanos", "nanosecond", "nanoseconds"), 1),
}
_DURATION_ACCEPTS: Final = (
    "a whole number with one of the units d, h, min, s, ms, \u00b5s or ns, "
    "or without a unit for milliseconds"
)
# A moment this much later must still be a date, and waiting a century is a mistake in any case.
_LONGEST: Final = timedelta(days=36_500)


def parse_duration(value: object) -> timedelta:
    """A duration as Amoro writes it: `5min`, `30 s`, or a bare number of milliseconds.

    What is finer than a microsecond is cut off.

    Raises:
        ValueError: It is something else, or too long; the message says what is accepted.
    """
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    match = _DURATION.fullmatch(text) if isinstance(text, str) else None
    nanoseconds = _UNITS.get(match[2].lower()) if match else None
    if match is None or nanoseconds is None or int(match[1]) > _JAVA_LONG_MAX:
        raise ValueError(f"accepted is {_DURATION_ACCEPTS}")
    try:
        return timedelta(microseconds=int(match[1]) * nanoseconds // 1000)
    except OverflowError:
        raise ValueError(f"that is too long; accepted is {_DURATION_ACCEPTS}") from None


def _duration_from(shortest: timedelta) -> Callable[[object], timedelta]:
    def parse(value: object) -> timedelta:
        duration = parse_duration(value)
        if not shortest <= duration <= _LONGEST:
            raise ValueError("out of range")
        return duration

    return parse


def _parse_interval(value: object) -> timedelta:
    duration = _duration_from(timedelta(seconds=1))(value)
    return timedelta(seconds=duration // timedelta(seconds=1))


def _parse_switch(value: object) -> bool:
    texts = {"true": True, "false": False}
    if isinstance(value, str) and value.lower() in texts:
        return texts[value.lower()]
    if isinstance(value, bool):
        return value
    raise ValueError("neither true nor false")


def _whole_from(lowest: int) -> Callable[[object], int]:
    def parse(value: object) -> int:
        number = int(value) if isinstance(value, str) and _DIGITS.fullmatch(value) else value
        number = None if isinstance(number, bool) else number
        if isinstance(number, int) and lowest <= number <= _JAVA_INT_MAX:
            return number
        raise ValueError("not a whole number, or out of range")

    return parse


def _parse_mode(value: object) -> RegistryMode | None:
    return None if value == "" else RegistryMode(str(value))


def _parse_type(value: object) -> DatabaseType:
    return DatabaseType(str(value))


def _parse_text(value: object) -> str:
    """A scalar as Java would print it, which is what the properties of a container hold."""
    match value:
        case str():
            return value
        case bool():
            return str(value).lower()
        case int():
            return str(value)
        case float():
            return _java_double(value)
        case _:
            raise ValueError("not a scalar")


def _java_double(value: float) -> str:
    if not math.isfinite(value):
        return {"inf": "Infinity", "-inf": "-Infinity"}.get(str(value), "NaN")
    if value == 0 or 1e-3 <= abs(value) < 1e7:  # noqa: PLR2004 - where Java's plain form ends
        return str(value)
    sign, digits, _ = (number := Decimal(str(value)).normalize()).as_tuple()
    head, *rest = map(str, digits)
    return f"{'-' * sign}{head}.{''.join(rest) or '0'}E{number.adjusted()}"


# --- The database's URL: Amoro's JDBC form or SQLAlchemy's ------------------------------------

_DRIVERS: Final = {"postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql"}
_JDBC_SERVER: Final = re.compile(
    r"jdbc:(?P<backend>postgresql|mysql)://"
    r"(?P<host>\[[^\]]+\]|[^\[\]:/,?@]*)(?::(?P<port>[0-9]{1,5}))?"
    r"(?:,[^/?@]*)?"  # further hosts, for fail-over: the first one serves
    r"/(?P<database>[^?/:@#]*)(?:\?(?P<query>.*))?"
)
_JDBC_SQLITE: Final = re.compile(r"jdbc:sqlite:(?P<path>[^?]*)(?:\?.*)?")


def _parse_url(value: object) -> sa.URL | None:
    text = _parse_text(value)
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


def _url_flaws(url: sa.URL) -> Iterator[str]:
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


# --- The keys ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting(Generic[_T_co]):
    """One key of config.yaml that is read, as the README's table shows it."""

    key: str  # in full, with its section
    parse: Callable[[object], _T_co]  # from YAML's value or a text; ValueError: not accepted
    default: str  # as one would write it; empty: there is none, and `meaning` says what follows
    accepts: str  # completes "accepted is ..."
    meaning: str
    unit: str = ""  # of a bare number; empty: it has none


_DATABASE_TYPE: Final = Setting(
    key="ams.database.type",
    parse=_parse_type,
    default="derby",
    accepts="postgres, mysql or sqlite; Derby, Amoro's default, cannot be opened from outside "
    "AMS's process, so AMS has to be moved to PostgreSQL or MySQL",
    meaning="Where registry and ledger are kept. Amoro's default is not usable: set it.",
)
_DATABASE_URL: Final = Setting(
    key="ams.database.url",
    parse=_parse_url,
    default="",
    accepts="jdbc:postgresql://host[:port]/database, jdbc:mysql://host[:port]/database, "
    "jdbc:sqlite:path or a SQLAlchemy URL with special characters percent-encoded, "
    "of the kind that ams.database.type says and with its password before the host or in "
    "ams.database.password",
    meaning="The database, in Amoro's JDBC form or as a SQLAlchemy URL. JDBC parameters and all "
    "hosts but the first are not used. A relative SQLite path starts at the folder of "
    "config.yaml. Left out with sqlite: `registry.db` in `$DAGSTER_HOME`, or in "
    "`./.dagster-amoro` if that is not set.",
)
_DATABASE_USERNAME: Final = Setting(
    key="ams.database.username",
    parse=_parse_text,
    default="",
    accepts="a text",
    meaning="The user, where the URL names none. Empty: the driver's own default.",
)
_DATABASE_PASSWORD: Final = Setting(
    key="ams.database.password",
    parse=_parse_text,
    default="",
    accepts="a text, in quotes where YAML would read something else",
    meaning="The password, where the URL has none; best set as `AMS_DATABASE_PASSWORD`.",
)
_SHADE: Final = Setting(
    key="ams.shade.identifier",
    parse=_parse_text,
    default="default",
    accepts="default, which is plain text; an encoded password cannot be read, so give user and "
    "password in ams.database.url",
    meaning="How Amoro has encoded the password; only plain text can be read.",
)
_AUTO_RESTART: Final = Setting(
    key="ams.optimizer.auto-restart-enabled",
    parse=_parse_switch,
    default="false",
    accepts="true or false",
    meaning="Whether orphans are restarted. If not, they are recorded and left alone.",
)
_MAX_RETRIES: Final = Setting(
    key="ams.optimizer.auto-restart-max-retries",
    parse=_whole_from(0),
    default="5",
    accepts=f"a whole number from 0 to {_JAVA_INT_MAX}",
    meaning="How often a start is attempted before the resource is given up. 0: never.",
    unit="attempts",
)
_GRACE_PERIOD: Final = Setting(
    key="ams.optimizer.auto-restart-grace-period",
    parse=_duration_from(timedelta(0)),
    default="5min",
    accepts=f"{_DURATION_ACCEPTS}, up to {_LONGEST.days} d",
    meaning="How long an orphan is left alone after its detection, and after each attempt.",
    unit="ms",
)
_CHECK_INTERVAL: Final = Setting(
    key="ams.optimizer-group.min-parallelism-check-interval",
    parse=_parse_interval,
    default="5min",
    accepts=f"{_DURATION_ACCEPTS}, from 1 s, the shortest that Dagster's sensors know, "
    f"up to {_LONGEST.days} d",
    meaning="How often the sensor looks for orphans. A fraction of a second is cut off.",
    unit="ms",
)
_HEARTBEAT_TIMEOUT: Final = Setting(
    key="ams.optimizer.heart-beat-timeout",
    parse=_duration_from(timedelta(microseconds=1)),
    default="1min",
    accepts=f"{_DURATION_ACCEPTS}, more than 0 and up to {_LONGEST.days} d",
    meaning="How old a worker's last heartbeat may be before it counts as dead.",
    unit="ms",
)
_REGISTRY: Final = Setting(
    key="keeper.registry",
    parse=_parse_mode,
    default="",
    accepts="attached, or standalone, the only one for sqlite",
    meaning="Whose the registry is: a running AMS's (`attached`) or ours (`standalone`). "
    "Left out: standalone for sqlite, attached otherwise.",
)
_MAX_RESTARTS: Final = Setting(
    key="keeper.max-restarts-per-run",
    parse=_whole_from(1),
    default="200",
    accepts=f"a whole number from 1 to {_JAVA_INT_MAX}",
    meaning="How many orphans one run of the job restarts; more are further runs.",
    unit="orphans",
)
_CLAIM_TIMEOUT: Final = Setting(
    key="keeper.claim-timeout",
    parse=_duration_from(timedelta(microseconds=1)),
    default="15min",
    accepts=f"{_DURATION_ACCEPTS}, more than 0 and up to {_LONGEST.days} d",
    meaning="How long a hand-over to a run, or a run's claim, lasts without a sign of life.",
    unit="ms",
)
SETTINGS: Final[tuple[Setting[object], ...]] = (
    _DATABASE_TYPE,
    _DATABASE_URL,
    _DATABASE_USERNAME,
    _DATABASE_PASSWORD,
    _SHADE,
    _AUTO_RESTART,
    _MAX_RETRIES,
    _GRACE_PERIOD,
    _CHECK_INTERVAL,
    _HEARTBEAT_TIMEOUT,
    _REGISTRY,
    _MAX_RESTARTS,
    _CLAIM_TIMEOUT,
)
_KEYS: Final = frozenset(setting.key for setting in SETTINGS)
_KEEPER_KEYS: Final = tuple(key for key in _KEYS if key.startswith("keeper."))
_RESTART_PREFIX: Final = "ams.optimizer.auto-restart"
_RESTART_KEYS: Final = (_AUTO_RESTART.key, _MAX_RETRIES.key, _GRACE_PERIOD.key)
# The nearest of Amoro's own keys is 0.67 alike; a key whose `optimizer` was left out, 0.82.
_ALIKE: Final = 0.8


def _meant(key: str) -> tuple[str, ...]:
    """Which keys of ours an unknown one may have been meant for; none: it is not ours."""
    if key.startswith("keeper."):
        return _KEEPER_KEYS
    if key.startswith(_RESTART_PREFIX) or get_close_matches(key, _RESTART_KEYS, cutoff=_ALIKE):
        return _RESTART_KEYS
    return ()


# --- What was given, and what is wrong with it ------------------------------------------------

_LONGEST_VALUE: Final = 80  # characters of a value that an error shows
_SECRET_WORDS: Final = ("password", "passwd", "secret", "token", "credential")


@dataclass(frozen=True, slots=True)
class _Given:
    value: object
    origin: str  # the file or the environment variable, as errors name it


@dataclass(slots=True)
class _Draft:
    """The keys as they were given, in full and flattened, and the problems found so far."""

    source: Path
    given: dict[str, _Given] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def get(self, setting: Setting[_T]) -> _T:
        """The value of a key, its default where it is left out or not accepted."""
        given = self.given.get(setting.key)
        if given is not None and given.value is not None:  # null is Amoro's way of leaving out
            try:
                return setting.parse(given.value)
            except ValueError:
                self.reject(setting)
        return setting.parse(setting.default)

    def reject(self, setting: Setting[object], why: str = "") -> None:
        """Notes that a key cannot have the value that it was given."""
        given = self.given.get(setting.key) or _Given(None, str(self.source))
        default = f", which means {setting.default}" if setting.default else ""
        shown = f"left out{default}" if given.value is None else _shown(setting.key, given.value)
        reason = f" {why}" if why else ""
        self.note(
            f"{given.origin}: {setting.key} is {shown}{reason}; accepted is {setting.accepts}"
        )

    def reject_in_file(self, place: str, found: str, accepts: str) -> None:
        """Notes that something in the file, which is not one of the keys, is not accepted."""
        self.note(f"{self.source}: {place} is {found}; accepted is {accepts}")

    def note(self, problem: str) -> None:
        """Adds a problem, once: a bad value may be met again where its default fails as well."""
        if problem not in self.problems:
            self.problems.append(problem)

    def add_section(self, name: str, section: object) -> None:
        """Takes up a section of the file; an empty one is none."""
        if not isinstance(section, dict):
            if section is not None:
                self.reject_in_file(name, _kind(section), "a map")
            return
        try:
            for key, value in _flatten(section, name):
                self._add(key, value)
        except RecursionError:
            self.reject_in_file(name, "nested without end", "a map that does not hold itself")

    def _add(self, key: str, value: object) -> None:
        if key in self.given:
            first, second = _shown(key, self.given[key].value), _shown(key, value)
            found = f"{first} in one place and {second} in another"
            self.reject_in_file(key, found, "the nested or the dotted form, not both")
        self.given[key] = _Given(value, str(self.source))

    def add_environment(self, environ: Mapping[str, str]) -> None:
        """Lets the environment overrule the section `ams`."""
        names: defaultdict[str, list[str]] = defaultdict(list)
        for name in sorted(environ):
            if name.startswith("AMS"):
                names[_environment_key(name)].append(name)
        for key, same in names.items():
            if len(same) > 1:
                self.note(
                    f"environment variables {' and '.join(same)}: each sets {key}; "
                    "accepted is one of them"
                )
            self.given[key] = _Given(environ[same[0]], f"environment variable {same[0]}")

    def reject_unknown(self) -> None:
        """Notes the keys that do not exist and that Amoro cannot have either."""
        for key, given in self.given.items():
            if key in _KEYS or not (meant := _meant(key)):
                continue
            nearest = get_close_matches(key, meant, n=1)
            hint = f" did you mean {nearest[0]}?" if nearest else ""
            self.note(
                f"{given.origin}: {key} is {_shown(key, given.value)}, but there is no such key;"
                f"{hint} accepted are {', '.join(sorted(meant))}"
            )


def _flatten(section: Mapping[object, object], prefix: str) -> Iterator[tuple[str, object]]:
    for key, value in section.items():
        path = f"{prefix}.{key}"
        if isinstance(value, dict):
            yield from _flatten(value, path)
        else:
            yield path, value


def _environment_key(name: str) -> str:
    """The key that an environment variable sets, by Amoro's rule."""
    text = name.removeprefix("AMS_").lower()
    return "ams." + re.sub("__+", "-", text).replace("_", ".")


def _shown(key: str, value: object) -> str:
    """A value as an error may show it: no secrets, on one line, not too long."""
    if key == _DATABASE_URL.key:
        return _shown_url(value)
    text = repr(value)
    if any(word in key.lower() for word in _SECRET_WORDS) or "://" in text or "jdbc:" in text:
        return "***"
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."


def _shown_url(value: object) -> str:
    try:
        url = _parse_url(value)
    except ValueError:
        return "***"  # where the password is in it, nobody knows
    return repr("" if url is None else str(url.set(query={})))


def _kind(value: object) -> str:
    kinds = {dict: "a map", list: "a list", str: "a text", int: "a number", type(None): "null"}
    return kinds.get(type(value), f"a {type(value).__name__}")


# --- Loading ----------------------------------------------------------------------------------


def load_settings(
    conf_dir: Path | None = None, environ: Mapping[str, str] | None = None
) -> Settings:
    """The settings from `<conf_dir>/config.yaml` and the environment.

    Args:
        conf_dir: The folder of config.yaml. None: `$AMORO_CONF_DIR`, and if that is not set, the
            configuration that comes with the package.
        environ: The environment. None: the one of this process.

    Raises:
        ConfigError: Something cannot be used; it says everything that is wrong, a line each.
    """
    environ = os.environ if environ is None else environ
    draft = _Draft(_source(conf_dir, environ))
    document = _read(draft.source)
    draft.add_section("ams", document.get("ams"))
    draft.add_section("keeper", document.get("keeper"))
    draft.add_environment(environ)
    draft.reject_unknown()
    for setting in SETTINGS:  # whether it is going to be used or not
        draft.get(setting)
    settings = _settings(draft, document.get("containers"), environ)
    if draft.problems:
        raise ConfigError("\n".join(draft.problems))
    return settings


def _source(conf_dir: Path | None, environ: Mapping[str, str]) -> Path:
    folder = conf_dir or environ.get(CONF_DIR_VARIABLE) or _BUNDLED
    return Path(folder).absolute() / _FILE_NAME


def _settings(draft: _Draft, containers: object, environ: Mapping[str, str]) -> Settings:
    return Settings(
        source=draft.source,
        database_url=_database(draft, environ),
        registry=_registry(draft),
        restart=RestartPolicy(
            enabled=draft.get(_AUTO_RESTART),
            max_retries=draft.get(_MAX_RETRIES),
            grace_period=draft.get(_GRACE_PERIOD),
        ),
        check_interval=draft.get(_CHECK_INTERVAL),
        heartbeat_timeout=draft.get(_HEARTBEAT_TIMEOUT),
        max_restarts_per_run=draft.get(_MAX_RESTARTS),
        claim_timeout=draft.get(_CLAIM_TIMEOUT),
        containers=_containers(draft, containers),
    )


# What PyYAML raises: its own errors, and Python's for scalars such as `2024-13-45`.
_NOT_YAML: Final = (
    yaml.YAMLError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)


def _read(source: Path) -> Mapping[object, object]:
    try:
        data = source.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{source}: cannot be read ({error.strerror}); accepted is a readable file "
            f"{_FILE_NAME} in the folder that ${CONF_DIR_VARIABLE} names"
        ) from error
    try:
        document: object = yaml.safe_load(data)
    except _NOT_YAML as error:
        document, flaw = None, f"is not YAML{_place(error)}"
    else:
        flaw = f"holds {_kind(document)}"
    if not isinstance(document, dict):  # raised here, so that no text of the file is chained to it
        raise ConfigError(f"{source}: {flaw}; accepted is a map with ams, containers and keeper")
    return document


def _place(error: Exception) -> str:
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return ""
    mark = error.problem_mark
    # What stands in quotes there comes from the file, and may be part of a password.
    problem = re.sub(r"(['\"]).*\1", "***", error.problem or "")
    return f" (line {mark.line + 1}, column {mark.column + 1}: {problem})"


def _database(draft: _Draft, environ: Mapping[str, str]) -> sa.URL:
    """The database's URL; where there are problems, any URL, because it will not be used."""
    kind, url = draft.get(_DATABASE_TYPE), draft.get(_DATABASE_URL)
    if kind is DatabaseType.DERBY:
        draft.reject(_DATABASE_TYPE)
    elif url is None and kind is not DatabaseType.SQLITE:
        draft.reject(_DATABASE_URL)
    elif url is not None and url.get_backend_name() != kind.backend:
        why = f"with {_DATABASE_TYPE.key} {kind}, an unreachable combination"
        draft.reject(_DATABASE_URL, why)
    elif url is not None:
        return _checked(draft, url)
    return _default_file(environ)


def _default_file(environ: Mapping[str, str]) -> sa.URL:
    home = environ.get("DAGSTER_HOME") or ".dagster-amoro"
    folder = Path(os.path.expanduser(home))  # noqa: PTH111 - Path's own fails for unknown users
    return sa.URL.create("sqlite", database=str(folder.absolute() / "registry.db"))


def _checked(draft: _Draft, url: sa.URL) -> sa.URL:
    for flaw in _url_flaws(url):
        draft.reject(_DATABASE_URL, f"and {flaw}")
    if url.get_backend_name() == "sqlite":
        return url.set(database=str(draft.source.parent / (url.database or "")))
    return _with_credentials(draft, url)


def _with_credentials(draft: _Draft, url: sa.URL) -> sa.URL:
    username, password = draft.get(_DATABASE_USERNAME), draft.get(_DATABASE_PASSWORD)
    if password and url.password is None and draft.get(_SHADE) != _SHADE.default:
        draft.reject(_SHADE)
    return url.set(
        username=url.username or username or None, password=url.password or password or None
    )


def _registry(draft: _Draft) -> RegistryMode:
    kind, mode = draft.get(_DATABASE_TYPE), draft.get(_REGISTRY)
    embedded = kind is DatabaseType.SQLITE
    if embedded and mode is RegistryMode.ATTACHED:
        why = f"with {_DATABASE_TYPE.key} sqlite, an unreachable combination: AMS has no SQLite"
        draft.reject(_REGISTRY, why)
    return mode or (RegistryMode.STANDALONE if embedded else RegistryMode.ATTACHED)


def _containers(draft: _Draft, entries: object) -> Mapping[str, ContainerSettings]:
    if entries is not None and not isinstance(entries, list):
        draft.reject_in_file("containers", _kind(entries), "a list of maps")
        entries = None
    found = (_container(draft, f"containers[{n}]", each) for n, each in enumerate(entries or ()))
    return MappingProxyType({container.name: container for container in found})


def _container(draft: _Draft, place: str, entry: object) -> ContainerSettings:
    if not isinstance(entry, dict):
        accepts = "a map with name, container-impl and properties"
        draft.reject_in_file(place, _kind(entry), accepts)
        return ContainerSettings(name="", implementation="", properties={})
    implementation = _required(draft, place, entry, "container-impl")
    lists = not implementation.startswith("org.apache.amoro.")
    return ContainerSettings(
        name=_required(draft, place, entry, "name"),
        implementation=implementation,
        properties=_properties(draft, f"{place}.properties", entry, lists=lists),
    )


def _required(draft: _Draft, place: str, entry: Mapping[object, object], key: str) -> str:
    value = entry.get(key)
    if isinstance(value, str) and value.strip():
        return value
    found = _shown(key, value) if key in entry else "left out"
    draft.reject_in_file(f"{place}.{key}", found, "a text that is not empty")
    return ""


def _properties(
    draft: _Draft, place: str, entry: Mapping[object, object], *, lists: bool
) -> Mapping[str, str]:
    """An entry's properties; a null among them counts as left out, as it does for AMS."""
    given = entry.get("properties", {})
    if not isinstance(given, dict):
        draft.reject_in_file(place, _kind(given), "a map, or to leave it out")
        return {}
    texts: dict[str, str] = {}
    for key, value in given.items():
        try:
            if value is not None:
                texts[_parse_text(key)] = _property_text(value, lists=lists)
        except ValueError:
            accepts = "a text, a number, true or false" + (", or a list of those" if lists else "")
            draft.reject_in_file(f"{place}.{key}", _kind(value), accepts)
    return MappingProxyType(texts)


def _property_text(value: object, *, lists: bool) -> str:
    if lists and isinstance(value, list):
        texts = [_parse_text(each) for each in value]
        return json.dumps(texts, ensure_ascii=False, separators=(",", ":"))
    return _parse_text(value)
