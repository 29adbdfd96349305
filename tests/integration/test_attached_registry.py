"""The registry of a running AMS: in its own tables, and with no more rights than it needs."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest
import sqlalchemy as sa

from dagster_amoro.core.errors import StoreUnavailableError
from dagster_amoro.core.model import Orphan
from dagster_amoro.core.transitions import detect
from dagster_amoro.stores import registry as registry_module
from dagster_amoro.stores.database import Database
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro.stores.registry import Registry, ResourceSnapshot, metadata, resource
from tests.helpers.amoro_schema import create_amoro, insert_group, insert_optimizer, insert_resource

_DOCUMENT: Final = Path(__file__).parents[2] / "docs/amoro.md"
_PASSWORD: Final = "only here"  # noqa: S105 - it opens a database that is thrown away
_REVOKED: Final = {
    "postgresql": ("DROP OWNED BY keeper CASCADE", "DROP ROLE keeper"),
    "mysql": ("DROP DATABASE keeper", "DROP USER keeper"),
}
_FORBIDDEN: Final = (
    "INSERT INTO optimizer (token) VALUES ('t')",
    "UPDATE optimizer SET touch_time = CURRENT_TIMESTAMP",
    "DELETE FROM optimizer",
    "UPDATE resource SET group_name = 'another'",
    "UPDATE resource SET resource_id = 'another'",
    "INSERT INTO resource_group (group_name) VALUES ('another')",
    "DELETE FROM resource_group",
    "SELECT * FROM ha_lease",
    "DROP TABLE optimizer",
    "CREATE INDEX i ON optimizer (resource_id)",
)

OpenDatabase = Callable[..., Database]


@pytest.fixture(params=["postgresql", "mariadb"])
def amoro_url(request: pytest.FixtureRequest) -> sa.URL:
    """A database with AMS's tables, as an administrator reaches it."""
    url: sa.URL = request.getfixturevalue(f"{request.param}_url")
    create_amoro(url)
    return url


@pytest.fixture
def upgraded_url(mariadb_url: sa.URL) -> sa.URL:
    """A database that was upgraded from 0.4, without a primary key in `resource`."""
    create_amoro(mariadb_url, upgraded=True)
    return mariadb_url


def documented_grants(backend: str, database: str) -> list[str]:
    """What an administrator is told to run, for the user keeper of this host."""
    text = _DOCUMENT.read_text(encoding="utf-8")
    found = re.search(rf"<!-- grants {backend}: .*? -->\n```sql\n(.*?)```", text, re.DOTALL)
    assert found is not None, f"{_DOCUMENT} has no grants for {backend}"
    grants = found[1].replace("choose one", _PASSWORD).replace("amoro.", f"{database}.")
    return grants.strip().removesuffix(";").split(";")


@pytest.fixture
def keeper_url(amoro_url: sa.URL) -> Iterator[sa.URL]:
    """The same for a user who may do what the keeper needs, and nothing else."""
    backend = amoro_url.get_backend_name()
    execute(amoro_url, *documented_grants(backend, amoro_url.database or ""))
    yield amoro_url.set(username="keeper", password=_PASSWORD)
    execute(amoro_url, *_REVOKED[backend])


@pytest.fixture
def attached(keeper_url: sa.URL, open_database: OpenDatabase) -> Registry:
    """The registry, attached with no more rights than it needs."""
    return Registry(open_database(keeper_url), None)


def execute(url: sa.URL, *statements: str) -> None:
    """Statements of somebody else, not waiting for locks for long."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    patience = "SET innodb_lock_wait_timeout = 2, lock_wait_timeout = 2"
    if engine.dialect.name == "postgresql":
        patience = "SET lock_timeout = '2 s'"
    with engine.begin() as connection:
        for statement in (patience, *statements):
            connection.exec_driver_sql(statement)


def stored(url: sa.URL) -> list[dict[str, Any]]:
    """All resource rows."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        order = sa.select(resource).order_by(resource.c.resource_id)
        return [dict(row) for row in connection.execute(order).mappings()]


def test_the_tables_have_the_columns_that_the_registry_knows(amoro_url: sa.URL) -> None:
    """Their names are the same, and `optimizer.resource_id` has no index."""
    inspector = sa.inspect(sa.create_engine(amoro_url, poolclass=sa.NullPool))
    for table in metadata.sorted_tables:
        assert {c["name"] for c in inspector.get_columns(table.name)} == set(table.columns.keys())
    indexed = [index["column_names"] for index in inspector.get_indexes("optimizer")]
    assert indexed == [["group_name"]]


