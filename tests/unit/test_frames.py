from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from uuid import uuid4

import dagster as dg
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from upath import UPath

from dagster_amoro.asset_keys import folder_name, group_name, partition_key
from dagster_amoro_audit.columns import EVENTS, INCIDENTS, types_of
from dagster_amoro_audit.frames import History, events_frame, incidents_frame
from dagster_amoro_audit.history_store import HistoryFolder, Position, first_day
from dagster_amoro_audit.io_managers import HistoryIOManager

NOON = datetime(2026, 3, 29, 12, tzinfo=UTC)
GROUP_NAMES = st.text(max_size=50) | st.text(
    alphabet=st.sampled_from("./\\:%-~a🦀 *?#[|\"'\0"), max_size=50
)


def incident_rows(*rows: dict[str, object]) -> pd.DataFrame:
    """Rows as the ledger's query for incidents returns them; a default for what is left out."""
    default = {
        "group": "g",
        "incident": 1,
        "resource": "w-1",
        "container": "local",
        "threads": 2,
        "detected": NOON,
        "attempts": 0,
        "last_error": None,
        "cause": None,
        "death": None,
        "state": "waiting",
        "closed": None,
        "details": None,
    }
    return pd.DataFrame([default | row for row in rows])


def event_rows(*rows: dict[str, object]) -> pd.DataFrame:
    """Rows as the ledger's query for events returns them."""
    default = {
        "group": "g",
        "event": 1,
        "incident": 1,
        "resource": "w-1",
        "kind": "detected",
        "at": NOON.replace(tzinfo=None),
        "attempt": None,
        "run": None,
        "message": "found",
        "details": None,
    }
    return pd.DataFrame([default | row for row in rows])


def history(*steps: tuple[int, int, datetime]) -> History:
    """Events by number, incident and time, and their incidents, detected when it began."""
    numbers = {incident: at for _, incident, at in reversed(steps)}
    return History(
        incidents_frame(
            incident_rows(*({"incident": i, "detected": numbers[i]} for i in sorted(numbers)))
        ),
        events_frame(
            event_rows(
                *({"event": e, "incident": i, "at": t.replace(tzinfo=None)} for e, i, t in steps)
            )
        ),
    )


def note(number: int, at: datetime = NOON) -> History:
    """An event of the group that belongs to no incident."""
    row: dict[str, object] = {"event": number, "at": at.replace(tzinfo=None), "kind": "paused"}
    row |= {"incident": None, "resource": None}
    return History(incidents_frame(incident_rows({}).head(0)), events_frame(event_rows(row)))


def folder(base: UPath | Path) -> HistoryFolder:
    """A folder that is not there yet."""
    return HistoryFolder(UPath(base) / str(uuid4()))


def types(frame: pd.DataFrame) -> dict[str, str]:
    """The columns of a frame."""
    return {str(name): str(dtype) for name, dtype in frame.dtypes.items()}


def test_frames_have_the_columns_that_are_types_of() -> None:
    """Whatever is empty in them, and where there are no rows at all."""
    for rows in (1, 0):
        incidents = incidents_frame(incident_rows({}).head(rows))
        events = events_frame(event_rows({}).head(rows))
        assert types(incidents) == types_of(INCIDENTS)
        assert types(events) == types_of(EVENTS)
        assert all(column.description for column in (*INCIDENTS, *EVENTS))


def test_the_time_to_recover_is_told_of_what_recovered() -> None:
    """From detection to recovery; nothing for other outcomes and for what is open."""
    later = NOON + timedelta(seconds=90)
    frame = incidents_frame(
        incident_rows(
            {"state": "recovered", "closed": later},
            {"state": "exhausted", "closed": later},
            {"state": "claimed"},
        )
    )
    assert frame["outcome"].isna().tolist() == [False, False, True]
    assert frame["time_to_recover"].dt.total_seconds().tolist()[0] == 90
    assert frame["time_to_recover"].isna().tolist() == [False, True, True]
    assert frame["seconds_to_recover"].fillna(-1).tolist() == [90, -1, -1]


