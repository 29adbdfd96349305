import base64
import re
import ssl
from collections.abc import Callable
from datetime import timedelta
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dagster_amoro.config import (
    AmsSettings,
    HighAvailability,
    RegistryMode,
    Settings,
    load_settings,
)
from dagster_amoro.config.jdbc import parse_url
from dagster_amoro.config.values import decode, parse_host, parse_keywords
from dagster_amoro.core.ams_version import AmsVersion
from dagster_amoro.core.errors import ConfigError
from dagster_amoro.stores.database import Database

SECRET = "hunter2"  # noqa: S105 - it opens nothing
ENCODED = base64.b64encode(SECRET.encode()).decode()
LOCAL = "org.apache.amoro.server.manager.LocalOptimizerContainer"
FLINK = "org.apache.amoro.server.manager.FlinkOptimizerContainer"
POSTGRES = "jdbc:postgresql://db/amoro"


def load(folder: Path, document: str | dict[str, Any], **environ: str) -> Settings:
    """What a folder with this config.yaml, and this environment, are read as."""
    text = document if isinstance(document, str) else yaml.safe_dump(document)
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    return load_settings(folder, environ)


def problems(folder: Path, document: str | dict[str, Any], **environ: str) -> list[str]:
    """The lines of the error that this configuration is refused with."""
    with pytest.raises(ConfigError) as caught:
        load(folder, document, **environ)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    return str(caught.value).splitlines()


def problem(folder: Path, document: str | dict[str, Any], **environ: str) -> str:
    """The same where there is only one, without the file's name."""
    (line,) = problems(folder, document, **environ)
    return line.removeprefix(f"{folder / 'config.yaml'}: ")


