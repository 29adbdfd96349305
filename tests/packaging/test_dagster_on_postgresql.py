"""Beside Dagster's own storage on PostgreSQL: in a fresh environment a killed worker is healed.

Dagster's storage works with `postgresql://` where SQLAlchemy takes that for psycopg 2, which is
before SQLAlchemy 2.1: https://docs.sqlalchemy.org/en/21/changelog/migration_21.html
"""

import re
import signal
import subprocess
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Final

import pytest
import sqlalchemy as sa

from dagster_amoro.demo import fleet as demo
from dagster_amoro.stores.database import Database
from dagster_amoro.stores.registry import optimizer
from tests.helpers.databases import administering
from tests.helpers.locations import location, lose_a_worker
from tests.helpers.waiting import wait_until
from tests.packaging.environments import build, clean_environment, environment, install, run

pytestmark = [pytest.mark.packaging, pytest.mark.xdist_group("packaging")]

# The web server of the same release as Dagster itself, and Dagster's library for PostgreSQL.
_BESIDE: Final = ("dagster-postgres", f"dagster-webserver=={version('dagster')}", "sqlalchemy<2.1")
_DAGSTER_YAML: Final = """\
storage:
  postgres:
    postgres_url: {url}
telemetry:
  enabled: false
nux:
  enabled: false
"""


@pytest.fixture
def postgresql(postgresql_server: sa.URL) -> Iterator[sa.URL]:
    """A database for Dagster, by the URL that its users write: no driver is named in it."""
    engine = sa.create_engine(postgresql_server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text("CREATE DATABASE dagster_storage"))
    yield postgresql_server.set(drivername="postgresql", database="dagster_storage")
    with engine.connect() as connection:
        connection.execute(sa.text("DROP DATABASE dagster_storage WITH (FORCE)"))
    engine.dispose()


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment as somebody with Dagster on PostgreSQL has it."""
    wheel = build("wheel", tmp_path_factory.mktemp("wheel"))
    return environment(tmp_path_factory.mktemp("on") / "venv", wheel, *_BESIDE, locked=False)


def registered(database: Database) -> dict[str, str]:
    """The tokens of the workers that are registered, by resource id."""
    with database.reading() as connection:
        rows = connection.execute(sa.select(optimizer.c.resource_id, optimizer.c.token))
        return {row.resource_id: row.token for row in rows}


def test_a_killed_worker_is_healed(tmp_path: Path, programs: Path, postgresql: sa.URL) -> None:
    """By Dagster's daemon, whose runs and events are in PostgreSQL."""
    folder = (tmp_path / "a fleet").resolve()
    home = folder / "dagster"
    home.mkdir(parents=True)
    url = postgresql.render_as_string(hide_password=False)
    (home / "dagster.yaml").write_text(_DAGSTER_YAML.format(url=url))
    commands: list[str | Path] = [programs / "python", "-m", "dagster_amoro.demo"]
    said = tmp_path / "said"
    with said.open("w") as output:
        process = subprocess.Popen(
            [*map(str, commands), "run", "--folder", str(folder), "--port", "0"],
            cwd=tmp_path,
            env=clean_environment(),
            stdout=output,
            stderr=output,
        )
    database = Database(sa.URL.create("sqlite", database=str(folder / "registry.db")), "registry")
    try:
        wait_until(lambda: "http://127" in said.read_text() or process.poll() is not None)
        wait_until(lambda: len(registered(database)) >= 5 or process.poll() is not None)
        assert process.poll() is None, said.read_text()
        before = registered(database)
        killed = re.search(r"Killed (\S+)", run([*commands, "chaos", "--folder", folder], tmp_path))
        assert killed is not None
        name = killed[1]
        wait_until(lambda: registered(database).get(name, before[name]) != before[name])
        wait_until(lambda: f"{name}: an optimizer registered for it after" in said.read_text())
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(120)
        database.close()
    assert list(demo.processes(folder)) == []
    assert runs(postgresql) >= 1


@pytest.fixture
def fleets(postgresql_server: sa.URL) -> Iterator[dict[str, sa.URL]]:
    """A database each for the keepers east and west: registry and ledger."""
    names = ("east", "west")
    with administering(postgresql_server) as connection:
        for name in names:
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
    yield {name: postgresql_server.set(database=name) for name in names}
    with administering(postgresql_server) as connection:
        for name in names:
            connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")


def test_two_keepers_in_two_code_locations(
    tmp_path: Path, programs: Path, postgresql: sa.URL, fleets: dict[str, sa.URL]
) -> None:
    """The same resource of the same group dies in both; Dagster and both fleets are in PostgreSQL.

    A daemon with its queue starts a code server for each, and a process for each run.
    """
    install(programs, "psycopg[binary]")
    home = tmp_path / "dagster"
    home.mkdir()
    url = postgresql.render_as_string(hide_password=False)
    (home / "dagster.yaml").write_text(_DAGSTER_YAML.format(url=url))
    lines = ["load_from:"]
    for name, database in fleets.items():
        started = tmp_path / f"started-in-{name}-{{resource_id}}"
        file = location(tmp_path, name, database, "touch", str(started))
        lines.append(f"  - python_file: {{relative_path: {file}, location_name: {name}}}")
        lose_a_worker(database)
    (tmp_path / "workspace.yaml").write_text("\n".join(lines))
    variables = demo.environment(tmp_path)
    del variables["AMORO_CONF_DIR"]
    said = tmp_path / "said"
    with said.open("w") as output:
        process = subprocess.Popen(
            [str(programs / "dagster-daemon"), "run", "-w", str(tmp_path / "workspace.yaml")],
            cwd=tmp_path,
            env=clean_environment(**variables),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    jobs = ("east_restart_orphans", "west_restart_orphans")
    try:
        wait_until(lambda: all(runs(postgresql, job) for job in jobs) or process.poll() is not None)
        assert process.poll() is None, said.read_text()
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(120)
        finally:
            demo.stop_all(tmp_path)
    for job, (name, database) in zip(jobs, fleets.items(), strict=True):
        assert (tmp_path / f"started-in-{name}-w-1").exists()
        # What never registers is tried again, for as long as the other keeper takes to be done.
        attempts = ids(database, "SELECT run_id FROM keeper_event WHERE kind = 'attempt'")
        mine = ids(postgresql, f"SELECT run_id FROM runs WHERE pipeline_name = '{job}'")  # noqa: S608
        assert attempts
        assert attempts <= mine


def ids(url: sa.URL, query: str) -> set[str]:
    """What a query finds in a database of PostgreSQL."""
    engine = sa.create_engine(url.set(drivername="postgresql+psycopg"))
    with engine.connect() as connection:
        found = connection.scalars(sa.text(query)).all()
    engine.dispose()
    return set(found)


def runs(url: sa.URL, job: str = "restart_orphans") -> int:
    """How many runs of a job that succeeded Dagster has in PostgreSQL."""
    engine = sa.create_engine(url.set(drivername="postgresql+psycopg"))
    if not sa.inspect(engine).has_table("runs"):  # Dagster is only about to make it
        engine.dispose()
        return 0
    query = "SELECT count(*) FROM runs WHERE pipeline_name = :job AND status = :status"
    with engine.connect() as connection:
        found = connection.scalar(sa.text(query), {"job": job, "status": "SUCCESS"})
    engine.dispose()
    return int(found or 0)