def test_what_a_tick_noted_is_read_from_the_details() -> None:
    """Threads of the group, and the policy; empty where they were not noted."""
    noted = '{"wanted": 8, "live": 6, "grace_seconds": 0.5, "max_retries": 0}'
    incidents = incidents_frame(incident_rows({"details": noted}, {"details": "{}"}, {}))
    events = events_frame(event_rows({"details": noted}, {"details": "{}"}, {}))
    assert incidents["grace_seconds"].fillna(-1).tolist() == [0.5, -1, -1]
    assert incidents["max_retries"].fillna(-1).tolist() == [0, -1, -1]
    assert events["wanted"].fillna(-1).tolist() == [8, -1, -1]
    assert events["live"].fillna(-1).tolist() == [6, -1, -1]


# --- Names --------------------------------------------------------------------------------------


@given(GROUP_NAMES)
@example("..")
@example("a::b")
@example("file::")
@example("🦀" * 50)
def test_no_group_leaves_the_base_folder(name: str) -> None:
    """Its folder is one folder right below the asset's, in every kind of storage."""
    for base in (UPath("/base"), UPath("memory://base"), UPath("file:///base")):
        store = HistoryIOManager(base)
        path = store.folder(dg.AssetKey("orphan_history"), partition_key(name)).path
        file = path / "events" / "2026-03-29.parquet"
        assert file.path.startswith(f"{base.path}/orphan_history/")
        assert len(file.path.removeprefix(f"{base.path}/").split("/")) == 4
        assert path.name not in {"", ".", ".."}
        assert len(path.name.encode()) <= 255


@given(GROUP_NAMES, GROUP_NAMES)
@example("::", "%3A%3A")
@example(":::", "::%3A")
@example("🦀" * 50, "🦀" * 49)
@example("/" * 50, "/" * 49 + "\\")
def test_two_groups_never_share_a_folder(one: str, other: str) -> None:
    """Also where a name is too long for a folder; and a partition's group is known."""
    keys = [partition_key(one), partition_key(other)]
    assert [group_name(key) for key in keys] == [one, other]
    assert (folder_name(keys[0]) == folder_name(keys[1])) == (one == other)


def test_a_name_that_looks_like_a_cut_one_has_a_folder_of_its_own() -> None:
    """Nobody can choose a group's name so that it gets into another's folder."""
    cut = folder_name(partition_key("🦀" * 50))
    assert folder_name(partition_key(cut)) != cut


# --- Files --------------------------------------------------------------------------------------

STEPS = st.lists(
    st.tuples(st.integers(1, 4), st.integers(0, 5).map(lambda days: NOON + timedelta(days=days))),
    min_size=1,
    max_size=10,
)


