"""Is a keeper that stopped working noticed? By what its ticks tell of themselves, and by a check.

Real ticks on a real instance, recorded there as Dagster's daemon records them.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    SensorInstigatorData,
    TickData,
    TickStatus,
)
from dagster_shared.error import SerializableErrorInfo

from dagster_amoro.asset_keys import RESOURCES
from dagster_amoro.core.errors import StoreUnavailableError
from dagster_amoro.core.limits import Limits
from dagster_amoro.core.pauses import EVERYTHING, Pause, Scope, Target
from dagster_amoro.stores import schema
from dagster_amoro.stores.database import Database
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro_audit import inspection
from tests.helpers.fleet import START, Fleet, fleet, watched, with_settings

INTERVAL = timedelta(minutes=1)
_ORIGIN = RemoteInstigatorOrigin(
    RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("dagster-amoro"), "__repository__"),
    "orphan_sensor",
)


def quiet_instance(folder: Path) -> dg.DagsterInstance:
    """One that remembers ticks."""
    return dg.DagsterInstance.local_temp(str(folder), {"telemetry": {"enabled": False}})


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Fleet]:
    """A fleet that is looked at every minute, on an instance that remembers ticks."""
    with fleet(tmp_path) as made, quiet_instance(tmp_path) as instance:
        made.instance = instance
        made.services = with_settings(made.services, check_interval=INTERVAL)
        turn_on(instance)
        yield made


def turn_on(instance: dg.DagsterInstance) -> None:
    """The sensor is running."""
    data = SensorInstigatorData(min_interval=60)
    instance.add_instigator_state(
        InstigatorState(_ORIGIN, InstigatorType.SENSOR, InstigatorStatus.RUNNING, data)
    )


def evaluate(world: Fleet) -> None:
    """One tick as the daemon makes and records it."""
    told: dict[str, Any] = {"status": TickStatus.SKIPPED}
    try:
        if world.tick():
            told = {"status": TickStatus.SUCCESS, "run_ids": []}
        else:
            told["skip_reason"] = world.message
    except Exception as error:  # noqa: BLE001 - whatever a tick fails with
        info = SerializableErrorInfo(f"{error}\n", [], type(error).__name__)
        told = {"status": TickStatus.FAILURE, "error": info}
    data = TickData(
        instigator_origin_id=_ORIGIN.get_id(),
        selector_id=_ORIGIN.get_selector().get_id(),
        instigator_name="orphan_sensor",
        instigator_type=InstigatorType.SENSOR,
        timestamp=world.now.timestamp(),
        **told,
    )
    world.instance.create_tick(data)


def fails_with(world: Fleet, error: Exception) -> None:
    """Whoever asks the registry gets this error from now on."""

    def announce(place: str) -> None:
        if place == "before registry.read_snapshot":
            raise error

    world.services = watched(world.services, announce)


def checked(world: Fleet) -> Mapping[str, dg.AssetCheckEvaluation]:
    """One run of all checks, by name; those that failed to run are missing."""
    return world.check(raise_on_error=False)


def test_a_sensor_of_this_name_in_another_location_looks_after_another_fleet(world: Fleet) -> None:
    """Its ticks say nothing of ours; where it is not known where we are, all count."""
    evaluate(world)
    assert inspection._ticks(world.instance, "orphan_sensor", "elsewhere") == []
    ours = inspection._ticks(world.instance, "orphan_sensor", "dagster-amoro")
    assert len(ours) == 1
    assert inspection._ticks(world.instance, "orphan_sensor", None) == ours


def freshness(world: Fleet) -> dg.AssetCheckEvaluation:
    """What the check says of the sensor."""
    return checked(world)["survey_is_fresh"]


def told(world: Fleet) -> list[dict[str, object]]:
    """What the ticks told of themselves, oldest first."""
    records = world.instance.fetch_observations(RESOURCES, limit=1000, ascending=True).records
    observations = [record.asset_observation for record in records]
    return [
        {name: value.value for name, value in each.metadata.items()}
        for each in observations
        if each is not None
    ]


def pause(world: Fleet, target: Target, reason: str = "") -> None:
    """An operator pauses it."""
    with world.services.ledger.transaction() as ledger:
        ledger.add_pause(
            Pause(target=target, author="ann", reason=reason, paused_at=world.now, until=None)
        )


# --- What a tick tells --------------------------------------------------------------------------


def test_a_tick_tells_its_numbers_when_they_change(world: Fleet) -> None:
    """A quiet fleet does not fill the event log."""
    world.worker("well", group="a")
    world.register("well")
    world.worker("dead")
    world.group("g", min_parallelism="2")
    evaluate(world)
    quiet = world.cursor
    for _ in range(5):
        evaluate(world.later(timedelta(seconds=1)))
    first = {
        "resources": 2,
        "orphans": 1,
        "open incidents": 1,
        "refused restarts": 0,
        "groups below their min-parallelism": 1,
        "abstentions in a row": 0,
        "seconds since the last completed survey": 0,
        "who acts": "this deployment",
        "paused": 0,
    }
    assert told(world) == [first]
    assert len(world.cursor or "") == len(quiet or "")
    world.register("dead", "g", 2)
    evaluate(world)
    back = {"orphans": 0, "open incidents": 0, "groups below their min-parallelism": 0}
    assert told(world) == [first, first | back]


def test_the_message_of_the_tick_stands_beside_its_numbers(world: Fleet) -> None:
    """As the reader of the sensor's page sees it."""
    evaluate(world)
    (record,) = world.instance.fetch_observations(RESOURCES, limit=2).records
    assert record.asset_observation is not None
    assert record.asset_observation.description == world.message == "0 resources, 0 orphans"


