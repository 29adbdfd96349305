"""What happens when the world changes, or a store goes away, in the middle of a turn or a tick."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from dagster_amoro.core.errors import StoreUnavailableError
from dagster_amoro.core.model import State
from dagster_amoro.defs.cursor import parse_cursor
from dagster_amoro.stores import database
from dagster_amoro.stores.leases import acquire
from dagster_amoro.stores.schema import lease
from tests.helpers.fleet import START, Fleet, fleet, watched

RUN = "the-run"

# The calls that a turn makes on the registry, the ledger and the container, in their order.
RESTART = [
    "ledger.incident",
    "registry.read_resource",
    "registry.group",
    "containers.obstacle",
    "ledger.pauses",
    "containers.get",
    "registry.rehearse",
    "container.post_mortem",
    "ledger.apply",
    "registry.read_resource",
    "ledger.incident",
    "container.release_resource",
    "registry.read_resource",
    "ledger.incident",
    "container.request_resource",
    "registry.save_startup",
    "ledger.apply",
]
GIVE_UP = [
    "ledger.incident",
    "registry.read_resource",
    "registry.group",
    "containers.obstacle",
    "ledger.pauses",
    "ledger.apply",
    "ledger.incident",
    "registry.remove_orphan",
    "ledger.removed_row",
    "ledger.incident",
    "containers.get",
    "container.release_resource",
    "ledger.events",
    "ledger.apply",
]


def under_a_lease(calls: list[str]) -> list[str]:
    """The same where several deployments share the registry: the lease is looked at, too."""
    look = "ledger.incident"
    return calls[:1] + [
        each for call in calls[1:] for each in (["ledger.ensure_lease"] * (call == look) + [call])
    ]


KINDS = {
    "restart": RESTART,
    "give up": GIVE_UP,
    "restart under a lease": under_a_lease(RESTART),
    "give up under a lease": under_a_lease(GIVE_UP),
}
PLACES = {
    name: [f"{when} {call}" for call in calls for when in ("before", "after")]
    for name, calls in KINDS.items()
}
ALL_CASES = [
    pytest.param(kind, number, id=f"{kind}, {number} {place}")
    for kind, places in PLACES.items()
    for number, place in enumerate(places)
]
LEASED_CASES = [case for case in ALL_CASES if "lease" in str(case.values[0])]
CASES = [case for case in ALL_CASES if case not in LEASED_CASES]


@contextmanager
def claimed(tmp_path: Path, kind: str) -> Iterator[Fleet]:
    """A fleet with one orphan, due for a restart or to be given up, claimed by a run."""
    with fleet(tmp_path, max_retries=1 if "restart" in kind else 0) as world:
        if "lease" in kind:
            leased = {"deployment": "one", "lease_time": timedelta(hours=1)}
            world.services = replace(world.services, **leased)  # type: ignore[arg-type]
        world.worker()
        world.tick()
        (request,) = world.later().tick()
        world.claim(request, RUN)
        yield world


def turn_with(world: Fleet, kind: str, at: int, act: Callable[[], object]) -> list[str]:
    """Takes the turn and lets something happen at one place; returns the places passed."""
    passed: list[str] = []

    def announce(place: str) -> None:
        passed.append(place)
        if len(passed) == at + 1:
            act()

    watched(world.services, announce).restarter.restart(1, RUN)
    assert passed[: at + 1] == PLACES[kind][: at + 1]
    return passed


def settle(world: Fleet) -> None:
    """Ticks and runs until nothing is left to do."""
    for number in range(4):
        for request in world.later(world.services.settings.claim_timeout).tick():
            for incident in world.claim(request, f"later-{number}"):
                world.services.restarter.restart(incident.incident_id, f"later-{number}")


@pytest.mark.parametrize("kind", PLACES)
def test_a_turn_makes_the_calls_that_these_tests_think_it_makes(tmp_path: Path, kind: str) -> None:
    """Otherwise the places below would not be all the places."""
    with claimed(tmp_path, kind) as world:
        assert turn_with(world, kind, 0, lambda: None) == PLACES[kind]


@pytest.mark.long
@pytest.mark.parametrize(("kind", "at"), CASES)
def test_an_optimizer_registers_in_the_middle_of_a_turn(tmp_path: Path, kind: str, at: int) -> None:
    """It is never started once it is registered, and ends as recovered unless it is gone."""
    with claimed(tmp_path, kind) as world:
        world.container.during_request = lambda _: started_while.append(is_registered(world))
        started_while: list[bool] = []
        turn_with(world, kind, at, world.register)
        # The places where nobody can know: after the last look, which only a look at who owns the
        # incident follows, and within the call itself.
        call = PLACES["restart"].index("before container.request_resource")
        assert kind == "give up" or not any(started_while) or at in range(call - 3, call + 1)
        settle(world)
        world.touch()  # what registered while an earlier start was stopped counts from here
        settle(world)
        (incident,) = world.incidents()
        removed = world.services.registry.read_resource("w-1").row is None
        assert incident.state is (State.EXHAUSTED if removed else State.RECOVERED)
        # Removed only where the registration came after the guarded delete.
        assert removed == (
            kind == "give up" and at > PLACES[kind].index("before registry.remove_orphan")
        )


@pytest.mark.long
@pytest.mark.parametrize(("kind", "at"), CASES)
def test_a_resource_is_removed_in_the_middle_of_a_turn(tmp_path: Path, kind: str, at: int) -> None:
    """Nothing is left running, and the incident ends."""
    with claimed(tmp_path, kind) as world:
        turn_with(world, kind, at, world.release)
        settle(world)
        (incident,) = world.incidents()
        assert incident.state in {State.RELEASED, State.EXHAUSTED}
        saved = PLACES["restart"].index("after registry.save_startup")
        if kind == "give up" or at < saved:  # later, whoever removes the row sees what to stop
            assert not world.container.running


@pytest.mark.long
@pytest.mark.parametrize(("kind", "at"), CASES)
def test_properties_are_changed_in_the_middle_of_a_turn(tmp_path: Path, kind: str, at: int) -> None:
    """An operator's change survives the saving of the start-up properties."""
    with claimed(tmp_path, kind) as world:
        turn_with(world, kind, at, lambda: world.properties('{"memory":"2048"}'))
        row = world.services.registry.read_resource("w-1").row
        assert row is None or '"memory":"2048"' in row["properties"]
        settle(world)
        assert world.incidents()[0].state is State.EXHAUSTED
        kept = world.services.ledger.removed_row(1) or {}
        changed = kind == "restart" or at <= PLACES[kind].index("before registry.remove_orphan")
        assert ('"memory":"2048"' in kept["properties"]) == changed


