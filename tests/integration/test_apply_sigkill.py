"""An apply that is killed with SIGKILL at every place, with real worker processes."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import psutil
import pytest

from dagster_amoro.config import ContainerSettings
from dagster_amoro.containers.resolve import Containers
from dagster_amoro.core.fleet_plan import DeclaredGroup
from dagster_amoro.healing.assembly import Services
from tests.helpers.declared import a_group
from tests.helpers.fleet import fleet_services, watched
from tests.helpers.waiting import wait_until

pytestmark = pytest.mark.crash_loop
MARK: Final = "FOLDER_OF_THIS_TEST"
BY: Final = {"author": "ann", "reason": "a move"}
SLEEP: Final = [sys.executable, "-ISc", "import time; time.sleep(600)"]
# Workers with their threads: one is changed, one released, one added.
BEFORE: Final = {"w-1": 1, "w-2": 1}
AFTER: Final = {"w-1": 2, "w-3": 1}
CALLS: Final = 48  # that an apply of it makes on the registry, the ledger and the containers


def keeper(folder: Path, workers: dict[str, int]) -> Services:
    """The keeper of a process, with real worker processes, which one at a time are started."""
    settings = ContainerSettings(
        name="local",
        implementation="dagster_amoro.CommandContainer",
        properties={
            "command": json.dumps([*SLEEP, "{resource_id}", "{thread_count}"]),
            "log-dir": str(folder / "workers"),
            "start-check": "0s",
            "termination-grace-period": "5s",
            f"export.{MARK}": str(folder),
        },
    )
    return replace(
        fleet_services(folder),
        containers=Containers({"local": settings}),
        max_concurrent_starts=1,
        fleet=tuple(groups(workers)),
    )


def groups(workers: dict[str, int]) -> list[DeclaredGroup]:
    """A group for each number of threads."""
    return [
        a_group(
            [name for name, own in workers.items() if own == threads],
            name=f"g-{threads}",
            container="local",
            thread_count=threads,
        )
        for threads in sorted(set(workers.values()))
    ]


def apply(services: Services) -> None:
    """The declaration is applied, releases included."""
    doing = services.applier
    doing.apply(doing.plan().to_do(release=True), **BY)


def die_before(number: int, folder: Path, workers: dict[str, int]) -> None:
    """Applies, and is killed before the call of that number; in a process of its own."""
    calls = 0

    def announce(place: str) -> None:
        nonlocal calls
        calls += place.startswith("before ")
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)

    apply(watched(keeper(folder, workers), announce))
    print(calls)  # noqa: T201 - how many there are


def in_a_process(number: int, folder: Path, workers: dict[str, int]) -> subprocess.Popen[str]:
    """An apply in a process of its own."""
    return subprocess.Popen(
        [sys.executable, __file__, str(number), str(folder), json.dumps(workers)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.PIPE,
        text=True,
    )


def running(folder: Path) -> Counter[tuple[str, int]]:
    """The worker processes of this test that are alive: of which worker, with how many threads."""
    found: Counter[tuple[str, int]] = Counter()
    for process in of(folder):
        try:
            *_, name, threads = process.cmdline()
        except (psutil.Error, ValueError):
            continue
        found[name, int(threads)] += 1
    return found


def of(folder: Path) -> Iterator[psutil.Process]:
    """The processes of this test, but for those that are being started."""
    for process in psutil.process_iter():
        try:
            marked = process.environ().get(MARK) == str(folder)
            if marked and process.status() != psutil.STATUS_ZOMBIE:
                yield process
        except psutil.Error:
            continue


@contextmanager
def stopped_at_the_end(folder: Path) -> Iterator[None]:
    """Leaves no process behind."""
    try:
        yield
    finally:
        for process in of(folder):
            process.kill()


def rows(services: Services) -> dict[str, int | None]:
    """The threads of each worker that has a row."""
    stored = services.registry.read_fleet(["w-1", "w-2", "w-3"])
    return {name: row.thread_count for name, row in stored.rows.items()}


@pytest.mark.parametrize("number", range(1, CALLS + 1))
def test_killed_anywhere_it_is_completed_by_the_next_one(tmp_path: Path, number: int) -> None:
    """No worker is there twice, none is lost, and none runs without a row."""
    with stopped_at_the_end(tmp_path), closing(keeper(tmp_path, BEFORE)) as before:
        apply(before)
        died = in_a_process(number, tmp_path, AFTER)
        died.communicate()
        assert died.returncode == -signal.SIGKILL
        alive = running(tmp_path)
        assert len({name for name, _ in alive}) == alive.total()
        assert {name for name, _ in alive} <= rows(before).keys()
        with closing(keeper(tmp_path, AFTER)) as later:
            apply(later)
            assert rows(later) == AFTER
            assert running(tmp_path) == Counter(AFTER.items())
            assert later.applier.plan().is_empty


def test_it_was_killed_at_every_place(tmp_path: Path) -> None:
    """An apply makes as many calls as there were places at which it was killed."""
    with stopped_at_the_end(tmp_path), closing(keeper(tmp_path, BEFORE)) as before:
        apply(before)
        said, _ = in_a_process(0, tmp_path, AFTER).communicate()
        assert int(said) == CALLS


def test_two_processes_at_once(tmp_path: Path) -> None:
    """Each worker is there once, whoever of them has started it."""
    with stopped_at_the_end(tmp_path), closing(keeper(tmp_path, BEFORE)) as before:
        apply(before)
        both = [in_a_process(0, tmp_path, AFTER) for _ in range(3)]
        for process in both:
            process.communicate()
        assert {process.returncode for process in both} == {0}
        assert rows(before) == AFTER
        assert running(tmp_path) == Counter(AFTER.items())
        with closing(keeper(tmp_path, AFTER)) as later:
            assert later.applier.plan().is_empty


def test_the_second_time_nothing_is_done(tmp_path: Path) -> None:
    """The same processes run."""
    with stopped_at_the_end(tmp_path), closing(keeper(tmp_path, AFTER)) as services:
        apply(services)
        wait_until(lambda: running(tmp_path) == Counter(AFTER.items()))
        pids = {process.pid for process in of(tmp_path)}
        apply(services)
        assert {process.pid for process in of(tmp_path)} == pids


if __name__ == "__main__":
    die_before(int(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))
