"""Where is a group's history kept? In Parquet files by day, in a folder or an object store.

The folder of a group holds `events/<day>.parquet` by the day an event happened,
`incidents/<day>.parquet` by the day of detection (both UTC), and `position.json`. A refresh
rewrites the days that it touches, so it costs as much as what is new.

A refresh can die anywhere, or meet another one of the same group, and the content ends right.
Rows are put in by number, so to repeat a refresh changes nothing. The position is written after
the rows that it stands for, each file at once or not at all. Where two refreshes rewrite one day,
the later one can undo the other's rows only if it had not read them from the ledger, that is if
they were new; and what is new is read again by the next refresh, see `SETTLING`.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from io import BytesIO
from typing import Final, NamedTuple
from uuid import uuid4

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from upath import UPath

from dagster_amoro_audit.frames import EVENT_SCHEMA, INCIDENT_SCHEMA, History

SETTLING: Final = timedelta(minutes=10)
"""How long after it happened an event can still come to light.

PostgreSQL and MySQL give out numbers before the commit, so an event can appear after one with a
higher number was read, and "what is newer than the position" would lose it for ever. Its time is
read from a clock shortly before its transaction, and no transaction lives for minutes: a lock is
waited for 10 s, a tick has 60 s. So events younger than this at the last refresh are read again,
with all that came after them. Hosts' clocks may differ by some minutes.
"""
OPEN: Final = "open"  # how incidents without an outcome are counted
_TAIL_DAYS: Final = timedelta(days=30)
_TAIL_INCIDENTS: Final = range(100, 10_000)  # at least, if there are; at most, but for a day's rest
_SUFFIX: Final = ".parquet"
_POSITION: Final = "position.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Position:
    """How far a group's history was read from the ledger, and how many incidents it has."""

    event: int = 0  # the newest that is stored
    event_at: str = ""  # when it happened, in ISO 8601; tells its ledger from another
    settled: int = 0  # the event up to which no other can still come to light
    # Numbers of incidents by day of detection, then by outcome or `OPEN`.
    incidents: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @property
    def outcomes(self) -> dict[str, int]:
        """How many incidents ended how, or are open, over the whole history."""
        return dict(sum(map(Counter, self.incidents.values()), Counter[str]()))


class _Table(NamedTuple):
    """One of the two frames as files."""

    name: str  # of its folder
    schema: pa.Schema
    key: str  # the column with the number of a row
    moment: str  # the column whose UTC day names the file of a row


_INCIDENTS: Final = _Table("incidents", INCIDENT_SCHEMA, "incident", "detected")
_EVENTS: Final = _Table("events", EVENT_SCHEMA, "event", "at")


class _Day(NamedTuple):
    """One file after a merge."""

    name: str  # `YYYY-MM-DD`
    rows: pa.Table
    added: int  # how many rows are new


