"""A heartbeat's arguments, where a URL leads, and what importing it costs a worker."""

import subprocess
import sys
import tomllib
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import dagster_amoro
import dagster_amoro_worker
from dagster_amoro.config.jdbc import parse_url as url_of_config
from dagster_amoro.stores.registry import optimizer
from dagster_amoro_worker import ConfigError, Heartbeat
from dagster_amoro_worker.cli import main
from dagster_amoro_worker.registry import (
    PATIENCE,
    Registry,
    connect_in_turn,
    libpq_arguments,
    parse_url,
    pymysql_arguments,
    reason,
)

CHECKOUT: Final = Path(__file__).parents[2]
PARTS: Final = ("username", "password", "host", "port", "database")

ARGUMENTS: dict[str, Any] = {
    "url": "sqlite:///registry.db",
    "resource_id": "w-1",
    "group_name": "g",
    "container_name": "local",
}


@pytest.mark.parametrize("name", ["resource_id", "group_name", "container_name"])
def test_a_name_must_fit_its_column(name: str) -> None:
    """Neither empty nor longer than the column, which the worker would learn only from its log."""
    kind = optimizer.c[name].type
    assert isinstance(kind, sa.String)
    longest = kind.length or 0
    for wrong in ("", "x" * (longest + 1)):
        with pytest.raises(ValueError, match=f"{name} must have 1 to {longest} .*: '{wrong}'"):
            Heartbeat(**{**ARGUMENTS, name: wrong})
    Heartbeat(**{**ARGUMENTS, name: "\U0001f600" * longest})


@pytest.mark.parametrize("interval", [timedelta(0), timedelta(microseconds=-1)])
def test_an_interval_must_be_longer_than_nothing(interval: timedelta) -> None:
    """Else it would never pause."""
    with pytest.raises(ValueError, match=r"interval must be .*: datetime\.timedelta\("):
        Heartbeat(**ARGUMENTS, interval=interval)
    Heartbeat(**ARGUMENTS, interval=timedelta(microseconds=1))


@pytest.mark.parametrize(
    "url",
    [
        *("registry.db", "nosuch://host/secret", "", "postgresql://u:secret@w@host/db"),
        *("postgresql://u:secret/w@host/db", "mysql://host:secret/db", "mysql://[secret/db"),
    ],
)
def test_a_url_that_is_none_is_refused_at_once(url: str) -> None:
    """It will not get better by trying again; what it holds may be a password."""
    with pytest.raises(ValueError, match="the registry's URL cannot be read") as caught:
        Heartbeat(**{**ARGUMENTS, "url": url})
    assert "secret" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize(
    "text",
    [
        *("sqlite:////var/lib/registry.db", "sqlite:///a b/registry.db", "sqlite:////a%20b#c.db"),
        *("postgresql+psycopg://u:p%40w%2F@host:5433/db", "postgresql://a,b/db?port=1,2"),
        *("postgresql://u@/db?host=/run/postgresql&sslmode=require", "mysql+pymysql://u:p@h/d"),
        *(
            "mariadb://u:@[::1]:3307/my%20db?charset=utf8mb4",
            "postgresql://host/db?options=-cx%3Dy",
        ),
    ],
)
def test_a_url_means_what_it_means_for_the_keeper(text: str) -> None:
    """Both are told the same text."""
    ours, theirs = parse_url(text), sa.make_url(text)
    for name in PARTS:
        assert (getattr(ours, name) or None) == (getattr(theirs, name) or None)
    assert libpq_arguments(ours) == libpq_arguments(theirs)
    assert pymysql_arguments(ours) == pymysql_arguments(theirs)


@given(st.text(min_size=1), st.text(min_size=1))
def test_credentials_arrive_as_they_are(username: str, password: str) -> None:
    """Whatever is in them, if it is written as URLs have it."""
    whole = sa.URL.create("mysql", username, password, "host", 3306, "db")
    url = parse_url(whole.render_as_string(hide_password=False))
    assert (url.username, url.password, url.host) == (username, password, "host")