def attached(
    ams: dict[str, Any] | None = None,
    keeper: dict[str, Any] | None = None,
    containers: dict[str, dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """A configuration that is attached to an AMS; a key that is None is left out.

    The containers are named after their classes.
    """
    base = {"database.type": "postgres", "database.url": POSTGRES, "server-expose-host": "10.0.0.5"}
    return {
        "ams": {**base, **(ams or {})},
        "keeper": keeper or {},
        "containers": [
            {"name": name, "container-impl": name, "properties": properties}
            for name, properties in (containers or {}).items()
        ],
    }


def read_ams(folder: Path, ams: dict[str, Any], **environ: str) -> AmsSettings:
    """What these keys of `ams` say about AMS."""
    settings = load(folder, attached(ams), **environ)
    assert settings.ams is not None
    return settings.ams


def properties_of(
    folder: Path, document: dict[str, Any], name: str = LOCAL, **environ: str
) -> dict[str, str]:
    """The properties of one container of a configuration."""
    return dict(load(folder, document, **environ).containers[name].properties)


# --- Files as Amoro ships them ----------------------------------------------------------------


V0_7 = """
ams:
  admin-username: admin
  admin-password: admin
  server-bind-host: "0.0.0.0"
  server-expose-host: "127.0.0.1"
  thrift-server:
    max-message-size: 104857600
    table-service: {bind-port: 1260, worker-thread-count: 20}
    optimizing-service: {bind-port: 1261}
  http-server: {bind-port: 1630}
  self-optimizing: {commit-thread-count: 10, runtime-data-keep-days: 30}
  optimizer:
    heart-beat-timeout: 60000 # 1min
    task-ack-timeout: 30000
    polling-timeout: 3000
    max-planning-parallelism: 1
  expire-snapshots: {enabled: true, thread-count: 10}
  database:
    type: mysql
    jdbc-driver-class: com.mysql.cj.jdbc.Driver
    url: jdbc:mysql://127.0.0.1:3306/db?useUnicode=true&characterEncoding=UTF8&autoReconnect=true&useAffectedRows=true&useSSL=false
    username: root
    password: root
    connection-pool-max-total: 20
    connection-pool-max-wait-millis: 1000
  terminal: {backend: local, local.spark.sql.iceberg.handle-timestamp-without-timezone: false}
containers:
  - name: localContainer
    container-impl: org.apache.amoro.server.manager.LocalOptimizerContainer
    properties:
      export.JAVA_HOME: "/opt/java"   # JDK environment
"""
V0_8 = """
ams:
  server-expose-host: "127.0.0.1"
  thrift-server: {max-message-size: 100MB, optimizing-service: {bind-port: 1261}}
  http-server: {session-timeout: 7d, bind-port: 1630, rest-auth-type: token}
  self-optimizing: {refresh-group-interval: 30s, break-quota-limit-enabled: true}
  optimizer: {heart-beat-timeout: 1min, task-execute-timeout: 1h, polling-timeout: 3s}
  shade: {identifier: default, sensitive-keywords: admin-password;database.password}
  overview-cache: {refresh-interval: 3min, max-size: 3360}
  database:
    type: postgres
    jdbc-driver-class: org.postgresql.Driver
    url: jdbc:postgresql://127.0.0.1:5432/db
    username: user
    password: passwd
    auto-create-tables: true
containers:
  - name: localContainer
    container-impl: org.apache.amoro.server.manager.LocalOptimizerContainer
    properties: {export.JAVA_HOME: "/opt/java"}
  - name: flinkContainer
    container-impl: org.apache.amoro.server.manager.FlinkOptimizerContainer
    properties:
      flink-home: "/opt/flink/"
      target: session
      export.JVM_ARGS: -Djava.security.krb5.conf=/opt/krb5.conf
      flink-conf.taskmanager.memory.managed.size: 32mb
"""
V0_9 = """
ams:
  server-expose-host: "192.168.1.7"
  thrift-server: {optimizing-service: {bind-port: 2261}}
  http-server:
    bind-port: 1630
    login-auth-provider: org.apache.amoro.server.authentication.DefaultPasswdAuthenticationProvider
  optimizer: {heart-beat-timeout: 1min}
  optimizer-group: {min-parallelism-check-interval: 5min, max-keeping-attempts: 3}
  ha:
    enabled: true
    type: zk
    cluster-name: default
    zookeeper-address: 127.0.0.1:2181,127.0.0.1:2182
    session-timeout: 30s
    lease-ttl: 30s
  database:
    type: mysql
    jdbc-driver-class: com.mysql.cj.jdbc.Driver
    url: jdbc:mysql://127.0.0.1:3306/db?useSSL=false
    username: root
    password: root
containers:
  - name: localContainer
    container-impl: org.apache.amoro.server.manager.LocalOptimizerContainer
    properties: {export.JAVA_HOME: "/opt/java"}
"""
MASTER = """
ams:
  server-expose-host: "127.0.0.1"
  thrift-server: {optimizing-service: {bind-port: 1261}}
  http-server: {bind-port: 1630, rest-auth-type: token}
  process: {history-data-keep-time: 7d}
  table-runtime-factories: [{name: default, properties: ~}]
  shade:
    identifier: base64
    sensitive-keywords: admin-password;database.password;http-server.authorization.bind-password
  optimizer: {heart-beat-timeout: 90 s}
  database:
    type: postgres
    url: jdbc:postgresql://127.0.0.1:5432/db?currentSchema=amoro
    username: user
    password: cGFzc3dk
containers: []
"""


@pytest.mark.parametrize(
    ("text", "url", "http_port", "heartbeat"),
    [
        (V0_7, "mysql+pymysql://root:root@127.0.0.1:3306/db", 1630, 60),
        (V0_8, "postgresql+psycopg://user:passwd@127.0.0.1:5432/db", 1630, 60),
        (V0_9, "mysql+pymysql://root:root@127.0.0.1:3306/db", 1630, 60),
        (MASTER, "postgresql+psycopg://user:passwd@127.0.0.1:5432/db", 1630, 90),
    ],
    ids=["0.7", "0.8", "0.9", "master"],
)
def test_the_file_of_each_version_is_read(
    tmp_path: Path, text: str, url: str, http_port: int, heartbeat: int
) -> None:
    """With its database changed to one that can be opened, and nothing else."""
    settings = load(tmp_path, text)
    assert settings.registry is RegistryMode.ATTACHED
    assert settings.database_url.set(query={}) == sa.make_url(url)
    assert settings.ledger_url == settings.database_url
    assert settings.heartbeat_timeout == timedelta(seconds=heartbeat)
    assert settings.ams is not None
    assert settings.ams.http_port == http_port
    assert settings.ams.ams_version is None


def test_what_the_helm_chart_leaves_to_the_environment_is_found_there(tmp_path: Path) -> None:
    """User, password and the address of the pod are in no file."""
    environ = {
        "AMS_DATABASE_USERNAME": "amoro",
        "AMS_DATABASE_PASSWORD": SECRET,
        "AMS_SERVER__EXPOSE__HOST": "10.1.2.3",
        "AMS_THRIFT__SERVER_OPTIMIZING__SERVICE_BIND__PORT": "1271",
        "AMS_HTTP__SERVER_BIND__PORT": "1640",
        "AMORO_HOME": "/usr/local/amoro",
    }
    settings = load(tmp_path, attached(containers={LOCAL: {}}), **environ)
    assert (settings.database_url.username, settings.database_url.password) == ("amoro", SECRET)
    assert settings.ams == AmsSettings(
        host="10.1.2.3",
        thrift_port=1271,
        http_port=1640,
        high_availability=HighAvailability.NONE,
        cluster_name="default",
        zookeeper_address="",
        ams_version=None,
    )
    assert settings.containers[LOCAL].properties == {
        "ams-home": "/usr/local/amoro",
        "ams-optimizing-uri": "thrift://10.1.2.3:1271",
    }


def test_ports_that_are_left_out_are_those_of_amoros_code(tmp_path: Path) -> None:
    """Its shipped file names another one for REST, but only the code counts."""
    ams = read_ams(tmp_path, {})
    assert (ams.thrift_port, ams.http_port) == (1261, 19090)


def test_standalone_there_is_no_ams(tmp_path: Path) -> None:
    """What describes one is neither read nor checked, and Amoro's containers stay as they are."""
    document = attached(
        {
            "server-expose-host": "0.0.0.0",  # noqa: S104 - nothing listens
            "thrift-server.optimizing-service.bind-port": "x",
            "http-server.bind-port": -1,
            "ha": {"enabled": 5, "type": "x", "zookeeper-address": [1]},
            "shade.sensitive-keywords": "'",
        },
        {
            "registry": "standalone",
            "server-expose-host": "::",
            "ams-version": "x",
            "ams-home": [1],
        },
        {LOCAL: {"memory": 1}},
    )
    settings = load(tmp_path, document, AMORO_HOME="/opt/amoro")
    assert settings.ams is None
    assert settings.containers[LOCAL].properties == {"memory": "1"}


# --- Where AMS is reached ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "192.168.1.7", "::1", "fd00::5", "fe80::1%eth0"),
        *("localhost", "ams", "ams.svc.cluster.local", "ams.example.com.", "amoro_ams", "a-1"),
        "1a",
    ],
)
def test_hosts_that_can_be_reached_are_accepted(tmp_path: Path, host: str) -> None:
    """A full address of either kind, or a name."""
    assert read_ams(tmp_path, {"server-expose-host": host}).host == host


