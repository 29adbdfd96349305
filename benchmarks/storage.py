"""How much is there in Dagster's storage?"""

from pathlib import Path
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

_LEFT_OUT: Final = {
    ("schedules", "job_ticks"),  # what ticks write of themselves; Dagster deletes them by age
    ("index", "event_logs"),  # what SQLite alone keeps a second time, beside the logs of the runs
}


class Stored(NamedTuple):
    """What the databases of an instance hold."""

    size: int  # of all rows, in bytes
    runs: int
    files: int  # how large the databases' files are, in bytes

    def since(self, before: "Stored") -> "Stored":
        """What has come to it."""
        return Stored(*(now - then for now, then in zip(self, before, strict=True)))


def stored(home: Path) -> Stored:
    """What an instance in its default storage, SQLite, holds, but for its ticks."""
    files = list(home.glob("**/*.db"))
    tables = [table for file in files for table in _tables(file)]
    return Stored(
        size=sum(size for *_, size in tables),
        runs=sum(number for name, number, _ in tables if name == "runs"),
        files=sum(file.stat().st_size for file in files),
    )


def _tables(file: Path) -> list[tuple[str, int, int]]:
    """Each table of a database: its name, the number of its rows, and their bytes."""
    engine = sa.create_engine(sa.URL.create("sqlite", database=str(file)))
    found = sa.MetaData()
    try:
        found.reflect(engine)
        with engine.connect() as connection:
            rows = [
                (table.name, *connection.execute(_measured(table)).one())
                for table in found.sorted_tables
                if (file.stem, table.name) not in _LEFT_OUT
            ]
            return [(name, number, sum(sizes)) for name, number, *sizes in rows]
    finally:
        engine.dispose()


def _measured(table: sa.Table) -> sa.Select[Any]:
    # Its number of rows, then the bytes in each of its columns.
    lengths = [sa.func.length(sa.cast(column, sa.LargeBinary)) for column in table.columns]
    sizes = [sa.func.coalesce(sa.func.sum(length), 0) for length in lengths]
    return sa.select(sa.func.count(), *sizes).select_from(table)
