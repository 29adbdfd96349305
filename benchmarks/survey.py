"""What does a tick cost beside the one statement that it cannot do without?"""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from time import process_time
from typing import Final

import sqlalchemy as sa

from benchmarks.figures import Figure, Figures, interleaved, peak, seconds
from benchmarks.servers import postgresql
from benchmarks.world import close, configure, fill, no_runs, services_of
from dagster_amoro.core.ams_restart import AmsRestartDetector
from dagster_amoro.healing.assembly import Services
from dagster_amoro.stores.database import Database
from dagster_amoro.stores.registry import ORPHANS

_BOUND: Final = 1.5
_MEMORY_BOUND: Final = 1.25
_REPETITIONS: Final = {100_000: 31, 1_000_000: 7}  # by the number of resources


def figures(folder: Path) -> Figures:
    """A tick on 1% orphans that are known and not due, and the memory that it takes."""
    for resources in _REPETITIONS:
        for in_order in (True, False):
            services = _surveyed(folder / f"{resources} {in_order}", resources, in_order=in_order)
            name = f"tick, {resources:,} resources, ids {'ascending' if in_order else 'random'}"
            yield from _on_sqlite(services, resources, name)
            close(services)
    yield _memory(folder / "memory", services)  # with the last, and largest
    yield _on_postgres(folder / "postgres", min(_REPETITIONS))


def _surveyed(
    folder: Path, resources: int, *, in_order: bool = False, orphans: int = 0
) -> Services:
    """A registry whose orphans, by default 1%, have their incidents."""
    configure(folder)
    return _opened(services_of(folder), resources, orphans or resources // 100, in_order=in_order)


def _opened(
    services: Services, resources: int, orphans: int, *, in_order: bool = False
) -> Services:
    fill(services, resources, one_in=resources // orphans, in_order=in_order)
    services.ticker.tick(no_runs, AmsRestartDetector())  # opens the incidents
    close(services)
    return services


def _on_sqlite(services: Services, resources: int, name: str) -> Figures:
    database = Database(services.registry.database.url, "bare")
    with closing(database), closing(sqlite3.connect(database.url.database or "")) as connection:
        driver = _fetch_with_driver(connection, database.engine)
        works = (
            lambda: services.ticker.tick(no_runs, AmsRestartDetector()),
            _fetch(database),
            driver,
        )
        sides = [seconds(work, process_time) for work in works]  # SQLite is in this process
        ours, core, raw = interleaved(*sides, repetitions=_REPETITIONS[resources])
    yield Figure(name=name, ours=ours, bare=core, unit="s CPU", bound=_BOUND)
    yield Figure(name=f"{name}, by sqlite3", ours=ours, bare=raw, unit="s CPU", bound=_BOUND)


def _fetch(database: Database) -> Callable[[], object]:
    def fetch() -> object:
        with database.reading() as connection:
            return connection.execute(ORPHANS).all()

    return fetch


def _fetch_with_driver(connection: sqlite3.Connection, engine: sa.Engine) -> Callable[[], object]:
    statement = str(ORPHANS.compile(engine))
    return lambda: connection.execute(statement).fetchall()


def _on_postgres(folder: Path, resources: int) -> Figure:
    with postgresql(folder) as url, closing(Database(url, "bare")) as database:
        configure(folder, url=url)
        services = _opened(services_of(folder), resources, resources // 100)
        with database.writing() as connection:
            connection.exec_driver_sql("ANALYZE")
        sides = map(
            seconds, (lambda: services.ticker.tick(no_runs, AmsRestartDetector()), _fetch(database))
        )
        ours, core = interleaved(*sides, repetitions=_REPETITIONS[resources])
        close(services)
    name = f"tick, {resources:,} resources, ids random, PostgreSQL"
    return Figure(name=name, ours=ours, bare=core)


def _memory(folder: Path, large: Services) -> Figure:
    """Ten times the resources, as many orphans."""
    few, many = _REPETITIONS
    small = _surveyed(folder, few, orphans=many // 100)
    sides = [partial(peak, partial(_tick, services)) for services in (large, small)]
    ours, bare = interleaved(*sides, repetitions=3)
    close(small)
    name = f"memory of a tick, {many // 100:,} orphans of {many:,} and of {few:,}"
    return Figure(name=name, ours=ours, bare=bare, unit="MiB", bound=_MEMORY_BOUND)


def _tick(services: Services) -> None:
    services.ticker.tick(no_runs, AmsRestartDetector())