@pytest.mark.parametrize(
    "host",
    [
        *("", None, "0.0.0.0", "::", "0::0", "[::]"),  # noqa: S104 - nothing listens
        *("192.168.", "10.0", "10", 10, "192.168.1.256", "1.2.3.4.5", "fd00:", "1.2.3.4:1261"),
        *("ams host", "-ams", "ams-", "http://ams", "ams:1261", ["ams"], " ams"),
    ],
)
def test_other_hosts_are_refused_and_the_way_out_is_said(tmp_path: Path, host: object) -> None:
    """AMS completes the beginning of an address to one of its own; nobody else can."""
    line = problem(tmp_path, attached({"server-expose-host": host}))
    assert line.startswith("ams.server-expose-host is ")
    assert "set keeper.server-expose-host to the one under which AMS is reached" in line
    settings = load(tmp_path, attached({"server-expose-host": host}, {"server-expose-host": "ams"}))
    assert settings.ams is not None
    assert settings.ams.host == "ams"


def test_our_own_host_is_checked_too(tmp_path: Path) -> None:
    """The error names the key, or the variable, that is wrong; Amoro's is not looked at."""
    document = attached({"server-expose-host": ""}, {"server-expose-host": "10."})
    assert problem(tmp_path, document).startswith("keeper.server-expose-host is '10.'")
    line = problem(tmp_path, attached(), KEEPER_SERVER_EXPOSE_HOST="0.0.0.0")  # noqa: S104 - as above
    assert line.startswith("environment variable KEEPER_SERVER_EXPOSE_HOST: keeper.server-expose-")


def test_an_empty_variable_for_the_host_is_none(tmp_path: Path) -> None:
    """Charts set variables to nothing where nothing was asked for."""
    settings = load(tmp_path, attached(), KEEPER_SERVER_EXPOSE_HOST="")
    assert settings.ams is not None
    assert settings.ams.host == "10.0.0.5"


@given(st.ip_addresses().filter(lambda address: not address.is_unspecified))
def test_every_full_address_is_a_host(address: IPv4Address | IPv6Address) -> None:
    """In brackets too, if it is an IPv6 address."""
    text = str(address)
    assert parse_host(text) == text
    assert parse_host(f"[{text}]") == text


@pytest.mark.parametrize("port", [0, 65536, -1, "x", 1.5, True])
@pytest.mark.parametrize(
    "key", ["http-server.bind-port", "thrift-server.optimizing-service.bind-port"]
)
def test_ports_that_cannot_be_are_reported(tmp_path: Path, key: str, port: object) -> None:
    """With the range that can."""
    line = problem(tmp_path, attached({key: port}))
    assert line == f"ams.{key} is {port!r}; accepted is a whole number from 1 to 65535"
    assert read_ams(tmp_path, {key: 65535}) != read_ams(tmp_path, {key: "1"})


@pytest.mark.parametrize(
    ("value", "text", "version"),
    [
        ("0.7.1", "0.7.1", AmsVersion.V0_7),
        (0.8, "0.8", AmsVersion.V0_8),
        ("0.9.0-incubating", "0.9.0-incubating", AmsVersion.V0_9_0),
        (0.9, "0.9", AmsVersion.V0_9),
        (None, None, None),
        ("", None, None),
    ],
)
def test_the_version_is_told_to_containers(
    tmp_path: Path, value: object, text: str | None, version: AmsVersion | None
) -> None:
    """Where it is left out, AMS is asked."""
    document = attached(keeper={"ams-version": value}, containers={LOCAL: {}})
    settings = load(tmp_path, document)
    assert settings.ams is not None
    assert settings.ams.ams_version is version
    assert settings.containers[LOCAL].properties.get("ams-version") == text


@pytest.mark.parametrize("value", ["latest", "0.6.1", 0.1, [0.9], "0"])
def test_a_version_that_is_none_is_reported(tmp_path: Path, value: object) -> None:
    """YAML takes 0.10 for 0.1, so quotes are asked for."""
    line = problem(tmp_path, attached(keeper={"ams-version": value}))
    assert line.startswith(f"keeper.ams-version is {value!r}; accepted is a version from 0.7 on")
    assert "in quotes" in line


# --- High availability ------------------------------------------------------------------------


