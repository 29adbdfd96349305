"""How the ledger's times are read where SQLite holds them as texts."""

from datetime import UTC, datetime

import pytest
from sqlalchemy.dialects import sqlite

from dagster_amoro.stores.schema import UtcDateTime

READ = UtcDateTime().result_processor(sqlite.dialect(), None)


def test_a_time_without_a_zone_is_in_utc() -> None:
    """To the microsecond; and none stays none."""
    assert READ("2026-03-29 01:00:00.000001") == datetime(2026, 3, 29, 1, 0, 0, 1, tzinfo=UTC)
    assert READ(None) is None


@pytest.mark.parametrize("text", ["2026-03-29 01:00:00+02:00", "2026-03-29 01:00:00Z", "soon"])
def test_any_other_text_is_refused(text: str) -> None:
    """It would pass for a moment that nobody meant."""
    with pytest.raises(ValueError, match="Invalid isoformat string"):
        READ(text)