def test_every_abstaining_tick_tells_how_long_it_goes_on(world: Fleet) -> None:
    """And the first one that looks again says that it is over."""
    evaluate(world)
    keeper = world.services
    fails_with(world, StoreUnavailableError("the registry is away"))
    for _ in range(3):
        evaluate(world.later(INTERVAL))
    names = ["abstentions in a row", "seconds since the last completed survey", "who acts"]
    assert [[each[name] for name in names] for each in told(world)[1:]] == [
        [1, 60, "nobody"],
        [2, 120, "nobody"],
        [3, 180, "nobody"],
    ]
    world.services = keeper
    evaluate(world.later(INTERVAL))
    assert [told(world)[-1][name] for name in names] == [0, 0, "this deployment"]


def test_a_sensor_that_abstains_from_the_start_tells_what_it_knows(world: Fleet) -> None:
    """It never looked, so nobody knows how long ago that was."""
    fails_with(world, StoreUnavailableError("the registry is away"))
    evaluate(world)
    assert told(world) == [{"abstentions in a row": 1, "who acts": "nobody"}]


def test_a_ledger_that_is_away_after_the_look_takes_no_number_with_it(world: Fleet) -> None:
    """What is handed over is requested all the same, and the numbers are told."""
    world.worker()
    evaluate(world)
    away: list[str] = []

    def announce(place: str) -> None:
        if place == "before ledger.changed_groups":
            away.append(place)
            raise StoreUnavailableError("the ledger is away")

    world.services = watched(world.services, announce)
    assert len(world.later().tick()) == 1
    assert away
    assert told(world)[-1]["paused"] == 0


def test_refused_restarts_are_counted_by_the_tick(world: Fleet) -> None:
    """Those that the limits hold back, and those whose last start failed; not those in grace."""
    world.services = replace(world.services, limits=Limits(max_orphaned_of={"sick": 0.5}))
    for number in range(3):
        world.worker(f"sick-{number}", group="sick")
    world.worker("broken")
    world.container.fail_starts("no image", times=1)
    evaluate(world)
    assert told(world)[-1]["refused restarts"] == 0
    (request,) = world.later().tick()
    assert told(world)[-1]["refused restarts"] == 3
    run = world.submit(request)
    (incident,) = world.claim(request, run.run_id)
    world.services.restarter.restart(incident.incident_id, run.run_id)
    evaluate(world)
    assert told(world)[-1]["refused restarts"] == 4


