"""How long do ticks take that find 100,000 new orphans at once, and how much memory?

To what nobody can do without: to write as many rows as the ledger gets, and to read those of the
resources that were lost as a frame.
"""

from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import pandas as pd
import sqlalchemy as sa

from benchmarks.figures import Figure, Figures, peak, seconds
from benchmarks.servers import postgresql
from benchmarks.world import close, configure, fill, no_runs, services_of
from dagster_amoro.core.ams_restart import AmsRestartDetector
from dagster_amoro.healing.assembly import Services
from dagster_amoro.healing.tick import Ticker
from dagster_amoro.stores.registry import resource
from dagster_amoro.stores.schema import event, incident

_ORPHANS: Final = 100_000
_TICKS: Final = 3  # in which all are open at the latest
_SECONDS: Final = 20.0  # that each of them takes at most
_TIME_BOUND: Final = 6.0
_MEMORY_BOUND: Final = 1.5


def figures(folder: Path) -> Figures:
    """On SQLite and on PostgreSQL."""
    configure(folder / "sqlite")
    yield from _found(services_of(folder / "sqlite"), "SQLite")
    with postgresql(folder / "server") as url:
        configure(folder / "postgresql", url=url)
        yield from _found(services_of(folder / "postgresql"), "PostgreSQL")


def _found(services: Services, database: str) -> Figures:
    fill(services, _ORPHANS, one_in=1)
    name = f"{_ORPHANS:,} new orphans, {database}"
    ticker, took = services.ticker, []
    while len(services.ledger.open_incidents()) < _ORPHANS:
        took.append(_tick(ticker))
    ticks = f"{name}: ticks until all are open"
    yield Figure(name=ticks, ours=len(took), bare=_TICKS, unit="", bound=1)
    longest = f"{name}: the longest of these ticks, to {_SECONDS:g} s"
    yield Figure(name=longest, ours=max(took), bare=_SECONDS, bound=1)
    known = f"{name}: a tick that knows them"
    yield Figure(name=known, ours=_tick(ticker), bare=_SECONDS, bound=1)
    bare = f"{name}: all ticks, to writing their rows"
    yield Figure(name=bare, ours=sum(took), bare=_write_again(services), bound=_TIME_BOUND)
    patient = replace(ticker, stopwatch=lambda: 0.0)  # it is slow while its memory is traced
    most, rows = peak(lambda: _tick(patient)), peak(lambda: _read(services))
    memory = f"{name}: memory, to reading their rows as a frame"
    yield Figure(name=memory, ours=most, bare=rows, unit="MiB", bound=_MEMORY_BOUND)
    close(services)


def _tick(ticker: Ticker) -> float:
    start = perf_counter()
    ticker.tick(no_runs, AmsRestartDetector())
    return perf_counter() - start


def _write_again(services: Services) -> float:
    """Writes the rows that the ticks wrote in one transaction; nothing of it is left."""
    with services.ledger.reading() as connection:
        rows = {each: _rows(connection, each) for each in (incident, event)}
    with services.ledger.database.writing() as connection:
        for table in rows:
            connection.execute(sa.delete(table))

    def write() -> None:
        with services.ledger.database.writing() as connection:
            for table, each in rows.items():
                connection.execute(sa.insert(table), each)

    taken = seconds(write)()
    with services.ledger.database.writing() as connection:
        for table in rows:
            connection.execute(sa.delete(table))
    return taken


def _rows(connection: sa.Connection, table: sa.Table) -> list[dict[str, Any]]:
    return [dict(row) for row in connection.execute(sa.select(table)).mappings()]


def _read(services: Services) -> pd.DataFrame:
    with services.registry.database.reading() as connection:
        return pd.read_sql(sa.select(resource), connection)
