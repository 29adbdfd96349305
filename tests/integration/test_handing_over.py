"""What happens between a tick and its run: ticks that are cut off, and launches that take long."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.remote_representation.code_location import InProcessCodeLocation

from dagster_amoro.config import load_settings
from dagster_amoro.core.ams_restart import AmsRestartDetector
from dagster_amoro.core.errors import StoreUnavailableError
from dagster_amoro.core.model import Resource, State
from dagster_amoro.defs.cursor import parse_cursor
from dagster_amoro.defs.sensor import run_states
from dagster_amoro.demo.fleet import environment
from dagster_amoro.healing.assembly import Services
from dagster_amoro.healing.fleet import add
from dagster_amoro.healing.tick import TickResult
from dagster_amoro.stores import schema
from dagster_amoro.stores.ledger import Ledger, LedgerTransaction
from tests.helpers.cutting import CutDatabase, cut_database
from tests.helpers.daemons import Daemons, daemons
from tests.helpers.fleet import GRACE, Fleet, fleet, with_settings

pytestmark = pytest.mark.long

AGAIN: Final = "requested again: the tick before was cut off"
STATUS: Final = dg.DagsterRunStatus


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Fleet]:
    """A fleet that restarts two in a run."""
    with fleet(tmp_path, max_restarts_per_run=2) as made:
        yield made


# --- A tick that is cut off ----------------------------------------------------------------------


def cut_off(world: Fleet) -> TickResult:
    """A tick whose process ends after its commit: Dagster gets neither requests nor a cursor."""
    return world.services.ticker.tick(
        lambda owners: run_states(world.instance, owners, world.services.ledger.identity),
        AmsRestartDetector(),
        token=parse_cursor(world.cursor).token,
    )


def test_what_a_tick_gave_out_that_was_cut_off_is_in_a_run_after_the_next(
    world: Fleet, capfd: pytest.CaptureFixture[str]
) -> None:
    """In one only, under the same key, together with what is due by then."""
    for number in range(3):
        world.worker(f"w-{number}")
    world.tick()
    world.worker("late")
    lost = cut_off(world.later())
    assert [len(run.incidents) for run in lost.dispatches] == [2, 1]
    capfd.readouterr()
    requests = world.later().tick()
    assert [request.run_key for request in requests[:2]] == [run.run_key for run in lost.dispatches]
    assert f"2 runs are {AGAIN}" in capfd.readouterr().err
    assert [request.tags["amoro/orphans"] for request in requests] == ["2", "1", "1"]
    for request in requests:
        assert world.launch(request).success
    assert sorted(world.container.requested) == ["late", "w-0", "w-1", "w-2"]
    assert {incident.dispatches for incident in world.incidents()} == {1}
    assert world.tick() == []


def test_a_tick_that_is_cut_off_again_and_again_is_made_good_for_in_the_end(world: Fleet) -> None:
    """However long that takes: no claim lapses that no run could know of."""
    world.worker()
    world.tick()
    (lost,) = cut_off(world.later()).dispatches
    for _ in range(3):
        (again,) = cut_off(world.later(world.services.settings.claim_timeout)).dispatches
        assert again.run_key == lost.run_key
    (request,) = world.tick()
    assert world.launch(request).success
    assert world.container.requested == ["w-1"]


def test_what_was_requested_is_not_requested_again(world: Fleet) -> None:
    """Dagster kept the cursor, so its run is on its way, whether or not it is known by now."""
    world.worker()
    world.tick()
    (request,) = world.later().tick()
    assert world.tick() == []
    assert world.later().tick() == []
    assert world.launch(request).success


def test_runs_that_were_launched_before_the_tick_was_cut_off_are_not_requested_again(
    world: Fleet,
) -> None:
    """Dagster ended in the middle of its launches: it knows the first run, not the second."""
    for number in range(3):
        world.worker(f"w-{number}")
    world.tick()
    before = world.cursor
    first, second = world.later().tick()
    world.cursor = before
    world.submit(first, STATUS.QUEUED)
    assert [request.run_key for request in world.tick()] == [second.run_key]


@pytest.fixture
def cut(tmp_path: Path, database_url: sa.URL) -> Iterator[tuple[Fleet, CutDatabase]]:
    """A fleet whose ledger can lose the answers to its commits."""
    with fleet(tmp_path, url=database_url) as made, cut_database(database_url) as database:
        made.services = replace(made.services, ledger=Ledger(database))
        yield made, database


def test_a_commit_whose_answer_is_lost_is_made_good_for(cut: tuple[Fleet, CutDatabase]) -> None:
    """The tick says that it does not know; the next one requests the run at once, and it alone."""
    world, database = cut
    world.worker()
    world.tick()
    world.later()
    database.cuts = True
    assert world.tick() == []
    database.cuts = False
    assert world.message.startswith("Abstained, and the next tick finds out what was changed: ")
    assert "nothing was changed" not in world.message
    (incident,) = world.incidents()
    assert incident.state is State.DISPATCHED
    (request,) = world.tick()
    assert request.run_key == incident.claimed_by
    assert world.launch(request).success
    assert world.container.requested == ["w-1"]
    assert world.tick() == []


def test_so_is_that_of_a_tick_without_a_cursor(cut: tuple[Fleet, CutDatabase]) -> None:
    """It left a cursor, by which the next one knows what it gave out."""
    world, database = cut
    world.worker()
    world.tick()
    world.later().cursor = None
    database.cuts = True
    assert world.tick() == []
    database.cuts = False
    assert "the next tick finds out" in world.message
    (request,) = world.tick()
    assert world.launch(request).success
    assert world.container.requested == ["w-1"]


def test_a_commit_that_was_not_made_changed_nothing(world: Fleet) -> None:
    """The store failed before it."""
    world.worker()
    world.tick()
    world.later()
    with patch.object(LedgerTransaction, "apply", side_effect=StoreUnavailableError):
        assert world.tick() == []
    assert world.message.startswith("Abstained, nothing was changed: ")


def test_what_a_lost_cursor_knew_of_lapses(world: Fleet) -> None:
    """Nobody can say whether it was requested."""
    world.worker()
    world.tick()
    cut_off(world.later())
    world.cursor = None
    assert world.tick() == []
    (request,) = world.later(world.services.settings.claim_timeout).tick()
    assert world.launch(request).success


def test_what_is_ordered_after_a_tick_was_cut_off_is_given_out_anew(world: Fleet) -> None:
    """The run that was never requested has lost it; an operator does not wait for it."""
    world.worker()
    world.tick()
    (lost,) = cut_off(world.later()).dispatches
    world.services.operations.restart_now("w-1", author="ann", reason="now")
    (request,) = world.tick()
    assert request.run_key != lost.run_key
    assert world.launch(request).success


def test_groups_that_a_tick_was_cut_off_from_scaling_up_are_scaled_up(world: Fleet) -> None:
    """By one run, once."""
    for name in "ab":
        world.group(name, min_parallelism="2")
    (first,) = world.tick()
    assert world.launch(first).success
    for row in world.resources():
        world.register(row[0], row[1], 2)
    world.tick()
    for name in "ab":
        world.group(name, min_parallelism="4")
    (lost,) = cut_off(world).scale_ups
    assert len(lost.scale_ups) == 2
    (request,) = world.later().tick()
    assert (request.job_name, request.run_key) == ("scale_up_groups", lost.run_key)
    assert request.tags["amoro/groups"] == "2"
    assert world.launch(request).success
    assert sorted(row[1] for row in world.resources()) == ["a", "a", "b", "b"]
    assert world.tick() == []


def test_dagster_requests_what_a_tick_gave_out_whose_answer_came_too_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own daemon keeps no cursor of that tick; each run is there once."""
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AMS_OPTIMIZER_AUTO__RESTART__GRACE__PERIOD", "0s")
    services = Services.connect(load_settings())
    with daemons(tmp_path) as dagster:
        for number, answers in enumerate([True, False, False, True, True]):
            add(services.registry, worker(f"w-{number}"))
            (Daemons.sense if answers else too_late)(dagster)
        runs = dagster.instance.get_runs(dg.RunsFilter(job_name="restart_orphans"))
    given = {incident.claimed_by for incident in services.ledger.open_incidents()}
    assert len(services.ledger.open_incidents()) == 5
    assert sorted(run.tags["dagster/run_key"] for run in runs) == sorted(map(str, given))
    assert {incident.dispatches for incident in services.ledger.open_incidents()} == {1}
    services.close()


