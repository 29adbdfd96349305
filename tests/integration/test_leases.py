"""Who acts, where several deployments share a registry; on every database, by its own clock."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Barrier
from typing import Final

import pytest
import sqlalchemy as sa

from dagster_amoro.core import transitions
from dagster_amoro.core.errors import LeaseLostError, StoreUnavailableError
from dagster_amoro.core.model import Event, EventKind, Incident, Orphan
from dagster_amoro.healing.assembly import Services
from dagster_amoro.healing.preconditions import StandbyError
from dagster_amoro.stores.database import Database, is_mysql
from dagster_amoro.stores.leases import Lease, acquire, ensure
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro.stores.schema import event as event_table
from dagster_amoro.stores.schema import incident as incident_table
from dagster_amoro.stores.schema import lease as lease_table
from tests.helpers.fleet import fleet_services
from tests.helpers.waiting import PATIENCE

NOW: Final = datetime(2026, 3, 29, 0, 59, 59, 999_999, tzinfo=UTC)
UNTIL: Final = NOW + timedelta(minutes=10)
LONG: Final = timedelta(hours=1)  # longer than any test
MICROSECOND: Final = timedelta(microseconds=1)

OpenDatabase = Callable[..., Database]


@pytest.fixture
def ledger(database_url: sa.URL, open_database: OpenDatabase) -> Ledger:
    """A ledger on which nobody ever had a lease."""
    return Ledger(open_database(database_url, "ledger"))


def acquired(ledger: Ledger, holder: str, lease_time: timedelta = LONG) -> tuple[Lease, Lease]:
    """What comes of asking for the lease: as it was, and as it is."""
    with ledger.transaction() as writing:
        return acquire(writing.connection, holder, lease_time)


def stored(ledger: Ledger) -> list[dict[str, object]]:
    """The rows of the lease, of which there is one at most."""
    with ledger.reading() as connection:
        return [dict(row) for row in connection.execute(sa.select(lease_table)).mappings()]


def change(ledger: Ledger, **values: object) -> None:
    """Writes into the lease's row, as time or somebody else would."""
    with ledger.transaction() as writing:
        writing.connection.execute(sa.update(lease_table).values(**values))


def run_out(ledger: Ledger) -> None:
    """Its time is over."""
    change(ledger, expires_at=NOW)


def set_clock(monkeypatch: pytest.MonkeyPatch, ledger: Ledger, now: datetime) -> None:
    """Lets the database say what time it is."""
    said = sa.literal(now.replace(tzinfo=None), sa.DateTime)
    dialect = ledger.database.engine.dialect
    clock: sa.ColumnElement[datetime] = said
    if is_mysql(dialect):
        clock = sa.cast(said, sa.dialects.mysql.DATETIME(fsp=6))
    monkeypatch.setattr("dagster_amoro.stores.leases.utc_now", lambda: clock)


def an_incident(ledger: Ledger, fence: int | None = None) -> Incident:
    """An incident that was handed over under a lease."""
    detected = transitions.detect(Orphan("r-1", "g", "local", 2, 1024, "{}"), NOW)
    with ledger.transaction() as writing:
        (opened,) = writing.apply([detected])
        assert opened is not None
        (handed,) = writing.apply([transitions.dispatch(opened, "key", UNTIL, NOW, fence)])
    assert handed is not None
    return handed


def an_event() -> Event:
    """An event of everything."""
    return Event(kind=EventKind.LEASE_TAKEN, at=NOW, message="an event")


def written(ledger: Ledger) -> tuple[int, int]:
    """How many incidents and events there are."""
    with ledger.reading() as connection:
        count = sa.select(sa.func.count())
        return (
            connection.scalar(count.select_from(incident_table)) or 0,
            connection.scalar(count.select_from(event_table)) or 0,
        )


# --- Taking it --------------------------------------------------------------------------------


