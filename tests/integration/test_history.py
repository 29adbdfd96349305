"""The audit of a group: what the ledger tells is in its files, whatever went wrong between."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pandas as pd
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from upath import UPath

from dagster_amoro.asset_keys import DEFAULT, EVENTS, HISTORY, OPTIMIZERS, RESOURCES
from dagster_amoro.core.errors import StoreUnavailableError
from dagster_amoro.core.model import Event, EventKind
from dagster_amoro.core.policy import OnExhausted
from dagster_amoro.stores.database import Database
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro.stores.schema import event
from dagster_amoro_audit import history_store as storage
from dagster_amoro_audit import refresh as refreshing
from dagster_amoro_audit.frames import History
from dagster_amoro_audit.history_store import HistoryFolder
from dagster_amoro_audit.lineage import sources
from dagster_amoro_audit.refresh import Refreshed, refresh
from tests.helpers.fleet import GRACE, START, Fleet, fleet


@pytest.fixture
def world(tmp_path: Path, database_url: sa.URL) -> Iterator[Fleet]:
    """A fleet with three attempts and a grace period of 30 s, on every backend."""
    with fleet(tmp_path, url=database_url) as made:
        yield made


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Fleet]:
    """The same on SQLite."""
    with fleet(tmp_path) as made:
        yield made


def dies_and_recovers(world: Fleet, resource: str = "w-1", group: str = "g") -> None:
    """An incident from its detection to its recovery, after one attempt."""
    world.worker(resource, group)
    world.tick()
    for request in world.later().tick():
        assert world.launch(request).success
    world.register(resource)
    world.later().tick()
    world.release(resource)
    world.dies(resource)


def told(ledger: Ledger, group: str = "g") -> list[tuple[object, ...]]:
    """The events of a group by a query of the test's own."""
    query = sa.text(
        "SELECT event_id, incident_id, kind, message FROM keeper_event WHERE group_name = :group "
        "ORDER BY event_id"
    )
    with ledger.reading() as connection:
        key = group.encode() if connection.dialect.name in {"mysql", "mariadb"} else group
        return [tuple(row) for row in connection.execute(query, {"group": key})]


def stored(history: History) -> list[tuple[object, ...]]:
    """The same from the audit."""
    columns = history.events[["event", "incident", "kind", "message"]].astype(object)
    columns = columns.where(columns.notna(), None)
    return list(columns.itertuples(index=False, name=None))


def update(world: Fleet, group: str = "g") -> Refreshed:
    """A refresh without a run."""
    return refresh(world.services.ledger, world.folder(group), group, world.now)


def materializations(result: dg.ExecuteInProcessResult) -> dict[str, dict[str, object]]:
    """The metadata of each partition that a run refreshed."""
    return {
        str(event.partition): {k: v.value for k, v in event.materialization.metadata.items()}
        for event in result.get_asset_materialization_events()
    }


# --- Lineage and links --------------------------------------------------------------------------


def test_the_lineage_starts_at_amoros_tables(local: Fleet) -> None:
    """From the registry's tables over the ledger to the history; each says what it is."""
    graph = local.definitions.resolve_asset_graph()
    assert graph.get(EVENTS).parent_keys == {RESOURCES, OPTIMIZERS}
    assert graph.get(HISTORY).parent_keys == {EVENTS}
    for key in (RESOURCES, OPTIMIZERS, EVENTS, HISTORY):
        node = graph.get(key)
        assert node.description
        assert node.kinds
        assert node.is_external == (key != HISTORY)


def test_tables_say_where_they_are(local: Fleet) -> None:
    """By Dagster's own names for it, so that catalogues find them; without user and password."""
    url = sa.make_url("postgresql+psycopg://amoro:hunter2@db:5432/lake?sslmode=require")
    described = {spec.key: spec.metadata for spec in sources(DEFAULT, url, url)}
    assert described[RESOURCES]["dagster/table_name"] == "lake.resource"
    assert described[RESOURCES]["dagster/uri"] == "postgresql://db:5432/lake"
    assert described[EVENTS]["dagster/table_name"] == "lake.keeper_event"
    assert "hunter2" not in str(described)
    file = local.services.registry.database.url.database
    node = local.definitions.resolve_asset_graph().get(OPTIMIZERS)
    assert node.metadata["dagster/uri"] == f"sqlite:///{file}"


