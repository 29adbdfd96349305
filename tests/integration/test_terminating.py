"""SIGTERM ends a run of pytest, and all that its tests have started, wherever that has gone."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final
from uuid import uuid4

import psutil
import pytest

from tests.helpers.terminating import MARK
from tests.helpers.waiting import wait_until

pytestmark = pytest.mark.long

ROOT: Final = Path(__file__).parents[2]
PLUGINS: Final = ("suites", "reporting", "terminating")
# Each of its tests has a database server, a child in a session of its own, and a grandchild that
# outlives its parent.
TESTS: Final = """
import subprocess, time
from pathlib import Path
import pytest
from tests.helpers.databases import running_postgresql

@pytest.fixture(scope="session")
def server():
    with running_postgresql() as running:
        yield running

@pytest.mark.parametrize("number", [1, 2])
def test(server, number):
    subprocess.Popen(["sleep", "600"], start_new_session=True)
    subprocess.run(["sh", "-c", "sleep 600 & "], check=True)
    Path(f"ready-{number}").touch()
    time.sleep(600)
"""


def started_by(mark: str) -> list[psutil.Process]:
    """The processes of that run which are alive."""
    found = []
    for each in psutil.process_iter():
        with suppress(psutil.Error):
            if mark in each.environ().get(MARK, "") and each.status() != psutil.STATUS_ZOMBIE:
                found.append(each)
    return found


@pytest.mark.crash_loop
@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_is_left_of_a_run(tmp_path: Path, workers: int) -> None:
    """With one process that tests and with several, which get to end their databases orderly."""
    (tmp_path / "test_it.py").write_text(TESTS)
    mark = f"outer-{uuid4().hex}"
    plugins = [word for name in PLUGINS for word in ("-p", f"tests.helpers.{name}")]
    command = [sys.executable, "-m", "pytest", *plugins, f"--numprocesses={workers}"]
    environment = {
        **os.environ,
        MARK: f"{os.environ.get(MARK, '')}/{mark}",
        "PYTHONPATH": str(ROOT),
        "TMPDIR": str(tmp_path),
    }
    with (tmp_path / "log").open("wb") as log:
        run = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
    try:
        ready = [tmp_path / f"ready-{number}" for number in range(1, 1 + (workers or 1))]
        wait_until(lambda: all(each.exists() for each in ready) or run.poll() is not None)
        names = [each.name() for each in started_by(mark)]
        assert names.count("sleep") == 2 * len(ready), (tmp_path / "log").read_text()
        assert names.count("postgres") >= len(ready)
        run.send_signal(signal.SIGTERM)
        run.wait(180)
        assert started_by(mark) == []
        assert run.returncode == pytest.ExitCode.INTERRUPTED
        assert list(tmp_path.glob("keeper-*/data")) == []  # whoever stops a server deletes it
        assert "KeyboardInterrupt" in (tmp_path / "log").read_text()
    finally:
        for each in started_by(mark):
            each.kill()
        run.wait()


TOGETHER: Final = """
import os
from pathlib import Path
import pytest

@pytest.mark.xdist_group("together")
@pytest.mark.parametrize("number", range(8))
def test(number):
    Path(f"{number}-{os.environ['PYTEST_XDIST_WORKER']}").touch()
"""


def test_what_shares_a_cluster_stays_in_one_process(tmp_path: Path) -> None:
    """Versions of pytest and of pytest-xdist that do not go together part it without a word."""
    (tmp_path / "test_it.py").write_text(TOGETHER)
    command = [sys.executable, "-m", "pytest", "--numprocesses=2", "--dist=loadgroup"]
    subprocess.run([*command, "test_it.py"], cwd=tmp_path, check=True, capture_output=True)
    workers = [each.name.partition("-")[2] for each in tmp_path.glob("?-gw*")]
    assert len(workers) == 8
    assert len(set(workers)) == 1
