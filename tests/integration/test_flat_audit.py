"""What the audit of all groups asks of a ledger with a past is bounded by an index."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import pytest
import sqlalchemy as sa
from upath import UPath

from benchmarks.ledgers import analyse, fill
from dagster_amoro.asset_keys import HISTORY
from dagster_amoro.stores import counting, pruning
from dagster_amoro.stores.database import Database
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro_audit import fleet_history
from dagster_amoro_audit.io_managers import HistoryIOManager
from dagster_amoro_audit.prune import kept, prune_ledger
from dagster_amoro_audit.reliability import reads_since
from dagster_amoro_audit.settling import settle
from tests.helpers.plans import bounded

NOW: Final = datetime(2026, 3, 29, 12, tzinfo=UTC)


@pytest.fixture
def past(database_url: sa.URL, open_database: Callable[..., Database]) -> Ledger:
    """A ledger with a past, all of it settled."""
    ledger = Ledger(open_database(database_url, "ledger"))
    fill(ledger, 4_000, groups=20, over=timedelta(days=100), before=NOW)
    settle(ledger, NOW - timedelta(days=3), print)
    with ledger.database.writing() as connection:
        analyse(connection)
    return ledger


@pytest.mark.long
def test_the_figures_read_nothing_from_end_to_end(
    past: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither where days are settled nor where the charts' incidents are read."""
    monkeypatch.setattr(fleet_history, "_MOST_CHARTED", 100)
    with bounded(past.database):
        settled = settle(past, NOW, print)
        since = reads_since(settled, NOW)
        fleet_history.read_standing_notes(past, settled.capacity, since, NOW)
        fleet_history.read_live(past, since)
        fleet_history.read_recent(past, NOW)


@pytest.mark.long
def test_metrics_read_nothing_from_end_to_end(past: Ledger) -> None:
    """But the incidents of the days that nobody has settled yet."""
    with bounded(past.database):
        found = counting.read(past.database)
    assert sum(found.counters.incidents.values()) == 4_000


@pytest.mark.long
def test_advice_reads_the_events_of_its_incidents(past: Ledger) -> None:
    """Which are the newest: their number is what bounds it."""
    incidents = fleet_history.read_incidents(past, newest=50)
    with bounded(past.database):
        _, events = fleet_history.read_record(past, incidents)
    assert len(events) == 50 * 6


@pytest.mark.long
def test_a_pruning_reads_nothing_from_end_to_end(
    past: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In none of its batches."""
    monkeypatch.setattr(pruning, "_BATCH", 50)
    store = HistoryIOManager(UPath(tmp_path))
    with bounded(past.database):
        why = kept(past, store, HISTORY)
        prune_ledger(past, NOW - timedelta(days=95), why, print, dry_run=False)
        pruning.delete(past, next(pruning.incidents(past, NOW - timedelta(days=95))))