def test_a_survey_finds_the_orphans_of_ams(attached: Registry, amoro_url: sa.URL) -> None:
    """With resources, groups, and the rows as AMS wrote them; widths do not matter."""
    group, container = "g" * 50, "c" * 100
    properties = {"memory": "2048", "ä": "/\x1f"}
    insert_group(amoro_url, group, properties)
    for resource_id in ("orphan", "alive", "x" * 100):
        columns = {"group_name": group, "container_name": container}
        insert_resource(amoro_url, resource_id, properties=properties, **columns)
    insert_optimizer(amoro_url, "alive", group_name=group)
    insert_optimizer(amoro_url, None)
    survey = attached.read_snapshot()
    assert (survey.resources, survey.groups, survey.expired) == (3, (group,), 0)
    text = '{"memory":"2048","ä":"/\\u001F"}'
    assert survey.orphans == {
        name: Orphan(name, group, container, 2, 0, text) for name in ("orphan", "x" * 100)
    }
    assert attached.present(["orphan", "alive", "gone"]) == {"orphan", "alive"}


def test_a_look_keeps_the_whole_row_of_ams(attached: Registry, amoro_url: sa.URL) -> None:
    """Every column, in a form that JSON keeps; as the survey has it."""
    insert_resource(amoro_url, "r")
    seen_resource = attached.read_resource("r")
    assert seen_resource.row is not None
    kept = json.loads(json.dumps(dict(seen_resource.row)))
    assert datetime.fromisoformat(kept.pop("start_time")).replace(tzinfo=UTC).year > 2000
    assert kept == {
        "resource_id": "r",
        "resource_type": 0,
        "container_name": "local",
        "group_name": "g",
        "thread_count": 2,
        "total_memory": 0,
        "properties": "{}",
    }
    assert seen_resource.orphan == attached.read_snapshot().orphans["r"]
    insert_optimizer(amoro_url, "r")
    assert attached.read_resource("r").registered
    assert attached.read_resource("gone") == ResourceSnapshot()


def test_startup_properties_are_saved_and_orphans_removed(
    attached: Registry, amoro_url: sa.URL
) -> None:
    """Only `properties` of that one row change; a registered resource stays."""
    for resource_id in ("a", "b"):
        insert_resource(amoro_url, resource_id, properties='{"k": 1}')
    before = stored(amoro_url)
    assert attached.save_startup("a", '{"k": 1}', {"pid": "7"})
    before[0]["properties"] = '{"k":"1","pid":"7"}'
    assert stored(amoro_url) == before
    assert not attached.save_startup("a", '{"k": 1}', {"pid": "8"})
    assert not attached.remove_orphan("a", '{"k": 1}')
    insert_optimizer(amoro_url, "b")
    assert not attached.remove_orphan("b", '{"k": 1}')
    assert stored(amoro_url) == before
    assert attached.remove_orphan("a", '{"k":"1","pid":"7"}')
    assert stored(amoro_url) == before[1:]


@pytest.mark.parametrize(
    "columns",
    [
        {"properties": {"memory": "2048", "ä": "/\x1f"}},
        {"properties": "[ not what it should be", "start_time": datetime(2024, 2, 29, 23, 59, 59)},  # noqa: DTZ001
        {"properties": None, "group_name": None, "container_name": None, "thread_count": None},
        {"resource_type": None, "total_memory": None, "properties": ""},
        {"resource_type": 127, "total_memory": 2**62, "thread_count": -(2**31)},
        {
            "container_name": "\U0001f600" * 100,
            "group_name": "é" * 50,
            "properties": '{ "a" : 1.50 }',
        },
    ],
    ids=",".join,
)
def test_a_row_is_put_back_as_ams_wrote_it(
    attached: Registry, amoro_url: sa.URL, columns: dict[str, Any]
) -> None:
    """Every column of it, by way of the JSON that the ledger keeps; beside all the others."""
    insert_resource(amoro_url, "another")
    insert_resource(amoro_url, "r", **columns)
    before = stored(amoro_url)
    row = attached.read_resource("r").row
    assert row is not None
    kept = json.loads(json.dumps(dict(row)))
    assert not attached.restore(kept)
    assert attached.remove_orphan("r", row["properties"])
    assert len(stored(amoro_url)) == 1
    assert attached.restore(kept)
    assert stored(amoro_url) == before
    assert attached.read_resource("r").row == row


