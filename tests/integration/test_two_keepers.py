"""Two keepers in one deployment: a group of the same name, and resources of the same ids.

Both are in one code location, or each in a location of its own, on one Dagster instance. What one
of them does, reports, keeps and warns of is never taken for the other's.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import dagster as dg
import pytest
import sqlalchemy as sa

from dagster_amoro.asset_keys import DEFAULT, KEEPER_TAG, LEDGER_TAG, Names, Translation
from dagster_amoro.code_location import alert_sensor_of
from dagster_amoro.config import AuditSettings
from dagster_amoro.core.alerts import Alert
from dagster_amoro.core.policy import RunState
from dagster_amoro.defs.sensor import run_states
from dagster_amoro.healing import openmetrics
from dagster_amoro_audit.what_if.kept_advice import ADVICE
from tests.helpers.daemons import Daemons, daemons
from tests.helpers.databases import administering
from tests.helpers.fleet import Fleet, fleet
from tests.helpers.locations import location, lose_a_worker

pytestmark = pytest.mark.long

EAST, WEST = Names(keeper="east"), Names(keeper="west")


@dataclass
class Two:
    """The two, on one instance."""

    east: Fleet
    west: Fleet

    def everybody_dies(self) -> None:
        """The same resources of the same group, in both, at the same time."""
        for world in (self.east, self.west):
            for name in ("w-1", "w-2"):
                world.worker(name)
            assert world.tick() == []

    def later(self) -> tuple[list[dg.RunRequest], list[dg.RunRequest]]:
        """A grace period goes by: what both request."""
        return self.east.later().tick(), self.west.later().tick()


@contextmanager
def another_database(url: sa.URL) -> Iterator[sa.URL]:
    """A second database on the server of the first."""
    name = f"west_{uuid4().hex}"
    with administering(url) as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    yield url.set(database=name)
    with administering(url) as connection:
        connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=["sqlite", "postgresql"])
def two(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Two]:
    """Two keepers of equal fleets, in one code location."""
    for name in ("east", "west"):
        (tmp_path / name).mkdir()
    url: sa.URL | None = None
    if request.param != "sqlite":
        url = request.getfixturevalue(f"{request.param}_url")
    with (
        another_database(url) if url else nullcontext(None) as west_url,
        fleet(tmp_path / "east", url=url, max_retries=0) as east,
        fleet(tmp_path / "west", url=west_url) as west,
    ):
        east.names, west.names = EAST, WEST
        west.instance = east.instance
        both = dg.Definitions.merge(east.definitions, west.definitions)
        east.shared = west.shared = both
        yield Two(east, west)


def groups_of(instance: dg.DagsterInstance, names: Names) -> list[str]:
    """The partitions that a keeper has made."""
    return list(instance.get_dynamic_partitions(names.groups.name or ""))


def test_one_location_holds_both(two: Two) -> None:
    """Nothing that Dagster tells apart by its name has the same name."""
    made = two.east.definitions
    dg.Definitions.validate_loadable(made)
    names = [
        *(job.name for job in made.resolve_all_job_defs()),
        *(each.name for each in made.sensors or ()),
        *(each.name for each in made.schedules or ()),
        *(made.resources or {}),
    ]
    own = [name for name in names if not name.startswith("__")]
    assert {name.partition("_")[0] for name in own} == {"east", "west"}
    keys = made.resolve_asset_graph().get_all_asset_keys()
    assert {key.path[0] for key in keys} == {"east", "west"}
    assert len(keys) % 2 == 0


def test_the_default_name_changes_nothing(tmp_path: Path) -> None:
    """Whoever has one keeper keeps the names that dashboards and alerts know."""
    with fleet(tmp_path) as world:
        made = world.definitions
        jobs = {job.name for job in made.resolve_all_job_defs()}
        assert {"restart_orphans", "scale_up_groups", "keeper_status", "prune", "what_if"} <= jobs
        assert {each.name for each in made.sensors or ()} >= {"orphan_sensor", "audit_sensor"}
        assert {"history_io_manager", "frame_io_manager"} <= set(made.resources or {})
        keys = {key.to_user_string() for key in made.resolve_asset_graph().get_all_asset_keys()}
        assert {"amoro/resource", "amoro/optimizer", "orphan_events", "orphan_history"} <= keys
        assert DEFAULT.groups.name == "optimizer_group"
        assert DEFAULT.run_tags == {}


def test_runs_and_claims_are_apart(two: Two) -> None:
    """Both heal what died at the same time; neither run takes up anything of the other."""
    two.everybody_dies()
    (of_east,), (of_west,) = two.later()
    assert (of_east.job_name, of_west.job_name) == ("east_restart_orphans", "west_restart_orphans")
    assert of_east.run_key != of_west.run_key
    assert (of_east.tags[KEEPER_TAG], of_west.tags[KEEPER_TAG]) == ("east", "west")
    assert of_east.tags[LEDGER_TAG] != of_west.tags[LEDGER_TAG]
    assert two.west.launch(of_west).success
    assert sorted(two.west.container.requested) == ["w-1", "w-2"]
    assert two.east.container.requested == []
    assert [each.attempts for each in two.east.incidents()] == [0, 0]
    result = two.east.launch(of_east)
    assert not result.success  # it has no attempts, so both are given up
    assert [str(each.state) for each in two.east.incidents()] == ["exhausted", "exhausted"]
    assert [str(each.state) for each in two.west.incidents()] == ["waiting", "waiting"]
    assert len(two.west.resources()) == 2


def test_a_key_of_another_ledger_is_not_taken_for_ours(two: Two) -> None:
    """A run under the same key, such as that of an older ledger, says nothing of our dispatch."""
    two.everybody_dies()
    (of_east,), _ = two.later()
    run = two.east.submit(of_east, dg.DagsterRunStatus.FAILURE)
    ask: Callable[[Fleet], object] = lambda world: run_states(  # noqa: E731
        two.east.instance, [of_east.run_key or ""], world.services.ledger.identity
    )
    assert ask(two.east) == {of_east.run_key: RunState.ENDED}
    assert ask(two.west) == {}
    assert run_states(two.east.instance, [run.run_id], "") == {run.run_id: RunState.ENDED}


def test_histories_and_folders_are_apart(two: Two) -> None:
    """What was given up in one is in its history, in its folder, and in no other."""
    two.everybody_dies()
    (of_east,), (of_west,) = two.later()
    two.east.launch(of_east)
    two.west.launch(of_west)
    two.east.tick()
    for world in (two.east, two.west):
        world.tick()
        assert groups_of(world.instance, world.names) == ["g"]
        _, requests = world.audit()
        assert requests
        for request in requests:
            assert world.refreshed(request).success
    east, west = (world.history("g") for world in (two.east, two.west))
    assert set(east.incidents["outcome"]) == {"exhausted"}
    assert len(east.incidents) == len(west.incidents) == 2
    assert west.incidents["outcome"].isna().all()
    storage = Path(two.east.instance.storage_directory())
    for keeper in ("east", "west"):
        assert (storage / keeper / "orphan_history" / "g" / "position.json").exists()
        assert (storage / keeper / "group_reliability.parquet").exists()
        assert (storage / f"{keeper}_{ADVICE}.parquet").exists()
    assert not (storage / "orphan_history").exists()


def test_checks_are_apart(two: Two) -> None:
    """One warns of what it lost; the other is well, and says so of itself."""
    two.everybody_dies()
    (of_east,), _ = two.later()
    two.east.launch(of_east)
    told_by_east, _ = two.east.audit()
    told_by_west, _ = two.west.audit()
    assert not told_by_east["nothing_given_up"].passed
    assert told_by_west["nothing_given_up"].passed
    assert told_by_east["nothing_given_up"].asset_key == EAST.resources
    assert told_by_west["nothing_given_up"].asset_key == WEST.resources


def test_the_refresh_of_one_does_not_hold_up_that_of_the_other(two: Two) -> None:
    """A run of its own is under way: that is waited for, and only that."""
    two.everybody_dies()
    two.later()
    _, (of_east, *_) = two.east.audit()
    of_east = dg.RunRequest(job_name="east_prune", tags=of_east.tags)  # any job will do
    two.east.submit(of_east)
    two.east.worker("w-3")
    two.east.tick()
    assert two.east.later().audit()[1] == []
    assert two.west.audit()[1] != []


def test_alerts_and_metrics_are_apart(two: Two) -> None:
    """Who is told of a loss in one is sent to its pages; equal alerts of both are two."""
    two.everybody_dies()
    (of_east,), _ = two.later()
    two.east.launch(of_east)
    two.east.tick()
    losses, silences = {}, {}
    for world in (two.east, two.west):
        name, told = world.names.keeper, list[Alert]()
        alerting = alert_sensor_of(world.services, AuditSettings(), told.append, "", world.names)
        assert alerting.name == f"{name}_alert_sensor"
        cursor = None
        for _ in range(2):
            context = dg.build_sensor_context(instance=world.instance, cursor=cursor)
            cursor = alerting.evaluate_tick(context).cursor
            world.later(timedelta(hours=1))
        losses[name] = [each.link for each in told if "given up" in each.title]
        (silences[name],) = (each for each in told if each.title.startswith("survey"))
        text = openmetrics.render(world.services.metrics.read())
        gone = re.findall(r"^dagster_amoro_lost_resources{.*?} (\d)", text, re.MULTILINE)
        assert gone == {"east": ["2"], "west": ["0"]}[name]
    assert losses["east"] == ["/assets/east/orphan_history?view=partitions&partition=g"]
    assert losses["west"] == []
    assert silences["east"].key != silences["west"].key
    assert silences["east"].about != silences["west"].about


# --- Each in a code location of its own, with Dagster's real daemons ------------------------------


@pytest.fixture(params=["sqlite", "postgresql"])
def locations(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Daemons]:
    """East and west in a code location each, on one instance with its real daemons.

    Each has a database of its own: a file, or on a server of PostgreSQL, where each also has a
    code server of its own.
    """
    is_served = request.param == "postgresql"
    urls = {
        n: sa.URL.create("sqlite", database=str(tmp_path / f"{n}.db")) for n in ("east", "west")
    }
    with ExitStack() as stack:
        if is_served:
            urls["east"] = request.getfixturevalue("postgresql_url")
            urls["west"] = stack.enter_context(another_database(urls["east"]))
        files = {name: location(tmp_path, name, url, "true") for name, url in urls.items()}
        for url in urls.values():
            lose_a_worker(url)
        yield stack.enter_context(daemons(tmp_path, files, served=is_served))


def test_in_two_locations_runs_partitions_and_ticks_are_apart(locations: Daemons) -> None:
    """Both die at once, and the daemon of the one deployment looks after both."""
    locations.sense()
    locations.sense()
    runs = locations.instance.get_runs()
    healing = {run.job_name: run for run in runs if run.job_name.endswith("restart_orphans")}
    assert set(healing) == {"east_restart_orphans", "west_restart_orphans"}
    east, west = healing["east_restart_orphans"], healing["west_restart_orphans"]
    assert east.tags[LEDGER_TAG] != west.tags[LEDGER_TAG]
    for name, run in (("east", east), ("west", west)):
        assert run.tags[KEEPER_TAG] == name
        origin = run.remote_job_origin
        assert origin is not None
        assert origin.repository_origin.code_location_origin.location_name == name
    for names in (EAST, WEST):
        assert groups_of(locations.instance, names) == ["g"]


def test_in_two_locations_the_silence_of_one_is_not_covered_by_the_other(
    locations: Daemons,
) -> None:
    """The sensor of west is stopped and looks at nothing; east's is well."""
    locations.stop("west", "west_orphan_sensor")
    locations.sense()
    locations.sense()
    assert locations.passed(dg.AssetCheckKey(EAST.resources, "survey_is_fresh"))
    assert not locations.passed(dg.AssetCheckKey(WEST.resources, "survey_is_fresh"))


