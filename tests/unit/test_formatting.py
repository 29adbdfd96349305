"""How a person reads moments, spans and numbers."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagster_amoro.core.formatting import clock_time, counted, duration


def test_a_moment_is_told_with_its_zone() -> None:
    """To the second, which is cut off."""
    assert clock_time(datetime(2026, 3, 1, 9, 5, 7, 999_999, tzinfo=UTC)) == (
        "2026-03-01 09:05:07 UTC"
    )


@pytest.mark.parametrize(
    ("seconds", "message"),
    [
        (-5, "0 s"),
        (0, "0 s"),
        (0.4, "0 s"),
        (42, "42 s"),
        (119.4, "119 s"),
        (119.6, "2 min"),
        (121, "2 min 1 s"),
        (300, "5 min"),
        (3599, "59 min 59 s"),
        (330, "5 min 30 s"),
        (3599.6, "1 h"),
        (3600 + 59, "1 h"),
        (3900, "1 h 5 min"),
        (3 * 86_400, "72 h"),
    ],
)
def test_a_span_is_told_as_exactly_as_it_matters(seconds: float, message: str) -> None:
    """Seconds matter below an hour, and no span is negative."""
    assert duration(timedelta(seconds=seconds)) == message


@given(st.timedeltas())
def test_a_span_is_told_to_the_second_and_from_an_hour_on_to_the_minute(span: timedelta) -> None:
    """What is told, added up, is what is meant."""
    words = duration(span).split()
    units = {"h": 3600, "min": 60, "s": 1}
    message = sum(int(n) * units[unit] for n, unit in zip(words[::2], words[1::2], strict=True))
    off = max(span, timedelta(0)).total_seconds() - message
    assert -0.5 <= off <= (60 if message >= 3600 else 0.5)


@pytest.mark.parametrize(
    ("number", "message"), [(0, "0 orphans"), (1, "1 orphan"), (1000, "1,000 orphans")]
)
def test_things_are_counted(number: int, message: str) -> None:
    """One of them has no s."""
    assert counted(number, "orphan") == message