def test_a_lease_that_nobody_had_is_taken(ledger: Ledger) -> None:
    """With the first fence, for as long as was asked, by the database's clock."""
    before, after = acquired(ledger, "one")
    assert (before.holder, before.fence) == ("", 0)
    assert (after.holder, after.fence) == ("one", 1)
    (row,) = stored(ledger)
    assert (row["holder"], row["fence"], row["expires_at"]) == after
    assert row["acquired_at"] == after.expires_at - LONG
    assert abs(datetime.now(UTC) - after.expires_at + LONG) < timedelta(minutes=10)


def test_its_holder_renews_it(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end moves, the fence and the beginning do not."""
    set_clock(monkeypatch, ledger, NOW)
    _, first = acquired(ledger, "one")
    set_clock(monkeypatch, ledger, NOW + MICROSECOND)
    before, renewed = acquired(ledger, "one")
    assert before == first == Lease("one", 1, NOW + LONG)
    assert renewed == Lease("one", 1, NOW + MICROSECOND + LONG)
    (row,) = stored(ledger)
    assert row["acquired_at"] == NOW


def test_a_renewal_may_shorten_it(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the configuration was changed: what counts is what the holder said last."""
    set_clock(monkeypatch, ledger, NOW)
    acquired(ledger, "one", LONG)
    assert acquired(ledger, "one", MICROSECOND)[1] == Lease("one", 1, NOW + MICROSECOND)


def test_another_one_is_told_who_has_it(ledger: Ledger) -> None:
    """And changes nothing."""
    _, first = acquired(ledger, "one")
    before = stored(ledger)
    assert acquired(ledger, "two") == (first, first)
    assert stored(ledger) == before


@pytest.mark.parametrize("early", [MICROSECOND, timedelta(0), -MICROSECOND])
def test_it_is_taken_over_when_it_has_run_out(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, early: timedelta
) -> None:
    """Not a microsecond before, and from that moment on the fence is another one."""
    set_clock(monkeypatch, ledger, NOW)
    _, first = acquired(ledger, "one")
    now = NOW + LONG - early
    set_clock(monkeypatch, ledger, now)
    before, after = acquired(ledger, "two")
    assert before == first
    assert after == (first if early > timedelta(0) else Lease("two", 2, now + LONG))


def test_it_is_judged_by_the_databases_own_clock(ledger: Ledger) -> None:
    """A minute that is over is over; one that is to come is not."""
    acquired(ledger, "one")
    now = datetime.now(UTC)
    change(ledger, expires_at=now + timedelta(minutes=1))
    assert acquired(ledger, "two")[1].holder == "one"
    change(ledger, expires_at=now - timedelta(minutes=1))
    assert acquired(ledger, "two")[1].holder == "two"


def test_the_fence_grows_with_each_new_holder_only(ledger: Ledger) -> None:
    """One that comes back to its own lease, however late, keeps its number."""
    fences = []
    for holder in ("one", "one", "two", "two", "one", "three"):
        fences.append(acquired(ledger, holder)[1].fence)
        run_out(ledger)
    assert fences == [1, 1, 2, 2, 3, 4]


def test_names_may_hold_anything(ledger: Ledger) -> None:
    """They are told apart by a letter's case and by a space, and may be long."""
    for number, name in enumerate(["a", "A", "a ", "ä", "it's; DROP", "\U0001f600" * 200], 1):
        assert acquired(ledger, name)[1][:2] == (name, number)
        run_out(ledger)


# --- Being in force ---------------------------------------------------------------------------


def ensured(ledger: Ledger, fence: int) -> str | None:
    """Why a lease is not in force, said in the same words wherever it is asked; None: it is."""
    told = []
    for ask in (ensured_directly, Ledger.ensure_lease):
        try:
            ask(ledger, fence)
        except LeaseLostError as error:
            told.append(str(error))
    assert len(set(told)) == 1 or not told
    assert len(told) in {0, 2}
    return told[0] if told else None


def ensured_directly(ledger: Ledger, fence: int) -> None:
    """In a transaction that writes."""
    with ledger.transaction() as writing:
        ensure(writing.connection, fence)


def test_the_lease_of_the_fence_is_in_force(ledger: Ledger) -> None:
    """And that of no other number, be it an old one or one that is to come."""
    acquired(ledger, "one")
    assert ensured(ledger, 1) is None
    run_out(ledger)
    acquired(ledger, "two")
    assert ensured(ledger, 2) is None
    for fence in (0, 1, 3):
        assert ensured(ledger, fence) == "the lease was taken over: two acts now"


@pytest.mark.parametrize("early", [MICROSECOND, timedelta(0), -MICROSECOND])
def test_a_lease_that_ran_out_is_not_in_force(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, early: timedelta
) -> None:
    """From the moment on at which another one can take it, though none did."""
    set_clock(monkeypatch, ledger, NOW)
    acquired(ledger, "one")
    set_clock(monkeypatch, ledger, NOW + LONG - early)
    ran_out = "the lease ran out at 2026-03-29 01:59:59 UTC"
    assert ensured(ledger, 1) == (None if early > timedelta(0) else ran_out)


def test_without_a_row_no_lease_is_in_force(ledger: Ledger) -> None:
    """As where somebody emptied the table; the next tick takes it anew."""
    assert ensured(ledger, 1) == "the lease was taken over: nobody acts now"
    acquired(ledger, "one")
    with ledger.transaction() as writing:
        writing.connection.execute(sa.delete(lease_table))
    assert ensured(ledger, 1) == "the lease was taken over: nobody acts now"


def test_what_a_stale_fence_writes_is_not_written(ledger: Ledger) -> None:
    """A process that slept through its lease is refused before its first word."""
    acquired(ledger, "one")
    handed = an_incident(ledger, fence=1)
    run_out(ledger)
    before = written(ledger)
    for lost in ("the lease ran out", "the lease was taken over: two acts now"):
        with pytest.raises(LeaseLostError, match=lost), ledger.transaction(1) as writing:
            writing.add_event(an_event())
        with pytest.raises(LeaseLostError, match=lost):
            ledger.apply(transitions.claim(handed, "run", UNTIL, NOW))
        acquired(ledger, "two")
    assert written(ledger) == before
    assert ledger.open_incidents() == [handed]


def test_what_the_holder_writes_is_written(ledger: Ledger) -> None:
    """With its fence; and so is a step of an incident that was handed over under it."""
    acquired(ledger, "one")
    handed = an_incident(ledger, fence=1)
    with ledger.transaction(1) as writing:
        writing.add_event(an_event())
    assert ledger.apply(transitions.claim(handed, "run", UNTIL, NOW)) is not None
    assert written(ledger) == (1, 4)


def test_without_leases_nothing_is_asked(ledger: Ledger) -> None:
    """An incident without a fence moves on, whoever has a lease."""
    handed = an_incident(ledger)
    acquired(ledger, "one")
    run_out(ledger)
    assert ledger.apply(transitions.claim(handed, "run", UNTIL, NOW)) is not None


def test_nobody_takes_over_in_the_middle_of_a_transaction(
    ledger: Ledger, open_database: OpenDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who wants it waits until what the holder writes is committed, though the time is over."""
    monkeypatch.setattr("dagster_amoro.stores.database.LOCK_TIMEOUT_SECONDS", 0.05)
    other = Ledger(open_database(ledger.database.url, "ledger"))
    other.open_incidents()
    set_clock(monkeypatch, ledger, NOW)
    acquired(ledger, "one")
    with ThreadPoolExecutor(1) as pool, ledger.transaction(1) as writing:
        writing.add_event(an_event())
        set_clock(monkeypatch, ledger, NOW + LONG)
        waiting = pool.submit(acquired, other, "two")
        with pytest.raises(StoreUnavailableError, match=r"(?i)lock"):
            waiting.result(timeout=PATIENCE)
    assert acquired(other, "two")[1].fence == 2


# --- Races ------------------------------------------------------------------------------------


def test_one_of_many_threads_takes_a_lease_that_is_free(ledger: Ledger) -> None:
    """Whether nobody had it ever or it ran out; all the others are told who has it."""
    ledger.open_incidents()
    for turn in range(1, 4):
        barrier = Barrier(6, timeout=PATIENCE)

        def ask(number: int, turn: int = turn, barrier: Barrier = barrier) -> Lease:
            barrier.wait()
            return acquired(ledger, f"{turn}.{number}")[1]

        with ThreadPoolExecutor(6) as pool:
            (seen,) = set(pool.map(ask, range(6)))
        assert seen.fence == turn
        run_out(ledger)


# --- The gate ---------------------------------------------------------------------------------


@pytest.fixture
def keeper(tmp_path: Path, database_url: sa.URL) -> Iterator[Services]:
    """One of several deployments."""
    made = fleet_services(tmp_path, url=database_url)
    yield replace(made, deployment="blue", lease_time=LONG)
    made.close()


def notes(keeper: Services) -> list[str]:
    """What was told of everything."""
    query = sa.select(event_table.c.message).where(event_table.c.kind == EventKind.LEASE_TAKEN)
    with keeper.ledger.reading() as connection:
        return list(connection.scalars(query.order_by(event_table.c.event_id)))


def test_a_deployment_that_is_alone_has_no_lease(keeper: Services) -> None:
    """It needs none, and writes none."""
    assert replace(keeper, lease_time=None).preconditions.hold_lease("one") is None
    assert stored(keeper.ledger) == []


def test_the_first_deployment_acts_and_says_nothing(keeper: Services) -> None:
    """Its fence is the same at each tick; to begin is no news."""
    assert [keeper.preconditions.hold_lease("0123456789") for _ in range(3)] == [1, 1, 1]
    assert stored(keeper.ledger)[0]["holder"] == "blue (01234567)"
    assert notes(keeper) == []


def test_another_deployment_watches_and_says_who_acts(keeper: Services) -> None:
    """With the time from which on it takes over."""
    keeper.preconditions.hold_lease("one")
    until = keeper.ledger.clock() + timedelta(hours=3)
    change(keeper.ledger, expires_at=until)
    green = replace(keeper, deployment="green")
    with pytest.raises(StandbyError) as caught:
        green.preconditions.hold_lease("two")
    told = str(caught.value)
    assert told.startswith("blue (one) acts, and its lease runs until ")
    assert f"{until:%H:%M:%S}" in told
    assert told.endswith("; green (two) takes over if it is not renewed by then")
    assert notes(keeper) == []


def test_two_of_one_name_are_told_apart(keeper: Services) -> None:
    """By what tells their Dagster apart, as where a configuration was copied."""
    keeper.preconditions.hold_lease("one")
    with pytest.raises(StandbyError, match=r"blue \(one\) acts"):
        keeper.preconditions.hold_lease("two")


def test_a_take_over_is_told_once(keeper: Services) -> None:
    """Who acts from now on, and whose lease ran out when."""
    keeper.preconditions.hold_lease("one")
    change(keeper.ledger, expires_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    green = replace(keeper, deployment="green")
    assert [green.preconditions.hold_lease("two") for _ in range(3)] == [2, 2, 2]
    (told,) = notes(keeper)
    assert told.startswith("green (two) has the lease and acts from now on; that of blue (one) ")
    assert "03:04:05" in told
    with pytest.raises(StandbyError, match=r"green \(two\) acts"):
        keeper.preconditions.hold_lease("one")


def test_without_the_ledger_nobody_acts(keeper: Services, open_database: OpenDatabase) -> None:
    """A lease that cannot be asked for is not had."""
    nowhere = sa.URL.create("postgresql+psycopg", "u", "p", "127.0.0.1", 1, "keeper")
    away = replace(keeper, ledger=Ledger(open_database(nowhere, "ledger")))
    with pytest.raises(StoreUnavailableError, match="the ledger "):
        away.preconditions.hold_lease("one")
    with pytest.raises(StoreUnavailableError, match="the ledger "):
        away.ledger.ensure_lease(1)