# --- How a deployment marks what is ours ----------------------------------------------------------


def test_assets_are_marked_as_the_deployment_wants_it(tmp_path: Path) -> None:
    """Key prefix, group, owners and tags of every asset, tags of every run, and a pool."""
    translation = Translation(
        key_prefix=("lake", "ops"),
        group_name="healing",
        owners=("team:storage",),
        tags={"tier": "1"},
        run_tags={"cost": "ops", "dagster/priority": "3"},
        pool="healing",
    )
    with fleet(tmp_path) as world:
        world.names = Names(keeper="east", translation=translation)
        world.worker()
        world.tick()
        (request,) = world.later().tick()
        assert request.tags["cost"] == "ops"
        assert request.tags["dagster/priority"] == "3"
        graph = world.definitions.resolve_asset_graph()
        for key in graph.get_all_asset_keys():
            node = graph.get(key)
            assert key.path[:3] == ["lake", "ops", "east"]
            assert node.group_name == "healing"
            assert list(node.owners) == ["team:storage"]
            assert node.tags["tier"] == "1"
        job = world.definitions.resolve_job_def("east_restart_orphans")
        assert job.tags["cost"] == "ops"
        assert job.graph.node_named("east_claim_orphans").definition.pools == {"healing"}


def test_nothing_is_marked_unasked(tmp_path: Path) -> None:
    """Owners and tags are those of whoever has them."""
    with fleet(tmp_path) as world:
        graph = world.definitions.resolve_asset_graph()
        for key in graph.get_all_asset_keys():
            assert list(graph.get(key).owners) == []
            assert [tag for tag in graph.get(key).tags if not tag.startswith("dagster/")] == []


@pytest.mark.parametrize("name", ["east-1", "1st", "a b", "a/b", "x" * 41, "ä"])
def test_a_name_that_dagster_would_not_take_is_refused(name: str) -> None:
    """It says which would be right."""
    with pytest.raises(ValueError, match="accepted is a letter, then letters, digits"):
        Names(keeper=name)