def too_late(dagster: Daemons) -> None:
    """A tick that is evaluated to its end, of which Dagster does not wait for the answer."""
    evaluate = InProcessCodeLocation.get_sensor_execution_data

    def unanswered(*arguments: Any, **options: Any) -> None:  # noqa: ANN401 - Dagster's own
        evaluate(*arguments, **options)
        raise DagsterUserCodeUnreachableError("the answer took more than 60 s")

    lost = patch.object(InProcessCodeLocation, "get_sensor_execution_data", unanswered)
    with lost, pytest.raises(AssertionError, match="more than 60 s"):
        dagster.sense()


def worker(resource_id: str) -> Resource:
    """A resource that nobody stands for."""
    return Resource(
        resource_id=resource_id,
        group_name="g",
        container_name="local",
        thread_count=1,
        memory_mb=0,
    )


# --- Launches that take long ---------------------------------------------------------------------


class Overload:
    """A Dagster in which each run is launched a long time after it was requested."""

    def __init__(self, world: Fleet, launch_time: timedelta) -> None:
        self._world = world
        self._launch_time = launch_time
        self._coming: list[tuple[timedelta, dg.RunRequest, dg.DagsterRun]] = []
        self.age = timedelta(0)
        self.runs = 0

    def goes_on(self, span: timedelta, status: dg.DagsterRunStatus) -> None:
        """A tick, whose runs wait in this status, and the end of those that were launched."""
        self._world.later(span)
        self.age += span
        for request in self._world.tick():
            at = self.age + self._launch_time
            self._coming.append((at, request, self._world.submit(request, status)))
            self.runs += 1
        over = [each for each in self._coming if each[0] <= self.age]
        self._coming = [each for each in self._coming if each[0] > self.age]
        for _, request, run in over:
            for incident in self._world.claim(request, run.run_id):
                self._world.services.restarter.restart(incident.incident_id, run.run_id)
                self._world.register(incident.resource_id)
            self._world.instance.report_run_canceled(run)


