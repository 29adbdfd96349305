"""What does one tick leave to the next, and what if it cannot be read?"""

import string
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestration.cursor import Cursor, dump_cursor, parse_cursor
from orchestration.keeping.continuity import Watch

watches = st.builds(
    Watch,
    witnesses=st.lists(st.text(), max_size=3).map(tuple),
    was_away=st.booleans(),
    settling_since=st.none() | st.datetimes(timezones=st.just(UTC)),
)


@given(st.builds(Cursor, event=st.integers(0, 2**63), watch=watches))
def test_a_cursor_comes_back_as_it_was(cursor: Cursor) -> None:
    """Whatever tokens AMS gives out."""
    assert parse_cursor(dump_cursor(cursor)) == cursor


@pytest.mark.parametrize(
    ("text", "event"), [(None, 0), ("", 0), ("0", 0), ("417", 417), ('{"event": 3}', 3)]
)
def test_older_cursors_are_understood(text: str | None, event: int) -> None:
    """The first version of the sensor kept nothing but the number of an event."""
    assert parse_cursor(text) == Cursor(event=event)


@given(
    st.text()
    | st.text(string.printable)
    | st.sampled_from(
        [
            "[]",
            "null",
            '"x"',
            "1.5",
            '{"event": "x"}',
            '{"event": null}',
            '{"settling_since": 5}',
            '{"settling_since": "soon"}',
            '{"witnesses": 7}',
            "[" * 100_000,
        ]
    )
)
def test_nonsense_is_a_new_cursor(text: str) -> None:
    """It is edited by hand in the UI; nothing but time is lost with it."""
    assert isinstance(parse_cursor(text), Cursor)


def test_a_quiet_fleet_without_an_ams_leaves_little() -> None:
    """What is empty is left out."""
    assert dump_cursor(Cursor(event=5)) == '{"event": 5}'
    since = datetime(2026, 1, 1, tzinfo=UTC)
    told = dump_cursor(Cursor(watch=Watch(was_away=True, settling_since=since)))
    assert told == '{"was_away": true, "settling_since": "2026-01-01T00:00:00+00:00"}'