@pytest.mark.long
@pytest.mark.parametrize(("kind", "at"), CASES)
def test_properties_are_spoilt_in_the_middle_of_a_turn(tmp_path: Path, kind: str, at: int) -> None:
    """What cannot be recorded does not run on; mended, the row is healed."""
    with claimed(tmp_path, kind) as world:
        turn_with(world, kind, at, lambda: world.properties('{"a":'))
        row = world.services.registry.read_resource("w-1").row
        spoilt = row is not None and row["properties"] == '{"a":'
        saved = at > PLACES["restart"].index("before registry.save_startup")
        assert kind == "give up" or saved or not world.container.running
        assert not spoilt or world.incidents()[0].state in {*State} - {State.EXHAUSTED}


@pytest.mark.long
@pytest.mark.parametrize(("kind", "at"), CASES)
def test_the_process_dies_in_the_middle_of_a_turn(tmp_path: Path, kind: str, at: int) -> None:
    """As if killed: whatever was written stands, and others carry on from there."""
    with claimed(tmp_path, kind) as world:

        def die() -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            turn_with(world, kind, at, die)
        settle(world)
        (incident,) = world.incidents()
        assert incident.state is State.EXHAUSTED
        assert incident.attempts_used <= world.services.policy.max_retries  # but for the lost one
        assert len(world.container.requested) <= incident.attempts
        assert world.services.registry.read_resource("w-1").row is None
        kept = world.services.ledger.removed_row(1)
        assert kept is not None
        assert kept["resource_id"] == "w-1"


def taken_over(world: Fleet) -> None:
    """This process slept: its lease ran out, and another deployment has acted since."""
    ended = timedelta(0)  # so that the first one can take over again
    with world.services.ledger.transaction() as ledger:
        ledger.connection.execute(sa.update(lease).values(expires_at=START))
        acquire(ledger.connection, "two", ended)


@pytest.mark.long
@pytest.mark.parametrize(("kind", "at"), LEASED_CASES)
def test_the_lease_is_lost_in_the_middle_of_a_turn(tmp_path: Path, kind: str, at: int) -> None:
    """Nothing is started or removed that the lease was not looked at for, and nothing runs on."""
    with claimed(tmp_path, kind) as world:
        before = world.services.registry.read_resource("w-1").row
        turn_with(world, kind, at, lambda: taken_over(world))
        places = PLACES[kind]
        is_over = at == len(places) - 1  # everything is written by then
        assert is_over or not world.container.running
        asked = len(places) - 1 - places[::-1].index("after ledger.ensure_lease")
        first = places.index("after ledger.ensure_lease")
        assert world.container.requested == (["w-1"] if "restart" in kind and at >= asked else [])
        assert at >= first or world.services.registry.read_resource("w-1").row == before
        (incident,) = world.incidents()
        assert incident.is_open or (is_over and "give up" in kind)
        settle(world)
        assert world.incidents()[0].state is State.EXHAUSTED
        assert world.services.registry.read_resource("w-1").row is None
        kept = world.services.ledger.removed_row(1)
        assert kept is not None
        assert not world.container.running