@pytest.mark.parametrize("zone", ["-05:00", "+09:00"])
def test_a_row_is_put_back_where_ams_has_a_zone_of_its_own(
    attached: Registry, amoro_url: sa.URL, zone: str
) -> None:
    """What was read in one zone of the server is written in the same."""
    insert_resource(amoro_url, "r", start_time=datetime(2024, 7, 1, 2, 30))  # noqa: DTZ001
    with server_in(zone, amoro_url):
        attached.database.close()  # sessions that began before keep their zone
        row = attached.read_resource("r").row
        assert row is not None
        before = stored(amoro_url)
        assert attached.remove_orphan("r", "{}")
        assert attached.restore(row)
        assert stored(amoro_url) == before
    attached.database.close()


def test_a_time_of_zeros_is_one_like_any_other(
    mariadb_url: sa.URL, open_database: OpenDatabase
) -> None:
    """As MySQL and MariaDB may hold one: it is older than all others, and it is put back."""
    create_amoro(mariadb_url)
    insert_resource(mariadb_url, "r", start_time="0000-00-00 00:00:00")
    attached = Registry(open_database(mariadb_url), None)
    since = attached.newest_starts(["g"])
    assert attached.new_resources(since) == []
    row = attached.read_resource("r").row
    assert row is not None
    assert attached.remove_orphan("r", "{}")
    assert attached.restore(row)
    assert attached.read_resource("r").row == row
    insert_resource(mariadb_url, "new")
    assert [each.resource_id for each in attached.new_resources(since)] == ["new"]


@contextmanager
def server_in(zone: str, url: sa.URL) -> Iterator[None]:
    """A server whose new sessions have this time zone."""
    before, after = f"SET GLOBAL time_zone = '{zone}'", "SET GLOBAL time_zone = 'SYSTEM'"
    if url.get_backend_name() == "postgresql":
        before = f"ALTER DATABASE {url.database} SET timezone = '{zone}'"
        after = f"ALTER DATABASE {url.database} RESET timezone"
    execute(url, before)
    yield
    execute(url, after)


def test_newcomers_are_known_by_the_times_of_ams(attached: Registry, amoro_url: sa.URL) -> None:
    """As its database writes them; only the groups that are asked about, and registered or not."""
    long_ago = datetime(2020, 1, 1)  # noqa: DTZ001 - as the database has it
    insert_resource(amoro_url, "old", start_time=long_ago)
    insert_resource(amoro_url, "in h", group_name="h", start_time=long_ago)
    since = attached.newest_starts(["g", "h", "none"])
    assert since == {"g": "2020-01-01 00:00:00", "h": "2020-01-01 00:00:00"}
    assert attached.new_resources(since) == []
    for resource_id in ("new", "there"):
        insert_resource(amoro_url, resource_id)
    insert_optimizer(amoro_url, "there")
    insert_resource(amoro_url, "in another", group_name="another")
    found = {each.resource_id: each for each in attached.new_resources(since)}
    assert {name: (each[1:3], each.registered) for name, each in found.items()} == {
        "new": (("g", 2), False),
        "there": (("g", 2), True),
    }
    newest = attached.newest_starts(["g"])
    assert newest["g"] == max(each.start_time for each in found.values()) > since["g"]
    assert attached.new_resources(newest) == []


def test_a_survey_of_a_group_of_ams(attached: Registry, amoro_url: sa.URL) -> None:
    """Its orphans, its size and its threads, with the rights that the keeper has."""
    insert_group(amoro_url, "g", {"min-parallelism": "8"})
    for resource_id in ("a", "b"):
        insert_resource(amoro_url, resource_id)
    insert_optimizer(amoro_url, "a", thread_count=3)
    survey = attached.read_group_snapshot("g")
    assert (survey.resources, list(survey.orphans), survey.live) == (2, ["b"], {"g": 3})
    assert list(survey.sized) == list(attached.sized_groups()) == ["g"]
    assert attached.group("g") == survey.sized["g"]
    assert attached.resource_counts() == {"g": 2}


def test_the_ledger_has_a_place_of_its_own(
    keeper_url: sa.URL, amoro_url: sa.URL, open_database: OpenDatabase
) -> None:
    """The same user keeps it: in its schema of PostgreSQL, in its database of MySQL."""
    before = sa.inspect(sa.create_engine(amoro_url, poolclass=sa.NullPool)).get_table_names()
    on_mysql = keeper_url.get_backend_name() == "mysql"
    ledger = Ledger(
        open_database(keeper_url.set(database="keeper") if on_mysql else keeper_url, "ledger")
    )
    opened = ledger.apply(detect(Orphan("r", "g", "local", 2, 0, "{}"), datetime.now(UTC)))
    assert ledger.open_incidents() == [opened]
    inspector = sa.inspect(sa.create_engine(amoro_url, poolclass=sa.NullPool))
    assert inspector.get_table_names() == before