ZOOKEEPER = {"ha": {"enabled": True, "zookeeper-address": "a:2181,b:2181", "cluster-name": "east"}}


def test_with_zookeeper_the_leader_is_looked_up(tmp_path: Path) -> None:
    """So the host is not needed, and optimizers are sent there as well."""
    document = attached({**ZOOKEEPER, "server-expose-host": ""}, containers={LOCAL: {}})
    settings = load(tmp_path, document)
    assert settings.ams is not None
    assert settings.ams.high_availability is HighAvailability.ZOOKEEPER
    assert (settings.ams.host, settings.ams.cluster_name) == ("", "east")
    assert settings.ams.zookeeper_address == "a:2181,b:2181"
    uri = settings.containers[LOCAL].properties["ams-optimizing-uri"]
    assert uri == "zookeeper://a:2181,b:2181/east"


@pytest.mark.parametrize("address", [None, ""])
def test_zookeeper_without_an_address_is_refused(tmp_path: Path, address: str | None) -> None:
    """AMS refuses to start with it too."""
    ha = {"enabled": "TRUE", "type": "ZK", "zookeeper-address": address}
    line = problem(tmp_path, attached({"ha": ha}))
    assert line.startswith("ams.ha.zookeeper-address is ")
    assert "though ams.ha.enabled is true and ams.ha.type zk; accepted is host:port" in line


def test_with_a_database_every_container_of_amoro_needs_an_address(tmp_path: Path) -> None:
    """AMS would give it one without a host; containers of one's own need none."""
    ams = {"ha": {"enabled": True, "type": "database"}, "server-expose-host": None}
    uri = "thrift://ams:1261"
    found: dict[str, dict[str, Any]] = {
        LOCAL: {"ams-optimizing-uri": None},
        FLINK: {"ams-optimizing-uri": uri},
        "my.Own": {},
    }
    line = problem(tmp_path, attached(ams, containers=found))
    assert line == (
        f"the property ams-optimizing-uri of container '{LOCAL}' is left out, though ams.ha.type "
        "is database; accepted is thrift://host:port, where optimizers reach the leader of AMS"
    )
    found[LOCAL] = {"ams-optimizing-uri": uri}
    settings = load(tmp_path, attached(ams, containers=found))
    assert settings.ams is not None
    assert settings.ams.high_availability is HighAvailability.DATABASE
    assert settings.containers[LOCAL].properties["ams-optimizing-uri"] == uri
    assert settings.containers["my.Own"].properties == {}


@pytest.mark.parametrize("kind", ["etcd", "none", "", 5, ["zk"]])
def test_an_unknown_kind_of_high_availability_is_refused(tmp_path: Path, kind: object) -> None:
    """But only where it counts, as for AMS."""
    ha = {"enabled": True, "type": kind, "zookeeper-address": "a:1"}
    line = problem(tmp_path, attached({"ha": ha}))
    assert line == f"ams.ha.type is {kind!r}; accepted is zk or database"
    ams = read_ams(tmp_path, {"ha": {**ha, "enabled": False}})
    assert ams.high_availability is HighAvailability.NONE
    assert ams.host == "10.0.0.5"


# --- Properties that AMS adds -----------------------------------------------------------------


def test_what_amoros_containers_lack_is_added(tmp_path: Path) -> None:
    """And what they have is kept, but for the folder of Amoro, which AMS always overwrites."""
    ams = {"ha.use-master-slave-mode": True}
    keeper = {"ams-home": "/opt/amoro", "ams-version": "0.9.0"}
    own = {
        "ams-home": "/elsewhere",
        "ams-optimizing-uri": "thrift://proxy:1",
        "master-slave-mode-enabled": False,
        "ams-version": "0.8",
        "x": 1,
    }
    found: dict[str, dict[str, Any]] = {
        LOCAL: {"ams-optimizing-uri": None},
        FLINK: own,
        "my.Own": {"x": 1},
    }
    containers = load(tmp_path, attached(ams, keeper, found)).containers
    assert containers[LOCAL].properties == {
        "ams-home": "/opt/amoro",
        "ams-optimizing-uri": "thrift://10.0.0.5:1261",
        "master-slave-mode-enabled": "true",
        "ams-version": "0.9.0",
    }
    assert containers[FLINK].properties == {
        "ams-home": "/opt/amoro",
        "ams-optimizing-uri": "thrift://proxy:1",
        "master-slave-mode-enabled": "false",
        "ams-version": "0.8",
        "x": "1",
    }
    assert containers["my.Own"].properties == {"x": "1"}
    with pytest.raises(TypeError):
        containers[LOCAL].properties["x"] = "2"  # type: ignore[index]


def test_an_ipv6_address_is_put_into_brackets(tmp_path: Path) -> None:
    """Otherwise its end would pass for the port."""
    document = attached({"server-expose-host": "fd00::5"}, containers={LOCAL: {}})
    assert properties_of(tmp_path, document)["ams-optimizing-uri"] == "thrift://[fd00::5]:1261"


