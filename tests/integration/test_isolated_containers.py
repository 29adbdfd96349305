"""Calls of containers that hang: each is over in time, with everything that it has started."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from dagster_amoro import CommandContainer, ContainerError, Resource, StartFailedError
from dagster_amoro.containers import calls
from dagster_amoro.containers.fences import Fence
from dagster_amoro.containers.host import kill_tree
from dagster_amoro.containers.isolated import IsolatedContainer, IsolatedContainers
from dagster_amoro.core.errors import OverdueError
from tests.helpers import hanging
from tests.helpers.hangs import WAYS, marked, processes_of, settings
from tests.helpers.waiting import wait_until

# Each waits for its deadline; the way that no signal ends is in `make test`.
_DEAF = "in_a_child"
_WAYS = [_DEAF, *(pytest.param(each, marks=pytest.mark.long) for each in WAYS if each != _DEAF)]
SICK, WELL = (
    Resource(
        resource_id=name,
        group_name="g",
        container_name="c",
        thread_count=1,
        memory_mb=0,
        properties={"password": "hunter22"},
    )
    for name in ("sick", "well")
)


@pytest.fixture(autouse=True)
def mark(tmp_path: Path) -> Iterator[str]:
    """What is on the command line of each process that a container starts."""
    with marked(tmp_path) as made:
        yield made


def built(tmp_path: Path, at: str, how: str, timeout: str = "500ms") -> IsolatedContainer:
    """A container that hangs there in this way, which has a timeout; other calls have long."""
    own = {"hangs-at": at, "hangs": how, "folder": str(tmp_path)}
    places = ("start", "stop", "status")
    timeouts = {f"{place}-timeout": timeout if place == at else "3min" for place in places}
    return IsolatedContainer(settings(hanging.HangingContainer, {**own, **timeouts}))


@pytest.mark.parametrize("how", _WAYS)
@pytest.mark.parametrize("at", ["start", "stop", "status"])
def test_a_call_that_hangs_is_over_in_time(mark: str, tmp_path: Path, at: str, how: str) -> None:
    """It says so; other calls are answered meanwhile; and nothing of it is left."""
    container = built(tmp_path, at, how)
    names = {"start": "request_resource", "stop": "release_resource", "status": "status"}
    call: Callable[[Resource], object] = getattr(container, names[at])
    with closing(container), ThreadPoolExecutor() as pool:
        sick = pool.submit(call, SICK)
        if at == "start":
            assert container.status(WELL) == "running"
        else:
            assert container.request_resource(WELL)["started-by"]
        with pytest.raises(OverdueError, match=r"was not over within 0\.5 s and was ended"):
            sick.result()
    assert not (tmp_path / "sick").exists()
    wait_until(lambda: not processes_of(mark))


@pytest.mark.long
@pytest.mark.parametrize("how", WAYS)
def test_a_constructor_that_hangs_holds_up_a_question_once(
    mark: str, tmp_path: Path, how: str
) -> None:
    """It is no obstacle, since its starts say so; the next tick does not wait for it again."""
    own = {"hangs-at": "constructor", "hangs": how, "folder": str(tmp_path)}
    entry = settings(hanging.HangingContainer, {**own, "status-timeout": "2s"})
    with closing(IsolatedContainers({"c": entry})) as containers:
        why = "the question whether it restarts was not over within 2 s and was ended"
        with pytest.raises(OverdueError, match=f"container 'c': {why}"):
            _ = containers.get("c").supports_auto_restart
        begin = time.monotonic()
        assert containers.obstacle("c") is None
        assert time.monotonic() - begin < 2
    wait_until(lambda: not processes_of(mark))


def test_a_call_ends_with_whoever_has_asked(mark: str, tmp_path: Path) -> None:
    """The caller is killed in the middle of a call, whose answer nobody would collect."""
    code = (
        "import sys; from pathlib import Path; from tests.integration import "
        "test_isolated_containers as it\n"
        "it.built(Path(sys.argv[1]), 'start', 'in_a_child', '3min').request_resource(it.SICK)"
    )
    argv = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(argv) as caller:
        wait_until(lambda: len(processes_of(mark)) > 2)
        caller.kill()
    wait_until(lambda: not processes_of(mark))


@pytest.mark.long
@pytest.mark.parametrize("_", range(3))
def test_a_process_that_is_starting_others_leaves_none(mark: str, _: int) -> None:
    """It starts one at the very moment in which it is killed."""
    loop = "i=0; while [ $i -lt 200 ]; do i=$((i + 1)); setsid sleep 600 & done; wait"
    with subprocess.Popen(["/bin/sh", "-c", loop, mark]) as busy:
        wait_until(lambda: bool(psutil.Process(busy.pid).children()))
        kill_tree(busy.pid)
    left = processes_of(mark)
    for process in left:
        process.kill()
    assert not left


class Explodes:
    """Ends its process in the middle of a call, as code in C may."""

    supports_auto_restart = True

    def __init__(self, _name: str, _properties: Mapping[str, str]) -> None:
        pass

    def request_resource(self, _resource: Resource) -> Mapping[str, str]:
        """Ends without a word."""
        os.kill(os.getpid(), signal.SIGSEGV)
        return {}

    def release_resource(self, resource: Resource) -> None:
        """Fails with a secret in its text."""
        raise RuntimeError(resource.properties["password"])


def test_a_call_that_ends_its_process_is_a_failed_start() -> None:
    """And the next call is answered."""
    with closing(IsolatedContainer(settings(Explodes, {}))) as container:
        with pytest.raises(StartFailedError, match="its process ended without an answer"):
            calls.start(container, WELL)
        note = "could not stop it: container 'c': RuntimeError: ***"
        assert calls.stop(container, WELL, "it").notes == (note,)


def test_a_host_that_is_killed_is_replaced(mark: str, tmp_path: Path) -> None:
    """As by the kernel, where memory is short."""
    with closing(built(tmp_path, "never", "in_python")) as container:
        before = container.request_resource(WELL)
        wait_until(lambda: len(processes_of(mark)) == 1)  # the call has ended, the host has not
        (host,) = processes_of(mark)
        host.kill()
        host.wait()
        assert container.request_resource(WELL) != before


def test_a_call_of_an_earlier_attempt_is_refused(tmp_path: Path) -> None:
    """Starts and stops alike; an attempt may call twice, and nobody knows about other ledgers."""
    with closing(built(tmp_path, "never", "in_python")) as container:
        container.request_resource(WELL, Fence("a", 7, 2))
        container.release_resource(WELL, Fence("a", 7, 2))
        for late in (Fence("a", 7, 1), Fence("a", 6, 9)):
            with pytest.raises(ContainerError, match="refused, since a later attempt"):
                container.request_resource(WELL, late)
            with pytest.raises(ContainerError, match="refused, since a later attempt"):
                container.release_resource(WELL, late)
        container.request_resource(SICK, Fence("a", 1, 1))  # another resource
        container.request_resource(WELL, Fence("a", 8, 1))
        container.request_resource(WELL, Fence("b", 1, 1))


@pytest.mark.long
def test_two_calls_for_one_resource_are_never_under_way(tmp_path: Path) -> None:
    """The second is refused, also from another process; it does not wait."""
    with (
        closing(built(tmp_path, "start", "in_python")) as one,
        closing(built(tmp_path, "status", "in_python")) as another,
        ThreadPoolExecutor() as pool,
    ):
        first = pool.submit(one.request_resource, SICK)
        wait_until((tmp_path / "fences").exists)
        refused = []
        while not first.done():
            try:
                another.release_resource(SICK)
            except ContainerError as error:
                refused.append(str(error))
        assert "another call for 'sick' is under way" in refused
        with pytest.raises(OverdueError):
            first.result()


def test_classes_of_ours_are_asked_here(mark: str, tmp_path: Path) -> None:
    """No process is started to find out whether a container is there."""
    entry = settings(CommandContainer, {"command": '["true"]', "log-dir": str(tmp_path)})
    with closing(IsolatedContainers({"c": entry})) as containers:
        assert containers.obstacle("c") is None
        assert not processes_of(mark)
