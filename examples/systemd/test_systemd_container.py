"""The container keeps the contract, where a manager of systemd answers."""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from dagster_amoro import Resource
from dagster_amoro.testing import ContainerContract, Trial
from systemd_container import SystemdContainer

MANAGER = "user" if "XDG_RUNTIME_DIR" in os.environ else "system"


def answers() -> bool:
    """Whether there is a manager to ask."""
    try:
        asked = ["systemctl", f"--{MANAGER}", "show-environment"]
        return subprocess.run(asked, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def workers(resource: Resource) -> list[int]:
    """The processes that have the resource's id as their last argument."""
    end = f"\0{resource.resource_id}\0".encode()
    return [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if path.read_bytes().endswith(end)
    ]


@pytest.mark.skipif(not answers(), reason=f"systemd's {MANAGER} manager does not answer")
class TestSystemdContainer(ContainerContract):
    """With real units."""

    container_class = SystemdContainer

    @pytest.fixture
    def properties(self) -> Mapping[str, str]:
        """A worker that does nothing for ten minutes."""
        command = ["/bin/sh", "-c", "sleep 600; exit", "{resource_id}"]
        return {"command": json.dumps(command), "manager": MANAGER}

    @pytest.fixture
    def hopeless(self) -> Mapping[str, str]:
        """A program that is not there."""
        return {"command": '["/no/such/program"]', "manager": MANAGER}

    @pytest.fixture
    def count(self) -> Callable[[Resource], int]:
        """As the kernel knows them."""
        return lambda resource: len(workers(resource))

    @pytest.fixture
    def kill(self) -> Callable[[Resource], object]:
        """By the kernel, as where memory is short."""

        def kill(resource: Resource) -> None:
            for pid in workers(resource):
                os.kill(pid, signal.SIGKILL)

        return kill

    def test_it_says_why_a_worker_died(
        self,
        trial: Trial,
        properties: Mapping[str, str],
        resource: Resource,
        kill: Callable[[Resource], object],
    ) -> None:
        """A test of its own, beside those of the contract."""
        started = trial.start(resource)
        kill(started)
        trial.has_died(started)
        found = SystemdContainer("units", properties).post_mortem(started)
        assert found is not None
        assert found.cause == "killed"