def test_pauses_are_counted_while_they_hold(world: Fleet) -> None:
    """Also where nothing is orphaned: somebody may have forgotten one."""
    pause(world, EVERYTHING)
    pause(world, Target(scope=Scope.GROUP, name="g"))
    evaluate(world)
    assert told(world)[-1]["paused"] == 2


# --- Stopped, failing, abstaining, watching -----------------------------------------------------


def stopped(world: Fleet) -> None:
    """Nothing is evaluated any more."""
    world.later(INTERVAL)


def failing(world: Fleet) -> None:
    """Each tick ends in an error that nobody thought of."""
    fails_with(world, RuntimeError("what nobody thought of"))
    evaluate(world.later(INTERVAL))


def abstaining(world: Fleet) -> None:
    """Each tick concludes nothing."""
    fails_with(world, StoreUnavailableError("the registry is away"))
    evaluate(world.later(INTERVAL))


@pytest.mark.long
@pytest.mark.parametrize(
    ("happens", "because"),
    [
        (stopped, "it has no newer tick; is the sensor running, and the daemon?"),
        (failing, "its tick failed: what nobody thought of"),
        (abstaining, "Abstained, nothing was changed: the registry is away (4 abstentions in a"),
    ],
)
def test_a_sensor_that_does_not_look_any_more_is_noticed(
    world: Fleet, happens: Callable[[Fleet], None], because: str
) -> None:
    """Three intervals after the last survey it may still come back; after that the check fails."""
    evaluate(world)
    for _ in range(3):
        happens(world)
    assert freshness(world).passed
    happens(world)
    found = freshness(world)
    assert not found.passed
    assert found.severity is dg.AssetCheckSeverity.ERROR
    assert f"for 4 min, allowed are 3 min: {because}" in (found.description or "")
    age = found.metadata["seconds since the last completed survey"].value
    abstentions = found.metadata["abstentions in a row"].value
    assert (age, abstentions) == (240, 4 if happens is abstaining else 0)


@pytest.mark.long
def test_a_sensor_that_looks_again_is_fresh_at_once(world: Fleet) -> None:
    """However long it was away."""
    evaluate(world)
    keeper = world.services
    for _ in range(9):
        abstaining(world)
    assert not freshness(world).passed
    world.services = keeper
    evaluate(world.later(INTERVAL))
    found = freshness(world)
    assert found.passed
    assert found.metadata["abstentions in a row"].value == 0


def test_it_is_noticed_though_the_stores_are_away(world: Fleet, tmp_path: Path) -> None:
    """The check asks Dagster, and comes before those that cannot be made."""
    evaluate(world)
    (tmp_path / "file").write_text("no database")
    away = Database(sa.URL.create("sqlite", database=str(tmp_path / "file")), "ledger")
    world.services = replace(world.services, ledger=Ledger(away))
    for _ in range(4):
        evaluate(world.later(INTERVAL))
    found = checked(world)
    assert list(found) == ["survey_is_fresh"]
    assert not found["survey_is_fresh"].passed
    assert told(world)[-1]["abstentions in a row"] == 4
    away.close()


@pytest.mark.long
def test_a_standby_is_fresh_until_it_cannot_take_over(world: Fleet) -> None:
    """It watches while the other one's lease is in force; after that it must look by itself."""
    lease = timedelta(hours=1)
    blue = Fleet(
        replace(world.services, deployment="blue", lease_time=lease),
        world.container,
        dg.DagsterInstance.ephemeral(),
    )
    world.services = replace(world.services, deployment="green", lease_time=lease)
    blue.tick()
    assert told(blue)[-1]["who acts"] == "blue"
    for _ in range(9):
        evaluate(world.later(INTERVAL))
    assert world.message.startswith("Watching: blue ")
    found = freshness(world)
    assert found.passed
    assert "on standby, 0 s ago: Watching: blue " in (found.description or "")
    assert told(world) == [{"who acts": "watching", "abstentions in a row": 0}]

    over = sa.update(schema.lease).values(expires_at=START)
    with world.services.ledger.database.writing() as connection:
        connection.execute(over)
    for _ in range(3):
        abstaining(world)
    assert freshness(world).passed
    abstaining(world)
    found = freshness(world)
    assert not found.passed
    assert "for 4 min, allowed are 3 min: Abstained" in (found.description or "")
    assert told(world)[-1]["seconds since the last completed survey"] == 240


