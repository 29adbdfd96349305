"""What people who write containers get: the contract, and a ready fleet."""

import json
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

import psutil
import pytest

from dagster_amoro import CommandContainer, Container, Resource, StartFailedError
from dagster_amoro.core.errors import UnknownTargetError
from dagster_amoro.testing import ContainerContract, RecordingContainer, Trial, ready_fleet

Workers = Callable[[Resource], list[psutil.Process]]
SLEEP = json.dumps([sys.executable, "-c", "import time; time.sleep(600)", "{resource_id}"])


def command(folder: Path) -> dict[str, str]:
    """The properties of a `CommandContainer` whose workers do nothing for ten minutes."""
    return {"command": SLEEP, "log-dir": str(folder / "logs"), "start-check": "200ms"}


def running(argv: list[str]) -> list[psutil.Process]:
    """The processes with this command line."""
    wanted = "\0".join([*argv, ""]).encode()
    found = []
    for process in psutil.process_iter():
        with suppress(OSError, psutil.Error):
            if Path(f"/proc/{process.pid}/cmdline").read_bytes() == wanted:
                found.append(process)
    return found


def kill(processes: list[psutil.Process]) -> None:
    """SIGKILL."""
    for process in processes:
        process.kill()


class TestContractOfCommands(ContainerContract):
    """With real processes."""

    container_class = CommandContainer

    @pytest.fixture
    def properties(self, tmp_path: Path) -> Mapping[str, str]:
        """Those of the other tests here."""
        return command(tmp_path)

    @pytest.fixture
    def hopeless(self, tmp_path: Path) -> Mapping[str, str]:
        """There is no such program."""
        return {**command(tmp_path), "command": '["/no/such/program"]'}

    @pytest.fixture
    def workers(self, tmp_path: Path) -> Callable[[Resource], list[psutil.Process]]:
        """The processes that run a resource's command line."""
        container = CommandContainer("c", command(tmp_path))
        return lambda row: running(container.command(row))

    @pytest.fixture
    def count(self, workers: Workers) -> Callable[[Resource], int]:
        """As the kernel knows them."""
        return lambda row: len(workers(row))

    @pytest.fixture
    def kill(self, workers: Workers) -> Callable[[Resource], object]:
        """SIGKILL."""
        return lambda row: kill(workers(row))


class TestContractOfTheRecordingContainer(ContainerContract):
    """It stands in for others, so it does what they do; but it remembers in its process alone."""

    container_class = RecordingContainer
    test_a_start_that_is_killed_leaves_no_second_worker = None  # type: ignore[assignment]
    test_each_of_its_calls_can_be_a_process_of_its_own = None  # type: ignore[assignment]

    @pytest.fixture
    def recorder(self) -> RecordingContainer:
        """The one that all calls are for."""
        return RecordingContainer()

    @pytest.fixture
    def build(self, recorder: RecordingContainer) -> Callable[[], Container]:
        """Whoever builds one gets the same."""
        return lambda: recorder

    @pytest.fixture
    def hopeless(self) -> Mapping[str, str]:
        """It fails as it is told."""
        return {"fail-starts": "no room"}

    @pytest.fixture
    def count(self, recorder: RecordingContainer) -> Callable[[Resource], int]:
        """What it pretends to run."""
        return lambda row: int(row.resource_id in recorder.running)

    @pytest.fixture
    def kill(self, recorder: RecordingContainer) -> Callable[[Resource], object]:
        """It pretends this, too."""
        return lambda row: recorder.end(row.resource_id)


class Good:
    """Keeps the contract: workers are entries of a list, each with a launch of its own."""

    supports_auto_restart: Any = True
    workers: ClassVar[dict[str, str]] = {}  # resource ids, by launch

    def __init__(self, name: str, properties: Mapping[str, str]) -> None:
        self.name, self.properties = name, properties

    def request_resource(self, resource: Resource) -> Any:  # noqa: ANN401 - subclasses break it
        """Starts one, and ends what is left of an earlier one."""
        self.release_unsaved(resource)
        launch = uuid4().hex
        self.workers[launch] = resource.resource_id
        return {"my-id": launch}

    def release_resource(self, resource: Resource) -> None:
        """Ends the one that is named."""
        self.workers.pop(resource.properties.get("my-id", ""), None)

    def release_unsaved(self, resource: Resource) -> None:
        """Ends all of a resource."""
        for launch in [key for key, of in self.workers.items() if of == resource.resource_id]:
            del self.workers[launch]

    def status(self, resource: Resource) -> str:
        """Whether the one that is named runs."""
        return "running" if resource.properties.get("my-id") in self.workers else "ended"


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


class ReturnsTooMuch(Good):
    """Returns what belongs in a file."""

    def request_resource(self, resource: Resource) -> dict[str, str]:  # noqa: ARG002 - the protocol
        """Returns a log."""
        return {"log": "x" * 1_000_000}


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


class ReleasesNothing(Good):
    """Believes that workers end by themselves."""

    def release_resource(self, resource: Resource) -> None:
        """Does nothing."""


