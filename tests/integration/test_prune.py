"""Pruning: what is old and told elsewhere goes, and nobody who reads the ledger notices."""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import dagster as dg
import pandas as pd
import pytest
import sqlalchemy as sa
from upath import UPath

from dagster_amoro.asset_keys import HISTORY, partition_key
from dagster_amoro.code_location import definitions_of
from dagster_amoro.config import AuditSettings
from dagster_amoro.core.model import State
from dagster_amoro.stores import audit_queries, pruning
from dagster_amoro.stores.database import Database
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro.stores.schema import event, incident, removed_row
from dagster_amoro_audit import prune
from dagster_amoro_audit.fleet_history import read_live, read_standing_notes
from dagster_amoro_audit.history_store import HistoryFolder
from dagster_amoro_audit.io_managers import HistoryIOManager
from dagster_amoro_audit.prune import kept, prune_ledger
from dagster_amoro_audit.refresh import refresh
from dagster_amoro_audit.reliability import reads_since, reliability
from dagster_amoro_audit.settling import settle
from tests.helpers.fleet import Fleet, fleet
from tests.helpers.histories import fill
from tests.helpers.waiting import PATIENCE

pytestmark = pytest.mark.long

DAYS = 20
RETENTION = timedelta(days=8)
SECOND = timedelta(seconds=1)


class Past:
    """A ledger with a random past, whose days are settled and whose groups are refreshed."""

    def __init__(self, ledger: Ledger, folder: Path) -> None:
        self.ledger, self.store = ledger, HistoryIOManager(UPath(folder))
        self.now = fill(ledger, Random(5), 400, DAYS)  # noqa: S311 - not for secrets
        self.told: list[str] = []

    def folder(self, group: str) -> HistoryFolder:
        """The files of a group."""
        return self.store.folder(HISTORY, partition_key(group))

    def refresh(self, *groups: str) -> None:
        """Brings the files of groups up to date; some time after the last event."""
        for group in groups or ("", "g", "h"):
            refresh(self.ledger, self.folder(group), group, self.now + timedelta(hours=2))

    def prune(self, ledger: Ledger | None = None, *, dry_run: bool = False) -> Counter[str]:
        """What the job does."""
        ledger = ledger or self.ledger
        why = kept(ledger, self.store, HISTORY)
        return prune_ledger(ledger, self.until(), why, self.told.append, dry_run=dry_run)

    def numbers(self, table: sa.Table = incident) -> list[int]:
        """The numbers in a table."""
        with self.ledger.reading() as connection:
            return [*connection.scalars(sa.select(table.c.incident_id).distinct())]

    def figures(self) -> pd.DataFrame:
        """What `group_reliability` shows."""
        settled = settle(self.ledger, self.now, self.told.append)
        since = reads_since(settled, self.now)
        notes = read_standing_notes(self.ledger, settled.capacity, since, self.now)
        return reliability(read_live(self.ledger, since), notes, settled, self.now)

    def answers(self) -> Mapping[str, Any]:
        """What those who read the ledger are told."""
        ledger, positions = self.ledger, [self.folder(group).position() for group in ("", "g", "h")]
        newest = pruning.newest_event(ledger)
        removed = [name for name in self.resources() if self.is_gone(name)]
        return {
            "mark": ledger.mark(newest),
            "newest": newest,
            "news": ledger.changed_groups(newest - 3),
            "open": ledger.open_incidents(),
            "unstable": ledger.unstable(self.now - timedelta(days=2)),
            "in dry run": ledger.removed_in_dry_run(),
            "to restore": {name: ledger.last_removed(name) for name in removed},
            "rows": [ledger.removed_row(self.newest[name].incident_id) for name in removed],
            "positions": positions,
            "is ours": [
                audit_queries.may_have_had(
                    ledger, group, each.event, datetime.fromisoformat(each.event_at)
                )
                for group, each in zip(("", "g", "h"), positions, strict=True)
            ],
        }

    def remember(self) -> None:
        """Which incidents there are before anything is deleted."""
        found = (self.ledger.incident(number) for number in self.numbers())
        incidents = sorted((each for each in found if each), key=lambda each: each.incident_id)
        self.every = {each.incident_id: each for each in incidents}
        self.newest = {each.resource_id: each for each in incidents}

    def resources(self) -> list[str]:
        """All resources that there ever were."""
        return sorted(self.newest)

    def is_gone(self, name: str) -> bool:
        """Whether its last incident removed its row."""
        return self.newest[name].state in {State.EXHAUSTED, State.SUPERSEDED}

    def alone(self) -> list[datetime]:
        """When the events happened that belong to no incident."""
        query = sa.select(event.c.at).where(event.c.incident_id.is_(None))
        with self.ledger.reading() as connection:
            return [*connection.scalars(query)]

    def until(self) -> datetime:
        """What ended before it is old."""
        return self.now - RETENTION

    def expected(self) -> set[int]:
        """The incidents that have to be there after a pruning."""
        return {
            number
            for number, each in self.every.items()
            if each.closed_at is None
            or each.closed_at >= self.until()
            or (self.newest[each.resource_id] == each and self.is_gone(each.resource_id))
        }


