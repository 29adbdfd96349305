"""Sums of days in the ledger: with the rest they say what all incidents say, whatever happens."""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from random import Random

import pandas as pd
import pytest
import sqlalchemy as sa

from dagster_amoro.stores import day_sums
from dagster_amoro.stores.database import Database
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro.stores.schema import day, incident
from dagster_amoro_audit.fleet_history import (
    read_incidents,
    read_live,
    read_notes,
    read_standing_notes,
)
from dagster_amoro_audit.reliability import causes_of_death, reads_since, reliability
from dagster_amoro_audit.settling import Settled, settle, settled_from
from tests.helpers.histories import BEGIN, fill
from tests.helpers.waiting import PATIENCE

pytestmark = pytest.mark.long

DAYS = 12
_ENDS = {"exhausted": "given_up", "released": "released", "superseded": "superseded"}
_RECOVERED = ["self_recovered", "recovered_first", "recovered_later"]
NOTHING = settled_from(day_sums.Sums(None, [], []))


@pytest.fixture
def ledger(database_url: sa.URL, open_database: Callable[..., Database]) -> Ledger:
    """An empty ledger."""
    return Ledger(open_database(database_url, "ledger"))


def of_everything(ledger: Ledger, now: datetime) -> pd.DataFrame:
    """The figures of all that the ledger has, read as a whole."""
    notes = read_notes(ledger, BEGIN, now + timedelta(microseconds=1))
    return reliability(read_incidents(ledger), notes, NOTHING, now)


def of_sums(ledger: Ledger, settled: Settled, now: datetime) -> pd.DataFrame:
    """The figures as the asset computes them."""
    since = reads_since(settled, now)
    notes = read_standing_notes(ledger, settled.capacity, since, now)
    return reliability(read_live(ledger, since), notes, settled, now)


def quietly(_: str) -> None:
    """A log that nobody reads."""


def same(one: pd.DataFrame, other: pd.DataFrame) -> None:
    """All figures are equal, up to rounding."""
    pd.testing.assert_frame_equal(one, other, check_exact=False, rtol=1e-6)


def assert_causes(ledger: Ledger, settled: Settled, now: datetime) -> None:
    """The numbers by cause and outcome are those that counting row by row gives."""
    columns = incident.c
    query = sa.select(*columns, sa.type_coerce(columns.state, sa.String).label("outcome"))
    expected: Counter[tuple[str, str, str, str]] = Counter()
    with ledger.reading() as connection:
        for row in connection.execute(
            query.where(columns.dry_run == 0, columns.detected_at <= now)
        ):
            closed = row.closed_at and max(row.closed_at, row.detected_at)
            ended = _ENDS.get(row.outcome) or _RECOVERED[min(row.attempts, 2)]
            ended = ended if closed is not None and closed <= now else "open"
            key = row.group_name, row.container_name, row.cause or "unknown", ended
            expected[key] += 1
    found = causes_of_death(read_live(ledger, reads_since(settled, now)), settled, now)
    names = [*_ENDS.values(), *_RECOVERED, "open"]
    numbers = {
        (row["group"], row["container"], row["cause"], name): row[name]
        for row in found.to_dict("records")
        for name in names
        if row[name]
    }
    assert numbers == expected


@pytest.mark.parametrize("seed", range(3))
def test_sums_and_the_rest_say_what_all_incidents_say(ledger: Ledger, seed: int) -> None:
    """Of a random history with all that a real one can have, settled at once and step by step."""
    random = Random(seed)  # noqa: S311 - not for secrets
    now = fill(ledger, random, 300, DAYS) - timedelta(hours=random.choice([0, 5, 11.5]))
    for earlier in (timedelta(days=9), timedelta(days=8), timedelta()):
        settled = settle(ledger, now - earlier, quietly)
        figures = of_sums(ledger, settled, now - earlier)
        same(figures, of_everything(ledger, now - earlier))
        assert_causes(ledger, settled, now - earlier)
    assert settled.until == pd.Timestamp(now - timedelta(hours=1)).floor("D")
    again = settle(ledger, now, quietly)
    same(of_sums(ledger, again, now), figures)


def test_a_day_is_settled_an_hour_after_its_end(ledger: Ledger) -> None:
    """And the first one is that of the first incident."""
    fill(ledger, Random(1), 50, DAYS)  # noqa: S311 - as above
    first = BEGIN.replace(hour=0) + timedelta(days=1)
    almost = first + timedelta(hours=1) - timedelta(microseconds=1)
    assert settle(ledger, almost, quietly).until is None
    assert settle(ledger, almost + timedelta(microseconds=1), quietly).until == first


def test_nothing_is_settled_where_nothing_was(ledger: Ledger) -> None:
    """An empty ledger has no days."""
    settled = settle(ledger, BEGIN, quietly)
    assert settled.until is None
    assert of_sums(ledger, settled, BEGIN).empty


def test_a_catch_up_that_is_cut_off_goes_on_where_it_was(ledger: Ledger) -> None:
    """Each day is there as a whole or not at all; whoever catches up is told how far it is."""
    now = fill(ledger, Random(2), 300, DAYS)  # noqa: S311 - as above
    told = []

    def dies(line: str) -> None:
        told.append(line)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        settle(ledger, now, dies)
    assert day_sums.read(ledger).day == "2026-04-01"
    settled = settle(ledger, now, told.append)
    assert told == [f"2026-04-0{n} and the days before it are settled" for n in (1, 4)]
    same(of_sums(ledger, settled, now), of_everything(ledger, now))


def test_days_without_incidents_are_settled_with_the_next_that_has_any(ledger: Ledger) -> None:
    """Nothing is written for them, but that the last of them is settled."""
    now = fill(ledger, Random(4), 3, DAYS)  # noqa: S311 - as above
    with ledger.transaction() as transaction:
        transaction.connection.execute(sa.delete(incident).where(incident.c.closed_at.is_(None)))
    later = now + timedelta(days=100)
    settled = settle(ledger, later, quietly)
    assert settled.until == pd.Timestamp(later).floor("D")
    same(of_sums(ledger, settled, later), of_everything(ledger, later))
    with ledger.reading() as connection:
        days = {*connection.scalars(sa.select(day.c.day))} - {day_sums.ALL_DAYS}
    assert len(days) < DAYS


def test_two_that_settle_at_once_count_nothing_twice(
    ledger: Ledger, open_database: Callable[..., Database]
) -> None:
    """One of them stops, and what it returns is right for what is settled by then."""
    now = fill(ledger, Random(3), 300, DAYS)  # noqa: S311 - as above
    others = [Ledger(open_database(ledger.database.url, "ledger")) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        work = [pool.submit(settle, each, now, quietly) for each in others]
        for each in work:
            each.result(timeout=PATIENCE)
    settled = settle(ledger, now, quietly)
    same(of_sums(ledger, settled, now), of_everything(ledger, now))
    with ledger.reading() as connection:
        (ended,) = connection.scalars(
            sa.select(sa.func.sum(day.c.given_up)).where(day.c.day != day_sums.ALL_DAYS)
        )
    assert int(ended) == settled.incidents["given_up"].sum()
