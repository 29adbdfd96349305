"""What does the plugin rely on, whatever a container starts? Tests that pytest runs."""

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import gettempdir
from typing import Any, Final
from uuid import uuid4

import pytest

from dagster_amoro.containers.base import Container
from dagster_amoro.containers.isolated import IsolatedContainer
from dagster_amoro.core.container_settings import ContainerSettings
from dagster_amoro.core.errors import ContainerError, StartFailedError
from dagster_amoro.core.model import Resource
from dagster_amoro.testing.trial import Trial, require

_NAME: Final = "contract"
_SECRET: Final = "s3cr3t-of-the-contract"  # noqa: S105 - nobody's
_LONGEST_ID: Final = 100  # characters, as the registry has it
# Each with what a shell, an option parser, a path, a line, a template or a column could stumble
# over. `{id}` keeps the resources of two runs apart, `{mark}` is a file that nobody may write.
_IDS: Final = {
    "of a shell": "{id} it's\"; touch {mark}; $(touch {mark}) & `touch {mark}` | *",
    "of an option": "--help={id}",
    "of a path": "../{id}/../é\U0001f600 群",
    "of lines": "{id}\nnew\r\n\tline\x1b[31m",
    "of a template": "{id} {{0}} %s %(x)s ${{HOME}} \\",
    "of full length": "{id}-{long}",
}