class StaysAlive(Good):
    """Says that everything runs, for ever."""

    def status(self, resource: Resource) -> str:  # noqa: ARG002 - the protocol
        """Always running."""
        return "running"


class SpeaksFreely(Good):
    """Has words of its own."""

    def status(self, resource: Resource) -> str:  # noqa: ARG002 - the protocol
        """No word of the protocol."""
        return "fine"


class StartsASecond(Good):
    """Knows only what was saved."""

    def release_unsaved(self, resource: Resource) -> None:
        """Does not look."""


class EndsTheNewest(Good):
    """Goes by the id alone, though its launches have ids."""

    def release_resource(self, resource: Resource) -> None:
        """Ends whatever there is."""
        self.release_unsaved(resource)


class TellsSecrets(Good):
    """Shows what it was given."""

    def request_resource(self, resource: Resource) -> Mapping[str, str]:
        """Refuses every resource, with all of its properties."""
        raise StartFailedError(str(resource.properties))


class SaysTooMuch(Good):
    """Tells in a text why a worker died."""

    def post_mortem(self, resource: Resource) -> str:  # noqa: ARG002 - the protocol
        """Not what is asked for."""
        return "no idea"


class TestTheContract:
    """Each kind of mistake has its sentence."""

    LIFE = "test_a_start_returns_texts_and_a_release_ends_it"

    @pytest.mark.parametrize(
        ("wrong", "problem"),
        [
            (ChangesProperties, "the constructor changes the properties"),
            (Unsure, "supports_auto_restart is 'yes', neither True nor False"),
        ],
    )
    def test_of_its_members(self, wrong: type[Good], problem: str) -> None:
        """What can be seen before anything is started."""
        suite = ContainerContract()
        suite.container_class = wrong
        with pytest.raises(AssertionError, match=f"^{problem}"):
            suite.test_it_has_the_members_of_the_protocol({"a": "b"})

    @pytest.mark.parametrize(
        ("wrong", "test", "problem"),
        [
            (ReturnsNothing, LIFE, "request_resource returns NoneType, not a mapping"),
            (ReturnsNumbers, LIFE, "request_resource returns 'pid': 7; keys and values are texts"),
            (ReturnsTooMuch, LIFE, "request_resource returns what is not saved: start-up prop"),
            (ChangesResource, LIFE, "request_resource changes the resource's properties"),
            (ReleasesNothing, LIFE, "1 of its workers run after release_resource"),
            (
                RefusesTheUnknown,
                "test_a_release_of_what_was_never_started_is_no_error",
                "release_resource of a resource that was never started raises KeyError",
            ),
            (StaysAlive, LIFE, "status is 'running' after release_resource"),
            (SpeaksFreely, LIFE, "status is 'fine'; possible are: running, ended, unknown"),
            (
                StartsASecond,
                "test_a_start_whose_answer_was_lost_leaves_no_second_worker",
                "2 workers of one resource run, not one",
            ),
            (
                EndsTheNewest,
                "test_a_release_of_an_older_launch_leaves_the_newest_alone",
                "0 workers of one resource run, not one",
            ),
            (SaysTooMuch, "test_looks_change_nothing", "post_mortem returns 'no idea'"),
        ],
    )
    def test_of_its_calls(self, wrong: type[Good], test: str, problem: str) -> None:
        """Whatever it started is released, as far as it can be."""
        row = Resource(
            resource_id="w-1", group_name="g", container_name="c", thread_count=1, memory_mb=0
        )
        Good.workers.clear()

        def run(container_class: type[Good]) -> None:
            trial = Trial(
                lambda: container_class("c", {}),
                count=lambda of: list(Good.workers.values()).count(of.resource_id),
            )
            try:
                getattr(ContainerContract(), test)(trial, row)
            finally:
                trial.clean_up()

        run(Good)
        assert not Good.workers
        with pytest.raises(AssertionError, match=f"^{problem}"):
            run(wrong)
        assert wrong is ReleasesNothing or not Good.workers

    def test_without_a_count(self) -> None:
        """What the container says of a launch that was lost is all there is."""
        row = Resource(
            resource_id="w-1", group_name="g", container_name="c", thread_count=1, memory_mb=0
        )
        trial = Trial(lambda: StartsASecond("c", {}))
        problem = "a start whose answer was lost leaves its worker running beside the next one"
        with pytest.raises(AssertionError, match=problem):
            ContainerContract().test_a_start_whose_answer_was_lost_leaves_no_second_worker(
                trial, row
            )
        trial.clean_up()

    def test_of_its_errors(self) -> None:
        """They are shown to people."""
        row = Resource(
            resource_id="w-1", group_name="g", container_name="c", thread_count=1, memory_mb=0
        )
        trial = Trial(lambda: TellsSecrets("c", {}))
        with pytest.raises(AssertionError, match=r"^the error tells a secret"):
            ContainerContract().test_any_id_is_taken_as_it_is_or_refused(trial, row, "of lines")


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