@dataclass(frozen=True)
class HistoryFolder:
    """The files of one group."""

    path: UPath  # need not exist yet

    def position(self) -> Position:
        """How far the files go; the very beginning where no position can be read."""
        try:
            return Position(**json.loads((self.path / _POSITION).read_bytes()))
        except (FileNotFoundError, ValueError, TypeError):
            return Position()  # rows that are stored already are put in again, over themselves

    def merge(
        self, increment: History, position: Position, *, now: datetime, oldest: str = ""
    ) -> tuple[Position, int, int]:
        """Puts rows in, each over the one with its number, and then writes the position.

        The increment is at least one event that follows in the ledger, read at `now`, and the
        incidents of these events. Rows of days before `oldest` (`YYYY-MM-DD`) are left out.

        Returns:
            The new position; how many incidents are new, and how many events.
        """
        corrected = self._correct_days(increment.incidents, f"{now:%Y-%m-%d}")
        events = list(self._merge(_EVENTS, increment.events, oldest))
        incidents = list(self._merge(_INCIDENTS, increment.incidents, oldest))
        counts = {day.name: _outcomes(day.rows) for day in incidents}
        position = _advanced(position, increment.events, now)
        numbers = {**position.incidents, **corrected, **counts}
        position = replace(position, incidents=numbers)
        self._keep(position)
        return position, sum(day.added for day in incidents), sum(day.added for day in events)

    def old(self, oldest: str) -> int:
        """How many files there are of days before `oldest`."""
        return sum(day < oldest for table in (_INCIDENTS, _EVENTS) for day in self._days(table))

    def expire(self, position: Position, oldest: str) -> Position:
        """Deletes the files of days before `oldest` (`YYYY-MM-DD`; "": none) and their numbers."""
        for table in (_INCIDENTS, _EVENTS) if oldest else ():
            for day in self._days(table):
                if day < oldest:
                    self._file(table, day).unlink(missing_ok=True)
        left = {day: number for day, number in position.incidents.items() if day >= oldest}
        if len(left) < len(position.incidents):
            position = replace(position, incidents=left)
            self._keep(position)
        return position

    def set_aside(self, position: Position) -> None:
        """Moves the files into a folder of their own, since their ledger is gone."""
        aside = self.path / f"replaced-{position.event}-{position.event_at[:10]}"
        for table in (_INCIDENTS, _EVENTS):
            for day in self._days(table):
                file = self._file(table, day)
                write_whole(aside / table.name / file.name, file.read_bytes())
                file.unlink()
        (self.path / _POSITION).unlink(missing_ok=True)

    def load(self, since: str = "") -> History:
        """The history since a day (`YYYY-MM-DD`), or the whole of it."""
        days = ([d for d in self._days(table) if d >= since] for table in (_INCIDENTS, _EVENTS))
        incidents, events = map(self._read, (_INCIDENTS, _EVENTS), days)
        return History(incidents.to_pandas(), events.to_pandas())

    def tail(self, position: Position, now: datetime) -> History:
        """The newest incidents and the events since then, few enough to look at in every refresh.

        They are those of whole days, from today back: of 30 days, or of more until 100 incidents
        are found, but of no further day once there are 10,000 incidents.
        """
        earliest = f"{now - _TAIL_DAYS:%Y-%m-%d}"
        first, found = "9", 0  # after all days
        for day in sorted(position.incidents, reverse=True):
            is_enough = day < earliest and found >= _TAIL_INCIDENTS.start
            if is_enough or found >= _TAIL_INCIDENTS.stop:
                break
            first = day
            found += sum(position.incidents[day].values())
        return self.load(first)

    def _keep(self, position: Position) -> None:
        """Writes the position; the rows that it stands for were written before."""
        write_whole(self.path / _POSITION, json.dumps(asdict(position)).encode())

    def _merge(self, table: _Table, frame: pd.DataFrame, oldest: str) -> Iterator[_Day]:
        there = self._days(table)
        rows = pa.Table.from_pandas(frame, schema=table.schema, preserve_index=False)
        midnights = pc.floor_temporal(rows[table.moment], unit="day")
        for midnight in pc.unique(midnights):
            day = f"{midnight.as_py():%Y-%m-%d}"
            if day >= oldest:
                new = rows.filter(pc.equal(midnights, midnight))
                yield self._put(table, day, new, is_there=day in there)

    def _correct_days(self, incidents: pd.DataFrame, today: str) -> dict[str, dict[str, int]]:
        """Takes incidents out of days to come, and says how many are left there, by outcome.

        A clock was wrong when they were detected; by now the ledger says another day.
        """
        numbers, keys = {}, pa.array(incidents[_INCIDENTS.key].to_numpy())
        for day in (each for each in self._days(_INCIDENTS) if each > today):
            before = self._read(_INCIDENTS, [day])
            left = before.filter(pc.invert(pc.is_in(before[_INCIDENTS.key], value_set=keys)))
            if left.num_rows < before.num_rows:
                write_whole(self._file(_INCIDENTS, day), _parquet(left))
                numbers[day] = _outcomes(left)
        return numbers

    def _put(self, table: _Table, day: str, new: pa.Table, *, is_there: bool) -> _Day:
        if not is_there:
            write_whole(self._file(table, day), _parquet(new))
            return _Day(day, new, new.num_rows)
        before = self._read(table, [day])
        untouched = pc.invert(pc.is_in(before[table.key], value_set=new[table.key]))
        merged = pa.concat_tables([before.filter(untouched), new]).sort_by(table.key)
        if not merged.equals(before):  # what is read again is there, most of the time
            write_whole(self._file(table, day), _parquet(merged))
        return _Day(day, merged, merged.num_rows - before.num_rows)

    def _read(self, table: _Table, days: list[str]) -> pa.Table:
        files = [pq.ParquetFile(BytesIO(self._file(table, day).read_bytes())) for day in days]
        read = [file.read(use_threads=False) for file in files]  # they are small
        # A file of an older version may lack a column.
        empty = table.schema.empty_table()
        every = pa.concat_tables([empty, *read], promote_options="default")
        return every.select(table.schema.names).cast(table.schema).sort_by(table.key)

    def _file(self, table: _Table, day: str) -> UPath:
        return self.path / table.name / f"{day}{_SUFFIX}"

    def _days(self, table: _Table) -> list[str]:
        folder = self.path / table.name
        folder.fs.invalidate_cache(folder.path)  # other processes write there too
        try:
            names = [file.name for file in folder.iterdir()]
        except (FileNotFoundError, NotADirectoryError):  # an object store says the latter
            return []
        return sorted(name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX))


def _advanced(position: Position, events: pd.DataFrame, now: datetime) -> Position:
    newest = events.iloc[-1]
    settled = events["event"][events["at"] < now - SETTLING]
    moved = replace(position, settled=max(position.settled, *settled.tail(1).tolist(), 0))
    if newest["event"] < position.event:
        return moved
    return replace(moved, event=int(newest["event"]), event_at=newest["at"].isoformat())


def _outcomes(incidents: pa.Table) -> dict[str, int]:
    counted = pc.value_counts(pc.fill_null(incidents["outcome"], OPEN))
    return {row["values"]: row["counts"] for row in counted.to_pylist()}


def _parquet(table: pa.Table) -> bytes:
    buffer = BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def write_whole(path: UPath, content: bytes) -> None:
    """Writes a file at once or not at all, which an object store does by itself."""
    if path.protocol not in {"", "file", "local"}:
        path.write_bytes(content)
        return
    raw = path.with_name(f".{path.name}.{uuid4().hex}")  # not taken for one of the files
    path.parent.mkdir(parents=True, exist_ok=True)
    raw.write_bytes(content)
    raw.rename(path)


def first_day(now: datetime, retention: timedelta | None) -> str:
    """The oldest day that is kept, as `YYYY-MM-DD`; "" where all are."""
    return "" if retention is None else f"{now.astimezone(UTC) - retention:%Y-%m-%d}"
