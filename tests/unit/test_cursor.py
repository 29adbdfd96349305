"""What does one tick leave to the next, and what if it cannot be read?"""

import json
import re
import string
from datetime import UTC, datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dagster_amoro.core.ams_restart import AmsRestartDetector
from dagster_amoro.core.messages import ACTS
from dagster_amoro.defs.cursor import Cursor, Numbers, dump_cursor, new_token, parse_cursor

detectors = st.builds(
    AmsRestartDetector,
    sample_tokens=st.lists(st.text(), max_size=3).map(tuple),
    was_away=st.booleans(),
    settling_since=st.none() | st.datetimes(timezones=st.just(UTC)),
)


numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()


@given(
    st.builds(
        Cursor,
        event=st.integers(0, 2**63 - 1),
        ledger=st.none() | st.text(min_size=1),
        event_at=st.none() | st.datetimes(timezones=st.just(UTC)),
        until=st.integers(0, 2**63 - 1),
        told_group=st.text(),
        detector=detectors,
        last_served_group=st.none() | st.text(min_size=1),
        abstentions=st.integers(0, 2**63 - 1),
        completed_at=st.none() | st.datetimes(timezones=st.just(UTC)),
        reported=st.dictionaries(st.text(), numbers, max_size=3),
        token=st.none() | st.builds(new_token),
    )
)
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
            '{"sample_tokens": 7}',
            '{"event": Infinity}',
            '{"event": -1}',
            '{"event": 9223372036854775808}',
            '{"abstentions": [3]}',
            '{"completed_at": "2026-01-01T00:00:00"}',
            '{"settling_since": "2026-01-01T00:00:00"}',
            '{"told": [1]}',
            '{"token": 5}',
            '{"token": ""}',
            '{"token": "0123456789abcdeF"}',
            '{"token": "0123456789abcdef0"}',
            '{"token": "0123456789abcdef\\n"}',
            "[" * 100_000,
        ]
    )
)
@example("9" * 100)
def test_nonsense_is_a_new_cursor(text: str) -> None:
    """It is edited by hand in the UI; nothing but time is lost with it."""
    cursor = parse_cursor(text)
    assert 0 <= cursor.event < 2**63
    assert cursor == Cursor(event=cursor.event)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
FIELDS = [
    "event",
    "ledger",
    "event_at",
    "sample_tokens",
    "settling_since",
    "last_served_group",
    "abstentions",
    "completed_at",
    "reported",
    "token",
]


@given(st.dictionaries(st.sampled_from(FIELDS), JSON))
def test_whatever_stands_in_a_cursor_can_be_worked_with(values: dict[str, object]) -> None:
    """Times can be compared, numbers can be counted on, and what is told can be told again."""
    cursor = parse_cursor(json.dumps(values))
    for moment in (cursor.completed_at, cursor.event_at, cursor.detector.settling_since):
        assert moment is None or moment.tzinfo is not None
    assert 0 <= cursor.abstentions < 2**63
    assert all(isinstance(value, int | float | str) for value in cursor.reported.values())
    assert cursor.token is None or len(cursor.token) == len(new_token())
    assert isinstance(parse_cursor(dump_cursor(cursor)), Cursor)


def test_no_token_is_given_twice() -> None:
    """Each is random, and fits into a run key."""
    assert len({new_token() for _ in range(1000)}) == 1000
    assert all(re.fullmatch("[0-9a-f]{16}", new_token()) for _ in range(10))


def test_a_quiet_fleet_without_an_ams_leaves_little() -> None:
    """What is empty is left out."""
    assert dump_cursor(Cursor(event=5)) == '{"event": 5}'
    since = datetime(2026, 1, 1, tzinfo=UTC)
    message = dump_cursor(Cursor(detector=AmsRestartDetector(was_away=True, settling_since=since)))
    assert message == '{"was_away": true, "settling_since": "2026-01-01T00:00:00+00:00"}'


@pytest.mark.parametrize(
    ("reported", "saw"),
    [
        ({"orphans": 2, "resources": 40, ACTS: "blue"}, "2 of 40 orphaned"),
        ({ACTS: "nobody", "abstentions in a row": 3}, "nobody"),
        ({}, None),
    ],
)
def test_a_cursor_begins_with_what_the_tick_saw(reported: Numbers, saw: str | None) -> None:
    """The sensor's page shows the beginning of each, and nothing else of a tick without a click."""
    values = json.loads(dump_cursor(Cursor(event=1, reported=reported)))
    assert values.get("saw") == saw
    assert next(iter(values)) == ("saw" if saw else "event")
