"""Does a tick that has nothing to do write anything?"""

import sqlite3
from contextlib import closing
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final, NamedTuple

import dagster as dg
import sqlalchemy as sa

from benchmarks.figures import Figure, Figures
from benchmarks.world import close, configure, fill, services_of
from dagster_amoro.code_location import definitions_of
from dagster_amoro.config import AuditSettings
from dagster_amoro.healing.assembly import Services
from dagster_amoro.stores.database import Database
from dagster_amoro.stores.registry import optimizer, resource

_RESOURCES: Final = 1_000
_QUIET_TICKS: Final = 3


class Traces(NamedTuple):
    """What can be seen of a tick from outside."""

    rows: int  # that the keeper's connections inserted, changed or deleted
    commits: int  # that another connection noticed; two in a row count as one
    bytes: int  # in which the database's files differ
    requests: int  # to Dagster, for runs, partitions and news of assets


class _Deployment:
    """A deployment whose sensor is evaluated as the daemon does."""

    def __init__(self, folder: Path, instance: dg.DagsterInstance) -> None:
        self._folder = folder
        self._instance = instance
        self._cursor: str | None = None
        self.services = services_of(folder)

    def restart(self) -> None:
        """Goes on as a new process would."""
        close(self.services)
        self.services = services_of(self._folder)

    def watched_tick(self) -> Traces:
        with closing(sqlite3.connect(self._folder / "registry.db")) as other:
            rows, version, files = _rows(self.services), _version(other), self._files()
            requests = self.tick()
            return Traces(
                rows=_rows(self.services) - rows,
                commits=_version(other) - version,
                bytes=_differing(files, self._files()),
                requests=requests,
            )

    def tick(self) -> int:
        """Evaluates the sensor; returns how many things it asked for."""
        definitions = definitions_of(self.services, AuditSettings())
        context = dg.build_sensor_context(
            instance=self._instance, cursor=self._cursor, definitions=definitions
        )
        result = definitions.resolve_sensor_def("orphan_sensor").evaluate_tick(context)
        self._cursor = result.cursor
        partitions = result.dynamic_partitions_requests or ()
        for added in partitions:
            names = list(added.partition_keys)
            self._instance.add_dynamic_partitions(added.partitions_def_name, names)
        return sum(map(len, (result.run_requests or (), partitions, result.asset_events)))

    def _files(self) -> list[bytes]:
        """The database and its log, but not their index, which changes with every reader."""
        files = [self._folder / f"registry.db{suffix}" for suffix in ("", "-wal")]
        return [file.read_bytes() if file.exists() else b"" for file in files]


def figures(folder: Path) -> Figures:
    """Ticks that see nothing new, the first of them in a new process, to one that does."""
    configure(folder)
    with dg.DagsterInstance.ephemeral() as instance:
        deployment = _Deployment(folder, instance)
        _settle(deployment)
        deployment.restart()
        quiet = [deployment.watched_tick() for _ in range(_QUIET_TICKS)]
        _execute(deployment.services, _death())
        busy = deployment.watched_tick()
        close(deployment.services)
    for unit, ours, bare in zip(Traces._fields, zip(*quiet, strict=True), busy, strict=True):
        name = f"{_QUIET_TICKS} ticks with nothing to do, to one with an orphan: {unit}"
        yield Figure(name=name, ours=sum(ours), bare=bare, unit="", bound=0)


def _settle(deployment: _Deployment) -> None:
    """Orphans in their grace period, and one that is left alone and was reported."""
    fill(deployment.services, _RESOURCES, one_in=100)
    first_group = sa.update(resource).where(resource.c.group_name == "group-2")
    _execute(deployment.services, first_group.values(container_name="unknown"))
    deployment.tick()


def _death() -> sa.Executable:
    first = sa.select(sa.func.min(optimizer.c.resource_id)).scalar_subquery()
    return sa.delete(optimizer).where(optimizer.c.resource_id == first)


def _execute(services: Services, statement: sa.Executable) -> None:
    with services.registry.database.writing() as connection:
        connection.execute(statement)


def _rows(services: Services) -> int:
    """What the keeper's connections, one for each store, have written so far."""
    return sum(map(_changes, (services.registry.database, services.ledger.database)))


def _changes(database: Database) -> int:
    with database.engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        return int(driver.total_changes)


def _version(connection: sqlite3.Connection) -> int:
    """A number that changes when another connection commits."""
    return int(connection.execute("PRAGMA data_version").fetchone()[0])


def _differing(before: list[bytes], after: list[bytes]) -> int:
    pairs = zip(before, after, strict=True)
    return sum(old != new for pair in pairs for old, new in zip_longest(*pair))
