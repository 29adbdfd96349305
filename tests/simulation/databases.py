"""The real stores, whose transactions wait for their actor and fail when they are told to."""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from threading import local
from typing import Any, Final

import sqlalchemy as sa

from dagster_amoro.core.errors import StoreUnavailableError as UnavailableError
from dagster_amoro.core.model import Incident, Transition
from dagster_amoro.stores.database import Database
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro.stores.registry import Registry
from tests.simulation.actors import Stage

Row = dict[str, Any]

TABLES: Final = (
    "resource",
    "optimizer",
    "resource_group",
    "keeper_incident",
    "keeper_event",
    "keeper_removed_row",
    "keeper_scale_up",
    "keeper_look",
    "keeper_day",
    "keeper_capacity",
)


class StagedDatabase(Database):
    """A real database whose transactions wait for their turn, and fail when they are told to."""

    def __init__(self, url: sa.URL, name: str, stage: Stage) -> None:
        super().__init__(url, name)
        self._stage: Final = stage
        self._fails_in: int | None = None
        self._writing: Final = local()  # whether this thread's transaction is open
        sa.event.listen(self.engine, "connect", _forget_durability)
        sa.event.listen(self.engine, "before_cursor_execute", self._count)
        sa.event.listen(self.engine, "commit", self._count)

    @contextmanager
    def reading(
        self, where: Sequence[sa.Executable] = (), **options: str
    ) -> Iterator[sa.Connection]:
        """As in production, when its turn has come."""
        with self._staged(), super().reading(where, **options) as connection:
            yield connection

    @contextmanager
    def rehearsing(self) -> Iterator[sa.Connection]:
        """As in production, when its turn has come."""
        with self._staged(), super().rehearsing() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """As in production, when its turn has come."""
        with self._staged():
            self._writing.is_open = True
            try:
                with super().writing() as connection:
                    yield connection
            finally:
                self._writing.is_open = False
            self._stage.commits += 1
            self._stage.committed()
            if self._stage.step.answer_is_lost:
                raise UnavailableError("the answer was lost")

    @contextmanager
    def _staged(self) -> Iterator[None]:
        if getattr(self._writing, "is_open", False):  # a look from within: others cannot write
            yield
            return
        self._stage.pause()
        self._fails_in = self._stage.step.fails_in
        try:
            yield
        finally:
            if self._stage.actor is None and self._fails_in is not None:
                self._stage.step = replace(self._stage.step, fails_in=self._fails_in)
            self._fails_in = None

    def _count(self, *_: object) -> None:
        if self._fails_in is not None:
            self._fails_in -= 1
            if self._fails_in < 0:
                cause = sqlite3.OperationalError("disk I/O error")
                raise sa.exc.OperationalError("", {}, cause)


def _forget_durability(connection: Any, _record: object) -> None:  # noqa: ANN401 - DBAPI
    connection.execute("PRAGMA synchronous = OFF")


class StagedLedger(Ledger):
    """A real ledger in which nobody's step waits for that of an actor who pauses."""

    def apply(self, transition: Transition) -> Incident | None:
        """As in production, in a transaction of its own."""
        fence = transition.before.fence if transition.before else None
        with self.transaction(fence) as ledger:
            return ledger.apply([transition])[0]

    def forget(self) -> None:
        """As if its process had just begun."""
        self._identity = None


class Stores:
    """The database of all histories, emptied before each."""

    def __init__(self, file: Path) -> None:
        url = sa.URL.create("sqlite", database=str(file))
        self.stage = Stage()
        self.databases = [StagedDatabase(url, "registry", self.stage) for _ in range(2)]
        self.registries = [Registry(database, None) for database in self.databases]
        self.standalone = [Registry(each, timedelta(days=1000)) for each in self.databases]
        self.ledgers = [StagedLedger(database) for database in self.databases]
        for registry, ledger in zip(self.standalone, self.ledgers, strict=True):
            registry.create()
            ledger.open_incidents()
        self.eye = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
        self.eye.row_factory = sqlite3.Row

    def reset(self) -> None:
        """As if nothing had ever happened."""
        for ledger in self.ledgers:
            ledger.forget()
        deletes = [f"DELETE FROM {table};" for table in (*TABLES, "sqlite_sequence")]  # noqa: S608
        deletes.append("UPDATE keeper_ledger SET settled = NULL;")
        self.eye.executescript("\n".join(["BEGIN;", *deletes, "COMMIT;"]))

    def rows(self, query: str, *values: object) -> list[Row]:
        """What the database has, as somebody else sees it."""
        return [dict(row) for row in self.eye.execute(query, values)]

    def dump(self) -> dict[str, list[Row]]:
        """Every row of every table."""
        return {table: self.rows(f"SELECT * FROM {table} ORDER BY 1") for table in TABLES}  # noqa: S608

    def close(self) -> None:
        """Closes every connection."""
        self.eye.close()
        for database in self.databases:
            database.close()
