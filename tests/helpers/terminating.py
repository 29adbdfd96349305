"""SIGTERM ends pytest as Ctrl-C does, and with it everything that the tests have started.

Each run marks its environment, which all of its processes inherit, whoever their parent is. When
a run is over, whatever is left of it is killed.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from types import FrameType
from typing import Final
from uuid import uuid4

import psutil
import pytest

# The ids of the runs that a process belongs to. Workers inherit nothing of ours but what says how
# programs run on this host; the name is that of a locale, which is such a thing.
MARK: Final = "LC_DAGSTER_AMORO_TEST_RUN"
_CLEANUP_SECONDS: Final = 60  # that workers of pytest get to stop their databases
_END_SECONDS: Final = 10  # that a killed process needs to be gone


def pytest_configure(config: pytest.Config) -> None:
    """Marks the run, unless this is a worker of it, and lets SIGTERM interrupt it."""
    if not _is_worker(config):
        os.environ[MARK] = f"{os.environ.get(MARK, '')}/{uuid4().hex}"
    # A shell lets its background jobs ignore SIGINT. Dagster would hand that on to SIGTERM after
    # each run in this process, and every program that a test starts later would ignore both.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _interrupt)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Tells the workers, and lets them stop what they have started."""
    if exitstatus != pytest.ExitCode.INTERRUPTED or not _has_workers(session.config):
        return
    workers = psutil.Process().children()
    for each in workers:
        with suppress(psutil.NoSuchProcess):
            each.terminate()
    end = time.monotonic() + _CLEANUP_SECONDS
    while any(_has_children(each) for each in workers) and time.monotonic() < end:
        time.sleep(0.1)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Kills what is left."""
    if not _is_worker(config):
        left = list(_processes_of(os.environ[MARK]))
        for each in left:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        psutil.wait_procs(left, _END_SECONDS)
        os.environ[MARK] = os.environ[MARK].rpartition("/")[0]


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the end takes a moment and is not to be ended
    raise KeyboardInterrupt


def _processes_of(mark: str) -> Iterator[psutil.Process]:
    """Everybody else who belongs to a run."""
    for each in psutil.process_iter():
        with suppress(psutil.Error):
            if each.pid != os.getpid() and each.environ().get(MARK, "").startswith(mark):
                yield each


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


def _has_workers(config: pytest.Config) -> bool:
    return config.pluginmanager.hasplugin("dsession")


def _has_children(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return any(each.status() != psutil.STATUS_ZOMBIE for each in process.children())
    return False