@pytest.mark.parametrize("statement", _FORBIDDEN)
def test_nothing_else_is_allowed(attached: Registry, statement: str) -> None:
    """So whatever the other tests do, they do without it."""
    with (
        pytest.raises(StoreUnavailableError, match=r"denied|must be owner"),
        attached.database.writing() as connection,
    ):
        connection.exec_driver_sql(statement)


def test_transactions_read_what_is_committed(attached: Registry, amoro_url: sa.URL) -> None:
    """As those of AMS; a repeatable read would miss who registered meanwhile."""
    count = sa.text("SELECT count(*) FROM optimizer")
    for way in (attached.database.reading, attached.database.writing):
        with way() as connection:
            before = connection.scalar(count)
            insert_optimizer(amoro_url, None)
            assert connection.scalar(count) == (before or 0) + 1


def work_of_ams(url: sa.URL) -> None:
    """Heartbeats, a registration, a new resource and an expiry, as AMS writes them."""
    execute(url, "UPDATE optimizer SET touch_time = '2026-01-01'")
    insert_optimizer(url, None)
    insert_resource(url, "new")
    execute(url, "DELETE FROM optimizer")


def test_ams_is_not_held_up_by_a_rehearsal(attached: Registry, amoro_url: sa.URL) -> None:
    """Its row is locked for a moment, which AMS waits for; all others are not."""
    insert_resource(amoro_url, "r")
    insert_optimizer(amoro_url, "another")

    sa.event.listen(attached.database.engine, "rollback", lambda _: work_of_ams(amoro_url))
    assert attached.rehearse("r", "{}")
    assert len(stored(amoro_url)) == 2
    execute(amoro_url, "DELETE FROM resource WHERE resource_id = 'r'")


@pytest.mark.parametrize("act", ["save", "remove"])
def test_ams_is_not_held_up(attached: Registry, amoro_url: sa.URL, act: str) -> None:
    """Right before a write of ours is committed, heartbeats and registrations go on."""
    insert_resource(amoro_url, "r")
    insert_optimizer(amoro_url, "another")

    sa.event.listen(attached.database.engine, "commit", lambda _: work_of_ams(amoro_url))
    saved = act == "save" and attached.save_startup("r", "{}", {"pid": "7"})
    assert saved or attached.remove_orphan("r", "{}")
    assert len(stored(amoro_url)) == (2 if saved else 1)


# --- Upgraded databases -----------------------------------------------------------------------


def test_rows_without_an_id_are_no_orphans(
    upgraded_url: sa.URL, open_database: OpenDatabase
) -> None:
    """They are counted, and left alone."""
    for _ in range(2):
        insert_resource(upgraded_url, None)
    insert_optimizer(upgraded_url, None)
    survey = Registry(open_database(upgraded_url), None).read_snapshot()
    assert (survey.resources, survey.orphans) == (2, {})


def test_an_id_that_stands_in_several_rows_is_left_alone(
    upgraded_url: sa.URL, open_database: OpenDatabase
) -> None:
    """It is reported with the number of its rows, and none of them is changed or removed."""
    attached = Registry(open_database(upgraded_url), None)
    for resource_id in ("once", "thrice", "thrice", "thrice"):
        insert_resource(upgraded_url, resource_id)
    orphans = attached.read_snapshot().orphans
    assert {name: orphan.copies for name, orphan in orphans.items()} == {"once": 1, "thrice": 3}
    assert attached.read_resource("thrice").orphan == orphans["thrice"]
    assert attached.present(["once", "thrice"]) == {"once", "thrice"}
    before = stored(upgraded_url)
    assert not attached.save_startup("thrice", "{}", {"pid": "7"})
    assert not attached.remove_orphan("thrice", "{}")
    assert stored(upgraded_url) == before
    assert attached.save_startup("once", "{}", {"pid": "7"})
    assert attached.remove_orphan("once", '{"pid":"7"}')
    insert_optimizer(upgraded_url, "thrice")
    assert attached.read_snapshot().orphans == {}
    assert attached.read_resource("thrice").orphan is None


# --- How the survey asks ----------------------------------------------------------------------


def test_mariadb_is_told_to_join_by_a_hash_table(
    mariadb_url: sa.URL, open_database: OpenDatabase
) -> None:
    """For the one statement only; by default it would compare each row with each."""
    create_amoro(mariadb_url)
    for resource_id in ("a", "b"):
        insert_resource(mariadb_url, resource_id)
        insert_optimizer(mariadb_url, resource_id)
    database = open_database(mariadb_url)
    with anti_joins(database) as sent:
        Registry(database, None).read_snapshot()
    settings, _, query = sent[0].partition(" FOR ")
    with database.reading() as connection:
        assert "BNLH" in str(connection.exec_driver_sql(f"{settings} FOR EXPLAIN {query}").all())
        assert "BNLH" not in str(connection.exec_driver_sql(f"EXPLAIN {query}").all())


