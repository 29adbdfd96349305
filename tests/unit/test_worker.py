"""A heartbeat's arguments, and what importing it costs a worker."""

import subprocess
import sys
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from dagster_amoro.stores.registry import optimizer
from dagster_amoro.worker import Heartbeat

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


@pytest.mark.parametrize("url", ["registry.db", "nosuch://host/db"])
def test_a_url_that_is_none_is_refused_at_once(url: str) -> None:
    """It will not get better by trying again."""
    with pytest.raises(sa.exc.ArgumentError):
        Heartbeat(**{**ARGUMENTS, "url": url})


def test_a_server_that_vanished_counts_as_away_soon_unless_the_url_says_otherwise() -> None:
    """The defaults of operating system and driver are minutes to hours."""
    url = "postgresql+psycopg://host/db?connect_timeout=3&application_name=w"
    query = Heartbeat(**{**ARGUMENTS, "url": url})._database.engine.url.query
    assert query == {
        "connect_timeout": "3",
        "application_name": "w",
        "keepalives_idle": "10",
        "tcp_user_timeout": "10000",
    }
    assert not Heartbeat(**ARGUMENTS)._database.engine.url.query


def test_it_is_for_one_use() -> None:
    """A second entry is an error, not a worker without a heartbeat."""
    with Heartbeat(**ARGUMENTS) as heartbeat:
        pass
    with pytest.raises(RuntimeError, match="only be started once"):
        heartbeat.__enter__()


def test_importing_it_brings_nothing_that_a_worker_does_not_need() -> None:
    """A worker pays for SQLAlchemy and no more."""
    script = "import sys, dagster_amoro.worker; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    imported = {name.partition(".")[0] for name in done.stdout.split()}
    assert "sqlalchemy" in imported
    assert not imported & {"dagster", "pandas", "pyarrow", "alembic", "yaml", "psutil", "numpy"}
