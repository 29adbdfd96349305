"""A group that AMS keeps at its min-parallelism while we heal it: what may happen, in any order."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Final, Literal

import sqlalchemy as sa

from dagster_amoro.core.ams_restart import AmsRestartDetector
from dagster_amoro.core.policy import RunState
from dagster_amoro.healing.assembly import Services
from dagster_amoro.stores.database import Database
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro.stores.registry import Registry, optimizer
from dagster_amoro.testing import RecordingContainer
from tests.helpers.amoro_schema import create_amoro, insert_group, insert_optimizer, insert_resource
from tests.helpers.fleet import GRACE, LONG_AGO, START, Shelf, fleet_services

Deed = Literal["dies", "stillborn", "refills", "registers", "ticks", "waits", "runs", "restarts"]
DEEDS: Final[Sequence[Deed]] = (
    *("dies",) * 3,
    *("refills",) * 2,
    *("ticks",) * 4,
    *("waits",) * 2,
    *("runs",) * 2,
    "registers",
    "stillborn",
    "restarts",
)
THREADS: Final = 2  # of each of the first resources


class Answering:
    """An AMS that is always there."""

    def ping(self) -> None:
        """It answers."""


class RefilledGroup:
    """The group `g` with its floor, which AMS and the keeper look after side by side."""

    def __init__(self, folder: Path, url: sa.URL, size: int) -> None:
        self.floor = size * THREADS
        self.container = RecordingContainer()
        self.now = START
        self._url = url
        self._services = replace(
            fleet_services(folder, url=url),
            registry=Registry(Database(url, "registry"), None),
            containers=Shelf(recording=self.container),
            ams=Answering(),  # type: ignore[arg-type]
            clock=lambda: self.now,
        )
        self._detector = AmsRestartDetector()
        self._queue: list[str] = []  # the keys of runs that were requested
        self._coming: list[tuple[str, int]] = []  # refills that have not registered
        self._births = 0
        self._stillborn = False  # whether the next refill never registers
        self.message = ""
        insert_group(url, "g", {"min-parallelism": str(self.floor)})
        for number in range(size):
            self.started(f"w-{number}")
            self.registered(f"w-{number}")
        self.ticks()

    @property
    def services(self) -> Services:
        """The keeper."""
        return self._services

    @property
    def live(self) -> dict[str, int]:
        """The threads of each resource that an optimizer stands for."""
        query = sa.select(optimizer.c.resource_id, optimizer.c.thread_count)
        with self._services.registry.database.reading() as connection:
            return {row[0]: row[1] for row in connection.execute(query)}

    @property
    def threads(self) -> int:
        """All that are live."""
        return sum(self.live.values())

    # What AMS, and who uses it, does.

    def started(self, resource_id: str, threads: int = THREADS) -> None:
        """A resource is started, and recorded after all that are there."""
        self._births += 1
        insert_resource(
            self._url,
            resource_id,
            container_name="recording",
            thread_count=threads,
            start_time=LONG_AGO + timedelta(seconds=self._births),
        )

    def registered(self, resource_id: str, threads: int = THREADS) -> None:
        """Its optimizer registers."""
        insert_optimizer(self._url, resource_id, thread_count=threads)

    def lost(self, resource_id: str) -> None:
        """Its heartbeats end, and AMS drops its row."""
        self.container.end(resource_id)
        gone = sa.delete(optimizer).where(optimizer.c.resource_id == resource_id)
        with self._services.registry.database.writing() as connection:
            connection.execute(gone)

    def refills(self, *, registers: bool = False) -> None:
        """`OptimizerGroupKeeper`: looks at optimizers alone, and starts one of what is missing.

        Its next check is far enough away that what it started before has registered.
        """
        self.registers()
        missing = self.floor - self.threads
        if missing > 0:
            name = f"refill-{self._births}"
            self.started(name, missing)
            if not self._stillborn:
                self._coming.append((name, missing))
            self._stillborn = False
        if registers:
            self.registers()

    def registers(self) -> None:
        """What AMS started is up."""
        for name, threads in self._coming:
            self.registered(name, threads)
        self._coming = []

    def dies(self, which: int) -> None:
        """One of those that live dies."""
        if live := sorted(self.live):
            self.lost(live[which % len(live)])

    def stillborn(self) -> None:
        """The next refill never registers."""
        self._stillborn = True

    # What we do.

    def ticks(self) -> None:
        """A tick, whose runs wait in the queue."""
        result = self._services.ticker.tick(
            lambda owners: dict.fromkeys(set(owners) & set(self._queue), RunState.QUEUED),
            self._detector,
        )
        self._detector = result.detector
        self.message = result.summary
        self._queue += [run.run_key for run in result.dispatches]

    def waits(self) -> None:
        """The grace period goes by, and a tick comes."""
        self.now += GRACE
        self.ticks()

    def runs(self) -> None:
        """The first run of the queue goes through; what it started has registered at its end."""
        for key in self._queue[:1]:
            del self._queue[0]
            restarter, run_id = self._services.restarter, f"run {self.now} {self._births}"
            for incident in restarter.claim(key, run_id):
                restarter.restart(incident.incident_id, run_id)
                if incident.resource_id in self.container.running - self.live.keys():
                    self.registered(incident.resource_id, incident.thread_count)

    def restarts(self) -> None:
        """The daemon is started anew; its cursor is lost."""
        self._services.ledger.database.close()
        ledger = Ledger(Database(self._url, "ledger"))
        self._services = replace(self._services, ledger=ledger)
        self._detector = AmsRestartDetector()

    def goes_quiet(self) -> None:
        """Nothing happens any more but what follows of itself."""
        for _ in range(6):
            self.waits()
            while self._queue:
                self.runs()
            self.refills(registers=True)
        self.ticks()
        assert self._services.ledger.open_incidents() == []

    def close(self) -> None:
        """Closes the databases."""
        self._services.close()


@contextmanager
def refilled_group(folder: Path, url: sa.URL, size: int) -> Iterator[RefilledGroup]:
    """A group of so many resources that has its floor, in an empty database."""
    create_amoro(url)
    group = RefilledGroup(folder, url, size)
    try:
        yield group
    finally:
        group.close()
