"""Which keys of config.yaml are read, and what each accepts, means and defaults to."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from difflib import get_close_matches
from typing import Final, Generic, TypeVar

from orchestration.config.settings import DatabaseType, RegistryMode
from orchestration.config.urls import parse_url
from orchestration.config.values import (
    DURATION_ACCEPTS,
    JAVA_INT_MAX,
    LONGEST,
    duration_from,
    parse_interval,
    parse_switch,
    parse_text,
    whole_from,
)

_T_co = TypeVar("_T_co", covariant=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting(Generic[_T_co]):
    """One key of config.yaml that is read, as the README's table shows it."""

    key: str  # in full, with its section
    parse: Callable[[object], _T_co]  # from YAML's value or a text; ValueError: not accepted
    default: str  # as one would write it; empty: there is none, and `meaning` says what follows
    accepts: str  # completes "accepted is ..."
    meaning: str
    unit: str = ""  # of a bare number; empty: it has none


def parse_mode(value: object) -> RegistryMode | None:
    """Whose the registry is; None where that follows from the database's type."""
    return None if value == "" else RegistryMode(str(value))


def parse_type(value: object) -> DatabaseType:
    """A type of database."""
    return DatabaseType(str(value))


DATABASE_TYPE: Final = Setting(
    key="ams.database.type",
    parse=parse_type,
    default="derby",
    accepts="postgres, mysql or sqlite; Derby, Amoro's default, cannot be opened from outside "
    "AMS's process, so AMS has to be moved to PostgreSQL or MySQL",
    meaning="Where registry and ledger are kept. Amoro's default is not usable: set it.",
)
DATABASE_URL: Final = Setting(
    key="ams.database.url",
    parse=parse_url,
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
DATABASE_USERNAME: Final = Setting(
    key="ams.database.username",
    parse=parse_text,
    default="",
    accepts="a text",
    meaning="The user, where the URL names none. Empty: the driver's own default.",
)
DATABASE_PASSWORD: Final = Setting(
    key="ams.database.password",
    parse=parse_text,
    default="",
    accepts="a text, in quotes where YAML would read something else",
    meaning="The password, where the URL has none; best set as `AMS_DATABASE_PASSWORD`.",
)
SHADE: Final = Setting(
    key="ams.shade.identifier",
    parse=parse_text,
    default="default",
    accepts="default, which is plain text; an encoded password cannot be read, so give user and "
    "password in ams.database.url",
    meaning="How Amoro has encoded the password; only plain text can be read.",
)
AUTO_RESTART: Final = Setting(
    key="ams.optimizer.auto-restart-enabled",
    parse=parse_switch,
    default="false",
    accepts="true or false",
    meaning="Whether orphans are restarted. If not, they are recorded and left alone.",
)
MAX_RETRIES: Final = Setting(
    key="ams.optimizer.auto-restart-max-retries",
    parse=whole_from(0),
    default="5",
    accepts=f"a whole number from 0 to {JAVA_INT_MAX}",
    meaning="How often a start is attempted before the resource is given up. 0: never.",
    unit="attempts",
)
GRACE_PERIOD: Final = Setting(
    key="ams.optimizer.auto-restart-grace-period",
    parse=duration_from(timedelta(0)),
    default="5min",
    accepts=f"{DURATION_ACCEPTS}, up to {LONGEST.days} d",
    meaning="How long an orphan is left alone after its detection, and after each attempt.",
    unit="ms",
)
CHECK_INTERVAL: Final = Setting(
    key="ams.optimizer-group.min-parallelism-check-interval",
    parse=parse_interval,
    default="5min",
    accepts=f"{DURATION_ACCEPTS}, from 1 s, the shortest that Dagster's sensors know, "
    f"up to {LONGEST.days} d",
    meaning="How often the sensor looks for orphans. A fraction of a second is cut off.",
    unit="ms",
)
HEARTBEAT_TIMEOUT: Final = Setting(
    key="ams.optimizer.heart-beat-timeout",
    parse=duration_from(timedelta(microseconds=1)),
    default="1min",
    accepts=f"{DURATION_ACCEPTS}, more than 0 and up to {LONGEST.days} d",
    meaning="How old a worker's last heartbeat may be before it counts as dead.",
    unit="ms",
)
REGISTRY: Final = Setting(
    key="keeper.registry",
    parse=parse_mode,
    default="",
    accepts="attached, or standalone, the only one for sqlite",
    meaning="Whose the registry is: a running AMS's (`attached`) or ours (`standalone`). "
    "Left out: standalone for sqlite, attached otherwise.",
)
MAX_RESTARTS: Final = Setting(
    key="keeper.max-restarts-per-run",
    parse=whole_from(1),
    default="200",
    accepts=f"a whole number from 1 to {JAVA_INT_MAX}",
    meaning="How many orphans one run of the job restarts; more are further runs.",
    unit="orphans",
)
CLAIM_TIMEOUT: Final = Setting(
    key="keeper.claim-timeout",
    parse=duration_from(timedelta(microseconds=1)),
    default="15min",
    accepts=f"{DURATION_ACCEPTS}, more than 0 and up to {LONGEST.days} d",
    meaning="How long a hand-over to a run, or a run's claim, lasts without a sign of life.",
    unit="ms",
)
SETTINGS: Final[tuple[Setting[object], ...]] = (
    DATABASE_TYPE,
    DATABASE_URL,
    DATABASE_USERNAME,
    DATABASE_PASSWORD,
    SHADE,
    AUTO_RESTART,
    MAX_RETRIES,
    GRACE_PERIOD,
    CHECK_INTERVAL,
    HEARTBEAT_TIMEOUT,
    REGISTRY,
    MAX_RESTARTS,
    CLAIM_TIMEOUT,
)
KEYS: Final = frozenset(setting.key for setting in SETTINGS)
_KEEPER_KEYS: Final = tuple(key for key in KEYS if key.startswith("keeper."))
_RESTART_PREFIX: Final = "ams.optimizer.auto-restart"
RESTART_KEYS: Final = (AUTO_RESTART.key, MAX_RETRIES.key, GRACE_PERIOD.key)
# The nearest of Amoro's own keys is 0.67 alike; a key whose `optimizer` was left out, 0.82.
_ALIKE: Final = 0.8


def keys_meant(key: str) -> tuple[str, ...]:
    """Which keys of ours an unknown one may have been meant for; none: it is not ours."""
    if key.startswith("keeper."):
        return _KEEPER_KEYS
    if key.startswith(_RESTART_PREFIX) or get_close_matches(key, RESTART_KEYS, cutoff=_ALIKE):
        return RESTART_KEYS
    return ()
