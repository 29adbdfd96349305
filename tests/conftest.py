"""What many tests share: a clock that stands still, and every database that the stores run on."""

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import pytest
import sqlalchemy as sa
from alembic.config import Config
from alembic.script import ScriptDirectory
from dagster._core.storage.event_log.sqlite import sqlite_event_log
from dagster._core.storage.runs.sqlite import sqlite_run_storage
from dagster._core.storage.schedules.sqlite import sqlite_schedule_storage
from hypothesis import HealthCheck, settings

from dagster_amoro.stores.database import Database
from tests.helpers.databases import (
    BACKENDS,
    NO_MARIADB,
    PostgresServer,
    administering,
    postgresql_url_of,
    running_mariadb,
    running_postgresql,
)

pytest_plugins = ["tests.helpers.suites", "tests.helpers.reporting", "tests.helpers.terminating"]

# A slow machine never fails a test.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")

_CUT_CONNECTIONS: Final = """
    SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
"""


_ENGINES: Final = 64  # of Dagster that are kept; each instance has a few
_WORKERS: Final = 8  # at most; each has database servers of its own


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """As many processes as there are processors for us, hyperthreads too."""
    return min(_WORKERS, len(os.sched_getaffinity(0)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where everything was installed, a test that is skipped for want of something has failed.

    What the machine is, such as one without IPv6 or with root as the user, is no want.
    """
    report = yield
    wants = report.skipped and ("there is no " in report.longreprtext)
    if wants and os.environ.get("DAGSTER_AMORO_REQUIRE") == "all":
        report.outcome = "failed"
        report.longrepr = f"skipped, though DAGSTER_AMORO_REQUIRE is all: {report.longreprtext}"
    return report


@pytest.fixture(scope="session", autouse=True)
def _dagsters_revisions_are_loaded_once() -> Iterator[None]:
    """Each new Dagster instance would compile and run some ninety files to learn the newest one."""
    load = ScriptDirectory.from_config
    loaded: dict[tuple[str | None, str], ScriptDirectory] = {}

    def from_config(config: Config) -> ScriptDirectory:
        location = config.get_main_option("script_location") or ""
        if not location.startswith("dagster:"):
            return load(config)
        key = (config.config_file_name, location)
        if key not in loaded:
            loaded[key] = load(config)
        return loaded[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScriptDirectory, "from_config", from_config)
        yield


@pytest.fixture(scope="session", autouse=True)
def _dagsters_engines_are_made_once() -> Iterator[None]:
    """Each event of Dagster would make an engine of its own, which compiles its statements anew."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (sqlite_event_log, sqlite_run_storage, sqlite_schedule_storage):
            made: dict[str, sa.Engine] = {}

            def create(
                url: str,
                made: dict[str, sa.Engine] = made,
                **options: Any,  # noqa: ANN401 - SQLAlchemy's
            ) -> sa.Engine:
                if len(made) >= _ENGINES:
                    made.clear()
                if url not in made:
                    made[url] = sa.create_engine(url, **options)
                return made[url]

            patch.setattr(module, "create_engine", create)
        yield


class SettableClock:
    """A clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self._now = datetime(2026, 1, 31, 12, 0, 0, 250_000, tzinfo=UTC)

    def __call__(self) -> datetime:
        """What time it is, as a `Clock` of the keeper says it."""
        return self._now

    @property
    def now(self) -> datetime:
        """What time it is: aware UTC, to the microsecond."""
        return self._now

    @now.setter
    def now(self, value: datetime) -> None:
        if value.utcoffset() != timedelta():
            raise ValueError(f"{value!r} is not aware UTC")
        self._now = value

    def advance(self, span: timedelta) -> datetime:
        """Moves it on and says what time it is then."""
        self._now += span
        return self._now


@pytest.fixture
def clock() -> SettableClock:
    """A clock whose `now` the test sets."""
    return SettableClock()


@pytest.fixture
def open_database() -> Iterator[Callable[..., Database]]:
    """Opens databases, by URL and name, and closes them after the test."""
    with ExitStack() as stack:

        def opened(url: sa.URL, name: str = "registry") -> Database:
            database = Database(url, name)
            stack.callback(database.close)
            return database

        yield opened


@pytest.fixture(params=BACKENDS)
def database_url(request: pytest.FixtureRequest) -> sa.URL:
    """An empty database of the test's own, on each backend in turn."""
    url: sa.URL = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
def sqlite_url(tmp_path: Path) -> sa.URL:
    """An SQLite file that does not exist yet."""
    return sa.URL.create("sqlite", database=str(tmp_path / "keeper.db"))


@pytest.fixture
def postgresql_url(postgresql_server: sa.URL) -> Iterator[sa.URL]:
    """A PostgreSQL database with nothing in it; emptied, as that is faster than a new one."""
    yield postgresql_server
    with administering(postgresql_server) as connection:
        connection.exec_driver_sql(_CUT_CONNECTIONS)  # those that the test left open
        connection.exec_driver_sql("DROP SCHEMA public CASCADE")
        connection.exec_driver_sql("CREATE SCHEMA public")
        connection.exec_driver_sql("ALTER DATABASE postgres RESET ALL")


@pytest.fixture
def mariadb_url(mariadb_server: sa.URL) -> Iterator[sa.URL]:
    """A new MariaDB database."""
    name = f"test_{uuid4().hex}"
    with administering(mariadb_server) as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    yield mariadb_server.set(database=name)
    with administering(mariadb_server) as connection:
        connection.exec_driver_sql("SET lock_wait_timeout = 5")  # for what a test left open
        connection.exec_driver_sql(f"DROP DATABASE {name}")


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[sa.URL]:
    """A PostgreSQL server, as the URL of its maintenance database; one per worker process."""
    with running_postgresql() as server:
        url = postgresql_url_of(server)
        with administering(url) as connection:
            connection.exec_driver_sql("ALTER SYSTEM SET fsync = off")  # its data is thrown away
            connection.exec_driver_sql("SELECT pg_reload_conf()")
        yield url


@pytest.fixture
def stoppable_postgresql() -> Iterator[PostgresServer]:
    """A PostgreSQL server of the test's own, which it may stop."""
    with running_postgresql() as server:
        yield server


@pytest.fixture(scope="session")
def mariadb_server() -> Iterator[sa.URL]:
    """A MariaDB server, as the URL of its system database; one per worker process."""
    if NO_MARIADB:
        pytest.skip(NO_MARIADB)
    with running_mariadb() as url:
        yield url