@pytest.fixture
def past(
    database_url: sa.URL,
    open_database: Callable[..., Database],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Past:
    """A past of twenty days, pruned in batches of seven."""
    monkeypatch.setattr(pruning, "_BATCH", 7)
    monkeypatch.setattr(prune, "_TOLD", 1)
    made = Past(Ledger(open_database(database_url, "ledger")), tmp_path / "files")
    made.remember()
    return made


def test_what_is_old_goes_and_nobody_notices(past: Past) -> None:
    """What a dry run says is what goes; figures, cursors, files and restores are as before."""
    past.refresh()
    figures, answers = past.figures(), past.answers()
    files = [past.folder(group).load() for group in ("", "g", "h")]
    would = past.prune(dry_run=True)
    assert len(past.numbers()) == len(past.every)
    assert past.prune() == would
    assert would["incidents"] == len(past.every) - len(past.expected()) > 100
    assert set(past.numbers()) == past.expected()
    assert set(past.numbers(event)) - {None} <= past.expected()
    assert set(past.numbers(removed_row)) <= past.expected()
    assert min(past.alone()) >= past.until() > past.now - timedelta(days=DAYS)
    assert past.answers() == answers
    pd.testing.assert_frame_equal(past.figures(), figures)
    past.refresh()
    for group, before in zip(("", "g", "h"), files, strict=True):
        after = past.folder(group).load()
        pd.testing.assert_frame_equal(after.incidents, before.incidents)
        pd.testing.assert_frame_equal(after.events, before.events)
    assert past.prune() == Counter({prune._NEEDED: would[prune._NEEDED]})


def test_what_the_sums_do_not_have_stays(past: Past) -> None:
    """However old it is."""
    past.refresh()
    assert past.prune() == Counter()
    settle(past.ledger, past.now - timedelta(days=15), past.told.append)
    past.prune()
    gone = [past.every[number] for number in past.every.keys() - past.numbers()]
    last = max(each.closed_at for each in gone if each.closed_at)
    assert past.now - timedelta(days=16, hours=12) < last < past.now - timedelta(days=15)


def test_what_the_files_do_not_have_stays(past: Past) -> None:
    """A group that was never refreshed keeps its past, and that is said."""
    past.refresh("g", "")
    past.figures()
    found = past.prune()
    of_h = {number for number, each in past.every.items() if each.group_name == "h"}
    assert of_h <= set(past.numbers())
    assert found[prune._UNREAD] > len(of_h - past.expected())  # with events of no incident
    past.refresh("h")
    position = past.folder("h").position()
    (past.folder("h").path / "position.json").write_text(
        json.dumps({**asdict(position), "event_at": "2020-01-01T00:00:00+00:00"})
    )  # of another ledger, which this one took the place of
    assert past.prune()[prune._UNREAD] == found[prune._UNREAD]
    past.refresh("h")
    past.prune()
    assert set(past.numbers()) == past.expected()


def test_a_pruning_that_is_cut_off_goes_on(past: Past) -> None:
    """Each incident is there with all its events or not at all."""
    past.refresh()
    figures = past.figures()

    def dies(_: str) -> None:
        past.told.append("")
        if len(past.told) == 6:
            raise KeyboardInterrupt

    past.told.clear()
    why = kept(past.ledger, past.store, HISTORY)
    with pytest.raises(KeyboardInterrupt):
        prune_ledger(past.ledger, past.until(), why, dies, dry_run=False)
    assert past.expected() < set(past.numbers()) < past.every.keys()
    assert set(past.numbers(event)) - {None} == set(past.numbers())
    pd.testing.assert_frame_equal(past.figures(), figures)
    past.prune()
    assert set(past.numbers()) == past.expected()


def test_the_job_leaves_what_can_be_restored(tmp_path: Path, database_url: sa.URL) -> None:
    """A dry run first; after 40 days the incident of what came back is gone, the other is not."""
    with fleet(tmp_path, url=database_url, max_retries=0) as world:
        for name in ("lost", "back"):
            world.worker(name)
        world.tick()
        world.register("back")
        world.tick()
        for request in world.later().tick():
            world.launch(request)
        world.later(timedelta(days=40))
        world.worker("newest")
        world.tick()
        assert job(world).success
        assert len(world.incidents()) == 3  # its days are not in the sums yet
        settle(world.services.ledger, world.now, print)
        world.refresh("g")
        would = numbers(job(world, dry_run=True))
        assert len(world.incidents()) == 3
        assert numbers(job(world, dry_run=False)) == {
            name.replace("would go", "deleted"): number for name, number in would.items()
        }
        assert would == {"incidents would go": 1, "events would go": 2, prune._NEEDED: 1}
        assert [each.resource_id for each in world.incidents()] == ["lost", "newest"]
        assert world.tick() == []
        world.services.operations.restore("lost", author="ann", reason="it is needed")
        assert {row[0] for row in world.resources()} == {"back", "lost", "newest"}


def test_the_job_deletes_old_files_and_no_more_than_it_is_told_to(tmp_path: Path) -> None:
    """Without a retention nothing at all."""
    with fleet(tmp_path) as world:
        world.worker()
        world.tick()
        world.refresh("g")
        world.later(timedelta(days=40))
        assert numbers(job(world, AuditSettings(), dry_run=False)) == {}
        short = AuditSettings(retention=timedelta(days=20))
        assert numbers(job(world, short)) == {"files would go": 2}
        assert len(world.history("g").incidents) == 1
        assert numbers(job(world, short, dry_run=False)) == {"files deleted": 2}
        assert world.history("g").incidents.empty
        assert len(world.incidents()) == 1


LEDGER_ONLY = AuditSettings(ledger_retention=timedelta(days=30))


def job(
    world: Fleet, settings: AuditSettings = LEDGER_ONLY, **config: bool
) -> dg.ExecuteInProcessResult:
    """A real run of the job."""
    return (
        definitions_of(world.services, settings)
        .resolve_job_def("prune")
        .execute_in_process(
            run_config={"ops": {"prune_past": {"config": config}}}, instance=world.instance
        )
    )


def numbers(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    """What it says."""
    (output,) = result.filter_events(lambda event: event.is_successful_output)
    return {name: each.value for name, each in output.step_output_data.metadata.items()}


def test_several_that_prune_at_once_do_no_harm(
    past: Past, open_database: Callable[..., Database]
) -> None:
    """They delete the same as one."""
    past.refresh()
    figures, answers = past.figures(), past.answers()
    others = [Ledger(open_database(past.ledger.database.url, "ledger")) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        for each in [pool.submit(past.prune, other) for other in others]:
            each.result(timeout=PATIENCE)
    assert set(past.numbers()) == past.expected()
    assert past.answers() == answers
    pd.testing.assert_frame_equal(past.figures(), figures)