@pytest.mark.parametrize(
    ("keeper", "environ", "folder", "home"),
    [
        ({"ams-home": "/a"}, {"ARCTIC_HOME": "/b", "AMORO_HOME": "/c"}, "conf", "/a"),
        ({}, {"ARCTIC_HOME": "/b", "AMORO_HOME": "/c", "KEEPER_AMS_HOME": "/d"}, "conf", "/d"),
        ({}, {"ARCTIC_HOME": "/b", "AMORO_HOME": "/c"}, "conf", "/b"),
        ({}, {"ARCTIC_HOME": "", "AMORO_HOME": "/c"}, "conf", "/c"),
        ({}, {}, "conf", "{parent}"),
        ({}, {}, "settings", None),
    ],
)
def test_where_amoro_is_installed_is_found_as_ams_finds_it(
    tmp_path: Path,
    keeper: dict[str, str],
    environ: dict[str, str],
    folder: str,
    home: str | None,
) -> None:
    """After our own key; where nobody says so, it is not made up."""
    (tmp_path / folder).mkdir()
    document = attached(keeper=keeper, containers={LOCAL: {"ams-home": None}})
    found = properties_of(tmp_path / folder, document, **environ).get("ams-home")
    assert found == (home and home.format(parent=tmp_path))


# --- Encoded values ---------------------------------------------------------------------------


def shaded(identifier: str, **more: object) -> dict[str, Any]:
    """A configuration with an encoded password."""
    ams = {"shade.identifier": identifier, "database.password": ENCODED, "database.username": "me"}
    return attached({**ams, **more})


def test_a_base64_password_is_decoded(tmp_path: Path) -> None:
    """From the file, and from the environment just as well."""
    url = load(tmp_path, shaded("base64")).database_url
    assert (url.username, url.password) == ("me", SECRET)
    other = base64.b64encode("p\u00e4ss".encode()).decode()
    url = load(tmp_path, shaded("base64"), AMS_DATABASE_PASSWORD=other).database_url
    assert url.password == "p\u00e4ss"  # noqa: S105 - a test's
    environ = {"AMS_SHADE_IDENTIFIER": "base64"}
    assert load(tmp_path, shaded("default"), **environ).database_url.password == SECRET


def test_plain_text_is_left_alone(tmp_path: Path) -> None:
    """The default shade encodes nothing."""
    assert load(tmp_path, shaded("default")).database_url.password == ENCODED


@pytest.mark.parametrize(
    "keywords",
    [
        "database.password;database.username;database.url",
        ["database.password", "database.username", "database.url"],
        """ 'database.password' ; "database.username";;'database.url';""",
    ],
)
def test_only_what_is_listed_is_decoded(tmp_path: Path, keywords: object) -> None:
    """And all that is listed, as far as it is read here."""
    encoded = {
        "database.username": base64.b64encode(b"you").decode(),
        "database.url": base64.b64encode(POSTGRES.encode()).decode(),
    }
    document = shaded("base64", **{"shade.sensitive-keywords": keywords, **encoded})
    url = load(tmp_path, document).database_url
    assert (url.username, url.password, url.host) == ("you", SECRET, "db")
    document = shaded("base64", **{"shade.sensitive-keywords": "admin-password"})
    assert load(tmp_path, document).database_url.password == ENCODED


@pytest.mark.parametrize(
    "value", [SECRET, "aHVudGVyMg=", f"{ENCODED}\n", "/w==", "p\u00e4ss", "a*b"]
)
def test_what_is_not_encoded_is_reported_without_it(tmp_path: Path, value: str) -> None:
    """Somebody forgot to encode it, or encoded bytes."""
    line = problem(tmp_path, shaded("base64", **{"database.password": value}))
    assert line.startswith("ams.database.password is *** and is not the base64 of a text, as ")
    assert value not in line
    line = problem(tmp_path, shaded("base64"), AMS_DATABASE_PASSWORD=value)
    assert line.startswith("environment variable AMS_DATABASE_PASSWORD: ams.database.password")
    assert value not in line


@given(st.text(min_size=1), st.booleans())
def test_every_text_comes_back_from_base64(text: str, padded: bool) -> None:  # noqa: FBT001 - drawn by hypothesis
    """With or without padding, which Java does not ask for."""
    encoded = base64.b64encode(text.encode("utf-8", "replace")).decode()
    decoded = text.encode("utf-8", "replace").decode()
    assert decode(encoded if padded else encoded.rstrip("="), "base64") == decoded


def test_a_shade_of_ones_own_asks_for_a_plain_password(tmp_path: Path) -> None:
    """Logging in with the encoded text would fail, and nobody would know why."""
    line = problem(tmp_path, shaded("vault"))
    assert line.startswith(
        "ams.database.password is *** and encoded with the shade 'vault', which only AMS can "
        "decode; set keeper.database-password, best as KEEPER_DATABASE_PASSWORD"
    )
    assert ENCODED not in line
    settings = load(tmp_path, shaded("vault"), KEEPER_DATABASE_PASSWORD=SECRET)
    assert settings.database_url.password == SECRET
    document = shaded("vault", **{"database.url": "postgresql://u:p@db/amoro"})
    assert load(tmp_path, document).database_url.password == "p"  # noqa: S105 - a test's


