"""Which keys of config.yaml are read, and what each accepts, means and defaults to."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from difflib import get_close_matches
from typing import Final, Generic, TypeVar

from dagster_amoro.config.settings import (
    DatabaseType,
    DynamicAllocation,
    HighAvailability,
    Mode,
    RegistryMode,
)
from dagster_amoro.config.urls import parse_url
from dagster_amoro.config.values import (
    DURATION_ACCEPTS,
    JAVA_INT_MAX,
    LONGEST,
    duration_from,
    one_of,
    or_none,
    parse_host,
    parse_interval,
    parse_keywords,
    parse_part,
    parse_share,
    parse_switch,
    parse_text,
    whole_from,
)
from dagster_amoro.core.ams_version import parse_version
from dagster_amoro.core.policy import Backoff, OnExhausted

_T = TypeVar("_T")
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
    when_needed: bool = False  # whether it is only checked where something depends on it


def parse_ha(value: object) -> HighAvailability:
    """A kind of high availability, in any case."""
    kind = HighAvailability(str(value).lower())
    if kind is HighAvailability.NONE:
        raise ValueError("not one of Amoro's")
    return kind


def parse_ams_version(value: object) -> str:
    """A version of AMS; empty: it is not given."""
    text = parse_text(value)
    if text:
        parse_version(text)
    return text


def parse_name(value: object) -> str:
    """What a deployment is called; empty: it is not given."""
    text = parse_text(value).strip()
    if len(text) > LONGEST_NAME:
        raise ValueError("too long")
    return text


_URL_ACCEPTS: Final = (
    "jdbc:postgresql://host[:port]/database, jdbc:mysql://host[:port]/database, "
    "jdbc:sqlite:path or a SQLAlchemy URL with special characters percent-encoded"
)
_ADDRESS_ACCEPTS: Final = (
    "a host name or a full IPv4 or IPv6 address; set keeper.server-expose-host to the one under "
    "which AMS is reached"
)
_PORT: Final = whole_from(1, 65535)
_PORT_ACCEPTS: Final = "a whole number from 1 to 65535"
_PART_ACCEPTS: Final = "a number more than 0, with which nothing would ever be healed, and up to 1"
LONGEST_NAME: Final = 80  # characters of a deployment's name
_NAME: Final = "<name>"  # stands for that of a group in the keys of groups
DATABASE_TYPE: Final = Setting(
    key="ams.database.type",
    parse=one_of(DatabaseType),
    default="derby",
    accepts="postgres, mysql or sqlite; Derby, Amoro's default, cannot be opened from outside "
    "AMS's process: move AMS to PostgreSQL or MySQL, or run dagster-amoro without AMS, with "
    "sqlite and workers of its own",
    meaning="Where the registry is kept. Amoro's default is not usable: set it.",
)
DATABASE_URL: Final = Setting(
    key="ams.database.url",
    parse=parse_url,
    default="",
    accepts=f"{_URL_ACCEPTS}, of the kind that ams.database.type says and with its password before "
    "the host or in ams.database.password",
    meaning="The database, in Amoro's JDBC form or as a SQLAlchemy URL. Of several hosts the first "
    "is used. Of the JDBC parameters, those for TLS (but no Java key stores and client keys), "
    "timeouts, `currentSchema` and `ApplicationName` are kept; MySQL's certificates are checked "
    "against the authorities of the system or of `$SSL_CERT_FILE`. A relative SQLite path starts "
    "at the folder of config.yaml. Left out with sqlite: `registry.db` in `$DAGSTER_HOME`, or in "
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
    accepts="a text",
    meaning="How Amoro has encoded the values of `ams.shade.sensitive-keywords`: `default` is "
    "plain text, `base64` is decoded. What a shade of your own has encoded cannot be decoded: set "
    "`keeper.database-password`.",
    when_needed=True,
)
SENSITIVE: Final = Setting(
    key="ams.shade.sensitive-keywords",
    parse=parse_keywords,
    default="admin-password;database.password",
    accepts="a list of keys, or one text with a semicolon between them",
    meaning="Which keys of `ams` are encoded, in the environment too.",
    when_needed=True,
)
EXPOSE_HOST: Final = Setting(
    key="ams.server-expose-host",
    parse=parse_host,
    default="",
    accepts=_ADDRESS_ACCEPTS,
    meaning="Where AMS is reached, where neither `keeper.server-expose-host` nor high availability "
    "says it. The beginning of an address, which AMS would complete, is not enough.",
    when_needed=True,
)
THRIFT_PORT: Final = Setting(
    key="ams.thrift-server.optimizing-service.bind-port",
    parse=_PORT,
    default="1261",
    accepts=_PORT_ACCEPTS,
    meaning="The port that optimizers register at.",
    when_needed=True,
)
HTTP_PORT: Final = Setting(
    key="ams.http-server.bind-port",
    parse=_PORT,
    default="19090",
    accepts=_PORT_ACCEPTS,
    meaning="The port of AMS's REST interface.",
    when_needed=True,
)
HA_ENABLED: Final = Setting(
    key="ams.ha.enabled",
    parse=parse_switch,
    default="false",
    accepts="true or false",
    meaning="Whether AMS has several nodes, one of them the leader.",
    when_needed=True,
)
HA_TYPE: Final = Setting(
    key="ams.ha.type",
    parse=parse_ha,
    default="zk",
    accepts="zk or database",
    meaning="Where the nodes agree on their leader. With `database` each of Amoro's containers "
    "needs a property `ams-optimizing-uri`, since what AMS would give it is of no use.",
    when_needed=True,
)
CLUSTER_NAME: Final = Setting(
    key="ams.ha.cluster-name",
    parse=parse_text,
    default="default",
    accepts="a text",
    meaning="Which AMS cluster it is, of those that share a ZooKeeper or a database.",
    when_needed=True,
)
ZOOKEEPER_ADDRESS: Final = Setting(
    key="ams.ha.zookeeper-address",
    parse=parse_text,
    default="",
    accepts="host:port, or several of them with a comma between",
    meaning="The ZooKeeper, required where `ams.ha.type` is `zk`.",
    when_needed=True,
)
MASTER_SLAVE: Final = Setting(
    key="ams.ha.use-master-slave-mode",
    parse=parse_switch,
    default="false",
    accepts="true or false",
    meaning="Whether optimizers work for all nodes of AMS, not only for the leader.",
    when_needed=True,
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
MAX_KEEPING_ATTEMPTS: Final = Setting(
    key="ams.optimizer-group.max-keeping-attempts",
    parse=whole_from(1),
    default="3",
    accepts=f"a whole number from 1 to {JAVA_INT_MAX}",
    meaning="How many rounds in a row a group that stays below its `min-parallelism` is filled up, "
    "before it is left as it is. Only standalone: an AMS does this itself.",
    unit="rounds",
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
    parse=or_none(one_of(RegistryMode)),
    default="",
    accepts="attached, or standalone, the only one for sqlite",
    meaning="Whose the registry is: a running AMS's (`attached`) or ours (`standalone`). "
    "Left out: standalone for sqlite, attached otherwise.",
)
LEDGER_URL: Final = Setting(
    key="keeper.ledger-url",
    parse=parse_url,
    default="",
    accepts=_URL_ACCEPTS,
    meaning="The ledger's database, written as `ams.database.url` is. Without a user it is that of "
    "the registry, if both are of one type. Left out: the registry's database.",
)
KEEPER_USERNAME: Final = Setting(
    key="keeper.database-username",
    parse=parse_text,
    default="",
    accepts="a text",
    meaning="The user of the registry's database, in plain text, whatever `ams.database` says.",
)
KEEPER_PASSWORD: Final = Setting(
    key="keeper.database-password",
    parse=parse_text,
    default="",
    accepts="a text, in quotes where YAML would read something else",
    meaning="The password likewise; best set as `KEEPER_DATABASE_PASSWORD`.",
)
KEEPER_HOST: Final = Setting(
    key="keeper.server-expose-host",
    parse=parse_host,
    default="",
    accepts=_ADDRESS_ACCEPTS,
    meaning="Where AMS is reached, if not at `ams.server-expose-host`.",
    when_needed=True,
)
AMS_HOME: Final = Setting(
    key="keeper.ams-home",
    parse=parse_text,
    default="",
    accepts="a text",
    meaning="The folder of Amoro, on the host where its programs are started. Left out: "
    "`$ARCTIC_HOME`, else `$AMORO_HOME`, else the folder above that of config.yaml if that is "
    "called `conf`.",
    when_needed=True,
)
AMS_VERSION: Final = Setting(
    key="keeper.ams-version",
    parse=parse_ams_version,
    default="",
    accepts="a version from 0.7 on, such as 0.8 or '0.9.0', in quotes where it ends in a zero",
    meaning="The version of AMS, which decides how optimizers are started. Left out: AMS is asked.",
    when_needed=True,
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
    meaning="How long a dispatch to a run, or a run's claim, lasts without a sign of life.",
    unit="ms",
)
MODE: Final = Setting(
    key="keeper.mode",
    parse=one_of(Mode),
    default="enforce",
    accepts="enforce or dry-run",
    meaning="`dry-run`: everything is recorded as if it were done, nothing is started, saved or "
    "removed.",
)
MAX_RESTARTS_PER_TICK: Final = Setting(
    key="keeper.max-restarts-per-tick",
    parse=whole_from(1),
    default="1000",
    accepts=f"a whole number from 1 to {JAVA_INT_MAX}",
    meaning="How many orphans one tick hands to runs; the rest follows at the next, oldest first "
    "and groups in turn.",
    unit="orphans",
)
MAX_ORPHANED: Final = Setting(
    key="keeper.max-orphaned-fraction",
    parse=parse_part,
    default="1",
    accepts=_PART_ACCEPTS,
    meaning="While a larger share of a group's resources is orphaned, nothing is restarted in it. "
    "1: no limit.",
)
MAX_ORPHANED_OVERALL: Final = Setting(
    key="keeper.max-orphaned-fraction-overall",
    parse=parse_part,
    default="1",
    accepts=_PART_ACCEPTS,
    meaning="While a larger share of all resources is orphaned, nothing is restarted at all. "
    "1: no limit.",
)
STABLE_AFTER: Final = Setting(
    key="keeper.stable-after",
    parse=duration_from(timedelta(0)),
    default="1h",
    accepts=f"{DURATION_ACCEPTS}, not shorter than {GRACE_PERIOD.key} and up to {LONGEST.days} d, "
    "or 0 to switch it off",
    meaning="What is orphaned again sooner after its recovery continues its old count of attempts, "
    "so that a crash loop ends. 0: every recovery gives a fresh count. Left out: 1h, or the grace "
    "period if that is longer.",
    unit="ms",
)
BACKOFF: Final = Setting(
    key="keeper.backoff",
    parse=one_of(Backoff),
    default="constant",
    accepts="constant or exponential",
    meaning="The pauses between attempts: each as long as the grace period, or each twice as long "
    "as the one before.",
)
BACKOFF_CAP: Final = Setting(
    key="keeper.backoff-cap",
    parse=duration_from(timedelta(microseconds=1)),
    default="1h",
    accepts=f"{DURATION_ACCEPTS}, more than 0, not shorter than {GRACE_PERIOD.key} and up to "
    f"{LONGEST.days} d",
    meaning="The longest pause where they are exponential. Left out: 1h, or the grace period if "
    "that is longer.",
    unit="ms",
)
BACKOFF_JITTER: Final = Setting(
    key="keeper.backoff-jitter",
    parse=parse_share,
    default="0.1",
    accepts="a number from 0 to 1",
    meaning="By up to which share an exponential pause may be longer, so that what died together "
    "is not started together.",
)
ON_EXHAUSTED: Final = Setting(
    key="keeper.on-exhausted",
    parse=one_of(OnExhausted),
    default="clean-up",
    accepts="clean-up or keep",
    meaning="What becomes of a resource without attempts left: it is released and its row moves to "
    "the ledger (`clean-up`), or it stays and is told of once (`keep`).",
)
LEASE_TIME: Final = Setting(
    key="keeper.lease-time",
    parse=or_none(duration_from(timedelta(microseconds=1))),
    default="",
    accepts=f"{DURATION_ACCEPTS}, at least twice {CHECK_INTERVAL.key}, at least 10 s more than "
    f"that, and up to {LONGEST.days} d",
    meaning="Set where more than one Dagster deployment works on one registry: one acts, the "
    "others watch, and take over when its lease was not renewed for so long. Left out: no lease.",
    unit="ms",
)
DEPLOYMENT: Final = Setting(
    key="keeper.deployment",
    parse=parse_name,
    default="",
    accepts=f"a text of up to {LONGEST_NAME} characters",
    meaning="What this Dagster deployment is called where several share a registry. "
    "Left out: the name of its host.",
)
GROUP_DYNAMIC: Final = Setting(
    key=f"keeper.groups.{_NAME}.dynamic-allocation",
    parse=one_of(DynamicAllocation),
    default="leave",
    accepts="leave or restart",
    meaning="Whether this group's orphans are restarted (`restart`) though AMS changes its size "
    "by itself, or left to AMS. Only in the file.",
)
GROUP_MAX_ORPHANED: Final = Setting(
    key=f"keeper.groups.{_NAME}.max-orphaned-fraction",
    parse=or_none(parse_part),
    default="",
    accepts=_PART_ACCEPTS,
    meaning="`keeper.max-orphaned-fraction` for this group. Only in the file.",
)
AUDIT_STORAGE: Final = Setting(
    key="keeper.audit-storage",
    parse=parse_text,
    default="",
    accepts="a folder, or the URL of an object store such as s3://bucket/path",
    meaning="Where the frames of the audit are kept: a folder, which if relative starts at that of "
    "config.yaml, or an object store's URL. Left out: the storage folder of the Dagster instance.",
)
AUDIT_RETENTION: Final = Setting(
    key="keeper.audit-retention",
    parse=or_none(duration_from(timedelta(days=1))),
    default="",
    accepts=f"{DURATION_ACCEPTS}, from 1 d up to {LONGEST.days} d",
    meaning="How long the frames of the audit are kept; the ledger keeps everything in any case. "
    "Left out: for ever.",
    unit="ms",
)
ALERT_SUCCESS: Final = Setting(
    key="keeper.alert-restart-success",
    parse=parse_share,
    default="0.5",
    accepts="a number from 0 to 1",
    meaning="A check warns when a smaller share of a day's restarted resources came back.",
)
ALERT_FLAPPING: Final = Setting(
    key="keeper.alert-flapping",
    parse=whole_from(2),
    default="3",
    accepts=f"a whole number from 2 to {JAVA_INT_MAX}",
    meaning="A check warns of a resource that was orphaned so often within a day.",
    unit="incidents",
)
SETTINGS: Final[tuple[Setting[object], ...]] = (
    DATABASE_TYPE,
    DATABASE_URL,
    DATABASE_USERNAME,
    DATABASE_PASSWORD,
    SHADE,
    SENSITIVE,
    EXPOSE_HOST,
    THRIFT_PORT,
    HTTP_PORT,
    HA_ENABLED,
    HA_TYPE,
    CLUSTER_NAME,
    ZOOKEEPER_ADDRESS,
    MASTER_SLAVE,
    AUTO_RESTART,
    MAX_RETRIES,
    GRACE_PERIOD,
    CHECK_INTERVAL,
    MAX_KEEPING_ATTEMPTS,
    HEARTBEAT_TIMEOUT,
    REGISTRY,
    LEDGER_URL,
    KEEPER_USERNAME,
    KEEPER_PASSWORD,
    KEEPER_HOST,
    AMS_HOME,
    AMS_VERSION,
    MAX_RESTARTS,
    CLAIM_TIMEOUT,
    MODE,
    MAX_RESTARTS_PER_TICK,
    MAX_ORPHANED,
    MAX_ORPHANED_OVERALL,
    STABLE_AFTER,
    BACKOFF,
    BACKOFF_CAP,
    BACKOFF_JITTER,
    ON_EXHAUSTED,
    LEASE_TIME,
    DEPLOYMENT,
    GROUP_DYNAMIC,
    GROUP_MAX_ORPHANED,
    AUDIT_STORAGE,
    AUDIT_RETENTION,
    ALERT_SUCCESS,
    ALERT_FLAPPING,
)
KEYS: Final = frozenset(setting.key for setting in SETTINGS)
_KEEPER: Final = "keeper."
_KEEPER_KEYS: Final = tuple(key for key in KEYS if key.startswith(_KEEPER))
# Without what they all begin with, which would make short names look alike.
_KEEPER_NAMES: Final = tuple(key.removeprefix(_KEEPER) for key in _KEEPER_KEYS)
_GROUP_SETTINGS: Final[tuple[Setting[object], ...]] = (GROUP_DYNAMIC, GROUP_MAX_ORPHANED)
# A group, and what is no key of one: a word, or what stands below a key.
_GROUP_KEY: Final = re.compile(
    r"keeper\.groups(?:\.(.+?)(?:\.(?:dynamic-allocation|max-orphaned-fraction)\..*|\.[^.]*)?)?",
    re.DOTALL,
)
_RESTART_PREFIX: Final = "ams.optimizer.auto-restart"
RESTART_KEYS: Final = (AUTO_RESTART.key, MAX_RETRIES.key, GRACE_PERIOD.key)
# The nearest of Amoro's own keys is 0.67 alike; a key whose `optimizer` was left out, 0.82.
_ALIKE: Final = 0.8


def group_in(key: str, setting: Setting[object]) -> str:
    """The name of the group that a key sets this for, dots and all; empty: for none."""
    before, _, after = setting.key.partition(_NAME)
    if key.startswith(before) and key.endswith(after):
        return key[len(before) : -len(after)]
    return ""


def for_group(setting: Setting[_T], name: str) -> Setting[_T]:
    """A setting of groups, as one group has it."""
    return replace(setting, key=setting.key.replace(_NAME, name))


def is_known(key: str) -> bool:
    """Whether it is one of our keys, those of groups included."""
    return key in KEYS or any(group_in(key, setting) for setting in _GROUP_SETTINGS)


def is_of_groups(key: str) -> bool:
    """Whether it stands at or below `keeper.groups`."""
    return _GROUP_KEY.fullmatch(key) is not None


def resembles_one(key: str) -> bool:
    """Whether it is one of our keys below `keeper`, or one of them misspelt."""
    name = key.removeprefix(_KEEPER)
    # A group's settings have no variables: one that seems to be for them must not pass unnoticed.
    near = get_close_matches(name, _KEEPER_NAMES, n=1, cutoff=_ALIKE)
    return bool(near) or name.startswith("groups-")


def keys_meant(key: str) -> tuple[str, ...]:
    """Which keys of ours an unknown one may have been meant for; none: it is not ours."""
    if group := _GROUP_KEY.fullmatch(key):
        return tuple(for_group(each, group[1] or _NAME).key for each in _GROUP_SETTINGS)
    if key.startswith(_KEEPER):
        return _KEEPER_KEYS
    if key.startswith(_RESTART_PREFIX) or get_close_matches(key, RESTART_KEYS, cutoff=_ALIKE):
        return RESTART_KEYS
    return ()