@pytest.mark.long
@settings(deadline=None)
@given(STEPS, st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_parts_that_overlap_and_repeat_give_the_whole(
    told: list[tuple[int, datetime]], cuts: list[int]
) -> None:
    """However a story is cut into increments, and whichever of them come twice."""
    first = dict(reversed(told))
    steps = [(number, i, at) for number, (i, at) in enumerate(told, 1)]
    files = folder(UPath("memory://frames"))
    position = Position()
    start = 0
    added = [0, 0]
    for cut in [*cuts, len(steps)]:
        part = steps[max(0, start - 1) : start + cut]  # one is read again
        start = min(start + cut, len(steps))
        if part:
            whole = history(*part)
            detected = whole.incidents["incident"].map(first).astype("datetime64[us, UTC]")
            increment = History(whole.incidents.assign(detected=detected), whole.events)
            position, *new = files.merge(increment, position, now=NOON + timedelta(days=9))
            added = [one + two for one, two in zip(added, new, strict=True)]
    loaded = files.load()
    assert loaded.events["event"].tolist() == [number for number, _, _ in steps]
    assert loaded.incidents["incident"].tolist() == sorted(first)
    assert added == [len(first), len(steps)]
    assert position.outcomes == {"open": len(first)}
    assert files.position() == position
    assert (position.event, position.settled) == (len(steps), len(steps))


def test_files_of_one_day_can_be_read_by_anything(tmp_path: Path) -> None:
    """By pandas in one line, a folder at a time; every file has the same schema."""
    files = folder(tmp_path)
    position = Position()
    for number, message in enumerate((None, "exit code 3"), 1):
        at = NOON + timedelta(days=number)
        part = history((number, number, at))
        part = History(part.incidents.assign(last_error=pd.array([message], "string")), part.events)
        position, *_ = files.merge(part, position, now=at)
    for table, columns in (("incidents", INCIDENTS), ("events", EVENTS)):
        frame = pd.read_parquet(Path(str(files.path)) / table)
        assert types(frame) == types_of(columns)
        assert len(frame) == 2
        found = sorted(file.name for file in (Path(str(files.path)) / table).iterdir())
        assert found == ["2026-03-30.parquet", "2026-03-31.parquet"]
        one, two = (types(pd.read_parquet(Path(str(files.path)) / table / name)) for name in found)
        assert one == two


def test_a_file_of_an_older_version_may_lack_a_column(tmp_path: Path) -> None:
    """What is new is empty there, and the next merge adds it."""
    files = folder(tmp_path)
    position, *_ = files.merge(history((1, 1, NOON)), Position(), now=NOON)
    file = files.path / "incidents" / "2026-03-29.parquet"
    old = pd.read_parquet(BytesIO(file.read_bytes())).drop(columns=["max_retries", "cause"])
    old.to_parquet(str(file))
    assert files.load().incidents[["max_retries", "cause"]].isna().all(axis=None)
    files.merge(history((2, 2, NOON)), position, now=NOON)
    assert types(files.load().incidents) == types_of(INCIDENTS)


def test_what_belongs_to_no_incident_is_stored_too(tmp_path: Path) -> None:
    """Alone, and among events that do."""
    files = folder(tmp_path)
    position, *added = files.merge(note(1), Position(), now=NOON)
    assert added == [0, 1]
    position, *added = files.merge(history((2, 1, NOON)), position, now=NOON)
    assert added == [1, 1]
    files.merge(note(3, NOON + timedelta(days=1)), position, now=NOON)
    loaded = files.load().events
    assert types(loaded) == types_of(EVENTS)
    assert loaded["incident"].fillna(-1).tolist() == [-1, 1, -1]
    assert loaded["resource"].fillna("").tolist() == ["", "w-1", ""]
    whole = pd.read_parquet(Path(str(files.path)) / "events")
    assert types(whole) == types_of(EVENTS)


def test_files_of_the_version_before_are_read_and_merged(tmp_path: Path) -> None:
    """There every event had an incident, and its number was a plain integer."""
    files = folder(tmp_path)
    position, *_ = files.merge(history((1, 1, NOON), (2, 1, NOON)), Position(), now=NOON)
    file = files.path / "events" / "2026-03-29.parquet"
    old = pd.read_parquet(BytesIO(file.read_bytes())).astype({"incident": "int64"})
    old.to_parquet(str(file))
    assert types(files.load().events) == types_of(EVENTS)
    again = history((2, 1, NOON), (3, 2, NOON + timedelta(days=1)))
    position, *added = files.merge(again, position, now=NOON)
    assert added == [1, 1]
    _, *added = files.merge(note(4), position, now=NOON)
    assert added == [0, 1]
    loaded = files.load().events
    assert types(loaded) == types_of(EVENTS)
    assert loaded["event"].tolist() == [1, 2, 3, 4]
    assert loaded["incident"].fillna(-1).tolist() == [1, 1, 2, -1]


def test_what_is_read_again_is_not_written_again(tmp_path: Path) -> None:
    """A day file is left alone where nothing in it is new."""
    files = folder(tmp_path)
    position, *_ = files.merge(history((1, 1, NOON)), Position(), now=NOON)
    file = Path(str(files.path)) / "events" / "2026-03-29.parquet"
    before = file.stat().st_ino
    files.merge(history((1, 1, NOON)), position, now=NOON)
    assert file.stat().st_ino == before


@pytest.mark.parametrize("text", ["", "{", "[]", '{"evnet": 1}', '"x"', "\xff"])
def test_a_position_that_cannot_be_read_is_the_beginning(tmp_path: Path, text: str) -> None:
    """The ledger is read from its first event, and what is there stays right."""
    files = folder(tmp_path)
    files.merge(history((1, 1, NOON)), Position(), now=NOON)
    (files.path / "position.json").write_bytes(text.encode("latin-1"))
    assert files.position() == Position()
    files.merge(history((1, 1, NOON), (2, 1, NOON)), files.position(), now=NOON)
    assert files.load().events["event"].tolist() == [1, 2]


def test_a_draft_that_a_crash_left_is_not_taken_for_a_file(tmp_path: Path) -> None:
    """Neither by us nor by pandas."""
    files = folder(tmp_path)
    files.merge(history((1, 1, NOON)), Position(), now=NOON)
    events = Path(str(files.path)) / "events"
    (events / ".2026-03-29.parquet.0123").write_bytes(b"PAR1 half")
    assert len(files.load().events) == len(pd.read_parquet(events)) == 1


@pytest.mark.parametrize(
    ("age", "settled"),
    [(timedelta(minutes=10), 0), (timedelta(minutes=10, microseconds=1), 1), (timedelta(1), 1)],
)
def test_events_settle_after_ten_minutes(tmp_path: Path, age: timedelta, settled: int) -> None:
    """Younger ones are read again by the next refresh, with all after them."""
    position, *_ = folder(tmp_path).merge(history((1, 1, NOON)), Position(), now=NOON + age)
    assert position.settled == settled
    assert (position.event, position.event_at) == (1, NOON.isoformat())


def test_an_expired_day_goes_and_does_not_come_back(tmp_path: Path) -> None:
    """Its files are deleted, its incidents are counted no more, and its rows are left out."""
    files = folder(tmp_path)
    told = history((1, 1, NOON), (2, 2, NOON + timedelta(days=1)), (3, 1, NOON + timedelta(days=2)))
    position, *_ = files.merge(told, Position(), now=NOON + timedelta(days=2))
    oldest = first_day(NOON + timedelta(days=2), timedelta(days=1))
    assert oldest == "2026-03-30"
    position = files.expire(position, oldest)
    position, *added = files.merge(told, position, now=NOON + timedelta(days=2), oldest=oldest)
    left = files.load()
    assert (left.incidents["incident"].tolist(), left.events["event"].tolist()) == ([2], [2, 3])
    assert (position.outcomes, added) == ({"open": 1}, [0, 0])
    assert files.position() == position
    assert not first_day(NOON, None)


def test_the_tail_is_thirty_days_or_a_hundred_incidents(tmp_path: Path) -> None:
    """Whichever goes further back; with the events since then."""
    files = folder(tmp_path)
    steps = [(n, n, NOON + timedelta(days=n)) for n in range(1, 151)]
    position, *_ = files.merge(history(*steps), Position(), now=NOON + timedelta(days=150))
    tail = files.tail(position, NOON + timedelta(days=150))
    assert tail.incidents["incident"].tolist() == list(range(51, 151))
    assert tail.events["event"].tolist() == list(range(51, 151))
    assert len(files.tail(position, NOON + timedelta(days=31)).incidents) == 150
    assert folder(tmp_path).tail(Position(), NOON).incidents.empty