@pytest.mark.parametrize("status", [STATUS.NOT_STARTED, STATUS.QUEUED, STATUS.STARTING])
@pytest.mark.parametrize("claim_timeout", [timedelta(minutes=2), timedelta(minutes=6)])
def test_an_overload_does_not_feed_on_itself(
    tmp_path: Path, status: dg.DagsterRunStatus, claim_timeout: timedelta
) -> None:
    """Launches take ten times as long as a claim lasts: each orphan gets one run, and is healed."""
    with fleet(tmp_path, max_restarts_per_run=1) as world:
        world.services = with_settings(world.services, claim_timeout=claim_timeout)
        overload = Overload(world, 10 * claim_timeout)
        for number in range(10):
            world.worker(f"w-{number}")
            overload.goes_on(GRACE, status)
        while world.services.ledger.open_incidents() and overload.age < 20 * claim_timeout:
            overload.goes_on(claim_timeout / 8, status)
        assert [incident.state for incident in world.incidents()] == [State.RECOVERED] * 10
        assert overload.runs <= 1.2 * 10
        # Afterwards everything heals as ever.
        world.worker("w-11")
        overload = Overload(world, timedelta(0))
        for _ in range(3):
            overload.goes_on(GRACE, status)
        assert (overload.runs, world.incidents()[-1].state) == (1, State.RECOVERED)


def test_runs_that_dagster_forgets_are_requested_less_and_less_often(world: Fleet) -> None:
    """It takes the requests and nothing comes of them; when it is well again, all is healed."""
    timeout = world.services.settings.claim_timeout
    world.worker()
    world.tick()
    world.later()
    at = []
    minute = timedelta(minutes=1)
    for number in range(6 * 60):
        at += [number] * len(world.later(minute if number else timedelta(0)).tick())
    assert timeout == 10 * minute
    assert at == [0, 10, 30, 70, 130, 190, 250, 310]
    assert "no run claimed it, several times in a row" in world.message
    (incident,) = world.incidents()
    assert (incident.unused_dispatches, incident.setbacks) == (len(at) - 1, 0)
    (request,) = world.later(timedelta(hours=1)).tick()
    assert world.launch(request).success
    assert world.incidents()[0].unused_dispatches == 0


def test_a_run_that_is_cancelled_in_the_queue_over_and_over_is_requested_less_often(
    world: Fleet,
) -> None:
    """Once may be a mistake; an operator's word is good at any time."""
    world.worker()
    world.tick()
    (first,) = world.later().tick()
    world.submit(first, STATUS.CANCELED)
    (second,) = world.later().tick()
    world.submit(second, STATUS.CANCELED)
    assert world.later().tick() == []
    assert "no run claimed it, several times in a row" in world.message
    world.services.operations.restart_now("w-1", author="ann", reason="now")
    (third,) = world.tick()
    assert world.launch(third).success


# --- What was set back ---------------------------------------------------------------------------


def test_an_orphan_whose_runs_are_lost_delays_no_other(world: Fleet) -> None:
    """It loses its run, is last in the next one, and alone in the third."""
    timeout = world.services.settings.claim_timeout
    world.worker("sick")
    world.tick()
    (request,) = world.later().tick()
    loses(world, request)
    world.worker("w-1")
    world.tick()
    (request,) = world.later(timeout).tick()
    assert resources(world, request) == ["w-1", "sick"]
    loses(world, request)
    world.register("w-1")
    for number in (2, 3):
        world.worker(f"w-{number}")
        world.tick()
    requests = world.later(timeout).tick()
    assert [resources(world, each) for each in requests] == [["w-2", "w-3"], ["sick"]]
    assert [incident.setbacks for incident in world.incidents()] == [2, 0, 0, 0]


def loses(world: Fleet, request: dg.RunRequest) -> None:
    """A run claims what it was given, and nothing follows."""
    world.claim(request, world.submit(request).run_id)


def resources(world: Fleet, request: dg.RunRequest) -> list[str]:
    """What a run was given, in the order in which that was written down."""
    columns = schema.event.c
    query = (
        sa.select(schema.incident.c.resource_id)
        .join(schema.event, columns.incident_id == schema.incident.c.incident_id)
        .where(columns.details.contains(request.run_key))
    )
    with world.services.ledger.reading() as connection:
        return list(connection.scalars(query.order_by(columns.event_id)))
