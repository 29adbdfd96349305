"""For the tests of people who write containers; public.

`check_container` holds a container class against the protocol, `ready_fleet` makes a fleet around
it in which a dead worker is found and restarted without Dagster, and `RecordingContainer` stands
in for a container where none is to start anything.

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

from dagster_amoro.testing.contract import check_container
from dagster_amoro.testing.fleet import ReadyFleet, Restart, ready_fleet
from dagster_amoro.testing.recording import Call, RecordingContainer

__all__ = ["Call", "ReadyFleet", "RecordingContainer", "Restart", "check_container", "ready_fleet"]
