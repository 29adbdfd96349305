"""What time is it? A function that says so is passed to whatever has to know."""

from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]
"""Says what time it is, as aware UTC. Read once per tick and once per step of an attempt."""


def utc_clock() -> datetime:
    """The clock of this host."""
    return datetime.now(UTC)