class ContainerContract:
    """What the plugin relies on: the tests of a container, for a class of yours to inherit.

    The subclass says which container it is, and how one is built that can start something. Each
    test starts and releases workers for real, each call with a container that was built anew, as
    if it came from another process. What is left at its end is released.

    Example:
        class TestUnits(ContainerContract):
            container_class = UnitContainer
    """

    # Built as `container_class(name, properties)`, as a configuration does it.
    container_class: Callable[[str, Mapping[str, str]], Container]
    # How long it may take, in seconds, until what was started, or has died, is seen.
    patience: float = 30.0
    # For how long, in seconds, an engine may still carry out what a killed start has asked it for.
    settles: float = 0.0

    @pytest.fixture
    def properties(self) -> Mapping[str, str]:
        """Those of the container's entry in `containers:`. With them, a start must succeed."""
        return {}

    @pytest.fixture
    def hopeless(self) -> Mapping[str, str] | None:
        """Properties with which no start succeeds: a program or a server that is not there."""
        return None

    @pytest.fixture
    def resource(self) -> Resource:
        """What is started. It needs an id of its own in each test."""
        return Resource(
            resource_id=f"contract-{uuid4().hex[:8]}",
            group_name=_NAME,
            container_name=_NAME,
            thread_count=1,
            memory_mb=64,
        )

    @pytest.fixture
    def count(self) -> Callable[[Resource], int] | None:
        """How many workers of a resource there are, by other means than the container.

        None: what `status` says is believed, and a second worker of a resource goes unnoticed.
        """
        return None

    @pytest.fixture
    def kill(self) -> Callable[[Resource], object] | None:
        """Ends the worker of a resource as a crash does, behind the container's back."""
        return None

    @pytest.fixture
    def build(self, properties: Mapping[str, str]) -> Callable[[], Container]:
        """Builds the container, as each process does that calls it."""
        return lambda: self.container_class(_NAME, dict(properties))

    @pytest.fixture
    def trial(
        self, build: Callable[[], Container], count: Callable[[Resource], int] | None
    ) -> Iterator[Trial]:
        """Calls the container, and releases at the end what it has started."""
        found = Trial(build, count=count, patience=self.patience)
        yield found
        found.clean_up()

    @pytest.fixture
    def isolated(self, properties: Mapping[str, str]) -> Iterator[IsolatedContainer]:
        """The container as the plugin calls it: each call is a process of its own."""
        made: Any = self.container_class
        where = f"{made.__module__}.{made.__qualname__}"
        settings = ContainerSettings(name=_NAME, implementation=where, properties=properties)
        with closing(IsolatedContainer(settings)) as found:
            yield found

    @pytest.fixture(autouse=True)
    def _home(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """Whatever keeps files in Dagster's home keeps them in the test's folder."""
        monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))

    def test_it_has_the_members_of_the_protocol(self, properties: Mapping[str, str]) -> None:
        """It is built from a name and properties, which it leaves as they are."""
        given = dict(properties)
        container: Any = self.container_class(_NAME, given)
        require(given == properties, "the constructor changes the properties it is given")
        for method in ("request_resource", "release_resource"):
            require(callable(getattr(container, method, None)), f"it has no method {method}")
        found = getattr(container, "supports_auto_restart", None)
        problem = f"supports_auto_restart is {found!r}, neither True nor False"
        require(isinstance(found, bool), problem)

    def test_a_release_of_what_was_never_started_is_no_error(
        self, trial: Trial, resource: Resource
    ) -> None:
        """The plugin releases before each start what an earlier one may have left."""
        trial.release(resource, "a resource that was never started")
        trial.has_ended(resource)

    def test_a_start_returns_texts_and_a_release_ends_it(
        self, trial: Trial, resource: Resource
    ) -> None:
        """What it returns is all that the release needs, which may come twice."""
        started = trial.start(resource)
        trial.runs(started)
        trial.release(started)
        trial.has_ended(started)
        trial.release(started, "a resource that was released before")
        trial.has_ended(started)

    def test_a_start_whose_answer_was_lost_leaves_no_second_worker(
        self, trial: Trial, resource: Resource
    ) -> None:
        """A run dies before it has saved the start-up properties; the next one starts again."""
        _lose_an_answer(trial, resource)

    def test_nor_does_one_after_an_earlier_launch(self, trial: Trial, resource: Resource) -> None:
        """What was saved last is of a worker that is gone by then."""
        first = trial.start(resource)
        trial.release(first)
        _lose_an_answer(trial, first)

    @pytest.mark.parametrize("part", [0.2, 0.5, 0.8])
    def test_a_start_that_is_killed_leaves_no_second_worker(
        self, trial: Trial, isolated: IsolatedContainer, resource: Resource, part: float
    ) -> None:
        """In the middle of it, after such a part of its time, with everything it has started."""
        began = time.monotonic()
        trial.release(trial.start(resource))
        took = time.monotonic() - began
        _ = isolated.supports_auto_restart  # from here on its process is up
        with ThreadPoolExecutor() as pool:
            start = pool.submit(isolated.request_resource, resource)
            wait([start], part * took)
            isolated.close()
            with suppress(ContainerError):
                start.result()
        time.sleep(self.settles)
        trial.release(resource, "a resource whose start was killed")
        started = trial.start(resource)
        trial.runs(started)
        trial.release(started)
        trial.has_ended(started)

    def test_a_release_of_an_older_launch_leaves_the_newest_alone(
        self, trial: Trial, resource: Resource
    ) -> None:
        """It comes from a run that was suspended for long, and knows no better."""
        launches = [resource]
        for _ in range(3):
            trial.release(launches[-1], "what an earlier start may have left")
            launches.append(trial.start(launches[-1]))
        _, oldest, _, newest = launches
        if oldest == newest:
            pytest.skip("its launches have nothing by which to tell them apart; fences do")
        trial.release(oldest, "an older launch")
        trial.runs(newest)

    def test_two_resources_are_kept_apart(self, trial: Trial, resource: Resource) -> None:
        """Also where the id of one begins like that of the other."""
        other = replace(resource, resource_id=f"{resource.resource_id}1")
        one, two = trial.start(resource), trial.start(other)
        trial.release(one)
        trial.has_ended(one)
        trial.runs(two)

    def test_a_worker_that_died_is_started_again(
        self, trial: Trial, resource: Resource, kill: Callable[[Resource], object] | None
    ) -> None:
        """It is not called running, and nothing of it is in the way."""
        if kill is None:
            pytest.skip("the fixture `kill` does not say how to end a worker")
        started = trial.start(resource)
        trial.runs(started)
        kill(started)
        trial.has_died(started)
        trial.look(started)
        trial.release(started, "a resource whose worker died")
        again = trial.start(started)
        trial.runs(again)

    def test_looks_change_nothing(self, trial: Trial, resource: Resource) -> None:
        """They may come at any time, also before the first start and after the last release."""
        trial.look(resource)
        trial.has_ended(resource)
        started = trial.start(resource)
        trial.look(started)
        trial.runs(started)
        trial.release(started)
        trial.look(started)
        trial.has_ended(started)

    @pytest.mark.parametrize("kind", _IDS)
    def test_any_id_is_taken_as_it_is_or_refused(
        self, trial: Trial, resource: Resource, kind: str
    ) -> None:
        """Nothing in it acts, and an error that refuses it tells no secret."""
        short, mark = resource.resource_id.rpartition("-")[2], Path(gettempdir(), uuid4().hex[:8])
        odd = _IDS[kind].format(id=short, mark=mark, long="x" * _LONGEST_ID)[:_LONGEST_ID]
        hostile = _with_a_secret(replace(resource, resource_id=odd))
        try:
            started = trial.start(hostile)
        except ContainerError as error:
            _tells_no_secret(error)
        else:
            trial.runs(started)
            trial.release(started)
            trial.has_ended(started)
        require(not mark.exists(), f"the id {odd!r} was executed")

    def test_a_start_that_cannot_succeed_says_so(
        self, resource: Resource, hopeless: Mapping[str, str] | None
    ) -> None:
        """By a StartFailedError, which tells no secret; a release afterwards may fail as well."""
        if hopeless is None:
            pytest.skip("the fixture `hopeless` does not say how a start would fail")
        container = self.container_class(_NAME, dict(hopeless))
        row = _with_a_secret(resource)
        with pytest.raises(StartFailedError) as failed:
            container.request_resource(row)
        _tells_no_secret(failed.value)
        with suppress(ContainerError):
            container.release_resource(row)

    def test_each_of_its_calls_can_be_a_process_of_its_own(
        self, trial: Trial, isolated: IsolatedContainer, resource: Resource
    ) -> None:
        """As the plugin calls it: what it starts outlives the call, and another call ends it."""
        started = resource.with_properties(isolated.request_resource(resource))
        trial.runs(started)
        isolated.release_resource(started)
        trial.has_ended(started)


def _with_a_secret(resource: Resource) -> Resource:
    return resource.with_properties({"password": _SECRET})


def _tells_no_secret(error: ContainerError) -> None:
    require(_SECRET not in str(error), f"the error tells a secret: {error}")


def _lose_an_answer(trial: Trial, row: Resource) -> None:
    """Starts a resource twice whose row does not learn of the first time."""
    lost = trial.start(row)
    trial.runs(lost)
    trial.release(row, "a resource whose start-up properties were not saved")
    started = trial.start(row)
    trial.runs(started)
    if lost != started:
        trial.is_gone(lost)
    trial.release(started)
    trial.has_ended(started)