def test_a_url_that_only_ams_can_decode_is_one_problem(tmp_path: Path) -> None:
    """It is not reported as missing or unreadable on top."""
    document = shaded("vault", **{"shade.sensitive-keywords": "database.url"})
    line = problem(tmp_path, document)
    assert line.startswith("ams.database.url is *** and encoded with the shade 'vault'")
    assert "a plain ams.database.url" in line


def test_an_encoded_user_is_not_shown_either(tmp_path: Path) -> None:
    """Somebody wanted it hidden."""
    document = shaded("base64", **{"shade.sensitive-keywords": ["database.username"]})
    assert problem(tmp_path, document).startswith("ams.database.username is *** and is not the ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a;b", {"a", "b"}),
        ("'a;b';c", {"a;b", "c"}),
        ("'a''b';\"c\"\"d\"", {"a'b", 'c"d'}),
        ('"a\'b";c', {"a'b", "c"}),
        (" a b ; 'c ' ;", {"a b", "c "}),
        ("a'b';c", {"a'b'", "c"}),
        (";;", set()),
        ("", set()),
        ("''", set()),
    ],
)
def test_lists_are_split_as_amoro_splits_them(text: str, expected: set[str]) -> None:
    """At semicolons, unless quotes protect them."""
    assert parse_keywords(text) == expected


@pytest.mark.parametrize("text", ["'a", "'a'b", "\"a\" 'b'", "'a''", "a;'b"])
def test_quotes_that_amoro_refuses_are_refused(tmp_path: Path, text: str) -> None:
    """Left open, or closed before the end of an item."""
    line = problem(tmp_path, shaded("base64", **{"shade.sensitive-keywords": text}))
    assert line.startswith("ams.shade.sensitive-keywords is ")
    assert "accepted is a list of keys" in line


@given(st.lists(st.text(min_size=1, max_size=5), max_size=4), st.sampled_from("'\""))
def test_what_is_quoted_is_found_again(items: list[str], quote: str) -> None:
    """Whatever is in it."""
    text = ";".join(quote + each.replace(quote, quote * 2) + quote for each in items)
    assert parse_keywords(text) == set(items)


# --- Who logs in, and where the ledger is -----------------------------------------------------


@given(user=st.text(min_size=1, max_size=20), password=st.text(min_size=1, max_size=20))
def test_any_credentials_reach_the_driver_and_no_text(
    tmp_path_factory: pytest.TempPathFactory, user: str, password: str
) -> None:
    """Whatever characters are in them; the settings do not show the password."""
    folder = tmp_path_factory.mktemp("conf")
    password = f"{password}{SECRET}"
    keeper = {"database-username": user, "database-password": password}
    ams = {"database.url": "jdbc:postgresql://db/amoro?user=x&password=y"}
    settings = load(folder, attached(ams, keeper))
    _, arguments = settings.database_url.get_dialect()().create_connect_args(settings.database_url)
    assert (arguments["user"], arguments["password"]) == (user, password)
    assert SECRET not in f"{settings!r} {settings}"


def test_the_keepers_credentials_win(tmp_path: Path) -> None:
    """Over those of AMS, wherever they stand."""
    ams = {
        "database.url": f"{POSTGRES}?user=a&password=b",
        "database.username": "c",
        "database.password": "d",
    }
    url = load(
        tmp_path, attached(ams, {"database-username": "e"}), KEEPER_DATABASE_PASSWORD=SECRET
    ).database_url
    assert (url.username, url.password) == ("e", SECRET)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "postgresql+psycopg://me:pw@db/amoro"),
        ("", "postgresql+psycopg://me:pw@db/amoro"),
        ("jdbc:postgresql://other/l", "postgresql+psycopg://me:pw@other/l"),
        ("postgresql://me@other/l", "postgresql+psycopg://me:pw@other/l"),
        ("postgresql://me:x@other/l", "postgresql+psycopg://me:x@other/l"),
        ("postgresql://you@other/l", "postgresql+psycopg://you@other/l"),
        ("postgresql://you:x@other/l", "postgresql+psycopg://you:x@other/l"),
        ("mysql://other/l", "mysql+pymysql://other/l"),
        ("jdbc:sqlite:l.db", "sqlite:///{folder}/l.db"),
        ("sqlite:////l.db", "sqlite:////l.db"),
    ],
)
def test_the_ledger_may_have_a_database_of_its_own(
    tmp_path: Path, text: str | None, expected: str
) -> None:
    """Of any type; the registry's password only goes where its user does."""
    ams = {"database.username": "me", "database.password": "pw"}
    settings = load(tmp_path, attached(ams, {"ledger-url": text}))
    assert settings.ledger_url == sa.make_url(expected.format(folder=tmp_path))
    assert settings.database_url == sa.make_url("postgresql+psycopg://me:pw@db/amoro")


def test_the_ledgers_url_comes_from_the_environment_too(tmp_path: Path) -> None:
    """Where a password belongs that is in it."""
    settings = load(tmp_path, attached(), KEEPER_LEDGER_URL=f"mysql://u:{SECRET}@h/l")
    assert settings.ledger_url.password == SECRET
    assert SECRET not in repr(settings)


def test_a_ledger_of_its_own_serves_standalone_too(tmp_path: Path) -> None:
    """The key does not depend on whose the registry is."""
    document = {"ams": {"database.type": "sqlite"}, "keeper": {"ledger-url": "mysql://u:p@h/l"}}
    assert load(tmp_path, document).ledger_url.host == "h"