def test_the_sensor_counts_what_happened_in_each_group(local: Fleet) -> None:
    """By what happened; groups are left alone where nothing did, or orphans only went to a run."""
    local.worker("a-1", "a")
    local.worker("b-1", "b")
    local.tick()
    for request in local.later().tick():
        local.launch(request)
    local.register("a-1")
    local.tick()
    local.worker("b-2", "b")
    local.tick()
    records = local.instance.fetch_materializations(EVENTS, limit=100).records
    metadata = [(r.partition_key, r.asset_materialization.metadata) for r in records[::-1]]  # type: ignore[union-attr]
    counts = [
        (key, {name: value.value for name, value in of.items() if value.value})
        for key, of in metadata
    ]
    assert counts == [
        ("a", {"new events": 1, "detected": 1}),
        ("b", {"new events": 1, "detected": 1}),
        ("a", {"new events": 4, "attempts": 1, "recovered": 1}),
        ("b", {"new events": 3, "attempts": 1}),
        ("b", {"new events": 1, "detected": 1}),
    ]


def test_an_attempt_is_seen_at_the_events_of_its_group_and_in_its_run(local: Fleet) -> None:
    """The observation names the attempt, knows its run, and buries nothing of the history."""
    local.worker("w-1", "a/b")
    local.tick()
    (request,) = local.later().tick()
    result = local.launch(request)
    assert local.instance.fetch_observations(HISTORY, limit=10).records == []
    (record,) = local.instance.fetch_observations(EVENTS, limit=10).records
    observation = record.asset_observation
    assert observation is not None
    assert (record.run_id, record.partition_key) == (result.run_id, "a%2Fb")
    metadata = {key: value.value for key, value in observation.metadata.items()}
    assert metadata.pop("result", "").startswith("w-1")  # type: ignore[union-attr]
    assert "attempt 2 of 3" in str(metadata.pop("next"))
    assert str(metadata.pop("orphaned since")).endswith("UTC")
    assert metadata.pop("recording-launch") == "2"
    assert metadata == {
        "resource": "w-1",
        "container": "recording",
        "incident": "1",
        "attempt": "1 of 3",
    }


def test_giving_up_and_failing_are_seen_and_doing_nothing_is_not(tmp_path: Path) -> None:
    """Also where the step fails; an orphan that came back meanwhile is none of it."""
    with fleet(tmp_path, max_retries=0, grace=timedelta(0)) as world:
        world.worker("w-1")
        (request,) = world.tick()
        assert not world.launch(request).success
        world.worker("w-2")
        (request,) = world.tick()
        world.register("w-2")
        assert world.launch(request).success
        records = world.instance.fetch_observations(EVENTS, limit=10).records
    (observation,) = [record.asset_observation for record in records]
    assert observation is not None
    assert observation.metadata["resource"].value == "w-1"
    assert "next" not in observation.metadata


# --- Content ------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_history_is_what_the_ledger_tells(world: Fleet) -> None:
    """Incident by incident and event by event, refresh after refresh, on every backend."""
    for number in range(3):
        dies_and_recovers(world, f"w-{number}")
        world.worker(f"other-{number}", "another group")
        assert world.refresh("g").success
        history = world.history("g")
        assert stored(history) == told(world.services.ledger)
        incidents = {i.incident_id: i for i in world.incidents() if i.group_name == "g"}
        assert history.incidents["incident"].tolist() == sorted(incidents)
        for row in history.incidents.itertuples():
            incident = incidents[int(row.incident)]  # type: ignore[arg-type]
            assert row.detected == incident.detected_at
            assert row.closed == incident.closed_at
            assert (row.outcome, row.attempts) == (str(incident.state), incident.attempts)
            assert row.time_to_recover == 2 * GRACE
            assert row.seconds_to_recover == 2 * GRACE.total_seconds()
            assert (row.grace_seconds, row.max_retries) == (30, 3)
        noted = history.events.dropna(subset=["wanted"])
        assert set(noted["kind"]) == {"detected", "recovered"}
        assert {*history.incidents["group"], *history.events["group"]} == {"g"}