def test_where_our_own_index_is_the_index_is_used(
    database_url: sa.URL, open_database: OpenDatabase
) -> None:
    """In standalone mode every database is asked the same."""
    database = open_database(database_url)
    with anti_joins(database) as sent:
        Registry(database, timedelta(minutes=1)).read_snapshot()
    assert [statement.split()[0] for statement in sent] == ["SELECT"]


@contextmanager
def anti_joins(database: Database) -> Iterator[list[str]]:
    """Collects the statements that join."""
    sent: list[str] = []

    def note(*arguments: Any) -> None:  # noqa: ANN401 - of SQLAlchemy's hook
        if "LEFT OUTER JOIN optimizer" in arguments[2]:
            sent.append(arguments[2])

    sa.event.listen(database.engine, "before_cursor_execute", note)
    yield sent
    sa.event.remove(database.engine, "before_cursor_execute", note)


def test_the_check_finds_every_right(attached: Registry) -> None:
    """The documented grants are enough for it, and for what it stands for."""
    assert registry_module.missing_rights(attached.database) == {}


def test_the_check_names_the_rights_that_are_missing(amoro_url: sa.URL, attached: Registry) -> None:
    """With what the database says, so that the administrator knows what to grant."""
    grantee = "keeper"
    execute(amoro_url, f"REVOKE DELETE, INSERT ON resource FROM {grantee}")
    refused = registry_module.missing_rights(attached.database)
    assert list(refused) == ["remove rows of resource", "restore rows of resource"]
    assert all("denied" in reason for reason in refused.values())


@pytest.mark.parametrize("right", ["UPDATE", "DELETE"])
def test_a_right_that_a_restart_may_need_is_missed_before_anything_is_done(
    amoro_url: sa.URL, attached: Registry, right: str
) -> None:
    """Nothing to act on is read without it, and no restart begins; what is only shown, is."""
    insert_resource(amoro_url, "r")
    assert attached.read_snapshot(to_act=True).orphans.keys() == {"r"}
    assert attached.rehearse("r", "{}")
    of_column = " (properties)" if right == "UPDATE" else ""
    execute(amoro_url, f"REVOKE {right}{of_column} ON resource FROM keeper")
    attached.database.close()
    for look in (lambda: attached.read_snapshot(to_act=True), lambda: attached.rehearse("r", "{}")):
        with pytest.raises(StoreUnavailableError, match=r"cannot be written: .*denied"):
            look()
    assert attached.read_snapshot().orphans.keys() == {"r"}
    assert attached.read_resource("r").orphan is not None


@pytest.mark.parametrize("right", registry_module._RIGHTS)
def test_the_check_changes_nothing(attached: Registry, amoro_url: sa.URL, right: str) -> None:
    """Even if somebody committed what it does; there are rows that it could have touched."""
    for resource_id in ("a", "b"):
        insert_resource(amoro_url, resource_id)
    before = stored(amoro_url)
    with attached.database.writing() as connection:
        connection.execute(registry_module._RIGHTS[right])
    assert stored(amoro_url) == before


def test_the_owner_of_amoro_s_tables_may_grant_what_is_needed(
    postgresql_url: sa.URL, open_database: OpenDatabase
) -> None:
    """No superuser, but one who may create roles, as the page says."""
    create_amoro(postgresql_url)
    tables = ", ".join(table.name for table in metadata.sorted_tables)
    execute(
        postgresql_url,
        "CREATE ROLE owner_of_amoro LOGIN CREATEROLE",
        "ALTER DATABASE postgres OWNER TO owner_of_amoro",
        "ALTER SCHEMA public OWNER TO pg_database_owner",  # as in any new database
        *(f"ALTER TABLE {name} OWNER TO owner_of_amoro" for name in tables.split(", ")),
    )
    owner = postgresql_url.set(username="owner_of_amoro")
    try:
        execute(owner, *documented_grants("postgresql", "postgres"))
        keeper = postgresql_url.set(username="keeper", password=_PASSWORD)
        assert registry_module.missing_rights(open_database(keeper)) == {}
        execute(owner, *_REVOKED["postgresql"])
    finally:
        execute(
            postgresql_url,
            "ALTER DATABASE postgres OWNER TO postgres",
            "DROP OWNED BY owner_of_amoro CASCADE",
            "DROP ROLE owner_of_amoro",
        )