@pytest.mark.parametrize(
    ("text", "flaw"),
    [
        ("jdbc:derby:/tmp/x", "of no type that can be used"),
        ("oracle://h/l", "of no type that can be used"),
        (f"mysql://u:{SECRET}@h", "names no database"),
        (f"mysql://u:{SECRET}@h/l?password={SECRET}", "holds a password in its query part"),
        (f"mysql://u:{SECRET}@@h/l", "is ***; accepted"),
        (f"jdbc:mysql:replication://a,b/l?password={SECRET}", "of the kind replication"),
        ("sqlite://", "is in memory"),
    ],
)
def test_ledgers_that_cannot_be_used_are_reported(tmp_path: Path, text: str, flaw: str) -> None:
    """By the rules that hold for the registry, and without a password."""
    line = problem(tmp_path, attached(keeper={"ledger-url": text}))
    assert line.startswith("keeper.ledger-url is ")
    assert flaw in line
    assert "accepted is jdbc:postgresql://host[:port]/database" in line
    assert SECRET not in line


@pytest.mark.parametrize(
    "ams",
    [
        {"database.type": "derby", "database.url": "jdbc:derby:/tmp/amoro/derby;create=true"},
        {"database.type": None},
    ],
)
def test_for_derby_the_ways_out_are_said(tmp_path: Path, ams: dict[str, Any]) -> None:
    """One problem, though there is nothing to attach to either."""
    line = problem(tmp_path, attached({**ams, "server-expose-host": None}))
    assert "move AMS to PostgreSQL or MySQL, or run dagster-amoro without AMS" in line


# --- Parameters of JDBC URLs ------------------------------------------------------------------


def query(text: str) -> dict[str, object]:
    """What is left of a JDBC URL's parameters."""
    url = parse_url(text)
    assert url is not None
    return dict(url.query)


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        *(
            (f"sslmode={mode}", {"sslmode": mode})
            for mode in ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
        ),
        ("sslmode=REQUIRE&ssl=true", {"sslmode": "require"}),
        ("ssl=true", {"sslmode": "verify-full"}),
        ("ssl", {"sslmode": "verify-full"}),
        ("ssl=false", {}),
        ("ssl=true&sslfactory=org.postgresql.ssl.NonValidatingFactory", {"sslmode": "require"}),
        (
            "ssl=true&sslrootcert=/ca.pem&sslcert=/c.pem&sslkey=/k.pk8&sslpassword=x",
            {"sslmode": "verify-full", "sslrootcert": "/ca.pem"},
        ),
        ("currentSchema=amoro", {"options": "-csearch_path=amoro"}),
        ("currentSchema=a,b", {"options": "-csearch_path=a,b"}),
        ("currentSchema=%22a%20b%22,c%5Cd", {"options": r'-csearch_path="a\ b",c\\d'}),
        ("currentSchema=", {}),
        (
            "connectTimeout=5&socketTimeout=30",
            {"connect_timeout": "5", "tcp_user_timeout": "30000"},
        ),
        ("connectTimeout=0&socketTimeout=0", {}),
        ("connectTimeout=x&socketTimeout=-1", {}),
        ("socketTimeout=2147483647", {"tcp_user_timeout": "2147483647"}),
        ("connectTimeout=99999999999", {}),
        ("ApplicationName=a%26b", {"application_name": "a&b"}),
        ("stringtype=unspecified&applicationName=x", {}),
    ],
)
def test_parameters_of_postgresql_are_kept_where_libpq_has_them(
    parameters: str, expected: dict[str, str]
) -> None:
    """In its own words and units."""
    assert query(f"{POSTGRES}?{parameters}") == expected


IDENTITY = {
    key: path
    for key, path in [
        ("ssl_ca", ssl.get_default_verify_paths().cafile),
        (
            "ssl_capath",
            ssl.get_default_verify_paths().capath or ssl.get_default_verify_paths().openssl_capath,
        ),
    ]
    if path
}
AUTHORITY = {**IDENTITY, "ssl_check_hostname": "false"}
ENCRYPTED = {"ssl_check_hostname": "false"}
PLAIN = {"ssl_disabled": "true"}


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ("", {}),
        ("sslMode=DISABLED", PLAIN),
        ("sslMode=PREFERRED", {}),
        ("sslMode=required", ENCRYPTED),
        ("SSLMODE=VERIFY_CA", AUTHORITY),
        ("sslMode=VERIFY_IDENTITY", IDENTITY),
        ("sslMode=REQUIRED&useSSL=false", ENCRYPTED),
        ("useSSL=false&requireSSL=true&verifyServerCertificate=true", PLAIN),
        ("useSSL=no", PLAIN),
        ("useSSL=true", {}),
        ("useSSL=TRUE&requireSSL=yes", ENCRYPTED),
        ("requireSSL=true&verifyServerCertificate=false", ENCRYPTED),
        ("useSSL=true&verifyServerCertificate=true", AUTHORITY),
        ("trustCertificateKeyStoreUrl=file:x&trustCertificateKeyStorePassword=y", {}),
        ("connectTimeout=1&socketTimeout=1000", {"connect_timeout": "1", "read_timeout": "1"}),
        ("connectTimeout=1001&sockettimeout=1001", {"connect_timeout": "2", "read_timeout": "2"}),
        ("connectTimeout=0&socketTimeout=0", {}),
        ("connectTimeout=x&socketTimeout=", {}),
        ("useUnicode=true&autoReconnect=true&allowPublicKeyRetrieval=true&charset=latin1", {}),
    ],
)
@pytest.mark.parametrize("driver", ["mysql", "mariadb"])
def test_parameters_of_mysql_are_kept_where_pymysql_has_them(
    driver: str, parameters: str, expected: dict[str, str]
) -> None:
    """Names in any case, as Connector/J has them; the character set is always the full one."""
    timeout = {"write_timeout": expected["read_timeout"]} if "read_timeout" in expected else {}
    url = parse_url(f"jdbc:{driver}://db/amoro?{parameters}")
    assert url is not None
    assert url.drivername == "mysql+pymysql"
    assert url.query == {"charset": "utf8mb4", **expected, **timeout}


