"""A local optimizer that is a real JVM, started by the container and known to an AMS."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from dagster_amoro import Resource, StartFailedError
from dagster_amoro.containers.amoro.local import LocalContainer
from dagster_amoro.containers.processes import end, started_with
from tests.engines import clusters
from tests.helpers.ams import AmsLookAlike
from tests.helpers.installation import install
from tests.helpers.waiting import wait_until

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not shutil.which("javac"), reason="there is no javac on PATH"),
]

SOURCES: Final = Path(clusters.__file__).parent / "optimizer/org/apache/amoro/optimizer"
WORKER: Final = Resource(
    resource_id=f"standalone-{os.getpid()}",
    group_name="g",
    container_name="local",
    thread_count=1,
    memory_mb=0,
    properties={"memory": "64", "heart-beat-interval": "200"},
)


@pytest.fixture
def ams() -> Iterator[AmsLookAlike]:
    """An AMS, without a database."""
    with AmsLookAlike() as found:
        yield found
    end(started_with({"-id": WORKER.resource_id}), 0)


@pytest.fixture
def container(ams: AmsLookAlike, tmp_path: Path) -> LocalContainer:
    """The local container of an installation whose Java is a real one."""
    home = install(tmp_path / "amoro", "")
    classes = home / "classes"
    files = [str(path) for part in ("common", "standalone") for path in (SOURCES / part).iterdir()]
    javac = shutil.which("javac") or "javac"
    subprocess.run([javac, "-d", str(classes), *files], check=True)
    java = f'#!/bin/sh\nexec {shutil.which("java")} -cp "{classes}" "$@"\n'
    (home / "jdk/bin/java").write_text(java)
    uri = f"thrift://127.0.0.1:{ams.thrift_port}"
    properties = {
        "ams-home": str(home),
        "ams-optimizing-uri": uri,
        "export.JAVA_HOME": str(home / "jdk"),
    }
    return LocalContainer("local", properties)


def test_it_registers_though_it_is_told_to_end(
    container: LocalContainer, ams: AmsLookAlike
) -> None:
    """It drains: its first registration is completed, and a while later it is gone."""
    ams.behaviour = "hangs"
    container.request_resource(WORKER)
    (process,) = started_with({"-id": WORKER.resource_id})
    process.send_signal(signal.SIGTERM)
    ams.behaviour = "answers"
    wait_until(lambda: bool(ams.registrations))
    assert container.status(WORKER) == "running"
    wait_until(lambda: container.status(WORKER) == "ended")
    assert [each.resource_id for each in ams.registrations] == [WORKER.resource_id]


def test_a_java_that_refuses_an_option_says_which(container: LocalContainer) -> None:
    """More memory per thread than there are addresses; its words go to `optimizer.log.err`."""
    greedy = {"memory": "9" * 15}
    with pytest.raises(StartFailedError, match=r"optimizer\.log\.err:\n[\s\S]*-Xmx9{15}m"):
        container.request_resource(
            Resource(
                **{name: getattr(WORKER, name) for name in WORKER.__slots__}
                | {"properties": greedy}
            )
        )