# --- Refused restarts ---------------------------------------------------------------------------


def refusal(world: Fleet) -> dg.AssetCheckEvaluation:
    """What the check says of refused restarts."""
    return checked(world)["restarts_are_not_refused"]


@pytest.mark.long
def test_what_the_guards_hold_back_is_told_with_its_share(world: Fleet) -> None:
    """Once it is due; the groups that are allowed to be restarted are not named."""
    world.services = replace(world.services, limits=Limits(max_orphaned=0.5))
    for number in range(9):
        world.worker(f"sick-{number}", group="sick")
        world.worker(f"calm-{number}", group="calm")
    for name in ("sick-0", "sick-1", *(f"calm-{number}" for number in range(8))):
        world.register(name)
    evaluate(world)
    assert refusal(world).passed
    evaluate(world.later())
    found = refusal(world)
    assert not found.passed
    assert found.severity is dg.AssetCheckSeverity.ERROR
    assert (
        found.description == "the limits hold 7 orphans back: sick (7 of 9 orphaned, allowed 50%)"
    )
    assert found.metadata["refused restarts"].value == 7
    assert "sick: " not in world.message
    assert "7 held (7 of 9 orphaned, allowed 50%)" in told_messages(world)


def told_messages(world: Fleet) -> str:
    """What the ticks said, in the UI's event log."""
    records = world.instance.fetch_observations(RESOURCES, limit=1000).records
    return " ".join(str(r.asset_observation and r.asset_observation.description) for r in records)


@pytest.mark.long
def test_a_start_that_failed_is_a_refusal_until_the_next_one_goes_through(world: Fleet) -> None:
    """With the error of the newest."""
    world.worker()
    evaluate(world)
    (request,) = world.later().tick()
    run = world.submit(request)
    (incident,) = world.claim(request, run.run_id)
    world.container.fail_starts("no image", times=1)
    world.services.restarter.restart(incident.incident_id, run.run_id)
    found = refusal(world)
    assert not found.passed
    assert found.description == "the last start of 1 orphan failed: w-1; newest error: no image"
    world.later().services.restarter.restart(incident.incident_id, run.run_id)
    assert refusal(world).passed


@pytest.mark.long
def test_a_group_whose_rounds_did_not_help_is_a_refusal(world: Fleet) -> None:
    """Until somebody changes its min-parallelism, or it gets its threads from elsewhere."""
    world.services = with_settings(world.services, max_keeping_attempts=1)
    world.group("g", min_parallelism="4")
    world.container.fail_starts("no image", times=9)
    (request,) = world.tick()
    world.launch(request)
    for _ in range(5):
        world.later(timedelta(hours=1)).tick()
    found = refusal(world)
    assert not found.passed
    assert (
        found.description
        == "1 group could not be scaled up: g (below 4 threads after 1 round; newest error: "
        "failed: no image)"
    )
    world.register(None, "g", 4)
    world.tick()
    assert refusal(world).passed


def test_what_is_paused_is_said_and_is_no_refusal(world: Fleet) -> None:
    """Neither what a limit would hold back nor what failed, nor is it overdue."""
    world.services = replace(world.services, limits=Limits(max_orphaned=0.1))
    world.worker()
    evaluate(world)
    pause(world, Target(scope=Scope.GROUP, name="g"), "upgrade")
    evaluate(world.later(timedelta(days=1)))
    found = checked(world)
    assert found["restarts_are_not_refused"].description == (
        "no restart is refused; paused, which is no refusal: group g is paused by ann: upgrade"
    )
    assert found["restarts_are_not_refused"].passed
    assert found["no_incident_overdue"].passed
    assert found["no_incident_overdue"].metadata["open incidents"].value == 1