def test_a_server_that_vanished_counts_as_away_soon_unless_the_url_says_otherwise() -> None:
    """The defaults of operating system and driver are minutes to hours."""
    url = parse_url("postgresql+psycopg://host/db?connect_timeout=3&application_name=w")
    assert libpq_arguments(url) == {
        **PATIENCE,
        "host": "host",
        "dbname": "db",
        "connect_timeout": "3",
        "application_name": "w",
    }


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ("", {}),
        ("sslMode=DISABLED", {"ssl_disabled": True}),
        ("sslMode=REQUIRED", {"ssl": {"check_hostname": False}}),
        ("connectTimeout=3000&socketTimeout=4000", {"connect_timeout": 3, "read_timeout": 4}),
    ],
)
def test_mysql_is_told_what_the_configuration_says(parameters: str, told: dict[str, Any]) -> None:
    """Also where Amoro says it, in the words of Java's driver."""
    url = url_of_config(f"jdbc:mysql://host:3307/db?user=u&password=p&{parameters}")
    assert url is not None
    arguments = pymysql_arguments(url)
    server = {"host": "host", "port": 3307, "user": "u", "password": "p", "database": "db"}
    assert {**arguments, **server, **told} == arguments


def test_hosts_are_tried_in_turn() -> None:
    """Each with its port, or all with one; what each of them said is told."""
    tried: list[tuple[str, int]] = []

    def connect(host: str, port: int) -> str:
        tried.append((host, port))
        if host != "c":
            raise ConnectionError(2003, f"{host} is away")
        return host

    for port, ports in (("1,2,3", [1, 2, 3]), (4, [4, 4, 4]), (None, [3306] * 3)):
        tried.clear()
        arguments = {"host": "a,b,c", "port": port}
        assert connect_in_turn(connect, arguments, ConnectionError) == "c"
        assert tried == list(zip("abc", ports, strict=True))
    with pytest.raises(ConnectionError, match="a is away; b is away"):
        connect_in_turn(connect, {"host": "a,b"}, ConnectionError)


def test_a_drivers_words_hold_no_values() -> None:
    """MySQL puts a value into the middle, PostgreSQL the row into the second line."""
    doubled = ValueError(1062, "Duplicate entry 'secret' for key 'PRIMARY'")
    assert reason(doubled) == "ValueError: Duplicate entry for key 'PRIMARY'"
    assert reason(ValueError("duplicate key\nDETAIL: (secret)")) == "ValueError: duplicate key"
    assert reason(ValueError()) == "ValueError"


def test_a_driver_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the reason; it will not come by trying again."""
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match="the driver of the registry, psycopg, cannot be loaded"):
        Registry("postgresql://host/db")


def test_the_command_says_what_it_needs() -> None:
    """Without the plugin nothing says where the registry is but whoever types it."""
    runner = CliRunner()
    assert "--registry URL" in runner.invoke(main, ["--help"]).output
    who = ["--resource-id", "w-1", "--group", "g", "--container", "local"]
    refused = runner.invoke(main, [*who, "--", "true"], env={"DAGSTER_AMORO_REGISTRY": None})
    assert refused.exit_code == 2
    assert "Missing option '--registry'" in refused.output


def test_the_plugin_has_the_same_objects() -> None:
    """Whoever catches an error catches it, wherever the name came from."""
    for name in set(dagster_amoro_worker.__all__) - {"__version__"}:
        assert getattr(dagster_amoro, name) is getattr(dagster_amoro_worker, name)
    with pytest.raises(AttributeError, match="no attribute 'Hartbeat'"):
        getattr(dagster_amoro_worker, "Hartbeat")  # noqa: B009 - mypy would see it


def test_both_distributions_have_one_version_and_the_same_drivers() -> None:
    """The plugin asks for the light client of its own version, and for no other."""
    ours, client = (
        tomllib.loads((CHECKOUT / folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        for folder in (".", "client")
    )
    assert client["version"] == ours["version"]
    assert f"{client['name']}=={client['version']}" in ours["dependencies"]
    assert client["requires-python"] == ours["requires-python"]
    assert set(client["dependencies"]) <= set(ours["dependencies"])
    extras = client["optional-dependencies"]
    assert {name: ours["optional-dependencies"][name] for name in extras} == extras


def test_it_is_for_one_use() -> None:
    """A second entry is an error, not a worker without a heartbeat."""
    with Heartbeat(**ARGUMENTS) as heartbeat:
        pass
    with pytest.raises(RuntimeError, match="only be started once"):
        heartbeat.__enter__()


def test_importing_it_brings_nothing_that_a_worker_does_not_need() -> None:
    """Not even a driver: the URL says which one it is to be."""
    script = "import sys, dagster_amoro_worker.beat; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    imported = {name.partition(".")[0] for name in done.stdout.split()}
    heavy = {"dagster", "pandas", "pyarrow", "alembic", "yaml", "psutil", "numpy", "sqlalchemy"}
    assert not imported & {*heavy, "click", "sqlite3", "psycopg", "pymysql", "dagster_amoro"}
