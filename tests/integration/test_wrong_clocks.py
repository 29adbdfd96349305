"""A clock was wrong, once or for long: nothing is concluded by it, and nothing waits for years."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from dagster_amoro.core.corrections import LONGEST_CLAIM, TOLERANCE
from dagster_amoro.core.model import State
from dagster_amoro.stores.leases import acquire
from dagster_amoro.stores.registry import optimizer
from tests.helpers.fleet import GRACE, START, Fleet, fleet

pytestmark = pytest.mark.long

YEAR = timedelta(days=365)
SECOND = timedelta(seconds=1)


@pytest.fixture
def world(tmp_path: Path, database_url: sa.URL) -> Iterator[Fleet]:
    """A fleet on each database."""
    with fleet(tmp_path, url=database_url) as made:
        yield made


@pytest.mark.parametrize(("wrong", "side"), [(YEAR, "ahead of"), (-YEAR, "behind")])
def test_a_host_whose_clock_is_wrong_concludes_nothing(
    world: Fleet, wrong: timedelta, side: str
) -> None:
    """The ledger's database judges. Nor does it take the lease, so that others can act."""
    right = replace(world.services, lease_time=timedelta(hours=1), deployment="here")
    world.services = replace(right, host_clock=lambda: datetime.now(UTC) + wrong)
    world.worker()
    for _ in range(2):
        assert world.tick() == []
        assert world.message.startswith("Abstained, nothing was changed: this host's clock is 87")
        assert world.message.endswith(f" {side} that of the ledger's database")
    assert world.incidents() == []
    world.services = replace(right, deployment="there", clock=lambda: world.now)
    world.tick()
    assert len(world.incidents()) == 1


def test_clocks_that_differ_a_little_are_right(world: Fleet) -> None:
    """Minutes are usual."""
    near = TOLERANCE - timedelta(seconds=30)
    world.services = replace(world.services, host_clock=lambda: datetime.now(UTC) - near)
    world.worker()
    world.tick()
    assert len(world.incidents()) == 1


def test_a_detection_in_the_future_counts_from_now_on(world: Fleet) -> None:
    """The tick says so once; the grace period is as long as ever, and then it is restarted."""
    world.now = START + YEAR
    world.worker()
    world.tick()
    world.refresh("g")
    world.now = START
    assert world.tick() == []
    assert world.message == "1 resource, 1 orphan: 1 in grace for 30 s. New: 1 corrected"
    (incident,) = world.incidents()
    assert incident.detected_at == START
    assert world.kinds() == ["detected", "corrected"]
    world.refresh("g")
    assert list(world.history("g").incidents["detected"]) == [START]
    assert world.later(GRACE - SECOND).tick() == []
    assert world.message == "1 resource, 1 orphan: 1 in grace for 1 s"
    (request,) = world.later(SECOND).tick()
    assert world.launch(request).success
    assert world.container.requested == ["w-1"]


def test_an_attempt_in_the_future_counts_from_now_on(world: Fleet) -> None:
    """The next one follows a grace period later."""
    world.worker()
    world.tick()
    (request,) = world.later().tick()
    world.now += YEAR
    assert world.launch(request).success
    world.now -= YEAR
    assert world.tick() == []
    assert "1 corrected" in world.message
    (request,) = world.later(GRACE).tick()
    assert world.launch(request).success
    assert world.container.requested == ["w-1"] * 2


def test_a_claim_of_a_lost_run_does_not_hold_for_years(world: Fleet) -> None:
    """It is as long as any other from now on."""
    world.worker()
    world.tick()
    (request,) = world.later().tick()
    world.now += YEAR
    world.claim(request, "lost")
    world.now -= YEAR
    world.tick()
    assert "1 corrected" in world.message
    (request,) = world.later(world.services.settings.claim_timeout).tick()
    assert world.launch(request).success
    assert world.container.requested == ["w-1"]


def test_what_a_run_has_in_hand_it_dates_itself(world: Fleet) -> None:
    """Its clock may be ahead; a step of ours would take the incident from it."""
    world.worker()
    world.tick()
    (request,) = world.later().tick()
    hour = timedelta(hours=1)
    world.now += hour
    (claimed,) = world.claim(request, "run")
    world.now -= hour
    world.tick()
    assert world.incidents() == [claimed]


def test_a_round_in_the_far_future_is_due(world: Fleet) -> None:
    """Its group gets its threads now."""
    world.group(min_parallelism="4")
    world.now = START + YEAR
    world.container.fail_starts("no room", times=1)
    (request,) = world.tick()
    world.launch(request)
    world.now = START
    (request,) = world.tick()
    assert request.job_name == "scale_up_groups"


def test_a_heartbeat_of_the_future_expires_like_any_other(world: Fleet) -> None:
    """A worker that lives touches again; one that is dead does not."""
    world.worker()
    world.register()
    ahead = sa.update(optimizer).values(touch_time=datetime(2099, 1, 1))  # noqa: DTZ001
    world.execute(ahead)
    world.tick()
    assert world.message == (
        "1 resource, 0 orphans. New: 1 heartbeat of the future counted from now on"
    )
    with world.services.registry.database.reading() as connection:
        touched = connection.scalars(sa.select(optimizer.c.touch_time)).one()
    assert touched.replace(tzinfo=UTC) <= datetime.now(UTC) + TOLERANCE
    world.tick()
    assert world.message == "1 resource, 0 orphans"
    old = datetime.now(UTC).replace(tzinfo=None) - timedelta(minutes=2)
    world.execute(sa.update(optimizer).values(touch_time=old))
    world.tick()
    assert [each.state for each in world.incidents()] == [State.WAITING]


def test_in_a_dry_run_heartbeats_stay_as_they_are(world: Fleet) -> None:
    """Nothing is written to the registry."""
    world.worker()
    world.register()
    world.execute(sa.update(optimizer).values(touch_time=datetime(2099, 1, 1)))  # noqa: DTZ001
    world.services = world.services.in_dry_run()
    world.tick()
    with world.services.registry.database.reading() as connection:
        assert connection.scalars(sa.select(optimizer.c.touch_time)).one().year == 2099


def test_a_lease_that_holds_for_years_is_shortened(world: Fleet) -> None:
    """It was given while the database's clock was wrong; its holder, if it lives, renews it."""
    hour = timedelta(hours=1)
    ledger = world.services.ledger

    def acquired(holder: str, lease_time: timedelta) -> bool:
        with ledger.transaction() as transaction:
            return acquire(transaction.connection, holder, lease_time)[1].holder == holder

    assert acquired("there", LONGEST_CLAIM)
    assert not acquired("here", hour)
    with ledger.transaction() as transaction:
        before, _ = acquire(transaction.connection, "here", hour)
    assert before.expires_at > ledger.clock() + LONGEST_CLAIM - hour  # it may be somebody's wish
    assert acquired("there", YEAR)
    assert not acquired("here", hour)
    with ledger.transaction() as transaction:
        before, _ = acquire(transaction.connection, "here", hour)
    assert before.expires_at <= ledger.clock() + hour
