"""When the audit is refreshed: never too seldom, and not without news."""

from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import pytest

from dagster_amoro_audit.automation import whenever

GROUPS = dg.DynamicPartitionsDefinition(name="optimizer_group")
UP = dg.AssetKey("events")
DOWN = dg.AssetKey("history")


@dg.asset(
    key=DOWN,
    deps=[UP],
    partitions_def=GROUPS,
    automation_condition=whenever(dg.AutomationCondition.any_deps_updated(), "news"),
)
def history() -> None:
    """What is to be refreshed."""


class World:
    """Evaluations of the condition, a minute apart."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance = instance
        self.now = datetime(2026, 10, 25, 0, 59, tzinfo=UTC)
        upstream = dg.AssetSpec(UP, partitions_def=GROUPS)
        self.definitions = dg.Definitions(assets=[upstream, history])
        self.cursor: Any = None

    def news(self, *groups: str) -> None:
        """The sensor reports events of these groups."""
        for group in groups:
            event = dg.AssetMaterialization(UP, partition=group)
            self.instance.report_runless_asset_event(event)

    def refreshed(self, *groups: str) -> None:
        """The runs that were requested are over."""
        for group in groups:
            event = dg.AssetMaterialization(DOWN, partition=group)
            self.instance.report_runless_asset_event(event)

    def requested(self) -> set[str]:
        """Which partitions an evaluation requests."""
        self.now += timedelta(minutes=1)
        result = dg.evaluate_automation_conditions(
            self.definitions,
            self.instance,
            asset_selection=dg.AssetSelection.assets(DOWN),
            evaluation_time=self.now,
            cursor=self.cursor,
        )
        self.cursor = result.cursor
        return {str(partition) for partition in result.get_requested_partitions(DOWN)}


@pytest.fixture
def world() -> World:
    """Two groups, both up to date."""
    found = World(dg.DagsterInstance.ephemeral())
    found.instance.add_dynamic_partitions(GROUPS.name or "", ["a", "b"])
    found.news("a", "b")
    assert found.requested() == {"a", "b"}
    found.refreshed("a", "b")
    assert found.requested() == set()
    return found


def test_a_group_is_refreshed_when_there_is_news_of_it(world: World) -> None:
    """Once, and no other."""
    world.news("a")
    assert world.requested() == {"a"}
    world.refreshed("a")
    assert world.requested() == set()
    assert world.requested() == set()


def test_news_that_comes_during_a_refresh_is_not_forgotten(world: World) -> None:
    """The refresh may have read the ledger before."""
    world.news("a")
    assert world.requested() == {"a"}
    world.news("a")
    world.refreshed("a")
    assert world.requested() == {"a"}
    world.refreshed("a")
    assert world.requested() == set()


def test_a_group_that_is_new_is_refreshed_though_another_is_not(world: World) -> None:
    """Without waiting for anybody."""
    world.instance.add_dynamic_partitions(GROUPS.name or "", ["c", "d"])
    world.news("c")
    assert "c" in world.requested()