@pytest.mark.parametrize(
    ("mode", "insists", "checks"),
    [
        ("DISABLED", (False, False), None),
        ("PREFERRED", (True, False), (ssl.CERT_NONE, False)),
        ("REQUIRED", (True, True), (ssl.CERT_NONE, False)),
        ("VERIFY_CA", (True, True), (ssl.CERT_REQUIRED, False)),
        ("VERIFY_IDENTITY", (True, True), (ssl.CERT_REQUIRED, True)),
        ("trust", (True, True), (ssl.CERT_NONE, False)),
        ("verify-full", (True, True), (ssl.CERT_REQUIRED, True)),
    ],
)
def test_pymysql_understands_what_it_is_told_about_tls(
    mode: str, insists: tuple[bool, bool], checks: tuple[ssl.VerifyMode, bool] | None
) -> None:
    """The driver itself, short of connecting: whether it offers TLS, insists, checks the name."""
    pymysql = pytest.importorskip("pymysql")
    url = parse_url(f"jdbc:mysql://db/amoro?sslMode={mode}&connectTimeout=1500&socketTimeout=1500")
    assert url is not None
    dialect = url.get_dialect()()
    dialect.dbapi = pymysql
    _, arguments = dialect.create_connect_args(url)
    connection = pymysql.connections.Connection(**arguments, defer_connect=True)
    assert (connection.ssl, connection._ssl_required) == insists
    assert (connection.connect_timeout, connection._read_timeout) == (2, 2)
    if checks is not None:
        assert (connection.ctx.verify_mode, connection.ctx.check_hostname) == checks


@pytest.mark.parametrize(
    ("kind", "url", "flaw"),
    [
        ("postgres", f"{POSTGRES}?sslmode=x", "asks for an sslmode that PostgreSQL's drivers do"),
        ("mysql", "jdbc:mysql://db/amoro?sslMode=x", "asks for an sslMode that MySQL's drivers do"),
        (
            "mysql",
            "jdbc:mysql:loadbalance://a,b/amoro",
            "kind loadbalance, for several hosts; name",
        ),
        ("mysql", "jdbc:mysql:replication://a,b/amoro", "kind replication, for several hosts; nam"),
        ("mysql", "jdbc:mariadb:sequential://a,b/amoro", "kind sequential, for several hosts; nam"),
    ],
)
def test_urls_that_ask_for_what_cannot_be_had_are_reported(
    tmp_path: Path, kind: str, url: str, flaw: str
) -> None:
    """Less than was asked for would be a surprise; the URL is not shown, it may hold a password."""
    separator = "&" if "?" in url else "?"
    text = f"{url}{separator}password={SECRET}"
    line = problem(tmp_path, attached({"database.type": kind, "database.url": text}))
    assert line.startswith("ams.database.url is *** and ")
    assert flaw in line
    assert SECRET not in line


@given(st.text(), st.sampled_from(["postgresql", "mysql", "mariadb", "mysql:loadbalance"]))
def test_no_parameter_leads_to_another_kind_of_error(parameters: str, driver: str) -> None:
    """A URL is one or it is not."""
    try:
        parse_url(f"jdbc:{driver}://db/amoro?{parameters}")
    except ValueError as error:
        assert re.search("several|sslmode|Type|not a URL|@ that", str(error), re.IGNORECASE)  # noqa: PT017 - either outcome is right


@pytest.mark.parametrize("path", ['"$user",public', "amoro", '"a b",  "c\\d"', '"o\'x"'])
def test_the_server_finds_its_tables_in_the_schema_that_was_named(
    postgresql_url: sa.URL, open_database: Callable[..., Database], path: str
) -> None:
    """What is escaped for PostgreSQL arrives as it was meant."""
    quoted = sa.URL.create("x", host="x", query={"currentSchema": path}).render_as_string()
    options = query(f"{POSTGRES}?{quoted.partition('?')[2]}")
    database = open_database(postgresql_url.update_query_dict({**options}))  # type: ignore[dict-item]
    with database.reading() as connection:
        assert connection.exec_driver_sql("SHOW search_path").scalar() == path
