"""Why a worker died: what containers learn of its end, and what becomes of that."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import psutil
import pytest

from dagster_amoro import CommandContainer, Resource
from dagster_amoro.containers import calls
from dagster_amoro.containers.isolated import IsolatedContainer, IsolatedContainers
from dagster_amoro.core.model import EventKind
from dagster_amoro.core.post_mortem import PostMortem
from tests.helpers import hanging
from tests.helpers.fleet import fleet
from tests.helpers.hangs import marked, settings
from tests.helpers.waiting import wait_until

PYTHON = [sys.executable, "-I", "-S", "-c"]
SLEEP = "import time; print('ready', flush=True); time.sleep(600)"
ONE = Resource(
    resource_id="r1",
    group_name="g",
    container_name="c",
    thread_count=1,
    memory_mb=0,
    properties={"password": "hunter22"},
)
# Starts the worker from within a control group, of which both are members then.
STARTER = """
import json, os, sys
from pathlib import Path
from dagster_amoro import CommandContainer, Resource
properties, resource, group = map(json.loads, sys.argv[1:])
Path(group).write_text(str(os.getpid()))
print(json.dumps(dict(CommandContainer("c", properties).request_resource(Resource(**resource)))))
"""


def properties(folder: Path, script: str) -> dict[str, str]:
    """Those of a container that runs a script, whose starts are watched for a moment."""
    command = json.dumps([*PYTHON, script])
    return {"command": command, "log-dir": str(folder / "logs"), "start-check": "0"}


def started(container: CommandContainer) -> Resource:
    """The resource after a start."""
    return ONE.with_properties(container.request_resource(ONE))


def worker_of(resource: Resource) -> psutil.Process:
    """Its process."""
    return psutil.Process(int(resource.properties["command-pid"]))


def says(container: CommandContainer, resource: Resource, text: str) -> bool:
    """Whether its worker has said this last."""
    return container.post_mortem(resource).log.endswith(text)


def end_of(container: CommandContainer, resource: Resource) -> PostMortem:
    """What is known once its worker is over."""
    wait_until(lambda: container.status(resource) == "ended")
    return container.post_mortem(resource)


@pytest.mark.parametrize(
    ("script", "cause", "how"),
    [
        ("raise SystemExit(3)", "exit 3", "ended with exit code 3"),
        ("pass", "exit 0", "ended with exit code 0"),
        ("import os; os.kill(os.getpid(), 11)", "killed", "was killed by SIGSEGV"),
        ("import os; os.kill(os.getpid(), 40)", "killed", "was killed by signal 40"),
    ],
)
def test_the_end_of_a_worker_is_known(tmp_path: Path, script: str, cause: str, how: str) -> None:
    """By its exit code, or by the signal that killed it."""
    container = CommandContainer("c", properties(tmp_path, script))
    found = end_of(container, started(container))
    assert found.cause == cause
    assert found.text.startswith(f"its last worker {how}")
    assert found.text.endswith(" s after its start")


def test_whoever_killed_it_and_what_it_said_last_is_shown(tmp_path: Path) -> None:
    """The next start is not what is asked about."""
    container = CommandContainer("c", properties(tmp_path, SLEEP))
    for _ in range(2):
        one = started(container)
        wait_until(partial(says, container, one, "ready"))
        worker_of(one).kill()
        found = end_of(container, one)
        assert found.cause == "killed"
        assert "was killed by SIGKILL" in found.text


def test_an_exception_that_nobody_caught_is_in_the_log(tmp_path: Path) -> None:
    """Its last line says it."""
    container = CommandContainer("c", properties(tmp_path, "raise RuntimeError('it is broken')"))
    found = end_of(container, started(container))
    assert found.cause == "exit 1"
    assert found.log.endswith("RuntimeError: it is broken")


def test_what_runs_is_not_dead(tmp_path: Path) -> None:
    """It is an orphan, as nothing has registered for it."""
    container = CommandContainer("c", properties(tmp_path, SLEEP))
    one = started(container)
    pid = worker_of(one).pid
    text = f"its last worker, process {pid}, runs, but has not registered"
    assert container.post_mortem(one)[:2] == ("unknown", text)
    container.release_resource(one)


def test_where_nobody_saw_it_that_is_said(tmp_path: Path) -> None:
    """It was never started; its witness was killed as well; it was on a host that is gone."""
    container = CommandContainer("c", properties(tmp_path, SLEEP))
    assert container.post_mortem(ONE).cause == "never started"
    one = started(container)
    worker = worker_of(one)
    psutil.Process(worker.ppid()).kill()
    worker.kill()
    found = end_of(container, one)
    assert found.cause == "unknown"
    assert found.text == "its last worker is gone, and so was its witness: nobody saw how it ended"
    elsewhere = one.with_properties({"command-host": "far-away"})
    (tmp_path / "logs").joinpath(next((tmp_path / "logs").glob("*.json")).name).unlink()
    assert container.post_mortem(elsewhere)[:2] == (
        "lost host",
        "it was started on host 'far-away' and cannot be seen from here",
    )


@contextmanager
def memory_group() -> Iterator[Path]:
    """The file that makes a process a member of a control group with little memory."""
    lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    own = next((path for _, kind, path in lines if kind == "memory"), None)
    folder, limit = Path(f"/sys/fs/cgroup/memory{own}"), "memory.limit_in_bytes"
    if own is None:
        folder, limit = Path(f"/sys/fs/cgroup{lines[-1][2]}"), "memory.max"
    group = folder / f"dagster-amoro-{os.getpid()}"
    try:
        group.mkdir()
        (group / limit).write_text(str(96 * 1024 * 1024))
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    yield group / "cgroup.procs"
    wait_until(lambda: not (group / "cgroup.procs").read_text().strip())
    group.rmdir()


def test_the_kernel_ended_it_for_memory(tmp_path: Path) -> None:
    """Its control group says so."""
    hungry = "import time; time.sleep(1); held = [bytearray(2**20) for _ in range(400)]"
    with memory_group() as members:
        own = json.dumps(properties(tmp_path, hungry))
        resource = json.dumps({**{n: getattr(ONE, n) for n in ONE.__slots__}, "properties": {}})
        argv = [sys.executable, "-c", STARTER, own, resource, json.dumps(str(members))]
        said = subprocess.run(argv, capture_output=True, check=True, text=True).stdout
        one = ONE.with_properties(json.loads(said))
        found = end_of(CommandContainer("c", json.loads(own)), one)
    assert found.cause == "out of memory"
    assert "was killed by the kernel, out of memory, " in found.text


def container(folder: Path, hangs_at: str) -> IsolatedContainer:
    """One of somebody else, in a process of its own."""
    own = {"hangs-at": hangs_at, "hangs": "in_a_lock", "folder": str(folder)}
    return IsolatedContainer(
        settings(hanging.HangingContainer, {**own, "status-timeout": "500ms", "password": "s3cr3t"})
    )


def test_a_post_mortem_that_hangs_is_over_in_time(tmp_path: Path) -> None:
    """And is no reason not to start it."""
    sick = replace(ONE, resource_id="sick")
    with marked(tmp_path), closing(container(tmp_path, "post_mortem")) as made:
        found = calls.post_mortem(made, sick)
    asked = "the question how its worker ended was not over within 0.5 s and was ended"
    why = f"container 'c': {asked}"
    assert found == ("unknown", f"how its last worker ended cannot be learned: {why}", "")


def test_a_post_mortem_is_cleaned(tmp_path: Path) -> None:
    """No secret, nothing that acts on a terminal, nothing that is too long."""
    with marked(tmp_path), closing(container(tmp_path, "never")) as made:
        found = calls.post_mortem(made, ONE)
    assert found is not None
    assert "hunter22" not in "".join(found)
    assert found.cause == r"odd\x1b[31m"
    assert len(found.text) <= 300
    assert 1000 < len(found.log) <= 2000


def test_a_container_may_say_nothing(tmp_path: Path) -> None:
    """Not every one can tell."""
    entry = settings(hanging.SilentContainer, {})
    with marked(tmp_path), closing(IsolatedContainer(entry)) as made:
        assert calls.post_mortem(made, ONE) is None


def test_the_ledger_keeps_why_it_died(tmp_path: Path) -> None:
    """An incident has the first cause; each attempt tells what it found."""
    entry = settings(CommandContainer, properties(tmp_path, SLEEP))
    with (
        marked(tmp_path),
        closing(IsolatedContainers({"c": entry})) as made,
        fleet(tmp_path, max_retries=2, grace=timedelta(seconds=30)) as world,
    ):
        world.services = replace(world.services, containers=made)
        world.worker(container_name="c")
        world.tick()
        for _ in range(2):
            (request,) = world.later().tick()
            assert world.launch(request).success
            row = world.services.registry.read_resource("w-1").row
            assert row is not None
            os.kill(int(json.loads(row["properties"])["command-pid"]), signal.SIGKILL)
        (incident,) = world.incidents()
        assert incident.cause == "never started"
        assert incident.death == "no worker of it was ever started from this host"
        events = world.services.ledger.events(incident.incident_id)
        tried = [each for each in events if each.kind is EventKind.ATTEMPT]
        assert [each.details["cause"] for each in tried] == ["never started", "killed"]
        assert "attempt 2 begins; its last worker was killed by SIGKILL " in tried[1].message
        assert tried[1].details["log"].endswith("ready")
        (request,) = world.later().tick()
        assert not world.launch(request).success  # it gives up, and says why
        (end,) = (each for each in world.services.ledger.events(1) if each.kind == "exhausted")
        assert incident.death in end.message
