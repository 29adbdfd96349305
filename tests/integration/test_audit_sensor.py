"""What the audit's sensor tells, and what it does not: real evaluations on a real instance."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster._core.events import DagsterEventType
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus

from dagster_amoro.asset_keys import FLEET, HISTORY, RESOURCES
from dagster_amoro.core.policy import OnExhausted
from dagster_amoro.stores.database import Database
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro.stores.registry import resource_group
from dagster_amoro_audit.audit_sensor import in_rows
from dagster_amoro_audit.group_reliability import KEY
from tests.helpers.fleet import GRACE, Fleet, fleet

MINUTE = timedelta(minutes=1)
DAY = timedelta(days=1)
PAGE = FLEET.to_user_string()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Fleet]:
    """One worker that is well; what there is to tell of it was told."""
    with fleet(tmp_path, max_retries=0) as made:
        made.worker("well")
        made.register("well")
        made.tick()
        made.audit()
        yield made


def told(world: Fleet) -> dict[str, bool]:
    """Which checks an evaluation tells of, and whether they pass."""
    return {name: each.passed for name, each in world.audit()[0].items()}


def requests(world: Fleet) -> int:
    """How many refreshes of more than the page of the fleet an evaluation requests."""
    found = world.audit()[1]
    assert all(request.tags["dagster-amoro/audit"] == "true" for request in found)
    return sum(set(request.asset_selection or ()) != {FLEET} for request in found)


def lost(world: Fleet, name: str) -> None:
    """A worker dies and is given up."""
    world.worker(name)
    world.tick()
    for request in world.later().tick():
        world.launch(request)


def test_everything_is_told_at_first_and_then_once_a_day(tmp_path: Path) -> None:
    """Whoever opens the page sees an answer that is not older than that."""
    with fleet(tmp_path) as world:
        world.tick()
        first = told(world)
        assert len(first) == 8
        assert [name for name, passed in first.items() if not passed] == ["survey_is_fresh"]
        for _ in range(3):
            assert told(world.later(7 * timedelta(hours=1))) == {}
        assert told(world.later(3 * timedelta(hours=1))) == first
        assert told(world.later(MINUTE)) == {}


def test_what_is_told_needs_no_run_and_is_what_the_page_shows(world: Fleet) -> None:
    """The summary of each check has it as its last execution."""
    instance = world.instance
    assert instance.get_runs() == []
    keys = [dg.AssetCheckKey(RESOURCES, name) for name in ("nothing_given_up", "survey_is_fresh")]
    found = instance.event_log_storage.get_latest_asset_check_execution_by_key(keys)
    status = {key.name: record.status for key, record in found.items()}
    assert status == {
        "nothing_given_up": AssetCheckExecutionRecordStatus.SUCCEEDED,
        "survey_is_fresh": AssetCheckExecutionRecordStatus.FAILED,
    }


def test_what_changes_by_time_alone_is_told(world: Fleet) -> None:
    """Nobody restarts an orphan: it is overdue, without any news of it."""
    world.worker("stuck")
    world.tick()
    assert told(world.later(GRACE)) == {}
    assert told(world.later(MINUTE)) == {"no_incident_overdue": False}
    assert told(world.later(MINUTE)) == {}
    world.register("stuck")
    world.tick()
    assert told(world) == {"no_incident_overdue": True}


def test_what_was_given_up_is_told_when_it_changes(world: Fleet) -> None:
    """It stays red until somebody has seen to it, and is not repeated meanwhile."""
    lost(world, "first")
    found, _ = world.audit()
    assert "first" in (found["nothing_given_up"].description or "")
    assert told(world.later(MINUTE)) == {}
    lost(world, "second")
    found, _ = world.audit()
    assert "first" in (found["nothing_given_up"].description or "")
    assert not found["nothing_given_up"].passed
    assert "nothing_given_up" not in told(world.later(MINUTE))
    for name in ("first", "second"):
        world.services.operations.acknowledge(name, author="ann", reason="looking into it")
    assert told(world.later(MINUTE))["nothing_given_up"]


def test_an_answer_with_other_names_is_another_one(world: Fleet) -> None:
    """The check fails already, and somebody has to hear of the second group as well."""
    for name in ("a", "b"):
        row = {"group_name": name, "container_name": "recording"}
        row |= {"properties": '{"min-parallelism":"3"}'}
        world.execute(sa.insert(resource_group).values(row))
        assert told(world) == {"groups_at_min_parallelism": False}
        assert told(world) == {}


def test_stores_that_are_away_keep_no_answer_back_that_needs_none(
    world: Fleet, tmp_path: Path
) -> None:
    """The others stay as they are, and are told when the stores are back."""
    lost(world, "gone")
    services = world.services
    (tmp_path / "file").write_text("no database")
    away = Database(sa.URL.create("sqlite", database=str(tmp_path / "file")), "ledger")
    world.services = replace(services, ledger=Ledger(away))
    assert world.audit() == ({}, [])
    world.audit_cursor = None
    assert told(world.later(MINUTE)) == {"survey_is_fresh": False}
    world.services = services
    assert not told(world)["nothing_given_up"]
    away.close()


def test_the_figures_are_refreshed_when_incidents_begin_end_and_leave_a_window(
    world: Fleet,
) -> None:
    """The last hour, day and week each go on by themselves; in between, nothing is refreshed."""
    assert requests(world) == 0
    world.worker("sick")
    world.tick()
    assert requests(world) == 1
    assert requests(world.later(MINUTE)) == 0
    world.register("sick")
    world.tick()
    assert requests(world) == 1
    days = [(timedelta(hours=1), 1), (DAY, 1), (DAY, 0), (DAY * 5, 1), (DAY * 30, 0)]
    for span, number in days:
        assert requests(world.later(span)) == number
        assert requests(world.later(timedelta(hours=2))) == 0


def test_the_figures_are_refreshed_once_in_a_grace_period(world: Fleet) -> None:
    """However often workers come and go; the history is refreshed each time."""
    for number in range(3):
        world.worker(f"w-{number}")
        world.tick()
        ((assets, *_),) = wanted(world)
        assert assets == {"orphan_history", PAGE} | (
            {"group_reliability"} if number == 0 else set()
        )
    world.later(GRACE)
    assert wanted(world) == [({"group_reliability", PAGE}, None, None, None)]


def test_kept_resources_are_found_among_the_open_ones(tmp_path: Path, database_url: sa.URL) -> None:
    """On every backend."""
    with fleet(tmp_path, url=database_url, max_retries=0) as world:
        policy = replace(world.services.policy, on_exhausted=OnExhausted.KEEP)
        world.services = replace(world.services, policy=policy)
        lost(world, "stuck")
        found, _ = world.audit()
        assert "1 resource out of attempts and kept: stuck" in (
            found["nothing_given_up"].description or ""
        )


@pytest.mark.parametrize(
    "text", ["", "[]", "7", '{"told": {"x": 1}}', '{"counts": [1e999]}', '{"counts": 3}', "eJw="]
)
def test_a_cursor_that_makes_no_sense_costs_one_telling(world: Fleet, text: str) -> None:
    """As the one of another version."""
    world.audit_cursor = text
    assert len(told(world)) == 8
    assert told(world) == {}


def test_a_thousand_groups_without_an_incident_request_no_run(tmp_path: Path) -> None:
    """Each has its partition, and nothing is reported of it."""
    with fleet(tmp_path) as world:
        for number in range(1_000):
            row = {"group_name": f"g-{number}", "container_name": "recording"}
            world.execute(sa.insert(resource_group).values(row))
        for is_first in (True, False, False):
            assert world.tick() == []
            assert wanted(world) == ([({PAGE}, None, None, None)] if is_first else [])
            world.later(MINUTE)
        assert len(world.instance.get_dynamic_partitions("optimizer_group")) == 1_000
        assert world.instance.get_runs() == []


# --- Refreshes ----------------------------------------------------------------------------------


def wanted(world: Fleet) -> list[tuple[set[str], str | None, str | None, str | None]]:
    """Of each refresh: its assets, the partition, or the start and the end of a range."""
    return [
        (
            {key.to_user_string() for key in request.asset_selection or ()},
            request.tags.get("dagster/partition"),
            request.tags.get("dagster/asset_partition_range_start"),
            request.tags.get("dagster/asset_partition_range_end"),
        )
        for request in world.audit()[1]
    ]


def test_a_group_is_refreshed_when_there_is_news_of_it(world: Fleet) -> None:
    """Once, with the figures of all; and no other."""
    world.worker("sick", "a")
    world.worker("fine", "b")
    world.register("fine")
    world.tick()
    assert wanted(world) == [({"orphan_history", "group_reliability", PAGE}, "a", None, None)]
    assert wanted(world.later(MINUTE)) == [({PAGE}, None, None, None)]  # a check turned red
    for request in world.tick():
        world.submit(request)
    assert wanted(world) == []


def test_a_lost_cursor_costs_one_refresh_of_each_group(world: Fleet) -> None:
    """Of those that ever had an event; and none is missed after that."""
    for name in ("a", "b"):
        world.worker(f"sick-{name}", name)
        world.tick()
    world.audit()
    assert wanted(world) == []
    world.audit_cursor = None
    ((assets, *ends),) = wanted(world)
    assert (assets, ends) == ({"orphan_history", "group_reliability", PAGE}, [None, "a", "b"])
    world.worker("other", "b")
    world.tick()
    assert wanted(world) == [({"orphan_history", PAGE}, "b", None, None)]


def test_groups_in_a_row_are_one_run(world: Fleet) -> None:
    """Those apart from them are another; the figures go with the first, the page with the last."""
    for name in ("a", "b", "c", "d"):
        world.group(name)
    world.tick()
    for name in ("a", "b", "d"):
        world.worker(f"sick-{name}", name)
    world.tick()
    assert wanted(world) == [
        ({"orphan_history", "group_reliability"}, None, "a", "b"),
        ({"orphan_history", PAGE}, "d", None, None),
    ]


def test_news_waits_for_a_refresh_that_is_under_way(world: Fleet) -> None:
    """It may have read the ledger before; but for one that was lost, nothing waits for ever."""
    world.worker("sick", "a")
    world.tick()
    (request,) = world.audit()[1]
    run = world.instance.create_run_for_job(
        world.definitions.resolve_implicit_global_asset_job_def(),
        tags=request.tags,
        status=dg.DagsterRunStatus.STARTED,
    )
    world.worker("other", "b")
    world.tick()
    assert wanted(world) == []
    world.instance.report_run_canceled(run)
    assert wanted(world) == [({"orphan_history", PAGE}, "b", None, None)]


def test_a_requested_refresh_goes_through(world: Fleet) -> None:
    """One run for a group and the figures, without any check; and one for a row of groups."""
    world.worker("sick", "a")
    world.tick()
    world.worker("ill", "b")
    world.tick()
    (request,) = world.audit()[1]
    assert world.refreshed(request).success
    records = world.instance.fetch_materializations(HISTORY, limit=10).records
    assert {record.partition_key for record in records} == {"a", "b"}
    assert len(world.instance.fetch_materializations(KEY, limit=10).records) == 1
    assert not world.instance.event_log_storage.get_logs_for_run(
        records[0].run_id, of_type=DagsterEventType.ASSET_CHECK_EVALUATION_PLANNED
    )


@pytest.mark.parametrize(
    ("keys", "rows"),
    [
        ("", []),
        ("c", ["c"]),
        ("cab", ["abc"]),
        ("az", ["a", "z"]),
        ("x" + "?", ["x"]),
        ("acegikmoqsu", ["abcdefghijklmnopqrstu"]),
    ],
)
def test_rows_of_partitions(keys: str, rows: list[str]) -> None:
    """In their order; those that are not there are left out, and too many rows are one."""
    every = [chr(letter) for letter in range(ord("a"), ord("z") + 1)]
    assert ["".join(row) for row in in_rows(keys, every)] == rows