def paused(world: Fleet, group: str | None = "g") -> None:
    """An operator pauses a group, or everything."""
    event = Event(kind=EventKind.PAUSED, at=world.now, message="paused, by ann: upgrade")
    with world.services.ledger.transaction() as ledger:
        ledger.add_event(event, group_name=group)


def test_what_happened_to_a_group_is_in_its_history(world: Fleet) -> None:
    """Beside the stories of its incidents, on every backend; what concerns all is in none."""
    paused(world)
    paused(world, None)
    world.tick()
    assert world.instance.get_dynamic_partitions("optimizer_group") == ["g"]
    metadata = materializations(world.refresh("g"))["g"]
    assert (metadata["dagster/row_count"], metadata["new events"]) == (0, 1)
    dies_and_recovers(world)
    paused(world)
    metadata = materializations(world.refresh("g"))["g"]
    assert (metadata["dagster/row_count"], metadata["new events"]) == (1, 7)
    history = world.history("g")
    assert stored(history) == told(world.services.ledger)
    events = history.events
    assert events["kind"].tolist().count("paused") == 2
    assert events["resource"].isna().tolist() == (events["kind"] == "paused").tolist()


@pytest.mark.long
def test_a_dry_run_is_in_the_history_and_says_so(local: Fleet) -> None:
    """What it would have done, and that it did not do it."""
    local.worker()
    local.services = local.services.in_dry_run()
    local.tick()
    for request in local.later().tick():
        local.launch(request)
    local.refresh("g")
    messages = local.history("g").events["message"]
    assert len(messages) > 3
    assert messages.str.startswith("dry run, nothing is done: ").all()
    assert local.container.requested == []


def test_the_sensor_counts_what_is_kept(local: Fleet) -> None:
    """As it counts what is given up; the numbers can be plotted."""
    policy = replace(local.services.policy, max_retries=0, on_exhausted=OnExhausted.KEEP)
    local.services = replace(local.services, policy=policy)
    local.worker()
    local.tick()
    (request,) = local.later().tick()
    local.launch(request)
    local.tick()
    (record,) = local.instance.fetch_materializations(EVENTS, limit=1).records
    assert record.asset_materialization is not None
    counts = {name: v.value for name, v in record.asset_materialization.metadata.items()}
    assert (counts["kept"], counts["superseded"], counts["exhausted"]) == (1, 0, 0)


def test_what_a_materialization_says(local: Fleet) -> None:
    """How many of what, what is new, how long recovery takes, and the newest incidents."""
    dies_and_recovers(local, "w-1")
    local.refresh("g")
    dies_and_recovers(local, "w-2")
    local.worker("w-3")
    local.tick()
    metadata = materializations(local.refresh("g"))["g"]
    expected = {"dagster/row_count": 3, "open": 1, "recovered": 2, "exhausted": 0}
    expected |= {"new incidents": 2, "new events": 7, "median seconds to recover": 60}
    assert metadata | expected == metadata
    assert metadata["p95 seconds to recover"] == 60
    table = metadata["incidents"]
    assert [record.data["resource"] for record in table.records] == ["w-3", "w-2", "w-1"]  # type: ignore[attr-defined]
    frame = pd.read_parquet(f"{metadata['folder']}/incidents")
    assert frame["resource"].tolist() == ["w-1", "w-2", "w-3"]


def test_a_group_without_incidents_has_an_empty_history(local: Fleet) -> None:
    """It can be refreshed and read; no figure fails for want of rows."""
    local.instance.add_dynamic_partitions("optimizer_group", ["g"])
    metadata = materializations(local.refresh("g"))["g"]
    assert metadata["dagster/row_count"] == 0
    assert "median seconds to recover" not in metadata
    assert local.history("g").incidents.empty


@pytest.mark.long
def test_several_groups_in_one_run(local: Fleet) -> None:
    """Each partition gets its own rows and its own figures."""
    for number, group in enumerate("aabc"):
        dies_and_recovers(local, f"w-{number}", group)
    metadata = materializations(local.refresh("a", "c"))
    counts = {key: told["dagster/row_count"] for key, told in metadata.items()}
    assert counts == {"a": 2, "b": 1, "c": 1}
    for group in "abc":
        assert stored(local.history(group)) == told(local.services.ledger, group)


