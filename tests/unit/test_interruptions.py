"""Which exceptions of a container end the process, and which are its own failures."""

import subprocess
import sys
from collections.abc import Mapping

import pytest

from dagster_amoro.containers import base, calls
from dagster_amoro.containers.base import interruptions, never_swallow
from dagster_amoro.core.errors import StartFailedError
from dagster_amoro.core.model import Resource

RESOURCE = Resource(
    resource_id="r", group_name="g", container_name="c", thread_count=1, memory_mb=0
)


class StopError(BaseException):
    """How some framework interrupts."""


class Raising:
    """A container whose calls raise this error."""

    supports_auto_restart = True

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def request_resource(self, resource: Resource) -> Mapping[str, str]:  # noqa: ARG002 - the protocol
        """Raises."""
        raise self.error

    def release_resource(self, resource: Resource) -> None:  # noqa: ARG002 - the protocol
        """Raises."""
        raise self.error


@pytest.fixture(autouse=True)
def _own_interruptions(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test adds ends with it."""
    monkeypatch.setattr(base, "_interruptions", list(interruptions()))


def test_an_added_kind_passes_through_every_call() -> None:
    """Before, it is a failed start and a failed release like any other."""
    container = Raising(StopError("stop"))
    with pytest.raises(StartFailedError, match="StopError: stop"):
        calls.start(container, RESOURCE)
    assert calls.stop(container, RESOURCE, "it").notes == ("could not stop it: StopError: stop",)
    never_swallow(StopError)
    never_swallow(StopError)
    assert interruptions().count(StopError) == 1
    with pytest.raises(StopError):
        calls.start(container, RESOURCE)
    with pytest.raises(StopError):
        calls.stop(container, RESOURCE, "it")


@pytest.mark.long
@pytest.mark.parametrize(
    "module",
    [
        "dagster_amoro.code_location",
        "dagster_amoro.defs.restart_job",
        "dagster_amoro.defs.scale_up_job",
        "dagster_amoro.defs.operator_jobs",
    ],
)
def test_dagster_interrupts_in_every_process_that_runs_a_job(module: str) -> None:
    """Whichever module of ours Dagster loads a job from, its interruption is known by then."""
    script = (
        f"import {module}; from dagster_amoro.containers.base import interruptions; "
        "print([kind.__name__ for kind in interruptions()])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    assert "'DagsterExecutionInterruptedError'" in done.stdout
