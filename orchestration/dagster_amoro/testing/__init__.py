"""For the tests of people who write containers; public.

`ContainerContract` has the tests that every container passes, for pytest, which has to be
installed; `ready_fleet` makes a fleet around a container in which a dead worker is found and
restarted without Dagster; and `RecordingContainer` stands in for a container where none is to start
anything.

A test that a container of one's own restarts a dead worker:

    def test_a_dead_worker_is_restarted(tmp_path):
        with ready_fleet(tmp_path, MyContainer, {"queue": "low"}) as fleet:
            fleet.start("w-1")
            fleet.register("w-1")
            fleet.lose("w-1")
            (restart,) = fleet.heal()
            assert restart.outcome == "started"
            assert fleet.container.status(fleet.resource("w-1")) == "running"
"""

from typing import TYPE_CHECKING

from dagster_amoro.testing.fleet import ReadyFleet, Restart, ready_fleet
from dagster_amoro.testing.recording import Call, RecordingContainer
from dagster_amoro.testing.trial import Trial

if TYPE_CHECKING:
    from dagster_amoro.testing.contract import ContainerContract

__all__ = [
    "Call",
    "ContainerContract",
    "ReadyFleet",
    "RecordingContainer",
    "Restart",
    "Trial",
    "ready_fleet",
]


def __getattr__(name: str) -> object:
    """The contract, imported when it is asked for: nothing else here needs pytest."""
    if name != "ContainerContract":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)
    from dagster_amoro.testing.contract import ContainerContract  # noqa: PLC0415 - as above

    return ContainerContract
