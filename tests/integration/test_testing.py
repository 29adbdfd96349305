"""What people who write containers get: the contract, and a ready fleet."""

import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from dagster_amoro import CommandContainer, Container, Resource, StartFailedError
from dagster_amoro.core.errors import UnknownTargetError
from dagster_amoro.testing import RecordingContainer, check_container, ready_fleet

SLEEP = json.dumps([sys.executable, "-c", "import time; time.sleep(600)", "{resource_id}"])


def command(folder: Path) -> dict[str, str]:
    """The properties of a `CommandContainer` whose workers do nothing for ten minutes."""
    return {"command": SLEEP, "log-dir": str(folder / "logs"), "start-check": "200ms"}


def test_our_own_containers_keep_the_contract(tmp_path: Path) -> None:
    """What is asked of others holds for ours."""
    check_container(RecordingContainer, {})
    check_container(CommandContainer, command(tmp_path))


class Good:
    """Keeps the contract, with the least that it takes."""

    supports_auto_restart: Any = True

    def __init__(self, name: str, properties: Mapping[str, str]) -> None:
        self.name, self.properties = name, properties

    def request_resource(self, resource: Resource) -> Any:  # noqa: ANN401 - subclasses break it
        """Starts nothing."""
        return {"my-id": resource.resource_id}

    def release_resource(self, resource: Resource) -> None:
        """Stops nothing."""


class ChangesProperties(Good):
    """Keeps what it learnt in the configuration."""

    def __init__(self, name: str, properties: Mapping[str, str]) -> None:
        super().__init__(name, properties)
        properties["seen"] = "yes"  # type: ignore[index] # what this class does wrong


class Unsure(Good):
    """Has no opinion on restarts."""

    supports_auto_restart = "yes"


class ReturnsNothing(Good):
    """Forgets what it started."""

    def request_resource(self, resource: Resource) -> None:
        """Returns nothing."""


class ReturnsNumbers(Good):
    """Returns what no row of texts can hold as it is."""

    def request_resource(self, resource: Resource) -> dict[str, int]:  # noqa: ARG002 - the protocol
        """Returns a number."""
        return {"pid": 7}


class ChangesResource(Good):
    """Writes into the resource."""

    def request_resource(self, resource: Resource) -> Mapping[str, str]:
        """Changes its argument."""
        resource.properties["my-id"] = "7"  # type: ignore[index] # what this class does wrong
        return {}


class RefusesTheUnknown(Good):
    """Cannot release what is not there."""

    def release_resource(self, resource: Resource) -> None:
        """Wants its start-up property."""
        resource.properties["my-id"]


class StaysAlive(Good):
    """Says that everything runs, for ever."""

    def status(self, resource: Resource) -> str:  # noqa: ARG002 - the protocol
        """Always running."""
        return "running"


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        (ChangesProperties, "the constructor changes the properties"),
        (Unsure, "supports_auto_restart is 'yes', neither True nor False"),
        (ReturnsNothing, "request_resource returns NoneType, not a mapping"),
        (ReturnsNumbers, "request_resource returns 'pid': 7; keys and values are texts"),
        (ChangesResource, "request_resource changes the resource's properties"),
        (
            RefusesTheUnknown,
            "release_resource of a resource that was never started raises KeyError",
        ),
        (StaysAlive, "status is 'running'; possible here: ended, unknown"),
    ],
)
def test_what_breaks_the_contract_is_named(wrong: type[Good], problem: str) -> None:
    """Each kind of mistake has its sentence."""
    check_container(Good, {"a": "b"})
    with pytest.raises(AssertionError, match=f"^{problem}"):
        check_container(wrong, {"a": "b"})


def test_what_the_contract_started_is_released_when_a_check_fails() -> None:
    """A test that fails leaves no worker behind."""
    built: list[RecordingContainer] = []

    class Wrong(RecordingContainer):
        def status(self, resource: Resource) -> Any:  # noqa: ANN401, ARG002 - what it does wrong
            """No word of the protocol."""
            built.append(self)
            return "fine"

    with pytest.raises(AssertionError, match="status is 'fine'"):
        check_container(Wrong, {})
    assert built[0].requested
    assert not built[0].running


def test_a_dead_worker_is_restarted(tmp_path: Path) -> None:
    """The test that a container's author writes, with a real process."""
    with ready_fleet(tmp_path, CommandContainer, command(tmp_path)) as fleet:
        first = fleet.start("w-1").properties["command-pid"]
        fleet.register("w-1")
        assert fleet.heal() == []
        fleet.lose("w-1")
        (restart,) = fleet.heal()
        assert (restart.resource_id, restart.outcome) == ("w-1", "started")
        second = fleet.resource("w-1")
        assert second.properties["command-pid"] != first
        assert fleet.container.status(second) == "running"
        fleet.register("w-1")
        assert "1 recovered" in fleet.tick()
    assert fleet.container.status(second) == "ended"


def test_a_worker_that_never_comes_back_is_given_up(tmp_path: Path) -> None:
    """As often as `max_retries` says, then its row and what was started go."""
    with ready_fleet(tmp_path, RecordingContainer, max_retries=2) as fleet:
        fleet.start("w-1", thread_count=3, memory_mb=64, properties={"a": "b"})
        assert fleet.resource("w-1").thread_count == 3
        assert fleet.resource("w-1").properties["a"] == "b"
        outcomes = [restart.outcome for _ in range(4) for restart in fleet.heal()]
        assert outcomes == ["started", "started", "given up"]
        with pytest.raises(UnknownTargetError, match="no resource 'w-1'"):
            fleet.resource("w-1")
    assert not fleet.container.running


def test_a_failed_start_is_told_and_tried_again(tmp_path: Path) -> None:
    """The container's own words stand in the message."""
    with ready_fleet(tmp_path, RecordingContainer) as fleet:
        fleet.start("w-1")
        fleet.container.fail_starts("no room", times=1)
        (failed,) = fleet.heal()
        assert failed.outcome == "failed"
        assert "no room" in failed.message
        fleet.container.fail_starts("no room", times=1)
        with pytest.raises(StartFailedError, match="no room"):
            fleet.start("w-2")
        assert fleet.resource("w-2").resource_id == "w-2"


def test_one_that_opts_out_is_left_alone(tmp_path: Path) -> None:
    """Its orphans are reported."""
    with ready_fleet(tmp_path, RecordingContainer, {"auto-restart": "false"}) as fleet:
        fleet.start("w-1")
        assert fleet.heal() == []
        assert len(fleet.container.requested) == 1


def test_the_clock_is_set_by_the_test(tmp_path: Path) -> None:
    """Nothing is restarted before the grace period has passed, and all after."""
    with ready_fleet(tmp_path, RecordingContainer, grace_period=timedelta(hours=1)) as fleet:
        fleet.start("w-1")
        start = fleet.now
        assert datetime.now(UTC) - start < timedelta(minutes=10)
        fleet.now = start + timedelta(hours=1, minutes=1)
        fleet.tick()
        assert fleet.run() == []
        fleet.now = start + timedelta(hours=1, minutes=50)
        fleet.tick()
        assert fleet.run() == []
        fleet.now = start + timedelta(hours=2, minutes=2)
        fleet.tick()
        assert [restart.outcome for restart in fleet.run()] == ["started"]


def test_types_of_our_containers() -> None:
    """A type checker takes ours where it wants the protocol, and the run time too."""
    container: Container = RecordingContainer()
    assert isinstance(container, Container)
    assert isinstance(Good("c", {}), Container)