@pytest.mark.long
def test_a_history_may_be_in_an_object_store(local: Fleet) -> None:
    """Wherever fsspec can write; here it is a dictionary in memory."""
    local.audit_storage = f"memory://audit-{local.instance.root_directory.replace('/', '-')}"
    dies_and_recovers(local)
    assert local.refresh("g").success
    dies_and_recovers(local)
    assert local.refresh("g").success
    assert stored(local.history("g")) == told(local.services.ledger)


@pytest.mark.long
def test_a_first_refresh_comes_in_parts(local: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many fit in; the last may be full or not."""
    for number in range(4):
        dies_and_recovers(local, f"w-{number}")
    total = len(told(local.services.ledger))
    for rows in (1, 5, total - 1, total, total + 1):
        monkeypatch.setattr(refreshing, "_ROWS_AT_ONCE", rows)
        files = HistoryFolder(UPath(local.instance.storage_directory()) / str(rows))
        done = refresh(local.services.ledger, files, "g", local.now)
        assert (done.new_incidents, done.new_events) == (4, total)
        assert done.position.outcomes == {"recovered": 4}
        assert stored(files.load()) == told(local.services.ledger)


@pytest.mark.long
def test_old_days_go_where_a_retention_is_set(local: Fleet) -> None:
    """From the files; the ledger keeps everything."""
    dies_and_recovers(local, "w-1")
    local.refresh("g")
    local.later(timedelta(days=3))
    dies_and_recovers(local, "w-2")
    kept = len(told(local.services.ledger))
    assert materializations(local.refresh("g"))["g"]["dagster/row_count"] == 2
    metadata = materializations(local.refresh("g", retention=timedelta(days=2)))["g"]
    assert (metadata["dagster/row_count"], metadata["new events"]) == (1, 0)
    assert local.history("g").incidents["resource"].tolist() == ["w-2"]
    assert set(local.history("g").events["resource"]) == {"w-2"}
    assert len(told(local.services.ledger)) == kept


# --- Refreshes that go wrong --------------------------------------------------------------------


def test_only_what_is_new_is_read(local: Fleet) -> None:
    """What was stored stays, though the ledger was rid of it meanwhile."""
    dies_and_recovers(local, "w-1")
    local.later(timedelta(hours=1))
    assert update(local).new_events == 6
    before = told(local.services.ledger)
    with local.services.ledger.database.writing() as connection:
        connection.execute(sa.delete(event).where(event.c.event_id < len(before)))
    dies_and_recovers(local, "w-2")
    assert update(local).new_events == 6
    assert stored(local.folder("g").load()) == [*before, *told(local.services.ledger)[1:]]


def test_an_event_that_comes_to_light_late_is_not_lost(world: Fleet) -> None:
    """Its number is lower than that of one which was read: they were committed out of order."""
    dies_and_recovers(world)
    everything = told(world.services.ledger)
    with world.services.ledger.reading() as connection:
        rows = connection.execute(sa.select(event).where(event.c.event_id.in_([3, 5]))).all()
    with world.services.ledger.database.writing() as connection:
        connection.execute(sa.delete(event).where(event.c.event_id.in_([3, 5])))
    assert update(world).new_events == 4
    with world.services.ledger.database.writing() as connection:
        connection.execute(sa.insert(event), [row._asdict() for row in rows])
    world.later(timedelta(hours=1))
    assert update(world).new_events == 2
    assert stored(world.folder("g").load()) == everything
    assert update(world).new_events == 0


def test_a_wiped_folder_is_filled_again(local: Fleet) -> None:
    """The ledger has it all."""
    dies_and_recovers(local)
    local.later(timedelta(hours=1))
    update(local)
    local.folder("g").path.rename(local.folder("g").path.with_name("gone"))
    assert update(local).new_events == 6
    assert stored(local.folder("g").load()) == told(local.services.ledger)


@pytest.mark.long
@pytest.mark.parametrize("incidents", [0, 1, 2, 3])
def test_another_ledger_begins_another_history(
    local: Fleet, tmp_path: Path, incidents: int
) -> None:
    """An empty one, or one that has told less, as much or more; the old files are set aside."""
    dies_and_recovers(local, "w-1")
    dies_and_recovers(local, "w-2")
    local.later(timedelta(hours=1))
    update(local)
    old = stored(local.folder("g").load())
    with fleet(tmp_path / "new") as other:
        other.now = START + timedelta(days=1)
        for number in range(incidents):
            dies_and_recovers(other, f"w-{number}")
        done = refresh(other.services.ledger, local.folder("g"), "g", other.now)
        assert done.is_another_ledger
        assert done.new_events == 6 * incidents
        assert stored(local.folder("g").load()) == told(other.services.ledger)
        again = refresh(other.services.ledger, local.folder("g"), "g", other.now)
        assert not again.is_another_ledger
    (aside,) = [p for p in local.folder("g").path.iterdir() if p.name.startswith("replaced-")]
    assert stored(HistoryFolder(aside).load()) == old


class Writes:
    """Stands in for the one function that writes files, and does something before one of them."""

    def __init__(self, number: int, intrude: Callable[[], object]) -> None:
        self._left = number
        self._intrude = intrude
        self._write = storage.write_whole

    def __call__(self, path: UPath, content: bytes) -> None:
        """Writes, unless the intrusion raises."""
        self._left -= 1
        if self._left == 0:
            self._intrude()
        self._write(path, content)


class Died(Exception):  # noqa: N818 - it happened
    """The process is gone."""


def die() -> None:
    """Ends a refresh in the middle."""
    raise Died


@pytest.mark.long
@pytest.mark.parametrize("write", range(1, 8))
def test_a_refresh_that_died_half_way_is_made_up_for(
    local: Fleet, monkeypatch: pytest.MonkeyPatch, write: int
) -> None:
    """Before any of its files, in any of its parts."""
    monkeypatch.setattr(refreshing, "_ROWS_AT_ONCE", 7)
    for number in range(3):
        dies_and_recovers(local, f"w-{number}")
    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_whole", Writes(write, die))
        with pytest.raises(Died):
            update(local)
    local.later(timedelta(hours=1))
    done = update(local)
    assert stored(local.folder("g").load()) == told(local.services.ledger)
    assert done.position.outcomes == {"recovered": 3}


@pytest.mark.long
@settings(deadline=None, max_examples=15, suppress_health_check=[*HealthCheck])
@given(write=st.integers(1, 9), new=st.booleans(), rows=st.sampled_from([4, 7, 1000]))
def test_two_refreshes_at_once_end_in_the_right_content(
    tmp_path_factory: pytest.TempPathFactory, write: int, rows: int, *, new: bool
) -> None:
    """One runs whole between two writes of the other; it may know more than the other."""
    with fleet(tmp_path_factory.mktemp("world")) as world, pytest.MonkeyPatch.context() as patch:
        patch.setattr(refreshing, "_ROWS_AT_ONCE", rows)
        for number in range(3):
            dies_and_recovers(world, f"w-{number}")

        def other() -> None:
            if new:
                dies_and_recovers(world, "w-9")
            update(world)

        with patch.context() as during:
            during.setattr(storage, "write_whole", Writes(write, other))
            update(world)
        world.later(timedelta(hours=1))
        done = update(world)
        assert stored(world.folder("g").load()) == told(world.services.ledger)
        assert done.position.outcomes == {"recovered": len(world.incidents())}


def test_a_ledger_that_breaks_is_said_to_be_unavailable(local: Fleet) -> None:
    """Without the statement that failed."""
    local.worker("w")
    local.tick()
    local.execute(sa.text("DROP TABLE keeper_event"))
    with pytest.raises(StoreUnavailableError, match="the ledger cannot be read") as failure:
        refresh(local.services.ledger, local.folder("g"), "g", local.now)
    assert "SELECT" not in str(failure.value)


def test_a_ledger_that_is_away_changes_nothing(local: Fleet, tmp_path: Path) -> None:
    """The run fails, after its retries, and what is stored stays."""
    dies_and_recovers(local)
    update(local)
    before = stored(local.folder("g").load())
    (tmp_path / "file").write_text("no database")
    broken = Ledger(Database(sa.URL.create("sqlite", database=str(tmp_path / "file")), "ledger"))
    with pytest.raises(Exception, match="the ledger cannot be"):
        refresh(broken, local.folder("g"), "g", local.now)
    broken.database.close()
    assert stored(local.folder("g").load()) == before