def test_another_run_takes_over_while_this_one_is_held_up(tmp_path: Path) -> None:
    """The late one finds out before it records anything, and undoes its own start only."""
    with claimed(tmp_path, "restart") as world:
        policy = replace(world.services.policy, max_retries=3)
        world.services = replace(world.services, policy=policy)

        def overtaken() -> None:
            (request,) = world.later(world.services.settings.claim_timeout).tick()
            world.launch(request)

        at = PLACES["restart"].index("after container.request_resource")
        turn_with(world, "restart", at, overtaken)
        assert len(world.container.requested) == 2
        row = world.services.registry.read_resource("w-1").row
        assert row is not None
        launches = [call for call in world.container.calls if call.action == "release"]
        assert world.container.running == {"w-1"}
        assert launches[-1].resource.properties["recording-launch"] == "2"
        assert '"recording-launch":"4"' in row["properties"]


@contextmanager
def locked(world: Fleet) -> Iterator[None]:
    """Somebody else holds the database for as long as the block lasts."""
    path = world.services.registry.database.url.database
    for store in (world.services.registry, world.services.ledger):
        store.database.close()  # open connections would keep the other one out
    with closing(sqlite3.connect(path or "", isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        yield
        other.execute("COMMIT")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks are not waited for."""
    monkeypatch.setattr(database, "LOCK_TIMEOUT_SECONDS", 0)


@pytest.mark.usefixtures("impatient")
def test_a_tick_abstains_while_the_database_is_locked(tmp_path: Path) -> None:
    """It says why, requests nothing and writes nothing; the next one carries on."""
    with fleet(tmp_path) as world:
        world.worker()
        world.tick()
        world.later()
        before, cursor = world.dump(), parse_cursor(world.cursor)
        with locked(world):
            assert world.tick() == []
        assert world.message.startswith("Abstained, nothing was changed: the ")
        assert "locked" in world.message
        assert world.dump() == before
        after = parse_cursor(world.cursor)
        assert replace(after, reported=cursor.reported) == replace(cursor, abstentions=1)
        assert len(world.tick()) == 1


def test_what_was_handed_over_is_requested_though_the_ledger_is_away_by_then(
    tmp_path: Path,
) -> None:
    """The news of the tick wait for the next one; its runs cannot."""
    with fleet(tmp_path) as world:
        world.worker()
        world.tick()
        real, cursor = world.services, parse_cursor(world.cursor)

        def announce(place: str) -> None:
            if place == "before ledger.changed_groups":
                raise StoreUnavailableError

        world.services = watched(real, announce)
        (request,) = world.later().tick()
        assert parse_cursor(world.cursor).event == cursor.event
        world.services = replace(real, clock=lambda: world.now)
        assert world.launch(request).success
        assert world.container.requested == ["w-1"]


def test_a_tick_abstains_while_the_database_is_away(tmp_path: Path) -> None:
    """An unreadable file is the same as a server that is down."""
    with fleet(tmp_path) as world:
        world.worker()
        world.tick()
        world.services.registry.database.close()
        world.services.ledger.database.close()
        (tmp_path / "registry.db").write_bytes(b"not a database, for a while" * 100)
        assert world.later().tick() == []
        assert world.message.startswith("Abstained, nothing was changed: the ")


@pytest.mark.parametrize(
    ("kind", "at"), [case for case in CASES if " container" not in str(case.id)]
)
def test_a_store_goes_away_in_the_middle_of_a_turn(tmp_path: Path, kind: str, at: int) -> None:
    """The turn ends with the reason; taken again when the store is back, it ends well."""
    with claimed(tmp_path, kind) as world:

        def away() -> None:
            raise StoreUnavailableError("the ledger cannot be read: gone fishing")

        with pytest.raises(StoreUnavailableError):
            turn_with(world, kind, at, away)
        settle(world)
        assert world.incidents()[0].state is State.EXHAUSTED
        assert not world.container.running


def test_a_step_whose_store_is_away_is_retried_by_its_policy(tmp_path: Path) -> None:
    """The run does not give up on an orphan because a database was restarted."""
    with fleet(tmp_path, grace=timedelta(0)) as world:
        world.worker()
        (request,) = world.tick()
        looks = []

        def announce(place: str) -> None:
            looks.append(place)
            first_look = looks.count("before registry.read_resource") == 1
            if first_look and place == "before registry.read_resource":
                raise StoreUnavailableError

        world.services = watched(world.services, announce)
        result = world.launch(request)
        assert result.success
        assert [e for e in result.all_events if e.event_type_value == "STEP_UP_FOR_RETRY"]
        assert world.container.requested == ["w-1"]


def is_registered(world: Fleet) -> bool:
    """Whether an optimizer stands for the worker now."""
    return world.services.registry.read_resource("w-1").registered
